//! Live migration: two QEMUs, two daemons, one shared file.

use anyhow::{Result, ensure};
use hwtests::{Daemon, Disk, Qemu, QemuConfig, fio};
use serde_json::json;
use std::fs::File;
use std::time::Duration;

/// A guest that runs fio moves from one QEMU and daemon to another; what it wrote before verifies after, on split and packed.
#[test]
#[ignore = "boots a guest"]
fn a_running_fio_guest_moves_to_another_daemon() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let names = ["split", "packed"];
    for name in names {
        File::create(dir.path().join(name))?.set_len(32 << 20)?;
    }
    let daemons = [Daemon::start("0")?, Daemon::start("1")?];
    let verify = fio::Verify { devices: &["/dev/vdb", "/dev/vdc"], depths: &[1, 16], mib_per_job: 16, seconds: 15 };
    let config = |daemon: &Daemon| -> Result<QemuConfig> {
        daemon.serve_guest_image("boot", json!({"readonly": true}))?;
        let mut disks = vec![Disk::new(daemon.vhost_socket("boot"))];
        for name in names {
            let packed = name == "packed";
            daemon.serve_file(name, &dir.path().join(name), json!({"packed_ring": packed}))?;
            disks.push(Disk { packed, queues: 2, ..Disk::new(daemon.vhost_socket(name)) });
        }
        Ok(QemuConfig::new(disks, &verify.script()))
    };
    let source = Qemu::start(&config(&daemons[0])?)?;
    source.console().wait_for("fio: started", Duration::from_secs(60))?;
    let incoming = dir.path().join("migration");
    let target = Qemu::start(&QemuConfig { incoming: Some(incoming.clone()), ..config(&daemons[1])? })?;
    for name in names {
        daemons[0].wait_for_io(name, 500, Duration::from_secs(20))?;
    }

    target.qmp()?;
    let state = source.migrate(&incoming)?;
    println!("moved in {} ms, downtime {} ms", state["total-time"], state["downtime"]);
    let before = source.console().output();
    drop(source);
    ensure!(!before.contains("fio: ended"), "fio had ended before the move:\n{before}");
    for name in names {
        daemons[1].wait_for_io(name, 500, Duration::from_secs(20))?;
    }

    let output = before + &target.finish(Duration::from_secs(60))?;
    let reports = fio::Report::all_in(&output)?;
    ensure!(reports.len() == 1, "{output}");
    reports[0].check()
}
