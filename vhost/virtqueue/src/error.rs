//! What a driver or front-end can get wrong with a ring.

use guest_memory::AccessError;

/// A queue that cannot be set up, or that takes nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// A size that the layout does not allow.
    #[error("queue size {size}: expected {expected}")]
    Size {
        /// What was asked.
        size: u16,
        /// What is legal.
        expected: &'static str,
    },
    /// A ring area or an indirect table is not in guest memory.
    #[error("{area}: {source}")]
    Access {
        /// Which one.
        area: &'static str,
        /// The range.
        source: AccessError,
    },
    /// More entries became available than the ring has.
    #[error("available index {index} is more than {size} entries ahead of {next}")]
    AvailIndex {
        /// What the driver wrote.
        index: u16,
        /// The next entry to be taken.
        next: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A descriptor index outside the table.
    #[error("descriptor index {index}: the table has {size}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// Entries of the table.
        size: u16,
    },
    /// A chain that is longer than the ring: a loop.
    #[error("descriptor chain longer than {limit}")]
    ChainLoop {
        /// The longest legal chain.
        limit: u16,
    },
    /// A writable descriptor before a readable one (virtio 1.3, 2.7.4.2).
    #[error("readable descriptor after a writable one")]
    Order,
    /// An indirect table of no entry, of a part of one, or of too many (2.7.5.3).
    #[error("indirect table of {len} bytes: expected a multiple of 16, from 16 to {limit}")]
    IndirectLength {
        /// Its bytes.
        len: u32,
        /// The most that is legal.
        limit: u32,
    },
    /// An indirect descriptor inside an indirect table, in a chain, or without the feature (2.7.5.3.1).
    #[error("indirect descriptor {0}")]
    Indirect(&'static str),
    /// An inflight region that does not belong to this ring.
    #[error("inflight region of {len} bytes: expected {expected}")]
    Inflight {
        /// Its bytes.
        len: usize,
        /// What this ring needs.
        expected: usize,
    },
}

impl QueueError {
    pub(crate) fn access(area: &'static str) -> impl Fn(AccessError) -> QueueError {
        move |source| QueueError::Access { area, source }
    }
}
