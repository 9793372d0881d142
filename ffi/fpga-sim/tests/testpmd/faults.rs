//! Fault injection while the device runs, by DPDK's telemetry.

use crate::peer::{frames_of, write_pcap};
use crate::templates::{FORWARD, create, expect, start};
use crate::{traffic, udp};

const DROP: &str = "age timeout 5 / count / drop";

#[test]
fn telemetry_injects_and_ends_faults() {
    let mut testpmd = start("function=net_null0");
    let fault = |change: &str| format!("/fpgasim/trouble,net_fpgasim0{change}");
    let none = testpmd.telemetry(&fault(""));
    assert!(none.contains(r#""table_full": "0""#) && none.contains(r#""lose_completion": "0""#), "{none}");
    assert!(testpmd.telemetry("/fpgasim/trouble,net_fpgasim7").contains("no device net_fpgasim7"));
    assert!(testpmd.telemetry(&fault(",speed=1")).contains("expected table-full=1"));

    assert!(testpmd.telemetry(&fault(",table-full=1")).contains(r#""table_full": "1""#));
    expect(&mut testpmd, &create(0, 1, "no", DROP), "creation enqueued");
    expect(&mut testpmd, "flow pull 0 queue 0", "pulled 1 operations (1 failed, 0 succeeded)");
    testpmd.telemetry(&fault(",table-full=0,refuse-create=drop"));
    expect(&mut testpmd, &create(0, 1, "no", DROP), "creation enqueued");
    expect(&mut testpmd, &create(0, 1, "no", FORWARD), "creation enqueued");
    expect(&mut testpmd, "flow pull 0 queue 0", "pulled 2 operations (1 failed, 1 succeeded)");
    testpmd.telemetry(&fault(",refuse-create=,refuse=age"));
    expect(&mut testpmd, &create(0, 2, "no", DROP), "refused on demand");

    // Every second completion is lost, and what it is of is done.
    testpmd.telemetry(&fault(",refuse=,lose-completion=2"));
    for host in [2, 3, 4] {
        expect(&mut testpmd, &create(1, host, "no", FORWARD), "creation enqueued");
    }
    expect(&mut testpmd, "flow pull 0 queue 1", "pulled 2 operations (0 failed, 2 succeeded)");
    assert_eq!(testpmd.counter(0, "device_exact_rules"), 4);

    // A completion is as slow as the insertion.
    testpmd.telemetry(&fault(",lose-completion=0,insert-delay-us=4000000000"));
    expect(&mut testpmd, &create(1, 5, "no", FORWARD), "creation enqueued");
    expect(&mut testpmd, "flow pull 0 queue 1", "pulled 0 operations");

    testpmd.telemetry(&fault(",reset=1"));
    testpmd.wait_for("reset event");
    assert_eq!(testpmd.counter(0, "device_exact_rules"), 0);
    testpmd.quit();
}

#[test]
fn packets_are_aborted_in_the_middle_of_the_pipeline() {
    let dir = tempfile::tempdir().unwrap();
    let (wire, function) = (dir.path().join("wire.pcap"), dir.path().join("function.pcap"));
    write_pcap(&wire, &traffic(2, 10));
    let mut testpmd = start(&format!(
        "wire=(net_pcap0,rx_pcap={}),function=(net_pcap1,tx_pcap={}),abort-after=1",
        wire.display(),
        function.display()
    ));
    expect(&mut testpmd, &create(0, 1, "no", FORWARD), "creation enqueued");
    expect(&mut testpmd, &create(0, 2, "no", DROP), "creation enqueued");
    // One action is to drop; to forward is the second.
    testpmd.command("start");
    testpmd.wait_for_counter(0, "rx_good_packets", 10);
    testpmd.wait_for_counter(1, "represented_tx_packets", 10);
    assert_eq!(testpmd.counter(0, "device_aborted_packets"), 10);
    assert_eq!(testpmd.counter(0, "device_offloaded_packets"), 10);
    expect(&mut testpmd, "flow query 0 0 count", "hits: 0\n");
    expect(&mut testpmd, "flow query 0 1 count", "hits: 10\n");
    testpmd.quit();
    // testpmd forwards between the ports, so the host has sent them on, as they came.
    assert_eq!(frames_of(&function), vec![udp(1); 10]);
}
