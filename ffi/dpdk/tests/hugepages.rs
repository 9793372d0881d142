//! Hugepages without files, where the system has them to give.

#![allow(unsafe_code)] // to change user

use dpdk::{Eal, EalConfig, EalError, EalMemory, EthDev, EthDevConfig, Mempool, MempoolError};
use packet::Burst;

#[test]
fn an_ordinary_user_starts_dpdk_in_hugepages() {
    let config = EalConfig::default();
    if config.memory != EalMemory::InMemory {
        return eprintln!("skipped: fewer than {} MiB of hugepages are free", EalMemory::DEFAULT_MIB);
    }
    // SAFETY: this process has one test; its threads change user together.
    unsafe {
        if libc::geteuid() == 0 {
            assert_eq!(libc::setgid(65534), 0);
            assert_eq!(libc::setuid(65534), 0);
        }
    }
    // Others on the machine may have taken them since.
    let eal = match Eal::init(&config) {
        Err(EalError::Memory { said }) => return eprintln!("skipped: {said}"),
        started => started.unwrap(),
    };
    let pool = match Mempool::new(&eal, "packets", 2048, None) {
        Err(error @ MempoolError::Memory { .. }) => return eprintln!("skipped: {error}"),
        made => made.unwrap(),
    };
    let mut dev = EthDev::attach(&eal, "net_null0").unwrap();
    let mut queues = dev.start(&EthDevConfig::new(&pool)).unwrap();
    let mut burst = Burst::new();
    assert_eq!(queues.rx[0].receive(&mut burst), packet::BURST);
    assert_eq!(queues.tx[0].send(&mut burst), packet::BURST);
    drop((queues, dev));
    assert_eq!(pool.packets().free_count(), 2048);
}
