//! The seam to hardware that forwards flows.
//!
//! After each sweep the datapath offers the flows with the most packets; the implementation of [`Offload`] takes what fits, on a
//! thread of its own. A flow stays in the workers' caches all the while, so a packet that the hardware does not take finds the
//! flow there, and nothing is lost when the hardware fails. What the hardware counts is added to the flow's statistics.
//!
//! Hardware that cannot do a flow can mark its packets ([`OffloadHandle::mark`]): workers learn the mark with the next sweep, and
//! execute the flow's actions on marked packets without a look-up. A mark means one flow and never another: it is in use as long as
//! the datapath or the hardware has the flow's [`OffloadHandle`], and workers forget it with the flow.

use crate::PortNo;
use crate::limit::RateLimit;
use crate::marks::Marks;
use crate::megaflows::Record;
use crate::pipeline::Pipeline;
use crate::state::DatapathState;
use crate::worker::Message;
use clock::Cycles;
use engine::WorkerSet;
use flow::{Action, Megaflow, Stats};
use parking_lot::Mutex;
use port::Port;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Hardware that forwards flows. No call waits for the hardware, except [`Offload::remove_port`].
pub trait Offload: Send + Sync {
    /// Adds a port. Returns whether flows from the port are to be offered.
    fn add_port(&self, number: PortNo, port: &dyn Port) -> bool;

    /// Removes a port, from or to which no flow leads any more. The implementation holds nothing of the port when this returns.
    fn remove_port(&self, number: PortNo);

    /// Offers a flow, or changes a flow that was offered before.
    fn offer(&self, offer: Offer);

    /// Takes a flow back: workers alone do it from now on.
    fn withdraw(&self, ufid: u128);

    /// Reads the counters of all flows into their handles, before an operator is shown statistics.
    fn refresh(&self) {}

    /// Sets the function that is called when hardware has removed flows ([`OffloadHandle::mark_removed`]).
    fn on_removed(&self, _listener: Box<dyn Fn() + Send>) {}
}

/// A flow that is offered to hardware.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Match and actions.
    pub flow: Megaflow,
    /// Packets of the flow since the last sweep.
    pub packets: u64,
    /// Where the implementation reports what became of the flow.
    pub handle: Arc<OffloadHandle>,
}

/// How much of a flow hardware does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffloadState {
    /// Nothing.
    #[default]
    No,
    /// Hardware marks the flow's packets, and the workers do not look them up.
    Partial,
    /// All: workers do not see the flow's packets. The flow does not age in the datapath; the implementation takes it out of
    /// hardware when it is idle there.
    Full,
}

/// The state of one flow in hardware: written by the implementation of [`Offload`], read by the datapath. There may be a million.
#[derive(Debug)]
pub struct OffloadHandle {
    /// An [`OffloadState`].
    state: AtomicU8,
    removed: AtomicBool,
    /// 0 until a mark is taken.
    mark: AtomicU32,
    marks: Arc<Marks>,
    packets: AtomicU64,
    bytes: AtomicU64,
    used: AtomicU64,
    /// Boxed twice: few flows are refused, and the others need only a pointer.
    refused: Mutex<Option<Box<Reason>>>,
}

const _: () = assert!(size_of::<OffloadHandle>() <= 56);

/// Why hardware refuses a flow.
#[derive(Debug)]
struct Reason(String);

impl OffloadHandle {
    /// The handle of a flow whose mark, if hardware takes one, is of `marks`.
    pub fn new(marks: &Arc<Marks>) -> OffloadHandle {
        OffloadHandle {
            state: AtomicU8::new(OffloadState::No as u8),
            removed: AtomicBool::default(),
            mark: AtomicU32::default(),
            marks: marks.clone(),
            packets: AtomicU64::default(),
            bytes: AtomicU64::default(),
            used: AtomicU64::default(),
            refused: Mutex::default(),
        }
    }

    /// Records how much of the flow hardware does from now on.
    pub fn set_state(&self, state: OffloadState) {
        let before = self.state.swap(state as u8, Ordering::AcqRel);
        // What was refused before may be offered again.
        if state == OffloadState::Full || state == OffloadState::No && before == OffloadState::Partial as u8 {
            self.clear_refusal();
        }
    }

    /// Records that the hardware has lost the flow. The flow is offered again at the next sweep, however few packets it has.
    pub fn mark_removed(&self) {
        self.removed.store(true, Ordering::Release);
        self.set_state(OffloadState::No);
    }

    /// Whether the hardware has lost the flow since the last call.
    pub(crate) fn take_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire) && self.removed.swap(false, Ordering::AcqRel)
    }

    /// How much of the flow hardware does.
    pub fn state(&self) -> OffloadState {
        match self.state.load(Ordering::Acquire) {
            full if full == OffloadState::Full as u8 => OffloadState::Full,
            partial if partial == OffloadState::Partial as u8 => OffloadState::Partial,
            _ => OffloadState::No,
        }
    }

    /// Whether hardware does the flow or part of it.
    pub fn is_offloaded(&self) -> bool {
        self.state() != OffloadState::No
    }

    /// The mark for the flow's packets. No other flow has it as long as this handle lives. `None` where too many flows have marks.
    pub fn mark(&self) -> Option<u32> {
        let mark = self.mark.load(Ordering::Acquire);
        if mark != 0 {
            return Some(mark);
        }
        let mark = self.marks.take()?;
        match self.mark.compare_exchange(0, mark, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Some(mark),
            Err(taken) => {
                self.marks.give_back(mark);
                Some(taken)
            }
        }
    }

    /// Records why the hardware cannot do the flow, or not all of it. A flow that was refused is not offered again before it
    /// changes.
    pub fn refuse(&self, why: String) {
        *self.refused.lock() = Some(Box::new(Reason(why)));
    }

    /// Forgets a refusal: the flow has changed, and may be offered again.
    fn clear_refusal(&self) {
        *self.refused.lock() = None;
    }

    /// Whether the hardware neither does the flow nor has refused it.
    fn is_open(&self) -> bool {
        !self.is_offloaded() && self.refused.lock().is_none()
    }

    /// Why the hardware cannot do the flow.
    pub fn refused(&self) -> Option<String> {
        self.refused.lock().as_ref().map(|why| why.0.clone())
    }

    /// Adds what the hardware has counted.
    pub fn add(&self, packets: u64, bytes: u64, now: Cycles) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.used.fetch_max(now.0, Ordering::Relaxed);
    }

    /// All that the hardware has counted.
    pub fn stats(&self) -> Stats {
        Stats {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            used: Cycles(self.used.load(Ordering::Relaxed)),
            tcp_flags: 0,
        }
    }
}

impl Default for OffloadHandle {
    /// A handle with marks of its own.
    fn default() -> OffloadHandle {
        OffloadHandle::new(&Arc::default())
    }
}

impl Drop for OffloadHandle {
    fn drop(&mut self) {
        if *self.mark.get_mut() != 0 {
            self.marks.give_back(*self.mark.get_mut());
        }
    }
}

impl<P: Pipeline> DatapathState<P> {
    /// Offers busy flows to this hardware from now on.
    pub fn set_offload(&mut self, offload: Arc<dyn Offload>) {
        for (number, state) in &mut self.ports {
            state.has_hardware = offload.add_port(*number, &*state.port);
        }
        self.offload = Some(offload);
    }

    /// Offers a flow with so many packets since the last sweep, unless hardware does the flow already or has refused it.
    pub fn offer(&mut self, ufid: u128, packets: u64) {
        let Some(offload) = self.offload.clone() else { return };
        if !self.flows.get(ufid).is_some_and(|record| self.may_offload(record)) {
            return;
        }
        let Some(record) = self.flows.get_mut(ufid) else { return };
        let handle = record.offload.get_or_insert_with(|| Arc::new(OffloadHandle::new(&self.marks))).clone();
        if handle.is_open() {
            offload.offer(Offer { flow: record.megaflow(ufid), packets, handle });
        }
    }

    /// Whether hardware may do the flow: its packets come from hardware, and no port of it has a rate limit or a capture, which are
    /// the workers' work.
    fn may_offload(&self, record: &Record) -> bool {
        let state = |port| self.ports.get(&port);
        let outputs = record.translation.actions.iter().filter_map(|action| {
            let Action::Output(port) = action else { return None };
            Some(*port)
        });
        state(record.port).is_some_and(|port| port.has_hardware && port.limit == RateLimit::default()) && { outputs }
            .chain([record.port])
            .all(|port| state(port).is_some_and(|port| !port.captured))
    }

    /// Offers a flow whose actions have changed, or takes it back.
    pub(crate) fn offload_changed(&mut self, ufid: u128) {
        let (Some(offload), Some(record)) = (&self.offload, self.flows.get(ufid)) else { return };
        let Some(handle) = record.offload.clone() else { return };
        handle.clear_refusal();
        match handle.is_offloaded() && self.may_offload(record) {
            true => offload.offer(Offer { flow: record.megaflow(ufid), packets: 0, handle }),
            false => offload.withdraw(ufid),
        }
    }

    /// Tells workers the mark of a flow.
    pub(crate) fn send_mark(&self, ufid: u128, workers: WorkerSet) {
        let Some(record) = self.flows.get(ufid).filter(|record| record.marked) else { return };
        if let Some(mark) = record.offload.as_ref().and_then(|handle| handle.mark()) {
            let (key, mask) = (record.key(), record.translation.mask);
            self.send_to(workers.intersection(record.workers), || Message::SetMark(mark, key, mask));
        }
    }

    pub(crate) fn withdraw(&self, ufid: u128, record: &Record) {
        if let (Some(offload), Some(_)) = (&self.offload, &record.offload) {
            offload.withdraw(ufid);
        }
    }

    /// Takes back the flows that hardware may not do any more.
    pub(crate) fn withdraw_watched(&self) {
        for (ufid, record) in self.flows.iter().filter(|(_, record)| !self.may_offload(record)) {
            self.withdraw(ufid, record);
        }
    }
}
