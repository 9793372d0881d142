//! The device behind its ports: the pipeline, the devices below the ports, and the queues to the host, under one lock.

use super::backend::Backend;
use super::mbuf::Mbuf;
use super::restore::Restores;
use super::tell;
use crate::config::{Config, FaultInjection, InvalidArgument};
use crate::pipeline::{Destination, Frame, Limits, Pipeline, Rss, Source};
use crate::translate::Meters;
use dpdk_sys as sys;
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Number of polls of other ports after which these move the packets of a port that the host does not poll.
const UNPOLLED_LIMIT: u64 = 64;
/// The number of a port that is closed.
pub(super) const CLOSED: u16 = u16::MAX;
/// Time between two searches for aged rules.
const AGE_CHECK: Duration = Duration::from_millis(100);

/// The device.
pub(super) struct Device {
    /// The names of its ports.
    pub names: Vec<CString>,
    pub switch_domain: u16,
    /// Whether items or actions are refused on demand.
    pub refuses: AtomicBool,
    started: Instant,
    state: Mutex<State>,
}

/// The state under the lock.
pub(super) struct State {
    pub pipeline: Pipeline,
    pub ports: Vec<PortState>,
    pub faults: FaultInjection,
    pub restores: Restores,
    polls: u64,
    /// Number of packets since the faults were changed.
    packets: u64,
    age_check: Duration,
    events: Events,
}

/// Events to report to the application, without the lock.
#[derive(Default)]
pub(super) struct Events {
    /// The device was reset.
    pub reset: bool,
    /// Ports, by index, with rules that have aged.
    pub aged: Vec<usize>,
}

/// A port.
pub(super) struct PortState {
    pub id: u16,
    pub backend: Option<Backend>,
    /// Packets that wait for the host, with the depth of each queue.
    pub queues: Vec<(VecDeque<Mbuf>, usize)>,
    pub pool: Pool,
    pub stats: Stats,
    pub meters: Meters,
    polled: u64,
    /// The application was told of aged rules, and has not asked for them yet.
    aged_told: bool,
}

/// The pool that a port's packets are received into.
#[derive(Clone, Copy)]
pub(super) struct Pool(pub *mut sys::rte_mempool);

// SAFETY: any thread may take from a pool.
unsafe impl Send for Pool {}

/// Packets between a port and the host.
#[derive(Clone, Copy, Default)]
pub(super) struct Stats {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub rx_missed: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
}

impl PortState {
    pub(super) fn new(id: u16) -> PortState {
        PortState {
            id,
            backend: None,
            queues: Vec::new(),
            pool: Pool(std::ptr::null_mut()),
            stats: Stats::default(),
            meters: Meters::default(),
            polled: 0,
            aged_told: false,
        }
    }
}

impl Device {
    pub(super) fn new(names: Vec<CString>, switch_domain: u16, config: &Config) -> Device {
        let mut pipeline = Pipeline::new(config.limits.clone());
        pipeline.set_faults(config.faults.pipeline.clone());
        let state = State {
            pipeline,
            ports: Vec::new(),
            faults: config.faults.clone(),
            restores: Restores::default(),
            polls: 0,
            packets: 0,
            age_check: Duration::ZERO,
            events: Events::default(),
        };
        let refuses = AtomicBool::new(config.faults.refuses());
        Device { names, switch_domain, refuses, started: Instant::now(), state: Mutex::new(state) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Changes the injected faults. Returns all of them.
    pub(super) fn inject_faults(&self, changes: &str) -> Result<FaultInjection, InvalidArgument> {
        let mut state = self.lock();
        let (faults, reset) = state.faults.changed(changes)?;
        if !changes.is_empty() {
            self.refuses.store(faults.refuses(), Ordering::Relaxed);
            state.set_faults(faults.clone());
        }
        if reset {
            state.reset();
        }
        let events = if reset { state.take_events() } else { Events::default() };
        drop(state);
        self.tell(&events);
        Ok(faults)
    }

    /// Reports events to the application. The caller does not hold the lock.
    pub(super) fn tell(&self, events: &Events) {
        if events.reset {
            self.names.iter().for_each(|name| tell(name, sys::RTE_ETH_EVENT_INTR_RESET));
        }
        events.aged.iter().for_each(|&index| tell(&self.names[index], sys::RTE_ETH_EVENT_FLOW_AGED));
    }

    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Moves the packets that have come to the device's ports. Returns those that wait for the host in a queue.
    pub(super) fn receive(&self, port: usize, queue: usize, room: usize) -> (Vec<Mbuf>, Events) {
        let now = self.now();
        let mut state = self.lock();
        if queue == 0 {
            state.polls += 1;
            state.ports[port].polled = state.polls;
        }
        for index in 0..state.ports.len() {
            let is_unpolled = state.polls - state.ports[index].polled > UNPOLLED_LIMIT;
            if index == port && queue == 0 || is_unpolled {
                let packets = state.ports[index].backend.as_mut().map(Backend::receive).unwrap_or_default();
                let from = Source::Represented(state.ports[index].id);
                state.process(packets, from, now);
            }
        }
        state.look_for_aged(now);
        let events = state.take_events();
        let PortState { queues, stats, .. } = &mut state.ports[port];
        let Some((waiting, _)) = queues.get_mut(queue) else { return (Vec::new(), events) };
        let packets: Vec<Mbuf> = waiting.drain(..room.min(waiting.len())).collect();
        stats.rx_packets += packets.len() as u64;
        stats.rx_bytes += packets.iter().map(|packet| packet.total_len() as u64).sum::<u64>();
        (packets, events)
    }

    /// Processes packets that the host sends through a port.
    pub(super) fn send(&self, port: usize, packets: Vec<Mbuf>) {
        let now = self.now();
        let mut state = self.lock();
        let PortState { id, stats, .. } = &mut state.ports[port];
        stats.tx_packets += packets.len() as u64;
        stats.tx_bytes += packets.iter().map(|packet| packet.total_len() as u64).sum::<u64>();
        let from = Source::Representor(*id);
        state.process(packets, from, now);
    }
}

impl State {
    pub(super) fn ids(&self) -> Vec<u16> {
        self.ports.iter().map(|port| port.id).collect()
    }

    pub(super) fn limits(&self) -> &Limits {
        self.pipeline.limits()
    }

    /// RSS of a port for packets that no rule matches.
    pub(super) fn rss(&mut self, index: usize) -> Option<Rss> {
        let id = self.ports[index].id;
        self.pipeline.port_mode(id).rss.clone()
    }

    /// Replaces the injected faults.
    fn set_faults(&mut self, faults: FaultInjection) {
        self.pipeline.set_faults(faults.pipeline.clone());
        self.faults = faults;
        self.packets = 0;
    }

    /// Resets the device: it forgets its rules and reports the reset.
    fn reset(&mut self) {
        self.pipeline.reset();
        self.events.reset = true;
    }

    /// Takes the events to report to the application.
    fn take_events(&mut self) -> Events {
        std::mem::take(&mut self.events)
    }

    /// Takes packets through the pipeline and to where they go.
    fn process(&mut self, packets: Vec<Mbuf>, from: Source, now: Duration) {
        let mut outgoing: Vec<Vec<Mbuf>> = self.ports.iter().map(|_| Vec::new()).collect();
        for packet in packets {
            self.packets += 1;
            if self.faults.reset_after == Some(self.packets) {
                self.reset();
            }
            let Some(mut packet) = packet.unshared() else { continue };
            let index = |id| self.ports.iter().position(|port| port.id == id);
            match self.pipeline.process(&mut packet, from, now) {
                Destination::Nowhere => {}
                Destination::Represented(id) => {
                    if let Some(index) = index(id) {
                        outgoing[index].push(packet);
                    }
                }
                Destination::Host { port: id, queue, mark, hash, restore } => {
                    packet.received(id, mark, hash);
                    packet.set_restore(restore.map_or(0, |restore| self.restores.add(restore)));
                    if let Some(index) = index(id) {
                        self.ports[index].enqueue(usize::from(queue), packet);
                    }
                }
            }
        }
        for (port, packets) in self.ports.iter_mut().zip(outgoing) {
            if let Some(backend) = port.backend.as_mut().filter(|_| !packets.is_empty()) {
                backend.send(packets);
            }
        }
    }

    fn look_for_aged(&mut self, now: Duration) {
        if now.saturating_sub(self.age_check) < AGE_CHECK {
            return;
        }
        self.age_check = now;
        for owner in self.pipeline.expire(now) {
            let owner = self.ports.iter_mut().enumerate().find(|(_, port)| port.id == owner && !port.aged_told);
            if let Some((index, port)) = owner {
                port.aged_told = true;
                self.events.aged.push(index);
            }
        }
    }

    /// The rules of a port that have aged. When there are others the application is told again.
    pub(super) fn aged(&mut self, index: usize, now: Duration) -> Vec<u64> {
        self.ports[index].aged_told = false;
        let aged = self.pipeline.aged(self.ports[index].id, now);
        aged.map(|(id, context)| context.unwrap_or(id)).collect()
    }
}

impl PortState {
    fn enqueue(&mut self, queue: usize, packet: Mbuf) {
        match self.queues.get_mut(queue) {
            Some((waiting, depth)) if waiting.len() < *depth => waiting.push_back(packet),
            _ => self.stats.rx_missed += 1,
        }
    }

    /// Forgets what waits for the host.
    pub(super) fn drain(&mut self) {
        self.queues.iter_mut().for_each(|(waiting, _)| waiting.clear());
    }
}
