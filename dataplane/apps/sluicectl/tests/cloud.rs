//! Remote disks as a user sees them: a target serves one, the daemon attaches it, an image is written onto it.

mod served;

use nvme::target::{Access, MemoryStore, Namespace, Server, Target, TargetConfig};
use serde_json::{Value, json};
use served::{Served, said};
use sluice_target::Protocol;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

const INITIATOR: &str = "iqn.2024-01.io.sluice:host";
/// Several pieces of a copy, and no whole number of blocks.
const IMAGE: usize = (2 << 20) + 1000;
const DISK: u64 = 4 << 20;

/// A disk that `sluice-target` serves while the test runs.
struct CloudDisk {
    protocol: Protocol,
    name: String,
    address: String,
    _target: sluice_target::Target,
}

impl CloudDisk {
    fn serve(protocol: Protocol, file: &Path, read_only: bool) -> CloudDisk {
        let name = match protocol {
            Protocol::Nvme => "nqn.2024-01.io.sluice:disk",
            Protocol::Iscsi => "iqn.2024-01.io.sluice:disk",
        };
        let target = sluice_target::serve(protocol, file, "127.0.0.1:0", name, read_only).unwrap();
        CloudDisk { protocol, name: name.to_owned(), address: target.address().to_string(), _target: target }
    }

    fn attach(&self, served: &Served, name: &str) -> Output {
        match self.protocol {
            Protocol::Nvme => attach_nvme(served, name, &self.address, &self.name),
            Protocol::Iscsi => attach_iscsi(served, name, &self.address, &self.name),
        }
    }
}

fn attach_nvme(served: &Served, name: &str, address: &str, nqn: &str) -> Output {
    let (host, port) = address.rsplit_once(':').unwrap();
    served.run(&["nvme", "attach", name, "TCP", host, nqn, "--trsvcid", port])
}

fn attach_iscsi(served: &Served, name: &str, address: &str, iqn: &str) -> Output {
    served.run(&["disk", "create", "iscsi", name, INITIATOR, &format!("iscsi://{address}/{iqn}/0")])
}

fn done(output: &Output) {
    assert!(output.status.success(), "{}", said(output));
}

fn call(served: &Served, method: &str, params: &Value) -> Value {
    serde_json::from_str(&served.ok(&["rpc", method, &params.to_string()])).unwrap()
}

fn disks(served: &Served) -> Vec<String> {
    let disks = call(served, "bdev_get_bdevs", &json!({}));
    disks.as_array().unwrap().iter().map(|disk| disk["name"].as_str().unwrap().to_owned()).collect()
}

fn compares(served: &Served, disk: &str) -> bool {
    call(served, "bdev_get_bdevs", &json!({"name": disk}))[0]["supported_io_types"]["compare"].as_bool().unwrap()
}

fn progress(served: &Served, disk: &str) -> Value {
    call(served, "bdev_image_get_progress", &json!({"name": disk}))
}

fn wait_for(what: &str, mut until: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(40);
    while !until() {
        assert!(Instant::now() < end, "{what} did not happen within 40 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn image() -> Vec<u8> {
    (0..IMAGE as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// A file of `DISK` bytes, none of them zero.
fn blank(served: &Served, name: &str) -> std::path::PathBuf {
    let path = served.dir().join(name);
    std::fs::write(&path, vec![0xa5; DISK as usize]).unwrap();
    path
}

fn write_image(served: &Served, disk: &str, file: &Path, verify: bool) -> Output {
    let mut args = vec!["image", "write", disk, file.to_str().unwrap()];
    args.extend(verify.then_some("--verify"));
    served.run(&args)
}

/// The image, zeros up to the end of its last block, and nothing else was touched.
fn assert_written(file: &Path) {
    let (found, image) = (std::fs::read(file).unwrap(), image());
    let end = image.len().next_multiple_of(512);
    assert!(found[..image.len()] == image, "{}: another image", file.display());
    assert!(found[image.len()..end].iter().all(|&byte| byte == 0), "{}: the last block", file.display());
    assert!(found[end..].iter().all(|&byte| byte == 0xa5), "{}: behind the image", file.display());
}

#[test]
fn a_file_is_served_over_both_protocols_and_takes_an_image() {
    let served = Served::start();
    let file = served.dir().join("image");
    std::fs::write(&file, image()).unwrap();
    for (protocol, disk) in [(Protocol::Nvme, "an1"), (Protocol::Iscsi, "a")] {
        let cloud = blank(&served, disk);
        let target = CloudDisk::serve(protocol, &cloud, false);
        done(&target.attach(&served, "a"));
        // A target that does not compare is read from.
        assert_eq!(compares(&served, disk), protocol == Protocol::Nvme);
        done(&write_image(&served, disk, &file, true));
        assert_written(&cloud);
        let told = progress(&served, disk);
        assert_eq!((&told["copied"], &told["verified"]), (&json!(IMAGE), &json!(IMAGE)));
        assert_eq!((&told["done"], &told["error"], &told["differs_at"]), (&json!(true), &Value::Null, &Value::Null));
        let detach: &[&str] =
            if protocol == Protocol::Nvme { &["nvme", "detach", "a"] } else { &["disk", "delete", "a"] };
        served.ok(detach);

        drop(target);
        let target = CloudDisk::serve(protocol, &cloud, true);
        done(&target.attach(&served, "a"));
        let refused = write_image(&served, disk, &file, true);
        assert_eq!(refused.status.code(), Some(1));
        assert!(said(&refused).contains("I/O error"), "{}", said(&refused));
        assert_written(&cloud);
        served.ok(detach);
    }
}

/// By comparing (memory, a file, NVMe) and by reading back (iSCSI).
#[test]
fn a_byte_that_is_not_what_was_written_is_found_by_verifying() {
    let served = Served::start();
    let file = served.dir().join("image");
    std::fs::write(&file, image()).unwrap();
    let _clouds = [(Protocol::Nvme, "nvme"), (Protocol::Iscsi, "iscsi")].map(|(protocol, name)| {
        let cloud = CloudDisk::serve(protocol, &blank(&served, name), false);
        done(&cloud.attach(&served, name));
        cloud
    });
    served.ok(&["disk", "create", "malloc", "ram", "--size", "4M"]);
    served.ok(&["disk", "create", "file", "file", blank(&served, "local").to_str().unwrap()]);
    for base in ["ram", "file", "nvmen1", "iscsi"] {
        served.ok(&["disk", "create", "error", base]);
        let disk = format!("EE_{base}");
        assert_eq!(compares(&served, &disk), base != "iscsi");
        let corrupt = ["--corrupt-offset", "700000", "--corrupt-value", "1"];
        let inject = [&["disk", "error", "inject", &disk, "write", "corrupt_data"], &corrupt[..]].concat();
        served.ok(&inject);
        let found = write_image(&served, &disk, &file, true);
        assert_eq!(found.status.code(), Some(1), "{disk}");
        let message = "the disk does not hold what was written to the 1048576 bytes at 0";
        assert!(said(&found).contains(message) && said(&found).contains("hint: "), "{disk}: {}", said(&found));
        let told = progress(&served, &disk);
        assert_eq!((&told["copied"], &told["verified"]), (&json!(IMAGE), &json!(0)), "{disk}");
        assert_eq!((&told["differs_at"], &told["error"]), (&json!(0), &json!(message)), "{disk}");

        served.ok(&inject);
        done(&write_image(&served, &disk, &file, false));
        let told = progress(&served, &disk);
        assert_eq!((&told["verified"], &told["differs_at"]), (&Value::Null, &Value::Null), "unverified: {disk}");
        done(&write_image(&served, &disk, &file, true));
        assert_eq!(progress(&served, &disk)["verified"], IMAGE, "{disk}");
    }
    // It keeps nothing, and what was read last is not taken for an answer.
    served.ok(&["disk", "create", "null", "null", "--size", "4M"]);
    assert_eq!(write_image(&served, "null", &file, true).status.code(), Some(1));
    assert_eq!(progress(&served, "null")["differs_at"], 0);
}

#[test]
fn an_image_that_cannot_be_written_is_refused_and_the_disk_is_free_again() {
    let served = Served::start();
    let file = served.dir().join("image");
    std::fs::write(&file, image()).unwrap();
    served.ok(&["disk", "create", "malloc", "small", "--size", "1M"]);
    served.ok(&["disk", "create", "malloc", "busy", "--size", "4M"]);
    served.ok(&["controller", "create", "c", "busy"]);
    let refused = |disk: &str, file: &Path, why: &str| {
        let output = write_image(&served, disk, file, true);
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains(why), "{why}: {}", said(&output));
    };
    refused("small", &file, "at most the 1048576 bytes of small");
    refused("small", &served.dir().join("nothing"), "check the path");
    refused("small", served.dir(), "a regular file");
    refused("busy", &file, "the controller c serves it");
    refused("nothing", &file, "there is no disk nothing");
    assert!(!served.run(&["rpc", "bdev_image_get_progress", r#"{"name": "small"}"#]).status.success());
    served.ok(&["disk", "delete", "small"]);
}

/// A subsystem with one namespace, in this process.
struct Subsystem {
    target: Arc<Target>,
    server: Option<Server>,
    address: String,
}

impl Subsystem {
    fn new(nqn: &str, uuid: u128) -> Subsystem {
        let target = Target::new(TargetConfig::new(nqn), 1);
        target.set_namespace(1, namespace(uuid));
        let server = Server::start(target.clone(), "127.0.0.1:0").unwrap();
        let address = server.address().to_string();
        Subsystem { target, server: Some(server), address }
    }
}

fn namespace(uuid: u128) -> Namespace {
    let store = Arc::new(MemoryStore::new(DISK as usize));
    Namespace { store, block_size: 512, access: Access::ReadWrite, uuid: Uuid::from_u128(uuid) }
}

const FIRST: &str = "nqn.2024-01.io.sluice:first";
const SECOND: &str = "nqn.2024-01.io.sluice:second";

/// The refusal names both disks, and says what to do.
fn assert_twins(output: &Output, new: &str, old: &str) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("the disks {new} and {old} are one: both have the identity ")), "{said}");
    for part in ["field: uuid", "got: ", &format!("expected: an identity that no other disk has: {old} has"), "hint: "]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_namespace_has_one_name() {
    let served = Served::start();
    let image = served.file("image", "an image");
    let (first, second) = (Subsystem::new(FIRST, 1), Subsystem::new(SECOND, 1));
    done(&attach_nvme(&served, "a", &first.address, FIRST));
    assert_twins(&attach_nvme(&served, "b", &first.address, FIRST), "bn1", "an1");
    assert_twins(&attach_nvme(&served, "b", &second.address, SECOND), "bn1", "an1");
    assert_eq!(disks(&served), ["an1"]);
    assert_eq!(served.ok(&["nvme", "list"]).lines().count(), 2, "a title and one controller");
    done(&write_image(&served, "an1", &image, true));
    // Another disk of the same subsystem's name space is welcome, and so is this one when its first name is gone.
    second.target.set_namespace(1, namespace(2));
    done(&attach_nvme(&served, "b", &second.address, SECOND));
    served.ok(&["nvme", "detach", "a"]);
    done(&attach_nvme(&served, "c", &first.address, FIRST));
    assert_eq!(disks(&served), ["bn1", "cn1"]);
}

#[test]
fn a_lun_has_one_name() {
    use iscsi::target::{MemoryStore, Server, Target, TargetConfig, Unit};
    let serve = |iqn: &str, identity: u64| {
        let target = Target::new(TargetConfig::new(iqn));
        let unit = Unit::new(Arc::new(MemoryStore::new(DISK as usize)), 512, false, identity);
        target.insert_unit(iscsi::Lun(0), Arc::new(unit));
        Server::start(Arc::new(target), "127.0.0.1:0").unwrap()
    };
    let served = Served::start();
    let image = served.file("image", "an image");
    let (first, second) = ("iqn.2024-01.io.sluice:first", "iqn.2024-01.io.sluice:second");
    let (one, twin, other) = (serve(first, 1), serve(second, 1), serve(second, 2));
    done(&attach_iscsi(&served, "a", &one.address().to_string(), first));
    assert_twins(&attach_iscsi(&served, "b", &one.address().to_string(), first), "b", "a");
    assert_twins(&attach_iscsi(&served, "b", &twin.address().to_string(), second), "b", "a");
    done(&write_image(&served, "a", &image, true));
    done(&attach_iscsi(&served, "b", &other.address().to_string(), second));
    served.ok(&["disk", "delete", "a"]);
    done(&attach_iscsi(&served, "c", &twin.address().to_string(), second));
    assert_eq!(disks(&served), ["b", "c"]);
}

#[test]
fn a_disk_of_ours_cannot_have_the_uuid_of_another() {
    let served = Served::start();
    let first = Subsystem::new(FIRST, 7);
    done(&attach_nvme(&served, "a", &first.address, FIRST));
    let uuid = Uuid::from_u128(7).to_string();
    let twin = served.run(&["disk", "create", "malloc", "m", "--size", "1M", "--uuid", &uuid]);
    assert_twins(&twin, "m", "an1");
    assert_eq!(disks(&served), ["an1"]);
}

/// A namespace that comes later with the identity of another disk is told in an event; both controllers go on.
#[test]
fn a_twin_that_comes_later_is_told_and_harms_nobody() {
    let served = Served::start();
    let image = served.file("image", "an image");
    let (first, second) = (Subsystem::new(FIRST, 1), Subsystem::new(SECOND, 2));
    done(&attach_nvme(&served, "a", &first.address, FIRST));
    done(&attach_nvme(&served, "b", &second.address, SECOND));
    second.target.set_namespace(2, namespace(1));
    wait_for("an event", || served.ok(&["event", "list"]).contains("the disks bn2 and an1 are one"));
    assert_eq!(disks(&served), ["an1", "bn1"]);
    done(&write_image(&served, "an1", &image, true));
    done(&write_image(&served, "bn1", &image, true));
    served.ok(&["nvme", "detach", "a"]);
    second.target.remove_namespace(2);
    second.target.set_namespace(3, namespace(1));
    wait_for("a disk", || disks(&served) == ["bn1", "bn3"]);
}

/// A controller that comes back is no second one.
#[test]
fn a_reconnect_keeps_name_and_identity() {
    let served = Served::start();
    let image = served.file("image", "an image");
    let mut first = Subsystem::new(FIRST, 1);
    done(&attach_nvme(&served, "a", &first.address, FIRST));
    let state = || call(&served, "bdev_nvme_get_controllers", &json!({}))[0]["ctrlrs"][0].clone();
    drop(first.server.take());
    wait_for("the loss", || state()["state"] != "enabled");
    first.server = Some(Server::start(first.target.clone(), first.address.as_str()).unwrap());
    wait_for("the way back", || state()["state"] == "enabled" && state()["associations"] == 2);
    served.ok(&["nvme", "reset", "a"]);
    wait_for("a reset", || state()["state"] == "enabled" && state()["associations"] == 3);
    assert_eq!(disks(&served), ["an1"]);
    done(&write_image(&served, "an1", &image, true));
    assert!(!served.ok(&["event", "list"]).contains("are one"));
}

/// Of two names of one disk in the state that is restored, one comes into effect; the other is pending, and says why.
#[test]
fn of_twins_in_the_state_one_is_restored() {
    let first = Subsystem::new(FIRST, 1);
    let attach = |name: &str| {
        let (host, port) = first.address.rsplit_once(':').unwrap();
        let params = json!({"name": name, "trtype": "TCP", "traddr": host, "trsvcid": port, "subnqn": FIRST});
        json!({"method": "bdev_nvme_attach_controller", "params": params})
    };
    let ram = json!({"method": "bdev_malloc_create", "params": {"name": "ram", "num_blocks": 8, "block_size": 512}});
    let document = json!({"subsystems": [{"subsystem": "bdev", "config": [attach("a"), attach("b"), ram]}]});
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::write(state.join("state.json"), document.to_string()).unwrap();
    let served = Served::start_in(dir, Some(state));
    // Which one, if the first takes its time, is not said.
    wait_for("both tries", || served.ok(&["config", "pending"]).contains("are one: both have the identity"));
    let found = disks(&served);
    assert!(found.len() == 2 && found.contains(&"ram".to_owned()), "{found:?}");
    let (kept, pending) = if found.contains(&"an1".to_owned()) { ("a", "b") } else { ("b", "a") };
    assert!(served.ok(&["config", "pending"]).contains(&format!("nvme {pending}")));
    // The one that is in effect is given up: the other takes its place by itself.
    served.ok(&["nvme", "detach", kept]);
    wait_for("the other", || disks(&served).contains(&format!("{pending}n1")));
    assert_eq!(served.ok(&["config", "pending"]).lines().count(), 1, "the title alone");
}
