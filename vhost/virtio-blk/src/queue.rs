//! One queue of a disk, as its shard serves it.

use crate::request::{Parsed, parse};
use crate::{DeviceFault, SEG_MAX};
use block::{BlockChannel, BlockRequest, Completed, Completions, Geometry, Request, Status};
use clock::Cycles;
use crossbeam::channel;
use guest_memory::{GuestAddress, GuestMemory};
use memory::IoBuffers;
use std::sync::Arc;
use vhost_device::{DeviceQueue, Vring};
use virtio_spec::blk::{ID_LEN, status};
use virtqueue::{ChainToken, DescriptorChain, Layout, Ring, Virtqueue};

/// Chains that one queue may take in a turn, so that no queue starves another.
const BURST: usize = 32;

/// Requests that one queue has at the backend at a time, however large its ring: what they hold in memory is bounded.
const MAX_IN_FLIGHT: u16 = 256;

/// A chain whose request the backend has: what is needed when the request comes back.
#[derive(Clone, Copy, Debug, Default)]
struct InFlightChain {
    token: ChainToken,
    status_at: GuestAddress,
    written: u32,
}

/// A queue. Made on a control thread, served by one shard, taken back drained.
pub(crate) struct BlkQueue {
    pub(crate) vring: Vring,
    requests: Requests,
}

/// The requests of a queue.
#[allow(clippy::vec_box)] // a request goes into the channel and comes back as one pointer
struct Requests {
    /// By request: the chain in flight.
    chains: Vec<InFlightChain>,
    /// Requests at rest, all in the ring's memory.
    pool: Vec<Box<Request>>,
    /// Requests in flight in memory that is not the ring's any more, and the channel to report their end on.
    old_mapping_in_flight: usize,
    on_drained: Option<channel::Sender<()>>,
}

/// The part of a disk that its queues read.
pub(crate) struct DeviceView<'a> {
    pub(crate) geometry: &'a Geometry,
    pub(crate) id: &'a [u8; ID_LEN],
}

impl BlkQueue {
    pub(crate) fn new(vring: Vring) -> BlkQueue {
        let count = vring.size().min(MAX_IN_FLIGHT);
        let request = |index: u16| {
            let mut request = Request::new(IoBuffers::new(vring.ring.memory().clone(), SEG_MAX as usize));
            request.owner = u64::from(vring.index) << 32 | u64::from(index);
            request
        };
        let pool = (0..count).rev().map(request).collect();
        let chains = vec![InFlightChain::default(); usize::from(count)];
        BlkQueue { vring, requests: Requests { chains, pool, old_mapping_in_flight: 0, on_drained: None } }
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
    ) -> Result<usize, DeviceFault> {
        let Vring { ring, chain, .. } = &mut self.vring;
        match ring {
            Virtqueue::Split(ring) => self.requests.take(ring, chain, device, channel, now, done),
            Virtqueue::Packed(ring) => self.requests.take(ring, chain, device, channel, now, done),
        }
    }

    /// Gives the chain of a request back that came back from the backend.
    #[inline]
    pub(crate) fn complete(&mut self, completed: Completed) -> Result<(), DeviceFault> {
        match &mut self.vring.ring {
            Virtqueue::Split(ring) => self.requests.complete(ring, completed),
            Virtqueue::Packed(ring) => self.requests.complete(ring, completed),
        }
    }

    /// Publishes what was completed and notifies the driver if it wants that.
    #[inline]
    pub(crate) fn flush(&mut self) {
        self.vring.flush();
        if self.requests.old_mapping_in_flight == 0
            && let Some(waiter) = self.requests.on_drained.take()
        {
            let _ = waiter.send(()); // The session may not wait any more.
        }
    }

    /// Asks for kicks. Returns whether the worker must not sleep.
    pub(crate) fn arm(&mut self) -> bool {
        // Without a request at rest nothing could be taken: a completion will wake the worker.
        self.vring.enabled && !self.requests.pool.is_empty() && self.vring.arm()
    }

    pub(crate) fn disarm(&mut self) {
        if self.vring.enabled {
            self.vring.ring.disarm();
        }
    }
}

impl Requests {
    /// Takes chains from `ring`, at most a burst, and submits their requests.
    #[inline(always)]
    fn take<L: Layout>(
        &mut self,
        ring: &mut Ring<L>,
        chain: &mut DescriptorChain,
        device: &DeviceView<'_>,
        channel: &mut dyn BlockChannel,
        now: Cycles,
        done: &mut Completions,
    ) -> Result<usize, DeviceFault> {
        for taken in 0..BURST {
            let Some(mut request) = self.pool.pop() else { return Ok(taken) };
            match ring.pop(chain) {
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
            let outcome = match parse(chain, ring.memory(), device.geometry, &mut request) {
                Ok(outcome) => outcome,
                Err(fault) => {
                    self.pool.push(request);
                    return Err(fault);
                }
            };
            let in_flight =
                InFlightChain { token: chain.token(), status_at: outcome.status_at, written: outcome.written };
            match outcome.parsed {
                Parsed::Submit => {
                    self.chains[request.owner as u32 as usize] = in_flight;
                    request.submitted = now;
                    channel.submit(BlockRequest::new(request), done);
                }
                Parsed::GetId => {
                    let len = u64::from(outcome.written) - 1;
                    request.buffers.write(0, &device.id[..len as usize]).expect("the buffers have that many bytes");
                    self.give_back(ring, request, in_flight, status::OK, len)?;
                }
                Parsed::Answer(code) => self.give_back(ring, request, in_flight, code, 0)?,
            }
        }
        Ok(BURST)
    }

    #[inline(always)]
    fn complete<L: Layout>(
        &mut self,
        ring: &mut Ring<L>,
        Completed { request, status }: Completed,
    ) -> Result<(), DeviceFault> {
        let chain = self.chains[request.owner as u32 as usize];
        let code = match status {
            Status::Ok => status::OK,
            Status::Unsupported => status::UNSUPP,
            Status::IoError | Status::NoSpace | Status::Miscompare => status::IOERR,
        };
        // A failed read may have filled part of its buffers.
        let dirty = u64::from(chain.written) - 1;
        self.give_back(ring, request, chain, code, dirty)
    }

    /// Answers a request, of whose buffers the first `dirty` bytes were written, and gives its chain back.
    #[inline]
    fn give_back<L: Layout>(
        &mut self,
        ring: &mut Ring<L>,
        mut request: Box<Request>,
        chain: InFlightChain,
        code: u8,
        dirty: u64,
    ) -> Result<(), DeviceFault> {
        let memory = ring.memory();
        let written = if self.old_mapping_in_flight > 0 && !request.buffers.is_owned_by(memory) {
            self.old_mapping_in_flight -= 1;
            let old = request.buffers.owner().downcast_ref::<GuestMemory>().expect("requests lie in guest memory");
            old.write(chain.status_at, &[code])
        } else {
            memory.write(chain.status_at, &[code])
        };
        if let Some(log) = ring.log() {
            log.mark_buffers(&request.buffers, dirty);
            log.mark(chain.status_at, 1);
        }
        request.buffers.reset(memory);
        self.pool.push(request);
        ring.complete(chain.token, if code == status::OK { chain.written } else { 1 });
        Ok(written?)
    }
}

impl DeviceQueue for BlkQueue {
    fn vring(&self) -> &Vring {
        &self.vring
    }

    fn vring_mut(&mut self) -> &mut Vring {
        &mut self.vring
    }

    /// Requests that the backend has. A chain that could not even be parsed does not count: no backend has it.
    fn in_flight(&self) -> usize {
        self.requests.chains.len() - self.requests.pool.len()
    }

    fn set_memory(&mut self, memory: Arc<GuestMemory>, drained: channel::Sender<()>) -> Result<(), DeviceFault> {
        self.vring.ring.relocate(memory)?;
        self.requests.pool.iter_mut().for_each(|request| request.buffers.reset(self.vring.ring.memory()));
        self.requests.old_mapping_in_flight = self.in_flight();
        self.requests.on_drained = Some(drained);
        Ok(())
    }
}
