//! A ring with its descriptors for kick, call and error.

use crate::DeviceFault;
use crossbeam::channel;
use guest_memory::{DirtyLog, GuestAddress, GuestMemory};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use vhost_user::RingStart;
use virtqueue::{DescriptorChain, RingSetup, Virtqueue};

/// A queue of a device: a [`Vring`] and what the device does with it.
pub trait DeviceQueue: Send + 'static {
    /// The ring.
    fn vring(&self) -> &Vring;

    /// The ring.
    fn vring_mut(&mut self) -> &mut Vring;

    /// Chains that a backend works on beyond the worker's turn. The queue leaves its worker when there are none.
    fn in_flight(&self) -> usize {
        0
    }

    /// Goes on in another memory table; `drained` is told when nothing in flight lies in the old
    /// one.
    fn set_memory(&mut self, memory: Arc<GuestMemory>, drained: channel::Sender<()>) -> Result<(), DeviceFault> {
        self.vring_mut().ring.relocate(memory)?;
        let _ = drained.send(()); // The session may not wait any more.
        Ok(())
    }
}

/// A ring, as its worker serves it.
#[derive(Debug)]
pub struct Vring {
    /// The queue's index in the device.
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
    /// The driver is to be notified of what was used before its call descriptor was set.
    notify_pending: bool,
}

impl Vring {
    /// A ring that the front-end starts.
    pub fn new(start: RingStart) -> Result<Vring, DeviceFault> {
        let RingStart { index, setup, memory, log, enabled, kick, call, err } = start;
        let mut vring = Vring::without_descriptors(index, memory, &setup)?;
        vring.ring.set_log(log);
        vring.enabled = enabled;
        vring.kick = kick.map(File::from);
        vring.call = call.map(File::from);
        vring.err = err.map(File::from);
        Ok(vring)
    }

    /// A ring that is polled on both sides: for tests, and for benchmarks of a path alone. Not enabled.
    pub fn without_descriptors(index: u16, memory: Arc<GuestMemory>, setup: &RingSetup) -> Result<Vring, DeviceFault> {
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
            notify_pending: true,
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

    /// Publishes what was completed and notifies the driver if it wants that.
    #[inline]
    pub fn flush(&mut self) {
        let wanted = self.ring.flush();
        if wanted || std::mem::take(&mut self.notify_pending) {
            signal(&mut self.call);
        }
    }

    /// Asks for kicks. Returns whether the worker must not sleep: something is there, or no kick would come.
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
        self.notify_pending = true;
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

/// Signals a front-end's eventfd, which the session has made non-blocking. A full one has signals that were not read yet.
#[inline]
fn signal(event_fd: &mut Option<File>) {
    if let Some(event_fd) = event_fd {
        let _ = event_fd.write(&1_u64.to_ne_bytes()); // Full is as good as written.
    }
}
