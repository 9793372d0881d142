//! Connections that the device tracks.

use crate::peer::{Testpmd, write_pcap};
use crate::templates::expect;
use crate::udp;

const FIN: u8 = 0x01;
const ACK: u8 = 0x10;

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0)));
    (words.sum::<u64>() % 0xffff) as u16
}

/// A TCP segment from 10.0.0.`from`: control bits, sequence number, acknowledgment and bytes of payload.
fn tcp(from: u8, control: u8, (seq, ack): (u32, u32), payload: usize) -> Vec<u8> {
    let mut frame = udp(9);
    frame.truncate(34);
    let len = 20 + payload as u16;
    frame[16..18].copy_from_slice(&(20 + len).to_be_bytes());
    (frame[23], frame[29]) = (6, from);
    frame[24..26].fill(0);
    let checksum = !sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame.extend([0x30, 0x39, 0, 80]);
    frame.extend([seq.to_be_bytes(), ack.to_be_bytes()].concat());
    frame.extend([0x50, control, 0x10, 0, 0, 0, 0, 0]);
    frame.extend(vec![from; payload]);
    let checksum = !sum(&[&frame[26..34], &[0, 6], &len.to_be_bytes(), &frame[34..]].concat());
    frame[50..52].copy_from_slice(&checksum.to_be_bytes());
    // As short frames come.
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The connection between 10.0.0.1 and 10.0.0.2, and one that is off. Rules see each by its sender.
const SET: [&str; 3] = [
    "set conntrack com peer 0 is_orig 1 enable 1 live 0 sack 0 cack 0 last_dir 0 liberal 0 state 0 max_ack_win 7 r_lim 5 \
     last_win 0 last_seq 0 last_ack 0 last_end 0 last_index 0",
    "set conntrack orig scale 7 fin 0 acked 1 unack_data 0 sent_end 1000 reply_end 5000 max_win 4096 max_ack 0",
    "set conntrack rply scale 7 fin 0 acked 0 unack_data 1 sent_end 2000 reply_end 6000 max_win 4096 max_ack 1000",
];

/// The same with another part of what all have in common.
fn set_with(from: &str, to: &str) -> String {
    assert!(SET[0].contains(from));
    SET[0].replace(from, to)
}

fn judge(from: u8, handle: u8) -> String {
    format!(
        "flow create 0 transfer pattern eth / ipv4 src is 10.0.0.{from} / end \
         actions indirect {handle} / jump group 1 / end"
    )
}

fn count(said: u8) -> String {
    format!("flow create 0 transfer group 1 pattern eth / ipv4 / conntrack is {said} / end actions count / drop / end")
}

fn packets() -> Vec<Vec<u8>> {
    let mut broken = tcp(1, ACK, (1000, 2000), 30);
    *broken.last_mut().unwrap() ^= 1;
    vec![
        tcp(1, ACK, (1000, 2000), 0),
        tcp(1, ACK, (1000, 2000), 100),
        tcp(2, ACK, (2000, 1100), 200),
        // Of what was never sent, from far ahead, and one that is broken.
        tcp(1, ACK, (1100, 2201), 10),
        tcp(2, ACK, (2_000_000, 1100), 10),
        broken,
        tcp(1, FIN | ACK, (1100, 2200), 0),
        tcp(2, ACK, (2200, 1101), 0),
        tcp(3, ACK, (1, 1), 0),
    ]
}

#[test]
fn connections_are_tracked_and_matched() {
    let dir = tempfile::tempdir().unwrap();
    let wire = dir.path().join("wire.pcap");
    write_pcap(&wire, &packets());
    let mut testpmd = Testpmd::start(&format!("wire=(net_pcap0,rx_pcap={})", wire.display()), &[]);
    let create = |id| format!("flow indirect_action 0 create action_id {id} transfer action conntrack / end");
    let direct = "flow create 0 transfer pattern eth / end actions conntrack / jump group 1 / end";
    expect(&mut testpmd, direct, "CONNTRACK: by a handle alone");
    expect(&mut testpmd, &count(1).replace("group 1", "group 0"), "no connection has judged packets before group 0");
    expect(&mut testpmd, &count(5), "no packet has these flags");

    testpmd.command(&set_with("peer 0", "peer 7"));
    expect(&mut testpmd, &create(1), "peer_port is not a port of this device");
    SET.iter().for_each(|set| drop(testpmd.command(set)));
    expect(&mut testpmd, &create(1), "Indirect action #1 created");
    expect(&mut testpmd, &judge(1, 1), "Flow rule #0 created");
    // The rules that are made from now on are of the other direction.
    testpmd.command(&set_with("is_orig 1", "is_orig 0"));
    expect(&mut testpmd, "flow indirect_action 0 update 1 action conntrack_update dir / end", "action #1 updated");
    expect(&mut testpmd, &judge(2, 1), "Flow rule #1 created");
    testpmd.command(&set_with("enable 1", "enable 0"));
    expect(&mut testpmd, &create(2), "Indirect action #2 created");
    expect(&mut testpmd, &judge(3, 2), "Flow rule #2 created");
    // Valid, valid with a new state, invalid, off, bad: so many of each.
    let said = [(1, 2), (3, 3), (4, 2), (8, 1), (16, 1)];
    said.iter().for_each(|&(flags, _)| expect(&mut testpmd, &count(flags), "created"));

    testpmd.command("set fwd rxonly");
    testpmd.command("start");
    testpmd.wait_for_counter(0, "device_offloaded_packets", packets().len() as u64);
    testpmd.command("stop");
    for (rule, (flags, packets)) in (3..).zip(said) {
        let answer = testpmd.command(&format!("flow query 0 {rule} count"));
        assert!(answer.contains(&format!("hits: {packets}\n")), "{flags}: {answer}");
    }
    let seen = testpmd.command("flow indirect_action 0 query 1");
    for line in [
        "Flow dir: Reply, Enable: 1",
        "Live: 1, SACK: 0, CACK: 0",
        "Packet dir: Reply, Liberal: 0, State: 3",
        "Factor: 7, Retrans: 5, TCP flags: 8",
        "Last Seq: 2200, Last ACK: 1101",
        "scale: 7, fin: 1, ack seen: 1",
        "Sent end: 1101",
        "Sent end: 2200",
    ] {
        assert!(seen.contains(line), "{line}: {seen}");
    }

    // All but the direction is set anew.
    testpmd.command(SET[0]);
    expect(&mut testpmd, "flow indirect_action 0 update 1 action conntrack_update ctx / end", "action #1 updated");
    let seen = testpmd.command("flow indirect_action 0 query 1");
    assert!(seen.contains("Flow dir: Reply") && seen.contains("State: 0") && seen.contains("Sent end: 1000"), "{seen}");
    expect(&mut testpmd, "flow indirect_action 0 destroy action_id 1", "rules have the action");
    testpmd.telemetry("/fpgasim/trouble,net_fpgasim0,reset=1");
    expect(&mut testpmd, "flow indirect_action 0 query 1", "lost when the device was reset");
    testpmd.quit();
}

#[test]
fn a_queued_rule_has_the_direction_at_its_enqueue() {
    let dir = tempfile::tempdir().unwrap();
    let wire = dir.path().join("wire.pcap");
    write_pcap(&wire, &[tcp(2, ACK, (2000, 1000), 100)]);
    let mut testpmd = Testpmd::start(&format!("wire=(net_pcap0,rx_pcap={})", wire.display()), &[]);
    testpmd.command("port stop all");
    let configure = "flow configure 0 queues_number 1 queues_size 4 counters_number 0 aging_counters_number 0 \
                     meters_number 0 conn_tracks_number 2 flags 0";
    expect(&mut testpmd, &configure.replace("tracks_number 2", "tracks_number 4000000000"), "one for each rule");
    expect(&mut testpmd, configure, "number of queues 1 with 4 elements");
    testpmd.command("port start all");
    let pattern = |id: u8, item: &str| {
        format!(
            "flow pattern_template 0 create transfer relaxed no pattern_template_id {id} \
             template represented_port ethdev_port_id is 0 / eth / ipv4 / {item} / end"
        )
    };
    expect(&mut testpmd, &pattern(1, "tcp"), "Pattern template #1 created");
    expect(&mut testpmd, &pattern(2, "conntrack is 0"), "Pattern template #2 created");
    let actions = |id: u8, actions: &str, masks: &str| {
        format!(
            "flow actions_template 0 create transfer actions_template_id {id} template {actions} / end mask {masks} / end"
        )
    };
    expect(&mut testpmd, &actions(9, "conntrack / drop", "conntrack / drop"), "CONNTRACK: by a handle alone");
    SET.iter().for_each(|set| drop(testpmd.command(set)));
    testpmd.command(&set_with("is_orig 1", "is_orig 0"));
    let create = "flow indirect_action 0 create action_id 1 transfer action conntrack / end";
    expect(&mut testpmd, create, "Indirect action #1 created");
    let jump = "jump group 1";
    let judging = actions(1, &format!("indirect 1 / {jump}"), &format!("conntrack / {jump}"));
    expect(&mut testpmd, &judging, "Actions template #1 created");
    expect(&mut testpmd, &actions(2, "count / drop", "count / drop"), "Actions template #2 created");
    let table = |id: u8, group: u8, pattern: u8| {
        format!(
            "flow template_table 0 create table_id {id} group {group} priority 0 transfer rules_number 2 \
             pattern_template {pattern} actions_template {id}"
        )
    };
    expect(&mut testpmd, &table(1, 0, 2), "no connection has judged packets before group 0");
    expect(&mut testpmd, &table(1, 0, 1), "Template table #1 created");
    expect(&mut testpmd, &table(2, 1, 2), "Template table #2 created");
    let rule = |table: u8, item: &str, actions: &str| {
        format!(
            "flow queue 0 create 0 template_table {table} pattern_template 0 actions_template 0 postpone yes \
             pattern represented_port ethdev_port_id is 0 / eth / ipv4 / {item} / end actions {actions} / end"
        )
    };
    expect(&mut testpmd, &rule(1, "tcp", &format!("indirect 1 / {jump}")), "Flow rule #0 creation enqueued");
    expect(&mut testpmd, &rule(2, "conntrack is 5", "count / drop"), "no packet has these flags");
    expect(&mut testpmd, &rule(2, "conntrack is 1", "count / drop"), "Flow rule #1 creation enqueued");
    testpmd.command(SET[0]);
    // Not by the queue: this testpmd hands over the action there, and not what belongs to it.
    let update = "flow indirect_action 0 update 1 action conntrack_update dir / end";
    expect(&mut testpmd, update, "Indirect action #1 updated");
    expect(&mut testpmd, "flow push 0 queue 0", "operations pushed");
    expect(&mut testpmd, "flow pull 0 queue 0", "pulled 2 operations (0 failed, 2 succeeded)");
    testpmd.command("set fwd rxonly");
    testpmd.command("start");
    testpmd.wait_for_counter(0, "device_offloaded_packets", 1);
    testpmd.command("stop");
    expect(&mut testpmd, "flow query 0 1 count", "hits: 1\n");
    let seen = testpmd.command("flow indirect_action 0 query 1");
    assert!(seen.contains("Flow dir: Original") && seen.contains("Packet dir: Reply"), "{seen}");
    testpmd.quit();
}
