//! The switch's steps whose instructions are counted.

use super::traffic::{Load, frame};
use super::{ROUTE, ours};
use crate::instructions::{mark, measured};
use anyhow::{Result, anyhow, ensure};
use crossbeam::channel::{Sender, bounded};
use engine::{Engine, IdlePolicy, WorkerHandle};
use flow::execute::{Executor, Sink};
use flow::text::parse_actions;
use flow::{BATCH, Config, DropReason, FlowCache, Limits, Megaflow, Metadata, Miniflow, PortNo, extract};
use guest_memory::{GuestAddress, GuestMemory};
use l2::{PortConfig, Switch};
use packet::{BURST, Burst, Packet, Pool};
use port::{Port, PortError, PortInfo, PortKind, PortShard, PortStats};
use std::sync::Arc;
use virtio_spec::feature;
use virtio_spec::net::{HEADER_LEN, feature as net};
use virtqueue::driver::Driver;

const WARM_UP: usize = 200;
const ROUNDS: usize = 2000;
const ITEMS: u64 = (ROUNDS * BATCH) as u64;
const FROM: PortNo = 1;
const TO: PortNo = 2;
/// So small that nothing stays in the tier.
const NO_ENTRIES: usize = 2;

fn key_of(flow: usize) -> Miniflow {
    let mut key = Miniflow::default();
    extract(&frame(flow), &Metadata { in_port: FROM, ..Metadata::default() }, &mut key);
    key
}

pub(crate) fn extract_keys() -> Result<u64> {
    let frames: Vec<_> = (0..BATCH).map(frame).collect();
    let mut keys: Vec<_> = frames.iter().map(|_| Miniflow::default()).collect();
    for _ in 0..ROUNDS {
        measured(|| {
            for (frame, key) in frames.iter().zip(&mut keys) {
                let metadata = Metadata { in_port: FROM, packet_len: frame.len() as u32, ..Metadata::default() };
                extract(frame, &metadata, key);
            }
        });
    }
    Ok(ITEMS)
}

/// Looks packets of all flows up in turn, in a cache of this shape.
fn look_up(config: Config, load: Load, of_tier: fn(&FlowCache) -> u64) -> Result<u64> {
    let mut cache = FlowCache::new(config);
    for line in load.flow_lines(&FROM.to_string(), &TO.to_string()).lines() {
        let (flow, actions) = ours::parse(line)?;
        cache.insert(Megaflow::new(flow.key, flow.mask, actions))?;
    }
    let mut next = 0;
    for round in 0..WARM_UP + ROUNDS {
        let before = of_tier(&cache);
        let mut keys: [_; BATCH] = std::array::from_fn(|i| key_of((next + i) % load.flows));
        next += BATCH;
        let mut found = [None; BATCH];
        if round < WARM_UP {
            cache.lookup_batch(&mut keys, &mut found);
        } else {
            measured(|| cache.lookup_batch(&mut keys, &mut found));
            ensure!(of_tier(&cache) == before + BATCH as u64, "not all packets were found in the tier");
        }
        ensure!(found.iter().all(Option::is_some), "a packet was not found");
    }
    Ok(ITEMS)
}

pub(crate) fn look_up_exact() -> Result<u64> {
    look_up(Config::default(), Load { flows: BATCH, masks: 1, rewrite: "" }, |cache| cache.hits().exact)
}

pub(crate) fn look_up_signature() -> Result<u64> {
    let config = Config { emc_entries: NO_ENTRIES, ..Config::default() };
    look_up(config, Load { flows: 1024, masks: 8, rewrite: "" }, |cache| cache.hits().signature)
}

pub(crate) fn look_up_megaflow() -> Result<u64> {
    let config =
        Config { emc_entries: NO_ENTRIES, smc_entries: NO_ENTRIES, limits: Limits::default(), ..Config::default() };
    look_up(config, Load { flows: 10_000, masks: 32, rewrite: "" }, |cache| cache.hits().megaflow)
}

/// Keeps what is sent.
struct Sent(Burst);

impl Sink for Sent {
    fn output(&mut self, packet: Packet, _: PortNo) {
        self.0.push(packet);
    }

    fn userspace(&mut self, _: Packet, _: &flow::action::Userspace) {}

    fn recirculate(&mut self, _: Packet, _: &Metadata<'_>) {}

    fn meter(&mut self, _: &Packet, _: u32) -> bool {
        true
    }

    fn dropped(&mut self, _: Packet, _: DropReason) {}
}

fn execute(rewrite: &str) -> Result<u64> {
    let pool = Pool::new(4 * BURST, None)?;
    let actions = parse_actions(&format!("{rewrite}{TO}"))?;
    let mut executor = Executor::new(pool.clone());
    let metadata = Metadata { in_port: FROM, ..Metadata::default() };
    for _ in 0..ROUNDS {
        let mut burst = Burst::new();
        pool.take(&mut burst, BURST);
        for packet in &mut burst {
            packet.append(60).ok_or_else(|| anyhow!("no room"))?.copy_from_slice(&frame(1));
        }
        let mut sent = Sent(Burst::new());
        measured(|| executor.run_burst(burst.drain(..), &metadata, &actions, &mut sent));
        ensure!(sent.0.len() == BURST, "{} packets came out", sent.0.len());
    }
    Ok((ROUNDS * BURST) as u64)
}

pub(crate) fn execute_output() -> Result<u64> {
    execute("")
}

pub(crate) fn execute_route() -> Result<u64> {
    execute(ROUTE)
}

/// A port that gives bursts of one packet's kind without end, and counts them between marks; what it is given it frees.
struct Endless {
    pool: Pool,
    /// Of the port that gives: told when all bursts are given.
    done: Option<Sender<()>>,
}

impl Port for Endless {
    fn info(&self) -> PortInfo {
        PortInfo { kind: PortKind::Memory, mac: [0; 6], mtu: 1500, link_up: true, rx_queues: 1, tx_queues: 1 }
    }

    fn open_shard(&self, _: &WorkerHandle) -> Result<Box<dyn PortShard>, PortError> {
        Ok(Box::new(EndlessShard { pool: self.pool.clone(), done: self.done.clone(), turns: 0 }))
    }

    fn stats(&self) -> Vec<Arc<PortStats>> {
        Vec::new()
    }
}

struct EndlessShard {
    pool: Pool,
    done: Option<Sender<()>>,
    turns: usize,
}

impl PortShard for EndlessShard {
    fn rx(&mut self, burst: &mut Burst) -> usize {
        let Some(done) = &self.done else { return 0 };
        self.turns += 1;
        if self.turns == WARM_UP || self.turns == WARM_UP + ROUNDS {
            mark();
        }
        if self.turns == WARM_UP + ROUNDS {
            let _ = done.send(()); // fails only when the step has ended already
        }
        if self.turns > WARM_UP + ROUNDS {
            return 0;
        }
        let taken = self.pool.take(burst, BURST);
        for (flow, packet) in burst.iter_mut().enumerate() {
            if let Some(data) = packet.append(60) {
                data.copy_from_slice(&frame(flow));
            }
        }
        taken
    }

    fn tx(&mut self, burst: &mut Burst) {
        packet::free(burst);
    }
}

/// From one port to another by static flows, the ports' part included.
pub(crate) fn datapath_output() -> Result<u64> {
    let engine = Engine::start(&[0], IdlePolicy::POLL)?;
    let pool = Pool::new(16 * BURST, None)?;
    let switch = Switch::start(engine.workers(), pool.clone())?;
    let load = Load { flows: BURST, masks: 1, rewrite: "" };
    for line in load.flow_lines(&FROM.to_string(), &TO.to_string()).lines() {
        let (flow, actions) = ours::parse(line)?;
        switch.add_flow(&flow.key, &flow.mask, actions)?;
    }
    let number = |number| PortConfig { number: Some(number), ..PortConfig::default() };
    let (done, all) = bounded(1);
    switch.add_port("sink", Arc::new(Endless { pool: pool.clone(), done: None }), &number(TO))?;
    switch.add_port("source", Arc::new(Endless { pool, done: Some(done) }), &number(FROM))?;
    all.recv()?;
    let missed: u64 = switch.ports().iter().map(|port| port.path.upcalls).sum();
    ensure!(missed == 0, "{missed} packets missed");
    Ok((ROUNDS * BURST) as u64)
}

const RING: u16 = 256;
const SLOT: u64 = 2048;
const BUFFERS: u64 = 1 << 20;

/// A guest's device and its driver.
struct Guest {
    shard: Box<dyn PortShard>,
    rx: Driver,
    tx: Driver,
    slot: u64,
}

impl Guest {
    fn new(features: u64, pool: &Pool) -> Result<Guest> {
        let memory = Arc::new(GuestMemory::anonymous(4 << 20)?);
        let driver = |at| Driver::new(&memory, GuestAddress(at), RING, features);
        let (mut rx, mut tx) = (driver(0), driver(0x1_0000));
        rx.set_interrupts(false);
        tx.set_interrupts(false);
        let shard = virtio_net::stand_alone(&memory, &[rx.setup(), tx.setup()], pool.clone(), 1500);
        Ok(Guest { shard: shard.map_err(|e| anyhow!("{e}"))?.0, rx, tx, slot: 0 })
    }

    fn slot(&mut self) -> GuestAddress {
        self.slot = (self.slot + 1) % u64::from(RING);
        GuestAddress(BUFFERS + self.slot * SLOT)
    }
}

/// Packets of 64 bytes from one guest's ring to another's.
pub(crate) fn hop(layout: u64) -> Result<u64> {
    let pool = Pool::new(1024, None)?;
    let features = layout | feature::VERSION_1 | net::MRG_RXBUF;
    let (mut from, mut to) = (Guest::new(features, &pool)?, Guest::new(features, &pool)?);
    let mut burst = Burst::new();
    for _ in 0..ROUNDS {
        for _ in 0..BURST {
            let (sent, free) = (from.slot(), to.slot());
            from.tx.add(&[(sent, HEADER_LEN as u32 + 64, false)]).ok_or_else(|| anyhow!("no room"))?;
            to.rx.add(&[(free, SLOT as u32, true)]).ok_or_else(|| anyhow!("no room"))?;
        }
        measured(|| {
            from.shard.rx(&mut burst);
            to.shard.tx(&mut burst);
            from.shard.flush();
            to.shard.flush();
        });
        let arrived = std::iter::from_fn(|| to.rx.take_used()).count();
        ensure!(arrived == BURST, "{arrived} packets arrived");
        while from.tx.take_used().is_some() {}
    }
    Ok((ROUNDS * BURST) as u64)
}
