//! net_pcap: from one file to another.

use dpdk::{Eal, EalConfig, EalMemory, EthDev, EthDevConfig, Mempool};
use packet::Burst;
use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};
use std::path::Path;
use std::time::Duration;

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
    let mut dev = EthDev::attach(&eal, &devargs).unwrap();
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

fn write_pcap(path: &Path, frames: &[Vec<u8>]) {
    let mut file = PcapWriter::new(std::fs::File::create(path).unwrap()).unwrap();
    for frame in frames {
        file.write_packet(&PcapPacket::new(Duration::ZERO, frame.len() as u32, frame)).unwrap();
    }
}

/// The frames of a capture file, which may still be written to.
fn read_pcap(path: &Path) -> Vec<Vec<u8>> {
    let mut file = PcapReader::new(std::fs::File::open(path).unwrap()).unwrap();
    std::iter::from_fn(|| Some(file.next_packet()?.ok()?.data.into_owned())).collect()
}
