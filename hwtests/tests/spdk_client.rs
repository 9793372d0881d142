//! SPDK's own RPC client, as it is on PyPI, drives the daemon and does not notice the difference.

use anyhow::{Context, Result, ensure};
use hwtests::Daemon;
use serde_json::{Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The client's version; its schema is the contract.
const CLIENT: &str = "spdk==26.9";

struct Client<'a> {
    daemon: &'a Daemon,
    program: PathBuf,
}

impl<'a> Client<'a> {
    /// Installs the client into a Python environment of its own, once.
    fn new(daemon: &'a Daemon) -> Result<Client<'a>> {
        let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("spdk-client");
        let program = venv.join("bin/spdk-rpc");
        if !program.exists() {
            succeed(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
            succeed(Command::new(venv.join("bin/pip")).args(["install", "--quiet", CLIENT]))?;
        }
        Ok(Client { daemon, program })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-s").arg(self.daemon.rpc_socket()).args(["-t", "10"]).args(args);
        command
    }

    /// What the client printed.
    fn call(&self, args: &[&str]) -> Result<String> {
        let output = succeed(&mut self.command(args))?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn call_json(&self, args: &[&str]) -> Result<Value> {
        let text = self.call(args)?;
        serde_json::from_str(&text).with_context(|| format!("{args:?} printed: {text}"))
    }

    /// The message of a call that must fail.
    fn refused(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args).output()?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(!output.status.success(), "{args:?} should fail: {text}");
        ensure!(text.contains("\"code\""), "{args:?} failed without an RPC error: {text}");
        Ok(text)
    }

    /// Loads a saved configuration, as `spdk-rpc load_config -j FILE`.
    fn load(&self, config: &Path) -> Result<()> {
        self.call(&["load_config", "-j", config.to_str().context("path is not UTF-8")?]).map(drop)
    }
}

fn succeed(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let text = || String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
    ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, text());
    Ok(output)
}

fn names(list: &Value, key: &str) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|item| item[key].as_str().map(str::to_owned)).collect()
}

#[test]
#[ignore = "installs a package"]
fn spdk_client_creates_lists_saves_loads_and_deletes() -> Result<()> {
    let daemon = Daemon::start("0")?;
    let client = Client::new(&daemon)?;
    let file = daemon.file("disk.img");
    File::create(&file)?.set_len(8 << 20)?;
    let path = file.to_str().context("path is not UTF-8")?;

    let methods = client.call_json(&["rpc_get_methods"])?;
    for method in ["bdev_malloc_create", "bdev_aio_create", "vhost_create_blk_controller", "save_config"] {
        ensure!(methods.as_array().is_some_and(|all| all.contains(&json!(method))), "no {method} in {methods}");
    }
    ensure!(client.call_json(&["spdk_get_version"])?["version"].is_string(), "version");
    ensure!(client.call(&["bdev_malloc_create", "16", "512", "-b", "Malloc0"])? == "Malloc0", "name of the new disk");
    ensure!(client.call(&["bdev_aio_create", path, "aio0", "512"])? == "aio0", "name of the new disk");
    client.call(&["vhost_create_blk_controller", "vhost.0", "Malloc0"])?;
    client.call(&["vhost_create_blk_controller", "--packed-ring", "--readonly", "vhost.1", "aio0"])?;
    client.call(&["bdev_set_qos_limit", "aio0", "--rw-ios-per-sec", "20000"])?;

    let disks = client.call_json(&["bdev_get_bdevs"])?;
    ensure!(names(&disks, "name") == ["Malloc0", "aio0"], "{disks}");
    ensure!(disks[0]["num_blocks"] == 32768 && disks[1]["num_blocks"] == 16384, "{disks}");
    ensure!(disks[0]["block_size"] == 512, "{disks}");
    let controllers = client.call_json(&["vhost_get_controllers"])?;
    ensure!(names(&controllers, "ctrlr") == ["vhost.0", "vhost.1"], "{controllers}");
    ensure!(daemon.vhost_socket("vhost.0").exists(), "no socket of vhost.0");
    client.call_json(&["framework_get_reactors"])?;
    client.call_json(&["thread_get_stats"])?;
    client.call_json(&["bdev_get_iostat", "--names", "aio0"])?;

    let taken = client.refused(&["bdev_malloc_create", "16", "512", "-b", "Malloc0"])?;
    ensure!(taken.contains("Malloc0"), "{taken}");
    client.refused(&["vhost_create_blk_controller", "vhost.2", "nothing"])?;
    client.refused(&["bdev_malloc_delete", "nothing"])?;

    let saved = client.call_json(&["save_config"])?;
    let config = daemon.file("config.json");
    std::fs::write(&config, saved.to_string())?;
    let second = Daemon::start("0")?;
    let copy = Client::new(&second)?;
    copy.load(&config)?;
    let loaded = copy.call_json(&["save_config"])?;
    ensure!(loaded == saved, "saved {saved}\nloaded and saved again {loaded}");
    ensure!(second.vhost_socket("vhost.1").exists(), "no socket of vhost.1 after load_config");

    client.call(&["vhost_delete_controller", "vhost.0"])?;
    client.call(&["bdev_malloc_delete", "Malloc0"])?;
    let left = client.call_json(&["bdev_get_bdevs"])?;
    ensure!(names(&left, "name") == ["aio0"], "{left}");
    Ok(())
}
