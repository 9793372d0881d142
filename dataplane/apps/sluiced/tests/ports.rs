//! Ports of the switch through the whole daemon: what the kernel and DPDK carry.

mod daemon;

use daemon::Daemon;
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Waits until it holds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: waited in vain");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a command; what it says where it fails.
fn run(line: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let output =
        Command::new(words.next().unwrap()).args(words).output().map_err(|error| format!("{line}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(format!("{line}: {}", text(&output.stderr))) }
}

/// A network namespace, gone with the value.
struct Namespace(String);

impl Namespace {
    /// `None`, with a word about it, where the test may not make one.
    fn new(n: u32) -> Option<Namespace> {
        let name = format!("sluice-test-{}-{n}", std::process::id());
        match run(&format!("ip netns add {name}")) {
            Ok(_) => Some(Namespace(name)),
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        }
    }

    /// Takes an interface of the host and gives it an address.
    fn adopt(&self, ifname: &str, address: &str) {
        let Namespace(name) = self;
        run(&format!("ip link set {ifname} netns {name}")).unwrap();
        run(&format!("ip -n {name} addr add {address} dev {ifname}")).unwrap();
        run(&format!("ip -n {name} link set {ifname} up")).unwrap();
    }

    /// Whether an echo request is answered, and how the command failed.
    fn ping(&self, address: &str, size: usize) -> Result<String, String> {
        run(&format!("ip netns exec {} busybox ping -c 1 -W 5 -s {size} {address}", self.0))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(run(&format!("ip netns del {}", self.0)));
    }
}

fn port(daemon: &Daemon, name: &str) -> Value {
    daemon.ok("port_get", json!({"name": name}))[0].clone()
}

fn count(daemon: &Daemon, name: &str, what: &str) -> u64 {
    port(daemon, name).pointer(what).and_then(Value::as_u64).unwrap()
}

#[test]
fn namespaces_reach_each_other_over_taps_also_after_sigkill() {
    let (Some(left), Some(right)) = (Namespace::new(1), Namespace::new(2)) else { return };
    let daemon = Daemon::start();
    let interface = |side: &str| format!("sl{}{side}", std::process::id());
    daemon.ok("bridge_create", json!({"name": "br"}));
    for (side, queues) in [("l", 1), ("r", 4)] {
        let tap = json!({"name": side, "ifname": interface(side), "queues": queues, "mtu": 3000});
        daemon.ok("port_create_tap", tap);
        daemon.ok("bridge_add_port", json!({"bridge": "br", "port": side}));
    }
    assert_eq!((&port(&daemon, "r")["kind"], &port(&daemon, "r")["rx_queues"]), (&json!("tap"), &json!(4)));
    assert_eq!((&port(&daemon, "l")["mtu"], &port(&daemon, "l")["bridge"]), (&json!(3000), &json!("br")));

    let plug = || {
        left.adopt(&interface("l"), "10.99.0.1/24");
        right.adopt(&interface("r"), "10.99.0.2/24");
        // The first packets may be lost while the interfaces come up.
        eventually("ping", || left.ping("10.99.0.2", 56).is_ok());
    };
    plug();
    left.ping("10.99.0.2", 2900).unwrap();
    right.ping("10.99.0.1", 20_000).expect("in fragments");
    assert!(count(&daemon, "l", "/stats/rx_packets") > 0 && count(&daemon, "r", "/stats/tx_packets") > 0);
    let saved = daemon.ok("save_config", json!({}));

    let daemon = daemon.kill_and_restart(|_| {});
    daemon.ok("framework_wait_init", json!({}));
    assert_eq!(daemon.ok("config_get_pending", json!({})), json!([]));
    assert_eq!(daemon.ok("save_config", json!({})), saved);
    plug();

    daemon.ok("port_delete", json!({"name": "l"}));
    left.ping("10.99.0.2", 56).expect_err("its interface went with the port");
    let events = daemon.ok("notify_get_notifications", json!({}));
    let about = |kind: &str| events.as_array().unwrap().iter().filter(|event| event["type"] == kind).count();
    assert_eq!((about("port_create"), about("port_delete")), (2, 1));
}

#[test]
fn a_vhost_user_port_is_created_listed_and_deleted_like_other_ports() {
    let daemon = Daemon::start();
    let number = daemon.ok("port_create_vhost_user", json!({"name": "g", "num_queue_pairs": 2, "packed_ring": false}));
    let info = port(&daemon, "g");
    assert_eq!((&info["port_no"], &info["kind"]), (&number, &json!("vhost-user")));
    let socket = daemon.dir().join("g");
    assert_eq!((&info["vhost_user"]["socket"], socket.exists()), (&json!(socket), true));
    assert_eq!(info["vhost_user"]["connected"], false);
    for (method, field) in [("port_create_vhost_user", "name"), ("vhost_create_net_controller", "ctrlr")] {
        assert_eq!(daemon.err(method, json!({ field: "g" }))["code"], -17, "EEXIST");
    }
    let methods = |aliases: bool| daemon.ok("rpc_get_methods", json!({"include_aliases": aliases})).to_string();
    let deprecated = "vhost_create_net_controller";
    assert!(!methods(false).contains(deprecated) && methods(true).contains(deprecated));
    // The deprecated listing has it, too.
    assert_eq!(daemon.ok("vhost_get_net_controllers", json!({}))[0]["ctrlr"], "g");
    let kept = daemon.ok("framework_get_config", json!({"name": "port"}));
    assert_eq!((&kept[0]["method"], &kept[0]["params"]["port_no"]), (&json!("port_create_vhost_user"), &number));
    daemon.ok("port_delete", json!({"name": "g"}));
    assert_eq!(daemon.ok("port_get", json!({})), json!([]));
    assert_eq!(daemon.ok("framework_get_config", json!({"name": "port"})), json!([]));
    assert!(!socket.exists());
}

#[test]
fn a_tap_that_cannot_be_created_reports_the_reason() {
    let daemon = Daemon::start();
    let error = daemon.err("port_create_tap", json!({"name": "longer-than-15-bytes"}));
    assert_eq!(error["data"]["field"], "ifname", "{error}");
    let error = daemon.err("port_create_tap", json!({"name": "t", "queues": 257}));
    assert_eq!((&error["data"]["field"], &error["data"]["expected"]), (&json!("queues"), &json!("1 to 256")));
    let error = daemon.err("port_create_tap", json!({"name": "t", "ifname": "lo"}));
    assert!(error["message"].as_str().unwrap().contains("tap lo"), "{error}");
    assert_eq!(daemon.ok("port_get", json!({})), json!([]));
    assert_eq!(daemon.ok("framework_get_config", json!({"name": "port"})), json!([]));
}

/// Devices of DPDK, and what pcap files show of packets.
#[cfg(feature = "dpdk")]
mod dpdk {
    use super::*;
    use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
    use pcap_file::pcapng::{Block, PcapNgReader};
    use std::path::Path;

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

    /// A broadcast of no protocol, whose payload is a number.
    fn broadcast(number: u32) -> Vec<u8> {
        [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5], &number.to_be_bytes(), &[0; 46]].concat()
    }

    fn create_dpdk(daemon: &Daemon, name: &str, number: u32, devargs: &str) {
        daemon.ok("port_create_dpdk", json!({"name": name, "port_no": number, "devargs": devargs}));
    }

    #[test]
    fn a_capture_file_goes_through_the_switch_into_another() {
        let daemon = Daemon::start();
        let path = |name: &str| daemon.dir().join(name);
        let frames: Vec<Vec<u8>> = (0..5000).map(broadcast).collect();
        write_pcap(&path("in.pcap"), &frames);
        let pcap = |n: u32, rest: String| format!("net_pcap{n},{rest}");
        // A flow is there before its port, so not even the first frame is lost.
        daemon.ok("flow_add", json!({"flow": "in_port(1),eth_type(0x88b5)", "actions": "2,3"}));
        create_dpdk(&daemon, "sink", 2, &pcap(1, format!("tx_pcap={}", path("out.pcap").display())));
        create_dpdk(&daemon, "null", 3, "net_null0,no-rx=1");
        create_dpdk(&daemon, "source", 1, &pcap(0, format!("rx_pcap={}", path("in.pcap").display())));
        eventually("frames", || count(&daemon, "sink", "/stats/tx_packets") == 5000);
        assert_eq!(count(&daemon, "null", "/stats/tx_packets"), 5000);
        assert_eq!(count(&daemon, "source", "/stats/rx_packets"), 5000);
        daemon.ok("port_delete", json!({"name": "sink"}));
        assert!(read_pcap(&path("out.pcap")) == frames, "every frame, in order");
        assert_eq!(port(&daemon, "null")["kind"], "dpdk");
    }

    /// The value of a metric, with its labels.
    fn metric(daemon: &Daemon, name: &str) -> Option<f64> {
        let page = daemon.ok("metrics_get", json!({}));
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        page.as_str().unwrap().lines().find_map(value)
    }

    #[test]
    fn metrics_cover_ports_caches_and_captures() {
        let daemon = Daemon::start();
        assert_eq!(metric(&daemon, "sluice_switch_megaflows"), None, "there is no switch yet");
        let path = |name: &str| daemon.dir().join(name);
        let frames: Vec<Vec<u8>> = (0..3000).map(broadcast).collect();
        write_pcap(&path("in.pcap"), &frames);
        daemon.ok("flow_add", json!({"flow": "in_port(1),eth_type(0x88b5)", "actions": "2,9"}));
        create_dpdk(&daemon, "sink", 2, "net_null0,no-rx=1");
        daemon.ok("capture_start", json!({"port": "sink", "file": path("out.pcapng"), "count": 10}));
        create_dpdk(&daemon, "source", 1, &format!("net_pcap0,rx_pcap={}", path("in.pcap").display()));
        let is = |name: &str, value: u64| metric(&daemon, &format!("sluice_{name}")) == Some(value as f64);
        eventually("packets", || is("port_transmit_packets_total{port=\"sink\"}", 3000));
        let bytes = frames.iter().map(Vec::len).sum::<usize>() as u64;
        for (name, value) in [
            ("port_up{port=\"source\"}", 1),
            ("port_receive_packets_total{port=\"source\"}", 3000),
            ("port_receive_bytes_total{port=\"source\"}", bytes),
            ("port_transmit_bytes_total{port=\"sink\"}", bytes),
            ("port_upcalls_total{port=\"source\"}", 0),
            ("port_drops_total{port=\"source\",reason=\"no_port\"}", 3000),
            ("port_drops_total{port=\"source\",reason=\"rate_limited\"}", 0),
            ("port_drops_total{port=\"sink\",reason=\"tx_full\"}", 0),
            ("port_bridge_drops_total{port=\"source\",reason=\"spoofed\"}", 0),
            ("flow_cache_misses_total{worker=\"0\"}", 0),
            ("flow_parked{worker=\"0\"}", 0),
            ("switch_megaflows", 1),
        ] {
            assert!(is(name, value), "{name}: {:?}", metric(&daemon, &format!("sluice_{name}")));
        }
        // These are published when a worker has a quiet moment, or written by a thread.
        let hits = |tier| metric(&daemon, &format!("sluice_flow_cache_hits_total{{worker=\"0\",tier=\"{tier}\"}}"));
        let all = || ["exact", "signature", "megaflow"].map(|tier| hits(tier).unwrap()).iter().sum::<f64>();
        eventually("hits", || all() == 3000.0);
        eventually("flows", || is("flow_cache_megaflows{worker=\"0\"}", 1) && is("flow_cache_masks{worker=\"0\"}", 1));
        eventually("a capture", || is("capture_running{port=\"sink\"}", 0));
        assert!(is("capture_packets_total{port=\"sink\"}", 10));

        // Twice the frames in no time: most are beyond the limit.
        daemon.ok("port_delete", json!({"name": "source"}));
        assert_eq!(metric(&daemon, "sluice_port_up{port=\"source\"}"), None);
        create_dpdk(&daemon, "again", 1, &format!("net_pcap1,rx_pcap={},infinite_rx=1", path("in.pcap").display()));
        daemon.ok("port_set_rate_limit", json!({"name": "again", "packets_per_second": 1000}));
        let limited = "sluice_port_drops_total{port=\"again\",reason=\"rate_limited\"}";
        eventually("a limit", || metric(&daemon, limited).is_some_and(|count| count > 0.0));
    }

    #[test]
    fn devices_of_dpdk_join_bridges_with_others_and_come_back() {
        let daemon = Daemon::start_with(&["--eal", "--no-huge -m 128", "--packet-buffers", "4096"]);
        let path = |name: &str| daemon.dir().join(name);
        let frames: Vec<Vec<u8>> = (0..10).map(broadcast).collect();
        write_pcap(&path("in.pcap"), &frames);
        // The source never ends; what may be flooded is limited.
        daemon.ok("bridge_create", json!({"name": "br", "flood_pps": 1000}));
        create_dpdk(&daemon, "sink", 2, &format!("net_pcap1,tx_pcap={}", path("out.pcap").display()));
        create_dpdk(&daemon, "null", 3, "net_null0,no-rx=1");
        create_dpdk(&daemon, "source", 1, &format!("net_pcap0,rx_pcap={},infinite_rx=1", path("in.pcap").display()));
        for name in ["sink", "null", "source"] {
            daemon.ok("bridge_add_port", json!({"bridge": "br", "port": name}));
        }
        eventually("frames", || count(&daemon, "sink", "/stats/tx_packets") >= 200);
        eventually("a limit", || count(&daemon, "source", "/switch/metered") > 0);
        let saved = daemon.ok("save_config", json!({}));

        let daemon = daemon.kill_and_restart(|_| {});
        daemon.ok("framework_wait_init", json!({}));
        eventually("restoration", || daemon.ok("config_get_pending", json!({})) == json!([]));
        assert_eq!(daemon.ok("save_config", json!({})), saved);
        eventually("frames", || count(&daemon, "sink", "/stats/tx_packets") >= 200);
        for name in ["source", "sink", "null"] {
            daemon.ok("port_delete", json!({"name": name}));
        }
        let copied = read_pcap(&daemon.dir().join("out.pcap"));
        assert!(copied.len() >= 200 && copied.iter().all(|frame| frames.contains(frame)));
        // Its name is free again.
        create_dpdk(&daemon, "again", 3, "net_null0,no-rx=1");
    }

    /// The tap came first, so its packets are not in DPDK's memory.
    #[test]
    fn a_tap_and_a_device_of_dpdk_exchange_packets() {
        let Some(namespace) = Namespace::new(3) else { return };
        let daemon = Daemon::start();
        let ifname = format!("sl{}d", std::process::id());
        daemon.ok("bridge_create", json!({"name": "br"}));
        daemon.ok("port_create_tap", json!({"name": "tap", "ifname": ifname}));
        create_dpdk(&daemon, "sink", 2, &format!("net_pcap1,tx_pcap={}", daemon.dir().join("out.pcap").display()));
        for name in ["tap", "sink"] {
            daemon.ok("bridge_add_port", json!({"bridge": "br", "port": name}));
        }
        namespace.adopt(&ifname, "10.99.1.1/24");
        drop(namespace.ping("10.99.1.2", 56));
        let asks = |frame: &Vec<u8>| frame[12..14] == [8, 6] && frame[38..42] == [10, 99, 1, 2];
        eventually("frames", || count(&daemon, "sink", "/stats/tx_packets") > 0);
        daemon.ok("port_delete", json!({"name": "sink"}));
        assert!(read_pcap(&daemon.dir().join("out.pcap")).iter().any(asks), "an ARP request");
    }

    #[test]
    fn a_kernel_interface_joins_by_af_xdp() {
        let (Some(left), Some(right)) = (Namespace::new(4), Namespace::new(5)) else { return };
        let daemon = Daemon::start();
        let interface = |side: &str| format!("sl{}{side}", std::process::id());
        let (tap, ours, theirs) = (interface("t"), interface("x"), interface("y"));
        run(&format!("ip link add {ours} type veth peer name {theirs}")).unwrap();
        run(&format!("ip link set {ours} up")).unwrap();
        daemon.ok("bridge_create", json!({"name": "br"}));
        create_dpdk(&daemon, "xdp", 1, &format!("net_af_xdp0,iface={ours}"));
        daemon.ok("port_create_tap", json!({"name": "tap", "ifname": tap}));
        for name in ["xdp", "tap"] {
            daemon.ok("bridge_add_port", json!({"bridge": "br", "port": name}));
        }
        left.adopt(&tap, "10.99.2.1/24");
        right.adopt(&theirs, "10.99.2.2/24");
        eventually("ping", || left.ping("10.99.2.2", 56).is_ok());
        right.ping("10.99.2.1", 1400).unwrap();
        assert!(count(&daemon, "xdp", "/stats/rx_packets") > 0 && count(&daemon, "xdp", "/stats/tx_packets") > 0);
        daemon.ok("port_delete", json!({"name": "xdp"}));
        left.ping("10.99.2.2", 56).expect_err("the device is closed");
    }

    /// The packets of a pcapng file: bytes, flags, comment.
    fn read_pcapng(path: &Path) -> Vec<(Vec<u8>, u32, String)> {
        let mut reader = PcapNgReader::new(std::fs::File::open(path).unwrap()).unwrap();
        let mut packets = Vec::new();
        while let Some(block) = reader.next_block() {
            let Block::EnhancedPacket(packet) = block.unwrap() else { continue };
            let (mut flags, mut comment) = (0, String::new());
            for option in &packet.options {
                match option {
                    EnhancedPacketOption::Flags(word) => flags = *word,
                    EnhancedPacketOption::Comment(text) => comment = text.to_string(),
                    other => panic!("{other:?}"),
                }
            }
            packets.push((packet.data.to_vec(), flags, comment));
        }
        packets
    }

    #[test]
    fn captures_show_received_sent_and_dropped_packets() {
        const INBOUND: u32 = 1;
        const OUTBOUND: u32 = 2;
        let daemon = Daemon::start();
        let path = |name: &str| daemon.dir().join(name);
        let frames: Vec<Vec<u8>> = (0..10).map(broadcast).collect();
        write_pcap(&path("in.pcap"), &frames);
        daemon.ok("bridge_create", json!({"name": "br"}));
        create_dpdk(&daemon, "sink", 2, "net_null0,no-rx=1");
        create_dpdk(&daemon, "source", 1, &format!("net_pcap0,rx_pcap={},infinite_rx=1", path("in.pcap").display()));
        let limit = json!({"packets_per_second": 500, "bits_per_second": 10_000_000});
        let limited = json!({"name": "source", "packets_per_second": 500, "bits_per_second": 10_000_000});
        daemon.ok("port_set_rate_limit", limited.clone());
        assert_eq!(port(&daemon, "source")["rate_limit"], limit);
        for name in ["sink", "source"] {
            daemon.ok("bridge_add_port", json!({"bridge": "br", "port": name}));
        }
        let capture = |port: &str, file: &str, count: u64| {
            let file = path(file);
            daemon.ok("capture_start", json!({"port": port, "file": file, "count": count, "snap_len": 32}));
            let done = || daemon.ok("capture_get", json!({"port": port}))[0]["running"] == false;
            eventually("the capture's end", done);
            let report = daemon.ok("capture_stop", json!({"port": port}));
            assert_eq!((&report["packets"], &report["error"]), (&json!(count), &Value::Null));
            read_pcapng(&file)
        };
        let out = capture("sink", "out.pcapng", 50);
        assert_eq!(out.len(), 50);
        assert!(out.iter().all(|(data, flags, comment)| *flags == OUTBOUND && data.len() == 32 && comment.is_empty()));
        assert!(out.iter().all(|(data, ..)| frames.iter().any(|frame| frame[..32] == data[..])));
        // libpcap understands the file as well.
        create_dpdk(&daemon, "replay", 3, &format!("net_pcap2,rx_pcap={}", path("out.pcapng").display()));
        eventually("the capture's packets", || count(&daemon, "replay", "/stats/rx_packets") == 50);
        daemon.ok("port_delete", json!({"name": "replay"}));
        let seen = capture("source", "in.pcapng", 2000);
        assert!(seen.iter().all(|(_, flags, _)| *flags == INBOUND));
        assert!(seen.iter().any(|(.., comment)| comment == "dropped: rate_limited"), "most of what comes");

        // Its address is not allowed: the bridge's own reason is told.
        let allowed = json!({"bridge": "br", "port": "source", "allowed_macs": ["02:00:00:00:00:77"]});
        daemon.ok("bridge_add_port", allowed);
        daemon.ok("port_set_rate_limit", json!({"name": "source"}));
        assert_eq!(port(&daemon, "source")["rate_limit"], json!({}));
        let tells = |file: &str| capture("source", file, 1000).iter().any(|(.., why)| why == "dropped: spoofed");
        eventually("the reason", || tells("spoofed.pcapng"));
        daemon.ok("port_set_rate_limit", limited);

        let refused = daemon.err("capture_start", json!({"port": "source", "file": "/dev/null"}));
        assert_eq!(refused["data"]["field"], "file");
        daemon.err("capture_start", json!({"port": "nobody", "file": path("x")}));
        assert!(!path("x").exists());
        // A port that goes ends its capture.
        daemon.ok("capture_start", json!({"port": "sink", "file": path("gone.pcapng")}));
        daemon.ok("port_delete", json!({"name": "sink"}));
        assert_eq!(daemon.ok("capture_get", json!({})), json!([]));

        let daemon = daemon.kill_and_restart(|_| {});
        daemon.ok("framework_wait_init", json!({}));
        eventually("restoration", || daemon.ok("config_get_pending", json!({})) == json!([]));
        assert_eq!(port(&daemon, "source")["rate_limit"], limit);
    }

    #[test]
    fn queues_are_moved_between_workers_and_stay_there() {
        if std::thread::available_parallelism().unwrap().get() < 2 {
            println!("skipped: needs two CPUs");
            return;
        }
        let daemon = Daemon::start_with(&["--workers", "0,1"]);
        daemon.ok("port_create_dpdk", json!({"name": "n", "devargs": "net_null0", "queues": 3}));
        let places = |daemon: &Daemon| port(daemon, "n")["rx_workers"].clone();
        assert_eq!(places(&daemon), json!([0, 1, 0]));
        daemon.ok("port_move_queue", json!({"name": "n", "queue": 0, "worker": 1}));
        assert_eq!(places(&daemon), json!([1, 1, 0]));
        let error = daemon.err("port_move_queue", json!({"name": "n", "queue": 3, "worker": 1}));
        assert_eq!(error["data"]["expected"], "0 to 2");
        let error = daemon.err("port_move_queue", json!({"name": "n", "queue": 0, "worker": 2}));
        assert_eq!(error["data"]["field"], "worker");
        let before = count(&daemon, "n", "/stats/rx_packets");
        eventually("packets", || count(&daemon, "n", "/stats/rx_packets") > before + 10_000);

        let daemon = daemon.kill_and_restart(|_| {});
        daemon.ok("framework_wait_init", json!({}));
        eventually("restoration", || daemon.ok("config_get_pending", json!({})) == json!([]));
        assert_eq!(places(&daemon), json!([1, 1, 0]));
        daemon.ok("vhost_create_net_controller", json!({"ctrlr": "guest"}));
        let guest = json!({"name": "guest", "queue": 0, "worker": 1});
        daemon.ok("port_move_queue", guest.clone());
        assert_eq!(port(&daemon, "guest")["rx_workers"], json!([1]));
        // The older name is for the same: one call is kept, not two.
        daemon.ok("vhost_net_controller_move_queue_pair", json!({"ctrlr": "guest", "pair": 0, "worker": 1}));
        let kept = || daemon.ok("framework_get_config", json!({"name": "port"})).as_array().unwrap().len();
        let before = kept();
        daemon.ok("port_move_queue", guest);
        assert_eq!(kept(), before);
        daemon.ok("port_move_queue", json!({"name": "guest", "queue": 0}));
        assert_eq!((kept(), &port(&daemon, "guest")["rx_workers"]), (before - 1, &json!([1])), "it stays, and may go");
    }

    #[test]
    fn queues_move_by_load_when_the_scheduler_is_dynamic() {
        if std::thread::available_parallelism().unwrap().get() < 2 {
            println!("skipped: needs two CPUs");
            return;
        }
        let daemon = Daemon::start_with(&["--workers", "0,1"]);
        // Each has one queue, which the first worker has, and each gives it all the work that there can be.
        for name in ["a", "b", "c"] {
            daemon.ok("port_create_dpdk", json!({"name": name, "devargs": format!("net_null_{name}"), "queues": 1}));
        }
        daemon.ok("port_move_queue", json!({"name": "a", "queue": 0, "worker": 0}));
        let places = |daemon: &Daemon| ["a", "b", "c"].map(|name| port(daemon, name)["rx_workers"][0].clone());
        assert_eq!(places(&daemon), [0, 0, 0]);
        let status = |daemon: &Daemon| daemon.ok("framework_get_scheduler", json!({}));
        assert_eq!(status(&daemon)["scheduler_name"], "static");
        for (field, value) in [("period", 1), ("load_threshold", 101), ("improvement_threshold", 0)] {
            let error = daemon.err("framework_set_scheduler", json!({"name": "dynamic", field: value}));
            assert_eq!(error["data"]["field"], field, "{error}");
        }
        daemon.ok("framework_set_scheduler", json!({"name": "dynamic", "period": 200_000, "load_threshold": 50}));
        eventually("a move by load", || places(&daemon).contains(&json!(1)));
        assert_eq!(places(&daemon)[0], 0, "it is pinned");
        eventually("loads", || {
            let queues = status(&daemon)["queues"].as_array().cloned().unwrap_or_default();
            let of = |name: &str| queues.iter().find(|queue| queue["name"] == name).cloned().unwrap_or_default();
            let loaded = |name: &str| of(name)["load"].as_f64().is_some_and(|load| load > 0.0);
            of("a")["pinned"] == true && of("b")["pinned"] == false && ["a", "b", "c"].iter().all(|name| loaded(name))
        });
        let moves = metric(&daemon, "sluice_queue_moves_total{by=\"load\"}").unwrap();
        assert!(moves >= 1.0 && status(&daemon)["moves"]["load"].as_f64() >= Some(moves));
        assert!(metric(&daemon, "sluice_worker_load_ratio{worker=\"1\"}").is_some());
        let events = daemon.ok("notify_get_notifications", json!({}));
        let told =
            |event: &Value| event["type"] == "queue_move" && event["detail"] == "queue 0: worker 0 to 1, by load";
        assert!(events.as_array().unwrap().iter().any(told), "{events}");

        let daemon = daemon.kill_and_restart(|_| {});
        daemon.ok("framework_wait_init", json!({}));
        let status = status(&daemon);
        assert_eq!((&status["scheduler_name"], &status["scheduler_period"]), (&json!("dynamic"), &json!(200_000)));
        assert_eq!(status["load_threshold"], 50.0);
    }

    #[test]
    fn a_device_that_cannot_be_opened_reports_the_reason() {
        let daemon = Daemon::start();
        let error = daemon.err("port_create_dpdk", json!({"name": "n", "devargs": "0000:7f:00.0"}));
        assert!(error["message"].as_str().unwrap().contains("0000:7f:00.0"), "{error}");
        let error = daemon.err("port_create_dpdk", json!({"name": "n", "devargs": "net_null0", "queues": 0}));
        assert_eq!(error["data"]["field"], "queues");
        let error = daemon.err("port_create_dpdk", json!({"name": "n", "devargs": "net_null0", "mtu": 1}));
        assert!(error["message"].as_str().unwrap().contains("MTU: got 1"), "{error}");
        assert_eq!(daemon.ok("port_get", json!({})), json!([]));
    }

    #[test]
    fn a_failed_start_of_dpdk_is_reported_and_other_ports_work() {
        let daemon = Daemon::start_with(&["--eal", "--no-such-option"]);
        for _ in 0..2 {
            let error = daemon.err("port_create_dpdk", json!({"name": "n", "devargs": "net_null0"}));
            assert!(error["message"].as_str().unwrap().contains("--no-such-option"), "{error}");
            assert!(error["data"]["hint"].as_str().unwrap().contains("--eal"), "{error}");
        }
        daemon.ok("bdev_null_create", json!({"name": "n", "block_size": 512, "num_blocks": 8}));
    }
}

#[cfg(not(feature = "dpdk"))]
#[test]
fn without_dpdk_its_ports_are_refused_clearly() {
    let daemon = Daemon::start();
    let error = daemon.err("port_create_dpdk", json!({"name": "n", "devargs": "net_null0"}));
    assert!(error["message"].as_str().unwrap().contains("built without DPDK"), "{error}");
    let output = daemon::run_to_end(&["--eal", "--in-memory"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("built without DPDK"));
}
