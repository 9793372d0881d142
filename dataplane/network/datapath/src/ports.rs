//! Ports of the datapath, their limits and captures, and reports.

use crate::capture::Capture;
use crate::limit::{Policer, RateLimit, TokenBucket};
use crate::megaflows::Record;
use crate::output::PortSlot;
use crate::pipeline::Pipeline;
use crate::state::{DatapathState, PortState};
use crate::stats::{LoadCounters, PathCounters, PathStats, PortLoad};
use crate::worker::Message;
use crate::{OffloadState, PortNo, SwitchError, limits};
use crossbeam::channel;
use engine::{AtomicWorkerSet, WorkerHandle};
use flow::{DropReason, Megaflow};
use invalid::Invalid;
use packet::Burst;
use port::Port;
use std::collections::HashMap;
use std::sync::Arc;

/// Settings of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortConfig {
    /// The number of the port; the next free one if not set.
    pub number: Option<PortNo>,
    /// Upcall rate limit per worker, packets per second; no limit if not set.
    pub upcall_pps: Option<u64>,
}

/// A port at one moment.
pub struct PortReport {
    /// The number of the port.
    pub number: PortNo,
    /// The name of the port.
    pub name: String,
    /// The bridge that the port is in.
    pub bridge: Option<String>,
    /// The port itself.
    pub port: Arc<dyn Port>,
    /// The rate limit of packets that come in by the port.
    pub limit: RateLimit,
    /// Counters of the packets that came in by the port.
    pub path: PathStats,
    /// The cost of the port on each worker.
    pub loads: Vec<PortLoad>,
    /// Packets that the pipeline decided to drop, by reason, as of the last sweep.
    pub drops: Vec<(&'static str, u64)>,
}

/// A flow at one moment.
#[derive(Clone, Debug)]
pub struct FlowReport {
    /// The flow.
    pub flow: Megaflow,
    /// How much of the flow hardware does.
    pub offloaded: OffloadState,
    /// Why hardware does not do the flow, or not all of it, where it was offered and refused.
    pub refused: Option<String>,
}

impl<P: Pipeline> DatapathState<P> {
    /// The number of a port.
    pub fn port_named(&self, name: &str) -> Result<PortNo, SwitchError> {
        let found = self.ports.iter().find(|(_, port)| port.name == name).map(|(number, _)| *number);
        found.ok_or_else(|| SwitchError::NoSuch { kind: "port", name: name.to_owned() })
    }

    /// Adds a port. Returns its number.
    pub fn add_port(
        &mut self,
        name: &str,
        port: Arc<dyn Port>,
        config: &PortConfig,
        workers: &[WorkerHandle],
    ) -> Result<PortNo, SwitchError> {
        if self.port_named(name).is_ok() {
            return Err(SwitchError::Exists { kind: "port", name: name.to_owned() });
        }
        let number = self.free_number(config.number)?;
        // All shards, or none: a worker sees the port only when every one could be opened.
        let shards = workers.iter().map(|worker| port.open_shard(worker)).collect::<Result<Vec<_>, _>>()?;
        let counters: Vec<Arc<PathCounters>> = workers.iter().map(|_| Arc::default()).collect();
        let loads: Vec<Arc<LoadCounters>> = workers.iter().map(|_| Arc::default()).collect();
        let senders = Arc::<AtomicWorkerSet>::default();
        let instance = self.next_instance;
        self.next_instance = self.next_instance.wrapping_add(1);
        let parts = shards.into_iter().zip(&counters).zip(&loads);
        for (((shard, counters), load), worker) in parts.zip(self.workers()) {
            let slot = Box::new(PortSlot {
                instance,
                shard,
                upcalls: config.upcall_pps.map(TokenBucket::new),
                policer: None,
                capture: None,
                pending: 0,
                counters: counters.clone(),
                load: load.clone(),
                senders: senders.clone(),
                sends: false,
                out: Burst::new(),
            });
            let _ = worker.send(Message::AddPort(number, slot)); // a worker that has ended needs no port
        }
        let has_hardware = self.offload.as_ref().is_some_and(|offload| offload.add_port(number, &*port));
        let state = PortState {
            name: name.to_owned(),
            port,
            limit: RateLimit::default(),
            captured: false,
            has_hardware,
            counters,
            loads,
            drops: HashMap::new(),
        };
        self.ports.insert(number, state);
        Ok(number)
    }

    fn free_number(&self, wanted: Option<PortNo>) -> Result<PortNo, SwitchError> {
        let Some(number) = wanted else {
            let free = (1..=limits::PORTS as PortNo).find(|number| !self.ports.contains_key(number));
            return free.ok_or(SwitchError::Limit { what: "ports", limit: limits::PORTS });
        };
        if number == 0 || number as usize > limits::PORTS {
            return Err(Invalid::new("port_no", number, format_args!("1 to {}", limits::PORTS)).into());
        }
        match self.ports.get(&number) {
            Some(taken) => {
                let expected = format!("a number that no port has; {} has this one", taken.name);
                Err(Invalid::new("port_no", number, expected).into())
            }
            None => Ok(number),
        }
    }

    /// Removes a port. No flow leads from the port any more when this returns.
    pub fn remove_port(&mut self, name: &str) -> Result<Arc<dyn Port>, SwitchError> {
        let number = self.port_named(name)?;
        let Some(state) = self.ports.remove(&number) else {
            return Err(SwitchError::NoSuch { kind: "port", name: name.to_owned() });
        };
        for ufid in self.flows.matching(|record| record.port == number && !record.translation.dependencies.is_static())
        {
            self.remove_flow(ufid);
        }
        if let Some(offload) = &self.offload {
            offload.remove_port(number);
        }
        let take = |worker: &engine::Sender<Message>| {
            let (reply, answer) = channel::bounded(1);
            worker.send(Message::RemovePort(number, reply)).ok().map(|()| answer)
        };
        let answers: Vec<_> = self.workers().filter_map(take).collect();
        // Shards are destroyed here, not on their workers. A worker that has ended has dropped its own already.
        for answer in answers {
            let _ = answer.recv();
        }
        Ok(state.port)
    }

    /// Sets the rate limit of packets that come in by a port.
    pub fn limit_port(&mut self, name: &str, limit: RateLimit) -> Result<(), SwitchError> {
        let number = self.port_named(name)?;
        let at_least = |field: &'static str, given: Option<u64>, min: u64| match given {
            Some(got) if got < min => Err(Invalid::new(field, got, format_args!("at least {min}"))),
            _ => Ok(()),
        };
        at_least("packets_per_second", limit.packets_per_second, 1)?;
        at_least("burst_packets", limit.burst_packets, RateLimit::MIN_BURST_PACKETS)?;
        at_least("bits_per_second", limit.bits_per_second, RateLimit::MIN_BITS_PER_SECOND)?;
        at_least("burst_bytes", limit.burst_bytes, RateLimit::MIN_BURST_BYTES)?;
        self.ports.entry(number).and_modify(|state| state.limit = limit);
        self.withdraw_watched();
        let policer = Policer::new(&limit);
        self.send_to_all(|| Message::SetPolicer(number, policer.clone()));
        Ok(())
    }

    /// Shows the packets of a port to `capture`, one capture at a time. Returns the port's number.
    pub fn start_capture(&mut self, name: &str, capture: &Arc<Capture>) -> Result<PortNo, SwitchError> {
        let number = self.port_named(name)?;
        if self.ports.get(&number).is_some_and(|state| state.captured) {
            let by = "another capture".to_owned();
            return Err(SwitchError::Busy { kind: "port", name: name.to_owned(), by });
        }
        self.ports.entry(number).and_modify(|state| state.captured = true);
        self.withdraw_watched();
        self.send_to_all(|| Message::SetCapture(number, Some(capture.clone())));
        Ok(number)
    }

    /// Ends the capture of a port. Workers let go of it a little later.
    pub fn stop_capture(&mut self, name: &str) -> Result<(), SwitchError> {
        let number = self.port_named(name)?;
        self.ports.entry(number).and_modify(|state| state.captured = false);
        self.send_to_all(|| Message::SetCapture(number, None));
        Ok(())
    }

    /// The name of a port; empty where there is none of this number.
    pub fn port_name(&self, number: PortNo) -> String {
        self.ports.get(&number).map_or_else(String::new, |port| port.name.clone())
    }

    /// The number of megaflows, static flows included.
    pub fn megaflows(&self) -> usize {
        self.flows.len()
    }

    /// All megaflows, by ufid.
    pub fn flow_reports(&self) -> Vec<FlowReport> {
        let report = |(ufid, record): (u128, &Record)| FlowReport {
            flow: record.megaflow(ufid),
            offloaded: record.offload.as_ref().map_or(OffloadState::No, |offload| offload.state()),
            refused: record.offload.as_ref().and_then(|offload| offload.refused()),
        };
        let mut flows: Vec<FlowReport> = self.flows.iter().map(report).collect();
        flows.sort_by_key(|report| report.flow.ufid);
        flows
    }

    /// All ports, by number.
    pub fn port_reports(&self) -> Vec<PortReport> {
        let report = |(number, state): (&PortNo, &PortState)| PortReport {
            number: *number,
            name: state.name.clone(),
            bridge: self.pipeline.bridge_of(*number).map(str::to_owned),
            port: state.port.clone(),
            path: state.counters.iter().map(|c| c.read()).fold(PathStats::default(), |sum, one| sum + one),
            loads: state.loads.iter().map(|load| load.read()).collect(),
            limit: state.limit,
            drops: DropReason::OF_PIPELINE
                .map(|reason| (reason.as_str(), state.drops.get(&reason).copied().unwrap_or(0)))
                .into(),
        };
        self.ports.iter().map(report).collect()
    }
}
