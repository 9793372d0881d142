use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::process::Process;
use crate::qmp::Qmp;
use crate::{SocketRole, fio};

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
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), role: SocketRole::Server, queues: 1, packed: false }
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
    /// The MAC address of a virtio-net card, if it has one. It leads nowhere.
    pub mac: Option<String>,
}

impl QemuConfig {
    /// A guest with SeaBIOS and 2 CPUs that runs `script`.
    pub fn new(disks: Vec<Disk>, script: &str) -> Self {
        Self { firmware: Firmware::SeaBios, vcpus: 2, disks, script: script.to_owned(), incoming: None, mac: None }
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
    pub fn start(config: &QemuConfig) -> Result<Self> {
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
        if let Some(mac) = &config.mac {
            command.args(["-netdev", "hubport,id=net0,hubid=0"]);
            command.args(["-device", &format!("virtio-net-pci,netdev=net0,romfile=,mac={mac}")]);
        }
        if let Some(path) = &config.incoming {
            command.args(["-incoming", &format!("unix:{}", path.display())]);
        }
        Ok(Self { process: Process::spawn("guest", &command)?, dir })
    }

    /// The QEMU process: its output is the guest's serial line.
    pub fn console(&self) -> &Process {
        &self.process
    }

    /// Connects to the machine monitor; QEMU takes one client at a time.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.dir.path().join("qmp"), Duration::from_secs(10))
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
    let path = disk.socket.display();
    let chardev = match disk.role {
        SocketRole::Server => format!("socket,id=disk{index},path={path},{}", reconnect()),
        SocketRole::Client => format!("socket,id=disk{index},path={path},server=on,wait=off"),
    };
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
