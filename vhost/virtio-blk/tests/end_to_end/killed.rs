//! The process that serves the disk is killed at random moments, again and again, while the guest works. Another takes its
//! place: the guest sees a pause, never an error, and every request completes once.

use crate::disk::Disk;
use crate::guest::{LAYOUTS, Vmm};
use crate::rig::{MIB, wait_for};
use crate::traffic::Traffic;
use engine::{Engine, IdlePolicy};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use testkit::Rng;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use virtio_blk::{BlkController, BlkParams, DeviceEventSink, Role};

const DISK: u64 = 4 * MIB;
const QUEUES: u16 = 2;
const SIZE: u16 = 64;
/// Names the directory of disk and socket to the process that is killed.
const DIRECTORY: &str = "SLUICE_TEST_DIRECTORY";
const CLIENT: &str = "SLUICE_TEST_CLIENT";

/// The process that is killed. It serves until then.
#[test]
#[ignore = "started, and killed, by the tests below"]
fn device() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    // SAFETY: a plain system call. Whatever becomes of the test, nothing is left behind.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let engine = Engine::start(&[0, 1], IdlePolicy::default()).unwrap();
    let file = File::options().read(true).write(true).open(directory.join("disk")).unwrap();
    let params = BlkParams {
        name: "killed".into(),
        socket: directory.join("sock"),
        role: if std::env::var_os(CLIENT).is_some() { Role::Client } else { Role::Server },
        socket_mode: 0o600,
        read_only: false,
        packed_ring: true,
        queues: QUEUES,
        workers: engine.workers().to_vec(),
    };
    let _controller = BlkController::start(params, Disk::over(file, DISK), DeviceEventSink::new(1).0).unwrap();
    loop {
        std::thread::park();
    }
}

/// Starts the process above and is connected to it.
struct Devices {
    directory: PathBuf,
    /// Where it connects to us; otherwise we connect to it.
    listener: Option<UnixListener>,
    child: Option<Child>,
}

impl Devices {
    fn start(&mut self) -> UnixStream {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "killed::device"]).env(DIRECTORY, &self.directory);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if self.listener.is_some() {
            command.env(CLIENT, "1");
        }
        self.child = Some(command.spawn().unwrap());
        match &self.listener {
            Some(listener) => listener.accept().unwrap().0,
            None => connected(&self.directory.join("sock")),
        }
    }

    fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The socket file may be that of the process before.
fn connected(path: &Path) -> UnixStream {
    let mut stream = None;
    wait_for("the new process to listen", || {
        stream = UnixStream::connect(path).ok();
        stream.is_some()
    });
    stream.unwrap()
}

/// Verified traffic on all queues while the device is killed `kills` times.
fn survives(features: u64, role: Role, kills: u64) {
    let directory = tempfile::tempdir().unwrap();
    let file = File::create_new(directory.path().join("disk")).unwrap();
    file.set_len(DISK).unwrap();
    let listener = (role == Role::Client).then(|| UnixListener::bind(directory.path().join("sock")).unwrap());
    let mut devices = Devices { directory: directory.path().to_owned(), listener, child: None };
    let first = Frontend::from_stream(devices.start(), QUEUES.into());
    let (mut vmm, mut queues) = Vmm::new(first, features, QUEUES, SIZE);
    vmm.negotiate();
    let asked = VhostUserInflight { num_queues: QUEUES, queue_size: SIZE, ..VhostUserInflight::default() };
    let (inflight, region) = vmm.frontend.get_inflight_fd(&asked).unwrap();
    let set_up = |vmm: &mut Vmm| {
        vmm.share_memory();
        vmm.frontend.set_inflight_fd(&inflight, region.as_raw_fd()).unwrap();
        (0..usize::from(QUEUES)).for_each(|index| vmm.start_new(index));
    };
    set_up(&mut vmm);
    let (stop, completed) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut model = vec![0; DISK as usize];
    std::thread::scope(|scope| {
        for (queue, model) in queues.iter_mut().zip(model.chunks_mut(DISK as usize / usize::from(QUEUES))) {
            let (stop, completed) = (&stop, &completed);
            scope.spawn(move || {
                let base = queue.index as u64 * DISK / u64::from(QUEUES);
                let mut last = 0;
                Traffic::new(features, 20, base, model).run(queue, |now| {
                    completed.fetch_add(now - last, Ordering::Relaxed);
                    last = now;
                    !stop.load(Ordering::Relaxed)
                });
            });
        }
        let mut rng = Rng::new(features ^ kills);
        for kill in 0..kills {
            // One in four dies before it has done anything: while it recovers.
            let progress = if kill % 4 == 0 { 0 } else { 1 + rng.below(100) };
            let before = completed.load(Ordering::Relaxed);
            wait_for("requests to go on", || completed.load(Ordering::Relaxed) >= before + progress);
            std::thread::sleep(Duration::from_micros(rng.below(500)));
            devices.kill();
            vmm.frontend = Frontend::from_stream(devices.start(), QUEUES.into());
            vmm.negotiate();
            set_up(&mut vmm);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(std::fs::read(directory.path().join("disk")).unwrap() == model);
    assert!(completed.load(Ordering::Relaxed) > kills * 30);
}

#[test]
fn a_guest_with_split_rings_survives_a_hundred_kills() {
    survives(LAYOUTS[0], Role::Server, 100);
}

#[test]
fn a_guest_with_split_rings_in_order_survives_a_hundred_kills() {
    survives(LAYOUTS[1], Role::Client, 100);
}

#[test]
fn a_guest_with_packed_rings_survives_a_hundred_kills() {
    survives(LAYOUTS[2], Role::Client, 100);
}

#[test]
fn a_guest_with_packed_rings_in_order_survives_a_hundred_kills() {
    survives(LAYOUTS[3], Role::Server, 100);
}
