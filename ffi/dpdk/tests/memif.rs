//! net_memif: two ends in one process, which find each other over a socket.

use dpdk::{Eal, EalConfig, EalMemory, EthDev, EthDevConfig, Mempool};
use packet::Burst;
use std::time::{Duration, Instant};

const PACKETS: u16 = 1000;

#[test]
fn two_memif_ports_exchange_packets() {
    let dir = tempfile::tempdir().unwrap();
    let config = EalConfig { memory: EalMemory::NoHuge { mib: 64 }, ..EalConfig::default() };
    let eal = Eal::init(&config).unwrap();
    let pool = Mempool::new(&eal, "packets", 8192, None).unwrap();
    let socket = dir.path().join("memif.sock");
    let attach = |name: &str, role: &str| {
        let devargs = format!("{name},role={role},socket={},socket-abstract=no", socket.display());
        EthDev::attach(&eal, &devargs).unwrap()
    };
    let (mut server, mut client) = (attach("net_memif0", "server"), attach("net_memif1", "client"));
    let config = EthDevConfig { rx_descriptors: 256, tx_descriptors: 256, ..EthDevConfig::new(&pool) };
    let (from, to) = (server.start(&config).unwrap(), client.start(&config).unwrap());
    let (mut tx, mut rx) = (from.tx, to.rx);

    let started = Instant::now();
    let waited = |what: &str| assert!(started.elapsed() < Duration::from_secs(15), "{what}");
    while !(server.link().unwrap().up && client.link().unwrap().up) {
        waited("the ends did not meet");
        std::thread::sleep(Duration::from_millis(5));
    }
    let (mut sent, mut received) = (0, 0);
    let (mut out, mut back) = (Burst::new(), Burst::new());
    while received < PACKETS {
        waited("packets are missing");
        if out.is_empty() && sent < PACKETS {
            pool.packets().take(&mut out, 1);
            out[0].append(100).unwrap().fill(sent as u8);
            sent += 1;
        }
        tx[0].send(&mut out);
        rx[0].receive(&mut back);
        for packet in back.drain(..) {
            assert!(packet.data() == [received as u8; 100]);
            received += 1;
        }
    }
    drop((out, back, tx, rx, from.rx, to.tx));
    // Left to the process's end: when one end is closed, the driver of DPDK 22.11 frees the other one's rings on its interrupt
    // thread, without regard to who closes that one meanwhile.
    std::mem::forget((server, client));
    assert_eq!(pool.packets().free_count(), 8192);
}
