//! The flow cache: from the bytes of a packet to what is done with it.
//!
//! A packet's headers become a [`Key`] ([`extract`]), held in a [`Miniflow`]; a [`FlowCache`] finds the [`Megaflow`] that it
//! matches; the flow's [`Action`]s are executed ([`execute`]). Each worker owns one cache, so nothing here locks or waits.
//! A packet that hardware has looked up already has a mark, and needs no key ([`FlowCache::lookup_marked`]).
//!
//! ```text
//! burst -> extract -> FlowCache::lookup_batch -> FlowCache::record -> execute -> (packet, port) pairs
//!                            | miss
//!                            v
//!                  upcall handler: decides, FlowCache::insert
//! ```
//!
//! *Lifecycle.* A flow is installed by [`FlowCache::insert`] (disjoint by construction) or
//! [`FlowCache::insert_checked`], renewed after [`FlowCache::invalidate`], and goes by [`FlowCache::remove`] or
//! [`FlowCache::age`], each of which returns its final statistics.
//!
//! *Errors.* No packet is an error: a broken one has a shorter key. An operator's text can be wrong: [`text::ParseError`]
//! says where, [`InsertError`] why a flow cannot be installed and what to do.
//!
//! [`mod@reference`] has the slow and obvious twin of extraction and classifier; tests and fuzz targets hold both side by side.

#![deny(clippy::wildcard_enum_match_arm)] // a new action or header is to be handled everywhere

pub mod action;
mod cache;
mod classifier;
mod drop_reason;
mod exact;
pub mod execute;
mod extract;
pub mod fuzz;
pub mod key;
mod marks;
mod prefetch;
pub mod reference;
mod rewrite;
mod store;
pub mod text;

pub use action::{Action, HeaderEdit, PortNo};
pub use cache::{BATCH, Config, FlowCache, FlowId, Hits, InsertError, Megaflow, Stats};
pub use classifier::{Limits, Work};
pub use drop_reason::DropReason;
pub use extract::{Metadata, ethertype, extract, extract_counted, protocol};
pub use key::{Key, Mask, Miniflow, field};
pub use marks::MARK_PLACES;
