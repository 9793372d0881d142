//! QEMU guests with vhost-user disks and network cards.

use crate::process::Process;
use crate::qmp::Qmp;
use crate::{SocketRole, fio};
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// What the guest boots with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// QEMU's default BIOS.
    SeaBios,
    /// UEFI; the disks are then modern devices behind root ports.
    Ovmf,
}

/// A vhost-user-blk disk; the first of a guest's list is the one it boots from.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// Which end of the socket the backend is.
    pub role: SocketRole,
    /// Virtqueues.
    pub queues: u16,
    /// Packed rings, else split.
    pub packed: bool,
}

impl Disk {
    /// A disk with one split queue whose backend listens on `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Disk {
        Disk { socket: socket.into(), role: SocketRole::Server, queues: 1, packed: false }
    }
}

/// A virtio-net card over vhost-user.
#[derive(Clone, Debug)]
pub struct Card {
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// Which end of the socket the backend is.
    pub role: SocketRole,
    /// Its address.
    pub mac: String,
    /// Queue pairs.
    pub pairs: u16,
    /// Further properties of QEMU's device, such as `packed=on`.
    pub properties: &'static str,
}

impl Card {
    /// A card with one pair of split queues whose backend listens on `socket`.
    pub fn new(socket: impl Into<PathBuf>, mac: &str) -> Card {
        Card { socket: socket.into(), role: SocketRole::Server, mac: mac.to_owned(), pairs: 1, properties: "" }
    }
}

/// A guest to be started.
pub struct QemuConfig {
    /// What it boots with.
    pub firmware: Firmware,
    /// Virtual CPUs.
    pub vcpus: u16,
    /// Its disks, the boot disk first.
    pub disks: Vec<Disk>,
    /// Shell commands that the guest runs as root, its output being the serial line; then it powers off.
    pub script: String,
    /// Wait for a migration on this Unix socket instead of booting.
    pub incoming: Option<PathBuf>,
    /// Its network cards.
    pub cards: Vec<Card>,
}

impl QemuConfig {
    /// A guest with SeaBIOS and 2 CPUs that runs `script`.
    pub fn new(disks: Vec<Disk>, script: &str) -> QemuConfig {
        QemuConfig {
            firmware: Firmware::SeaBios,
            vcpus: 2,
            disks,
            script: script.to_owned(),
            incoming: None,
            cards: Vec::new(),
        }
    }
}

/// MiB of a guest's memory at its start.
const MEMORY_MIB: u32 = 512;

/// A running QEMU guest with shared memory. While it runs it can take 3 GiB more memory, as DIMMs, and a device at the PCI bus
/// `spare`.
pub struct Qemu {
    dir: TempDir,
    process: Process,
}

impl Qemu {
    /// Starts QEMU; the guest's output is that of [`Qemu::console`].
    pub fn start(config: &QemuConfig) -> Result<Qemu> {
        let dir = tempfile::tempdir()?;
        let script = dir.path().join("run");
        std::fs::write(&script, format!("set -e\n{}", config.script))?;
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-cpu", "max"])
            .args(["-machine", "q35,memory-backend=mem0", "-accel", "tcg,thread=multi"])
            .args(["-m", &format!("{MEMORY_MIB},slots=4,maxmem=4G"), "-smp", &config.vcpus.to_string()])
            .args(["-object", &format!("memory-backend-memfd,id=mem0,size={MEMORY_MIB}M,share=on")])
            .args(["-device", "pcie-root-port,id=spare,chassis=255"])
            .args(["-fw_cfg", &format!("name=opt/run,file={}", script.display())])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", dir.path().join("qmp").display())]);
        if config.firmware == Firmware::Ovmf {
            add_ovmf(&mut command, dir.path())?;
        }
        for (index, disk) in config.disks.iter().enumerate() {
            add_disk(&mut command, index, disk, config.firmware);
        }
        for (index, card) in config.cards.iter().enumerate() {
            add_card(&mut command, index, card);
        }
        if let Some(path) = &config.incoming {
            command.args(["-incoming", &format!("unix:{}", path.display())]);
        }
        Ok(Qemu { process: Process::spawn("guest", &command)?, dir })
    }

    /// The QEMU process: its output is the guest's serial line.
    pub fn console(&self) -> &Process {
        &self.process
    }

    /// As [`Qemu::console`], to write to the guest's serial line.
    pub fn console_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Connects to the machine monitor; QEMU takes one client at a time.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.dir.path().join("qmp"), Duration::from_secs(10))
    }

    /// Moves the guest to the QEMU that waits at `incoming`; returns the answer of `query-migrate`.
    pub fn migrate(&self, incoming: &Path) -> Result<Value> {
        let mut monitor = self.qmp()?;
        // The guest writes its memory faster than QEMU's default of 300 ms of downtime allows under emulation.
        monitor.execute("migrate-set-parameters", json!({"downtime-limit": 1000, "max-bandwidth": 1_u64 << 32}))?;
        monitor.execute("migrate", json!({"uri": format!("unix:{}", incoming.display())}))?;
        monitor.wait_migrated(Duration::from_secs(60))
    }

    /// Waits until the guest's script has ended well and the guest has powered off; returns all it wrote.
    pub fn finish(mut self, timeout: Duration) -> Result<String> {
        let line = self.process.wait_for("guest: exit", timeout)?;
        self.process.wait(Duration::from_secs(20))?;
        let output = self.process.output();
        ensure!(line.ends_with("exit 0"), "the guest's script failed: {line}\n{output}");
        Ok(output)
    }

    /// As [`Qemu::finish`], for a guest that runs fio: each run must have ended well.
    pub fn finish_fio(self, timeout: Duration) -> Result<Vec<fio::Report>> {
        let output = self.finish(timeout)?;
        let reports = fio::Report::all_in(&output)?;
        ensure!(!reports.is_empty(), "no fio ran:\n{output}");
        reports.iter().try_for_each(fio::Report::check)?;
        Ok(reports)
    }
}

fn add_disk(command: &mut Command, index: usize, disk: &Disk, firmware: Firmware) {
    let chardev = chardev(&format!("disk{index}"), &disk.socket, disk.role);
    let mut device = format!("vhost-user-blk-pci,chardev=disk{index},num-queues={},bootindex={index}", disk.queues);
    if disk.packed {
        device += ",packed=on";
    }
    if firmware == Firmware::Ovmf {
        command.args(["-device", &format!("pcie-root-port,id=port{index},chassis={index}")]);
        device += &format!(",bus=port{index}");
    }
    command.args(["-chardev", &chardev, "-device", &device]);
}

fn add_card(command: &mut Command, index: usize, card: &Card) {
    let Card { socket, role, mac, pairs, properties } = card;
    let id = format!("net{index}");
    command.args(["-chardev", &chardev(&id, socket, *role)]);
    command.args(["-netdev", &format!("vhost-user,id=host-{id},chardev={id},queues={pairs}")]);
    let mut device = format!("virtio-net-pci,netdev=host-{id},id={id},romfile=,mac={mac}");
    if *pairs > 1 {
        device += &format!(",mq=on,vectors={}", 2 * pairs + 2);
    }
    if !properties.is_empty() {
        device += &format!(",{properties}");
    }
    command.args(["-device", &device]);
}

fn chardev(id: &str, socket: &Path, role: SocketRole) -> String {
    let path = socket.display();
    match role {
        SocketRole::Server => format!("socket,id={id},path={path},{}", reconnect()),
        SocketRole::Client => format!("socket,id={id},path={path},server=on,wait=off"),
    }
}

/// UEFI code is shared; the variables are a copy of the guest's own.
fn add_ovmf(command: &mut Command, dir: &Path) -> Result<()> {
    let vars = dir.join("ovmf-vars");
    std::fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &vars)?;
    command.args(["-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"]);
    command.args(["-drive", &format!("if=pflash,format=raw,file={}", vars.display())]);
    Ok(())
}

/// QEMU counts the pause before it connects again in milliseconds since 9.2, before that in seconds.
fn reconnect() -> &'static str {
    let version = Command::new("qemu-system-x86_64").arg("--version").output();
    let text = version.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
    let major = text.split("version ").nth(1).and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    if major.is_some_and(|major| major >= 10) { "reconnect-ms=100" } else { "reconnect=1" }
}
