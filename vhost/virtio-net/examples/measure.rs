//! What a shard costs: cycles a packet of receiving and of sending, without the driver's part.
//!
//!     cargo run --release -p virtio-net --example measure [rounds]
//!
//! A driver in this process keeps the rings going, outside of what is measured; bursts of 32. Receiving includes taking a
//! buffer from the pool, sending giving it back. Best of several windows.

use clock::Cycles;
use guest_memory::{GuestAddress, GuestMemory};
use packet::{BURST, Burst, Pool};
use port::PortShard;
use std::sync::Arc;
use virtio_spec::feature;
use virtio_spec::net::{HEADER_LEN, feature as net};
use virtqueue::driver::Driver;

const SIZE: u16 = 256;
const SLOT: u64 = 2048;
const BUFFERS: u64 = 1 << 20;
const WINDOW: usize = 500;

const LAYOUTS: [(&str, u64); 4] = [
    ("split", 0),
    ("split in_order", feature::IN_ORDER),
    ("packed", feature::RING_PACKED),
    ("packed in_order", feature::RING_PACKED | feature::IN_ORDER),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let windows: usize = std::env::args().nth(1).map_or(Ok(40), |rounds| rounds.parse())?;
    println!("{:>16} {:>6} {:>6} {:>6}", "layout", "bytes", "rx", "tx");
    for (name, layout) in LAYOUTS {
        for len in [64, 1500] {
            let mut rig = Rig::new(layout | feature::VERSION_1 | net::MRG_RXBUF)?;
            let [rx, tx] = [Rig::receive, Rig::send].map(|round| rig.best(windows, len, round));
            println!("{name:>16} {len:>6} {rx:>6.1} {tx:>6.1}");
        }
    }
    Ok(())
}

/// A shard and its driver.
struct Rig {
    shard: Box<dyn PortShard>,
    pool: Pool,
    rx: Driver,
    tx: Driver,
    slot: u64,
}

impl Rig {
    fn new(features: u64) -> Result<Rig, Box<dyn std::error::Error>> {
        let memory = Arc::new(GuestMemory::anonymous(4 << 20)?);
        let driver = |at| Driver::new(&memory, GuestAddress(at), SIZE, features);
        let (mut rx, mut tx) = (driver(0), driver(0x1_0000));
        rx.set_interrupts(false);
        tx.set_interrupts(false);
        let pool = Pool::new(1024, None)?;
        let (shard, ..) = virtio_net::stand_alone(&memory, &[rx.setup(), tx.setup()], pool.clone(), 1500)?;
        Ok(Rig { shard, pool, rx, tx, slot: 0 })
    }

    fn slot(&mut self) -> GuestAddress {
        self.slot = (self.slot + 1) % u64::from(SIZE);
        GuestAddress(BUFFERS + self.slot * SLOT)
    }

    /// Cycles of receiving a burst.
    fn receive(&mut self, len: u32) -> u64 {
        for _ in 0..BURST {
            let at = self.slot();
            self.tx.add(&[(at, HEADER_LEN as u32 + len, false)]).expect("room in the ring");
        }
        let mut burst = Burst::new();
        let start = Cycles::now();
        self.shard.rx(&mut burst);
        self.shard.flush();
        let spent = Cycles::now().since(start);
        assert_eq!(burst.len(), BURST);
        while self.tx.take_used().is_some() {}
        spent.0
    }

    /// Cycles of sending a burst.
    fn send(&mut self, len: u32) -> u64 {
        let mut burst = Burst::new();
        for _ in 0..BURST {
            let at = self.slot();
            self.rx.add(&[(at, SLOT as u32, true)]).expect("room in the ring");
            let mut packet = self.pool.take_one().expect("a buffer");
            packet.append(len as usize).expect("room").fill(1);
            burst.push(packet);
        }
        let start = Cycles::now();
        self.shard.tx(&mut burst);
        self.shard.flush();
        let spent = Cycles::now().since(start);
        assert_eq!(std::iter::from_fn(|| self.rx.take_used()).count(), BURST);
        spent.0
    }

    /// Cycles a packet in the best window.
    fn best(&mut self, windows: usize, len: u32, round: fn(&mut Rig, u32) -> u64) -> f64 {
        let window = |rig: &mut Rig| (0..WINDOW).map(|_| round(rig, len)).sum::<u64>();
        let best = (0..windows).map(|_| window(self)).min().unwrap_or(0);
        best as f64 / (WINDOW * BURST) as f64
    }
}
