//! Flow rules against drivers without hardware: what is refused is told clause by clause.

use dpdk::{Eal, EalConfig, EalMemory, EthDev, EthDevConfig, Mempool};
use rte_rule::{Clause, Eth, FlowAction, FlowAttr, FlowDevice, FlowError, FlowItem, Match};

#[test]
fn a_refused_rule_names_its_clause() {
    let config = EalConfig { memory: EalMemory::NoHuge { mib: 64 }, ..EalConfig::default() };
    let eal = Eal::init(&config).unwrap();
    let (rule, drop_it) = (FlowAttr::default(), [FlowAction::Drop]);
    let any = FlowItem::Eth(Match::default());

    let null = EthDev::attach(&eal, "net_null0").unwrap().flow_port().unwrap();
    let refused = null.validate(&rule, std::slice::from_ref(&any), &drop_it).unwrap_err();
    assert!(matches!(refused, FlowError::NotImplemented { .. }), "{refused}");
    let refused = null.create(&rule, std::slice::from_ref(&any), &drop_it).unwrap_err();
    assert_eq!(refused.to_string(), "net_null0: the driver has no flow rules (rte_flow)");

    // The tap driver checks rules itself before it asks the kernel, which needs root to have the interface at all.
    let Ok(mut tap) = EthDev::attach(&eal, "net_tap0,iface=flow0") else { return };
    let pool = Mempool::new(&eal, "packets", 4096, None).unwrap();
    let queues = tap.start(&EthDevConfig::new(&pool)).unwrap();
    let ether_type = |ether_type| Eth { ether_type, ..Eth::default() };
    let ipv4 = FlowItem::Eth(Match { spec: ether_type(0x0800), mask: ether_type(0xffff) });
    let tap = tap.flow_port().unwrap();
    tap.validate(&rule, std::slice::from_ref(&ipv4), &drop_it).unwrap();
    tap.validate(&rule, std::slice::from_ref(&ipv4), &[FlowAction::Queue(0)]).unwrap();

    let clause = |pattern: &[FlowItem], actions: &[FlowAction]| match tap.validate(&rule, pattern, actions) {
        Err(FlowError::Unsupported { clause, .. } | FlowError::Invalid { clause, .. }) => clause,
        other => panic!("{other:?}"),
    };
    assert_eq!(clause(&[ipv4.clone(), FlowItem::Vxlan(Match::default())], &drop_it), Clause::Item(1));
    assert_eq!(clause(std::slice::from_ref(&ipv4), &[FlowAction::Mark(7), FlowAction::Drop]), Clause::Action(0));
    drop(queues);
}
