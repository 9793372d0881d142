//! Guests boot from cloud disks, take their network from a cidata disk, and do not notice when the target is gone for a while.

mod support;

use anyhow::{Context, Result, bail, ensure};
use hwtests::{Card, Daemon, Disk, Qemu, QemuConfig, Qmp, cloud_init_image, fio, guest_image};
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};
use support::{CloudDisk, IQN, NQN, iscsi_target, nvme_target};

const MAC: &str = "52:54:00:12:34:56";

/// The part of `boot_create` that says where the disk is.
fn source(protocol: &str, address: &str) -> Result<Value> {
    let (ip, port) = address.rsplit_once(':').context("an address has a port")?;
    Ok(match protocol {
        "nvme" => json!({"traddr": ip, "trsvcid": port, "subnqn": NQN}),
        "iscsi" => json!({"url": format!("iscsi://{address}/{IQN}/0"), "initiator_iqn": "iqn.2024-01.io.sluice:host"}),
        other => bail!("no protocol {other}"),
    })
}

fn boots(protocol: &str, disk: &CloudDisk) -> Result<()> {
    let daemon = Daemon::start("0")?;
    let network = format!(
        "version: 2\nethernets:\n  net0:\n    match: {{macaddress: \"{MAC}\"}}\n    addresses: [10.77.0.2/24]\n"
    );
    let before = Instant::now();
    let booted = daemon.rpc(
        "boot_create",
        json!({
            "name": "host",
            protocol: source(protocol, &disk.address)?,
            "cidata": {"user_data": "#cloud-config\n", "network_config": network},
        }),
    )?;
    println!("{protocol}: {} us from the call to the first read and the sockets", booted["total_us"]);
    let disks = vec![Disk::new(daemon.vhost_socket("host")), Disk::new(daemon.vhost_socket("host-cidata"))];
    daemon.rpc("vhost_create_net_controller", json!({"ctrlr": "net"}))?;
    let cards = vec![Card::new(daemon.vhost_socket("net"), MAC)];
    let config = QemuConfig { cards, ..QemuConfig::new(disks, "busybox ip addr") };
    let guest = Qemu::start(&config)?;
    guest.console().wait_for("guest: up", Duration::from_secs(60))?;
    println!("{protocol}: {:.1} s from the call to user space", before.elapsed().as_secs_f32());
    let output = guest.finish(Duration::from_secs(30))?;
    ensure!(output.contains("inet 10.77.0.2/24"), "{protocol}: the network was not configured\n{output}");
    ensure!(output.contains("guest: instance "), "{protocol}: no instance-id\n{output}");
    daemon.rpc("boot_delete", json!({"name": "host"}))?;
    ensure!(daemon.rpc("bdev_get_bdevs", json!({}))? == json!([]), "{protocol}: disks are left");
    Ok(())
}

#[test]
#[ignore = "boots a guest"]
fn a_guest_boots_over_nvme_and_takes_its_network_from_cidata() -> Result<()> {
    boots("nvme", &nvme_target(&guest_image()?, true, "127.0.0.1:0")?)
}

#[test]
#[ignore = "boots a guest"]
fn a_guest_boots_over_iscsi_and_takes_its_network_from_cidata() -> Result<()> {
    boots("iscsi", &iscsi_target(&guest_image()?, true, "127.0.0.1:0")?)
}

/// Debian's cloud-init, under systemd, finds the cidata disk by its label and applies all of it.
fn cloud_init(protocol: &str, serve: fn(&Path, bool, &str) -> Result<CloudDisk>) -> Result<()> {
    let daemon = Daemon::start("0")?;
    let image = daemon.file("root.img");
    std::fs::copy(cloud_init_image()?, &image)?;
    let disk = serve(&image, false, "127.0.0.1:0")?;
    let user_data = "#cloud-config\nwrite_files:\n- {path: /etc/seen, content: from user-data}\nruncmd:\n\
                     - cat /etc/seen /var/lib/cloud/data/instance-id >/dev/ttyS0\n\
                     - networkctl --no-pager status net0 >/dev/ttyS0\n- echo user-data has run >/dev/ttyS0\n";
    let network = format!(
        "version: 2\nethernets:\n  any:\n    match: {{macaddress: \"{MAC}\"}}\n    set-name: net0\n    \
         addresses: [10.77.0.2/24]\n"
    );
    daemon.rpc(
        "boot_create",
        json!({
            "name": "host",
            protocol: source(protocol, &disk.address)?,
            "cidata": {"user_data": user_data, "network_config": network, "instance_id": "host-7"},
        }),
    )?;
    let disks = vec![Disk::new(daemon.vhost_socket("host")), Disk::new(daemon.vhost_socket("host-cidata"))];
    daemon.rpc("vhost_create_net_controller", json!({"ctrlr": "net"}))?;
    let cards = vec![Card::new(daemon.vhost_socket("net"), MAC)];
    let guest = Qemu::start(&QemuConfig { cards, ..QemuConfig::new(disks, "") })?;
    let started = Instant::now();
    guest.console().wait_for("user-data has run", Duration::from_secs(500))?;
    println!("{protocol}: cloud-init has ended after {:.1} s", started.elapsed().as_secs_f32());
    let output = guest.console().output();
    for expected in ["from user-data", "host-7", "10.77.0.2"] {
        ensure!(output.contains(expected), "{protocol}: no {expected}\n{output}");
    }
    Ok(())
}

#[test]
#[ignore = "builds an image and boots it: minutes"]
fn cloud_init_of_debian_applies_cidata_over_nvme() -> Result<()> {
    cloud_init("nvme", nvme_target)
}

#[test]
#[ignore = "builds an image and boots it: minutes"]
fn cloud_init_of_debian_applies_cidata_over_iscsi() -> Result<()> {
    cloud_init("iscsi", iscsi_target)
}

/// What was made before a step that fails is gone again.
#[test]
fn a_boot_that_fails_leaves_nothing_behind() -> Result<()> {
    let daemon = Daemon::start("0")?;
    let image = daemon.file("data.img");
    File::create(&image)?.set_len(1 << 20)?;
    let disk = nvme_target(&image, false, "127.0.0.1:0")?;
    let call = json!({
        "name": "host",
        "nvme": source("nvme", &disk.address)?,
        "cidata": {"user_data": "#cloud-config\nnot yaml: [", "network_config": "version: 2"},
    });
    let error = daemon.rpc("boot_create", call).expect_err("user-data is not YAML").to_string();
    ensure!(error.contains("bdev_cidata_create") && error.contains("user-data"), "{error}");
    ensure!(daemon.rpc("bdev_get_bdevs", json!({}))? == json!([]));
    ensure!(daemon.rpc("bdev_nvme_get_controllers", json!({}))? == json!([]));
    Ok(())
}

/// Both targets go away under verified I/O and come back: no error in the guest, and the events tell the story.
#[test]
#[ignore = "boots a guest"]
fn verified_io_survives_target_outages() -> Result<()> {
    const AWAY: Duration = Duration::from_secs(60);
    let daemon = Daemon::start("0")?;
    daemon.serve_guest_image("boot", json!({"readonly": true}))?;
    let (nvme_image, iscsi_image) = (daemon.file("nvme.img"), daemon.file("iscsi.img"));
    for image in [&nvme_image, &iscsi_image] {
        File::create(image)?.set_len(64 << 20)?;
    }
    let nvme = nvme_target(&nvme_image, false, "127.0.0.1:0")?;
    let iscsi = iscsi_target(&iscsi_image, false, "127.0.0.1:0")?;
    let (nvme_at, iscsi_at) = (nvme.address.clone(), iscsi.address.clone());
    daemon.rpc("boot_create", json!({"name": "n", "nvme": source("nvme", &nvme_at)?}))?;
    daemon.rpc("boot_create", json!({"name": "i", "iscsi": source("iscsi", &iscsi_at)?}))?;
    let disks = ["boot", "n", "i"].map(|name| Disk::new(daemon.vhost_socket(name))).to_vec();
    let verify = fio::Verify { devices: &["/dev/vdb", "/dev/vdc"], depths: &[1, 16], mib_per_job: 8, seconds: 100 };
    let guest = Qemu::start(&QemuConfig::new(disks, &verify.script()))?;
    guest.console().wait_for("fio: started", Duration::from_secs(60))?;
    std::thread::sleep(Duration::from_secs(5));

    drop((nvme, iscsi));
    let (gone, mut calls) = (Instant::now(), Vec::new());
    while gone.elapsed() < AWAY {
        let call = Instant::now();
        daemon.rpc("bdev_get_bdevs", json!({}))?;
        calls.push(call.elapsed());
        std::thread::sleep(Duration::from_secs(1));
    }
    // The median: an emulated guest and fio share the processors with the call.
    calls.sort();
    let median = calls[calls.len() / 2];
    ensure!(median < Duration::from_millis(100), "half of the calls took {median:?} and more: {calls:?}");
    let lost = daemon.rpc("bdev_nvme_get_controllers", json!({}))?;
    ensure!(lost[0]["ctrlrs"][0]["failed_attempts"].as_u64() > Some(3), "{lost}");
    ensure!(lost[0]["ctrlrs"][0]["held"].as_u64() > Some(0), "{lost}");
    let sessions = daemon.rpc("bdev_iscsi_get_sessions", json!({"name": "i"}))?;
    ensure!(sessions[0]["held"].as_u64() > Some(0) && sessions[0]["oldest_ms"].as_u64() > Some(50_000), "{sessions}");
    let _nvme = nvme_target(&nvme_image, false, &nvme_at)?;
    let _iscsi = iscsi_target(&iscsi_image, false, &iscsi_at)?;

    let reports = guest.finish_fio(Duration::from_secs(120))?;
    println!("{} requests, the longest took {:.0} ms", reports[0].total_ios(), reports[0].longest_ms());
    ensure!(reports[0].longest_ms() >= AWAY.as_millis() as f64 - 2000.0, "no request was held");
    let events = daemon.rpc("notify_get_notifications", json!({}))?.to_string();
    ensure!(events.contains("lost") && events.contains("attempt") && events.contains("connected"), "{events}");
    Ok(())
}

/// Twice: waits for a disk, tells its size and each new one while it reads from it, verifies I/O, and waits until the disk is gone.
const WATCH: &str = "
modprobe pciehp 2>/dev/null || true
for turn in nvme iscsi; do
    until [ -b /dev/vdb ]; do sleep 0.1; done
    until [ -e /tmp/$turn ]; do
        dd if=/dev/vdb of=/dev/null bs=4k count=1 iflag=direct status=none
        now=$(cat /sys/block/vdb/size)
        [ \"$now\" = \"$before\" ] || echo \"$turn: $now sectors\"
        before=$now
        [ $now = 131072 ] || touch /tmp/$turn
        sleep 0.1
    done
    fio --name=v --filename=/dev/vdb --offset=60m --size=30m --rw=randrw --bs=4k --iodepth=16 --ioengine=libaio --direct=1 \
        --io_size=8m --verify=crc32c --verify_fatal=1 --output=/tmp/v
    echo \"$turn: verified\"
    while [ -b /dev/vdb ]; do sleep 0.1; done
    echo \"$turn: gone\"
done
";

/// A cloud disk is plugged into a running guest, grows at its target, is written to beyond its old end, and is unplugged.
#[test]
#[ignore = "boots a guest"]
fn data_disks_are_plugged_grown_and_unplugged() -> Result<()> {
    const PLUG_TIMEOUT: Duration = Duration::from_secs(30);
    let daemon = Daemon::start("0")?;
    daemon.serve_guest_image("boot", json!({"readonly": true}))?;
    let guest = Qemu::start(&QemuConfig::new(vec![Disk::new(daemon.vhost_socket("boot"))], WATCH))?;
    guest.console().wait_for("guest: up", Duration::from_secs(60))?;
    let mut monitor = guest.qmp()?;
    for (protocol, target) in
        [("nvme", nvme_target as fn(&Path, bool, &str) -> Result<CloudDisk>), ("iscsi", iscsi_target)]
    {
        let image = daemon.file(&format!("{protocol}.img"));
        File::create(&image)?.set_len(64 << 20)?;
        let disk = target(&image, false, "127.0.0.1:0")?;
        daemon.rpc("boot_create", json!({"name": "data", protocol: source(protocol, &disk.address)?}))?;
        plug(&mut monitor, &daemon.vhost_socket("data"))?;
        guest.console().wait_for(&format!("{protocol}: {} sectors", (64 << 20) / 512), PLUG_TIMEOUT)?;
        (disk.resize)(96 << 20)?;
        guest.console().wait_for(&format!("{protocol}: {} sectors", (96 << 20) / 512), PLUG_TIMEOUT)?;
        guest.console().wait_for(&format!("{protocol}: verified"), PLUG_TIMEOUT)?;
        monitor.execute("device_del", json!({"id": "data"}))?;
        guest.console().wait_for(&format!("{protocol}: gone"), PLUG_TIMEOUT)?;
        unplug(&mut monitor)?;
        daemon.rpc("boot_delete", json!({"name": "data"}))?;
    }
    drop(monitor);
    guest.finish(PLUG_TIMEOUT).map(drop)
}

fn plug(monitor: &mut Qmp, socket: &Path) -> Result<()> {
    let address = json!({"type": "unix", "data": {"path": socket}});
    let backend = json!({"type": "socket", "data": {"addr": address, "server": false}});
    monitor.execute("chardev-add", json!({"id": "data", "backend": backend}))?;
    let device = json!({"driver": "vhost-user-blk-pci", "id": "data", "chardev": "data", "bus": "spare"});
    monitor.execute("device_add", device).map(drop)
}

/// Takes the socket away, once the device that the guest has let go of is gone.
fn unplug(monitor: &mut Qmp) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = monitor.execute("chardev-remove", json!({"id": "data"})) {
        ensure!(Instant::now() < deadline, "{error:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
