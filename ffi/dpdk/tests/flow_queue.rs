//! Rules by templates and a queue, in the model of a NIC.

use dpdk::flow::{FlowPort, FlowQueue};
use dpdk::{Eal, EalConfig, EalMemory, EthDev, EthDevConfig, Mempool};
use packet::Burst;
use parking_lot::Mutex;
use rte_net_fpgasim as _;
use rte_rule::FlowQueue as _;
use rte_rule::{
    Completion, Direction, Eth, FlowAction, FlowAttr, FlowDevice, FlowError, FlowEvent, FlowItem, Ipv4, Match,
    Operation, RuleId,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const COMPLETION_TIMEOUT: Duration = Duration::from_secs(30);
const ATTRIBUTES: FlowAttr = FlowAttr { group: 0, priority: 0, direction: Direction::Transfer };

/// The pattern of packets to this station, of this type where one is given.
fn to(station: u32, kind: Option<u16>) -> Vec<FlowItem> {
    let [a, b, c, d] = station.to_be_bytes();
    let (spec, mask) = (Eth { dst: [2, 0, a, b, c, d], ..Eth::default() }, Eth { dst: [0xff; 6], ..Eth::default() });
    let typed = |eth: Eth, ether_type| Eth { ether_type, ..eth };
    let eth = match kind {
        Some(kind) => Match { spec: typed(spec, kind), mask: typed(mask, 0xffff) },
        None => Match { spec, mask },
    };
    vec![FlowItem::Eth(eth)]
}

const DROP: [FlowAction; 2] = [FlowAction::Count, FlowAction::Drop];

/// Waits for all pending operations.
fn settle(queue: &mut FlowQueue) -> Vec<Completion> {
    let (mut completions, deadline) = (Vec::new(), Instant::now() + COMPLETION_TIMEOUT);
    queue.push().unwrap();
    while queue.pending() > 0 {
        queue.pull(&mut completions).unwrap();
        assert!(Instant::now() < deadline, "{} operations do not complete", queue.pending());
    }
    completions
}

#[test]
fn a_flow_queue_inserts_and_removes_rules() {
    let memory = EalMemory::NoHuge { mib: 128 };
    let eal = Eal::init(&EalConfig { memory, ..EalConfig::default() }).unwrap();
    let pool = Mempool::new(&eal, "packets", 4096, None).unwrap();
    let mut dev = EthDev::attach(&eal, "net_fpgasim0,function=(net_null0,no-rx=1),exact=4000,masked=200").unwrap();
    assert!(dev.flow_port().unwrap().take_queue().is_none(), "a queue before the port was configured");
    let mut queues = dev.start(&EthDevConfig::new(&pool)).unwrap();
    let port = dev.flow_port().unwrap();
    let mut queue = port.take_queue().expect("the model has templates");
    assert!(port.take_queue().is_none() && port.info().is_transfer_proxy(), "two owners of one queue");
    many_rules_of_two_shapes(&mut queue);
    late_completions_and_stale_names_change_nothing(&mut queue);
    shapes_are_bounded(&mut queue);
    a_full_nic_refuses_rules(&mut queue);
    drop(queue);
    // The next owner finds an empty device.
    let mut queue = port.take_queue().unwrap();
    assert_eq!((queue.pending(), queue.tables()), (0, 0));
    rules_age(&port, &mut queue, &mut queues.rx[0]);
    drop((queue, queues, port));
    dev.stop().unwrap();
}

fn many_rules_of_two_shapes(queue: &mut FlowQueue) {
    let mut placed: Vec<RuleId> = Vec::new();
    for station in 0..3000 {
        if queue.room() == 0 {
            let full = queue.create(&ATTRIBUTES, &to(station, None), &DROP);
            assert!(matches!(full, Err(FlowError::Busy { .. })));
            assert!(settle(queue).iter().all(|completion| completion.done));
        }
        placed.push(queue.create(&ATTRIBUTES, &to(station, (station % 2 == 0).then_some(0x88b5)), &DROP).unwrap());
    }
    let last = settle(queue);
    assert_eq!(last.last(), Some(&Completion { rule: placed[2999], operation: Operation::Create, done: true }));
    // 1500 of each shape: a table of 1024, and one of twice as many.
    assert_eq!(queue.tables(), 4);
    assert_eq!(queue.query(placed[7]).unwrap().packets, Some(0));
    for rule in placed {
        if queue.room() == 0 {
            settle(queue);
        }
        queue.destroy(rule).unwrap();
        assert!(matches!(queue.destroy(rule), Err(FlowError::Lost { .. })), "it is on its way out already");
    }
    assert!(settle(queue).iter().all(|completion| completion.operation == Operation::Destroy && completion.done));
}

fn late_completions_and_stale_names_change_nothing(queue: &mut FlowQueue) {
    let first = queue.create(&ATTRIBUTES, &to(1, None), &DROP).unwrap();
    assert!(matches!(queue.query(first), Err(FlowError::Lost { .. })), "it is not there before its completion");
    // The completion comes after the insertion was given up.
    queue.give_up(first);
    queue.destroy(first).unwrap();
    let completions = settle(queue);
    assert_eq!(completions, [Completion { rule: first, operation: Operation::Destroy, done: true }]);
    // Its place has another rule by now, which its name does not lead to.
    let second = queue.create(&ATTRIBUTES, &to(1, None), &DROP).unwrap();
    assert_eq!(settle(queue).len(), 1);
    assert!(matches!(queue.destroy(first), Err(FlowError::Lost { .. })) && first != second);
    queue.abandon(first);
    assert!(queue.query(second).is_ok());
    queue.destroy(second).unwrap();
    settle(queue);
}

fn shapes_are_bounded(queue: &mut FlowQueue) {
    let shape = |bits: u32| {
        let mask = Ipv4 { src: (u32::MAX << (bits % 32)).to_be_bytes(), tos: (bits / 32 * 4) as u8, ..Ipv4::default() };
        let eth = Eth { ether_type: 0x0800, ..Eth::default() };
        let eth_mask = Eth { ether_type: 0xffff, ..Eth::default() };
        vec![FlowItem::Eth(Match { spec: eth, mask: eth_mask }), FlowItem::Ipv4(Match { spec: Ipv4::default(), mask })]
    };
    let mut placed = Vec::new();
    let mut refused = None;
    for bits in 0..96 {
        match queue.create(&ATTRIBUTES, &shape(bits), &DROP) {
            Ok(rule) => placed.push(rule),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    assert!(matches!(refused, Some(FlowError::NoTemplate { .. })), "{refused:?}");
    assert_eq!((placed.len(), queue.tables()), (64, 64));
    settle(queue);
    for rule in placed {
        queue.destroy(rule).unwrap();
    }
    settle(queue);
    // Tables that are empty make place for those that are wanted.
    let rule = queue.create(&ATTRIBUTES, &shape(95), &DROP).unwrap();
    assert_eq!(queue.tables(), 1);
    settle(queue);
    queue.destroy(rule).unwrap();
    settle(queue);
}

fn a_full_nic_refuses_rules(queue: &mut FlowQueue) {
    let (mut placed, mut refused) = (Vec::new(), 0);
    for station in 0..5000 {
        if queue.room() == 0 {
            refused += settle(queue).iter().filter(|completion| !completion.done).count();
        }
        match queue.create(&ATTRIBUTES, &to(station, None), &DROP) {
            Ok(rule) => placed.push(rule),
            Err(FlowError::Full { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    refused += settle(queue).iter().filter(|completion| !completion.done).count();
    let there = placed.iter().filter(|rule| queue.query(**rule).is_ok()).count();
    assert!(refused > 0 && there + refused == 5000, "{there} there, {refused} refused");
}

fn rules_age(port: &FlowPort, queue: &mut FlowQueue, rx: &mut dpdk::RxQueue) {
    let told = Arc::new((AtomicUsize::new(0), Mutex::new(Vec::new())));
    let teller = told.clone();
    let events = port.listen(Box::new(move |event| {
        teller.0.fetch_add(1, Ordering::Relaxed);
        teller.1.lock().push(event);
    }));
    let actions = [FlowAction::Count, FlowAction::Drop, FlowAction::Age { seconds: 1, context: 77 }];
    let rule = queue.create(&ATTRIBUTES, &to(1, None), &actions).unwrap();
    settle(queue);
    let (mut burst, deadline) = (Burst::new(), Instant::now() + COMPLETION_TIMEOUT);
    while told.0.load(Ordering::Relaxed) == 0 {
        rx.receive(&mut burst);
        assert!(Instant::now() < deadline, "no event of an aged rule");
    }
    assert_eq!(*told.1.lock(), [FlowEvent::Aged]);
    let mut aged = Vec::new();
    port.aged(&mut aged).unwrap();
    assert_eq!(aged, [77]);
    drop(events);
    queue.destroy(rule).unwrap();
    assert_eq!(settle(queue).len(), 1);
}
