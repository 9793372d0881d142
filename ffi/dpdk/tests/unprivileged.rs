//! An ordinary user may start DPDK: memory without files needs no privilege.

#![allow(unsafe_code)] // to change user

use dpdk::{Eal, EalConfig, EalMemory, EthDev, EthDevConfig, Mempool};
use packet::Burst;

#[test]
fn an_ordinary_user_starts_dpdk_without_hugepages() {
    // SAFETY: this process has one test; its threads change user together.
    unsafe {
        if libc::geteuid() == 0 {
            assert_eq!(libc::setgid(65534), 0);
            assert_eq!(libc::setuid(65534), 0);
        }
    }
    let affinity = allowed_cpus();
    let eal = Eal::init(&EalConfig { memory: EalMemory::NoHuge { mib: 64 }, ..EalConfig::default() }).unwrap();
    assert_eq!(allowed_cpus(), affinity, "the caller is not pinned");
    let pool = Mempool::new(&eal, "packets", 2048, None).unwrap();
    let mut dev = EthDev::attach(&eal, "net_null0").unwrap();
    let mut queues = dev.start(&EthDevConfig::new(&pool)).unwrap();
    let mut burst = Burst::new();
    assert_eq!(queues.rx[0].receive(&mut burst), packet::BURST);
    assert_eq!(queues.tx[0].send(&mut burst), packet::BURST);
    drop(queues);
    drop(dev);
    assert_eq!(pool.packets().free_count(), 2048);
}

fn allowed_cpus() -> Vec<usize> {
    // SAFETY: the kernel fills a set of this size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set);
        (0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &set)).collect()
    }
}
