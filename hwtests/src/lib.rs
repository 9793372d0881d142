//! Tests with real parts: guests, targets, tools.
//!
//! The library starts the parts; the tests are in `tests/`. Those that need QEMU, the guest image or minutes are marked
//! `#[ignore]`; `scripts/test` installs what they need and runs them with
//! `cargo test --workspace --test NAME -- --ignored --test-threads=1`.
//!
//! - [`Process`]: a child whose output is watched; it dies with its owner.
//! - [`Qemu`], [`Uml`]: guests with vhost-user-blk disks, and network cards. A guest runs one shell script and prints its exit
//!   status; a [`Shell`] takes its commands one by one.
//! - [`Daemon`]: `sluiced` with its own RPC socket and state directory, to be killed and started again.
//! - [`StorageDaemon`]: QEMU's own vhost-user-blk backend, the peer.
//! - [`iscsi_peers`]: tgt and istgt; [`LinuxTarget`]: nvmet-tcp or LIO in a QEMU guest. The crates nvme and iscsi test with them.
//! - [`Ovs`]: Debian's OVS-DPDK, a peer and a client of DPDK drivers. [`Namespace`]: a peer at the other end of a veth pair.
//! - [`Relay`]: a network path that can be lost.
//! - [`fio`]: job files and results.
//!
//! `tests/cards.rs` is what a card with rte_flow has to do. It runs on the model of one (`ffi/fpga-sim`), and on a real card when
//! `SLUICE_TEST_CARD` names its ports and `SLUICE_TEST_CARD_PEERS` the interfaces at their other ends (`tests/card/mod.rs` says how):
//!
//! ```text
//! SLUICE_TEST_CARD='0000:03:00.0,representor=[0] 0000:03:00.0_representor_vf0' SLUICE_TEST_CARD_PEERS='enp4s0 enp3s0v0' \
//!     cargo test -p hwtests --test cards -- --ignored --test-threads=1
//! ```
//! It has not been run with a real card yet.
//!
//! Errors are [`anyhow::Error`]; a failed wait shows the last lines of the process waited for. With `HWTESTS_VERBOSE=1` in
//! the environment each process's output is shown as it comes.

mod daemon;
pub mod fio;
pub mod iscsi_peers;
mod json_socket;
mod linux_target;
mod namespace;
mod ovs;
mod process;
mod qemu;
mod qmp;
mod relay;
mod shell;
mod storage_daemon;
mod uml;

use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

pub use daemon::Daemon;
pub use linux_target::{LinuxTarget, Protocol};
pub use namespace::Namespace;
pub use ovs::Ovs;
pub use process::{Process, run};
pub use qemu::{Card, Disk, Firmware, Qemu, QemuConfig};
pub use qmp::Qmp;
pub use relay::Relay;
pub use shell::Shell;
pub use storage_daemon::StorageDaemon;
pub use uml::Uml;

/// Which end of a vhost-user socket the backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketRole {
    /// The backend listens; QEMU connects, again and again.
    Server,
    /// QEMU listens; the backend connects, again and again.
    Client,
}

/// The disk image made by `scripts/guest-image`, built if it is not there or out of date.
pub fn guest_image() -> Result<PathBuf> {
    image("debian")
}

/// The disk image with systemd and cloud-init instead of our own PID 1, as [`guest_image`]. To build it takes minutes.
pub fn cloud_init_image() -> Result<PathBuf> {
    image("cloud-init")
}

fn image(kind: &str) -> Result<PathBuf> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scripts/guest-image");
    let output = std::process::Command::new(script).arg(kind).output().context("run scripts/guest-image")?;
    ensure!(output.status.success(), "scripts/guest-image failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}
