//! Against Linux's own target: nvmet-tcp of Debian's kernel in a QEMU guest. Skipped with a word on what is missing. Ignored by
//! default, as it boots a guest: `cargo test -p nvme --test linux -- --ignored`.

use block::{Bdev, Status};
use hwtests::{LinuxTarget, Protocol};
use initiator::testing::{EventLog, Worker, pattern, wait_for};
use nvme::{AttachParams, Event, EventSink, NvmeController, NvmeEvent};
use std::sync::Arc;
use std::time::Duration;

const NQN: &str = "nqn.2024-01.org.sluice:linux";
const SUBSYSTEM: &str = "/sys/kernel/config/nvmet/subsystems/nqn.2024-01.org.sluice:linux";

/// What nvmet gives a file on tmpfs.
const BLOCK: u64 = 4096;

fn attach_params(linux: &LinuxTarget) -> AttachParams {
    let mut params = AttachParams::new("Nvme0", linux.address(), NQN);
    params.options.keep_alive_timeout_ms = 5000;
    params
}

fn first_disk(controller: &NvmeController) -> Arc<dyn Bdev> {
    controller.namespaces()[0].1.clone()
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

/// A sink that prints the controller's events to the test's output.
fn print_events() -> EventSink {
    Arc::new(|event: &Event| eprintln!("{event}"))
}

fn mixed_io_with_every_digest(linux: &LinuxTarget) {
    for digests in 0..4 {
        let mut params = attach_params(linux);
        params.hdgst = digests & 1 != 0;
        params.ddgst = digests & 2 != 0;
        let controller = NvmeController::attach(&params, print_events()).unwrap();
        let disk = first_disk(&controller);
        assert_eq!((disk.geometry().size_bytes(), u64::from(disk.geometry().block_size)), (64 << 20, BLOCK));
        let mut worker = Worker::open(&*disk);
        for (i, len) in [4096, 8192, 12_288, 65_536, 131_072, 1 << 20, 3 << 20].into_iter().enumerate() {
            let bytes = pattern(i as u64 + digests, len);
            eprintln!("digests {digests}, {len} bytes");
            let offset = 4096 * (i as u64 + 1);
            assert_eq!(worker.write(offset, &bytes), Status::Ok, "{len} digests {digests}");
            let (back, status) = worker.read(offset, len);
            assert!(status == Status::Ok && back == bytes, "{len} bytes, digests {digests}: {status:?}");
        }
        controller.detach();
    }
    let found = nvme::discover(&attach_params(linux)).unwrap();
    assert!(found.iter().any(|entry| entry.subnqn == NQN), "{found:?}");
}

/// nvmet compares neither on files nor on block devices: it does not announce the command, and refuses it.
fn compare_is_unsupported(linux: &LinuxTarget) {
    let controller = NvmeController::attach(&attach_params(linux), print_events()).unwrap();
    let disk = first_disk(&controller);
    assert!(!disk.geometry().compare);
    let mut worker = Worker::open(&*disk);
    assert_eq!(worker.compare(0, &[0; 4096]), Status::Unsupported);
    assert_eq!(worker.write(0, &[0; 4096]), Status::Ok, "the queue goes on");
}

fn namespaces_change(linux: &mut LinuxTarget) {
    let log = EventLog::default();
    let controller = NvmeController::attach(&attach_params(linux), log.sink()).unwrap();
    let seen = |wanted: NvmeEvent| log.any(|event| *event == wanted.clone().into());
    linux.run(&format!("truncate -s 96M /tmp/disk && echo 1 >{SUBSYSTEM}/namespaces/1/revalidate_size")).unwrap();
    wait_for("resize", || {
        seen(NvmeEvent::NamespaceResized { nsid: 1, from: (64 << 20) / BLOCK, to: (96 << 20) / BLOCK })
    });
    linux
        .run(&format!(
            "truncate -s 8M /tmp/second && cd {SUBSYSTEM}/namespaces && mkdir 2 && echo -n /tmp/second >2/device_path \
         && echo 1 >2/buffered_io && echo 1 >2/enable"
        ))
        .unwrap();
    wait_for("a second namespace", || seen(NvmeEvent::NamespaceAdded { nsid: 2 }));
    assert_eq!(controller.namespaces().len(), 2);
    linux.run(&format!("echo 0 >{SUBSYSTEM}/namespaces/2/enable && rmdir {SUBSYSTEM}/namespaces/2")).unwrap();
    wait_for("its removal", || seen(NvmeEvent::NamespaceRemoved { nsid: 2 }));
    linux.run("truncate -s 64M /tmp/disk").unwrap();
    assert!(controller.namespaces()[0].1.rescan().unwrap());
}

/// The port goes away under a held write, for longer than the keep-alive timeout, and comes back.
fn outage(linux: &mut LinuxTarget) {
    let controller = NvmeController::attach(&attach_params(linux), print_events()).unwrap();
    let mut worker = Worker::open(&*first_disk(&controller));
    assert_eq!(worker.write(0, &pattern(1, 65_536)), Status::Ok);
    let link = "/sys/kernel/config/nvmet/ports/1/subsystems/nqn.2024-01.org.sluice:linux";
    linux.run(&format!("rm {link}")).unwrap();
    let bytes = pattern(2, 65_536);
    let writer = {
        let bytes = bytes.clone();
        std::thread::spawn(move || {
            let status = worker.write(0, &bytes);
            (worker, status)
        })
    };
    std::thread::sleep(Duration::from_secs(3));
    linux.run(&format!("ln -s {SUBSYSTEM} {link}")).unwrap();
    let (mut worker, status) = writer.join().unwrap();
    assert_eq!(status, Status::Ok);
    assert!(worker.read(0, 65_536).0 == bytes);
    assert!(controller.status().associations >= 2);
}

fn wrong_names(linux: &LinuxTarget) {
    let mut params = attach_params(linux);
    params.subnqn = "nqn.2024-01.org.sluice:other".into();
    let error = NvmeController::attach(&params, print_events()).unwrap_err().to_string();
    assert!(error.contains("Connect: the target refuses"), "{error}");
}
