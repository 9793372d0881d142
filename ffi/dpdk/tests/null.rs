//! net_null: the EAL once a process, devices that come and go, no buffer lost.

use dpdk::{
    AttachError, DeviceError, Eal, EalConfig, EalError, EalMemory, EthDev, EthDevConfig, Mempool, MempoolError,
};
use packet::Burst;

fn config() -> EalConfig {
    EalConfig { memory: EalMemory::NoHuge { mib: 64 }, ..EalConfig::default() }
}

#[test]
fn devices_start_and_stop_and_every_buffer_returns() {
    let refused = Eal::init(&EalConfig { options: vec!["--help".into()], ..config() }).unwrap_err();
    assert!(matches!(&refused, EalError::Option { option, .. } if option == "--help"), "{refused}");

    let eal = Eal::init(&config()).unwrap();
    assert!(matches!(Eal::init(&config()), Err(EalError::AlreadyInitialised)));
    let pool = Mempool::new(&eal, "packets", 4096, None).unwrap();
    refused_pools(&eal);
    refused_devices(&eal);
    let packets = pool.packets().clone();
    assert_eq!(packets.free_count(), 4096);
    for _ in 0..3 {
        one_life(&eal, &pool);
        assert_eq!(packets.free_count(), 4096);
    }
    bursts_go_home_at_once(&packets);
    a_thread_that_ends_leaves_nothing_in_its_cache(&pool);
    drop((packets, pool, eal));
    assert!(Eal::running().is_some(), "the EAL stays");
    assert!(matches!(Eal::init(&config()), Err(EalError::AlreadyInitialised)), "and cannot be started twice");
}

/// More than the thread's cache holds.
fn bursts_go_home_at_once(packets: &packet::Pool) {
    for _ in 0..20 {
        let mut bursts = [const { Burst::new_const() }; 40];
        assert!(bursts.iter_mut().all(|burst| packets.take(burst, packet::BURST) == packet::BURST));
        bursts.iter_mut().for_each(packet::free);
        assert_eq!(packets.free_count(), 4096);
    }
}

fn refused_pools(eal: &Eal) {
    let error = |name: &str, buffers| Mempool::new(eal, name, buffers, None).unwrap_err();
    assert!(matches!(error("packets", 4096), MempoolError::Exists { .. }));
    assert!(matches!(error("", 4096), MempoolError::Name { .. }));
    assert!(matches!(error("a name that is longer than DPDK has", 4096), MempoolError::Name { .. }));
    assert!(matches!(error("few", 100), MempoolError::Count { got: 100, .. }));
    assert!(matches!(error("many", 10_000_000), MempoolError::Memory { .. }));
}

fn refused_devices(eal: &Eal) {
    let attach = |devargs: &str| EthDev::attach(eal, devargs).unwrap_err();
    for devargs in ["", "net\0null", "nosuchbus:x", "net_nosuch0"] {
        let error = attach(devargs);
        println!("{error}");
        assert!(matches!(error, AttachError::Syntax { .. } | AttachError::NoDevice { .. }), "{error:?}");
    }
    let absent = attach("0000:99:00.0");
    println!("{absent}");
    assert!(matches!(absent, AttachError::NoDevice { .. }), "{absent:?}");
    let refused = attach("net_pcap0,rx_pcap=/nonexistent/file.pcap");
    println!("{refused}");
    assert!(matches!(refused, AttachError::Refused { .. } | AttachError::NoDevice { .. }), "{refused:?}");
}

fn one_life(eal: &Eal, pool: &Mempool) {
    let mut dev = EthDev::attach(eal, "net_null0,size=60").unwrap();
    assert!(matches!(EthDev::attach(eal, "net_null0"), Err(AttachError::Exists { .. })));
    let info = dev.info().unwrap();
    assert_eq!((info.name.as_str(), info.driver.as_str()), ("net_null0", "net_null"));
    let too_many =
        dev.start(&EthDevConfig { rx_queues: info.max_rx_queues + 1, ..EthDevConfig::new(pool) }).unwrap_err();
    println!("{too_many}");

    let mut queues = dev.start(&EthDevConfig { rx_queues: 2, tx_queues: 2, ..EthDevConfig::new(pool) }).unwrap();
    assert!(dev.link().unwrap().up);
    assert!(matches!(dev.stop(), Err(DeviceError::InUse { users: 4, .. })));
    let mut burst = Burst::new();
    for _ in 0..1000 {
        assert_eq!(queues.rx[1].receive(&mut burst), packet::BURST);
        assert!(burst.iter().all(|packet| packet.len() == 60 && packet.mbuf().port == dev.port_id()));
        assert_eq!(queues.rx[1].receive(&mut burst), 0, "the burst is full");
        assert_eq!(queues.tx[1].send(&mut burst), packet::BURST);
        assert!(burst.is_empty());
    }
    queues.rx[0].receive(&mut burst);
    let stats = dev.stats().unwrap();
    assert_eq!((stats.rx_packets, stats.tx_packets), (32_032, 32_000));
    assert!(dev.extended_stats().unwrap().iter().any(|(name, value)| name == "rx_good_packets" && *value == 32_032));
    drop((burst, queues));
    dev.stop().unwrap();
    dev.start(&EthDevConfig::new(pool)).unwrap();
}

fn a_thread_that_ends_leaves_nothing_in_its_cache(pool: &Mempool) {
    let packets = pool.packets().clone();
    let mut all = Vec::new();
    while let Some(packet) = packets.take_one() {
        all.push(packet);
    }
    assert_eq!((all.len(), packets.free_count()), (4096, 0), "what this thread's cache holds, it gives");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut burst = Burst::new();
            assert_eq!(packets.take(&mut burst, 1), 0);
            drop(all);
        });
        thread.join().unwrap(); // its end, not only that of its closure
    });
    assert_eq!(packets.free_count(), 4096);
    let again: Vec<_> = std::iter::from_fn(|| packets.take_one()).collect();
    assert_eq!(again.len(), 4096, "none is stuck with the thread that ended");
}
