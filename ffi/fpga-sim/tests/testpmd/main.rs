//! Programs that nobody here wrote drive the driver, unmodified: `dpdk-testpmd` by its command line, `dpdk-test-flow-perf`.
//! Both are in Debian's package dpdk-dev.

mod conntrack;
mod faults;
mod peer;
mod templates;

use peer::{Testpmd, frames_of, library_path, write_pcap};
use std::process::Command;

/// A UDP packet to 10.0.0.`host`.
fn udp(host: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
    frame.extend([0x45, 0, 0, 46, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, host]);
    let words = frame[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    frame[24..26].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    frame.extend([0x30, 0x39, 0x07, 0xd0, 0, 26, 0, 0]);
    frame.extend([host; 18]);
    frame
}

/// So many packets to each of 10.0.0.1 to 10.0.0.`hosts`, in turn.
fn traffic(hosts: u8, times: usize) -> Vec<Vec<u8>> {
    std::iter::repeat_n(1..=hosts, times).flatten().map(udp).collect()
}

#[test]
fn packets_are_dropped_forwarded_changed_marked_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (wire, function) = (dir.path().join("wire.pcap"), dir.path().join("function.pcap"));
    write_pcap(&wire, &traffic(6, 10));
    let mut testpmd = Testpmd::start(
        &format!("wire=(net_pcap0,rx_pcap={}),function=(net_pcap1,tx_pcap={})", wire.display(), function.display()),
        &["--rxq=2", "--txq=2"],
    );
    let mut create = |rule: &str| {
        let said = testpmd.command(&format!("flow create 0 {rule} / end"));
        assert!(said.contains("created"), "{rule}: {said}");
    };
    let of = |host: u8| {
        format!("pattern represented_port ethdev_port_id is 0 / eth / ipv4 dst is 10.0.0.{host} / end actions count")
    };
    create(&format!("transfer {} / drop", of(1)));
    create(&format!(
        "transfer {} / set_ipv4_dst ipv4_addr 10.9.9.9 / dec_ttl / represented_port ethdev_port_id 1",
        of(2)
    ));
    create("ingress pattern eth / ipv4 dst is 10.0.0.3 / end actions mark id 77 / queue index 1");
    create(&format!(
        "transfer {} / of_push_vlan ethertype 0x8100 / of_set_vlan_vid vlan_vid 5 / represented_port ethdev_port_id 1",
        of(4)
    ));
    create(&format!("transfer {} / vxlan_encap / represented_port ethdev_port_id 1", of(5)));
    testpmd.command("set verbose 1");
    testpmd.command("set fwd rxonly");
    testpmd.command("start");
    testpmd.wait_for_counter(0, "represented_rx_packets", 60);
    testpmd.wait_for_counter(1, "represented_tx_packets", 30);
    testpmd.wait_for_counter(0, "rx_good_packets", 20);
    testpmd.command("stop");

    for (rule, packets) in [(0, 10), (1, 10), (3, 10), (4, 10)] {
        let said = testpmd.command(&format!("flow query 0 {rule} count"));
        assert!(said.contains(&format!("hits: {packets}\n")) && said.contains("bytes: 600\n"), "rule {rule}: {said}");
    }
    assert_eq!(testpmd.counter(0, "device_offloaded_packets"), 40);
    assert_eq!(testpmd.counter(0, "device_missed_packets"), 20);
    assert_eq!(testpmd.output().matches("FDIR matched ID=0x4d").count(), 10);
    assert!(testpmd.output().contains("port 0/queue 1: received"));
    assert!(testpmd.command("flow destroy 0 rule 0").contains("Flow rule #0 destroyed"));
    assert_eq!(testpmd.counter(0, "device_exact_rules"), 4);
    testpmd.command("flow flush 0");
    assert_eq!(testpmd.counter(0, "device_exact_rules"), 0);
    testpmd.quit();

    let arrived = frames_of(&function);
    let rewritten = arrived.iter().filter(|frame| frame[30..34] == [10, 9, 9, 9] && frame[22] == 63).count();
    let tagged = arrived.iter().filter(|frame| frame[12..16] == [0x81, 0, 0, 5] && frame[16..] == udp(4)[12..]).count();
    let tunnelled = arrived.iter().filter(|frame| frame.len() == 110 && frame[50..] == udp(5)).count();
    assert_eq!((arrived.len(), rewritten, tagged, tunnelled), (30, 10, 10, 10));
}

#[test]
fn host_packets_leave_by_the_represented_port() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write_pcap(&path("in.pcap"), &traffic(3, 20));
    let mut testpmd = Testpmd::start(
        &format!(
            "wire=(net_pcap0,rx_pcap={}),function=(net_pcap1,tx_pcap={}),function=(net_pcap2,tx_pcap={})",
            path("in.pcap").display(),
            path("first.pcap").display(),
            path("second.pcap").display()
        ),
        &["--portmask=3"],
    );
    // testpmd sends all that it receives from port 0 through port 1; one rule sees it on its way and sends it elsewhere, one drops.
    let create = "flow create 1 transfer pattern port_representor port_id is 1 / eth / ipv4 dst is 10.0.0.2 / end \
                  actions represented_port ethdev_port_id 2 / end";
    assert!(testpmd.command(create).contains("created"));
    let create = "flow create 1 egress pattern eth / ipv4 dst is 10.0.0.3 / end actions count / drop / end";
    assert!(testpmd.command(create).contains("created"));
    testpmd.command("set fwd io");
    testpmd.command("start");
    testpmd.wait_for_counter(1, "tx_good_packets", 60);
    testpmd.command("stop");
    assert!(testpmd.command("flow query 1 1 count").contains("hits: 20\n"));
    testpmd.quit();
    assert_eq!(frames_of(&path("first.pcap")), vec![udp(1); 20]);
    assert_eq!(frames_of(&path("second.pcap")), vec![udp(2); 20]);
}

#[test]
fn rules_age_and_isolated_ports_receive_what_rules_say() {
    let dir = tempfile::tempdir().unwrap();
    let wire = dir.path().join("wire.pcap");
    write_pcap(&wire, &traffic(2, 5));
    let mut testpmd = Testpmd::start(&format!("wire=(net_pcap0,rx_pcap={})", wire.display()), &[]);
    assert!(testpmd.command("flow isolate 0 1").contains("restricted to the defined flow rules"));
    let create =
        "flow create 0 ingress pattern eth / ipv4 dst is 10.0.0.1 / end actions age timeout 1 / queue index 0 / end";
    assert!(testpmd.command(create).contains("created"));
    assert!(testpmd.command("flow create 0 ingress pattern eth / end actions queue index 9 / end").contains("QUEUE"));
    testpmd.command("set fwd rxonly");
    testpmd.command("start");
    testpmd.wait_for_counter(0, "represented_rx_packets", 10);
    testpmd.wait_for_counter(0, "rx_good_packets", 5);
    testpmd.wait_for("flow aged event");
    assert!(testpmd.command("flow query 0 0 age").contains("aged: 1"));
    assert!(testpmd.command("flow aged 0 destroy").contains("total aged flows: 1"));
    assert!(testpmd.command("flow aged 0").contains("total aged flows: 0"));
    testpmd.quit();
}

#[test]
fn faults_are_injected_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let wire = dir.path().join("wire.pcap");
    write_pcap(&wire, &traffic(2, 5));
    let mut testpmd = Testpmd::start(
        &format!(
            "wire=(net_pcap0,rx_pcap={}),exact=2,masked=0,refuse=geneve,refuse-create=mark,reset-after=6",
            wire.display()
        ),
        &[],
    );
    let rule = |verb: &str, pattern: &str, actions: &str| {
        format!("flow {verb} 0 ingress pattern eth / {pattern} / end actions {actions} / end")
    };
    let said = testpmd.command(&rule("validate", "ipv4 / udp / geneve", "drop"));
    assert!(said.contains("specific pattern item") && said.contains("refused on demand"), "{said}");
    assert!(testpmd.command(&rule("validate", "ipv4", "mark id 1 / queue index 0")).contains("Flow rule validated"));
    let said = testpmd.command(&rule("create", "ipv4", "mark id 1 / queue index 0"));
    assert!(said.contains("specific action") && said.contains("refused on demand"), "{said}");

    assert!(testpmd.command(&rule("create", "ipv4 dst is 10.0.0.1", "count / drop")).contains("created"));
    let said = testpmd.command(&rule("create", "ipv4 dst is 10.0.0.1", "queue index 0"));
    assert!(said.contains("same pattern and priority"), "{said}");
    let said = testpmd.command(&rule("create", "ipv4 dst spec 10.0.0.0 dst mask 255.255.255.0", "drop"));
    assert!(said.contains("the masked table is full"), "{said}");
    assert!(testpmd.command(&rule("create", "ipv4 dst is 10.0.0.9", "count / drop")).contains("created"));
    let said = testpmd.command(&rule("validate", "ipv4 dst is 10.0.0.8", "drop"));
    assert!(said.contains("the exact-match table is full"), "{said}");

    // Of ten packets the sixth resets the device: of the five to 10.0.0.1 three were dropped, the others come to the host.
    testpmd.command("set fwd rxonly");
    testpmd.command("start");
    testpmd.wait_for_counter(0, "rx_good_packets", 7);
    testpmd.wait_for("reset");
    assert_eq!(testpmd.counter(0, "device_exact_rules"), 0);
    let said = testpmd.command("flow query 0 0 count");
    assert!(said.contains("lost when the device was reset"), "{said}");
    testpmd.quit();
}

#[test]
fn late_misses_have_restore_data() {
    let dir = tempfile::tempdir().unwrap();
    let wire = dir.path().join("wire.pcap");
    let mut front = udp(9);
    front.truncate(42);
    front[36..38].copy_from_slice(&4789u16.to_be_bytes());
    front.extend([8, 0, 0, 0, 0, 0, 42, 0]);
    let tunnelled = |host: u8| [front.clone(), udp(host)].concat();
    write_pcap(&wire, &[tunnelled(1), tunnelled(2), udp(1), udp(2)]);
    let mut testpmd = Testpmd::start(&format!("wire=(net_pcap0,rx_pcap={})", wire.display()), &[]);
    assert!(testpmd.command("flow tunnel create 0 type vxlan").contains("flow tunnel #1 type vxlan"));
    let set =
        "flow create 0 transfer group 0 tunnel_set 1 pattern eth / ipv4 / udp / vxlan / end actions jump group 2 / end";
    assert!(testpmd.command(set).contains("created"));
    for group in [0, 2] {
        let said = testpmd.command(&format!(
            "flow create 0 transfer group {group} priority 1 tunnel_match 1 pattern eth / ipv4 dst is 10.0.0.1 / end \
             actions count / drop / end"
        ));
        assert!(said.contains("created"), "{said}");
    }
    testpmd.command("set verbose 1");
    testpmd.command("set fwd rxonly");
    testpmd.command("start");
    testpmd.wait_for_counter(0, "rx_good_packets", 3);
    testpmd.wait_for("- no outer header - miss group 2");
    testpmd.command("stop");
    assert!(testpmd.command("flow query 0 2 count").contains("hits: 1\n"));
    assert!(testpmd.command("flow query 0 1 count").contains("hits: 0\n"), "nothing has left a tunnel there");
    assert_eq!(testpmd.output().matches("restore info: - tunnel").count(), 1, "the others have none");
    testpmd.quit();
}

#[test]
fn a_meter_limits_the_rate() {
    let dir = tempfile::tempdir().unwrap();
    let wire = dir.path().join("wire.pcap");
    write_pcap(&wire, &traffic(1, 10));
    let mut testpmd = Testpmd::start(&format!("wire=(net_pcap0,rx_pcap={})", wire.display()), &[]);
    let said = testpmd.command("add port meter profile trtcm_rfc2698 0 2 1 1 300 300 0");
    assert!(said.contains("by RFC 2697 alone"), "{said}");
    testpmd.command("add port meter profile srtcm_rfc2697 0 1 1 300 120 0");
    testpmd.command("add port meter policy 0 1 g_actions end y_actions end r_actions drop / end");
    testpmd.command("create port meter 0 5 1 1 yes 255 1 g 0");
    let rule = |meter| {
        format!(
            "flow create 0 ingress pattern eth / ipv4 / end actions meter mtr_id {meter} / count / queue index 0 / end"
        )
    };
    assert!(testpmd.command(&rule(6)).contains("no such meter"));
    assert!(testpmd.command(&rule(5)).contains("Flow rule #0 created"));
    assert!(testpmd.command("del port meter 0 5").contains("rules have the meter"));
    testpmd.command("set fwd rxonly");
    testpmd.command("start");
    // Ten packets of 60 bytes: five in the committed burst, two in the excess burst, and three too many.
    testpmd.wait_for_counter(0, "represented_rx_packets", 10);
    testpmd.wait_for_counter(0, "rx_good_packets", 7);
    testpmd.command("stop");
    let said = testpmd.command("show port meter stats 0 5 yes");
    for line in ["Pkts G: 5", "Pkts Y: 2", "Pkts R: 3", "Pkts DROPPED: 3", "Bytes DROPPED: 180"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(testpmd.command("flow query 0 0 count").contains("hits: 10\n"));
    assert!(testpmd.command("del port meter profile 0 1").contains("a meter has the profile"));
    testpmd.command("flow flush 0");
    testpmd.command("del port meter 0 5");
    assert!(testpmd.command("show port meter stats 0 5 no").contains("no such meter"));
    testpmd.quit();
}

/// `dpdk-test-flow-perf` with a device's and its own arguments. Says what it printed.
fn flow_perf(device: &str, args: &[&str]) -> String {
    let output = Command::new("dpdk-test-flow-perf")
        .args(["--no-pci", "--no-huge", "--no-shconf", "--no-telemetry", "-m256", "--lcores=0@0,1@0"])
        .args(["-d", peer::LIBRARY, "--vdev", &format!("net_fpgasim0,{device}"), "--"])
        .args(args)
        .env("LD_LIBRARY_PATH", library_path())
        .output()
        .unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn flow_perf_inserts_and_deletes_as_many_rules_as_there_is_room_for() {
    let rules = ["--rules-count=10000", "--rules-batch=5000", "--deletion-rate"];
    for kind in [
        &["--ingress", "--ether", "--ipv4", "--udp", "--queue"][..],
        &["--ingress", "--group=1", "--ether", "--ipv6", "--mark", "--rss"],
        &["--egress", "--ether", "--ipv4", "--set-src-mac", "--set-src-ipv4", "--dec-ttl", "--vxlan-encap"],
        &["--transfer", "--group=1", "--ether", "--ipv4", "--tcp", "--count", "--drop"],
    ] {
        let said = flow_perf("exact=20000", &[kind, &rules].concat());
        assert!(said.contains("Rules deletion rate") && said.contains("Bye"), "{kind:?}: {said}");
    }
    let said = flow_perf("exact=100,masked=0", &[&["--ingress", "--ether", "--ipv4", "--queue"][..], &rules].concat());
    assert!(said.contains("the exact-match table is full"), "{said}");
}
