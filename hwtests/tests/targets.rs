//! fio in a guest, through Sluice, over every target: our own, and tgt, istgt, LIO and nvmet.

mod support;

use anyhow::{Context, Result, ensure};
use hwtests::iscsi_peers::{self as peers, Peer, Setup, USER};
use hwtests::{Daemon, LinuxTarget, Protocol, Relay, Uml, fio};
use serde_json::{Value, json};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::{CloudDisk, IQN, NQN, iscsi_target_with, nvme_target};
use tempfile::TempDir;

const LINUX_NQN: &str = "nqn.2024-01.org.sluice:linux";
const LINUX_IQN: &str = "iqn.2024-01.org.sluice:linux";
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(240);

/// What can be shut down and started again over the same disk at the same address.
trait Restart {
    fn stop(&mut self) -> Result<()>;
    fn start(&mut self) -> Result<()>;
}

/// What happens to a target.
#[derive(Clone, Copy, Debug)]
enum Fault {
    PathLost,
    Restart,
}

/// A target with a path to it, and the disk `name` that Sluice makes of it.
struct Target<'a> {
    name: &'static str,
    protocol: Protocol,
    relay: Relay,
    service: Box<dyn Restart + 'a>,
    /// The parameters of `boot_create` that say where the disk is.
    source: Value,
}

impl<'a> Target<'a> {
    fn nvme(
        name: &'static str,
        at: SocketAddr,
        nqn: &str,
        setup: Setup,
        service: Box<dyn Restart + 'a>,
    ) -> Result<Target<'a>> {
        let relay = Relay::to(at)?;
        // Without CHAP there is room for header and data digests one by one.
        let (traddr, trsvcid) = (relay.address().ip(), relay.address().port().to_string());
        let source = json!({"nvme": {
            "traddr": traddr, "trsvcid": trsvcid, "subnqn": nqn, "hdgst": setup.digests, "ddgst": setup.chap,
        }});
        Ok(Target { name, protocol: Protocol::Nvme, relay, service, source })
    }

    fn iscsi(
        name: &'static str,
        at: SocketAddr,
        (iqn, lun): (&str, u64),
        setup: Setup,
        service: Box<dyn Restart + 'a>,
    ) -> Result<Target<'a>> {
        let relay = Relay::to(at)?;
        let user = if setup.chap { format!("{}%{}@", USER.0, USER.1) } else { String::new() };
        let digest = if setup.digests { "crc32c" } else { "none" };
        let url = format!("iscsi://{user}{}/{iqn}/{lun}?header_digest={digest}&data_digest={digest}", relay.address());
        let source = json!({"iscsi": {"url": url, "initiator_iqn": "iqn.2024-01.io.sluice:host"}});
        Ok(Target { name, protocol: Protocol::Iscsi, relay, service, source })
    }

    fn disk(&self) -> String {
        if self.protocol == Protocol::Nvme { format!("{}n1", self.name) } else { self.name.to_owned() }
    }

    fn serve(&self, daemon: &Daemon) -> Result<PathBuf> {
        let mut params = self.source.clone();
        params["name"] = json!(self.name);
        daemon.rpc("boot_create", params).with_context(|| self.name)?;
        Ok(daemon.vhost_socket(self.name))
    }

    fn break_down(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::PathLost => self.relay.lose(),
            Fault::Restart => self.service.stop()?,
        }
        Ok(())
    }

    fn come_back(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::PathLost => self.relay.restore(),
            Fault::Restart => self.service.start()?,
        }
        Ok(())
    }

    /// Whether the daemon tries in vain to reach it.
    fn is_lost(&self, daemon: &Daemon) -> Result<bool> {
        let attempts = match self.protocol {
            Protocol::Nvme => {
                daemon.rpc("bdev_nvme_get_controllers", json!({"name": self.name}))?[0]["ctrlrs"][0]["failed_attempts"]
                    .take()
            }
            Protocol::Iscsi => {
                daemon.rpc("bdev_iscsi_get_sessions", json!({"name": self.name}))?[0]["failed_attempts"].take()
            }
        };
        Ok(attempts.as_u64().context("failed_attempts is a number")? > 0)
    }
}

/// tgt or istgt.
struct Program {
    spawn: fn(Setup, u16, TempDir) -> Result<Peer>,
    setup: Setup,
    port: u16,
    running: Option<Peer>,
    disk: Option<TempDir>,
}

impl Restart for Program {
    fn stop(&mut self) -> Result<()> {
        self.disk = Some(self.running.take().context("it runs")?.kill()?);
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        let disk = self.disk.take().context("it was stopped")?;
        self.running = Some((self.spawn)(self.setup, self.port, disk)?);
        Ok(())
    }
}

fn program(
    name: &'static str,
    spawn: fn(Setup, u16, TempDir) -> Result<Peer>,
    setup: Setup,
) -> Result<Target<'static>> {
    let port = peers::free_port()?;
    let peer = spawn(setup, port, tempfile::tempdir()?)?;
    let unit = (peer.target, peer.lun);
    let service = Box::new(Program { spawn, setup, port, running: Some(peer), disk: None });
    Target::iscsi(name, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), unit, setup, service)
}

/// nvmet or LIO: its port is closed and opened by a line of shell in its guest.
struct Port<'a> {
    linux: &'a mut LinuxTarget,
    close: &'static str,
    open: &'static str,
}

impl Restart for Port<'_> {
    fn stop(&mut self) -> Result<()> {
        self.linux.run(self.close)
    }

    fn start(&mut self) -> Result<()> {
        self.linux.run(self.open)
    }
}

fn nvmet(linux: &mut LinuxTarget, setup: Setup) -> Result<Target<'_>> {
    let at = linux.address();
    let close = "rm /sys/kernel/config/nvmet/ports/1/subsystems/nqn.2024-01.org.sluice:linux";
    let open = "cd /sys/kernel/config/nvmet && ln -s $PWD/subsystems/nqn.2024-01.org.sluice:linux ports/1/subsystems/";
    Target::nvme("nvmet", at, LINUX_NQN, setup, Box::new(Port { linux, close, open }))
}

fn lio(linux: &mut LinuxTarget, setup: Setup) -> Result<Target<'_>> {
    const CLOSE: &str = "echo 0 >/sys/kernel/config/target/iscsi/iqn.2024-01.org.sluice:linux/tpgt_1/enable";
    const OPEN: &str = "echo 1 >/sys/kernel/config/target/iscsi/iqn.2024-01.org.sluice:linux/tpgt_1/enable";
    let at = linux.address();
    linux.run(&format!(
        "cd /sys/kernel/config/target/iscsi/{LINUX_IQN}/tpgt_1 && echo -n {} >auth/userid && echo -n {} >auth/password && \
         echo {} >attrib/authentication",
        USER.0,
        USER.1,
        u8::from(setup.chap)
    ))?;
    Target::iscsi("lio", at, (LINUX_IQN, 0), setup, Box::new(Port { linux, close: CLOSE, open: OPEN }))
}

/// Serves a disk at an address.
type Serve = dyn Fn(&str) -> Result<CloudDisk>;

/// Our own target.
struct Own {
    serve: Box<Serve>,
    address: String,
    running: Option<CloudDisk>,
}

impl Own {
    fn start(serve: impl Fn(&str) -> Result<CloudDisk> + 'static) -> Result<Own> {
        let running = serve("127.0.0.1:0")?;
        Ok(Own { serve: Box::new(serve), address: running.address.clone(), running: Some(running) })
    }
}

impl Restart for Own {
    fn stop(&mut self) -> Result<()> {
        self.running = None;
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        self.running = Some((self.serve)(&self.address)?);
        Ok(())
    }
}

fn own_nvme(daemon: &Daemon, setup: Setup) -> Result<Target<'static>> {
    let image = image(daemon, "own-nvme.img")?;
    let own = Own::start(move |address| nvme_target(&image, false, address))?;
    Target::nvme("own-nvme", own.address.parse()?, NQN, setup, Box::new(own))
}

fn own_iscsi(daemon: &Daemon, setup: Setup) -> Result<Target<'static>> {
    let image = image(daemon, "own-iscsi.img")?;
    let user = iscsi::Credentials { name: USER.0.into(), secret: USER.1.into() };
    let auth = iscsi::Auth { initiator: setup.chap.then_some(user), ..iscsi::Auth::default() };
    let own = Own::start(move |address| iscsi_target_with(auth.clone(), &image, false, address))?;
    Target::iscsi("own-iscsi", own.address.parse()?, (IQN, 0), setup, Box::new(own))
}

fn image(daemon: &Daemon, name: &str) -> Result<PathBuf> {
    let path = daemon.file(name);
    File::create(&path)?.set_len(peers::LEN)?;
    Ok(path)
}

/// What the guest runs: on each disk fio after fio, until a line comes over the console.
fn script(disks: usize) -> String {
    let mut script = "(read -r line </dev/console; touch stop) &\n".to_owned();
    for device in ('a'..='z').take(disks).map(|letter| format!("vd{letter}")) {
        let jobs = fio::mixed(&device, 2, 4);
        script += &format!(
            "cat >{device}.jobs <<'END'\n{jobs}END\n(\n{}turns=0\nuntil [ -e stop ]; do\n\
             fio --output={device}.log {device}.jobs 2>&1 || {{ cat {device}.log; echo '{device}: failed'; exit 1; }}\n\
             turns=$((turns + 1))\ndone\necho \"{device}: verified $turns times\"\n) &\npids=\"$pids $!\"\n",
            fio::mixed_environment(&device)
        );
    }
    script + "for pid in $pids; do wait $pid; done\n"
}

/// Waits until each target's disk has served some more I/O.
fn go_on(daemon: &Daemon, targets: &[Target]) -> Result<()> {
    let so_far = targets.iter().map(|target| daemon.io_count(&target.disk())).collect::<Result<Vec<_>>>()?;
    for (target, count) in targets.iter().zip(so_far) {
        daemon.wait_for_io(&target.disk(), count + 300, RECOVERY_TIMEOUT)?;
    }
    Ok(())
}

/// All targets are out of reach for a while, with I/O under way.
fn outage(daemon: &Daemon, targets: &mut [Target], fault: Fault) -> Result<()> {
    let started = Instant::now();
    targets.iter_mut().try_for_each(|target| target.break_down(fault))?;
    for target in targets.iter() {
        while !target.is_lost(daemon)? {
            ensure!(started.elapsed() < RECOVERY_TIMEOUT, "{} was never missed", target.name);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    println!("{fault:?}: all are lost after {:.1} s", started.elapsed().as_secs_f32());
    targets.iter_mut().try_for_each(|target| target.come_back(fault))?;
    go_on(daemon, targets)?;
    println!("{fault:?}: all go on after {:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}

fn verify(daemon: &Daemon, targets: &mut [Target], setup: Setup) -> Result<()> {
    let started = Instant::now();
    let sockets = targets.iter().map(|target| target.serve(daemon)).collect::<Result<Vec<_>>>()?;
    let mut guest = Uml::start(&sockets, &script(sockets.len()))?;
    guest.console().wait_for("guest: up", RECOVERY_TIMEOUT)?;
    go_on(daemon, targets)?;
    match (setup.digests, setup.chap) {
        (false, false) => outage(daemon, targets, Fault::PathLost)?,
        (true, true) => outage(daemon, targets, Fault::Restart)?,
        _ => {}
    }
    guest.console_mut().write_line("stop")?;
    let output = guest.finish(RECOVERY_TIMEOUT)?;
    for target in targets.iter() {
        let stat = daemon.rpc("bdev_get_iostat", json!({"name": target.disk()}))?["bdevs"][0].take();
        let [reads, writes, flushes, trims] =
            ["read", "write", "flush", "unmap"].map(|op| stat[format!("num_{op}_ops")].clone());
        println!("{}: {reads} reads, {writes} writes, {flushes} flushes, {trims} trims", target.name);
        daemon.rpc("boot_delete", json!({"name": target.name}))?;
    }
    let verified = output.lines().filter(|line| line.contains(": verified ")).count();
    ensure!(verified == targets.len(), "{verified} of {} disks were verified:\n{output}", targets.len());
    println!("{setup:?}: {verified} disks in {:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}

/// I/O of mixed sizes and alignments at several depths, flushes and trims, with digests and CHAP on and off: each block reads
/// back as it was written last, also where the paths are lost and where the targets are restarted in the middle.
#[test]
#[ignore = "boots guests"]
fn fio_verifies_every_target_with_digests_and_chap_on_and_off() -> Result<()> {
    let mut linux_nvme = LinuxTarget::start(Protocol::Nvme)?;
    let mut linux_iscsi = LinuxTarget::start(Protocol::Iscsi)?;
    let daemon = Daemon::start("0")?;
    for (digests, chap) in [(false, false), (true, false), (false, true), (true, true)] {
        let setup = Setup { digests, chap, mutual: false };
        let mut targets = vec![own_nvme(&daemon, setup)?, own_iscsi(&daemon, setup)?];
        if peers::installed("tgtd") {
            targets.push(program("tgt", peers::tgt, setup)?);
        }
        if peers::installed("istgt") {
            targets.push(program("istgt", peers::istgt, setup)?);
        }
        if let Some(linux) = &mut linux_nvme {
            targets.push(nvmet(linux, setup)?);
        }
        if let Some(linux) = &mut linux_iscsi {
            targets.push(lio(linux, setup)?);
        }
        verify(&daemon, &mut targets, setup).with_context(|| format!("{setup:?}"))?;
    }
    Ok(())
}

/// That fio sees a single wrong bit in what the target holds.
#[test]
#[ignore = "boots a guest"]
fn fio_notices_a_byte_that_changed_at_the_target() -> Result<()> {
    let daemon = Daemon::start("0")?;
    let target = own_nvme(&daemon, Setup::default())?;
    let jobs = fio::mixed("vda", 4, 1);
    let script = format!(
        "{}cat >jobs <<'END'\n{jobs}END\nfio jobs >/dev/null\nfio --verify_only jobs >/dev/null\necho written\n\
         read -r line </dev/console\nif fio --verify_only jobs; then echo unnoticed; exit 1; fi\n",
        fio::mixed_environment("vda")
    );
    let mut guest = Uml::start(&[target.serve(&daemon)?], &script)?;
    guest.console().wait_for("written", RECOVERY_TIMEOUT)?;
    let (file, at) = (File::options().read(true).write(true).open(daemon.file("own-nvme.img"))?, 5_432_100);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1], at)?;
    guest.console_mut().write_line("changed")?;
    let output = guest.finish(RECOVERY_TIMEOUT)?;
    ensure!(output.contains("verify failed at file /dev/vda offset"), "{output}");
    Ok(())
}
