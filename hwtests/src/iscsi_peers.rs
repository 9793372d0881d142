//! iSCSI targets of other makers: tgt and istgt, each on a port of its own with a disk of [`LEN`] bytes.

use crate::process::Process;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How a peer is to be set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup {
    /// CRC32C on headers and data is demanded.
    pub digests: bool,
    /// Who logs in must be [`USER`].
    pub chap: bool,
    /// The target can prove that it is [`OUTGOING`].
    pub mutual: bool,
}

/// The initiator's CHAP name and secret.
pub const USER: (&str, &str) = ("host", "initiator-secret");
/// The target's.
pub const OUTGOING: (&str, &str) = ("disk", "target-secret-1");
/// Bytes of the disk.
pub const LEN: u64 = 16 << 20;
/// tgt's second unit: it answers at once, and what is written to it is gone. For measurements.
pub const TGT_NULL_LUN: u64 = 2;

const TGT_IQN: &str = "iqn.2026-01.org.sluice:disk";

/// A running target. Killed and forgotten when dropped.
pub struct Peer {
    process: Process,
    dir: TempDir,
    /// Where it listens.
    pub portal: String,
    /// The target's name.
    pub target: &'static str,
    /// The disk's unit.
    pub lun: u64,
}

impl Peer {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Kills it, and gives back the directory with its disk.
    pub fn kill(mut self) -> Result<TempDir> {
        self.process.kill()?;
        Ok(self.dir)
    }
}

/// Whether a program is installed; says so if not, because then its tests show nothing.
pub fn installed(program: &str) -> bool {
    let found = ["/usr/sbin", "/usr/bin"].iter().any(|dir| Path::new(dir).join(program).exists());
    if !found {
        eprintln!("SKIPPED: {program} is not installed (scripts/install)");
    }
    found
}

/// A TCP port on which nothing listens now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn wait_for_port(port: u16, process: &mut Process) -> Result<()> {
    let start = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(process.is_running(), "the target ended by itself: {}", process.output());
        ensure!(start.elapsed() < Duration::from_secs(10), "the target does not listen: {}", process.output());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The disk in `dir`, made if it is not there.
fn image(dir: &TempDir) -> Result<PathBuf> {
    let image = dir.path().join("disk.img");
    if !image.exists() {
        File::create(&image)?.set_len(LEN)?;
    }
    Ok(image)
}

/// tgt with one file-backed LUN 1, in `dir`, and [`TGT_NULL_LUN`].
pub fn tgt(setup: Setup, port: u16, dir: TempDir) -> Result<Peer> {
    let image = image(&dir)?;
    let control = (port % 30_000).to_string();
    let socket = dir.path().join("ctl");
    let mut command = Command::new("/usr/sbin/tgtd");
    command.args(["-f", "-C", &control, "--iscsi", &format!("portal=127.0.0.1:{port}")]);
    let mut process = Process::spawn("tgtd", command.env("TGT_IPC_SOCKET", &socket))?;
    wait_for_port(port, &mut process)?;
    let admin = |args: &str| {
        let mut command = Command::new("/usr/sbin/tgtadm");
        command.args(["-C", &control, "--lld", "iscsi"]).args(args.split(' ')).env("TGT_IPC_SOCKET", &socket);
        let output = command.output().context("run tgtadm")?;
        ensure!(output.status.success(), "tgtadm {args}: {output:?}");
        Ok(())
    };
    admin(&format!("--op new --mode target --tid 1 -T {TGT_IQN}"))?;
    admin(&format!("--op new --mode logicalunit --tid 1 --lun 1 -b {}", image.display()))?;
    admin(&format!("--op new --mode logicalunit --tid 1 --lun {TGT_NULL_LUN} --bstype null -b null"))?;
    if setup.digests {
        admin("--op update --mode target --tid 1 --name HeaderDigest --value CRC32C")?;
        admin("--op update --mode target --tid 1 --name DataDigest --value CRC32C")?;
    }
    if setup.chap {
        admin(&format!("--op new --mode account --user {} --password {}", USER.0, USER.1))?;
        admin(&format!("--op bind --mode account --tid 1 --user {}", USER.0))?;
    }
    if setup.mutual {
        admin(&format!("--op new --mode account --user {} --password {}", OUTGOING.0, OUTGOING.1))?;
        admin(&format!("--op bind --mode account --tid 1 --user {} --outgoing", OUTGOING.0))?;
    }
    admin("--op bind --mode target --tid 1 -I ALL")?;
    Ok(Peer { process, dir, portal: format!("127.0.0.1:{port}"), target: TGT_IQN, lun: 1 })
}

/// istgt with one file-backed LUN 0, in `dir`.
pub fn istgt(setup: Setup, port: u16, dir: TempDir) -> Result<Peer> {
    let root = dir.path().display();
    let image = image(&dir)?;
    let method = match (setup.chap, setup.mutual) {
        (_, true) => "CHAP Mutual",
        (true, false) => "CHAP",
        _ => "None",
    };
    let digests = if setup.digests { "Header Data" } else { "Auto" };
    let auth = format!("[AuthGroup1]\n  Auth \"{}\" \"{}\" \"{}\" \"{}\"\n", USER.0, USER.1, OUTGOING.0, OUTGOING.1);
    std::fs::write(dir.path().join("auth.conf"), auth)?;
    let control = free_port()?;
    let config = format!(
        "[Global]\n  NodeBase \"iqn.2007-09.jp.ne.peach.istgt\"\n  PidFile {root}/istgt.pid\n  AuthFile {root}/auth.conf\n  \
         MediaDirectory {root}\n  LogFacility \"local7\"\n  Timeout 30\n  NopInInterval 20\n  DiscoveryAuthMethod Auto\n  \
         MaxSessions 16\n  MaxConnections 4\n  MaxR2T 32\n  MaxOutstandingR2T 16\n  DefaultTime2Wait 2\n  \
         DefaultTime2Retain 60\n  FirstBurstLength 262144\n  MaxBurstLength 1048576\n  MaxRecvDataSegmentLength 262144\n  \
         InitialR2T Yes\n  ImmediateData Yes\n  DataPDUInOrder Yes\n  DataSequenceInOrder Yes\n  ErrorRecoveryLevel 0\n\
         [UnitControl]\n  AuthMethod None\n  Portal UC1 127.0.0.1:{control}\n  Netmask 127.0.0.1\n\
         [PortalGroup1]\n  Portal DA1 127.0.0.1:{port}\n[InitiatorGroup1]\n  InitiatorName \"ALL\"\n  Netmask ALL\n\
         [LogicalUnit1]\n  TargetName disk1\n  Mapping PortalGroup1 InitiatorGroup1\n  AuthMethod {method}\n  \
         AuthGroup AuthGroup1\n  UseDigest {digests}\n  UnitType Disk\n  UnitInquiry \"SLUICE\" \"DISK\" \"1\" \"0001\"\n  \
         LUN0 Storage {} 16MB\n",
        image.display()
    );
    let path = dir.path().join("istgt.conf");
    std::fs::write(&path, config)?;
    let mut process = Process::spawn("istgt", Command::new("/usr/sbin/istgt").args(["-D", "-c"]).arg(&path))?;
    wait_for_port(port, &mut process)?;
    let target = "iqn.2007-09.jp.ne.peach.istgt:disk1";
    Ok(Peer { process, dir, portal: format!("127.0.0.1:{port}"), target, lun: 0 })
}
