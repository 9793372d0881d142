//! Kernel interfaces: af_packet and af_xdp on one end of a veth pair, tap on its own, against plain sockets on the other side. Needs root.

#![allow(unsafe_code)] // packet sockets

use dpdk::{Eal, EalConfig, EalMemory, EthDev, EthDevConfig, Mempool, RxQueue};
use packet::Burst;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn kernel_interfaces_carry_packets_both_ways() {
    // SAFETY: asks the kernel.
    if unsafe { libc::geteuid() } != 0 {
        return eprintln!("not root: no interfaces to test with");
    }
    // SAFETY: this process has one test; what its threads start from here on is in a network namespace of its own.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
    for pair in 0..2 {
        ip(&format!("link add dpdk{pair} type veth peer name peer{pair}"));
        ip(&format!("link set dpdk{pair} up"));
        ip(&format!("link set peer{pair} up"));
    }
    let config = EalConfig { memory: EalMemory::NoHuge { mib: 128 }, ..EalConfig::default() };
    let eal = Eal::init(&config).unwrap();
    let pool = Mempool::new(&eal, "packets", 8192, None).unwrap();
    both_ways(&eal, &pool, "net_af_packet0,iface=dpdk0", "peer0");
    // When it is closed, DPDK 22.11's af_xdp does not give back what its fill ring holds.
    let xdp = Mempool::new(&eal, "xdp", 8192, None).unwrap();
    both_ways(&eal, &xdp, "net_af_xdp0,iface=dpdk1", "peer1");
    assert!(xdp.packets().free_count() >= 8192 - 2 * 2048, "{}", xdp.packets().free_count());
    both_ways(&eal, &pool, "net_tap0,iface=tap0,mac=02:00:00:00:00:07", "tap0");
    assert_eq!(pool.packets().free_count(), 8192);
}

fn both_ways(eal: &Eal, pool: &Mempool, devargs: &str, interface: &str) {
    let mut dev = EthDev::attach(eal, devargs).unwrap();
    let mut queues = dev.start(&EthDevConfig::new(pool)).unwrap();
    ip(&format!("link set {interface} up"));
    let mut socket = packet_socket(interface);
    for number in 0..100u8 {
        let frame = frame(number);
        socket.write_all(&frame).unwrap();
        expect(&mut queues.rx[0], &frame);
        let mut burst = Burst::new();
        pool.packets().take(&mut burst, 1);
        assert!(burst[0].extend_from_slice(&frame, pool.packets()));
        assert_eq!(queues.tx[0].send(&mut burst), 1);
        let mut got = [0; 2048];
        // The kernel has things to say of its own.
        while socket.read(&mut got).map(|len| got[..len] != frame).unwrap() {}
    }
    assert!(dev.stats().unwrap().rx_packets >= 100);
    assert!(dev.link().unwrap().up);
    drop(queues);
    dev.stop().unwrap();
    println!("{devargs}: ok");
}

/// Waits for `frame`, among what else comes.
fn expect(rx: &mut RxQueue, frame: &[u8]) {
    let started = Instant::now();
    let mut burst = Burst::new();
    loop {
        rx.receive(&mut burst);
        if burst.drain(..).any(|packet| packet.data() == frame) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "the frame did not come");
    }
}

fn frame(number: u8) -> Vec<u8> {
    let mut frame = vec![number; 64 + usize::from(number)];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 8, 0x88, 0xb5]);
    frame
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// A raw socket on an interface, which waits for at most ten seconds.
fn packet_socket(interface: &str) -> std::fs::File {
    let name = std::ffi::CString::new(interface).unwrap();
    // SAFETY: addresses and options of the sizes that are passed; the descriptor is ours.
    unsafe {
        let all = (libc::ETH_P_ALL as u16).to_be();
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(all));
        assert!(fd >= 0);
        let file = std::fs::File::from_raw_fd(fd);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        let bound = libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as u32);
        assert_eq!(bound, 0);
        let (option, value) = (libc::SO_RCVTIMEO, libc::timeval { tv_sec: 10, tv_usec: 0 });
        libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const value).cast(), size_of_val(&value) as u32);
        let (own, on) = (libc::PACKET_IGNORE_OUTGOING, 1i32);
        libc::setsockopt(fd, libc::SOL_PACKET, own, (&raw const on).cast(), 4);
        file
    }
}
