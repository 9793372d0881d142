//! What a front-end may ask (vhost-user, "Front-end message types").

use crate::protocol_feature as pf;
use std::fmt;

/// The number of a request. An unknown one is carried and named by its number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Request(pub u32);

macro_rules! requests {
    ($($name:ident = $number:literal,)*) => {
        impl Request {
            $(#[allow(missing_docs)] pub const $name: Request = Request($number);)*

            /// The name in the specification.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

requests! {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    RESET_OWNER = 4,
    SET_MEM_TABLE = 5,
    SET_LOG_BASE = 6,
    SET_LOG_FD = 7,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
    SEND_RARP = 19,
    NET_SET_MTU = 20,
    SET_BACKEND_REQ_FD = 21,
    IOTLB_MSG = 22,
    SET_VRING_ENDIAN = 23,
    GET_CONFIG = 24,
    SET_CONFIG = 25,
    CREATE_CRYPTO_SESSION = 26,
    CLOSE_CRYPTO_SESSION = 27,
    POSTCOPY_ADVISE = 28,
    POSTCOPY_LISTEN = 29,
    POSTCOPY_END = 30,
    GET_INFLIGHT_FD = 31,
    SET_INFLIGHT_FD = 32,
    GPU_SET_SOCKET = 33,
    RESET_DEVICE = 34,
    VRING_KICK = 35,
    GET_MAX_MEM_SLOTS = 36,
    ADD_MEM_REG = 37,
    REM_MEM_REG = 38,
    SET_STATUS = 39,
    GET_STATUS = 40,
    GET_SHARED_OBJECT = 41,
    SET_DEVICE_STATE_FD = 42,
    CHECK_DEVICE_STATE = 43,
    GET_SHMEM_CONFIG = 44,
}

impl Request {
    /// The protocol feature without which the request must not be sent: its mask and name.
    pub(crate) const fn needs(self) -> Option<(u64, &'static str)> {
        Some(match self {
            Request::GET_QUEUE_NUM => (pf::MQ, "MQ"),
            Request::SET_LOG_BASE => (pf::LOG_SHMFD, "LOG_SHMFD"),
            Request::SEND_RARP => (pf::RARP, "RARP"),
            Request::NET_SET_MTU => (pf::NET_MTU, "NET_MTU"),
            Request::SET_BACKEND_REQ_FD => (pf::BACKEND_REQ, "BACKEND_REQ"),
            Request::GET_CONFIG | Request::SET_CONFIG => (pf::CONFIG, "CONFIG"),
            Request::GET_INFLIGHT_FD | Request::SET_INFLIGHT_FD => (pf::INFLIGHT_SHMFD, "INFLIGHT_SHMFD"),
            Request::RESET_DEVICE => (pf::RESET_DEVICE, "RESET_DEVICE"),
            Request::GET_MAX_MEM_SLOTS | Request::ADD_MEM_REG | Request::REM_MEM_REG => {
                (pf::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS")
            }
            Request::SET_STATUS | Request::GET_STATUS => (pf::STATUS, "STATUS"),
            _ => return None,
        })
    }

    /// What the front-end waits for when the request fails.
    pub(crate) const fn failure(self) -> Failure {
        match self {
            Request::IOTLB_MSG | Request::POSTCOPY_END => Failure::Status,
            Request::GET_CONFIG => Failure::Empty,
            Request::GET_FEATURES
            | Request::GET_PROTOCOL_FEATURES
            | Request::GET_QUEUE_NUM
            | Request::GET_VRING_BASE
            | Request::GET_INFLIGHT_FD
            | Request::GET_MAX_MEM_SLOTS
            | Request::GET_STATUS => Failure::Unspeakable,
            _ => Failure::Acknowledgement,
        }
    }
}

/// How a failure is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A non-zero u64, where the front-end asked for an acknowledgement (REPLY_ACK).
    Acknowledgement,
    /// A non-zero u64, always.
    Status,
    /// A reply without payload.
    Empty,
    /// Its reply has no room for a failure.
    Unspeakable,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "request {}", self.0),
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
