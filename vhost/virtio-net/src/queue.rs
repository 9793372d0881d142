//! A ring of a network device.

use arrayvec::ArrayVec;
use guest_memory::{GuestMemory, Span};
use packet::BURST;
use std::ops::RangeInclusive;
use vhost_device::{DeviceFault, DeviceQueue, Vring};
use vhost_user::RingStart;
use virtio_spec::net::{HEADER_LEN, LEGACY_HEADER_LEN, feature as net};
use virtio_spec::{feature, ring};
use virtqueue::{ChainToken, RingSetup, SingleBufferChain};

/// Where the used index stands in a split ring's device area (virtio 1.3, 2.7.8).
const USED_IDX: usize = 2;

/// A ring: the guest's receive ring where the index is even, else its transmit ring.
pub(crate) struct NetQueue {
    pub(crate) vring: Vring,
    /// Negotiated virtio features.
    features: u64,
    pub(crate) header_len: usize,
    /// A batch of chains of one buffer.
    pub(crate) singles: [SingleBufferChain; BURST],
    /// Receive buffers of one packet that is being sent, with the bytes written.
    pub(crate) taken: Vec<(ChainToken, u32)>,
}

impl NetQueue {
    pub(crate) fn new(mut start: RingStart) -> Result<NetQueue, DeviceFault> {
        let region = start.setup.inflight.take();
        if region.is_none() || !start.setup.packed() {
            start.setup.base = base(&start);
        }
        let setup = start.setup.clone();
        let mut vring = Vring::new(start)?;
        region.map_or(Ok(()), |region| vring.ring.persist_ring_position(region))?;
        Ok(NetQueue::around(vring, &setup))
    }

    pub(crate) fn around(mut vring: Vring, setup: &RingSetup) -> NetQueue {
        let features = setup.features;
        let header_len = match features & (feature::VERSION_1 | net::MRG_RXBUF) {
            0 => LEGACY_HEADER_LEN,
            _ => HEADER_LEN,
        };
        // Until the worker sleeps it polls; kicks on a receive ring are never needed.
        vring.ring.disarm();
        let taken = Vec::with_capacity(usize::from(setup.size));
        NetQueue { vring, features, header_len, singles: [SingleBufferChain::default(); BURST], taken }
    }

    /// Whether this is a receive ring of the guest, where packets for it go.
    #[inline(always)]
    pub(crate) fn is_guest_rx(&self) -> bool {
        self.vring.index.is_multiple_of(2)
    }

    /// The queue pair that the ring belongs to.
    #[inline(always)]
    pub(crate) fn pair(&self) -> usize {
        usize::from(self.vring.index / 2)
    }

    #[inline(always)]
    pub(crate) fn has(&self, feature: u64) -> bool {
        self.features & feature == feature
    }
}

impl DeviceQueue for NetQueue {
    fn vring(&self) -> &Vring {
        &self.vring
    }

    fn vring_mut(&mut self) -> &mut Vring {
        &mut self.vring
    }
}

/// Where the buffers of a batch are, on their way into the cache: of those that come first and are each in one region and of such a
/// length.
#[inline(always)]
pub(crate) fn spans<'a>(
    memory: &'a GuestMemory,
    singles: &[SingleBufferChain],
    lengths: RangeInclusive<usize>,
) -> ArrayVec<Span<'a>, BURST> {
    let span = |SingleBufferChain { buffer, .. }: &SingleBufferChain| {
        let len = buffer.len as usize;
        memory.in_one_region(buffer.address, len).filter(|_| lengths.contains(&len)).inspect(Span::prefetch)
    };
    singles.iter().map_while(span).collect()
}

/// Where to go on without an inflight region. A ring is drained whenever it stops, so what was used is what was taken; and after a
/// death of this process only the ring itself is right. A packed ring may not tell: there the front-end must know.
fn base(start: &RingStart) -> u32 {
    let setup = &start.setup;
    if setup.packed() {
        return virtqueue::packed_base(&start.memory, setup).ok().flatten().unwrap_or(setup.base);
    }
    let used = start.memory.user_window(setup.addresses.device, ring::used_len(setup.size), 4);
    used.map_or(setup.base, |used| u32::from(used.load_u16(USED_IDX, std::sync::atomic::Ordering::Acquire)))
}
