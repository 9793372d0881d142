//! Debian's OVS-DPDK with `hw-offload=true` drives the model of an FPGA card, unmodified: a client of rte_flow of
//! another maker.

use anyhow::{Context, Result, ensure};
use hwtests::{Namespace, Ovs};
use std::time::{Duration, Instant};

const OFFLOAD_TIMEOUT: Duration = Duration::from_secs(60);
const LEFT: &str = "10.97.0.1/24";
const RIGHT: &str = "10.97.0.2/24";
/// Bytes of an echo request of busybox, and of the answer.
const ECHO_BYTES: u64 = 98;

/// OVS on the card's wire and function, with a peer at the other end of each.
struct Net {
    left: Namespace,
    _right: Namespace,
    ovs: Ovs,
    /// Echo requests that were sent, each answered.
    sent: u64,
}

impl Net {
    /// The card has these arguments besides.
    fn new(arguments: &str) -> Result<Net> {
        let (left, right) = (Namespace::new("l", LEFT)?, Namespace::new("r", RIGHT)?);
        let ovs = Ovs::start(&[
            "hw-offload=true",
            "pmd-cpu-mask=0x1",
            // Its thread gives way where there is nothing to do.
            "pmd-maxsleep=100",
            // Flows go when this test says so.
            "max-idle=600000",
            "dpdk-extra=--no-pci --no-huge --legacy-mem -m 512 -d librte_net_fpgasim.so",
        ])?;
        let (wire, function) = (left.cable(), right.cable());
        let backends = format!("wire=(net_af_packet0,iface={wire}),function=(net_af_packet1,iface={function})");
        ovs.add_port("wire", &format!("net_fpgasim0,{backends}{arguments}"))?;
        ovs.add_port("function", "net_fpgasim0,representor=[0]")?;
        ovs.ofctl("add-flow", &["priority=1,arp,actions=NORMAL"])?;
        ovs.ofctl("add-flow", &["priority=2,icmp,in_port=1,actions=output:2"])?;
        ovs.ofctl("add-flow", &["priority=2,icmp,in_port=2,actions=output:1"])?;
        Ok(Net { left, _right: right, ovs, sent: 0 })
    }

    fn ping(&mut self, count: u32) -> Result<()> {
        self.left.ping("10.97.0.2", count)?;
        self.sent += u64::from(count);
        Ok(())
    }

    /// Pings on until it holds.
    fn ping_until(&mut self, what: &str, holds: impl Fn(&Net) -> Result<bool>) -> Result<()> {
        eventually(what, || {
            self.ping(50)?;
            holds(self)
        })
        .with_context(|| self.ovs.appctl(&["dpctl/dump-flows", "-m"]).unwrap_or_default())
        .with_context(|| self.ovs.process().output())
    }

    /// The datapath's flows of echoes from the port `name` that are of a type that OVS has a word for.
    fn echo_flows(&self, kind: &str, name: &str) -> Result<Vec<String>> {
        let said = self.ovs.appctl(&["dpctl/dump-flows", "-m", "--names", &format!("type={kind}")])?;
        let of_port = |line: &&str| line.contains(&format!("in_port({name})")) && line.contains("proto=1");
        Ok(said.lines().filter(of_port).map(str::to_owned).collect())
    }

    /// Whether both directions are in the card as a whole.
    fn is_offloaded(&self) -> Result<bool> {
        let flows = |name| self.echo_flows("offloaded", name);
        Ok(flows("wire")?.len() == 1 && flows("function")?.len() == 1)
    }

    /// A figure of OVS's own thread that polls.
    fn pmd_stat(&self, name: &str) -> Result<u64> {
        let said = self.ovs.appctl(&["dpif-netdev/pmd-stats-show"])?;
        let value = said.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": ")?.parse().ok());
        value.with_context(|| format!("no {name} in:\n{said}"))
    }

    /// Packets that the card forwarded, and those that OVS saw.
    fn done_by(&self) -> Result<(u64, u64)> {
        Ok((self.ovs.xstat(0, "device_offloaded_packets")?, self.pmd_stat("packets received")?))
    }

    /// Packets and bytes of the echoes from a port, as the bridge's own table has them: those of the card and those of OVS.
    fn counted(&self, port: u32) -> Result<(u64, u64)> {
        let said = self.ovs.ofctl("dump-flows", &[&format!("icmp,in_port={port}")])?;
        let figure = |name: &str| said.split(name).nth(1)?.split(',').next()?.parse().ok();
        figure("n_packets=").zip(figure("n_bytes=")).with_context(|| said.clone())
    }

    /// Rules in the card.
    fn rules(&self) -> Result<u64> {
        Ok(self.ovs.xstat(0, "device_exact_rules")? + self.ovs.xstat(0, "device_masked_rules")?)
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + OFFLOAD_TIMEOUT;
    while !holds()? {
        ensure!(Instant::now() < deadline, "{what}: waited in vain");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn ovs_offloads_flows_in_whole_or_part_and_removes_them() -> Result<()> {
    let mut net = Net::new("")?;
    net.ping_until("both directions in the card", Net::is_offloaded)?;
    for name in ["wire", "function"] {
        let flow = net.echo_flows("offloaded", name)?.concat();
        ensure!(flow.contains("offloaded:yes, dp:dpdk"), "{flow}");
    }

    // The card forwards and OVS does not: by what each of them counts.
    let before = net.done_by()?;
    net.ping(500)?;
    let after = net.done_by()?;
    ensure!(after.0 >= before.0 + 1000, "the card forwarded {before:?} to {after:?} packets");
    // What the kernels say by themselves may still come to it.
    ensure!(after.1 < before.1 + 100, "OVS saw {before:?} to {after:?} packets");
    // And what OVS believes of its flows is what was sent.
    let all = (net.sent, net.sent * ECHO_BYTES);
    eventually("the counters of both directions", || Ok(net.counted(1)? == all && net.counted(2)? == all))
        .with_context(|| format!("{:?} and {:?} of {all:?}", net.counted(1), net.counted(2)))?;

    // Two outputs are more than a rule has: the flow is marked and OVS does the rest, without a look-up.
    net.ovs.ofctl("mod-flows", &["icmp,in_port=1,actions=output:2,LOCAL"])?;
    net.ping_until("one direction in part", |net| Ok(net.echo_flows("partially-offloaded", "wire")?.len() == 1))?;
    let flow = net.echo_flows("partially-offloaded", "wire")?.concat();
    ensure!(flow.contains("offloaded:partial, dp:ovs"), "{flow}");
    ensure!(net.echo_flows("offloaded", "function")?.len() == 1, "the other direction left the card");
    let before = net.pmd_stat("phwol hits")?;
    net.ping(500)?;
    ensure!(net.pmd_stat("phwol hits")? >= before + 500, "OVS looks up what the card has marked");

    net.ovs.ofctl("mod-flows", &["icmp,in_port=1,actions=output:2"])?;
    net.ping_until("both directions in the card again", Net::is_offloaded)?;
    net.ovs.ofctl("del-flows", &[])?;
    eventually("no rule in the card", || {
        net.ovs.appctl(&["revalidator/purge"])?;
        Ok(net.rules()? == 0)
    })
}

#[test]
#[ignore = "needs root"]
fn ovs_forwards_in_software_when_the_card_is_full() -> Result<()> {
    let mut net = Net::new(",exact=1,masked=0")?;
    let refused = |net: &Net| Ok(net.ovs.xstat(0, "device_missed_packets")? > 1000);
    net.ping_until("packets for OVS itself", refused)?;
    ensure!(net.rules()? <= 1, "a card with one place has {} rules", net.rules()?);
    let all = (net.sent, net.sent * ECHO_BYTES);
    eventually("the counters of both directions", || Ok(net.counted(1)? == all && net.counted(2)? == all))
        .with_context(|| format!("{:?} and {:?} of {all:?}", net.counted(1), net.counted(2)))
}
