//! The desired state: kept at each change, restored at start, whatever happens in between.

mod daemon;

use daemon::Daemon;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs::File;
use std::time::{Duration, Instant};

fn null_disk(name: &str) -> Value {
    json!({"name": name, "block_size": 512, "num_blocks": 2048})
}

fn within_seconds(seconds: u64, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < deadline {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

#[test]
fn everything_is_back_after_sigkill() {
    let daemon = Daemon::start();
    let path = daemon.dir().join("disk");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    daemon.ok("bdev_malloc_create", json!({"block_size": 512, "num_blocks": 8}));
    daemon.ok("bdev_null_create", null_disk("n"));
    daemon.ok("bdev_aio_create", json!({"name": "f", "filename": path, "readonly": true}));
    daemon.ok("bdev_error_create", json!({"base_name": "n"}));
    let delay = json!({"name": "d", "base_bdev_name": "EE_n", "avg_read_latency": 1, "p99_read_latency": 2,
        "avg_write_latency": 3, "p99_write_latency": 4});
    daemon.ok("bdev_delay_create", delay);
    daemon
        .ok("bdev_delay_update_latency", json!({"delay_bdev_name": "d", "latency_type": "p99_read", "latency_us": 9}));
    daemon.ok("bdev_set_qos_limit", json!({"name": "d", "rw_ios_per_sec": 1000}));
    daemon.ok("bdev_set_qos_limit", json!({"name": "d", "w_mbytes_per_sec": 10}));
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": "c0", "dev_name": "d", "num_queues": 3}));
    daemon.ok(
        "vhost_create_blk_controller",
        json!({"ctrlr": "c1", "dev_name": "f", "readonly": true, "packed_ring": true}),
    );
    daemon.ok("framework_set_idle", json!({"spin_us": 7}));
    daemon.ok("bdev_null_create", null_disk("gone"));
    daemon.ok("bdev_null_delete", json!({"name": "gone"}));
    daemon.ok("bdev_null_create", null_disk("grown"));
    daemon.ok("bdev_null_resize", json!({"name": "grown", "new_size": 2}));

    let look = |daemon: &Daemon| {
        let of = |method: &str| daemon.ok(method, json!({}));
        (of("save_config"), of("bdev_get_bdevs"), of("vhost_get_controllers"))
    };
    let before = look(&daemon);
    let daemon = daemon.kill_and_restart(|_| {});
    daemon.ok("framework_wait_init", json!({}));
    assert_eq!(look(&daemon), before);
    assert_eq!(daemon.ok("config_get_pending", json!({})), json!([]));
    assert_eq!(daemon.ok("bdev_get_bdevs", json!({"name": "grown"}))[0]["num_blocks"], 4096);
    let limits = daemon.ok("bdev_get_bdevs", json!({"name": "d"}))[0]["assigned_rate_limits"].clone();
    assert_eq!((&limits["rw_ios_per_sec"], &limits["w_mbytes_per_sec"]), (&json!(1000), &json!(10)));
}

#[test]
fn moved_queues_stay_after_a_restart() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        println!("skipped: needs two CPUs");
        return;
    }
    let daemon = Daemon::start_with(&["--workers", "0,1"]);
    daemon.ok("bdev_null_create", null_disk("n"));
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "n", "num_queues": 2, "cpumask": "[0]"}));
    daemon.ok("vhost_controller_move_queue", json!({"ctrlr": "c", "queue": 1, "worker": 1}));
    daemon.ok("vhost_controller_move_queue", json!({"ctrlr": "c", "queue": 0, "worker": 1}));
    daemon.ok("vhost_controller_move_queue", json!({"ctrlr": "c", "queue": 0, "worker": 0}));
    let workers = |daemon: &Daemon| daemon.ok("vhost_get_controllers", json!({}))[0]["queue_workers"].clone();
    assert_eq!(workers(&daemon), json!([0, 1]));
    let daemon = daemon.kill_and_restart(|_| {});
    daemon.ok("framework_wait_init", json!({}));
    assert_eq!(workers(&daemon), json!([0, 1]));
    daemon.ok("vhost_delete_controller", json!({"ctrlr": "c"}));
    assert_eq!(daemon.ok("framework_get_config", json!({"name": "vhost_blk"})), json!([]));
}

#[test]
fn each_change_is_durable_when_it_is_answered() {
    let mut daemon = Daemon::start();
    for round in 0..10 {
        daemon.ok("bdev_null_create", null_disk(&format!("n{round}")));
        if round > 0 {
            daemon.ok("bdev_null_delete", json!({"name": format!("n{}", round - 1)}));
        }
        daemon = daemon.kill_and_restart(|_| {});
        daemon.ok("framework_wait_init", json!({}));
        assert_eq!(daemon.disks(), [format!("n{round}")]);
    }
}

#[test]
fn calls_that_cannot_be_restored_are_listed_and_retried() {
    let daemon = Daemon::start();
    let path = daemon.dir().join("disk");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    daemon.ok("bdev_null_create", null_disk("n"));
    daemon.ok("bdev_uring_create", json!({"name": "f", "filename": path}));
    daemon.ok("bdev_set_qos_limit", json!({"name": "f", "rw_ios_per_sec": 5}));
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "f"}));
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": "c2", "dev_name": "n"}));
    let saved = daemon.ok("save_config", json!({}));

    let daemon = daemon.kill_and_restart(|dir| std::fs::remove_file(dir.join("disk")).unwrap());
    daemon.ok("framework_wait_init", json!({}));
    assert_eq!(daemon.disks(), ["n"]);
    assert_eq!(daemon.ok("vhost_get_controllers", json!({}))[0]["ctrlr"], "c2");
    let pending = daemon.ok("config_get_pending", json!({}));
    let methods: Vec<&Value> = pending.as_array().unwrap().iter().map(|entry| &entry["method"]).collect();
    assert_eq!(methods, ["bdev_uring_create", "bdev_set_qos_limit", "vhost_create_blk_controller"]);
    assert!(pending[0]["error"].as_str().unwrap().contains("disk"), "{pending}");
    assert_eq!(daemon.ok("save_config", json!({})), saved);

    // Another start without the file loses nothing either.
    let daemon = daemon.kill_and_restart(|_| {});
    daemon.ok("framework_wait_init", json!({}));
    assert_eq!(daemon.ok("save_config", json!({})), saved);

    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    assert!(within_seconds(20, || daemon.ok("config_get_pending", json!({})) == json!([])));
    assert_eq!(daemon.disks(), ["n", "f"]);
    assert_eq!(daemon.ok("save_config", json!({})), saved);
    let events = daemon.ok("notify_get_notifications", json!({}));
    let count = |kind: &str| events.as_array().unwrap().iter().filter(|event| event["type"] == kind).count();
    assert_eq!((count("config_pending"), count("config_restored")), (3, 3));
}

/// A target that takes connections and says nothing keeps only its own disks waiting.
#[test]
fn a_silent_target_delays_only_its_own_disks() {
    let target = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = target.local_addr().unwrap().port().to_string();
    let daemon = Daemon::start();
    daemon.ok("bdev_null_create", null_disk("n"));
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "n"}));
    let daemon = daemon.kill_and_restart(|dir| {
        let path = dir.join("state/state.json");
        let mut state: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let bdev = state["subsystems"].as_array_mut().unwrap().iter_mut().find(|s| s["subsystem"] == "bdev").unwrap();
        let params = json!({"name": "cloud", "trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": port,
            "subnqn": "nqn.2024-01.io.example:disk"});
        let attach = json!({"method": "bdev_nvme_attach_controller", "params": params});
        bdev["config"].as_array_mut().unwrap().insert(0, attach);
        std::fs::write(&path, state.to_string()).unwrap();
    });
    let start = Instant::now();
    daemon.ok("framework_wait_init", json!({}));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(daemon.disks(), ["n"]);
    assert_eq!(daemon.ok("vhost_get_controllers", json!({}))[0]["ctrlr"], "c");
    assert_eq!(daemon.ok("config_get_pending", json!({}))[0]["method"], "bdev_nvme_attach_controller");
    // It can be given up although it is being tried.
    let start = Instant::now();
    daemon.ok("bdev_nvme_detach_controller", json!({"name": "cloud"}));
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    assert_eq!(daemon.ok("config_get_pending", json!({})), json!([]));
    assert_eq!(daemon.ok("framework_get_config", json!({"name": "bdev"}))[0]["params"]["name"], "n");
}

#[test]
fn unrestored_objects_can_be_deleted_or_replaced() {
    let daemon = Daemon::start();
    for name in ["f", "g"] {
        let path = daemon.dir().join(name);
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        daemon.ok("bdev_uring_create", json!({"name": name, "filename": path}));
    }
    let daemon = daemon.kill_and_restart(|dir| {
        std::fs::remove_file(dir.join("f")).unwrap();
        std::fs::remove_file(dir.join("g")).unwrap();
    });
    daemon.ok("framework_wait_init", json!({}));
    daemon.ok("bdev_uring_delete", json!({"name": "f"}));
    daemon.ok("bdev_null_create", null_disk("g"));
    assert_eq!(daemon.ok("config_get_pending", json!({})), json!([]));
    let daemon = daemon.kill_and_restart(|_| {});
    daemon.ok("framework_wait_init", json!({}));
    assert_eq!(daemon.disks(), ["g"]);
}

#[test]
fn a_damaged_state_file_is_reported_with_its_place_and_kept_aside() {
    let daemon = Daemon::start();
    for name in ["a", "b", "c"] {
        daemon.ok("bdev_null_create", null_disk(name));
    }
    let daemon = daemon.kill_and_restart(|dir| {
        let path = dir.join("state/state.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"b\"", "\"b")).unwrap();
    });
    daemon.ok("framework_wait_init", json!({}));
    assert_eq!(daemon.disks(), ["a", "c"]);
    let events = daemon.ok("notify_get_notifications", json!({}));
    let damaged = events.as_array().unwrap().iter().find(|event| event["type"] == "state_damaged").expect("an event");
    let detail = damaged["detail"].as_str().unwrap();
    assert!(detail.contains("line ") && detail.contains("column ") && detail.contains("damaged-1"), "{detail}");
    assert!(daemon.log().contains("damaged-1"));
    assert!(daemon.dir().join("state/state.json.damaged-1").exists());
    // What was found sound was written anew.
    let daemon = daemon.kill_and_restart(|_| {});
    daemon.ok("framework_wait_init", json!({}));
    assert_eq!(daemon.disks(), ["a", "c"]);
    assert!(!daemon.dir().join("state/state.json.damaged-2").exists());
}

#[test]
fn a_call_of_another_version_is_kept() {
    let daemon = Daemon::start();
    daemon.ok("bdev_null_create", null_disk("a"));
    let daemon = daemon.kill_and_restart(|dir| {
        let path = dir.join("state/state.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("bdev_null_create", "bdev_from_the_future_create")).unwrap();
    });
    daemon.ok("framework_wait_init", json!({}));
    daemon.ok("bdev_null_create", null_disk("b"));
    let pending = daemon.ok("config_get_pending", json!({}));
    assert_eq!(pending[0]["method"], "bdev_from_the_future_create");
    let daemon = daemon.kill_and_restart(|_| {});
    daemon.ok("framework_wait_init", json!({}));
    let bdevs = daemon.ok("framework_get_config", json!({"name": "bdev"}));
    assert_eq!(bdevs[0]["method"], "bdev_from_the_future_create");
    assert_eq!(daemon.disks(), ["b"]);
}

/// A state directory that takes no more says so, and the change is saved once it does again.
#[test]
fn a_failed_save_is_reported_and_made_up_by_the_next() {
    let daemon = Daemon::start();
    daemon.ok("bdev_null_create", null_disk("a"));
    // A directory where the new file has to be: it cannot be made.
    let obstacle = daemon.dir().join("state/state.json.new");
    std::fs::create_dir(&obstacle).unwrap();
    let error = daemon.err("bdev_null_create", null_disk("b"));
    assert!(error["message"].as_str().unwrap().contains("took effect, but it is not saved"), "{error}");
    assert_eq!(daemon.disks(), ["a", "b"]);
    std::fs::remove_dir(&obstacle).unwrap();
    daemon.ok("bdev_null_create", null_disk("c"));
    let daemon = daemon.kill_and_restart(|_| {});
    daemon.ok("framework_wait_init", json!({}));
    assert_eq!(daemon.disks(), ["a", "b", "c"]);
}

/// The state file and the document that version 0.1 wrote, with every kind of object; `DIR` stands for a directory.
fn state_of_version_0_1(dir: &std::path::Path) -> Value {
    let text = include_str!("data/state-0.1.json").replace("DIR", &dir.display().to_string());
    for file in ["disk", "file"] {
        File::create(dir.join(file)).unwrap().set_len(1 << 20).unwrap();
    }
    serde_json::from_str(&text).unwrap()
}

fn methods(calls: &Value) -> Vec<&str> {
    calls.as_array().unwrap().iter().map(|call| call["method"].as_str().unwrap()).collect()
}

/// Calls that are in effect only where there are two CPUs, the right to make taps, and a target.
const NEEDS_MORE: [&str; 6] = [
    "bdev_nvme_attach_controller",
    "bdev_iscsi_create",
    "port_create_tap",
    "vhost_controller_move_queue",
    "vhost_net_controller_move_queue_pair",
    "port_move_queue",
];

#[test]
fn a_state_file_of_version_0_1_is_restored() {
    let dir = tempfile::tempdir().unwrap();
    let state = state_of_version_0_1(dir.path());
    std::fs::create_dir(dir.path().join("state")).unwrap();
    std::fs::write(dir.path().join("state/state.json"), state.to_string()).unwrap();
    let cpus = if std::thread::available_parallelism().unwrap().get() < 2 { "0" } else { "0,1" };
    let daemon = Daemon::start_in(dir, &["--workers", cpus]);
    daemon.ok("framework_wait_init", json!({}));
    assert_eq!(daemon.ok("save_config", json!({})), state);
    let pending = daemon.ok("config_get_pending", json!({}));
    let pending: Vec<&str> = methods(&pending);
    assert!(pending.contains(&"bdev_nvme_attach_controller") && pending.contains(&"bdev_iscsi_create"), "{pending:?}");
    // The limit of the namespace waits for its controller.
    let needs_more = |method: &str| NEEDS_MORE.contains(&method) || method == "bdev_set_qos_limit";
    assert!(pending.iter().all(|method| needs_more(method)), "{pending:?}");
    assert_eq!(daemon.disks(), ["malloc", "null", "aio", "uring", "EE_null", "delay", "cidata"]);
    assert_eq!(daemon.ok("bridge_get_fdb", json!({"bridge": "br"}))[0]["port"], "guest");
}

#[test]
fn a_document_of_version_0_1_is_loaded() {
    let daemon = Daemon::start_with(&["--workers", "0"]);
    let mut document = state_of_version_0_1(daemon.dir());
    assert_eq!(daemon.ok("config_validate", document.clone()), json!({"valid": true, "problems": []}));
    for section in document["subsystems"].as_array_mut().unwrap() {
        let can_be_made = |call: &Value| {
            let method = call["method"].as_str().unwrap();
            !NEEDS_MORE.contains(&method) && call["params"]["name"] != "nvmen1"
        };
        section["config"].as_array_mut().unwrap().retain(can_be_made);
    }
    daemon.ok("load_config", document.clone());
    assert_eq!(daemon.ok("save_config", json!({})), document);
}

#[test]
fn parameters_that_version_0_1_ignored_are_dropped_from_saved_calls() {
    let disk = |name: &str| json!({"name": name, "block_size": 512, "num_blocks": 8, "md_interleave": true});
    let calls = json!([{"method": "bdev_malloc_create", "params": disk("saved")}]);
    let document = json!({"subsystems": [{"subsystem": "bdev", "config": calls}]});
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("state")).unwrap();
    std::fs::write(dir.path().join("state/state.json"), document.to_string()).unwrap();
    let daemon = Daemon::start_in(dir, &[]);
    daemon.ok("framework_wait_init", json!({}));
    assert_eq!(daemon.disks(), ["saved"]);
    daemon.ok("bdev_malloc_delete", json!({"name": "saved"}));
    daemon.ok("load_config", document);
    assert_eq!(daemon.disks(), ["saved"]);
    let error = daemon.err("bdev_malloc_create", disk("new"));
    assert_eq!(error["data"]["field"], "md_interleave", "{error}");
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize, u64),
    Delete(usize),
    Resize(usize, u64),
    Limit(usize, u64),
    Serve(usize),
    Unserve(usize),
    Above(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let disk = 0..4_usize;
    prop_oneof![
        3 => (disk.clone(), 1..99_u64).prop_map(|(d, n)| Step::Create(d, n)),
        1 => disk.clone().prop_map(Step::Delete),
        1 => (disk.clone(), 1..9_u64).prop_map(|(d, n)| Step::Resize(d, n)),
        1 => (disk.clone(), 0..9_u64).prop_map(|(d, n)| Step::Limit(d, n)),
        2 => disk.clone().prop_map(Step::Serve),
        1 => disk.clone().prop_map(Step::Unserve),
        1 => disk.prop_map(Step::Above),
    ]
}

fn take(client: &mut daemon::Client, step: &Step) -> bool {
    let name = |d: &usize| format!("d{d}");
    let (method, params) = match step {
        Step::Create(d, n) => ("bdev_null_create", json!({"name": name(d), "block_size": 512, "num_blocks": n})),
        Step::Delete(d) => ("bdev_delete", json!({"name": name(d)})),
        Step::Resize(d, n) => ("bdev_null_resize", json!({"name": name(d), "new_size": n})),
        Step::Limit(d, n) => ("bdev_set_qos_limit", json!({"name": name(d), "r_mbytes_per_sec": n})),
        Step::Serve(d) => ("vhost_create_blk_controller", json!({"ctrlr": format!("c{d}"), "dev_name": name(d)})),
        Step::Unserve(d) => ("vhost_delete_controller", json!({"ctrlr": format!("c{d}")})),
        Step::Above(d) => ("bdev_error_create", json!({"base_name": name(d)})),
    };
    client.call(method, &params).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever was done, what `save_config` says makes the same objects again: in an empty daemon by `load_config`, and in a
    /// daemon that was killed by its own state.
    #[test]
    fn configurations_round_trip(steps in prop::collection::vec(step(), 1..30)) {
        let daemon = Daemon::start();
        let mut client = daemon.client();
        let done = steps.iter().filter(|step| take(&mut client, step)).count();
        prop_assume!(done > 0);
        let look = |daemon: &Daemon| {
            let disks = daemon.ok("bdev_get_bdevs", json!({}));
            let mut controllers = daemon.ok("vhost_get_controllers", json!({}));
            // The sockets of the two daemons are in different places.
            controllers.as_array_mut().unwrap().iter_mut().for_each(|c| c["socket"] = json!(null));
            (daemon.ok("save_config", json!({})), disks, controllers)
        };
        let before = look(&daemon);

        let other = Daemon::start();
        prop_assert_eq!(&other.ok("config_validate", before.0.clone())["valid"], &json!(true));
        other.ok("load_config", before.0.clone());
        prop_assert_eq!(&look(&other), &before);

        let daemon = daemon.kill_and_restart(|_| {});
        daemon.ok("framework_wait_init", json!({}));
        prop_assert_eq!(&look(&daemon), &before);
    }
}
