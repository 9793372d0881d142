//! The command as a user runs it, against a control plane in this process.

mod served;

use served::{Served, run, said};
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn disks_and_controllers_are_made_shown_and_deleted() {
    let served = Served::start();
    let image = served.dir().join("image");
    std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    assert_eq!(served.ok(&["disk", "create", "malloc", "--size", "4M"]), "Malloc0\n");
    assert_eq!(served.ok(&["disk", "create", "file", "image", image.to_str().unwrap()]), "image\n");
    assert_eq!(served.ok(&["disk", "create", "null", "n", "--num-blocks", "16", "--block-size", "4096"]), "n\n");
    assert_eq!(served.ok(&["disk", "qos", "n", "--rw-ios-per-sec", "100"]), "done\n");
    assert_eq!(served.ok(&["disk", "resize", "n", "3"]), "done\n");
    assert_eq!(served.ok(&["disk", "rescan", "image"]), "done\n");
    assert_eq!(served.ok(&["controller", "create", "c", "n", "--num-queues", "2", "--packed-ring"]), "done\n");
    assert_eq!(served.ok(&["controller", "move-queue", "c", "1", "0"]), "done\n");
    let disks = served.ok(&["disk", "list"]);
    let rows: Vec<Vec<&str>> = disks.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "KIND", "SIZE", "BLOCK", "HELD", "UUID"]);
    assert_eq!(rows[1][..7], ["Malloc0", "Malloc", "disk", "4", "MiB", "512", "no"]);
    assert_eq!(rows[3][..7], ["n", "Null", "disk", "3", "MiB", "4096", "yes"]);
    assert!(served.ok(&["controller", "list"]).lines().nth(1).unwrap().starts_with("c     n     no         2"));
    assert_eq!(served.ok(&["controller", "delete", "c"]), "done\n");
    assert_eq!(served.ok(&["disk", "delete", "n"]), "done\n");
    assert!(served.ok(&["event", "list"]).contains("bdev_unregister"));
    assert!(served.ok(&["metrics"]).trim_end().ends_with("# EOF"));
    assert!(served.ok(&["worker", "list"]).starts_with("CPU"));
    let top = served.ok(&["top", "--count", "1", "--interval", "0.05"]);
    assert!(top.contains("READ LATENCY") && top.contains("image"), "{top}");
}

#[test]
fn a_refusal_says_why_and_what_to_do() {
    let served = Served::start();
    let output = served.run(&["disk", "create", "null", "n", "--num-blocks", "8", "--block-size", "511"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("field: block_size\n  got: 511\n  expected: a power of two"), "{}", said(&output));
    let output = served.run(&["disk", "delete", "nothing"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("hint: "), "{}", said(&output));
}

#[test]
fn each_kind_of_failure_has_its_exit_code() {
    let served = Served::start();
    assert_eq!(served.run(&["disk", "fly"]).status.code(), Some(2));
    assert_eq!(served.run(&["disk", "create", "malloc", "--size", "12Q"]).status.code(), Some(2));
    assert_eq!(served.run(&["rpc", "spdk_get_version", "{"]).status.code(), Some(2));
    assert_eq!(served.run(&["config", "load", "/nonexistent"]).status.code(), Some(2));
    let unreachable = run(Path::new("/nonexistent/rpc"), &["disk", "list"]);
    assert_eq!(unreachable.status.code(), Some(3));
    assert!(said(&unreachable).contains("is sluiced running?"));
}

#[test]
fn a_configuration_goes_from_one_daemon_to_another() {
    let (one, other) = (Served::start(), Served::start());
    one.ok(&["disk", "create", "null", "n", "--size", "1G"]);
    one.ok(&["controller", "create", "c", "n"]);
    let saved = one.ok(&["config", "save"]);
    let file = other.file("config.json", &saved);
    let validation = other.ok(&["config", "validate", file.to_str().unwrap()]);
    assert!(validation.contains("\"valid\": true"), "{validation}");
    assert_eq!(other.ok(&["config", "load", file.to_str().unwrap()]), "done\n");
    assert_eq!(other.ok(&["config", "save"]), saved);
    assert!(other.ok(&["config", "pending"]).starts_with("OBJECT"));
}

#[test]
fn a_capture_ends_when_it_is_interrupted() {
    let served = Served::start();
    served.ok(&["port", "create", "vhost-user", "p"]);
    served.ok(&["port", "limit", "p", "--packets-per-second", "1000"]);
    let (socket, file) = (served.dir().join("rpc"), served.dir().join("p.pcapng"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicectl"));
    let args = ["capture", "p", "--file", file.to_str().unwrap()];
    let capture = command.env("SLUICE_SOCKET", socket).args(args).stdout(Stdio::piped()).spawn().unwrap();
    while !served.run(&["rpc", "capture_get", r#"{"port": "p"}"#]).status.success() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let busy = served.run(&args);
    assert!(said(&busy).contains("is being captured"), "{}", said(&busy));
    Command::new("kill").args(["-INT", &capture.id().to_string()]).status().unwrap();
    let output = capture.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("0 packets in "), "{output:?}");
    assert_eq!(std::fs::read(file).unwrap()[..4], [0x0a, 0x0d, 0x0d, 0x0a], "a section header block");
    assert!(!served.run(&["rpc", "capture_get", r#"{"port": "p"}"#]).status.success());
}

#[test]
fn any_method_can_be_called_and_any_answer_is_json() {
    let served = Served::start();
    let version: serde_json::Value = serde_json::from_str(&served.ok(&["rpc", "spdk_get_version"])).unwrap();
    assert!(version["version"].as_str().unwrap().starts_with("Sluice v"));
    served.ok(&["rpc", "bdev_null_create", r#"{"name": "n", "block_size": 512, "num_blocks": 8}"#]);
    let disks: serde_json::Value = serde_json::from_str(&served.ok(&["disk", "list", "--json"])).unwrap();
    assert_eq!(disks[0]["name"], "n");
}

#[test]
fn completions_and_help_know_all_verbs() {
    let served = Served::start();
    for shell in ["bash", "zsh", "fish"] {
        let completions = served.ok(&["completions", shell]);
        assert!(completions.contains("move-queue") && completions.contains("rw-ios-per-sec"), "{shell}");
    }
    let help = served.ok(&["disk", "create", "malloc", "--help"]);
    assert!(help.contains("a power of two from 512 to 65536") && !help.contains("dif"), "{help}");
}

#[test]
fn man_pages_are_written_for_all_verbs() {
    let served = Served::start();
    served.ok(&["man", served.dir().to_str().unwrap()]);
    let page = |name: &str| std::fs::read_to_string(served.dir().join(name)).unwrap();
    assert!(page("sluicectl.1").contains("Command\\-line client for sluiced"));
    assert!(page("sluicectl-disk-create-malloc.1").contains("a power of two from 512 to 65536"));
}
