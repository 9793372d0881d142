//! The harness against a backend of another maker: what the other tests rely on holds, and these tests can fail.

use anyhow::{Result, ensure};
use hwtests::{Disk, Qemu, QemuConfig, StorageDaemon, Uml, fio, guest_image};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

/// A guest boots from one disk and verifies another whose backend is killed three times; then the host changes one byte of
/// what fio has written, and fio must notice.
#[test]
#[ignore = "boots a guest"]
fn storage_daemon_survives_kills_and_fio_notices_a_changed_byte() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    File::create(&data)?.set_len(128 << 20)?;
    let boot = StorageDaemon::start(&guest_image()?, 1)?;
    let mut scratch = StorageDaemon::start(&data, 2)?;

    let verify = fio::Verify { devices: &["/dev/vdb"], depths: &[1, 8], mib_per_job: 8, seconds: 5 };
    let pattern = "--name=p --filename=/dev/vdb --offset=64m --size=1m --bs=4k --verify=crc32c --verify_fatal=1";
    let script = format!(
        "{}\nfio {pattern} --rw=write --do_verify=0 >/dev/null\necho written\n\
         until grep -q changed /dev/vdb; do sleep 0.2; blockdev --flushbufs /dev/vdb; done\n\
         if fio {pattern} --rw=read --verify_only; then echo unnoticed; exit 1; else echo noticed; fi\n",
        verify.script()
    );
    let disks = vec![Disk::new(boot.socket()), Disk { queues: 2, ..Disk::new(scratch.socket()) }];
    let guest = Qemu::start(&QemuConfig::new(disks, &script))?;

    guest.console().wait_for("fio: started", Duration::from_secs(60))?;
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(1200));
        scratch.kill_and_restart()?;
    }
    ensure!(!guest.console().has_written("fio: ended"), "fio had ended before the last kill");

    guest.console().wait_for("written", Duration::from_secs(60))?;
    let file = File::options().write(true).open(&data)?;
    file.write_all_at(b"!", (64 << 20) + 12345)?;
    file.write_all_at(b"changed", 0)?;
    let reports = guest.finish_fio(Duration::from_secs(60))?;
    ensure!(reports[0].total_ios() > 1000, "too little I/O: {reports:?}");
    Ok(())
}

/// A user-mode Linux guest makes a file system and verifies what fio wrote.
#[test]
#[ignore = "boots a guest"]
fn storage_daemon_serves_a_guest_at_native_speed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    File::create(&data)?.set_len(128 << 20)?;
    let backend = StorageDaemon::start(&data, 1)?;
    let verify = fio::Verify { devices: &["/dev/vda"], depths: &[1, 16], mib_per_job: 16, seconds: 2 };
    let script = format!("mkfs.ext4 -q /dev/vda\n{}", verify.script());
    let output = Uml::start(&[backend.socket()], &script)?.finish(Duration::from_secs(60))?;
    let reports = fio::Report::all_in(&output)?;
    ensure!(reports.len() == 1, "{output}");
    reports[0].check()
}
