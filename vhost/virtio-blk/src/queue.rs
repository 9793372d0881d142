//! One queue of a disk, as its shard serves it.

use crate::request::{Outcome, Parsed, parse};
use crate::{Fault, SEG_MAX};
use block::{BlockChannel, BlockRequest, Completed, Completions, Geometry, Request, Status};
use clock::Cycles;
use crossbeam::channel;
use guest_memory::{DirtyLog, GuestAddress, GuestMemory, IoBuffers};
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use virtio_spec::blk::{ID_LEN, status};
use virtqueue::{Chain, Setup, Token, Virtqueue};

/// Chains that one queue may take in a turn, so that no queue starves another.
const BURST: usize = 32;

/// Requests that one queue has at the backend at a time, however large its ring: what they hold in memory is bounded.
const MAX_IN_FLIGHT: u16 = 256;

/// What a chain needs when its request comes back.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    token: Token,
    status_at: GuestAddress,
    written: u32,
}

/// A queue. Made on a control thread, served by one shard, taken back drained.
#[allow(clippy::vec_box)] // a request goes into the channel and comes back as one pointer
pub(crate) struct BlkQueue {
    pub(crate) index: u16,
    pub(crate) enabled: bool,
    ring: Virtqueue,
    chain: Chain,
    /// By request.
    slots: Vec<Slot>,
    /// Requests at rest, all in the ring's memory.
    pool: Vec<Box<Request>>,
    pub(crate) kick: Option<File>,
    pub(crate) call: Option<File>,
    pub(crate) err: Option<File>,
    /// Requests in flight in memory that is not the ring's any more, and who waits for their end.
    stale: usize,
    on_fresh: Option<channel::Sender<()>>,
    /// Who waits for the queue: it takes nothing more and leaves when drained.
    pub(crate) leaving: Option<channel::Sender<Box<BlkQueue>>>,
    /// The driver is told of what was used before it looked.
    call_once: bool,
}

/// What a queue needs to know of its device.
pub(crate) struct DeviceView<'a> {
    pub(crate) geometry: &'a Geometry,
    pub(crate) id: &'a [u8; ID_LEN],
}

impl BlkQueue {
    pub(crate) fn new(index: u16, memory: Arc<GuestMemory>, setup: &Setup) -> Result<BlkQueue, Fault> {
        let ring = Virtqueue::new(memory.clone(), setup)?;
        let requests = setup.size.min(MAX_IN_FLIGHT);
        let request = |slot: u16| {
            let mut request = Request::new(IoBuffers::new(memory.clone(), SEG_MAX as usize));
            request.owner = u64::from(index) << 32 | u64::from(slot);
            request
        };
        Ok(BlkQueue {
            index,
            enabled: false,
            ring,
            chain: Virtqueue::chain(setup.size),
            slots: vec![Slot::default(); usize::from(requests)],
            pool: (0..requests).rev().map(request).collect(),
            kick: None,
            call: None,
            err: None,
            stale: 0,
            on_fresh: None,
            leaving: None,
            call_once: true,
        })
    }

    /// Which queue a request belongs to.
    #[inline(always)]
    pub(crate) fn of(request: &Request) -> u16 {
        (request.owner >> 32) as u16
    }

    /// Takes what is available, at most a burst, and submits it.
    #[inline]
    pub(crate) fn take(
        &mut self,
        device: &DeviceView<'_>,
        channel: &mut dyn BlockChannel,
        now: Cycles,
        done: &mut Completions,
    ) -> Result<usize, Fault> {
        for taken in 0..BURST {
            let Some(mut request) = self.pool.pop() else { return Ok(taken) };
            match self.ring.pop(&mut self.chain) {
                Ok(true) => {}
                Ok(false) => {
                    self.pool.push(request);
                    return Ok(taken);
                }
                Err(error) => {
                    self.pool.push(request);
                    return Err(error.into());
                }
            }
            let outcome = match parse(&self.chain, device.geometry, &mut request) {
                Ok(outcome) => outcome,
                Err(fault) => {
                    self.pool.push(request);
                    return Err(fault);
                }
            };
            let token = self.chain.token();
            match outcome.parsed {
                Parsed::Submit => {
                    self.slots[request.owner as u32 as usize] =
                        Slot { token, status_at: outcome.status_at, written: outcome.written };
                    request.submitted = now;
                    channel.submit(BlockRequest::new(request), done);
                }
                Parsed::GetId => {
                    let len = u64::from(outcome.written) - 1;
                    request.buffers.write(0, &device.id[..len as usize]).expect("the buffers have that many bytes");
                    self.answer(request, token, &outcome, status::OK, len)?;
                }
                Parsed::Answer(code) => self.answer(request, token, &outcome, code, 0)?,
            }
        }
        Ok(BURST)
    }

    /// Gives an answer that needs no backend.
    fn answer(&mut self, request: Box<Request>, token: Token, of: &Outcome, code: u8, dirty: u64) -> Result<(), Fault> {
        self.give_back(request, Slot { token, status_at: of.status_at, written: of.written }, code, dirty)
    }

    /// A request came back from the backend.
    #[inline]
    pub(crate) fn complete(&mut self, Completed { request, status }: Completed) -> Result<(), Fault> {
        let slot = self.slots[request.owner as u32 as usize];
        let code = match status {
            Status::Ok => status::OK,
            Status::Unsupported => status::UNSUPP,
            Status::IoError | Status::NoSpace | Status::Miscompare => status::IOERR,
        };
        // A failed read may have filled part of its buffers.
        let dirty = u64::from(slot.written) - 1;
        self.give_back(request, slot, code, dirty)
    }

    #[inline]
    fn give_back(&mut self, mut request: Box<Request>, slot: Slot, code: u8, dirty: u64) -> Result<(), Fault> {
        let memory = request.buffers.memory();
        let written = memory.write(slot.status_at, &[code]);
        if let Some(log) = self.ring.log() {
            request.buffers.mark_dirty(log, dirty);
            log.mark(slot.status_at, 1);
        }
        if self.stale > 0 && !Arc::ptr_eq(memory, self.ring.memory()) {
            self.stale -= 1;
        }
        request.buffers.reset(self.ring.memory());
        self.pool.push(request);
        self.ring.complete(slot.token, if code == status::OK { slot.written } else { 1 });
        Ok(written?)
    }

    /// Publishes what was completed and calls the driver if it wants to be called.
    #[inline]
    pub(crate) fn flush(&mut self) {
        let wanted = self.ring.flush();
        if wanted || std::mem::take(&mut self.call_once) {
            signal(&mut self.call);
        }
        if self.stale == 0
            && let Some(waiter) = self.on_fresh.take()
        {
            let _nobody_waits_any_more = waiter.send(());
        }
    }

    /// Asks for kicks. Returns whether the worker must not sleep: something is there, or nobody would kick.
    pub(crate) fn arm(&mut self) -> bool {
        // Without a request at rest nothing could be taken: a completion will wake the worker.
        if !self.enabled || self.leaving.is_some() || self.pool.is_empty() {
            return false;
        }
        // An error shows again at the next take, which reports it.
        self.ring.arm().unwrap_or(true) || self.kick.is_none()
    }

    pub(crate) fn disarm(&mut self) {
        if self.enabled {
            self.ring.disarm();
        }
    }

    /// Requests that the backend has. A chain that could not even be parsed does not count: nobody works on it.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.pool.len()
    }

    pub(crate) fn base(&self) -> u32 {
        self.ring.base()
    }

    pub(crate) fn memory_is_lost(&self) -> bool {
        self.ring.memory().is_truncated()
    }

    /// Goes on in another memory table; `fresh` hears when nothing is in flight in the old one.
    pub(crate) fn set_memory(&mut self, memory: Arc<GuestMemory>, fresh: channel::Sender<()>) -> Result<(), Fault> {
        self.ring.relocate(memory)?;
        self.pool.iter_mut().for_each(|request| request.buffers.reset(self.ring.memory()));
        self.stale = self.in_flight();
        self.on_fresh = Some(fresh);
        Ok(())
    }

    pub(crate) fn set_log(&mut self, log: Option<DirtyLog>) {
        self.ring.set_log(log);
    }

    pub(crate) fn set_used_log(&mut self, address: Option<GuestAddress>) {
        self.ring.set_used_log(address);
    }

    pub(crate) fn set_call(&mut self, call: Option<File>) -> Option<File> {
        self.call_once = true;
        std::mem::replace(&mut self.call, call)
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
