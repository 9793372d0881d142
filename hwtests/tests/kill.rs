//! The daemon is killed and started again under verified I/O: guests see a pause, never an error.

use anyhow::{Context, Result, ensure};
use hwtests::{Daemon, Disk, Qemu, QemuConfig, SocketRole, Uml, fio};
use serde_json::json;
use std::fs::File;
use std::time::Duration;

const KILLS: u32 = 20;

/// One guest, five disks of one daemon: the boot disk, and split and packed rings with the backend as the socket's server
/// and as its client. Before each of the kills every disk must have served I/O in that life of the daemon.
#[test]
#[ignore = "boots a guest"]
fn a_guest_survives_20_kills_split_and_packed_server_and_client() -> Result<()> {
    let mut daemon = Daemon::start("0")?;
    daemon.serve_guest_image("boot", json!({"readonly": true}))?;
    let mut disks = vec![Disk::new(daemon.vhost_socket("boot"))];
    let kinds = [
        ("split-server", false, SocketRole::Server),
        ("packed-server", true, SocketRole::Server),
        ("split-client", false, SocketRole::Client),
        ("packed-client", true, SocketRole::Client),
    ];
    for (name, packed, role) in kinds {
        let data = daemon.file(&format!("{name}.img"));
        File::create(&data)?.set_len(32 << 20)?;
        let socket_role = if role == SocketRole::Server { "server" } else { "client" };
        daemon.serve_file(name, &data, json!({"packed_ring": packed, "socket_role": socket_role}))?;
        disks.push(Disk { socket: daemon.vhost_socket(name), role, queues: 2, packed });
    }
    let devices = ["/dev/vdb", "/dev/vdc", "/dev/vdd", "/dev/vde"];
    let verify = fio::Verify { devices: &devices, depths: &[1, 4, 32], mib_per_job: 8, seconds: 30 };
    let guest = Qemu::start(&QemuConfig::new(disks, &verify.script()))?;

    guest.console().wait_for("fio: started", Duration::from_secs(60))?;
    for life in 0..KILLS {
        for (name, ..) in kinds {
            daemon.wait_for_io(name, 50, Duration::from_secs(10)).with_context(|| format!("life {life}"))?;
        }
        daemon.kill_and_restart().with_context(|| format!("life {life}"))?;
        std::thread::sleep(Duration::from_millis(u64::from(life % 5) * 60));
    }
    ensure!(!guest.console().has_written("fio: ended"), "fio had ended before the last kill");
    let reports = guest.finish_fio(Duration::from_secs(90))?;
    println!("{} requests, the longest took {:.0} ms", reports[0].total_ios(), reports[0].longest_ms());
    Ok(())
}

/// What a guest was told is on the disk is there after a kill: a second guest checks the first one's blocks and file system.
/// (User-mode Linux does not connect again: for it a kill is a pulled disk.)
#[test]
#[ignore = "boots a guest"]
fn acknowledged_writes_outlive_a_kill() -> Result<()> {
    let mut daemon = Daemon::start("0")?;
    let data = daemon.file("data.img");
    File::create(&data)?.set_len(256 << 20)?;
    daemon.serve_file("data", &data, json!({}))?;
    let region = "--name=region --filename=/dev/vda --offset=128m --size=64m --bs=4k --ioengine=libaio --iodepth=32 \
                  --direct=1 --verify=crc32c --verify_fatal=1";
    let first = format!(
        "mkfs.ext4 -q /dev/vda 100m\nmkdir /tmp/m\nmount /dev/vda /tmp/m\ncp -r /usr/lib/uml/modules/*/kernel/fs /tmp/m\nsync\numount /tmp/m\n\
         fio {region} --rw=randwrite --do_verify=0 >/dev/null\necho written\n\
         fio --name=more --filename=/dev/vda --offset=200m --size=32m --rw=randwrite --time_based --runtime=60 --direct=1\n"
    );
    let first = Uml::start(&[daemon.vhost_socket("data")], &first)?;
    first.console().wait_for("written", Duration::from_secs(60))?;
    std::thread::sleep(Duration::from_millis(300));
    daemon.kill_and_restart()?;
    drop(first);

    let verify = fio::Verify { devices: &["/dev/vda"], depths: &[1, 32], mib_per_job: 32, seconds: 3 };
    let second = format!(
        "fio {region} --rw=randread --verify_only\nfsck.ext4 -fn /dev/vda\nmkdir /tmp/m\nmount -o ro /dev/vda /tmp/m\n\
         diff -r /usr/lib/uml/modules/*/kernel/fs /tmp/m/fs\numount /tmp/m\n{}",
        verify.script()
    );
    let output = Uml::start(&[daemon.vhost_socket("data")], &second)?.finish(Duration::from_secs(90))?;
    fio::Report::all_in(&output)?.first().context("no fio report")?.check()
}
