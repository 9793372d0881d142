//! What a device is to the protocol.

use guest_memory::{DirtyLog, GuestAddress, GuestMemory};
use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use virtqueue::RingSetup;

/// A device behind a session. All calls come from the session's thread, one at a time; they may wait for workers.
///
/// Order that the session keeps: a ring is started, changed, stopped; changes of a ring come only while it is started, and
/// [`Change::SetMemory`] and [`Change::SetLog`] only while some ring is. Queue indices are below [`Properties::queues`].
/// When a connection ends, every started ring is stopped and then [`Change::Reset`] applied.
pub trait Backend: Send {
    /// What the device offers. Read at the start of each session.
    fn properties(&self) -> Properties;

    /// Copies configuration space from `offset`. A range that is not wholly inside is refused.
    fn read_config(&self, offset: u32, bytes: &mut [u8]) -> Result<(), Refusal>;

    /// Writes configuration space. `flags` as SET_CONFIG has them: 0 the guest writes, 1 live migration.
    fn write_config(&mut self, offset: u32, bytes: &[u8], flags: u32) -> Result<(), Refusal>;

    /// Applies one change; returns when the workers have taken it. A refused change has changed nothing.
    fn apply(&mut self, change: Change) -> Result<(), Refusal>;

    /// Stops a ring (GET_VRING_BASE): drained, no guest write and no notification afterwards. Returns the base to go on from,
    /// as [`RingSetup::base`] has it. A refusal says why it did not end cleanly; the ring counts as stopped all the same.
    fn stop_ring(&mut self, index: u16) -> Result<u32, Refusal>;
}

/// What a device offers.
#[derive(Clone, Copy, Debug)]
pub struct Properties {
    /// Virtio feature bits. The session adds VHOST_USER_PROTOCOL_FEATURES and VHOST_LOG_ALL.
    pub features: u64,
    /// Those [protocol features](crate::protocol_feature) that need the device's part: CONFIG, INFLIGHT_SHMFD, RARP, NET_MTU.
    /// Others are the session's own business and are ignored here.
    pub protocol_features: u64,
    /// Queues, 1 to [`MAX_QUEUES`](crate::MAX_QUEUES).
    pub queues: u16,
    /// Largest ring, at most 32,768.
    pub max_queue_size: u16,
}

/// One change of the device's state.
#[derive(Debug)]
pub enum Change {
    /// Starts a ring: the only message that makes one.
    StartRing(RingStart),
    /// SET_VRING_ENABLE. A disabled block ring takes nothing; a disabled net ring discards TX and takes no RX buffers.
    EnableRing {
        /// Queue.
        index: u16,
        /// New state.
        enabled: bool,
    },
    /// SET_VRING_KICK with another descriptor. `None`: the ring is to be polled.
    SetKick {
        /// Queue.
        index: u16,
        /// Readable when the driver made buffers available.
        fd: Option<OwnedFd>,
    },
    /// SET_VRING_CALL. `None`: the driver polls. The device gives one call on every new descriptor, as one may have been lost.
    /// An eventfd, blocking or not as the front-end has it, or a pipe or socket that does not block.
    SetCall {
        /// Queue.
        index: u16,
        /// Written when buffers were used.
        fd: Option<OwnedFd>,
    },
    /// SET_VRING_ERR.
    SetErr {
        /// Queue.
        index: u16,
        /// Written when the ring is broken.
        fd: Option<OwnedFd>,
    },
    /// SET_VRING_ADDR that changes only where writes to the used ring are logged (VHOST_VRING_F_LOG).
    SetUsedLog {
        /// Queue.
        index: u16,
        /// Log address of the used ring's first byte.
        address: Option<GuestAddress>,
    },
    /// A new memory table. Started rings move to the same user addresses in it. Returns when every worker has published it
    /// **and** no request in flight uses the old one. The session keeps the mappings of the old table until nothing else does,
    /// so a worker never unmaps.
    SetMemory(Arc<GuestMemory>),
    /// The dirty log was switched on, off or replaced on live rings. Returns when every worker uses the new one.
    SetLog(Option<DirtyLog>),
    /// SEND_RARP: broadcast a RARP for this address. Only with RARP in [`Properties::protocol_features`].
    SendRarp {
        /// The guest's address.
        mac: [u8; 6],
    },
    /// NET_SET_MTU. Only with NET_MTU in [`Properties::protocol_features`].
    SetMtu(u16),
    /// RESET_DEVICE, status 0 or the connection's end: the device is as it was made. All rings are stopped already.
    Reset,
}

/// All that a device needs to start a ring.
#[derive(Debug)]
pub struct RingStart {
    /// Queue.
    pub index: u16,
    /// Size, addresses, base, inflight region; `features` are the negotiated virtio features (LOG_ALL and the protocol bit
    /// taken out). The areas lie in `memory`, aligned. Packed and inflight: when the region holds state of a process before this one,
    /// that state and not `base` says where to go on, for the front-end cannot know it.
    pub setup: RingSetup,
    /// The table that the addresses lead into.
    pub memory: Arc<GuestMemory>,
    /// The dirty log, when the front-end migrates.
    pub log: Option<DirtyLog>,
    /// Whether it starts enabled.
    pub enabled: bool,
    /// Readable when the driver made buffers available: an eventfd. `None`: poll. Buffers made available before the start were perhaps
    /// announced before it, or never: look without waiting for a kick.
    pub kick: Option<OwnedFd>,
    /// Written when buffers were used. `None`: the driver polls. Give one call after the start, as one may have been lost.
    pub call: Option<OwnedFd>,
    /// Written when the ring is broken.
    pub err: Option<OwnedFd>,
}

/// A device's refusal to do what it is asked, with the reason.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(Box<dyn Error + Send + Sync>);

impl Refusal {
    /// A refusal for this reason: an error, or a text.
    pub fn new(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Refusal {
        Refusal(reason.into())
    }
}
