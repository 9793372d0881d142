//! DPDK with owners, lifetimes and typed errors.
//!
//! - [`Eal`]: the environment, once in a process, until its end.
//! - [`Mempool`]: packet buffers of DPDK, which the rest of the process uses as a [`packet::Pool`]. An `rte_mbuf` is a
//!   [`packet::Mbuf`] to the byte (the crate does not compile otherwise), so a burst passes without a look at its packets.
//! - [`EthDev`]: a port that `devargs` name, attached and removed at run time. Started, it gives its [`RxQueue`]s and
//!   [`TxQueue`]s away; each belongs to one worker at a time, and the device runs until the last is back.
//! - [`flow`]: rules in a device (`rte_flow`), as [`rte_rule`] has them; by templates and a queue, where the driver has them.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let eal = dpdk::Eal::init(&dpdk::EalConfig::default())?;
//! let pool = dpdk::Mempool::new(&eal, "packets", 8192, None)?;
//! let mut dev = dpdk::EthDev::attach(&eal, "net_ring0")?;
//! let mut queues = dev.start(&dpdk::EthDevConfig::new(&pool))?;
//! let mut burst = packet::Burst::new();
//! while queues.rx[0].receive(&mut burst) != 0 {
//!     queues.tx[0].send(&mut burst);
//!     burst.clear(); // what found no room goes back to the pool
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A thread that receives or takes packets is registered with DPDK at its first burst, and so has its own cache in each pool.
//!
//! Errors: one enum an operation. Each has what was asked for, the errno, and what DPDK logged meanwhile; DPDK's log itself goes
//! to `tracing`. Calls that change a device are slow and belong to a control thread; only the queues and pools are for a poll
//! loop.
//!
//! # Invariant: lent-port
//!
//! A value that holds an `Arc<Port>` may pass the port's number to DPDK: the port was attached when the `Arc` was made, and is closed
//! by the drop of the last `Arc` alone.
//!
//! # Invariant: live-pool
//!
//! The pointer of an `Owned` leads to a pool of DPDK that only the drop of the `Owned` frees.
//!
//! # Invariant: running-queue
//!
//! An [`RxQueue`] or [`TxQueue`] exists only while its device runs: `EthDev::stop` waits for the last `Arc<Port>`. So
//! `rte_eth_fp_ops` has the entry points of the device, and the queue's data is there.

#![allow(unsafe_code)] // calls into a C library; each block names the precondition and who guarantees it
#![deny(clippy::multiple_unsafe_ops_per_block)]

mod eal;
mod errno;
mod ethdev;
pub mod flow;
mod lcore;
mod log;
mod mbuf;
mod mempool;
mod queue;

pub use eal::{Eal, EalConfig, EalError, EalMemory};
pub use errno::Errno;
pub use ethdev::{AttachError, DeviceError, DeviceInfo, EthDev, EthDevConfig, Link, Queues, StartError, Stats};
pub use mempool::{Mempool, MempoolError};
pub use queue::{RxQueue, TxCapabilities, TxQueue, leaves_work};
