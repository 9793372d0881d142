//! DPDK's virtual devices as ports.

#![cfg(feature = "dpdk")]

use dpdk::{Eal, EalConfig, EalMemory, Mempool};
use engine::{Engine, IdlePolicy};
use packet::{Burst, L4Checksum, Offload, Packet, Pool};
use port::{Counters, EthdevParams, EthdevPort, Port, PortError, PortKind, PortShard};
use std::sync::LazyLock;

/// DPDK is once in a process, and so for all these tests.
static EAL: LazyLock<Eal> = LazyLock::new(|| {
    Eal::init(&EalConfig { memory: EalMemory::NoHuge { mib: 256 }, ..EalConfig::default() }).expect("DPDK starts")
});

fn counters(port: &EthdevPort) -> Counters {
    port.stats().iter().map(|stats| &**stats).sum()
}

fn packet(data: &[u8], pool: &Pool) -> Packet {
    let mut packet = pool.take_one().unwrap();
    assert!(packet.extend_from_slice(data, pool));
    packet
}

fn receive(shard: &mut dyn PortShard) -> Vec<Packet> {
    let (mut all, mut burst) = (Vec::new(), Burst::new());
    while shard.rx(&mut burst) != 0 {
        all.extend(burst.drain(..));
    }
    all
}

/// Ethernet, IPv4 and TCP headers without options, and `len` bytes.
fn tcp_frame(len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let total = (40 + len) as u16;
    frame.extend([0x45, 0, (total >> 8) as u8, total as u8, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend((0..len).map(|at| at as u8));
    frame
}

#[test]
fn offloads_a_device_lacks_are_done_in_software() {
    let pool = Mempool::new(&EAL, "offload", 1024, None).unwrap();
    let engine = Engine::start(&[0], IdlePolicy::default()).unwrap();
    let port = EthdevPort::open(&EAL, &EthdevParams::new("net_ring0", &pool, 1)).unwrap();
    let mut shard = port.open_shard(&engine.workers()[0]).unwrap();
    assert!(shard.can_tx());
    let packets = pool.packets();

    let mut burst = Burst::new();
    burst.push(packet(&tcp_frame(100), packets));
    let mut large = packet(&tcp_frame(10_000), packets);
    let checksum = Some(L4Checksum::Tcp);
    large.set_offload(&Offload { checksum, segment_size: 1460, ipv6: false, l2_len: 14, l3_len: 20, l4_len: 20 });
    burst.push(large);
    burst.push(packet(&tcp_frame(1600), packets));
    burst.push(packet(&[0; 9], packets));
    shard.tx(&mut burst);
    assert!(burst.is_empty());

    let got = receive(&mut *shard);
    assert!(got[0].data() == tcp_frame(100));
    let (segments, payload) = (&got[1..], tcp_frame(10_000)[54..].to_vec());
    assert_eq!(segments.len(), 7);
    let joined: Vec<u8> = segments.iter().flat_map(|segment| segment.data()[54..].to_vec()).collect();
    assert!(joined == payload);
    assert!(segments.iter().all(|segment| segment.len() <= 1514 && segment.offload().is_none()));
    assert!(segments.iter().all(|segment| segment.verify_checksum() == Some(true)));
    let counted = counters(&port);
    assert_eq!((counted.tx_packets, counted.rx_packets), (9, 8));
    assert_eq!((counted.tx_invalid, counted.rx_invalid), (1, 1), "beyond the MTU; shorter than a header");

    drop((got, shard, engine));
    drop(port);
    assert_eq!(packets.free_count(), 1024);
}

#[test]
fn packets_of_other_pools_are_copied() {
    let pool = Mempool::new(&EAL, "copies", 1024, None).unwrap();
    let ours = Pool::new(256, None).unwrap();
    let engine = Engine::start(&[0], IdlePolicy::default()).unwrap();
    let port = EthdevPort::open(&EAL, &EthdevParams::new("net_ring1", &pool, 1)).unwrap();
    let mut shard = port.open_shard(&engine.workers()[0]).unwrap();
    let mut burst = Burst::new();
    burst.push(packet(&tcp_frame(100), &ours));
    burst.push(packet(&tcp_frame(200), pool.packets()));
    let mut mixed = packet(&tcp_frame(1000), pool.packets());
    assert!(mixed.chain(packet(&[7; 100], &ours)) && !mixed.is_foreign());
    burst.push(mixed);
    shard.tx(&mut burst);
    assert_eq!(ours.free_count(), 256, "nothing of ours is with DPDK");
    let got: Vec<Vec<u8>> =
        receive(&mut *shard).iter().map(|packet| packet.segments().flatten().copied().collect()).collect();
    assert!(got == [tcp_frame(100), tcp_frame(200), [tcp_frame(1000), vec![7; 100]].concat()]);

    let held: Vec<_> = std::iter::from_fn(|| pool.packets().take_one()).collect();
    burst.push(packet(&tcp_frame(100), &ours));
    shard.tx(&mut burst);
    assert_eq!((held.len(), counters(&port).tx_no_buffer), (1024, 1));
    drop((held, shard, port));
    assert_eq!((ours.free_count(), pool.packets().free_count()), (256, 1024));
}

#[test]
fn queues_move_between_workers() {
    let pool = Mempool::new(&EAL, "moves", 4096, None).unwrap();
    let engine = Engine::start(&[0, 1], IdlePolicy::default()).unwrap();
    let [first, second] = engine.workers() else { panic!("two workers") };
    let port = EthdevPort::open(&EAL, &EthdevParams::new("net_null0", &pool, 2)).unwrap();
    let info = port.info();
    assert_eq!((info.kind, info.rx_queues, info.tx_queues, info.link_up), (PortKind::Dpdk, 2, 2, true));

    let places = || port.rx_queues().iter().map(|queue| queue.worker).collect::<Vec<_>>();
    let mut one = port.open_shard(first).unwrap();
    assert_eq!(places(), [Some(0), Some(0)]);
    let mut two = port.open_shard(second).unwrap();
    assert_eq!(places(), [Some(0), Some(1)]);
    let mut burst = Burst::new();
    assert!(two.can_tx() && two.arm() && two.rx(&mut burst) == 0, "the first has not let go of the queue yet");
    one.quiesce();
    two.quiesce();
    assert!(one.can_tx() && two.can_tx());
    assert_eq!((one.rx(&mut burst), two.rx(&mut Burst::new())), (32, 32));
    two.tx(&mut burst);

    port.move_rx_queue(0, second).unwrap();
    one.quiesce();
    two.quiesce();
    assert_eq!((one.rx(&mut burst), two.rx(&mut Burst::new())), (0, 32));
    assert!(!one.arm(), "the first has nothing to poll");
    drop(two);
    one.quiesce();
    assert_eq!(places(), [Some(0), Some(0)]);
    assert_eq!(one.rx(&mut burst), 32);
    let packets = port.rx_queues().iter().map(|queue| queue.packets).sum::<u64>();
    assert_eq!(packets, counters(&port).rx_packets, "each is counted at its queue");

    let refused = port.move_rx_queue(2, first).unwrap_err();
    assert_eq!(refused.to_string(), "queue: got 2, expected 0 to 1");
    assert!(matches!(port.move_rx_queue(0, second), Err(PortError::Invalid(invalid)) if invalid.field == "worker"));

    // The port goes first; its shard still has the device.
    drop(port);
    assert_eq!(one.rx(&mut Burst::new()), 32);
    drop((one, burst));
    assert_eq!(pool.packets().free_count(), 4096);
}

#[test]
fn an_empty_pool_costs_only_packets() {
    let pool = Mempool::new(&EAL, "empty", 1024, None).unwrap();
    let engine = Engine::start(&[0], IdlePolicy::default()).unwrap();
    let port = EthdevPort::open(&EAL, &EthdevParams::new("net_null1", &pool, 1)).unwrap();
    let mut shard = port.open_shard(&engine.workers()[0]).unwrap();
    let held: Vec<_> = std::iter::from_fn(|| pool.packets().take_one()).collect();
    let mut burst = Burst::new();
    assert_eq!((held.len(), shard.rx(&mut burst)), (1024, 0));
    drop(held);
    assert_eq!(shard.rx(&mut burst), 32);
    drop((burst, shard, port));
    assert_eq!(pool.packets().free_count(), 1024);
}

#[test]
fn a_failed_open_names_its_reason() {
    let pool = Mempool::new(&EAL, "refused", 1024, None).unwrap();
    let open = |params: EthdevParams| match EthdevPort::open(&EAL, &params) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{params:?} was opened"),
    };
    let error = open(EthdevParams::new("0000:7f:00.0", &pool, 1));
    assert!(error.contains("0000:7f:00.0") && error.contains("vfio-pci"), "{error}");
    let error = open(EthdevParams { mtu: Some(1), ..EthdevParams::new("net_null2", &pool, 1) });
    assert!(error.contains("MTU: got 1, expected 46 to"), "{error}");
    let error = open(EthdevParams { mac: Some([1, 0, 0, 0, 0, 0]), ..EthdevParams::new("net_null2", &pool, 1) });
    assert!(error.contains("MAC address"), "{error}");
    EthdevPort::open(&EAL, &EthdevParams::new("net_null2", &pool, 1)).expect("its name is free again");
}
