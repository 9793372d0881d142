//! The datapath: all that a worker does with packets, and the control side that answers its upcalls.
//!
//! A [`Datapath`] has a [`DatapathWorker`] on each worker and an [`UpcallHandler`] on a thread of its own (in OVS: PMD threads,
//! handlers and revalidators). The path of a packet on its worker:
//!
//! ```text
//! rx burst -> extract -> cache look-up -> actions -> a batch per output -> tx -> flush          worker, each turn
//!                             |  miss                       \-> another worker, if that has the port's queue
//!                             +--> pending, upcall -----.
//!                                                       v
//!          megaflow, by mailbox <-- Pipeline::translate, reading a Tracked key                  upcall handler
//! ```
//!
//! A [`Pipeline`] decides over one packet, reading its key through a [`Tracked`]: the fields that were read become the mask of the
//! megaflow. All other state that the decision rests on is recorded as [`Dependencies`]; when some of it changes, exactly the
//! megaflows that rest on it are revalidated. [`StaticFlows`] puts flows of an operator before a pipeline. No packet matches two
//! flows.
//!
//! Workers share nothing that is written for each packet: each has its own cache, its own pending upcalls and its own half of
//! every queue between two workers. Counters are plain stores to the worker's own lines.
//!
//! *Lifecycle.* [`Datapath::start`] starts all parts, [`Datapath::assemble`] makes them for a caller who runs them by hand, as tests
//! do. A change takes [`Datapath::lock`], which no worker takes.
//!
//! *Errors.* A [`SwitchError`] refuses a change, and nothing has changed. On the packet path nothing fails: a packet that cannot go
//! on is dropped and counted, with the [`DropReason`], at the port that it came in by.

#![deny(clippy::wildcard_enum_match_arm)] // a new action or drop reason is to be handled everywhere

mod capture;
mod datapath;
mod error;
mod handler;
mod handover;
mod limit;
pub mod limits;
mod marks;
mod megaflows;
mod offload;
mod output;
mod pipeline;
mod ports;
mod state;
mod static_flows;
mod stats;
mod upcall;
mod worker;

pub use capture::{Capture, Captured, Observed};
pub use datapath::Datapath;
pub use error::SwitchError;
pub use flow::{DropReason, PortNo};
pub use handler::UpcallHandler;
pub use limit::RateLimit;
pub use marks::Marks;
pub use megaflows::Translation;
pub use offload::{Offer, Offload, OffloadHandle, OffloadState};
pub use pipeline::{Actions, BridgeId, Dependencies, Dependency, Learn, Pipeline, Tracked};
pub use ports::{FlowReport, PortConfig, PortReport};
pub use state::DatapathState;
pub use static_flows::StaticFlows;
pub use stats::{PathStats, PortLoad, WorkerStats};
pub use worker::DatapathWorker;
