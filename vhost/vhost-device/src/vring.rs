//! A ring with its descriptors for kick, call and error.

use crate::Fault;
use crossbeam::channel;
use guest_memory::{DirtyLog, GuestAddress, GuestMemory};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use vhost_user::RingStart;
use virtqueue::{DescriptorChain, RingSetup, Virtqueue};

/// A queue of a device: a [`Vring`] and what the device does with it.
pub trait Queue: Send + 'static {
    /// The ring.
    fn vring(&self) -> &Vring;

    /// The ring.
    fn vring_mut(&mut self) -> &mut Vring;

    /// Chains that somebody works on beyond the worker's turn. The queue leaves its worker when there are none.
    fn in_flight(&self) -> usize {
        0
    }

    /// Goes on in another memory table; `fresh` hears when nothing in flight lies in the old one.
    fn set_memory(&mut self, memory: Arc<GuestMemory>, fresh: channel::Sender<()>) -> Result<(), Fault> {
        self.vring_mut().ring.relocate(memory)?;
        let _nobody_waits_any_more = fresh.send(());
        Ok(())
    }
}

/// A ring, as its worker serves it.
#[derive(Debug)]
pub struct Vring {
    /// Which of the device's queues.
    pub index: u16,
    /// The front-end has enabled it.
    pub enabled: bool,
    /// The ring.
    pub ring: Virtqueue,
    /// What was popped last.
    pub chain: DescriptorChain,
    size: u16,
    packed: bool,
    kick: Option<File>,
    call: Option<File>,
    err: Option<File>,
    /// The driver is told of what was used before it looked.
    call_once: bool,
}

impl Vring {
    /// A ring that the front-end starts.
    pub fn new(start: RingStart) -> Result<Vring, Fault> {
        let RingStart { index, setup, memory, log, enabled, kick, call, err } = start;
        let mut vring = Vring::without_descriptors(index, memory, &setup)?;
        vring.ring.set_log(log);
        vring.enabled = enabled;
        (vring.kick, vring.call, vring.err) = (kick.map(File::from), call.map(File::from), err.map(File::from));
        Ok(vring)
    }

    /// A ring that is polled on both sides: for tests, and for benchmarks of a path alone. Not enabled.
    pub fn without_descriptors(index: u16, memory: Arc<GuestMemory>, setup: &RingSetup) -> Result<Vring, Fault> {
        Ok(Vring {
            index,
            enabled: false,
            ring: Virtqueue::new(memory, setup)?,
            chain: Virtqueue::chain(setup.size),
            size: setup.size,
            packed: setup.packed(),
            kick: None,
            call: None,
            err: None,
            call_once: true,
        })
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Packed layout.
    pub fn is_packed(&self) -> bool {
        self.packed
    }

    /// Publishes what was completed and calls the driver if it wants to be called.
    #[inline]
    pub fn flush(&mut self) {
        let wanted = self.ring.flush();
        if wanted || std::mem::take(&mut self.call_once) {
            signal(&mut self.call);
        }
    }

    /// Asks for kicks. Returns whether the worker must not sleep: something is there, or nobody would kick.
    pub fn arm(&mut self) -> bool {
        // An error shows again at the next pop, which reports it. Arming touches the ring: memory that is found lost here is
        // reported at the next quiescent point, before any sleep.
        self.ring.arm().unwrap_or(true) || self.kick.is_none() || self.memory_is_lost()
    }

    /// The file behind the ring's memory was truncated.
    pub(crate) fn memory_is_lost(&self) -> bool {
        self.ring.memory().is_truncated()
    }

    /// A second descriptor for the kick.
    pub(crate) fn copy_kick(&self) -> std::io::Result<Option<OwnedFd>> {
        self.kick.as_ref().map(|kick| kick.as_fd().try_clone_to_owned()).transpose()
    }

    pub(crate) fn set_kick(&mut self, kick: Option<File>) -> Option<File> {
        std::mem::replace(&mut self.kick, kick)
    }

    pub(crate) fn set_call(&mut self, call: Option<File>) -> Option<File> {
        self.call_once = true;
        std::mem::replace(&mut self.call, call)
    }

    pub(crate) fn set_err(&mut self, err: Option<File>) -> Option<File> {
        std::mem::replace(&mut self.err, err)
    }

    pub(crate) fn set_log(&mut self, log: Option<DirtyLog>) {
        self.ring.set_log(log);
    }

    pub(crate) fn set_used_log(&mut self, address: Option<GuestAddress>) {
        self.ring.set_used_log(address);
    }

    /// Tells the front-end that the ring is broken.
    pub(crate) fn report_broken(&mut self) {
        signal(&mut self.err);
    }
}

/// Rings a front-end's bell. It does not block: the session has made the descriptor non-blocking. When it is full, the front-end
/// has not heard the last ring yet.
#[inline]
fn signal(bell: &mut Option<File>) {
    if let Some(bell) = bell {
        let _heard_or_full = bell.write(&1_u64.to_ne_bytes());
    }
}
