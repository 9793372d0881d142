//! One queue of a disk, as its shard serves it.

use crate::request::{Outcome, Parsed, parse};
use crate::{Fault, SEG_MAX};
use block::{BlockChannel, BlockRequest, Completed, Completions, Geometry, Request, Status};
use clock::Cycles;
use crossbeam::channel;
use guest_memory::{GuestAddress, GuestMemory};
use memory::IoBuffers;
use std::sync::Arc;
use vhost_device::{Queue, Vring};
use virtio_spec::blk::{ID_LEN, status};
use virtqueue::ChainToken;

/// Chains that one queue may take in a turn, so that no queue starves another.
const BURST: usize = 32;

/// Requests that one queue has at the backend at a time, however large its ring: what they hold in memory is bounded.
const MAX_IN_FLIGHT: u16 = 256;

/// What a chain needs when its request comes back.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    token: ChainToken,
    status_at: GuestAddress,
    written: u32,
}

/// A queue. Made on a control thread, served by one shard, taken back drained.
#[allow(clippy::vec_box)] // a request goes into the channel and comes back as one pointer
pub(crate) struct BlkQueue {
    pub(crate) vring: Vring,
    /// By request.
    slots: Vec<Slot>,
    /// Requests at rest, all in the ring's memory.
    pool: Vec<Box<Request>>,
    /// Requests in flight in memory that is not the ring's any more, and who waits for their end.
    stale: usize,
    on_fresh: Option<channel::Sender<()>>,
}

/// What a queue needs to know of its device.
pub(crate) struct DeviceView<'a> {
    pub(crate) geometry: &'a Geometry,
    pub(crate) id: &'a [u8; ID_LEN],
}

impl BlkQueue {
    pub(crate) fn new(vring: Vring) -> BlkQueue {
        let requests = vring.size().min(MAX_IN_FLIGHT);
        let request = |slot: u16| {
            let mut request = Request::new(IoBuffers::new(vring.ring.memory().clone(), SEG_MAX as usize));
            request.owner = u64::from(vring.index) << 32 | u64::from(slot);
            request
        };
        let pool = (0..requests).rev().map(request).collect();
        BlkQueue { vring, slots: vec![Slot::default(); usize::from(requests)], pool, stale: 0, on_fresh: None }
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
            match self.vring.ring.pop(&mut self.vring.chain) {
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
            let outcome = match parse(&self.vring.chain, self.vring.ring.memory(), device.geometry, &mut request) {
                Ok(outcome) => outcome,
                Err(fault) => {
                    self.pool.push(request);
                    return Err(fault);
                }
            };
            let token = self.vring.chain.token();
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
    fn answer(&mut self, request: Box<Request>, token: ChainToken, of: &Outcome, code: u8, dirty: u64) -> Result<(), Fault> {
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
        let memory = self.vring.ring.memory();
        let written = if self.stale > 0 && !request.buffers.is_owned_by(memory) {
            self.stale -= 1;
            let old = request.buffers.owner().downcast_ref::<GuestMemory>().expect("requests lie in guest memory");
            old.write(slot.status_at, &[code])
        } else {
            memory.write(slot.status_at, &[code])
        };
        if let Some(log) = self.vring.ring.log() {
            log.mark_buffers(&request.buffers, dirty);
            log.mark(slot.status_at, 1);
        }
        request.buffers.reset(memory);
        self.pool.push(request);
        self.vring.ring.complete(slot.token, if code == status::OK { slot.written } else { 1 });
        Ok(written?)
    }

    /// Publishes what was completed and calls the driver if it wants to be called.
    #[inline]
    pub(crate) fn flush(&mut self) {
        self.vring.flush();
        if self.stale == 0
            && let Some(waiter) = self.on_fresh.take()
        {
            let _nobody_waits_any_more = waiter.send(());
        }
    }

    /// Asks for kicks. Returns whether the worker must not sleep.
    pub(crate) fn arm(&mut self) -> bool {
        // Without a request at rest nothing could be taken: a completion will wake the worker.
        self.vring.enabled && !self.pool.is_empty() && self.vring.arm()
    }

    pub(crate) fn disarm(&mut self) {
        if self.vring.enabled {
            self.vring.ring.disarm();
        }
    }
}

impl Queue for BlkQueue {
    fn vring(&self) -> &Vring {
        &self.vring
    }

    fn vring_mut(&mut self) -> &mut Vring {
        &mut self.vring
    }

    /// Requests that the backend has. A chain that could not even be parsed does not count: nobody works on it.
    fn in_flight(&self) -> usize {
        self.slots.len() - self.pool.len()
    }

    fn set_memory(&mut self, memory: Arc<GuestMemory>, fresh: channel::Sender<()>) -> Result<(), Fault> {
        self.vring.ring.relocate(memory)?;
        self.pool.iter_mut().for_each(|request| request.buffers.reset(self.vring.ring.memory()));
        self.stale = self.in_flight();
        self.on_fresh = Some(fresh);
        Ok(())
    }
}
