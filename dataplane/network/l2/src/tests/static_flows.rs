//! Flows of operators.

use super::{BROADCAST, Net, any, frame, frame_of, mac};
use crate::SwitchError;
use flow::text::{FlowMatch, parse_actions};

fn add(net: &Net, flow: &str, actions: &str) -> Result<(), SwitchError> {
    let FlowMatch { key, mask } = flow.parse().unwrap();
    net.switch.add_flow(&key, &mask, parse_actions(actions).unwrap())
}

#[test]
fn static_flows_take_precedence_over_the_bridge() {
    let mut net = Net::new(&[any(), any(), any()]);
    net.reaches(2, &frame(mac(2), BROADCAST, None));
    let other = frame_of(mac(1), mac(2), None, 0x9000, &[0; 46]);
    assert_eq!(net.reaches(1, &other), [2]);
    add(&net, "in_port(1),eth(),eth_type(0x9000)", "3").unwrap();
    assert_eq!(net.reaches(1, &other), [3]);
    assert_eq!(net.reaches(1, &frame(mac(1), mac(2), None)), [2]);
    let FlowMatch { key, mask } = "in_port(1),eth(),eth_type(0x9000)".parse().unwrap();
    net.switch.delete_flow(&key, &mask).unwrap();
    assert_eq!(net.reaches(1, &other), [2]);
    assert!(net.switch.delete_flow(&key, &mask).is_err());
}

#[test]
fn megaflows_match_on_what_tells_them_from_static_flows() {
    let mut net = Net::new(&[any(), any(), any()]);
    add(&net, "in_port(1),eth(),eth_type(0x0800),ipv4(dst=10.0.0.7,frag=no)", "drop").unwrap();
    let ipv4 = |last: u8| {
        let header = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, last];
        frame_of(mac(1), BROADCAST, None, 0x800, &[&header[..], &[0; 26]].concat())
    };
    assert_eq!(net.reaches(1, &ipv4(8)), [2, 3]);
    assert_eq!(net.reaches(1, &ipv4(7)), [0; 0]);
    assert_eq!(net.reaches(1, &ipv4(9)), [2, 3]);
}

#[test]
fn overlapping_static_flows_are_refused() {
    let net = Net::new(&[any(), any()]);
    add(&net, "in_port(1),eth(),eth_type(0x0806)", "2").unwrap();
    let overlapping = add(&net, "in_port(1),eth(),eth_type(0x0806),arp(op=1)", "2");
    assert!(matches!(overlapping, Err(SwitchError::Overlaps(_))));
    add(&net, "in_port(1),eth(),eth_type(0x0806)", "drop").unwrap();
    add(&net, "in_port(2),eth(),eth_type(0x0806),arp(op=1)", "1").unwrap();
    let overlapping = add(&net, "in_port(2),eth(),eth_type(0x0806)", "1");
    assert!(matches!(overlapping, Err(SwitchError::Overlaps(_))));
    let overlapping = add(&net, "in_port(2),eth(src=02:00:00:00:00:01),eth_type(0x0806)", "1");
    assert!(matches!(overlapping, Err(SwitchError::Overlaps(_))));
    assert_eq!(net.state().pipeline().len(), 2);
}

#[test]
fn recirculated_packets_are_looked_up_again() {
    let mut net = Net::new(&[any(), any(), any()]);
    add(&net, "in_port(1),recirc_id(0),eth(),eth_type(0x9000)", "push_vlan(vid=5,pcp=0),recirc(1)").unwrap();
    add(&net, "in_port(1),recirc_id(1),eth(),eth_type(0x8100),vlan(vid=5),encap(eth_type(0x9000))", "2").unwrap();
    net.send(1, &frame_of(mac(1), mac(2), None, 0x9000, &[3; 46]));
    net.settle();
    assert_eq!(net.received(2), [frame_of(mac(1), mac(2), Some(5), 0x9000, &[3; 46])]);
    add(&net, "in_port(3),recirc_id(0),eth(),eth_type(0x9000)", "recirc(7)").unwrap();
    assert_eq!(net.reaches(3, &frame_of(mac(1), mac(2), None, 0x9000, &[3; 46])), [0; 0]);
    assert_eq!(net.port(3).path.recirculated_miss, 1);
    assert_eq!(net.pool.free_count(), net.pool.capacity());
}
