//! Why a message is refused and why a session ends.

use crate::backend::Refusal;
use crate::request::Request;
use guest_memory::{AccessError, MapError};
use std::borrow::Cow;
use std::io;
use std::ops::RangeInclusive;

/// The reason for which a message is refused. Nothing changed, unless the reason is that a ring cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// Wrong size of the payload.
    #[error("payload of {got} bytes, expected {}", range(.expected))]
    Payload {
        /// Bytes that came.
        got: usize,
        /// Bytes of this request.
        expected: RangeInclusive<usize>,
    },
    /// Too many, too few or stray descriptors; all were closed.
    #[error("{got} file descriptors, expected {}", range(.expected))]
    Descriptors {
        /// Descriptors that came.
        got: usize,
        /// Descriptors of this request.
        expected: RangeInclusive<usize>,
    },
    /// A field has a value that it must not have.
    #[error("{field} is {value:#x}, expected {expected}")]
    Value {
        /// The specification's name.
        field: &'static str,
        /// What came.
        value: u64,
        /// What may come.
        expected: Cow<'static, str>,
    },
    /// Belongs to a feature that was not offered, or is not known.
    #[error("this device does not offer it")]
    NotOffered,
    /// Belongs to a protocol feature that the front-end did not set.
    #[error("protocol feature {0} was not negotiated")]
    NotNegotiated(&'static str),
    /// Must not change while a ring is started.
    #[error("{0} cannot change while a ring is started; send GET_VRING_BASE first")]
    Started(&'static str),
    /// A ring area is not in guest memory.
    #[error("ring {index}: {area} at user address {:#x}, {:#x} bytes, is not in the memory table or not aligned", .source.address, .source.len)]
    Area {
        /// Queue.
        index: u16,
        /// Which of the three.
        area: &'static str,
        /// Where.
        source: AccessError,
    },
    /// Regions of the memory table overlap.
    #[error("region at {:#x}, {:#x} bytes, overlaps another one in {space} addresses", .source.address, .source.len)]
    Overlap {
        /// Guest or user.
        space: &'static str,
        /// The later one.
        source: AccessError,
    },
    /// No such region.
    #[error("no region has these addresses and this size")]
    NoRegion,
    /// A descriptor could not be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The system refused.
    #[error("{what}: {source}")]
    Os {
        /// The call.
        what: &'static str,
        /// Its reason.
        source: io::Error,
    },
    /// The device refused.
    #[error(transparent)]
    Device(#[from] Refusal),
}

impl Reason {
    pub(crate) fn value(field: &'static str, value: impl Into<u64>, expected: impl Into<Cow<'static, str>>) -> Reason {
        Reason::Value { field, value: value.into(), expected: expected.into() }
    }

    pub(crate) fn os(what: &'static str) -> impl FnOnce(io::Error) -> Reason {
        move |source| Reason::Os { what, source }
    }
}

fn range(range: &RangeInclusive<usize>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{} to {}", range.start(), range.end())
    }
}

/// The reason for which a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A message was refused and the front-end had not asked to be told.
    #[error("{request} refused: {reason}")]
    Refused {
        /// Which.
        request: Request,
        /// The reason for the refusal.
        reason: Reason,
    },
    /// The stream has no border of messages any more.
    #[error("not a vhost-user message: {0}")]
    Framing(Reason),
    /// More descriptors than any message has; all were closed.
    #[error("a message came with more than {} file descriptors", crate::message::MAX_FDS)]
    TooManyDescriptors,
    /// The front-end left in the middle of a message.
    #[error("the front-end closed the connection inside a message")]
    Truncated,
    /// The front-end truncated its guest's memory.
    #[error("the front-end truncated a file behind guest memory; seal it with F_SEAL_SHRINK or leave its size alone")]
    MemoryLost,
    /// The socket failed.
    #[error("{what}: {source}")]
    Os {
        /// The call.
        what: &'static str,
        /// Its reason.
        source: io::Error,
    },
}
