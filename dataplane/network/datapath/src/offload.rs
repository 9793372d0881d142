//! The seam to hardware that does the work of flows.
//!
//! After each sweep the switch offers the flows that saw most; whoever is behind the seam takes what fits, in its own time and on
//! its own thread. A flow stays in the workers' caches all the while, so a packet that the hardware leaves finds it there, and
//! nothing is lost whatever becomes of the hardware. What the hardware counts is added to the flow's statistics.
//!
//! Hardware that cannot do a flow can mark its packets ([`HardwareShare::mark`]): workers are told with the next sweep whose the
//! mark is, and do such packets without looking them up. A mark means the flow that it was given to and never another one: it is in
//! use as long as the switch or the hardware has the flow's [`HardwareShare`], and workers forget it with the flow.

use crate::PortNo;
use crate::datapath::Message;
use crate::limit::RateLimit;
use crate::marks::Marks;
use crate::megaflows::Record;
use crate::state::State;
use clock::Cycles;
use engine::WorkerSet;
use flow::{Action, Megaflow, Stats};
use port::Port;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Hardware that does the work of flows. No call waits for it, but that which takes a port away.
pub trait Offload: Send + Sync {
    /// The switch has this port now. Returns whether flows from it are wanted.
    fn add_port(&self, number: PortNo, port: &dyn Port) -> bool;

    /// The switch has this port no more, nor any flow that leads from or to it. Nothing of the port is held when it returns.
    fn remove_port(&self, number: PortNo);

    /// A flow that is worth it. One that was offered before is to do now what it says here.
    fn offer(&self, offer: Offer);

    /// The flow of this name is to be done by the workers alone.
    fn withdraw(&self, ufid: u128);

    /// Somebody asks for what flows have seen. Returns when all that the hardware has counted by now is in their shares.
    fn refresh(&self) {}

    /// `listener` is to be called when hardware has lost flows ([`HardwareShare::lose`]).
    fn on_loss(&self, _listener: Box<dyn Fn() + Send>) {}
}

/// A flow for the hardware.
#[derive(Clone, Debug)]
pub struct Offer {
    /// What it matches and does.
    pub flow: Megaflow,
    /// What it saw since the last sweep.
    pub packets: u64,
    /// Where the hardware tells what became of it.
    pub share: Arc<HardwareShare>,
}

/// How much of a flow hardware does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placed {
    /// Nothing.
    #[default]
    No,
    /// It marks the flow's packets, and the workers do not look them up.
    Partial,
    /// All: workers do not see the flow's packets. Whoever is behind the seam takes the flow back when it has nothing to do for it,
    /// so it does not age.
    Full,
}

/// What hardware does of one flow. Written by who is behind the seam, read by the switch. There may be a million.
#[derive(Debug)]
pub struct HardwareShare {
    /// A [`Placed`].
    placed: AtomicU8,
    lost: AtomicBool,
    /// 0 before somebody asks for one.
    mark: AtomicU32,
    marks: Arc<Marks>,
    packets: AtomicU64,
    bytes: AtomicU64,
    used: AtomicU64,
    /// Few flows are refused: elsewhere, not to make room for it in each.
    refused: Mutex<Option<Box<Why>>>,
}

const _: () = assert!(size_of::<HardwareShare>() <= 56);

/// Why the hardware cannot do it.
#[derive(Debug)]
struct Why(String);

impl HardwareShare {
    /// Of a flow whose mark, if hardware asks for one, is one of these.
    pub fn new(marks: &Arc<Marks>) -> HardwareShare {
        HardwareShare {
            placed: AtomicU8::new(Placed::No as u8),
            lost: AtomicBool::default(),
            mark: AtomicU32::default(),
            marks: marks.clone(),
            packets: AtomicU64::default(),
            bytes: AtomicU64::default(),
            used: AtomicU64::default(),
            refused: Mutex::default(),
        }
    }

    /// The hardware does so much of it from now on.
    pub fn set_placed(&self, placed: Placed) {
        let before = self.placed.swap(placed as u8, Ordering::AcqRel);
        // Why it was not done as a whole is no reason not to ask again.
        if placed == Placed::Full || placed == Placed::No && before == Placed::Partial as u8 {
            self.ask_again();
        }
    }

    /// The hardware did it, and has lost it. It is offered again at the next sweep, whatever it has seen.
    pub fn lose(&self) {
        self.lost.store(true, Ordering::Release);
        self.set_placed(Placed::No);
    }

    /// The hardware has lost it since this was asked last.
    pub(crate) fn take_loss(&self) -> bool {
        self.lost.load(Ordering::Acquire) && self.lost.swap(false, Ordering::AcqRel)
    }

    /// How much of it the hardware does.
    pub fn placed(&self) -> Placed {
        match self.placed.load(Ordering::Acquire) {
            full if full == Placed::Full as u8 => Placed::Full,
            partial if partial == Placed::Partial as u8 => Placed::Partial,
            _ => Placed::No,
        }
    }

    /// The hardware does it, or part of it.
    pub fn is_placed(&self) -> bool {
        self.placed() != Placed::No
    }

    /// What hardware is to mark the flow's packets with. No other flow has it while anybody has this share. `None` where too many
    /// flows have marks.
    pub fn mark(&self) -> Option<u32> {
        let mark = self.mark.load(Ordering::Acquire);
        if mark != 0 {
            return Some(mark);
        }
        let mark = self.marks.take()?;
        match self.mark.compare_exchange(0, mark, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Some(mark),
            Err(faster) => {
                self.marks.give_back(mark);
                Some(faster)
            }
        }
    }

    /// The hardware cannot do it, or not all of it, and this is why. What it does nothing of is not offered again before it
    /// changes.
    pub fn refuse(&self, why: String) {
        *self.refused.lock().expect("no panic under this lock") = Some(Box::new(Why(why)));
    }

    /// It is another flow by now: the hardware may be asked again.
    fn ask_again(&self) {
        *self.refused.lock().expect("no panic under this lock") = None;
    }

    /// The hardware neither does it nor cannot.
    fn is_open(&self) -> bool {
        !self.is_placed() && self.refused.lock().expect("no panic under this lock").is_none()
    }

    /// Why the hardware cannot do it.
    pub fn refused(&self) -> Option<String> {
        self.refused.lock().expect("no panic under this lock").as_ref().map(|why| why.0.clone())
    }

    /// The hardware saw so many more.
    pub fn add(&self, packets: u64, bytes: u64, now: Cycles) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.used.fetch_max(now.0, Ordering::Relaxed);
    }

    /// All that the hardware saw.
    pub fn stats(&self) -> Stats {
        Stats {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            used: Cycles(self.used.load(Ordering::Relaxed)),
            tcp_flags: 0,
        }
    }
}

impl Default for HardwareShare {
    /// With marks of its own.
    fn default() -> HardwareShare {
        HardwareShare::new(&Arc::default())
    }
}

impl Drop for HardwareShare {
    fn drop(&mut self) {
        if *self.mark.get_mut() != 0 {
            self.marks.give_back(*self.mark.get_mut());
        }
    }
}

impl State {
    pub(crate) fn set_offload(&mut self, offload: Arc<dyn Offload>) {
        for (number, state) in &mut self.ports {
            state.has_hardware = offload.add_port(*number, &*state.port);
        }
        self.offload = Some(offload);
    }

    /// Offers a flow that saw so many packets since the last sweep, unless hardware does it already, or cannot.
    pub(crate) fn offer(&mut self, ufid: u128, packets: u64) {
        let Some(offload) = self.offload.clone() else { return };
        if !self.flows.get(ufid).is_some_and(|record| self.may_leave(record)) {
            return;
        }
        let Some(record) = self.flows.get_mut(ufid) else { return };
        let share = record.hardware.get_or_insert_with(|| Arc::new(HardwareShare::new(&self.marks))).clone();
        if share.is_open() {
            offload.offer(Offer { flow: record.megaflow(ufid), packets, share });
        }
    }

    /// Whether the flow's packets come from hardware, and nothing is done to them but what the flow says: limits and captures are
    /// the workers' work.
    fn may_leave(&self, record: &Record) -> bool {
        let state = |port| self.ports.get(&port);
        let outputs = record.translation.actions.iter().filter_map(|action| match action {
            Action::Output(port) => Some(*port),
            _ => None,
        });
        state(record.port).is_some_and(|port| port.has_hardware && port.limit == RateLimit::default()) && { outputs }
            .chain([record.port])
            .all(|port| state(port).is_some_and(|port| !port.captured))
    }

    /// The flow does something else now.
    pub(crate) fn offload_changed(&mut self, ufid: u128) {
        let (Some(offload), Some(record)) = (&self.offload, self.flows.get(ufid)) else { return };
        let Some(share) = record.hardware.clone() else { return };
        share.ask_again();
        match share.is_placed() && self.may_leave(record) {
            true => offload.offer(Offer { flow: record.megaflow(ufid), packets: 0, share }),
            false => offload.withdraw(ufid),
        }
    }

    /// Tells workers whose the flow's mark is.
    pub(crate) fn tell_mark(&self, ufid: u128, workers: WorkerSet) {
        let Some(record) = self.flows.get(ufid).filter(|record| record.marked) else { return };
        if let Some(mark) = record.hardware.as_ref().and_then(|share| share.mark()) {
            let (key, mask) = (record.key(), record.translation.mask);
            self.tell(workers.intersection(record.workers), || Message::SetMark(mark, key, mask));
        }
    }

    pub(crate) fn withdraw(&self, ufid: u128, record: &Record) {
        if let (Some(offload), Some(_)) = (&self.offload, &record.hardware) {
            offload.withdraw(ufid);
        }
    }

    /// Takes back the flows that the workers have to see, by now.
    pub(crate) fn withdraw_watched(&self) {
        for (ufid, record) in self.flows.iter().filter(|(_, record)| !self.may_leave(record)) {
            self.withdraw(ufid, record);
        }
    }
}
