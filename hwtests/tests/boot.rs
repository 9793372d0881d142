//! Guests boot from a disk of ours: firmware, boot loader, kernel and root file system.

use anyhow::{Context, Result, ensure};
use hwtests::{Daemon, Disk, Firmware, Qemu, QemuConfig, SocketRole, guest_image};
use serde_json::json;
use std::fs::File;
use std::io::Read as _;
use std::time::{Duration, Instant};

/// What the guest says of its boot disk: queues, whether rings are packed (feature bit 34), its first MiB.
const LOOK: &str = "
set -- /sys/block/vda/mq/*
echo look: $# queues, packed $(cut -c35 /sys/block/vda/device/features)
grep ' / ' /proc/mounts
echo sum: $(dd if=/dev/vda bs=64k count=256 iflag=direct status=none | sha256sum)
";

fn boot(firmware: Firmware, queues: u16, packed: bool) -> Result<()> {
    let case = format!("{firmware:?}, {queues} queues, packed {packed}");
    let daemon = Daemon::start("0")?;
    daemon.serve_guest_image("boot", json!({"readonly": true, "packed_ring": packed}))?;
    let disk = Disk { socket: daemon.vhost_socket("boot"), role: SocketRole::Server, queues, packed };
    let started = Instant::now();
    let guest = Qemu::start(&QemuConfig { firmware, vcpus: queues, ..QemuConfig::new(vec![disk], LOOK) })?;
    guest.console().wait_for("guest: up", Duration::from_secs(60)).context(case.clone())?;
    println!("{case}: up in {:.1} s", started.elapsed().as_secs_f32());
    let output = guest.finish(Duration::from_secs(30)).context(case.clone())?;
    ensure!(output.contains(&format!("look: {queues} queues, packed {}", u8::from(packed))), "{case}:\n{output}");
    ensure!(output.contains("/dev/vda2 / ext4 ro"), "{case}:\n{output}");
    let sum = image_sum()?;
    ensure!(output.contains(&format!("sum: {sum}")), "{case}: the image has {sum}\n{output}");
    Ok(())
}

/// SHA-256 of the image's first 16 MiB, as `sha256sum` prints it.
fn image_sum() -> Result<String> {
    let mut start = Vec::new();
    File::open(guest_image()?)?.take(16 << 20).read_to_end(&mut start)?;
    let part = tempfile::NamedTempFile::new()?;
    std::fs::write(part.path(), start)?;
    let output = std::process::Command::new("sha256sum").arg(part.path()).output()?;
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace().next().map(str::to_owned).context("sha256sum printed nothing")
}

#[test]
#[ignore = "boots a guest"]
fn seabios_split_1_queue() -> Result<()> {
    boot(Firmware::SeaBios, 1, false)
}

#[test]
#[ignore = "boots a guest"]
fn seabios_split_4_queues() -> Result<()> {
    boot(Firmware::SeaBios, 4, false)
}

#[test]
#[ignore = "boots a guest"]
fn seabios_packed_1_queue() -> Result<()> {
    boot(Firmware::SeaBios, 1, true)
}

#[test]
#[ignore = "boots a guest"]
fn seabios_packed_4_queues() -> Result<()> {
    boot(Firmware::SeaBios, 4, true)
}

#[test]
#[ignore = "boots a guest"]
fn ovmf_packed_2_queues() -> Result<()> {
    boot(Firmware::Ovmf, 2, true)
}
