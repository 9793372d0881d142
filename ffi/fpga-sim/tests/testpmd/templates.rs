//! Rules by templates and queues.

use crate::peer::{Testpmd, frames_of, write_pcap};
use crate::{traffic, udp};

/// Gives a command that is to be answered so.
pub(crate) fn expect(testpmd: &mut Testpmd, command: &str, answer: &str) {
    let said = testpmd.command(command);
    assert!(said.contains(answer), "{command}: {said}");
}

const CONFIGURE: &str =
    "flow configure 0 queues_number 2 queues_size 4 counters_number 3 aging_counters_number 3 meters_number 0 flags 0";
/// Packets of the wire to an address; the rules say which.
const PATTERN: &str = "flow pattern_template 0 create transfer relaxed no pattern_template_id 1 \
                       template represented_port ethdev_port_id is 0 / eth / ipv4 dst is 0.0.0.0 / end";
/// To a port that the rules name, with an address that the template does.
const REWRITE: &str = "flow actions_template 0 create transfer actions_template_id 1 \
                       template set_ipv4_src ipv4_addr 9.9.9.9 / count / represented_port ethdev_port_id 0 / end \
                       mask set_ipv4_src ipv4_addr 255.255.255.255 / count / represented_port ethdev_port_id 0 / end";
const DROP: &str = "flow actions_template 0 create transfer actions_template_id 2 \
                    template age / count / drop / end mask age / count / drop / end";
const TABLE: &str = "flow template_table 0 create table_id 1 group 0 priority 1 transfer rules_number 5 \
                     pattern_template 1 actions_template 1 actions_template 2";

/// A rule for 10.0.0.`host` with one of the two actions templates.
pub(crate) fn create(queue: u8, host: u8, postpone: &str, actions: &str) -> String {
    let template = u8::from(actions.contains("drop"));
    format!(
        "flow queue 0 create {queue} template_table 1 pattern_template 0 actions_template {template} postpone {postpone} \
         pattern represented_port ethdev_port_id is 0 / eth / ipv4 dst is 10.0.0.{host} / end actions {actions} / end"
    )
}

pub(crate) const FORWARD: &str = "set_ipv4_src ipv4_addr 1.1.1.1 / count / represented_port ethdev_port_id 1";

/// A device with its templates and table; queues are set up while ports are stopped.
pub(crate) fn start(device: &str) -> Testpmd {
    let mut testpmd = Testpmd::start(device, &[]);
    testpmd.command("port stop all");
    expect(&mut testpmd, CONFIGURE, "number of queues 2 with 4 elements");
    expect(&mut testpmd, PATTERN, "Pattern template #1 created");
    expect(&mut testpmd, REWRITE, "Actions template #1 created");
    expect(&mut testpmd, DROP, "Actions template #2 created");
    expect(&mut testpmd, TABLE, "Template table #1 created");
    testpmd.command("port start all");
    testpmd
}

#[test]
fn templates_and_queues_insert_rules() {
    let dir = tempfile::tempdir().unwrap();
    let (wire, function) = (dir.path().join("wire.pcap"), dir.path().join("function.pcap"));
    write_pcap(&wire, &traffic(3, 10));
    let mut testpmd = start(&format!(
        "wire=(net_pcap0,rx_pcap={}),function=(net_pcap1,tx_pcap={})",
        wire.display(),
        function.display()
    ));
    expect(&mut testpmd, &create(0, 1, "no", FORWARD), "Flow rule #0 creation enqueued");
    assert_eq!(testpmd.counter(0, "device_exact_rules"), 1);
    expect(&mut testpmd, &create(0, 2, "yes", "age timeout 1 / count / drop"), "Flow rule #1 creation enqueued");
    assert_eq!(testpmd.counter(0, "device_exact_rules"), 1, "a postponed rule waits for the push");
    expect(&mut testpmd, "flow push 0 queue 0", "Queue #0 operations pushed");
    assert_eq!(testpmd.counter(0, "device_exact_rules"), 2);
    expect(&mut testpmd, "flow pull 0 queue 0", "pulled 2 operations (0 failed, 2 succeeded)");
    expect(&mut testpmd, "flow pull 0 queue 0", "pulled 0 operations");

    testpmd.command("set fwd rxonly");
    testpmd.command("start");
    testpmd.wait_for_counter(0, "rx_good_packets", 10);
    testpmd.wait_for_counter(0, "device_offloaded_packets", 20);
    for rule in [0, 1] {
        expect(&mut testpmd, &format!("flow query 0 {rule} count"), "hits: 10\n");
    }
    testpmd.wait_for("flow aged event");
    expect(&mut testpmd, "flow queue 0 aged 0", "total aged flows: 1");
    expect(&mut testpmd, "flow queue 0 aged 0 destroy", "1 flows destroyed");
    expect(&mut testpmd, "flow queue 0 aged 0", "total aged flows: 0");

    // Rules of a table and others are the same to what was there before.
    expect(&mut testpmd, "flow template_table 0 destroy table 1", "the table has rules");
    expect(&mut testpmd, "flow pattern_template 0 destroy pattern_template 1", "a table uses the template");
    expect(&mut testpmd, "flow destroy 0 rule 0", "Flow rule #0 destroyed");
    assert_eq!(testpmd.counter(0, "device_exact_rules"), 0);
    expect(&mut testpmd, "flow template_table 0 destroy table 1", "Template table #1 destroyed");
    expect(&mut testpmd, "flow pattern_template 0 destroy pattern_template 1", "Pattern template #1 destroyed");
    expect(&mut testpmd, "flow actions_template 0 destroy actions_template 1", "Actions template #1 destroyed");
    testpmd.quit();

    let arrived = frames_of(&function);
    assert_eq!(arrived.len(), 10);
    let expected = |frame: &Vec<u8>| frame[26..30] == [9, 9, 9, 9] && frame[30..34] == udp(1)[30..34];
    assert!(arrived.iter().all(expected), "the template's address and the rule's port");
}

#[test]
fn failures_are_refused_at_once_or_pulled_as_errors() {
    let mut testpmd = start("function=net_null0,exact=3,masked=0");
    let drop = "age timeout 5 / count / drop";
    for host in [1, 2, 2, 3] {
        expect(&mut testpmd, &create(0, host, "yes", drop), "creation enqueued");
    }
    expect(&mut testpmd, &create(0, 4, "no", drop), "the queue is full");
    expect(&mut testpmd, "flow push 0 queue 0", "operations pushed");
    expect(&mut testpmd, &create(0, 4, "no", drop), "the queue is full");
    expect(&mut testpmd, "flow pull 0 queue 0", "pulled 4 operations (1 failed, 3 succeeded)");
    expect(&mut testpmd, &create(1, 4, "no", drop), "creation enqueued");
    expect(&mut testpmd, "flow pull 0 queue 1", "pulled 1 operations (1 failed, 0 succeeded)");
    assert_eq!(testpmd.counter(0, "device_exact_rules"), 3);

    // What is known when it is enqueued is said then, with its clause.
    let elsewhere = FORWARD.replace("ethdev_port_id 1", "ethdev_port_id 9");
    expect(&mut testpmd, &create(0, 5, "no", &elsewhere), "the port is not one of this device");
    expect(&mut testpmd, &create(0, 5, "no", "age timeout 0 / count / drop"), "AGE: with a timeout");
    expect(&mut testpmd, &create(0, 5, "no", "count / drop"), "the template has another action at this place");
    let ipv6 = create(0, 5, "no", drop).replace("ipv4 dst is 10.0.0.5", "ipv6");
    expect(&mut testpmd, &ipv6, "the template has another item at this place");
    expect(&mut testpmd, "flow pull 0 queue 0", "pulled 0 operations");

    let again = TABLE.replace("table_id 1", "table_id 2").replace("transfer", "ingress");
    expect(&mut testpmd, &again, "not for the direction of the table");
    let template = PATTERN.replace("template_id 1", "template_id 2").replace("ipv4 dst is 0.0.0.0", "mpls");
    expect(&mut testpmd, &template, "the device does not know this item");
    let template = REWRITE.replace("template_id 1", "template_id 3").replace("/ represented_port ethdev_port_id 0", "");
    expect(&mut testpmd, &template, "Actions template #3 created");
    let again = TABLE.replace("table_id 1", "table_id 2").replace("actions_template 2", "actions_template 3");
    expect(&mut testpmd, &again, "no action says where packets go");
    testpmd.command("port stop all");
    expect(&mut testpmd, &CONFIGURE.replace("flags 0", "flags 1"), "the device knows no flags");
    testpmd.quit();
}

#[test]
fn rules_share_actions_by_handles() {
    let dir = tempfile::tempdir().unwrap();
    let wire = dir.path().join("wire.pcap");
    write_pcap(&wire, &traffic(3, 10));
    let mut testpmd = Testpmd::start(&format!("wire=(net_pcap0,rx_pcap={})", wire.display()), &["--rxq=2", "--txq=2"]);
    testpmd.command("port stop all");
    expect(&mut testpmd, CONFIGURE, "number of queues 2 with 4 elements");
    testpmd.command("port start all");
    for (id, action) in [(1, "count"), (2, "age timeout 1"), (3, "rss queues 1 end")] {
        let create = format!("flow indirect_action 0 create action_id {id} ingress transfer action {action} / end");
        expect(&mut testpmd, &create, &format!("Indirect action #{id} created"));
    }
    let create = "flow indirect_action 0 create action_id 4 transfer action drop / end";
    expect(&mut testpmd, create, "COUNT, AGE, RSS and CONNTRACK can be shared");

    // One rule by itself, one by a template.
    let rule = "flow create 0 ingress pattern eth / ipv4 dst is 10.0.0.1 / end actions indirect 1 / indirect 2 / indirect 3 / end";
    expect(&mut testpmd, rule, "Flow rule #0 created");
    expect(&mut testpmd, PATTERN, "Pattern template #1 created");
    let actions = "flow actions_template 0 create transfer actions_template_id 1 \
                   template indirect 1 / drop / end mask count / drop / end";
    expect(&mut testpmd, actions, "Actions template #1 created");
    let table = TABLE.replace(" actions_template 2", "");
    expect(&mut testpmd, &table, "Template table #1 created");
    expect(&mut testpmd, &create_with(2, "indirect 1 / drop"), "creation enqueued");
    expect(&mut testpmd, &create_with(3, "indirect 2 / drop"), "creation enqueued");
    expect(&mut testpmd, "flow pull 0 queue 0", "pulled 2 operations (1 failed, 1 succeeded)");

    testpmd.command("set verbose 1");
    testpmd.command("set fwd rxonly");
    testpmd.command("start");
    testpmd.wait_for_counter(0, "rx_good_packets", 20);
    expect(&mut testpmd, "flow indirect_action 0 query 1", "hits: 20");
    assert!(testpmd.output().contains("port 0/queue 1: received"));
    testpmd.wait_for("flow aged event");
    expect(&mut testpmd, "flow aged 0", "Indirect action");
    expect(&mut testpmd, "flow indirect_action 0 query 2", "aged: 1");
    expect(&mut testpmd, "flow indirect_action 0 update 3 action rss queues 0 end / end", "Indirect action #3 updated");
    expect(&mut testpmd, "flow indirect_action 0 destroy action_id 1", "rules have the action");
    testpmd.command("flow flush 0");
    expect(&mut testpmd, "flow indirect_action 0 destroy action_id 1", "Indirect action #1 destroyed");

    // The same by a queue.
    let create = "flow queue 0 indirect_action 0 create action_id 5 ingress postpone no action count / end";
    expect(&mut testpmd, create, "Indirect action #5 creation queued");
    expect(&mut testpmd, "flow queue 0 indirect_action 0 query 5 postpone yes", "queued");
    expect(&mut testpmd, "flow queue 0 indirect_action 0 destroy action_id 5 postpone yes", "destruction queued");
    expect(&mut testpmd, "flow push 0 queue 0", "operations pushed");
    expect(&mut testpmd, "flow pull 0 queue 0", "pulled 3 operations (0 failed, 3 succeeded)");
    expect(
        &mut testpmd,
        "flow queue 0 indirect_action 0 create action_id 6 postpone no action drop / end",
        "can be shared",
    );
    testpmd.quit();
}

/// A rule for 10.0.0.`host` with the first actions template.
fn create_with(host: u8, actions: &str) -> String {
    create(0, host, "no", actions).replace("actions_template 1", "actions_template 0")
}
