//! Targets that nobody here wrote: tgt and istgt, each started in the foreground on a port of its own.

use super::TARGET;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How a peer is to be set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup {
    pub digests: bool,
    pub chap: bool,
    pub mutual: bool,
}

pub const USER: (&str, &str) = ("host", "initiator-secret");
pub const OUTGOING: (&str, &str) = ("disk", "target-secret-1");
pub const LEN: u64 = 16 << 20;

/// A running peer. Killed and forgotten when dropped.
pub struct Peer {
    child: Child,
    pub portal: String,
    pub target: String,
    pub lun: u64,
    pub dir: tempfile::TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a program is installed; says so if not, because then its tests show nothing.
pub fn installed(program: &str) -> bool {
    let found = ["/usr/sbin", "/usr/bin"].iter().any(|dir| PathBuf::from(dir).join(program).exists());
    if !found {
        eprintln!("SKIPPED: {program} is not installed (Debian: tgt, istgt)");
    }
    found
}

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn wait_for_port(port: u16, child: &mut Child) {
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(child.try_wait().unwrap().is_none(), "the target ended by itself");
        assert!(start.elapsed() < Duration::from_secs(10), "the target does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// tgt with one file-backed LUN 1.
pub fn tgt(setup: Setup, port: u16, dir: tempfile::TempDir) -> Peer {
    let image = dir.path().join("disk.img");
    if !image.exists() {
        File::create(&image).unwrap().set_len(LEN).unwrap();
    }
    let control = (port % 30_000).to_string();
    let socket = dir.path().join("ctl");
    let mut child = Command::new("/usr/sbin/tgtd")
        .args(["-f", "-C", &control, "--iscsi", &format!("portal=127.0.0.1:{port}")])
        .env("TGT_IPC_SOCKET", &socket)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_port(port, &mut child);
    let admin = |args: &str| {
        let output = Command::new("/usr/sbin/tgtadm")
            .args(["-C", &control, "--lld", "iscsi"])
            .args(args.split(' '))
            .env("TGT_IPC_SOCKET", &socket)
            .output()
            .unwrap();
        assert!(output.status.success(), "tgtadm {args}: {output:?}");
    };
    admin(&format!("--op new --mode target --tid 1 -T {TARGET}"));
    admin(&format!("--op new --mode logicalunit --tid 1 --lun 1 -b {}", image.display()));
    if setup.digests {
        admin("--op update --mode target --tid 1 --name HeaderDigest --value CRC32C");
        admin("--op update --mode target --tid 1 --name DataDigest --value CRC32C");
    }
    if setup.chap {
        admin(&format!("--op new --mode account --user {} --password {}", USER.0, USER.1));
        admin(&format!("--op bind --mode account --tid 1 --user {}", USER.0));
    }
    if setup.mutual {
        admin(&format!("--op new --mode account --user {} --password {}", OUTGOING.0, OUTGOING.1));
        admin(&format!("--op bind --mode account --tid 1 --user {} --outgoing", OUTGOING.0));
    }
    admin("--op bind --mode target --tid 1 -I ALL");
    Peer { child, portal: format!("127.0.0.1:{port}"), target: TARGET.into(), lun: 1, dir }
}

/// istgt with one file-backed LUN 0.
pub fn istgt(setup: Setup, port: u16, dir: tempfile::TempDir) -> Peer {
    let root = dir.path().display();
    let image = dir.path().join("disk.img");
    if !image.exists() {
        File::create(&image).unwrap().set_len(LEN).unwrap();
    }
    let method = match (setup.chap, setup.mutual) {
        (_, true) => "CHAP Mutual",
        (true, false) => "CHAP",
        _ => "None",
    };
    let digests = if setup.digests { "Header Data" } else { "Auto" };
    let auth = format!("[AuthGroup1]\n  Auth \"{}\" \"{}\" \"{}\" \"{}\"\n", USER.0, USER.1, OUTGOING.0, OUTGOING.1);
    std::fs::write(dir.path().join("auth.conf"), auth).unwrap();
    let control = free_port();
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
    std::fs::write(&path, config).unwrap();
    let mut child = Command::new("/usr/sbin/istgt")
        .args(["-D", "-c", path.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_port(port, &mut child);
    Peer {
        child,
        portal: format!("127.0.0.1:{port}"),
        target: "iqn.2007-09.jp.ne.peach.istgt:disk1".into(),
        lun: 0,
        dir,
    }
}

impl Peer {
    /// Kills it, and keeps its disk.
    pub fn kill(mut self) -> tempfile::TempDir {
        let _ = self.child.kill();
        let _ = self.child.wait();
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }
}
