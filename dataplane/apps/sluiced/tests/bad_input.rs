//! Each kind of bad input gives a clear error, changes nothing, and the daemon goes on.

mod daemon;

use daemon::Daemon;
use serde_json::{Value, json};
use std::fs::File;
use std::path::PathBuf;

struct Refusal {
    code: i64,
    message: String,
    data: Value,
}

/// A call that must fail and change nothing.
fn refused(daemon: &Daemon, method: &str, params: Value) -> Refusal {
    let before = daemon.ok("save_config", json!({}));
    let error = daemon.err(method, params);
    assert_eq!(daemon.ok("save_config", json!({})), before, "{method} changed something");
    let message = error["message"].as_str().unwrap().to_owned();
    Refusal { code: error["code"].as_i64().unwrap(), message, data: error["data"].clone() }
}

fn null_disk(name: &str) -> Value {
    json!({"name": name, "block_size": 512, "num_blocks": 2048})
}

fn file(daemon: &Daemon, name: &str, len: u64) -> PathBuf {
    let path = daemon.dir().join(name);
    File::create(&path).unwrap().set_len(len).unwrap();
    path
}

#[test]
fn unknown_method() {
    let daemon = Daemon::start();
    let refusal = refused(&daemon, "bdev_maloc_create", json!({}));
    assert_eq!(refusal.code, -32601);
    assert!(refusal.data["hint"].as_str().unwrap().contains("bdev_malloc_create"), "{}", refusal.data);
}

#[test]
fn unknown_parameter() {
    let daemon = Daemon::start();
    let refusal = refused(&daemon, "bdev_null_create", json!({"name": "n", "block_size": 512, "num_block": 8}));
    assert_eq!((refusal.code, &refusal.data["field"]), (-32602, &json!("num_block")));
    assert_eq!(refusal.data["hint"], "did you mean num_blocks?");
}

#[test]
fn missing_parameter() {
    let daemon = Daemon::start();
    let refusal = refused(&daemon, "bdev_null_create", json!({"name": "n", "block_size": 512}));
    assert_eq!((refusal.code, &refusal.data["field"]), (-32602, &json!("num_blocks")));
}

#[test]
fn wrong_types() {
    let daemon = Daemon::start();
    for (field, value, expected) in [
        ("name", json!(7), "a string"),
        ("block_size", json!("512"), "u32"),
        ("block_size", json!(-512), "u32"),
        ("block_size", json!(512.5), "u32"),
        ("block_size", json!(1_u64 << 33), "u32"),
        ("num_blocks", json!([8]), "u64"),
        ("uuid", json!("not a uuid"), ""),
    ] {
        let mut params = null_disk("n");
        params[field] = value.clone();
        let refusal = refused(&daemon, "bdev_null_create", params);
        assert_eq!((refusal.code, &refusal.data["field"]), (-32602, &json!(field)), "{}", refusal.message);
        assert_eq!(refusal.data["got"], value.to_string());
        assert!(refusal.data["expected"].as_str().unwrap().contains(expected), "{}", refusal.message);
    }
    assert_eq!(refused(&daemon, "bdev_null_create", json!(["n", 512, 8])).code, -32602);
}

#[test]
fn out_of_limits() {
    let daemon = Daemon::start();
    for (field, value) in [
        ("block_size", json!(0)),
        ("block_size", json!(511)),
        ("block_size", json!(1 << 17)),
        ("num_blocks", json!(0)),
        ("num_blocks", json!(u64::MAX)),
        ("physical_block_size", json!(256)),
        ("md_size", json!(8)),
        ("name", json!("")),
        ("name", json!("a/b")),
        ("name", json!("..")),
        ("name", json!("x".repeat(200))),
    ] {
        let mut params = null_disk("n");
        params[field] = value;
        let refusal = refused(&daemon, "bdev_null_create", params);
        assert_eq!((refusal.code, &refusal.data["field"]), (-32602, &json!(field)), "{}", refusal.message);
    }
    daemon.ok("bdev_null_create", null_disk("n"));
    for queues in [0, 65] {
        let params = json!({"ctrlr": "c", "dev_name": "n", "num_queues": queues});
        let refusal = refused(&daemon, "vhost_create_blk_controller", params);
        assert_eq!((refusal.code, &refusal.data["field"]), (-32602, &json!("num_queues")), "{}", refusal.message);
    }
}

#[test]
fn iscsi_recovery_options_that_contradict_each_other_are_refused() {
    let daemon = Daemon::start();
    let url = "iscsi://127.0.0.1:1/iqn.2024-01.io.example:disk/0";
    let disk = json!({"name": "i", "initiator_iqn": "iqn.2024-01.io.example:host", "url": url});
    for (field, options) in [
        ("ctrlr_loss_timeout_sec", json!({"ctrlr_loss_timeout_sec": -2})),
        ("reconnect_delay_sec", json!({"ctrlr_loss_timeout_sec": 10, "reconnect_delay_sec": 11})),
        ("fast_io_fail_timeout_sec", json!({"reconnect_delay_sec": 5, "fast_io_fail_timeout_sec": 4})),
    ] {
        let mut params = disk.clone();
        params.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let refusal = refused(&daemon, "bdev_iscsi_create", params);
        assert_eq!((refusal.code, &refusal.data["field"]), (-32602, &json!(field)), "{}", refusal.message);
    }
}

#[test]
fn too_many_disks() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    let all: Vec<Value> = (0..control::limits::BDEVS)
        .map(|i| json!({"method": "bdev_null_create", "params": null_disk(&format!("n{i}"))}))
        .collect();
    let document = json!({"subsystems": [{"subsystem": "bdev", "config": all}]});
    client.call("load_config", &document).unwrap();
    let refusal = client.call("bdev_null_create", &null_disk("straw")).unwrap_err();
    assert!(refusal["message"].as_str().unwrap().contains("4096 disks"), "{refusal}");
}

#[test]
fn name_taken() {
    let daemon = Daemon::start();
    daemon.ok("bdev_null_create", null_disk("n"));
    let refusal = refused(&daemon, "bdev_malloc_create", null_disk("n"));
    assert_eq!((refusal.code, &refusal.data["field"]), (-17, &json!("name")));
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "n"}));
    daemon.ok("bdev_null_create", null_disk("other"));
    let refusal = refused(&daemon, "vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "other"}));
    assert_eq!((refusal.code, &refusal.data["field"]), (-17, &json!("ctrlr")));
}

#[test]
fn device_busy() {
    let daemon = Daemon::start();
    daemon.ok("bdev_null_create", null_disk("n"));
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "n"}));
    let delay = json!({"name": "d", "base_bdev_name": "n", "avg_read_latency": 0, "p99_read_latency": 0,
        "avg_write_latency": 0, "p99_write_latency": 0});
    for (method, params) in [
        ("bdev_null_delete", json!({"name": "n"})),
        ("bdev_delete", json!({"name": "n"})),
        ("vhost_create_blk_controller", json!({"ctrlr": "other", "dev_name": "n"})),
        ("vhost_create_blk_controller", json!({"ctrlr": "other", "dev_name": "n", "readonly": true})),
        ("bdev_error_create", json!({"base_name": "n"})),
        ("bdev_delay_create", delay),
    ] {
        let refusal = refused(&daemon, method, params);
        assert_eq!(refusal.code, -16, "{}", refusal.message);
        assert!(refusal.message.contains("the controller c serves it"), "{}", refusal.message);
    }
    daemon.ok("vhost_delete_controller", json!({"ctrlr": "c"}));
    daemon.ok("bdev_null_delete", json!({"name": "n"}));
    assert!(daemon.disks().is_empty());
}

#[test]
fn no_such_thing() {
    let daemon = Daemon::start();
    for (method, params) in [
        ("bdev_null_delete", json!({"name": "n"})),
        ("bdev_get_bdevs", json!({"name": "n"})),
        ("bdev_set_qos_limit", json!({"name": "n", "rw_ios_per_sec": 1})),
        ("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "n"})),
        ("vhost_delete_controller", json!({"ctrlr": "c"})),
        ("vhost_get_controllers", json!({"name": "c"})),
    ] {
        assert_eq!(refused(&daemon, method, params).code, -19, "{method}");
    }
    daemon.ok("bdev_null_create", null_disk("n"));
    let refusal = refused(&daemon, "bdev_malloc_delete", json!({"name": "n"}));
    assert!(refusal.data["hint"].as_str().unwrap().contains("bdev_null_delete"), "{}", refusal.data);
}

#[test]
fn missing_backing_file() {
    let daemon = Daemon::start();
    for method in ["bdev_aio_create", "bdev_uring_create"] {
        let refusal = refused(&daemon, method, json!({"name": "f", "filename": "/nonexistent/disk"}));
        assert_eq!(refusal.code, -2, "{}", refusal.message);
        assert!(refusal.message.contains("/nonexistent/disk"), "{}", refusal.message);
        assert!(refusal.data["hint"].is_string());
    }
}

#[test]
fn backing_file_that_is_none() {
    let daemon = Daemon::start();
    for path in ["/tmp", "/dev/null", ""] {
        let refusal = refused(&daemon, "bdev_aio_create", json!({"name": "f", "filename": path}));
        assert!(refusal.code < 0, "{}", refusal.message);
    }
}

#[test]
fn odd_sized_and_empty_backing_file() {
    let daemon = Daemon::start();
    let empty = file(&daemon, "empty", 0);
    assert!(refused(&daemon, "bdev_aio_create", json!({"name": "f", "filename": empty})).code < 0);
    let odd = file(&daemon, "odd", 4096 * 3 + 1000);
    let params = json!({"name": "f", "filename": odd, "block_size": 4096});
    let refusal = refused(&daemon, "bdev_aio_create", params);
    assert_eq!((refusal.code, &refusal.data["field"]), (-32602, &json!("filename")), "{}", refusal.message);
}

#[test]
fn shrinking_backing_file() {
    let daemon = Daemon::start();
    let path = file(&daemon, "disk", 1 << 20);
    daemon.ok("bdev_uring_create", json!({"name": "f", "filename": path}));
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "f"}));
    for (len, blocks) in [(1 << 19, 1024), (1 << 21, 4096)] {
        File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        daemon.ok("bdev_uring_rescan", json!({"name": "f"}));
        assert_eq!(daemon.ok("bdev_get_bdevs", json!({"name": "f"}))[0]["num_blocks"], blocks);
    }
    let events = daemon.ok("notify_get_notifications", json!({}));
    assert_eq!(events.as_array().unwrap().iter().filter(|event| event["type"] == "bdev_resize").count(), 2);
}

#[test]
fn socket_path_too_long() {
    let daemon = Daemon::start();
    daemon.ok("bdev_null_create", null_disk("n"));
    let refusal = refused(&daemon, "vhost_create_blk_controller", json!({"ctrlr": "c".repeat(120), "dev_name": "n"}));
    assert_eq!((refusal.code, &refusal.data["field"]), (-32602, &json!("ctrlr")), "{}", refusal.message);
    daemon.ok("bdev_null_delete", json!({"name": "n"}));
}

#[test]
fn socket_in_use_and_stale() {
    let daemon = Daemon::start();
    daemon.ok("bdev_null_create", null_disk("n"));
    let create = json!({"ctrlr": "c", "dev_name": "n"});
    let path = daemon.dir().join("c");
    let live = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let refusal = refused(&daemon, "vhost_create_blk_controller", create.clone());
    assert!(refusal.message.contains("in use"), "{}", refusal.message);
    drop(live);
    daemon.ok("vhost_create_blk_controller", create.clone());
    daemon.ok("vhost_delete_controller", json!({"ctrlr": "c"}));
    file(&daemon, "c", 0);
    let refusal = refused(&daemon, "vhost_create_blk_controller", create);
    assert!(refusal.message.contains("not a socket"), "{}", refusal.message);
    assert!(path.exists(), "what is not ours stays");
}

#[test]
fn bad_cpumask() {
    let daemon = Daemon::start();
    daemon.ok("bdev_null_create", null_disk("n"));
    for mask in ["", "[", "zz", "0x0", "[100]"] {
        let params = json!({"ctrlr": "c", "dev_name": "n", "cpumask": mask});
        let refusal = refused(&daemon, "vhost_create_blk_controller", params);
        assert_eq!((refusal.code, &refusal.data["field"]), (-32602, &json!("cpumask")), "{}", refusal.message);
    }
}

#[test]
fn bad_queue_and_worker() {
    let daemon = Daemon::start();
    daemon.ok("bdev_null_create", null_disk("n"));
    daemon.ok("vhost_create_blk_controller", json!({"ctrlr": "c", "dev_name": "n", "num_queues": 2}));
    for (field, queue, worker) in [("queue", 2, 0), ("worker", 0, 1)] {
        let params = json!({"ctrlr": "c", "queue": queue, "worker": worker});
        let refusal = refused(&daemon, "vhost_controller_move_queue", params);
        assert_eq!(refusal.data["field"], field);
    }
    daemon.ok("vhost_controller_move_queue", json!({"ctrlr": "c", "queue": 1, "worker": 0}));
}

#[test]
fn a_configuration_with_an_error_in_its_middle_changes_nothing() {
    let daemon = Daemon::start();
    daemon.ok("bdev_null_create", null_disk("there"));
    daemon.ok("bdev_set_qos_limit", json!({"name": "there", "rw_ios_per_sec": 5}));
    let call = |method: &str, params: Value| json!({"method": method, "params": params});
    let document = json!({"subsystems": [{"subsystem": "bdev", "config": [
        call("bdev_null_create", null_disk("a")),
        [call("bdev_null_create", null_disk("b")), call("bdev_set_qos_limit", json!({"name": "there", "rw_ios_per_sec": 7}))],
        call("bdev_set_qos_limit", json!({"name": "a", "rw_ios_per_sec": 7})),
        call("bdev_aio_create", json!({"name": "f", "filename": "/nonexistent"})),
    ]}]});
    assert_eq!(daemon.ok("config_validate", document.clone())["valid"], true);
    let refusal = refused(&daemon, "load_config", document);
    assert!(refusal.message.starts_with("subsystems[0].config[3]: bdev_aio_create"), "{}", refusal.message);
    assert_eq!(daemon.disks(), ["there"]);
    let limits = daemon.ok("bdev_get_bdevs", json!({"name": "there"}))[0]["assigned_rate_limits"].clone();
    assert_eq!(limits["rw_ios_per_sec"], 5);
}

#[test]
fn a_configuration_is_checked_before_it_is_loaded() {
    let daemon = Daemon::start();
    let document = json!({"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_null_create", "params": null_disk("a")},
        {"method": "bdev_null_create", "params": null_disk("a")},
        {"method": "no_such_method"},
        {"method": "bdev_null_create", "params": {"name": 7}},
        "text",
    ]}]});
    let validation = daemon.ok("config_validate", document.clone());
    assert_eq!(validation["valid"], false);
    let problems = validation["problems"].as_array().unwrap();
    let places: Vec<&str> =
        problems.iter().map(|p| p["message"].as_str().unwrap().split(':').next().unwrap()).collect();
    assert_eq!(places, [1, 2, 3, 4].map(|i| format!("subsystems[0].config[{i}]")));
    refused(&daemon, "load_config", document);
}
