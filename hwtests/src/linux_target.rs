//! Linux's own targets, nvmet-tcp and LIO, in a QEMU guest.

use crate::process::Process;
use anyhow::{Result, ensure};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

/// The exit status of `guest/linux-target` where something is missing.
const SKIPPED: i32 = 77;

/// Which of Linux's targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// nvmet-tcp.
    Nvme,
    /// LIO.
    Iscsi,
}

/// Linux's own target in a QEMU guest with Debian's kernel (`guest/linux-target`), forwarded to a port of this machine.
pub struct LinuxTarget {
    process: Process,
    address: SocketAddr,
    lines: u32,
}

impl LinuxTarget {
    /// Boots the guest and waits until it serves; `None`, and a word on standard error, where something is missing.
    pub fn start(protocol: Protocol) -> Result<Option<LinuxTarget>> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/guest/linux-target"));
        command.arg(match protocol {
            Protocol::Nvme => "nvme",
            Protocol::Iscsi => "iscsi",
        });
        let mut process = Process::spawn("linux-target", command.arg(address.port().to_string()))?;
        let ready = process.wait_for("target: ready", Duration::from_secs(180));
        if ready.is_err() && process.wait(Duration::from_secs(1)).is_ok_and(|status| status.code() == Some(SKIPPED)) {
            eprintln!("{}", process.output());
            return Ok(None);
        }
        ready.map(|_| Some(LinuxTarget { process, address, lines: 0 }))
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs a line of shell in the guest, which must succeed.
    pub fn run(&mut self, line: &str) -> Result<()> {
        self.lines += 1;
        self.process.write_line(line)?;
        let done = self.process.wait_for(&format!("target: done {} ", self.lines), Duration::from_secs(60))?;
        ensure!(done.ends_with(" 0"), "{line}: {done}\n{}", self.process.output());
        Ok(())
    }
}
