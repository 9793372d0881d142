use std::process::Command;

use anyhow::{Result, ensure};

use crate::process::run;

/// A network namespace with one end of a veth pair in it. Both are gone with the value.
pub struct Namespace {
    name: String,
    cable: String,
}

impl Namespace {
    /// `side` tells it from others of this test; `address` is with its prefix. It speaks no IPv6.
    pub fn new(side: &str, address: &str) -> Result<Self> {
        let name = format!("sl{}{side}", std::process::id());
        let (namespace, inner) = (Self { cable: format!("{name}h"), name: name.clone() }, format!("{name}n"));
        ip(&format!("netns add {name}"))?;
        namespace.shell("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")?;
        ip(&format!("link add {} type veth peer name {inner} netns {name}", namespace.cable))?;
        ip(&format!("link set {} up", namespace.cable))?;
        ip(&format!("-n {name} addr add {address} dev {inner}"))?;
        ip(&format!("-n {name} link set {inner} up"))?;
        Ok(namespace)
    }

    /// The other end of the pair, in the host's namespace.
    pub fn cable(&self) -> &str {
        &self.cable
    }

    /// Echo requests, each as soon as the last one is answered. All have to be.
    pub fn ping(&self, address: &str, count: u32) -> Result<()> {
        let said = self.shell(&format!("busybox ping -A -W 5 -q -c {count} {address}"))?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
        Ok(())
    }

    /// Runs a shell command in it and returns what it writes.
    pub fn shell(&self, command: &str) -> Result<String> {
        run(Command::new("ip").args(["netns", "exec", &self.name, "sh", "-c", command]))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(ip(&format!("netns del {}", self.name)));
    }
}

fn ip(arguments: &str) -> Result<String> {
    run(Command::new("ip").args(arguments.split(' ')))
}
