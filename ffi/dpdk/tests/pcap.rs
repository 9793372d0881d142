//! net_pcap: from one file to another.

use dpdk::{Eal, EalConfig, EalMemory, EthDev, EthDevConfig, Mempool};
use packet::Burst;
use std::path::Path;

#[test]
fn a_capture_is_copied_packet_by_packet() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from.pcap"), dir.path().join("to.pcap"));
    let frames: Vec<Vec<u8>> = (0..500).map(|number| frame(number, 60 + number * 17 % 4000)).collect();
    write_pcap(&from, &frames);

    let config = EalConfig { memory: EalMemory::NoHuge { mib: 64 }, ..EalConfig::default() };
    let eal = Eal::init(&config).unwrap();
    let pool = Mempool::new(&eal, "packets", 4096, None).unwrap();
    let devargs = format!("net_pcap0,rx_pcap={},tx_pcap={}", from.display(), to.display());
    let mut dev = EthDev::attach(&eal, &devargs).unwrap().remove(0);
    let mut queues = dev.start(&EthDevConfig::new(&pool)).unwrap();
    let mut burst = Burst::new();
    while queues.rx[0].receive(&mut burst) != 0 {
        queues.tx[0].send(&mut burst);
        assert!(burst.is_empty());
    }
    assert_eq!(dev.stats().unwrap().tx_packets, 500);
    drop(queues);
    dev.stop().unwrap();
    drop(dev);
    assert_eq!(pool.packets().free_count(), 4096);
    assert!(read_pcap(&to) == frames);
}

fn frame(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at + number) as u8).collect()
}

/// A capture file: magic, version 2.4, zone, accuracy, snap length, Ethernet; then time and lengths before each frame.
fn write_pcap(path: &Path, frames: &[Vec<u8>]) {
    let mut file = Vec::new();
    [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, 1].iter().for_each(|word: &u32| file.extend(word.to_le_bytes()));
    for frame in frames {
        let len = frame.len() as u32;
        [0, 0, len, len].iter().for_each(|word: &u32| file.extend(word.to_le_bytes()));
        file.extend(frame);
    }
    std::fs::write(path, file).unwrap();
}

fn read_pcap(path: &Path) -> Vec<Vec<u8>> {
    let file = std::fs::read(path).unwrap();
    let (mut frames, mut rest) = (Vec::new(), &file[24..]);
    while let Some((header, more)) = rest.split_first_chunk::<16>() {
        let len = u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
        frames.push(more[..len].to_vec());
        rest = &more[len..];
    }
    frames
}
