//! A card with rte_flow under the daemon: two of its ports in a bridge, and a peer at the other end of each.
//!
//! Without more it is the model of an FPGA over veth pairs. A real card is named by the environment:
//! - `SLUICE_TEST_CARD`: the devargs of two ports of it with a blank between them, in the order in which they are opened, such as
//!   `0000:03:00.0 0000:03:00.0_representor_vf0`;
//! - `SLUICE_TEST_CARD_PEERS`: the network interfaces of this machine at their other ends, such as `enp4s0 enp3s0v0`: one that is
//!   cabled to the physical port, the virtual function itself. Each is in a network namespace while a test runs;
//! - `SLUICE_TEST_CARD_EAL`: options for DPDK, where it needs some.

#![allow(dead_code, reason = "each test takes what it needs")]

use anyhow::{Context, Result, ensure};
use hwtests::{Daemon, Namespace};
use serde_json::{Value, json};
use std::env;
use std::time::{Duration, Instant};

const OFFLOAD_TIMEOUT: Duration = Duration::from_secs(60);
const ADDRESSES: [&str; 2] = ["10.98.0.1/24", "10.98.0.2/24"];
/// The second address, as one says it to ping.
const FUNCTION: &str = "10.98.0.2";

pub(crate) struct Card {
    pub(crate) daemon: Daemon,
    /// At the other end of the port `wire`, which has the number 1.
    pub(crate) wire: Namespace,
    /// At the other end of the port `function`, which has the number 2.
    pub(crate) function: Namespace,
    /// The devargs of both ports.
    devargs: [String; 2],
}

impl Card {
    /// The card that the environment names, else the model.
    pub(crate) fn new() -> Result<Card> {
        Card::with_options(&[])
    }

    /// The same, of a daemon with these options besides.
    pub(crate) fn with_options(options: &[&str]) -> Result<Card> {
        let Ok(devargs) = env::var("SLUICE_TEST_CARD") else { return Card::model("", options) };
        let peers = env::var("SLUICE_TEST_CARD_PEERS").context("SLUICE_TEST_CARD_PEERS is not set")?;
        let [wire, function] = pair("SLUICE_TEST_CARD_PEERS", &peers)?;
        let wire = Namespace::holding("l", ADDRESSES[0], &wire)?;
        let function = Namespace::holding("r", ADDRESSES[1], &function)?;
        let eal = env::var("SLUICE_TEST_CARD_EAL").unwrap_or_default();
        Card::start([wire, function], pair("SLUICE_TEST_CARD", &devargs)?, &eal, options)
    }

    /// The model with these arguments besides. Nothing, with a word, where the tests run with a card.
    pub(crate) fn with_faults(arguments: &str) -> Result<Option<Card>> {
        if env::var_os("SLUICE_TEST_CARD").is_some() {
            println!("left out: no card has {arguments:?} on demand");
            return Ok(None);
        }
        Card::model(arguments, &[]).map(Some)
    }

    fn model(arguments: &str, options: &[&str]) -> Result<Card> {
        let (wire, function) = (Namespace::new("l", ADDRESSES[0])?, Namespace::new("r", ADDRESSES[1])?);
        let [left, right] = [wire.cable(), function.cable()];
        let backends = format!("wire=(net_af_packet0,iface={left}),function=(net_af_packet1,iface={right})");
        let devargs = [format!("net_fpgasim0,{backends}{arguments}"), "net_fpgasim0_representor_0".to_owned()];
        Card::start([wire, function], devargs, "-d librte_net_fpgasim.so --no-huge -m 256", options)
    }

    fn start([wire, function]: [Namespace; 2], devargs: [String; 2], eal: &str, options: &[&str]) -> Result<Card> {
        let eal = format!("--eal={eal}");
        let daemon = Daemon::start_with("0", &[&[eal.as_str(), "--packet-buffers=32768"], options].concat())?;
        let card = Card { daemon, wire, function, devargs };
        card.daemon.rpc("bridge_create", json!({"name": "br"}))?;
        card.plug("wire", &card.devargs[0])?;
        card.plug("function", &card.devargs[1])?;
        Ok(card)
    }

    /// Makes a port of DPDK in the bridge.
    pub(crate) fn plug(&self, name: &str, devargs: &str) -> Result<()> {
        self.daemon.rpc("port_create_dpdk", json!({"name": name, "devargs": devargs}))?;
        self.daemon.rpc("bridge_add_port", json!({"bridge": "br", "port": name})).map(drop)
    }

    /// Makes the port `function` that was deleted.
    pub(crate) fn plug_function(&self) -> Result<()> {
        self.plug("function", &self.devargs[1])
    }

    /// Echoes from the wire's end to the function's and back. None may be lost.
    pub(crate) fn ping(&self, count: u32) -> Result<()> {
        self.wire.ping(FUNCTION, count)
    }

    /// One echo. Whether it was answered, and with which TTL.
    pub(crate) fn ping_once(&self) -> Result<Option<u8>> {
        let said = self.wire.shell(&format!("busybox ping -c 1 -W 1 {FUNCTION} || true"))?;
        Ok(said.split("ttl=").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()))
    }

    /// Pings on until it holds.
    pub(crate) fn ping_until(&self, what: &str, holds: impl Fn(&Card) -> Result<bool>) -> Result<()> {
        eventually(what, || {
            self.ping(100)?;
            holds(self)
        })
        .with_context(|| format!("{:#}", self.offload().unwrap_or_default()))
    }

    /// What the hardware did, as the daemon tells it.
    pub(crate) fn offload(&self) -> Result<Value> {
        self.daemon.rpc("flow_get_offload", json!({}))
    }

    /// A number among them.
    pub(crate) fn offloaded(&self, name: &str) -> Result<u64> {
        self.offload()?[name].as_u64().with_context(|| format!("no {name}"))
    }

    /// Both directions are in the card.
    pub(crate) fn is_offloaded(&self) -> Result<bool> {
        Ok(self.offloaded("flows")? >= 2)
    }

    /// Flows that were refused: what each matches, and why.
    pub(crate) fn refused(&self) -> Result<Vec<(String, String)>> {
        let refused = self.offload()?["refused"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(refused.iter().map(|flow| (text(&flow["flow"]), text(&flow["reason"]))).collect())
    }

    /// What a port of the daemon received: packets that the card left to the host.
    pub(crate) fn received(&self, port: &str) -> Result<u64> {
        let report = self.daemon.rpc("port_get", json!({"name": port}))?;
        report.pointer("/0/stats/rx_packets").and_then(Value::as_u64).context("rx_packets")
    }

    /// The lines of the datapath's flows.
    pub(crate) fn flows(&self) -> Result<Vec<String>> {
        let dump = self.daemon.rpc("flow_dump", json!({"more": true}))?;
        Ok(dump.as_array().into_iter().flatten().filter_map(|line| line.as_str().map(str::to_owned)).collect())
    }
}

pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + OFFLOAD_TIMEOUT;
    while !holds()? {
        ensure!(Instant::now() < deadline, "{what}: waited in vain");
    }
    Ok(())
}

fn pair(name: &str, value: &str) -> Result<[String; 2]> {
    let words: Vec<String> = value.split_whitespace().map(str::to_owned).collect();
    words.try_into().ok().with_context(|| format!("{name} is {value:?}: expected two, with a blank between them"))
}
