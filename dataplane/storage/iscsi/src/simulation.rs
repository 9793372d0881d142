//! The initiator and the target in one world of virtual time: thousands of seeded runs with delay, loss of connections,
//! truncation, and a target that misbehaves. Each ends with every I/O completed once and every byte where it belongs.

use crate::channel::IscsiChannel;
use crate::connection::{ConnectionConfig, ConnectionError, Timeouts};
use crate::io::Pieces;
use crate::login::{Auth, DigestPolicy, LoginConfig};
use crate::pdu::Lun;
use crate::session::{Progress, Reconnector};
use crate::session_queue::{DiskState, SessionQueue};
use crate::target::{Faults, Target, TargetConfig, Unit, WrongR2t};
use block::{BlockChannel, BlockRequest, Completions};
use clock::Cycles;
use initiator::sim::{BLOCK, DiskModel, Network, NetworkConfig, random_micros};
use initiator::{Recovery, SupervisorWake};
use std::sync::Arc;
use std::time::Duration;
use testkit::Rng;

const BLOCKS: usize = 1024;
/// No run is longer, in virtual time.
const MAX_TIME: Duration = Duration::from_secs(180);
/// Requests under way at most.
const DEPTH: usize = 8;

fn ms(millis: u64) -> Cycles {
    Cycles::from(Duration::from_millis(millis))
}

/// The disturbances of a run.
#[derive(Clone, Copy, Default)]
struct Weather {
    /// The target misbehaves.
    faults: bool,
    /// Connections are cut.
    cuts: bool,
    /// Writes are carried out late, also after their connection is gone.
    late: bool,
    /// The target does not end old sessions, against the RFC.
    forgetful: bool,
}

struct World {
    start: Cycles,
    now: Cycles,
    rng: Rng,
    weather: Weather,
    target: Arc<Target>,
    network: Network<Target>,
    model: DiskModel,
    reconnector: Reconnector,
    session: Arc<SessionQueue>,
    disk: Arc<DiskState>,
    channel: IscsiChannel,
    pieces: Pieces,
    sessions: u64,
}

fn pick<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.below(choices.len() as u64) as usize]
}

fn target_config(rng: &mut Rng) -> TargetConfig {
    let mut config = TargetConfig::new("iqn.t");
    config.initial_r2t = rng.percent(50);
    config.immediate_data = rng.percent(67);
    config.first_burst = pick(rng, &[512, 4096, 65_536]);
    config.max_burst = pick(rng, &[4096, 16_384, 262_144]);
    config.recv_segment = pick(rng, &[512, 8192, 65_536]);
    config.max_r2t = pick(rng, &[1, 2, 4]);
    config.window = pick(rng, &[1, 3, 64]);
    config.collapse_status = rng.percent(50);
    config
}

fn connection_config(rng: &mut Rng) -> ConnectionConfig {
    let digest = |rng: &mut Rng| pick(rng, &[DigestPolicy::None, DigestPolicy::Prefer]);
    ConnectionConfig {
        login: LoginConfig {
            initiator_iqn: "iqn.i".into(),
            target_iqn: Some("iqn.t".into()),
            isid: [0x80, 1, 2, 3, 0, 0],
            auth: Auth::default(),
            header_digest: digest(rng),
            data_digest: digest(rng),
            challenge: [0; 33],
            segment_limit: pick(rng, &[64, 8192]),
        },
        lun: Lun::from_number(0),
        depth: pick(rng, &[1, 4, 32]),
        timeouts: Timeouts {
            bring_up: ms(400),
            task: ms(400),
            abort: ms(200),
            ping_interval: ms(100),
            ping: ms(50),
            retry: ms(5),
        },
        known: None,
        fence: None,
    }
}

impl World {
    fn new(seed: u64, weather: Weather) -> World {
        let mut rng = Rng::new(seed);
        let start = Cycles(1 << 40);
        let target = Arc::new(Target::new(target_config(&mut rng)));
        target.set_seed(rng.next_u64());
        let model = DiskModel::new(BLOCKS);
        target.insert_unit(Lun::from_number(0), Arc::new(Unit::new(model.store(), BLOCK as u32, false, 1)));
        // Cut connections deliver what is on the way: only the login of the next one ends the old session.
        let max_run = pick(&mut rng, &[5000, 50_000, 1 << 20]);
        let network = NetworkConfig { latency: 1..1000, max_run, delivers_after_reset: true };
        let (min_pause, max_pause) = (Duration::from_millis(1), Duration::from_millis(20));
        let recovery = Recovery { min_pause, max_pause, ..Recovery::default() };
        let config = connection_config(&mut rng);
        let session = Arc::new(SessionQueue::new(false).unwrap());
        let disk = Arc::new(DiskState::new(0, SupervisorWake::none()));
        World {
            start,
            now: start,
            reconnector: Reconnector::new(config, "portal:1".into(), &recovery, seed, start),
            channel: IscsiChannel::new(session.clone(), disk.clone()),
            network: Network::new(target.clone(), network, seed ^ 1, start),
            pieces: Pieces::new(),
            sessions: 0,
            rng,
            weather,
            target,
            model,
            session,
            disk,
        }
    }

    /// After a second the target is honest and the network quiet, so that a run ends.
    fn is_calm(&self) -> bool {
        self.now > self.start + ms(1000)
    }

    fn faults(&mut self) -> Faults {
        let is_calm = self.is_calm();
        let rng = &mut self.rng;
        let mut faults = Faults { forget_reinstatement: self.weather.forgetful, ..Faults::default() };
        faults.chunk = pick(rng, &[0, 0, 0, 0, 7, 100, 1000]);
        faults.text_chunk = pick(rng, &[0, 0, 10, 100]);
        if self.weather.late {
            faults.delay = ms(pick(rng, &[0, 30, 300]));
        }
        if !self.weather.faults || is_calm {
            return faults;
        }
        match rng.below(12) {
            0 => faults.cut_after_bytes = Some(rng.below(200_000)),
            1 => faults.silent_after = Some(rng.below(60)),
            2 => faults.garbage_after = Some(rng.below(60)),
            3 => faults.flip_header_digest_every = rng.range(1..51),
            4 => faults.flip_data_digest_every = rng.range(1..51),
            5 => faults.short_data_every = rng.range(1..21),
            6 => faults.busy_every = rng.range(2..22),
            7 => faults.swallow_every = rng.range(20..60),
            8 => {
                use WrongR2t::*;
                faults.wrong_r2t = Some(pick(rng, &[Offset, TooMuch, Empty, Number, ForRead]));
            }
            _ => {}
        }
        faults
    }

    /// The supervisor's part.
    fn supervise(&mut self) {
        if let Some(lost) = self.session.handoff.take_lost() {
            self.reconnector.on_lost(&lost.link.connection, lost.writes, self.now);
        }
        if self.reconnector.next_attempt().is_some() {
            let faults = self.faults();
            self.target.set_faults(faults);
        }
        let network = self.network.clone();
        let mut connect = |_: &str| network.connect().map_err(|_| ConnectionError::Closed);
        if let Progress::Ready(link) = self.reconnector.turn(&mut self.pieces, self.now, &mut connect) {
            self.sessions += 1;
            self.session.deliver(link);
        }
    }

    /// The network's and the target's part.
    fn move_bytes(&mut self) {
        if self.weather.cuts && !self.is_calm() {
            for path in self.network.live_paths() {
                if self.rng.below(150) == 0 {
                    self.network.cut(path, self.rng.percent(50));
                }
            }
        }
        self.network.turn(self.now);
    }

    fn step(&mut self, done: &mut Completions) {
        self.move_bytes();
        self.supervise();
        self.channel.poll(self.now, done);
        self.move_bytes();
        self.now = self.now + random_micros(&mut self.rng, 1..400);
    }

    fn submit(&mut self, done: &mut Completions) -> bool {
        let Some(request) = self.model.next_request(&mut self.rng, self.now) else { return false };
        self.channel.submit(BlockRequest::new(request), done);
        true
    }

    fn complete(&mut self, done: &mut Completions) {
        for completed in done.drain() {
            self.model.complete(&completed.request, completed.status);
        }
    }

    /// Runs until nothing is under way.
    fn drain(&mut self, done: &mut Completions) -> Result<(), String> {
        while self.model.under_way > 0 {
            self.step(done);
            self.complete(done);
            if self.now > self.start + MAX_TIME.into() {
                return Err(format!("no end in sight: {} requests are under way", self.model.under_way));
            }
        }
        Ok(())
    }

    /// Waits for what is late, and looks at every byte. Returns the sessions it took, or what went wrong.
    fn finish(mut self) -> Result<u64, String> {
        self.now = self.now + ms(1000);
        self.network.turn(self.now);
        self.model.check_store();
        match (self.model.failed, self.model.stale.first()) {
            (0, None) => Ok(self.sessions),
            (0, Some(stale)) => Err(format!("stale data: {stale}")),
            (failed, _) => Err(format!("{failed} requests failed")),
        }
    }
}

/// Runs `ios` I/Os in one world. Returns the sessions it took, or what went wrong.
fn run(seed: u64, weather: Weather, mut ios: usize) -> Result<u64, String> {
    let mut world = World::new(seed, weather);
    let mut done = Completions::default();
    while ios > 0 {
        while ios > 0 && world.model.under_way < DEPTH && world.rng.percent(67) {
            ios -= usize::from(world.submit(&mut done));
        }
        world.step(&mut done);
        world.complete(&mut done);
        if world.now > world.start + MAX_TIME.into() {
            return Err(format!("no end in sight: {} requests are under way", world.model.under_way));
        }
    }
    world.drain(&mut done)?;
    world.finish()
}

/// `SIM_RUNS` multiplies the runs, `SIM_SEED` repeats a single one.
fn runs(count: u64, weather: Weather) -> u64 {
    let from_env = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let (first, count) = match from_env("SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (1, count * from_env("SIM_RUNS").unwrap_or(1)),
    };
    (first..first + count)
        .map(|seed| {
            run(seed, weather, if weather.late { 150 } else { 60 })
                .unwrap_or_else(|error| panic!("SIM_SEED={seed}: {error}"))
        })
        .sum()
}

#[test]
fn a_calm_network_needs_one_session_a_run() {
    let runs_made = 300 * std::env::var("SIM_RUNS").map_or(1, |v| v.parse().expect("a number"));
    assert_eq!(runs(runs_made, Weather::default()), runs_made, "one session a run");
}

#[test]
fn cut_connections_cost_sessions_not_data() {
    let sessions = runs(600, Weather { cuts: true, ..Weather::default() });
    assert!(sessions > 700, "cuts happen: {sessions}");
}

#[test]
fn a_target_with_faults_costs_sessions_not_data() {
    let sessions = runs(600, Weather { faults: true, ..Weather::default() });
    assert!(sessions > 700, "faults cost sessions: {sessions}");
}

#[test]
fn no_late_write_lands_after_reinstatement() {
    let sessions = runs(300, Weather { faults: true, cuts: true, late: true, forgetful: false });
    assert!(sessions > 600, "{sessions}");
}

/// The check above can fail: against a target that does not end old sessions, late writes do land on top of newer ones.
#[test]
fn a_target_that_forgets_reinstatement_is_caught() {
    let weather = Weather { cuts: true, late: true, forgetful: true, faults: false };
    let caught =
        (1..100).filter(|seed| run(*seed, weather, 150).is_err_and(|error| error.contains("stale data"))).count();
    assert!(caught > 0, "stale writes are seen");
}

/// A channel is dropped with writes in flight: the writes of the next channel come last.
#[test]
fn writes_of_a_dropped_channel_do_not_come_after_those_of_the_next() {
    for seed in 1..100 {
        let mut world = World::new(seed, Weather { late: true, ..Weather::default() });
        let mut done = Completions::default();
        for _ in 0..200 {
            world.submit(&mut done);
            world.step(&mut done);
            world.complete(&mut done);
        }
        world.channel = IscsiChannel::new(world.session.clone(), world.disk.clone());
        world.session.handoff.reopen();
        world.model.abandon_all();
        let request = world.model.write_all(world.now);
        world.channel.submit(BlockRequest::new(request), &mut done);
        world.drain(&mut done).and_then(|()| world.finish()).unwrap_or_else(|error| panic!("SIM_SEED={seed}: {error}"));
    }
}
