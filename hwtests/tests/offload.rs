//! The daemon on a card with rte_flow: the model of an FPGA, between two network namespaces.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hwtests::{Daemon, Namespace};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        ensure!(Instant::now() < deadline, "{what}: waited in vain");
    }
    Ok(())
}

/// What a port of the daemon received: packets that the card left to the host.
fn received(daemon: &Daemon, port: &str) -> Result<u64> {
    let report = daemon.rpc("port_get", json!({"name": port}))?;
    report.pointer("/0/stats/rx_packets").and_then(Value::as_u64).context("rx_packets")
}

#[test]
#[ignore = "needs root"]
fn flows_between_ports_of_a_card_go_into_it() -> Result<()> {
    let (left, right) = (Namespace::new("l", "10.98.0.1/24")?, Namespace::new("r", "10.98.0.2/24")?);
    let daemon =
        Daemon::start_with("0", &["--eal=-d librte_net_fpgasim.so --no-huge -m 256", "--packet-buffers=32768"])?;
    let (wire, function) = (left.cable(), right.cable());
    let card = format!("net_fpgasim0,wire=(net_af_packet0,iface={wire}),function=(net_af_packet1,iface={function})");
    daemon.rpc("bridge_create", json!({"name": "br"}))?;
    let plug = |name: &str, devargs: &str| {
        daemon.rpc("port_create_dpdk", json!({"name": name, "devargs": devargs}))?;
        daemon.rpc("bridge_add_port", json!({"bridge": "br", "port": name}))
    };
    plug("wire", &card)?;
    plug("function", "net_fpgasim0_representor_0")?;
    let offload = || daemon.rpc("flow_get_offload", json!({}));

    eventually("both directions in the card", || {
        left.ping("10.98.0.2", 100)?;
        Ok(offload()?["flows"].as_u64() >= Some(2))
    })?;
    let before = (received(&daemon, "wire")?, received(&daemon, "function")?);
    left.ping("10.98.0.2", 500)?;
    let after = (received(&daemon, "wire")?, received(&daemon, "function")?);
    // What the kernel says by itself may still come here.
    ensure!(after.0 - before.0 < 100 && after.1 - before.1 < 100, "the worker saw {before:?} to {after:?} packets");

    eventually("the card's counters", || Ok(offload()?["packets"].as_u64() >= Some(1000)))?;
    let dump = daemon.rpc("flow_dump", json!({"more": true}))?;
    let offloaded = |line: &&Value| line.as_str().is_some_and(|line| line.contains("offloaded:yes, dp:dpdk"));
    ensure!(dump.as_array().into_iter().flatten().filter(offloaded).count() >= 2, "{dump:#}");
    let metrics = daemon.rpc("metrics_get", json!({}))?;
    ensure!(metrics.as_str().is_some_and(|text| text.contains("sluice_offload_insertions_total ")), "{metrics}");

    // A flow that no rule expresses is the workers', and says why.
    let key = "in_port(1),eth(),eth_type(0x0800),ipv4(proto=1,frag=no)";
    daemon.rpc("flow_add", json!({"flow": key, "actions": "2,1"}))?;
    eventually("a refusal with its clause", || {
        left.ping("10.98.0.2", 100)?;
        Ok(offload()?["refused"][0]["reason"] == "action 2: hardware has one output a rule")
    })?;

    daemon.rpc("flow_delete", json!({"flow": key}))?;
    eventually("the flow in the card again", || {
        left.ping("10.98.0.2", 100)?;
        Ok(offload()?["flows"].as_u64() >= Some(2))
    })?;
    daemon.rpc("port_delete", json!({"name": "function"}))?;
    // Nobody holds it any more: it may come back at once.
    plug("function", "net_fpgasim0_representor_0")?;
    eventually("both directions in the card again", || {
        left.ping("10.98.0.2", 100)?;
        Ok(offload()?["flows"].as_u64() >= Some(2))
    })
}
