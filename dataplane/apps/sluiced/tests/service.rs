//! Disks as a guest sees them, through the whole daemon: blkio is the driver, rust-vmm's `Frontend` the one with bad intentions.
#![allow(unsafe_code)] // blkio gives completions as memory that it has filled

mod daemon;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};
use daemon::Daemon;
use serde_json::{Value, json};
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

const BLOCK: usize = 4096;

/// A guest with one queue, one request at a time.
struct Guest {
    blkio: Blkio,
    queue: Blkioq,
    region: MemoryRegion,
}

impl Guest {
    fn connect(socket: &Path) -> Guest {
        Guest::with_buffer(socket, BLOCK)
    }

    /// One whose requests have `len` bytes.
    fn with_buffer(socket: &Path, len: usize) -> Guest {
        let mut blkio = Blkio::new("virtio-blk-vhost-user").unwrap();
        blkio.set_str("path", socket.to_str().unwrap()).unwrap();
        blkio.connect().unwrap();
        let queue = blkio.start().unwrap().queues.remove(0);
        let region = blkio.alloc_mem_region(len).unwrap();
        blkio.map_mem_region(&region).unwrap();
        Guest { blkio, queue, region }
    }

    fn capacity(&self) -> u64 {
        self.blkio.get_u64("capacity").unwrap()
    }

    fn read(&mut self, block: u64) -> i32 {
        self.queue.read(block * BLOCK as u64, self.region.addr as *mut u8, self.region.len, 0, ReqFlags::empty());
        self.wait()
    }

    fn write(&mut self, block: u64) -> i32 {
        self.queue.write(block * BLOCK as u64, self.region.addr as *const u8, self.region.len, 0, ReqFlags::empty());
        self.wait()
    }

    /// What became of the request: 0, or a negative errno.
    fn wait(&mut self) -> i32 {
        let mut done = [const { MaybeUninit::<Completion>::uninit() }; 1];
        let mut patience = Duration::from_secs(20);
        let count = self.queue.do_io(&mut done, 1, Some(&mut patience), None).unwrap();
        assert_eq!(count, 1, "an answer in time");
        // SAFETY: `do_io` has filled the first `count`.
        unsafe { done[0].assume_init_read() }.ret
    }
}

fn serve(daemon: &Daemon, name: &str) -> Value {
    daemon.ok("bdev_malloc_create", json!({"name": name, "block_size": 512, "num_blocks": 8192}));
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": format!("c-{name}"), "dev_name": name}))
}

fn stat(daemon: &Daemon, name: &str) -> Value {
    daemon.ok("bdev_get_iostat", json!({"names": [name]}))["bdevs"][0].clone()
}

#[test]
fn what_a_disk_has_served_is_counted_and_outlives_its_controller() {
    let daemon = Daemon::start();
    serve(&daemon, "d");
    let mut guest = Guest::connect(&daemon.dir().join("c-d"));
    (0..100).for_each(|block| assert_eq!(guest.read(block), 0));
    (0..50).for_each(|block| assert_eq!(guest.write(block), 0));
    let look = || {
        let stat = stat(&daemon, "d");
        ["num_read_ops", "bytes_read", "num_write_ops", "bytes_written"].map(|key| stat[key].as_u64().unwrap())
    };
    assert_eq!(look(), [100, 100 * BLOCK as u64, 50, 50 * BLOCK as u64]);
    let ticks = |key: &str| stat(&daemon, "d")[key].as_u64().unwrap();
    assert!(0 < ticks("min_read_latency_ticks") && ticks("min_read_latency_ticks") <= ticks("max_read_latency_ticks"));
    assert!(ticks("read_latency_ticks") <= 100 * ticks("max_read_latency_ticks"));

    let histogram = daemon.ok("bdev_get_histogram", json!({"name": "d"}));
    let buckets = BASE64.decode(histogram["histogram"].as_str().unwrap()).unwrap();
    let counts: Vec<u64> = buckets.chunks(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect();
    let ranges = histogram["max_range"].as_u64().unwrap() + 1;
    assert_eq!(counts.len() as u64, ranges << histogram["granularity"].as_u64().unwrap());
    assert_eq!(counts.iter().sum::<u64>(), 150);

    drop(guest);
    daemon.ok("vhost_delete_controller", json!({"ctrlr": "c-d"}));
    assert_eq!(look(), [100, 100 * BLOCK as u64, 50, 50 * BLOCK as u64]);
    daemon.ok("bdev_reset_iostat", json!({"name": "d"}));
    assert_eq!(look(), [0; 4]);
    let metrics = daemon.ok("metrics_get", json!({}));
    assert!(
        metrics.as_str().unwrap().contains("sluice_disk_requests_total{disk=\"d\",op=\"read\"} 100\n"),
        "{metrics}"
    );
}

#[test]
fn limits_change_while_a_guest_works() {
    let daemon = Daemon::start();
    serve(&daemon, "d");
    let mut guest = Guest::connect(&daemon.dir().join("c-d"));
    let mut time_of = |reads: u64| {
        let start = Instant::now();
        (0..reads).for_each(|block| assert_eq!(guest.read(block), 0));
        start.elapsed()
    };
    daemon.ok("bdev_set_qos_limit", json!({"name": "d", "rw_ios_per_sec": 100}));
    time_of(10);
    let limited = time_of(30);
    assert!((Duration::from_millis(250)..Duration::from_secs(3)).contains(&limited), "{limited:?}");
    daemon.ok("bdev_set_qos_limit", json!({"name": "d", "rw_ios_per_sec": 0}));
    let free = time_of(30);
    assert!(free < Duration::from_millis(150), "{free:?}");
}

#[test]
fn injected_errors_reach_the_guest_and_are_counted() {
    let daemon = Daemon::start();
    daemon.ok("bdev_malloc_create", json!({"name": "d", "block_size": 512, "num_blocks": 8192}));
    daemon.ok("bdev_error_create", json!({"base_name": "d"}));
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "EE_d"}));
    let inject = json!({"name": "EE_d", "io_type": "read", "error_type": "failure", "num": 2});
    daemon.ok("bdev_error_inject_error", inject);
    let mut guest = Guest::connect(&daemon.dir().join("c"));
    assert_eq!(guest.write(0), 0);
    assert!(guest.read(0) < 0 && guest.read(1) < 0);
    assert_eq!(guest.read(2), 0);
    assert_eq!(stat(&daemon, "EE_d")["io_error"], json!({"failed": 2}));
    // The disk below has served it, too.
    assert_eq!(stat(&daemon, "d")["num_read_ops"], 3);
}

#[test]
fn a_slower_disk_is_slower() {
    let daemon = Daemon::start();
    daemon.ok("bdev_malloc_create", json!({"name": "d", "block_size": 512, "num_blocks": 8192}));
    let latencies = json!({"name": "slow", "base_bdev_name": "d", "avg_read_latency": 20000, "p99_read_latency": 20000,
        "avg_write_latency": 0, "p99_write_latency": 0});
    daemon.ok("bdev_delay_create", latencies);
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "slow"}));
    let mut guest = Guest::connect(&daemon.dir().join("c"));
    let start = Instant::now();
    (0..5).for_each(|block| assert_eq!(guest.read(block), 0));
    assert!(start.elapsed() >= Duration::from_millis(100), "{:?}", start.elapsed());
}

#[test]
fn a_guest_that_connects_later_sees_the_new_size() {
    let daemon = Daemon::start();
    let path = daemon.dir().join("disk");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    daemon.ok("bdev_uring_create", json!({"name": "f", "filename": path}));
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "f"}));
    assert_eq!(Guest::connect(&daemon.dir().join("c")).capacity(), 1 << 20);
    File::options().write(true).open(&path).unwrap().set_len(2 << 20).unwrap();
    daemon.ok("bdev_uring_rescan", json!({"name": "f"}));
    let mut guest = Guest::connect(&daemon.dir().join("c"));
    assert_eq!((guest.capacity(), guest.read(511)), (2 << 20, 0));
}

/// A front-end whose ring `queue` claims more requests than it has places for. Returns the connection: its end ends the quarantine.
fn break_the_ring(socket: &Path, queue: usize) -> Frontend {
    const SIZE: u16 = 64;
    const VERSION_1: u64 = 1 << 32;
    const PROTOCOL_FEATURES: u64 = 1 << 30;
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(1 << 20).unwrap();
    let mut frontend = Frontend::connect(socket, 2).unwrap();
    frontend.set_owner().unwrap();
    frontend.get_features().unwrap();
    frontend.set_features(VERSION_1 | PROTOCOL_FEATURES).unwrap();
    frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(VhostUserProtocolFeatures::MQ).unwrap();
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: 1 << 20,
        userspace_addr: 0,
        mmap_offset: 0,
        mmap_handle: memory.as_raw_fd(),
    };
    frontend.set_mem_table(&[region]).unwrap();
    let (avail, used) = (0x1000, 0x2000);
    let addresses = VringConfigData {
        queue_max_size: SIZE,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: 0,
        used_ring_addr: used,
        avail_ring_addr: avail,
        log_addr: None,
    };
    let [kick, call] = [(); 2].map(|()| EventFd::new(0).unwrap());
    frontend.set_vring_num(queue, SIZE).unwrap();
    frontend.set_vring_base(queue, 0).unwrap();
    frontend.set_vring_addr(queue, &addresses).unwrap();
    frontend.set_vring_call(queue, &call).unwrap();
    frontend.set_vring_kick(queue, &kick).unwrap();
    frontend.set_vring_enable(queue, true).unwrap();
    // The available ring's index (virtio 1.3, 2.7.6) runs ahead by more than the ring's size.
    memory.write_all_at(&(SIZE + 1).to_le_bytes(), avail + 2).unwrap();
    kick.write(1).unwrap();
    frontend
}

#[test]
fn a_hostile_guest_is_quarantined_alone_and_an_event_says_why() {
    let daemon = Daemon::start();
    serve(&daemon, "bad");
    serve(&daemon, "good");
    let mut honest = Guest::connect(&daemon.dir().join("c-good"));
    let hostile = break_the_ring(&daemon.dir().join("c-bad"), 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    let reason = loop {
        let info = daemon.ok("vhost_get_controllers", json!({"name": "c-bad"}));
        if let Some(reason) = info[0]["quarantined"].as_str().filter(|reason| !reason.is_empty()) {
            break reason.to_owned();
        }
        assert!(Instant::now() < deadline, "{info}");
        assert_eq!(honest.read(0), 0);
    };
    assert!(reason.contains("queue 0"), "{reason}");
    let event = loop {
        let events = daemon.ok("notify_get_notifications", json!({}));
        if let Some(event) = events.as_array().unwrap().iter().find(|event| event["type"] == "vhost_quarantine") {
            break event.clone();
        }
        assert!(Instant::now() < deadline, "an event: {events}");
    };
    assert_eq!((&event["ctx"], event["detail"].as_str().unwrap()), (&json!("c-bad"), reason.as_str()));
    let metrics = daemon.ok("metrics_get", json!({}));
    let quarantined = |ctrlr: &str, value: u32| {
        metrics
            .as_str()
            .unwrap()
            .contains(&format!("sluice_controller_quarantined{{controller=\"{ctrlr}\"}} {value}\n"))
    };
    assert!(quarantined("c-bad", 1) && quarantined("c-good", 0), "{metrics}");
    (0..100).for_each(|block| assert_eq!(honest.read(block), 0));
    // A front-end that behaves is served again.
    drop(hostile);
    let mut healed = Guest::connect(&daemon.dir().join("c-bad"));
    assert_eq!(healed.read(0), 0);
    assert_eq!(daemon.ok("vhost_get_controllers", json!({"name": "c-bad"}))[0]["quarantined"], Value::Null);
}

#[test]
fn the_listing_of_a_vhost_user_port_tells_why_it_is_quarantined() {
    let daemon = Daemon::start();
    daemon.ok("port_create_vhost_user", json!({"name": "bad"}));
    let quarantined = || daemon.ok("port_get", json!({"name": "bad"}))[0]["vhost_user"]["quarantined"].clone();
    assert_eq!(quarantined(), Value::Null);
    let hostile = break_the_ring(&daemon.dir().join("bad"), 1);
    let deadline = Instant::now() + Duration::from_secs(20);
    let reason = loop {
        if let Some(reason) = quarantined().as_str().filter(|reason| !reason.is_empty()) {
            break reason.to_owned();
        }
        assert!(Instant::now() < deadline, "not quarantined");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(reason.contains("queue 1"), "{reason}");
    drop(hostile);
    while quarantined() != Value::Null {
        assert!(Instant::now() < deadline, "still quarantined");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn disks_queues_move_by_load_under_requests() {
    const LEN: usize = 256 << 10;
    const REQUESTS: u64 = 64;
    if std::thread::available_parallelism().unwrap().get() < 2 {
        println!("skipped: needs two CPUs");
        return;
    }
    let daemon = Daemon::start_with(&["--workers", "0,1"]);
    let names = ["d", "e", "f"];
    let queue = |name: &str| json!({"ctrlr": format!("c-{name}"), "queue": 0});
    let pinned = |name: &str| json!({"ctrlr": format!("c-{name}"), "queue": 0, "worker": 0});
    let place = |name: &str| {
        let controllers = daemon.ok("vhost_get_controllers", json!({"name": format!("c-{name}")}));
        controllers[0]["queue_workers"][0].as_u64().unwrap()
    };
    for name in names {
        serve(&daemon, name);
        daemon.ok("vhost_controller_move_queue", pinned(name));
    }
    names[1..].iter().for_each(|name| drop(daemon.ok("vhost_controller_move_queue", queue(name))));
    assert_eq!(names.map(place), [0, 0, 0]);
    daemon.ok("framework_set_scheduler", json!({"name": "dynamic", "period": 100_000, "load_threshold": 1}));
    let moved = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for name in names {
            let (socket, moved) = (daemon.dir().join(format!("c-{name}")), &moved);
            scope.spawn(move || {
                let mut guest = Guest::with_buffer(&socket, LEN);
                while !moved.load(Ordering::Relaxed) {
                    (0..REQUESTS).for_each(|_| assert_eq!(guest.read(0), 0));
                }
            });
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while names.map(place) == [0, 0, 0] && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        moved.store(true, Ordering::Relaxed);
    });
    let status = daemon.ok("framework_get_scheduler", json!({}));
    assert!(place("d") == 0 && place("e") + place("f") > 0, "{status}");
    assert!(status["moves"]["load"].as_u64() > Some(0), "{status}");
}
