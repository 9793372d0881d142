//! Pinned workers that poll their sources, one thread a core.
//!
//! A [`Source`] is whatever a worker polls: the queues of a disk, the ports of a switch. Control threads build it, hand it to a
//! worker with [`WorkerHandle::add`], talk to it through a [`mailbox`], publish what many read as a [`Snapshot`], and get it
//! back with [`WorkerHandle::remove`], so that the thread that made a source destroys it. Workers talk to each other by [`spsc`] queues.
//!
//! One turn: poll every source; every [`QUIESCENT_TURNS`] turns take commands, look at new snapshots and publish counters. When
//! no source had work for as long as the [`IdlePolicy`] allows, the worker asks each source to have itself woken
//! ([`Source::arm`]), looks once more, and sleeps in the kernel until a descriptor of its [`WakeSet`], a mailbox or a deadline
//! wakes it.
//!
//! A worker's turn makes no system call of its own but that sleep, takes no lock, allocates nothing and logs nothing.

#![cfg_attr(not(loom), allow(unsafe_code))] // epoll and eventfd; the snapshot's pointer; the queue's places
#![cfg_attr(loom, allow(unsafe_code, dead_code))]
#![allow(clippy::disallowed_types)] // the models that loom checks take the locks of std, as loom has them

mod cpu_set;
mod idle;
mod mailbox;
mod snapshot;
mod spsc;
mod stats;
mod sync;
#[cfg(not(loom))]
mod wake;
#[cfg(not(loom))]
mod worker;
mod worker_set;

pub use cpu_set::{CpuSet, CpuSetError};
pub use idle::IdlePolicy;
pub use snapshot::{Reader, Snapshot};
pub use spsc::{Consumer, Producer, spsc};
pub use worker_set::{AtomicWorkerSet, MAX_WORKERS, WorkerSet};
#[cfg(not(loom))]
pub use {
    mailbox::{Mailbox, Sender, mailbox},
    stats::{SourceStats, WorkerStats},
    wake::{WakeSet, Waker},
    worker::{Engine, EngineError, QUIESCENT_TURNS, SourceId, SourceReport, WorkerHandle, WorkerReport},
};

use clock::Cycles;

/// What a worker polls.
pub trait Source: Send {
    /// Does what is ready, at most a burst of it. Returns the items of work done; 0 when idle.
    fn poll(&mut self, now: Cycles) -> usize;
    /// Has itself woken: enables notifications, then looks again. Returns true when work is there already.
    fn arm(&mut self) -> bool {
        false
    }
    /// The worker is awake again: notifications are not needed.
    fn disarm(&mut self) {}
    /// When `poll` must be called although nothing woke the worker.
    fn deadline(&self) -> Cycles {
        Cycles::NEVER
    }
    /// Called every [`QUIESCENT_TURNS`] turns and before sleep: the place to look at snapshots and publish counters.
    fn quiesce(&mut self) {}
}
