//! Against Linux's own target: nvmet-tcp of Debian's kernel in a QEMU guest. Skipped with a word on what is missing. Ignored by
//! default, as it boots a guest: `cargo test -p nvme --test linux -- --ignored`.

mod support;

use block::Status;
use hwtests::{LinuxTarget, Protocol};
use nvme::{AttachParams, Event, EventSink, NvmeController};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{compare, first_disk, pattern, read, wait_for, write};

const NQN: &str = "nqn.2024-01.org.sluice:linux";
const SUBSYSTEM: &str = "/sys/kernel/config/nvmet/subsystems/nqn.2024-01.org.sluice:linux";

/// What nvmet gives a file on tmpfs.
const BLOCK: u64 = 4096;

fn attach_params(linux: &LinuxTarget) -> AttachParams {
    let mut params = AttachParams::new("Nvme0", linux.address(), NQN);
    params.options.keep_alive_timeout_ms = 5000;
    params
}

#[test]
#[ignore = "boots a guest"]
fn linux_nvmet_tcp() {
    let Some(mut linux) = LinuxTarget::start(Protocol::Nvme).unwrap() else { return };
    mixed_io_with_every_digest(&linux);
    compare_is_unsupported(&linux);
    namespaces_change(&mut linux);
    outage(&mut linux);
    wrong_names(&linux);
}

/// The controller's story goes to the test's output.
fn told() -> EventSink {
    Arc::new(|event: &Event| eprintln!("{event}"))
}

fn mixed_io_with_every_digest(linux: &LinuxTarget) {
    for digests in 0..4 {
        let mut params = attach_params(linux);
        (params.hdgst, params.ddgst) = (digests & 1 != 0, digests & 2 != 0);
        let controller = NvmeController::attach(&params, told()).unwrap();
        let disk = first_disk(&controller);
        assert_eq!((disk.geometry().size_bytes(), u64::from(disk.geometry().block_size)), (64 << 20, BLOCK));
        let mut channel = disk.open_channel().unwrap();
        for (i, len) in [4096, 8192, 12_288, 65_536, 131_072, 1 << 20, 3 << 20].into_iter().enumerate() {
            let bytes = pattern(len, i as u64 + digests);
            eprintln!("digests {digests}, {len} bytes");
            let offset = 4096 * (i as u64 + 1);
            assert_eq!(write(channel.as_mut(), offset, &bytes), Status::Ok, "{len} digests {digests}");
            let (back, status) = read(channel.as_mut(), offset, len as u64);
            assert!(status == Status::Ok && back == bytes, "{len} bytes, digests {digests}: {status:?}");
        }
        controller.detach();
    }
    let found = nvme::discover(&attach_params(linux)).unwrap();
    assert!(found.iter().any(|entry| entry.subnqn == NQN), "{found:?}");
}

/// nvmet compares neither on files nor on block devices: it does not announce the command, and refuses it.
fn compare_is_unsupported(linux: &LinuxTarget) {
    let controller = NvmeController::attach(&attach_params(linux), told()).unwrap();
    let disk = first_disk(&controller);
    assert!(!disk.geometry().compare);
    let mut channel = disk.open_channel().unwrap();
    assert_eq!(compare(channel.as_mut(), 0, &[0; 4096]), Status::Unsupported);
    assert_eq!(write(channel.as_mut(), 0, &[0; 4096]), Status::Ok, "the queue goes on");
}

fn namespaces_change(linux: &mut LinuxTarget) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = {
        let events = events.clone();
        Arc::new(move |event: &Event| events.lock().unwrap().push(event.clone()))
    };
    let controller = NvmeController::attach(&attach_params(linux), sink).unwrap();
    let seen = |wanted: Event| events.lock().unwrap().contains(&wanted);
    linux.run(&format!("truncate -s 96M /tmp/disk && echo 1 >{SUBSYSTEM}/namespaces/1/revalidate_size")).unwrap();
    wait_for("resize", || seen(Event::NamespaceResized { nsid: 1, from: (64 << 20) / BLOCK, to: (96 << 20) / BLOCK }));
    linux
        .run(&format!(
            "truncate -s 8M /tmp/second && cd {SUBSYSTEM}/namespaces && mkdir 2 && echo -n /tmp/second >2/device_path \
         && echo 1 >2/buffered_io && echo 1 >2/enable"
        ))
        .unwrap();
    wait_for("a second namespace", || seen(Event::NamespaceAdded { nsid: 2 }));
    assert_eq!(controller.namespaces().len(), 2);
    linux.run(&format!("echo 0 >{SUBSYSTEM}/namespaces/2/enable && rmdir {SUBSYSTEM}/namespaces/2")).unwrap();
    wait_for("its removal", || seen(Event::NamespaceRemoved { nsid: 2 }));
    linux.run("truncate -s 64M /tmp/disk").unwrap();
    assert!(controller.namespaces()[0].1.rescan().unwrap());
}

/// The port goes away under a held write, for longer than the keep-alive timeout, and comes back.
fn outage(linux: &mut LinuxTarget) {
    let controller = NvmeController::attach(&attach_params(linux), told()).unwrap();
    let mut channel = first_disk(&controller).open_channel().unwrap();
    assert_eq!(write(channel.as_mut(), 0, &pattern(65_536, 1)), Status::Ok);
    let link = "/sys/kernel/config/nvmet/ports/1/subsystems/nqn.2024-01.org.sluice:linux";
    linux.run(&format!("rm {link}")).unwrap();
    let bytes = pattern(65_536, 2);
    let writer = {
        let bytes = bytes.clone();
        std::thread::spawn(move || {
            let status = write(channel.as_mut(), 0, &bytes);
            (channel, status)
        })
    };
    std::thread::sleep(Duration::from_secs(3));
    linux.run(&format!("ln -s {SUBSYSTEM} {link}")).unwrap();
    let (mut channel, status) = writer.join().unwrap();
    assert_eq!(status, Status::Ok);
    assert!(read(channel.as_mut(), 0, 65_536).0 == bytes);
    assert!(controller.status().associations >= 2);
}

fn wrong_names(linux: &LinuxTarget) {
    let mut params = attach_params(linux);
    params.subnqn = "nqn.2024-01.org.sluice:other".into();
    let error = NvmeController::attach(&params, told()).unwrap_err().to_string();
    assert!(error.contains("Connect: the target refuses"), "{error}");
}
