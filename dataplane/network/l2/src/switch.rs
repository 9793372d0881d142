//! The switch, as the control plane uses it.

use crate::bridge::BridgePort;
use crate::datapath::{Datapath, Message, Sweep};
use crate::handover::Handover;
use crate::mac_table::{MacEntry, Station};
use crate::output::Outputs;
use crate::state::State;
use crate::stats::{PathStats, PortLoad, WorkerCounters, WorkerStats};
use crate::upcall::Upcalls;
use crate::{Capture, Offload, Placed, PortNo, RateLimit, limits};
use crossbeam::channel;
use engine::{Sender, SourceId, Waker, WorkerHandle, WorkerSet, mailbox};
use flow::text::FlowMatch;
use flow::{Action, DropReason, Key, Mask, Megaflow, Stats};
use invalid::Invalid;
use packet::Pool;
use port::{Port, PortError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Settings of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeConfig {
    /// How long a station that says nothing is remembered.
    pub mac_age: Duration,
    /// Stations that are remembered.
    pub mac_table_size: usize,
    /// Packets a second that may be flooded, from all ports; any number if not set.
    pub flood_pps: Option<u64>,
}

impl Default for BridgeConfig {
    fn default() -> BridgeConfig {
        BridgeConfig { mac_age: Duration::from_secs(300), mac_table_size: 8192, flood_pps: None }
    }
}

/// Settings of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortConfig {
    /// Its number; the next free one if not set.
    pub number: Option<PortNo>,
    /// Packets a second, on each worker, for which the translation may be asked; any number if not set.
    pub upcall_pps: Option<u64>,
}

/// Why the switch does not do as it was told. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// There is no such thing.
    #[error("there is no {kind} {name}")]
    NoSuch {
        /// What it would be.
        kind: &'static str,
        /// What it was called.
        name: String,
    },
    /// Something else has the name.
    #[error("there is a {kind} {name} already")]
    Exists {
        /// What has it.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A parameter is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A limit is reached.
    #[error("limit reached: at most {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many.
        limit: usize,
    },
    /// It is in use.
    #[error("{kind} {name} is in use: {by}")]
    Busy {
        /// What.
        kind: &'static str,
        /// Its name.
        name: String,
        /// By whom.
        by: String,
    },
    /// A flow of an operator that some packet would match as well.
    #[error("it overlaps the flow {0}")]
    Overlaps(Box<FlowMatch>),
    /// The port refused.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The system refused.
    #[error("{what}: {source}")]
    Os {
        /// The call.
        what: &'static str,
        /// Its reason.
        source: std::io::Error,
    },
}

/// A bridge at one moment.
#[derive(Clone, Debug)]
pub struct BridgeReport {
    /// Its name.
    pub name: String,
    /// Its settings.
    pub config: BridgeConfig,
    /// Its ports, by name, with their settings.
    pub ports: Vec<(String, BridgePort)>,
    /// Stations that it knows.
    pub stations: usize,
}

/// A port at one moment.
pub struct PortReport {
    /// Its number.
    pub number: PortNo,
    /// Its name.
    pub name: String,
    /// The bridge that it is in.
    pub bridge: Option<String>,
    /// The port itself.
    pub port: Arc<dyn Port>,
    /// What may come in by it.
    pub limit: RateLimit,
    /// What the switch counted of the packets that came in by it.
    pub path: PathStats,
    /// What it cost each worker.
    pub loads: Vec<PortLoad>,
    /// Packets that flows dropped, by reason, as of the last sweep.
    pub drops: Vec<(&'static str, u64)>,
}

/// A flow at one moment.
#[derive(Clone, Debug)]
pub struct FlowReport {
    /// The flow.
    pub flow: Megaflow,
    /// How much of it hardware does.
    pub offloaded: Placed,
    /// Why hardware does not do it, or not all of it, where it was asked and cannot.
    pub refused: Option<String>,
}

/// What would become of a packet.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The megaflow that it would make, or that an operator made.
    pub flow: Megaflow,
    /// The bridge, if one decides.
    pub bridge: Option<String>,
    /// The station that it comes from, as the bridge sees it.
    pub source: Option<Station>,
    /// The station that it goes to.
    pub destination: Option<Station>,
    /// Why it is dropped.
    pub drop: Option<DropReason>,
    /// A flow of an operator decides.
    pub operator: bool,
}

/// The switch of a process: a [`Datapath`] on each worker, and one thread that translates.
pub struct Switch {
    shared: Arc<Shared>,
    workers: Vec<WorkerHandle>,
    sources: Vec<SourceId>,
    translator: Option<JoinHandle<()>>,
    pool: Pool,
}

pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    pub(crate) upcalls: Arc<Upcalls>,
    counters: Vec<Arc<WorkerCounters>>,
    stop: AtomicBool,
    /// The next sweep is not to wait for its time.
    hurry: AtomicBool,
}

/// The parts of a switch, before anything runs.
pub(crate) fn assemble(
    wakers: Vec<Waker>,
    pool: &Pool,
    cache: flow::Config,
) -> Result<(Arc<Shared>, Vec<Datapath>), Invalid> {
    let number = |(worker, waker)| WorkerSet::of(worker).map(|set| (set, waker));
    let wakers = wakers.into_iter().enumerate().map(number).collect::<Result<Vec<_>, _>>()?;
    let upcalls = Arc::new(Upcalls::new(wakers.len()));
    let counters: Vec<Arc<WorkerCounters>> = wakers.iter().map(|_| Arc::default()).collect();
    let mut senders = Vec::new();
    let mut datapaths = Vec::new();
    for (worker, ((set, waker), handover)) in wakers.iter().zip(Handover::connect(&wakers)).enumerate() {
        let (sender, inbox) = mailbox(waker.clone(), limits::MESSAGES);
        senders.push((*set, sender));
        let outputs = Outputs::new(*set, handover);
        datapaths.push(Datapath::new(
            worker,
            inbox,
            upcalls.clone(),
            outputs,
            pool.clone(),
            cache,
            counters[worker].clone(),
        ));
    }
    let state = Mutex::new(State::new(senders));
    let shared = Shared { state, upcalls, counters, stop: AtomicBool::new(false), hurry: AtomicBool::new(false) };
    Ok((Arc::new(shared), datapaths))
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    pub(crate) fn worker_stats(&self) -> Vec<WorkerStats> {
        self.counters.iter().map(|counters| counters.read()).collect()
    }

    /// Answers the upcalls that wait. Returns how many.
    pub(crate) fn translate(&self, now: Instant) -> usize {
        const AT_A_TIME: usize = 64;
        let mut state = self.lock();
        let waiting = std::iter::from_fn(|| self.upcalls.take()).take(AT_A_TIME);
        waiting.map(|upcall| state.resolve(&upcall, now)).count()
    }

    /// Asks every worker what its flows have seen.
    pub(crate) fn ask_stats(&self) -> Vec<channel::Receiver<Vec<(u128, Stats)>>> {
        const SLACK: usize = 1024;
        let state = self.lock();
        let room = state.flows.len() + SLACK;
        let ask = |worker: &Sender<Message>| {
            let (reply, answer) = channel::bounded(1);
            drop(worker.send(Message::Sweep(Sweep { seen: Vec::with_capacity(room), cursor: 0, reply })));
            answer
        };
        state.workers().map(ask).collect()
    }

    /// Takes note of what all workers have told.
    pub(crate) fn swept(&self, told: impl IntoIterator<Item = Vec<(u128, Stats)>>, now: Instant) {
        let mut sum: HashMap<u128, Stats> = HashMap::new();
        for (ufid, stats) in told.into_iter().flatten() {
            sum.entry(ufid).or_default().add(&stats);
        }
        self.lock().swept(&sum, now);
    }

    /// The thread that translates and keeps watch.
    fn run(&self) {
        let mut next_sweep = Instant::now() + limits::SWEEP_EVERY;
        while !self.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            if self.translate(now) > 0 {
                continue;
            }
            if now >= next_sweep || self.hurry.swap(false, Ordering::AcqRel) {
                next_sweep = now + limits::SWEEP_EVERY;
                if self.is_idle() {
                    continue;
                }
                self.swept(self.collect(|| self.translate(Instant::now()) > 0), now);
            }
            if self.upcalls.is_empty() {
                std::thread::park_timeout(next_sweep.saturating_duration_since(Instant::now()));
            }
        }
    }

    /// Hardware has lost flows, which are to be offered again.
    fn sweep_soon(&self) {
        self.hurry.store(true, Ordering::Release);
        self.upcalls.notify();
    }

    /// There are neither flows nor stations that could age.
    fn is_idle(&self) -> bool {
        let state = self.lock();
        state.flows.len() == 0 && state.bridges.values().all(|bridge| bridge.bridge.stations.len() == 0)
    }

    /// What all workers have told, or nothing where one has ended. Calls `meanwhile` while they count.
    fn collect(&self, mut meanwhile: impl FnMut() -> bool) -> Vec<Vec<(u128, Stats)>> {
        const LOOK: Duration = Duration::from_millis(1);
        let mut told = Vec::new();
        for answer in self.ask_stats() {
            loop {
                match answer.recv_timeout(LOOK) {
                    Ok(seen) => break told.push(seen),
                    Err(channel::RecvTimeoutError::Disconnected) => return Vec::new(),
                    Err(channel::RecvTimeoutError::Timeout) if self.stop.load(Ordering::Acquire) => return Vec::new(),
                    Err(channel::RecvTimeoutError::Timeout) => while meanwhile() {},
                }
            }
        }
        told
    }
}

impl Switch {
    /// A switch on these workers, whose copies come from `pool`.
    pub fn start(workers: &[WorkerHandle], pool: Pool) -> Result<Switch, SwitchError> {
        let wakers: Vec<Waker> = workers.iter().map(WorkerHandle::waker).collect();
        let (shared, datapaths) = assemble(wakers, &pool, limits::cache())?;
        let runner = shared.clone();
        let thread = std::thread::Builder::new().name("translator".to_owned()).spawn(move || runner.run());
        let translator = thread.map_err(|source| SwitchError::Os { what: "thread", source })?;
        shared.upcalls.set_translator(translator.thread().clone());
        let add = |(worker, datapath): (&WorkerHandle, Datapath)| worker.add("switch", Box::new(datapath));
        let sources = workers.iter().zip(datapaths).map(add).collect();
        Ok(Switch { shared, workers: workers.to_vec(), sources, translator: Some(translator), pool })
    }

    /// Offers busy flows to this hardware from now on.
    pub fn set_offload(&self, offload: Arc<dyn Offload>) {
        let shared = Arc::downgrade(&self.shared);
        offload.on_loss(Box::new(move || shared.upgrade().iter().for_each(|shared| shared.sweep_soon())));
        self.shared.lock().set_offload(offload);
    }

    /// Where its packets come from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What each worker's part has done.
    pub fn worker_stats(&self) -> Vec<WorkerStats> {
        self.shared.worker_stats()
    }

    /// The source that is the switch on a worker.
    pub fn source(&self, worker: usize) -> Option<SourceId> {
        self.sources.get(worker).copied()
    }

    /// How many megaflows there are.
    pub fn megaflows(&self) -> usize {
        self.shared.lock().flows.len()
    }

    /// Adds a port. Returns its number.
    pub fn add_port(&self, name: &str, port: Arc<dyn Port>, config: &PortConfig) -> Result<PortNo, SwitchError> {
        self.shared.lock().add_port(name, port, config, &self.workers)
    }

    /// Takes a port out. Nothing of the switch leads to it any more when this returns.
    pub fn remove_port(&self, name: &str) -> Result<Arc<dyn Port>, SwitchError> {
        self.shared.lock().remove_port(name)
    }

    /// Limits what may come in by a port, or gives it another limit.
    pub fn limit_port(&self, name: &str, limit: RateLimit) -> Result<(), SwitchError> {
        self.shared.lock().limit_port(name, limit)
    }

    /// Shows the packets of a port to `capture`, one at a time. Returns the port's number.
    pub fn start_capture(&self, name: &str, capture: &Arc<Capture>) -> Result<PortNo, SwitchError> {
        self.shared.lock().start_capture(name, capture)
    }

    /// Shows a port's packets no more. Workers let go of the capture a little later.
    pub fn stop_capture(&self, name: &str) -> Result<(), SwitchError> {
        self.shared.lock().stop_capture(name)
    }

    /// All ports, by number.
    pub fn ports(&self) -> Vec<PortReport> {
        self.shared.lock().port_reports()
    }

    /// Makes a bridge.
    pub fn create_bridge(&self, name: &str, config: BridgeConfig) -> Result<(), SwitchError> {
        self.shared.lock().create_bridge(name, config)
    }

    /// Deletes a bridge that has no ports.
    pub fn delete_bridge(&self, name: &str) -> Result<(), SwitchError> {
        self.shared.lock().delete_bridge(name)
    }

    /// All bridges.
    pub fn bridges(&self) -> Vec<BridgeReport> {
        self.shared.lock().bridge_reports()
    }

    /// Puts a port into a bridge, or gives it other settings there.
    pub fn attach(&self, bridge: &str, port: &str, config: BridgePort) -> Result<(), SwitchError> {
        self.shared.lock().attach(bridge, port, config)
    }

    /// Takes a port out of a bridge.
    pub fn detach(&self, bridge: &str, port: &str) -> Result<(), SwitchError> {
        self.shared.lock().detach(bridge, port)
    }

    /// The stations of a bridge, each with the name of its port.
    pub fn stations(&self, bridge: &str) -> Result<Vec<(MacEntry, String)>, SwitchError> {
        let mut state = self.shared.lock();
        let entries = state.bridge_named(bridge)?.1.bridge.stations.entries();
        let name = |entry: &MacEntry| state.ports.get(&entry.port).map_or_else(String::new, |port| port.name.clone());
        Ok(entries.into_iter().map(|entry| (entry, name(&entry))).collect())
    }

    /// Forgets the stations that a bridge learned, all or those behind one port. Returns how many.
    pub fn flush(&self, bridge: &str, port: Option<&str>) -> Result<usize, SwitchError> {
        let mut state = self.shared.lock();
        let port = port.map(|name| state.port_named(name)).transpose()?;
        state.forget(bridge, |entry| entry.seen.is_none() || port.is_some_and(|port| entry.port != port))
    }

    /// Puts a station behind a port for good.
    pub fn pin(&self, bridge: &str, station: Station, port: &str) -> Result<(), SwitchError> {
        self.shared.lock().pin(bridge, station, port)
    }

    /// Forgets a station, learned or put in.
    pub fn unpin(&self, bridge: &str, station: Station) -> Result<(), SwitchError> {
        match self.shared.lock().forget(bridge, |entry| entry.station != station)? {
            0 => Err(SwitchError::NoSuch { kind: "station", name: station.to_string() }),
            _ => Ok(()),
        }
    }

    /// Installs a flow that goes before the bridges.
    pub fn add_flow(&self, key: &Key, mask: &Mask, actions: Vec<Action>) -> Result<(), SwitchError> {
        self.shared.lock().add_flow(key, mask, actions)
    }

    /// Deletes a flow of an operator. Returns what it was.
    pub fn delete_flow(&self, key: &Key, mask: &Mask) -> Result<Megaflow, SwitchError> {
        self.shared.lock().delete_flow(key, mask)
    }

    /// All flows with what they have seen.
    pub fn dump(&self) -> Vec<FlowReport> {
        let offload = self.shared.lock().offload.clone();
        offload.iter().for_each(|offload| offload.refresh());
        self.shared.swept(self.shared.collect(|| false), Instant::now());
        self.shared.lock().flow_reports()
    }

    /// What would become of a packet. Nothing is learned from it.
    pub fn trace(&self, packet: &Key) -> Trace {
        self.shared.lock().trace(packet)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(translator) = self.translator.take() {
            translator.thread().unpark();
            drop(translator.join());
        }
        for (worker, source) in self.workers.iter().zip(self.sources.drain(..)) {
            drop(worker.remove(source));
        }
    }
}
