//! net_ring sends back what it is sent: chains, data and metadata pass as they are, also from one thread to another.

use dpdk::{Eal, EalConfig, EalMemory, EthDev, EthDevConfig, Mempool};
use packet::Burst;

const ROUNDS: u64 = 2000;

#[test]
fn sent_packets_come_back_unchanged() {
    let config = EalConfig { memory: EalMemory::NoHuge { mib: 128 }, ..EalConfig::default() };
    let eal = Eal::init(&config).unwrap();
    let pool = Mempool::new(&eal, "packets", 8192, None).unwrap();
    let packets = pool.packets().clone();
    let mut dev = EthDev::attach(&eal, "net_ring0").unwrap();
    let mut queues = dev.start(&EthDevConfig::new(&pool)).unwrap();
    let (mut rx, mut tx) = (queues.rx.remove(0), queues.tx.remove(0));

    // One thread makes and sends packets, another receives and frees them: buffers wander from cache to cache.
    std::thread::scope(|scope| {
        let from = packets.clone();
        let sender = scope.spawn(move || {
            let mut burst = Burst::new();
            for number in 0..ROUNDS {
                let data = payload(number);
                let packet = loop {
                    let mut empty = from.take_one();
                    match empty.as_mut().map(|packet| packet.extend_from_slice(&data, &from)) {
                        Some(true) => break empty.expect("just filled"),
                        _ => std::thread::yield_now(),
                    }
                };
                burst.push(packet);
                while tx.send(&mut burst) == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let mut burst = Burst::new();
        let mut expected = 0;
        while expected < ROUNDS {
            if rx.receive(&mut burst) == 0 {
                std::thread::yield_now();
            }
            for packet in burst.drain(..) {
                let data = payload(expected);
                assert_eq!((packet.len(), packet.segment_count()), (data.len(), data.len().div_ceil(2048).max(1)));
                let mut got = vec![0; packet.len()];
                packet.copy_to(&mut got);
                assert!(got == data, "packet {expected}");
                expected += 1;
            }
        }
        sender.join().unwrap();
        drop(rx);
    });
    assert_eq!(packets.free_count(), 8192, "every buffer is home");
    dev.stop().unwrap();
}

/// From nothing to a jumbo frame of five segments, different each time.
fn payload(number: u64) -> Vec<u8> {
    let len = number.wrapping_mul(7919) % 9000;
    (0..len).map(|at| (at ^ number ^ at >> 8) as u8).collect()
}
