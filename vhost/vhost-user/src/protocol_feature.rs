//! Protocol feature bits, as masks (vhost-user, "Protocol features").

/// Several queues; GET_QUEUE_NUM.
pub const MQ: u64 = 1 << 0;
/// The dirty log comes as a descriptor with SET_LOG_BASE.
pub const LOG_SHMFD: u64 = 1 << 1;
/// SEND_RARP after a migration.
pub const RARP: u64 = 1 << 2;
/// A request may ask for an acknowledgement.
pub const REPLY_ACK: u64 = 1 << 3;
/// NET_SET_MTU.
pub const NET_MTU: u64 = 1 << 4;
/// A channel for requests of the back-end; SET_BACKEND_REQ_FD.
pub const BACKEND_REQ: u64 = 1 << 5;
/// GET_CONFIG and SET_CONFIG.
pub const CONFIG: u64 = 1 << 9;
/// GET_INFLIGHT_FD and SET_INFLIGHT_FD.
pub const INFLIGHT_SHMFD: u64 = 1 << 12;
/// RESET_DEVICE.
pub const RESET_DEVICE: u64 = 1 << 13;
/// GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG.
pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
/// GET_STATUS and SET_STATUS.
pub const STATUS: u64 = 1 << 16;

/// What a session offers for every device.
pub(crate) const OF_SESSION: u64 =
    MQ | LOG_SHMFD | REPLY_ACK | BACKEND_REQ | RESET_DEVICE | CONFIGURE_MEM_SLOTS | STATUS;
/// What a session offers when the device implements its part.
pub(crate) const OF_DEVICE: u64 = RARP | NET_MTU | CONFIG | INFLIGHT_SHMFD;
