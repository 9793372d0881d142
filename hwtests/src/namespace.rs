//! A network namespace as the other end of a veth pair.

use crate::process::run;
use anyhow::{Result, ensure};
use std::process::Command;

/// A network namespace with an interface in it that speaks no IPv6. Gone with the value.
pub struct Namespace {
    name: String,
    cable: String,
}

impl Namespace {
    /// With one end of a veth pair in it. `side` tells it from others of this test; `address` is with its prefix.
    pub fn new(side: &str, address: &str) -> Result<Namespace> {
        let mut namespace = Namespace::empty(side)?;
        let (cable, inner) = (format!("{}h", namespace.name), format!("{}n", namespace.name));
        ip(&format!("link add {cable} type veth peer name {inner} netns {}", namespace.name))?;
        ip(&format!("link set {cable} up"))?;
        namespace.cable = cable;
        namespace.configure(&inner, address)?;
        Ok(namespace)
    }

    /// With an interface of this machine in it, which comes back in the end.
    pub fn holding(side: &str, address: &str, interface: &str) -> Result<Namespace> {
        let namespace = Namespace::empty(side)?;
        ip(&format!("link set {interface} netns {}", namespace.name))?;
        namespace.configure(interface, address)?;
        Ok(namespace)
    }

    fn empty(side: &str) -> Result<Namespace> {
        let name = format!("sl{}{side}", std::process::id());
        ip(&format!("netns add {name}"))?;
        let namespace = Namespace { name, cable: String::new() };
        namespace.shell("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")?;
        Ok(namespace)
    }

    fn configure(&self, interface: &str, address: &str) -> Result<()> {
        ip(&format!("-n {} addr add {address} dev {interface}", self.name))?;
        ip(&format!("-n {} link set {interface} up", self.name)).map(drop)
    }

    /// The other end of the veth pair, in the host's namespace.
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
        // The kernel takes down a namespace in its own time, and another is to have these names.
        if !self.cable.is_empty() {
            drop(ip(&format!("link del {}", self.cable)));
        }
        drop(ip(&format!("netns del {}", self.name)));
    }
}

fn ip(arguments: &str) -> Result<String> {
    run(Command::new("ip").args(arguments.split(' ')))
}
