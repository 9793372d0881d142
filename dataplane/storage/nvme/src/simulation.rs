//! Initiator and target under virtual time, over a network that delays, cuts, truncates and swallows.
//!
//! Each seeded run ends with every request completed exactly once and the disk holding exactly what was written last, also
//! after every write that the old controllers still held was applied or dropped.

use crate::attach::open_port;
use crate::channel::{Channel, ChannelLimits};
use crate::event::Event;
use crate::io::{Gather, Scatter, Wire};
use crate::namespace::Namespace;
use crate::params::AttachParams;
use crate::port::{Shared, lock};
use crate::supervisor::{Board, Dial, Phase, Supervisor};
use crate::target::{Access, Connection, Faults, MemoryStore, Misbehaviour, Store, Target, TargetConfig};
use block::{BlockChannel, BlockRequest, Completions, Op, Request, Status};
use clock::Cycles;
use memory::IoBuffers;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const NQN: &str = "nqn.2024-01.org.sluice:simulated";
const BLOCK: usize = 512;
const BLOCKS: usize = 64;
/// Bytes on the way in one direction at most.
const WINDOW: usize = 300_000;
/// Disturbances of a run at most, so that it comes to an end.
const MAX_DISTURBANCES: u32 = 8;

/// xorshift64: the same run for the same seed.
#[derive(Clone, Debug)]
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Rng {
        let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        (0..4).for_each(|_| _ = rng.next());
        rng
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn micros(&mut self, range: Range<u64>) -> Cycles {
        Cycles::from(Duration::from_micros(range.start + self.below(range.end - range.start)))
    }
}

/// One direction of a connection: bytes and when they arrive.
#[derive(Debug, Default)]
struct Lane {
    bytes: VecDeque<(Cycles, Vec<u8>)>,
    last: Cycles,
}

impl Lane {
    fn len(&self) -> usize {
        self.bytes.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    fn push(&mut self, due: Cycles, bytes: Vec<u8>) {
        self.last = self.last.max(due);
        self.bytes.push_back((self.last, bytes));
    }

    fn due(&self) -> Cycles {
        self.bytes.front().map_or(Cycles::NEVER, |(due, _)| *due)
    }

    fn pop(&mut self, now: Cycles) -> Option<Vec<u8>> {
        if self.due() <= now { self.bytes.pop_front().map(|(_, bytes)| bytes) } else { None }
    }
}

#[derive(Debug)]
struct Path {
    to_target: Lane,
    to_host: Lane,
    /// The host sees an error.
    host_error: Option<ErrorKind>,
    /// Bytes vanish in both directions, and nobody is told.
    swallows: bool,
    /// Absent once the target has lost the connection.
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Net {
    now: Cycles,
    rng: Rng,
    latency: Range<u64>,
    /// Bytes that one call moves at most.
    max_run: u64,
    target: Arc<Target>,
    paths: Vec<Path>,
    down_until: Cycles,
}

#[derive(Debug)]
struct SimWire {
    net: Arc<Mutex<Net>>,
    path: usize,
}

impl Wire for SimWire {
    fn send(&self, gather: &Gather<'_>) -> io::Result<usize> {
        let mut net = lock(&self.net);
        let Net { now, rng, latency, max_run, paths, .. } = &mut *net;
        let path = &mut paths[self.path];
        if let Some(error) = path.host_error {
            return Err(error.into());
        }
        let room = WINDOW.saturating_sub(path.to_target.len()).min(1 + rng.below(*max_run) as usize);
        let mut bytes = Vec::new();
        let taken = gather.copy_to(&mut bytes, room);
        if taken == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        if !path.swallows {
            let due = *now + rng.micros(latency.clone());
            path.to_target.push(due, bytes);
        }
        Ok(taken)
    }

    fn receive(&self, scatter: &mut Scatter<'_>) -> io::Result<usize> {
        let mut net = lock(&self.net);
        let Net { now, rng, max_run, paths, .. } = &mut *net;
        let path = &mut paths[self.path];
        if let Some(error) = path.host_error {
            return if error == ErrorKind::UnexpectedEof { Ok(0) } else { Err(error.into()) };
        }
        let Some(bytes) = path.to_host.pop(*now) else { return Err(ErrorKind::WouldBlock.into()) };
        let run = bytes.len().min(1 + rng.below(*max_run) as usize);
        let taken = scatter.copy_from(&bytes[..run]);
        if taken < bytes.len() {
            path.to_host.bytes.push_front((*now, bytes[taken..].to_vec()));
        }
        Ok(taken)
    }

    fn reset(&self) {
        let mut net = lock(&self.net);
        let now = net.now;
        net.cut(self.path, ErrorKind::NotConnected, now);
    }
}

impl Net {
    /// The connection is reset: what is on the way is lost, and both sides know; unless the path swallows, then only the host.
    fn cut(&mut self, path: usize, error: ErrorKind, now: Cycles) {
        let path = &mut self.paths[path];
        path.host_error.get_or_insert(error);
        path.to_target.bytes.clear();
        if let Some(mut connection) = path.connection.take_if(|_| !path.swallows) {
            connection.lost(now);
        }
    }

    /// The target side: delivers, executes, answers.
    fn turn(&mut self) {
        let now = self.now;
        self.target.tick(now);
        for at in 0..self.paths.len() {
            let path = &mut self.paths[at];
            let Some(connection) = &mut path.connection else { continue };
            while let Some(bytes) = path.to_target.pop(now) {
                connection.input(&bytes, now);
            }
            connection.poll(now);
            while !connection.output().is_empty() {
                let bytes = connection.output().to_vec();
                connection.consume(bytes.len());
                if !path.swallows {
                    let due = now + self.rng.micros(self.latency.clone());
                    path.to_host.push(due, bytes);
                }
            }
            if connection.is_closed() {
                connection.lost(now);
                path.connection = None;
                if !path.swallows {
                    path.host_error.get_or_insert(ErrorKind::UnexpectedEof);
                }
            }
        }
    }

    fn deadline(&self) -> Cycles {
        let live = self.paths.iter().filter(|path| path.host_error.is_none());
        let host = live.map(|path| path.to_host.due()).min().unwrap_or(Cycles::NEVER);
        let target = self
            .paths
            .iter()
            .map(|path| path.connection.as_ref().map_or(Cycles::NEVER, |c| c.deadline().min(path.to_target.due())));
        host.min(target.min().unwrap_or(Cycles::NEVER)).min(self.target.deadline())
    }
}

struct SimDial(Arc<Mutex<Net>>);

impl Dial for SimDial {
    fn dial(&mut self) -> io::Result<Arc<dyn Wire>> {
        let mut net = lock(&self.0);
        if net.now < net.down_until {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let connection = Some(Connection::new(net.target.clone()));
        net.paths.push(Path {
            to_target: Lane::default(),
            to_host: Lane::default(),
            host_error: None,
            swallows: false,
            connection,
        });
        Ok(Arc::new(SimWire { net: self.0.clone(), path: net.paths.len() - 1 }))
    }
}

/// What a run is to go through.
#[derive(Clone, Debug)]
struct Plan {
    params: AttachParams,
    faults: Faults,
    requests: usize,
    /// Percent of the disturbances, one about every 100 ms of virtual time.
    cuts: u64,
    max_run: u64,
    latency: Range<u64>,
    fence: bool,
    quiesce_ms: u16,
}

impl Plan {
    fn calm() -> Plan {
        let mut params = AttachParams::new("Sim0", "127.0.0.1:4420".parse().unwrap(), NQN);
        params.options.keep_alive_timeout_ms = 1000;
        params.options.timeout_us = 3_000_000;
        params.reconnect_delay_sec = 1;
        Plan {
            params,
            faults: Faults::default(),
            requests: 60,
            cuts: 0,
            max_run: 100_000,
            latency: 10..300,
            fence: true,
            quiesce_ms: 0,
        }
    }

    /// A plan drawn from `seed`: any digest, alignment, fragmentation, delay and disturbance.
    fn wild(seed: u64) -> Plan {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::calm();
        (plan.params.hdgst, plan.params.ddgst) = (rng.chance(50), rng.chance(50));
        plan.max_run = [1 << 20, 5000, 100][rng.below(3) as usize];
        plan.latency = [10..50, 10..2000][rng.below(2) as usize].clone();
        plan.cuts = [0, 30, 60][rng.below(3) as usize];
        plan.quiesce_ms = [0, 300][rng.below(2) as usize];
        plan.faults = Faults {
            cpda: rng.below(32) as u8,
            max_h2c_data: [4096, 131_072][rng.below(2) as usize],
            r2t_len: [1024, 6000, 1 << 20][rng.below(3) as usize],
            r2ts: 1 + rng.below(5) as u32,
            c2h_len: [512, 4096, 1 << 20][rng.below(3) as usize],
            c2h_alignment: [4, 64, 128][rng.below(3) as usize],
            no_success_flag: rng.chance(50),
            output_limit: [7, 1500, usize::MAX][rng.below(3) as usize],
            delay: Duration::ZERO..Duration::from_millis([0, 3, 400][rng.below(3) as usize]),
            late_writes: true,
            ..Faults::default()
        };
        plan
    }
}

/// How a run ended.
#[derive(Debug, Default)]
struct Report {
    completed: usize,
    failed: usize,
    stale: Vec<String>,
    late_applied: u64,
    fenced: u64,
    retried: u64,
    events: Vec<Event>,
    virtual_time: Duration,
}

/// The disk as it must be. One request a block at a time, so the content after each is known.
struct Model {
    content: Vec<u8>,
    busy: Vec<bool>,
    next_stamp: u64,
}

impl Model {
    fn free_run(&self, rng: &mut Rng) -> Option<(usize, usize)> {
        let start = rng.below(BLOCKS as u64) as usize;
        let most = 1 << rng.below(6);
        let len = self.busy[start..].iter().take(most).take_while(|busy| !**busy).count();
        (len > 0).then_some((start, len))
    }

    fn range(start: usize, blocks: usize) -> Range<usize> {
        start * BLOCK..(start + blocks) * BLOCK
    }
}

struct Run {
    rng: Rng,
    now: Cycles,
    start: Cycles,
    net: Arc<Mutex<Net>>,
    store: Arc<MemoryStore>,
    target: Arc<Target>,
    shared: Arc<Shared>,
    board: Arc<Board>,
    supervisor: Supervisor,
    channels: Vec<Channel>,
    model: Model,
    under_way: usize,
    report: Report,
    events: Arc<Mutex<Vec<Event>>>,
    next_disturbance: Cycles,
    disturbances_left: u32,
}

impl Run {
    fn new(plan: &Plan, seed: u64) -> Run {
        let start = Cycles(1 << 40);
        let mut config = TargetConfig::new(NQN);
        (config.quiesce_ms, config.in_capsule_len) = (plan.quiesce_ms, 4096);
        let target = Target::new(config, seed);
        let store = Arc::new(MemoryStore::new(BLOCK * BLOCKS));
        let uuid = uuid::Uuid::from_u128(1);
        let namespace =
            crate::target::Namespace { store: store.clone(), block_size: 512, access: Access::ReadWrite, uuid };
        target.set_namespace(1, namespace);
        target.set_faults(plan.faults.clone());
        let net = Arc::new(Mutex::new(Net {
            now: start,
            rng: Rng::new(seed ^ 1),
            latency: plan.latency.clone(),
            max_run: plan.max_run,
            target: target.clone(),
            paths: Vec::new(),
            down_until: start,
        }));
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let events = events.clone();
            Arc::new(move |event: &Event| lock(&events).push(event.clone()))
        };
        let shared = Arc::new(Shared::new(sink, None));
        if !plan.fence {
            shared.release(u64::MAX);
        }
        let board = Arc::new(Board::new(start));
        let settings = Arc::new(plan.params.validate().unwrap());
        let dialer = Box::new(SimDial(net.clone()));
        let supervisor = Supervisor::new(settings, shared.clone(), board.clone(), dialer, seed, start);
        let model = Model { content: vec![0; BLOCK * BLOCKS], busy: vec![false; BLOCKS], next_stamp: 1 };
        Run {
            rng: Rng::new(seed),
            now: start,
            start,
            net,
            store,
            target,
            shared,
            board,
            supervisor,
            channels: Vec::new(),
            model,
            under_way: 0,
            report: Report::default(),
            events,
            next_disturbance: start,
            disturbances_left: MAX_DISTURBANCES,
        }
    }

    fn open_channels(&mut self, plan: &Plan, count: usize) {
        let namespace: Arc<Namespace> = lock(&self.board.namespaces)[&1].clone();
        let settings = plan.params.validate().unwrap();
        let limits = ChannelLimits { io_timeout: settings.io_timeout, retries: settings.retries };
        for _ in 0..count {
            let port = open_port(&self.shared, &self.board, false).unwrap();
            self.channels.push(Channel::new(namespace.clone(), self.shared.clone(), port, limits));
        }
    }

    /// A run whose controller is up, with one channel.
    fn up(plan: &Plan) -> Run {
        let mut run = Run::new(plan, 1);
        while run.phase() != Phase::Up {
            run.step();
        }
        run.open_channels(plan, 1);
        run
    }

    /// Goes on for `time`.
    fn pass(&mut self, time: Duration) {
        let end = self.now + Cycles::from(time);
        while self.now < end {
            self.step();
        }
    }

    fn tells(&self, wanted: impl Fn(&Event) -> bool) -> bool {
        lock(&self.events).iter().any(wanted)
    }

    fn phase(&self) -> Phase {
        lock(&self.board.status).phase
    }

    /// Everyone does what is to be done now; then time goes on to the next thing.
    fn step(&mut self) {
        lock(&self.net).now = self.now;
        lock(&self.net).turn();
        self.supervisor.turn(self.now);
        let mut done = Completions::default();
        for channel in &mut self.channels {
            channel.poll(self.now, &mut done);
        }
        for completed in done.drain() {
            self.on_completion(&completed.request, completed.status);
        }
        lock(&self.net).turn();
        let channels = self.channels.iter().map(|channel| channel.deadline()).min().unwrap_or(Cycles::NEVER);
        let next = lock(&self.net).deadline().min(self.supervisor.deadline()).min(channels);
        // A microsecond at least, 20 ms at most: channels look at fences and mailboxes by being polled.
        let (least, most) = (Cycles::from(Duration::from_micros(1)), Cycles::from(Duration::from_millis(20)));
        self.now = next.max(self.now + least).min(self.now + most);
    }

    fn submit(&mut self) {
        let Some((start, blocks)) = self.model.free_run(&mut self.rng) else { return };
        let op = match self.rng.below(20) {
            0 => Op::Discard,
            1 => Op::WriteZeroes { unmap: false },
            2 => Op::Flush,
            3..10 => Op::Read,
            _ => Op::Write,
        };
        let range = Model::range(start, blocks);
        let mut request = Request::new(IoBuffers::anonymous(range.len()).unwrap());
        (request.op, request.offset, request.len, request.submitted) =
            (op, range.start as u64, range.len() as u64, self.now);
        match op {
            Op::Write => {
                for block in self.model.content[range.clone()].chunks_exact_mut(8) {
                    block.copy_from_slice(&self.model.next_stamp.to_le_bytes());
                }
                self.model.next_stamp += 1;
                request.buffers.write(0, &self.model.content[range]).unwrap();
            }
            Op::Discard | Op::WriteZeroes { .. } => self.model.content[range].fill(0),
            _ => {}
        }
        self.model.busy[start..start + blocks].fill(true);
        self.under_way += 1;
        let mut done = Completions::default();
        let channel = self.rng.below(self.channels.len() as u64) as usize;
        self.channels[channel].submit(BlockRequest::new(request), &mut done);
        for completed in done.drain() {
            self.on_completion(&completed.request, completed.status);
        }
    }

    /// Drops the channels with what they have under way; what becomes of that nobody knows.
    fn drop_channels(&mut self) {
        self.channels.clear();
        self.model.busy.fill(false);
        self.under_way = 0;
    }

    /// Writes the whole disk, in one request of the first channel.
    fn write_all(&mut self) {
        let len = self.model.content.len();
        self.model.content.fill(0xA5);
        self.model.busy.fill(true);
        self.under_way += 1;
        let mut request = Request::new(IoBuffers::anonymous(len).unwrap());
        (request.op, request.len, request.submitted) = (Op::Write, len as u64, self.now);
        request.buffers.write(0, &self.model.content).unwrap();
        self.channels[0].submit(BlockRequest::new(request), &mut Completions::default());
    }

    fn on_completion(&mut self, request: &Request, status: Status) {
        let (start, blocks) = (request.offset as usize / BLOCK, request.len as usize / BLOCK);
        assert!(self.model.busy[start..start + blocks].iter().all(|busy| *busy), "completed twice");
        self.model.busy[start..start + blocks].fill(false);
        self.under_way -= 1;
        self.report.completed += 1;
        self.report.failed += usize::from(status != Status::Ok);
        if request.op == Op::Read && status == Status::Ok {
            let mut bytes = vec![0; request.len as usize];
            request.buffers.read(0, &mut bytes).unwrap();
            if bytes != self.model.content[Model::range(start, blocks)] {
                self.report
                    .stale
                    .push(format!("read of {blocks} blocks at {start} at {:?}", self.now.since(self.start)));
            }
        }
    }

    fn disturb(&mut self, cuts: u64) {
        if self.now < self.next_disturbance || self.disturbances_left == 0 {
            return;
        }
        self.next_disturbance = self.now + self.rng.micros(20_000..200_000);
        if !self.rng.chance(cuts) {
            return;
        }
        let mut net = lock(&self.net);
        let now = self.now;
        let live: Vec<usize> = (0..net.paths.len()).filter(|&at| net.paths[at].host_error.is_none()).collect();
        if live.is_empty() {
            return;
        }
        self.disturbances_left -= 1;
        let at = live[self.rng.below(live.len() as u64) as usize];
        match self.rng.below(4) {
            0 => net.cut(at, ErrorKind::ConnectionReset, now),
            1 => net.paths[at].swallows = true,
            2 => live.iter().for_each(|&at| net.paths[at].swallows = true),
            _ => {
                live.iter().for_each(|&at| net.cut(at, ErrorKind::ConnectionReset, now));
                net.down_until = now + self.rng.micros(1000..3_000_000);
            }
        }
    }

    fn finish(mut self) -> Report {
        // Whatever old controllers still hold comes now.
        let end = self.now + Cycles::from(Duration::from_secs(5));
        while self.now < end {
            self.step();
        }
        let mut stored = vec![0; BLOCK * BLOCKS];
        self.store.read(0, &mut stored).unwrap();
        for block in 0..BLOCKS {
            let range = Model::range(block, 1);
            if stored[range.clone()] != self.model.content[range] {
                self.report.stale.push(format!("block {block} at the end"));
            }
        }
        let counters = self.shared.counters();
        (self.report.fenced, self.report.retried) = (counters.fenced, counters.retried);
        self.report.late_applied = self.target.late_applied();
        self.report.events = lock(&self.events).clone();
        self.report.virtual_time = self.now.since(self.start).to_duration();
        self.report
    }
}

fn simulate(plan: &Plan, seed: u64) -> Report {
    let mut run = Run::new(plan, seed);
    while run.phase() != Phase::Up {
        assert!(run.phase() != Phase::Dead, "seed {seed}: {:?}", lock(&run.board.status).last_error);
        run.step();
    }
    run.open_channels(plan, 2);
    let (mut submitted, limit) = (0, run.now + Cycles::from(Duration::from_secs(600)));
    while submitted < plan.requests || run.under_way > 0 {
        assert!(run.now < limit, "seed {seed}: {} requests hang; {:?}", run.under_way, lock(&run.events));
        if submitted < plan.requests && run.under_way < 16 {
            let before = run.report.completed + run.under_way;
            run.submit();
            submitted += run.report.completed + run.under_way - before;
        }
        if submitted < plan.requests {
            run.disturb(plan.cuts);
        }
        run.step();
    }
    run.finish()
}

fn seeds(default: u64) -> Range<u64> {
    let count = std::env::var("SLUICE_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(default);
    0..count
}

#[test]
fn every_request_ends_once_and_nothing_stale_is_left() {
    let (mut late, mut fenced, mut retried, mut lost) = (0, 0, 0, 0);
    for seed in seeds(800) {
        let plan = Plan::wild(seed);
        let report = simulate(&plan, seed);
        assert!(report.stale.is_empty(), "seed {seed}: stale data: {:?}\n{plan:?}\n{:?}", report.stale, report.events);
        assert_eq!((report.completed, report.failed), (plan.requests, 0), "seed {seed}\n{plan:?}\n{:?}", report.events);
        (late, fenced, retried) = (late + report.late_applied, fenced + report.fenced, retried + report.retried);
        lost += report.events.iter().filter(|event| matches!(event, Event::Lost { .. })).count();
    }
    // The adversary was at work, or the runs prove nothing.
    assert!(late > 100 && fenced > 100 && retried > 100 && lost > 100, "{late} {fenced} {retried} {lost}");
}

/// The same adversary against an initiator that sends writes again at once: it must be caught.
#[test]
fn without_the_fence_stale_writes_are_found() {
    let caught = (0..300).any(|seed| {
        let mut plan = Plan::wild(seed);
        (plan.fence, plan.cuts, plan.requests) = (false, 60, 200);
        plan.faults.delay = Duration::ZERO..Duration::from_millis(400);
        !simulate(&plan, seed).stale.is_empty()
    });
    assert!(caught, "the adversary is harmless: the other test proves nothing");
}

/// Channels are dropped with writes in flight, on a live association or one that was just lost: the writes of the next channel
/// come last.
#[test]
fn writes_of_dropped_channels_do_not_come_after_those_of_the_next() {
    let mut late = 0;
    for seed in seeds(200) {
        let mut plan = Plan::calm();
        plan.faults = Faults {
            delay: Duration::from_millis(100)..Duration::from_millis(400),
            late_writes: true,
            ..Faults::default()
        };
        let mut run = Run::new(&plan, seed);
        while run.phase() != Phase::Up {
            run.step();
        }
        run.open_channels(&plan, 1);
        for _ in 0..40 + seed % 20 {
            run.submit();
            run.step();
        }
        if seed % 2 == 0 {
            let now = run.now;
            let mut net = lock(&run.net);
            (0..net.paths.len()).for_each(|path| net.cut(path, ErrorKind::ConnectionReset, now));
            drop(net);
            run.step();
        }
        run.drop_channels();
        run.open_channels(&plan, 1);
        run.write_all();
        let limit = run.now + Cycles::from(Duration::from_secs(60));
        while run.under_way > 0 {
            assert!(run.now < limit, "seed {seed}: the write hangs; {:?}", lock(&run.events));
            run.step();
        }
        let report = run.finish();
        assert!(report.stale.is_empty(), "seed {seed}: stale data: {:?}\n{:?}", report.stale, report.events);
        late += report.late_applied;
    }
    assert!(late > 100, "the adversary was at work: {late}");
}

/// While nobody was connected another disk took the place of ours: what was held does not go there.
#[test]
fn another_disk_behind_the_nsid_is_not_written_to() {
    let mut run = Run::up(&Plan::calm());
    let now = run.now;
    let mut net = lock(&run.net);
    (0..net.paths.len()).for_each(|path| net.cut(path, ErrorKind::ConnectionReset, now));
    drop(net);
    let store = Arc::new(MemoryStore::new(BLOCK * BLOCKS));
    let (access, uuid) = (Access::ReadWrite, uuid::Uuid::from_u128(2));
    let other = crate::target::Namespace { store: store.clone(), block_size: 512, access, uuid };
    run.target.set_namespace(1, other);
    run.write_all();
    run.pass(Duration::from_secs(20));
    let mut stored = vec![1; BLOCK * BLOCKS];
    store.read(0, &mut stored).unwrap();
    assert!(stored.iter().all(|byte| *byte == 0), "{:?}", lock(&run.events));
    assert_eq!((run.under_way, run.report.failed), (0, 1), "{:?}", lock(&run.events));
}

fn is_lost(event: &Event) -> bool {
    matches!(event, Event::Lost { .. })
}

#[test]
fn pitfall_8_a_late_command_is_aborted_and_its_own_answer_awaited() {
    let mut run = Run::up(&Plan::calm());
    let script = vec![(run.target.io_commands(), Misbehaviour::DropCommand)];
    run.target.set_faults(Faults { script, ..Faults::default() });
    run.write_all();
    run.pass(Duration::from_secs(2));
    assert_eq!((run.under_way, run.tells(|event| matches!(event, Event::CommandTimeout { .. }))), (1, false));
    run.pass(Duration::from_secs(3));
    assert_eq!((run.under_way, run.report.failed), (0, 0), "aborted, answered, and sent again");
    assert!(run.tells(|event| matches!(event, Event::CommandTimeout { .. })) && !run.tells(is_lost));
    assert!(run.finish().stale.is_empty());
}

#[test]
fn pitfall_11_a_resize_without_an_event_is_found_in_time() {
    let mut run = Run::up(&Plan::calm());
    run.store.resize(2 * BLOCK * BLOCKS);
    run.pass(Duration::from_secs(31));
    let (from, to) = (BLOCKS as u64, 2 * BLOCKS as u64);
    assert!(run.tells(|event| *event == Event::NamespaceResized { nsid: 1, from, to }), "{:?}", lock(&run.events));
}

#[test]
fn pitfall_12_an_idle_controller_is_kept_alive() {
    let mut run = Run::up(&Plan::calm());
    run.pass(Duration::from_secs(60));
    assert_eq!((run.target.controllers(), run.tells(is_lost)), (1, false), "{:?}", lock(&run.events));
}

#[test]
fn pitfall_12_traffic_keeps_a_controller_alive() {
    let mut run = Run::up(&Plan::calm());
    run.target.set_faults(Faults { ignore_keep_alive: true, ..Faults::default() });
    for _ in 0..200 {
        run.submit();
        run.pass(Duration::from_millis(100));
    }
    assert!(!run.tells(is_lost), "{:?}", lock(&run.events));
    run.pass(Duration::from_secs(3));
    assert!(run.tells(|event| matches!(event, Event::Lost { reason } if reason.contains("Keep Alive"))));
}
