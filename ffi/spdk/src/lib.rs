//! SPDK's block devices as disks of the block seam. Empty without the feature `spdk`.
//!
//! - `Spdk`: the library, once in a process, with a thread of its own on which its control work runs. It makes the block
//!   devices that its JSON configuration names, and ends with its last owner.
//! - `SpdkBdev`: one of them as a `block::Bdev`. A channel is an SPDK thread with the device open in it; the worker that
//!   polls the channel polls that thread, so neither shares anything with another worker.
//!
//! ```ignore
//! let spdk = Spdk::start(SpdkConfig { json: std::fs::read_to_string("bdevs.json")?, cpu: 0, eal: EalOwner::Spdk })?;
//! let disk = SpdkBdev::open(&spdk, "Nvme0n1", false)?;
//! let channel = disk.open_channel()?; // off the worker, which then polls it
//! ```
//!
//! A device reaches only memory that is registered with SPDK, which a guest's is not: data is copied once, through memory of the
//! channel. A device that is removed is let go as soon as its last request has ended; from then on requests fail.
//!
//! Errors: `SpdkError` for the library, `BlockError` for a disk, with SPDK's errno.
//!
//! This crate is compiled, and run against a stand-in in its tests. It has never been run with SPDK itself.
//!
//! # Invariant: open-device
//!
//! The pointer of a `Descriptor` is open, and with it the device that it leads to, from `Descriptor::open` to the drop. Both happen
//! within the same SPDK thread, and so do all operations on the device's channel.
//!
//! # Invariant: live-thread
//!
//! The pointer of a `Thread` leads to an SPDK thread that only the drop of the `Thread` destroys. `Thread` is not `Sync`, so one
//! thread of the system uses it at a time.

#![cfg(feature = "spdk")]
#![allow(unsafe_code)] // calls into a C library; each block names the precondition and who guarantees it
#![deny(clippy::multiple_unsafe_ops_per_block)]

mod bdev;
mod channel;
mod descriptor;
mod library;
mod thread;

pub use bdev::SpdkBdev;
pub use library::{EalOwner, Spdk, SpdkConfig, SpdkError};
