//! A guest in this process: a driver on each ring of a stand-alone shard. For tests and fuzzing.

use crate::stand_alone;
use guest_memory::{GuestAddress, GuestMemory};
use packet::{Burst, Packet, Pool};
use port::{Counters, PortShard, PortStats};
use std::collections::BTreeMap;
use std::sync::Arc;
use vhost_device::DeviceEvent;
use virtio_spec::feature;
use virtio_spec::net::{HEADER_LEN, Header, LEGACY_HEADER_LEN, feature as net};
use virtqueue::driver::{Buffer, Driver};

/// Entries of each ring.
pub(crate) const SIZE: u16 = 64;
/// Bytes of guest memory.
pub(crate) const MEMORY: u64 = 16 << 20;
const RING_STRIDE: u64 = 0x1_0000;
const TABLES: u64 = 0x2_0000;
const TABLE_STRIDE: u64 = 0x400;
pub(crate) const BUFFERS: u64 = 0x10_0000;
/// Room for the largest frame with its header.
pub(crate) const SLOT: u64 = 0x1_4000;

/// All layouts that a driver may choose.
pub(crate) const LAYOUTS: [u64; 6] = [
    0,
    feature::RING_EVENT_IDX,
    feature::IN_ORDER,
    feature::RING_PACKED,
    feature::RING_PACKED | feature::RING_EVENT_IDX,
    feature::RING_PACKED | feature::IN_ORDER,
];

/// The guest and its device.
pub(crate) struct Guest {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) pool: Pool,
    pub(crate) shard: Box<dyn PortShard>,
    stats: Arc<PortStats>,
    pub(crate) events: crossbeam::channel::Receiver<DeviceEvent>,
    /// The receive and the transmit ring.
    pub(crate) rx: Driver,
    pub(crate) tx: Driver,
    pub(crate) header_len: usize,
    /// Receive buffers by chain.
    posted: BTreeMap<u16, Vec<Buffer>>,
    next_tx: u64,
    next_rx: u64,
}

impl Guest {
    /// A guest whose driver negotiated `features`.
    pub(crate) fn new(features: u64, buffers: usize) -> Guest {
        let memory = Arc::new(GuestMemory::anonymous(MEMORY as usize).unwrap());
        let features = features | feature::RING_INDIRECT_DESC;
        let driver = |at| Driver::new(&memory, GuestAddress(at), SIZE, features);
        let (rx, tx) = (driver(0), driver(RING_STRIDE));
        let pool = Pool::new(buffers, None).unwrap();
        let (shard, stats, events) = stand_alone(&memory, &[rx.setup(), tx.setup()], pool.clone(), 1500).unwrap();
        let legacy = features & (feature::VERSION_1 | net::MRG_RXBUF) == 0;
        let header_len = if legacy { LEGACY_HEADER_LEN } else { HEADER_LEN };
        let posted = BTreeMap::new();
        Guest { memory, pool, shard, stats, events, rx, tx, header_len, posted, next_tx: 0, next_rx: 0 }
    }

    pub(crate) fn counters(&self) -> Counters {
        [&*self.stats].into_iter().sum()
    }

    /// A place in memory for a chain of a ring, used again when all others of that ring were: of the second half for receiving.
    fn slot(next: &mut u64, receive: bool) -> u64 {
        *next = (*next + 1) % SLOTS;
        BUFFERS + (*next + if receive { SLOTS } else { 0 }) * SLOT
    }

    /// Writes a packet and makes it available, in pieces that end at `cuts`. `false` without room in the ring.
    pub(crate) fn send(&mut self, header: &Header, frame: &[u8], cuts: &[usize], indirect: bool) -> bool {
        let bytes = [&header.to_bytes()[..self.header_len], frame].concat();
        let at = Self::slot(&mut self.next_tx, false);
        self.memory.write(GuestAddress(at), &bytes).unwrap();
        let chain = pieces(at, bytes.len(), cuts, false);
        self.post_tx(&chain, indirect)
    }

    /// Makes any chain available on the transmit ring.
    pub(crate) fn post_tx(&mut self, chain: &[Buffer], indirect: bool) -> bool {
        let table = GuestAddress(TABLES + self.next_tx * TABLE_STRIDE);
        if indirect { self.tx.add_indirect(table, chain) } else { self.tx.add(chain) }.is_some()
    }

    /// Makes a receive buffer of `len` bytes available. `false` without room in the ring.
    pub(crate) fn post_rx(&mut self, len: usize, cuts: &[usize], indirect: bool) -> bool {
        let chain = pieces(Self::slot(&mut self.next_rx, true), len, cuts, true);
        self.post_rx_chain(chain, indirect)
    }

    /// Makes any chain available on the receive ring.
    pub(crate) fn post_rx_chain(&mut self, chain: Vec<Buffer>, indirect: bool) -> bool {
        let table = GuestAddress(TABLES + (SLOTS + self.next_rx) * TABLE_STRIDE);
        let id = if indirect { self.rx.add_indirect(table, &chain) } else { self.rx.add(&chain) };
        if id.is_none() {
            // The place is free for the next one.
            self.next_rx = (self.next_rx + SLOTS - 1) % SLOTS;
        }
        id.map(|id| self.posted.insert(id, chain)).is_some()
    }

    /// One turn of a worker, that only receives. Appends the packets' bytes.
    pub(crate) fn device_receives(&mut self, frames: &mut Vec<Vec<u8>>) {
        let mut burst = Burst::new();
        self.shard.rx(&mut burst);
        self.shard.flush();
        frames.extend(burst.iter().map(bytes_of));
    }

    /// One turn that only sends.
    pub(crate) fn device_sends(&mut self, frames: &[Vec<u8>]) {
        let mut burst = Burst::new();
        for frame in frames {
            let mut packet = self.pool.take_one().unwrap();
            assert!(packet.extend_from_slice(frame, &self.pool));
            burst.push(packet);
        }
        self.device_sends_burst(burst);
    }

    pub(crate) fn device_sends_burst(&mut self, mut burst: Burst) {
        self.shard.tx(&mut burst);
        assert!(burst.is_empty());
        self.shard.flush();
    }

    /// Takes back what the device used of the transmit ring. Returns how many.
    pub(crate) fn reclaim(&mut self) -> usize {
        std::iter::from_fn(|| self.tx.take_used()).inspect(|&(_, written)| assert_eq!(written, 0)).count()
    }

    /// What was received: header and frame, put together from as many buffers as the header says.
    pub(crate) fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some(mut bytes) = self.received_buffer() {
            if bytes.is_empty() {
                continue;
            }
            let mut header = [0; HEADER_LEN];
            header[..self.header_len].copy_from_slice(&bytes[..self.header_len]);
            let header = Header::parse(&header);
            for _ in 1..if self.header_len == HEADER_LEN { header.num_buffers } else { 1 } {
                bytes.extend(self.received_buffer().expect("all buffers of a packet come at once"));
            }
            frames.push((header, bytes.split_off(self.header_len)));
        }
        frames
    }

    fn received_buffer(&mut self) -> Option<Vec<u8>> {
        let (id, written) = self.rx.take_used()?;
        let chain = self.posted.remove(&id).expect("used what was posted");
        let mut bytes = Vec::new();
        for (address, len, write) in chain.into_iter().filter(|&(.., write)| write) {
            let run = (written as usize - bytes.len()).min(len as usize);
            let at = bytes.len();
            bytes.resize(at + run, 0);
            assert!(write);
            self.memory.read(address, &mut bytes[at..]).unwrap();
        }
        assert_eq!(bytes.len(), written as usize, "no more is used than there is");
        Some(bytes)
    }

    /// Ends the device and checks that no buffer is lost.
    pub(crate) fn end(self) {
        let Guest { shard, pool, .. } = self;
        drop(shard);
        assert_eq!(pool.free_count(), pool.capacity(), "buffers were lost");
    }
}

/// Places for chains of each ring: more than the ring has entries.
const SLOTS: u64 = (MEMORY - BUFFERS) / SLOT / 2;
const _: () = assert!(SLOTS > SIZE as u64 && TABLES + 2 * SLOTS * TABLE_STRIDE <= BUFFERS);

/// `len` bytes at `at`, cut at `cuts`.
pub(crate) fn pieces(at: u64, len: usize, cuts: &[usize], write: bool) -> Vec<Buffer> {
    let mut ends: Vec<usize> = cuts.iter().copied().filter(|&cut| 0 < cut && cut < len).chain([len]).collect();
    ends.sort();
    ends.dedup();
    let starts = [0].into_iter().chain(ends.clone());
    let piece = |(start, &end): (usize, &usize)| (GuestAddress(at + start as u64), (end - start) as u32, write);
    starts.zip(&ends).map(piece).collect()
}

pub(crate) fn bytes_of(packet: &Packet) -> Vec<u8> {
    let mut bytes = vec![0; packet.len()];
    packet.copy_to(&mut bytes);
    bytes
}
