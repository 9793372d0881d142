//! Initiator and target under virtual time, over a network that delays, cuts, truncates and swallows.
//!
//! Each seeded run ends with every request completed exactly once and the disk holding exactly what was written last, also
//! after every write that the old controllers still held was applied or dropped.

use crate::attach::open_queue;
use crate::channel::{Channel, ChannelLimits};
use crate::event::{Event, NvmeEvent};
use crate::io::ByteStream;
use crate::io_queue::IoQueues;
use crate::namespace::Namespace;
use crate::params::AttachParams;
use crate::supervisor::{Dial, Phase, SharedStatus, Supervisor};
use crate::target::{Access, Faults, MemoryStore, Misbehaviour, Store, Target, TargetConfig};
use block::{BlockChannel, BlockRequest, Completions};
use clock::Cycles;
use initiator::sim::{BLOCK, DiskModel, Network, NetworkConfig, random_micros};
use initiator::testing::EventLog;
use initiator::{CommandQueue, ConnectionEvent, Supervisor as _, SupervisorWake};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use testkit::Rng;

const NQN: &str = "nqn.2024-01.org.sluice:simulated";
const BLOCKS: usize = 64;
/// Disturbances of a run at most, so that it comes to an end.
const MAX_DISTURBANCES: u32 = 8;

struct SimDial(Network<Target>);

impl Dial for SimDial {
    fn dial(&mut self) -> io::Result<Arc<dyn ByteStream>> {
        self.0.connect()
    }
}

/// The parameters and disturbances of a run.
#[derive(Clone, Debug)]
struct Plan {
    params: AttachParams,
    faults: Faults,
    requests: usize,
    /// Percent of the disturbances, one about every 100 ms of virtual time.
    cuts: u64,
    network: NetworkConfig,
    fence: bool,
    quiesce_ms: u16,
}

impl Plan {
    fn calm() -> Plan {
        let mut params = AttachParams::new("Sim0", "127.0.0.1:4420".parse().unwrap(), NQN);
        params.options.keep_alive_timeout_ms = 1000;
        params.options.timeout_us = 3_000_000;
        params.recovery.reconnect_delay_sec = 1;
        Plan {
            params,
            faults: Faults::default(),
            requests: 60,
            cuts: 0,
            network: NetworkConfig { latency: 10..300, max_run: 100_000, delivers_after_reset: false },
            fence: true,
            quiesce_ms: 0,
        }
    }

    /// A plan drawn from `seed`: any digest, alignment, fragmentation, delay and disturbance.
    fn wild(seed: u64) -> Plan {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::calm();
        plan.params.hdgst = rng.percent(50);
        plan.params.ddgst = rng.percent(50);
        plan.network.max_run = [1 << 20, 5000, 100][rng.below(3) as usize];
        plan.network.latency = [10..50, 10..2000][rng.below(2) as usize].clone();
        plan.cuts = [0, 30, 60][rng.below(3) as usize];
        plan.quiesce_ms = [0, 300][rng.below(2) as usize];
        plan.faults = Faults {
            cpda: rng.below(32) as u8,
            max_h2c_data: [4096, 131_072][rng.below(2) as usize],
            r2t_len: [1024, 6000, 1 << 20][rng.below(3) as usize],
            r2ts: 1 + rng.below(5) as u32,
            c2h_len: [512, 4096, 1 << 20][rng.below(3) as usize],
            c2h_alignment: [4, 64, 128][rng.below(3) as usize],
            no_success_flag: rng.percent(50),
            output_limit: [7, 1500, usize::MAX][rng.below(3) as usize],
            delay: Duration::ZERO..Duration::from_millis([0, 3, 400][rng.below(3) as usize]),
            late_writes: true,
            ..Faults::default()
        };
        plan
    }
}

/// How a run ended.
#[derive(Debug)]
struct Report {
    completed: usize,
    failed: usize,
    stale: Vec<String>,
    late_applied: u64,
    fenced: u64,
    retried: u64,
    events: Vec<Event>,
}

struct Run {
    rng: Rng,
    now: Cycles,
    network: Network<Target>,
    target: Arc<Target>,
    io_queues: Arc<IoQueues>,
    shared_status: Arc<SharedStatus>,
    supervisor: Supervisor,
    channels: Vec<Channel>,
    model: DiskModel,
    log: EventLog<NvmeEvent>,
    next_disturbance: Cycles,
    disturbances_left: u32,
}

impl Run {
    fn new(plan: &Plan, seed: u64) -> Run {
        let start = Cycles(1 << 40);
        let mut config = TargetConfig::new(NQN);
        config.quiesce_ms = plan.quiesce_ms;
        config.in_capsule_len = 4096;
        let target = Target::new(config, seed);
        let model = DiskModel::new(BLOCKS);
        target.set_namespace(1, target_namespace(model.store(), 1));
        target.set_faults(plan.faults.clone());
        let network = Network::new(target.clone(), plan.network.clone(), seed ^ 1, start);
        let log = EventLog::default();
        let io_queues = Arc::new(IoQueues::new(log.sink(), SupervisorWake::none()));
        if !plan.fence {
            io_queues.fence.release(u64::MAX);
        }
        let shared_status = Arc::new(SharedStatus::new(CommandQueue::new(SupervisorWake::none()), start));
        let settings = Arc::new(plan.params.validate().unwrap());
        let dialer = Box::new(SimDial(network.clone()));
        let supervisor = Supervisor::new(settings, io_queues.clone(), shared_status.clone(), dialer, seed, start);
        Run {
            rng: Rng::new(seed),
            now: start,
            network,
            target,
            io_queues,
            shared_status,
            supervisor,
            channels: Vec::new(),
            model,
            log,
            next_disturbance: start,
            disturbances_left: MAX_DISTURBANCES,
        }
    }

    fn open_channels(&mut self, plan: &Plan, count: usize) {
        let namespace: Arc<Namespace> = self.shared_status.namespaces.lock()[&1].clone();
        let settings = plan.params.validate().unwrap();
        let limits = ChannelLimits { io_timeout: settings.io_timeout, retries: settings.retries };
        for _ in 0..count {
            let queue = open_queue(&self.io_queues, &self.shared_status, false).unwrap();
            self.channels.push(Channel::new(namespace.clone(), self.io_queues.clone(), queue, limits));
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

    fn phase(&self) -> Phase {
        self.shared_status.current.lock().phase
    }

    /// Both sides do what is to be done now; then time goes on to the next thing.
    fn step(&mut self) {
        self.network.turn(self.now);
        self.supervisor.turn(self.now);
        let mut done = Completions::default();
        for channel in &mut self.channels {
            channel.poll(self.now, &mut done);
        }
        self.complete(done);
        self.network.turn(self.now);
        let channels = self.channels.iter().map(|channel| channel.deadline()).min().unwrap_or(Cycles::NEVER);
        let next = self.network.deadline().min(self.supervisor.deadline()).min(channels);
        // A microsecond at least, 20 ms at most: channels look at fences and mailboxes by being polled.
        let (least, most) = (Cycles::from(Duration::from_micros(1)), Cycles::from(Duration::from_millis(20)));
        self.now = next.max(self.now + least).min(self.now + most);
    }

    fn complete(&mut self, mut done: Completions) {
        for completed in done.drain() {
            self.model.complete(&completed.request, completed.status);
        }
    }

    /// Submits a random request. Whether there was room for it.
    fn submit(&mut self) -> bool {
        let Some(request) = self.model.next_request(&mut self.rng, self.now) else { return false };
        let mut done = Completions::default();
        let channel = self.rng.below(self.channels.len() as u64) as usize;
        self.channels[channel].submit(BlockRequest::new(request), &mut done);
        self.complete(done);
        true
    }

    /// Writes the whole disk, in one request of the first channel.
    fn write_all(&mut self) {
        let request = self.model.write_all(self.now);
        self.channels[0].submit(BlockRequest::new(request), &mut Completions::default());
    }

    fn disturb(&mut self, cuts: u64) {
        if self.now < self.next_disturbance || self.disturbances_left == 0 {
            return;
        }
        self.next_disturbance = self.now + random_micros(&mut self.rng, 20_000..200_000);
        let live = self.network.live_paths();
        if !self.rng.percent(cuts) || live.is_empty() {
            return;
        }
        self.disturbances_left -= 1;
        let path = live[self.rng.below(live.len() as u64) as usize];
        match self.rng.below(4) {
            0 => self.network.cut(path, false),
            1 => self.network.swallow(path),
            2 => live.iter().for_each(|&path| self.network.swallow(path)),
            _ => {
                self.network.cut_all();
                self.network.go_down_until(self.now + random_micros(&mut self.rng, 1000..3_000_000));
            }
        }
    }

    fn finish(mut self) -> Report {
        // Whatever old controllers still hold comes now.
        self.pass(Duration::from_secs(5));
        self.model.check_store();
        let counters = self.io_queues.counters();
        Report {
            completed: self.model.completed,
            failed: self.model.failed,
            stale: self.model.stale,
            late_applied: self.target.late_applied(),
            fenced: counters.fenced,
            retried: counters.retried,
            events: self.log.events(),
        }
    }
}

fn target_namespace(store: Arc<MemoryStore>, id: u128) -> crate::target::Namespace {
    let uuid = uuid::Uuid::from_u128(id);
    crate::target::Namespace { store, block_size: BLOCK as u32, access: Access::ReadWrite, uuid }
}

fn simulate(plan: &Plan, seed: u64) -> Report {
    let mut run = Run::new(plan, seed);
    while run.phase() != Phase::Up {
        assert!(run.phase() != Phase::Dead, "seed {seed}: {:?}", run.shared_status.current.lock().last_error);
        run.step();
    }
    run.open_channels(plan, 2);
    let (mut submitted, limit) = (0, run.now + Cycles::from(Duration::from_secs(600)));
    while submitted < plan.requests || run.model.under_way > 0 {
        assert!(run.now < limit, "seed {seed}: {} requests hang; {:?}", run.model.under_way, run.log.lines());
        if submitted < plan.requests && run.model.under_way < 16 && run.submit() {
            submitted += 1;
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
        late += report.late_applied;
        fenced += report.fenced;
        retried += report.retried;
        lost += report.events.iter().filter(|event| is_lost(event)).count();
    }
    // The adversary was at work, or the runs prove nothing.
    assert!(late > 100 && fenced > 100 && retried > 100 && lost > 100, "{late} {fenced} {retried} {lost}");
}

/// The same adversary against an initiator that sends writes again at once: it must be caught.
#[test]
fn without_the_fence_stale_writes_are_found() {
    let caught = (0..300).any(|seed| {
        let mut plan = Plan::wild(seed);
        plan.fence = false;
        plan.cuts = 60;
        plan.requests = 200;
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
            run.network.cut_all();
            run.step();
        }
        run.channels.clear();
        run.model.abandon_all();
        run.open_channels(&plan, 1);
        run.write_all();
        let limit = run.now + Cycles::from(Duration::from_secs(60));
        while run.model.under_way > 0 {
            assert!(run.now < limit, "seed {seed}: the write hangs; {:?}", run.log.lines());
            run.step();
        }
        let report = run.finish();
        assert!(report.stale.is_empty(), "seed {seed}: stale data: {:?}\n{:?}", report.stale, report.events);
        late += report.late_applied;
    }
    assert!(late > 100, "the adversary was at work: {late}");
}

/// While the controller was lost another disk took the place of ours: held requests do not go there.
#[test]
fn another_disk_behind_the_nsid_is_not_written_to() {
    let mut run = Run::up(&Plan::calm());
    run.network.cut_all();
    let store = Arc::new(MemoryStore::new(BLOCK * BLOCKS));
    run.target.set_namespace(1, target_namespace(store.clone(), 2));
    run.write_all();
    run.pass(Duration::from_secs(20));
    let mut stored = vec![1; BLOCK * BLOCKS];
    store.read(0, &mut stored).unwrap();
    assert!(stored.iter().all(|byte| *byte == 0), "{:?}", run.log.lines());
    assert_eq!((run.model.under_way, run.model.failed), (0, 1), "{:?}", run.log.lines());
}

fn is_timeout(event: &Event) -> bool {
    matches!(event, Event::Protocol(NvmeEvent::CommandTimeout { .. }))
}

fn is_lost(event: &Event) -> bool {
    matches!(event, Event::Connection { event: ConnectionEvent::Lost { .. }, .. })
}

#[test]
fn a_late_command_is_aborted_and_its_completion_awaited() {
    let mut run = Run::up(&Plan::calm());
    let script = vec![(run.target.io_commands(), Misbehaviour::DropCommand)];
    run.target.set_faults(Faults { script, ..Faults::default() });
    run.write_all();
    run.pass(Duration::from_secs(2));
    assert_eq!((run.model.under_way, run.log.any(is_timeout)), (1, false));
    run.pass(Duration::from_secs(3));
    assert_eq!((run.model.under_way, run.model.failed), (0, 0), "aborted, answered, and sent again");
    assert!(run.log.any(is_timeout) && !run.log.any(is_lost));
    assert!(run.finish().stale.is_empty());
}

#[test]
fn a_resize_without_an_event_is_found_in_time() {
    let mut run = Run::up(&Plan::calm());
    run.model.store().resize(2 * (BLOCK * BLOCKS) as u64).unwrap();
    run.pass(Duration::from_secs(31));
    let (from, to) = (BLOCKS as u64, 2 * BLOCKS as u64);
    assert!(
        run.log.any(|event| *event == NvmeEvent::NamespaceResized { nsid: 1, from, to }.into()),
        "{:?}",
        run.log.lines()
    );
}

#[test]
fn an_idle_controller_is_kept_alive() {
    let mut run = Run::up(&Plan::calm());
    run.pass(Duration::from_secs(60));
    assert_eq!((run.target.controllers(), run.log.any(is_lost)), (1, false), "{:?}", run.log.lines());
}

#[test]
fn traffic_keeps_a_controller_alive() {
    let mut run = Run::up(&Plan::calm());
    run.target.set_faults(Faults { ignore_keep_alive: true, ..Faults::default() });
    for _ in 0..200 {
        run.submit();
        run.pass(Duration::from_millis(100));
    }
    assert!(!run.log.any(is_lost), "{:?}", run.log.lines());
    run.pass(Duration::from_secs(3));
    assert!(run.log.any(|event| is_lost(event) && event.to_string().contains("Keep Alive")), "{:?}", run.log.lines());
}
