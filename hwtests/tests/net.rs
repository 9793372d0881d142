//! Two guests behind one switch: what they send arrives, whatever rings and offloads they have, while the daemon is killed and
//! while a guest moves.

use anyhow::{Context, Result, ensure};
use hwtests::{Card, Daemon, Disk, QemuConfig, Shell, SocketRole};
use serde_json::json;
use std::fmt::Display;
use std::time::{Duration, Instant};

/// Guest G's card in network N has the MAC address 52:54:00:00:G:N, is called netN and has the address 10.77.N.G.
const CONFIGURE: &str = "
modprobe virtio_net
for card in /sys/class/net/*; do
    IFS=: read -r vendor _ _ _ guest net <\"$card/address\"
    [ \"$vendor\" = 52 ] || continue
    echo 1 >\"/proc/sys/net/ipv6/conf/${card##*/}/disable_ipv6\"
    busybox ip link set \"${card##*/}\" name net${net#0}
    busybox ip link set net${net#0} up
    busybox ip addr add 10.77.${net#0}.${guest#0}/24 dev net${net#0}
done
head -c 8M /dev/urandom >/tmp/data
mkfifo /tmp/nothing
";
/// Bytes of /tmp/data.
const DATA: u64 = 8 << 20;
/// Bytes of a frame around its payload.
const ETHERNET: u64 = 14;
const TRAFFIC_TIMEOUT: Duration = Duration::from_secs(60);

/// A bridge with a port for each of the guests 1 and 2.
struct Network {
    number: u8,
    name: &'static str,
    role: SocketRole,
    mtu: u16,
    pairs: u16,
    /// Of the card of each guest.
    properties: [&'static str; 2],
    /// Whether the card of each guest takes frames for the other side to segment.
    segmented: [bool; 2],
}

const ALONE: &str = "mrg_rxbuf=off,csum=off,gso=off,host_tso4=off,host_tso6=off,host_ufo=off,host_uso=off,\
                     guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ufo=off,guest_uso4=off,guest_uso6=off";

const NETWORKS: [Network; 3] = [
    Network {
        number: 1,
        name: "split",
        role: SocketRole::Server,
        mtu: 9000,
        pairs: 2,
        properties: ["host_mtu=9000"; 2],
        segmented: [true; 2],
    },
    Network {
        number: 2,
        name: "packed",
        role: SocketRole::Server,
        mtu: 9000,
        pairs: 2,
        properties: ["host_mtu=9000,packed=on"; 2],
        segmented: [true; 2],
    },
    // Guest 2 has no offloads at all: the switch does for it what guest 1 leaves to others.
    Network {
        number: 3,
        name: "plain",
        role: SocketRole::Client,
        mtu: 1500,
        pairs: 1,
        properties: ["", ALONE],
        segmented: [true, false],
    },
];

impl Network {
    /// The port of a guest: by its number, and once more where it moves to.
    fn port(&self, place: impl Display) -> String {
        format!("{}-{place}", self.name)
    }

    /// Makes a port of the bridge, and a guest's card for it.
    fn plug(&self, daemon: &Daemon, guest: u8, place: &str) -> Result<Card> {
        let port = self.port(place);
        let role = if self.role == SocketRole::Client { "client" } else { "server" };
        let params = json!({"ctrlr": port, "mtu": self.mtu, "num_queue_pairs": self.pairs, "socket_role": role});
        daemon.rpc("vhost_create_net_controller", params)?;
        daemon.rpc("bridge_add_port", json!({"bridge": self.name, "port": port}))?;
        let mac = format!("52:54:00:00:{guest:02}:{:02}", self.number);
        let properties = self.properties[usize::from(guest) - 1];
        Ok(Card { role: self.role, pairs: self.pairs, properties, ..Card::new(daemon.vhost_socket(&port), &mac) })
    }
}

/// A guest with a card in each of the networks. It has one CPU: QEMU emulates several at once only until the guest changes its
/// memory map while another CPU touches a device (`iotlb_to_section`), and cards make that likely.
fn configuration(daemon: &Daemon, networks: &[Network], guest: u8, place: &str) -> Result<QemuConfig> {
    let disk = format!("boot-{place}");
    daemon.serve_guest_image(&disk, json!({"readonly": true}))?;
    let cards = networks.iter().map(|network| network.plug(daemon, guest, place)).collect::<Result<_>>()?;
    Ok(QemuConfig { cards, vcpus: 1, ..QemuConfig::new(vec![Disk::new(daemon.vhost_socket(&disk))], CONFIGURE) })
}

/// The bridges and both guests, ready.
fn boot(daemon: &Daemon, networks: &[Network]) -> Result<[Shell; 2]> {
    for network in networks {
        daemon.rpc("bridge_create", json!({"name": network.name}))?;
    }
    let start = |guest: u8| Shell::start(configuration(daemon, networks, guest, &guest.to_string())?);
    let guests = [start(1)?, start(2)?];
    guests.iter().try_for_each(Shell::wait_ready)?;
    Ok(guests)
}

/// A counter of a port since the daemon started.
fn count(daemon: &Daemon, port: &str, counter: &str) -> Result<u64> {
    let ports = daemon.rpc("port_get", json!({"name": port}))?;
    ports[0]["stats"][counter].as_u64().with_context(|| format!("no {counter} in {ports}"))
}

/// Waits until a counter of a port has reached a value.
fn wait_for_count(daemon: &Daemon, port: &str, counter: &str, least: u64) -> Result<()> {
    let deadline = Instant::now() + TRAFFIC_TIMEOUT;
    while count(daemon, port, counter)? < least {
        ensure!(Instant::now() < deadline, "{port}: {counter} has not reached {least} in {TRAFFIC_TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// One second of TCP from a guest to the other; returns Mbit/s and the mean length of the frames that the sender gave the switch.
fn iperf(daemon: &Daemon, guests: &mut [Shell; 2], network: &Network, sender: u8, options: &str) -> Result<(f64, u64)> {
    let port = network.port(sender);
    let (packets, bytes) = (count(daemon, &port, "rx_packets")?, count(daemon, &port, "rx_bytes")?);
    let reverse = if sender == 1 { "" } else { "-R" };
    let command = format!("iperf3 -c 10.77.{}.2 -t 1 -f m {reverse} {options} | grep receiver", network.number);
    let output = guests[0].run(&command)?;
    let rate = output.lines().last().and_then(|line| line.split_once(" Mbits/sec")?.0.split(' ').next_back());
    let rate = rate.and_then(|rate| rate.parse().ok()).with_context(|| format!("no rate in {output}"))?;
    let (packets, bytes) = (count(daemon, &port, "rx_packets")? - packets, count(daemon, &port, "rx_bytes")? - bytes);
    Ok((rate, bytes / packets.max(1)))
}

/// A command that receives a stream and prints its digest. Its input never ends: at the end of its input nc would close its half.
fn receive(port: impl Display) -> String {
    format!("busybox nc -l -p {port} <>/tmp/nothing | sha256sum")
}

/// Sends /tmp/data through TCP from a guest to the other; both must find the same digest.
fn transfer(guests: &mut [Shell; 2], network: &Network, sender: u8) -> Result<()> {
    let [from, to] = if sender == 1 { [0, 1] } else { [1, 0] };
    guests[to].send(&receive(5001))?;
    let address = format!("10.77.{}.{}", network.number, 3 - sender);
    let send = format!("until busybox nc {address} 5001 </tmp/data; do sleep 0.1; done; sha256sum </tmp/data");
    let (sent, received) = (guests[from].run(&send)?, guests[to].wait(TRAFFIC_TIMEOUT)?);
    ensure!(digest(&sent)? == digest(&received)?, "{}: sent {sent}, received {received}", network.name);
    Ok(())
}

fn digest(output: &str) -> Result<&str> {
    output.lines().find_map(|line| line.strip_suffix("  -")).with_context(|| format!("no digest in {output}"))
}

/// All that guests may leave to others, then without segmentation, then without checksums either.
const OFFLOADS: [(&str, &str); 3] =
    [("all", "tx on sg on tso on gso on"), ("no segmentation", "tso off gso off"), ("no checksum", "tx off")];

fn sweep_offloads(daemon: &Daemon, guests: &mut [Shell; 2], network: &Network) -> Result<()> {
    let (number, longest) = (network.number, u64::from(network.mtu) + ETHERNET);
    for (offloads, settings) in OFFLOADS {
        for (guest, _) in guests.iter_mut().zip(network.segmented).filter(|(_, segmented)| *segmented) {
            guest.run(&format!("ethtool -K net{number} {settings}"))?;
        }
        for sender in [1, 2] {
            transfer(guests, network, sender)?;
            let (rate, frame) = iperf(daemon, guests, network, sender, "")?;
            println!("{:6} {offloads:15} from {sender}: {rate:6.0} Mbit/s in frames of {frame} bytes", network.name);
            let segmented = offloads == "all" && network.segmented[usize::from(sender) - 1];
            ensure!(segmented == (frame > longest), "segmented {segmented}, but frames of {frame} bytes");
            ensure!(network.mtu == 1500 || frame > 1500 + ETHERNET, "jumbo frames of {frame} bytes");
        }
    }
    Ok(())
}

/// Rings of a port that are in use.
fn rings(daemon: &Daemon, port: &str) -> Result<usize> {
    let guest = daemon.rpc("vhost_get_net_controllers", json!({"name": port}))?;
    let rings = guest[0]["rings"].as_array().with_context(|| format!("no rings in {guest}"))?;
    Ok(rings.iter().filter(|ring| ring["enabled"] == true).count())
}

/// Queue pairs come and go at run time, and each time all of them carry.
fn sweep_queue_pairs(daemon: &Daemon, guests: &mut [Shell; 2], network: &Network) -> Result<()> {
    for pairs in [1, 2] {
        for (index, guest) in guests.iter_mut().enumerate() {
            guest.run(&format!("ethtool -L net{} combined {pairs}", network.number))?;
            let in_use = rings(daemon, &network.port(index as u8 + 1))?;
            ensure!(in_use == 2 * pairs, "{}: {in_use} rings for {pairs} pairs", network.name);
        }
        let (rate, _) = iperf(daemon, guests, network, 1, "-P 4")?;
        println!("{:6} {pairs} pairs, 4 streams: {rate:6.0} Mbit/s", network.name);
    }
    Ok(())
}

#[test]
#[ignore = "boots guests"]
fn two_guests_exchange_traffic_with_every_ring_and_offload() -> Result<()> {
    let daemon = Daemon::start("0")?;
    let mut guests = boot(&daemon, &NETWORKS)?;
    guests[1].run("iperf3 -s -D")?;
    for network in &NETWORKS {
        let Network { number, mtu, .. } = network;
        guests[0].run(&format!("grep -x {mtu} /sys/class/net/net{number}/mtu"))?;
        // As large as goes without fragments.
        guests[0].run(&format!("busybox ping -c 3 -A -s {} 10.77.{number}.2 | grep ' 0% packet loss'", mtu - 28))?;
        sweep_offloads(&daemon, &mut guests, network)?;
        if network.pairs > 1 {
            sweep_queue_pairs(&daemon, &mut guests, network)?;
        }
    }
    let flows = daemon.rpc("flow_dump", json!({}))?.to_string();
    ensure!(flows.contains("eth_type(0x0800)") && flows.contains("actions:"), "{flows}");
    no_packet_was_refused(&daemon)
}

/// No guest sent anything wrong, and the switch sent none anything wrong.
fn no_packet_was_refused(daemon: &Daemon) -> Result<()> {
    let ports = daemon.rpc("port_get", json!({}))?;
    for port in ports.as_array().context("a list of ports")? {
        let refused = ["rx_invalid", "tx_invalid", "rx_no_buffer"].iter().filter(|name| port["stats"][**name] != 0);
        ensure!(refused.count() == 0, "{port}");
    }
    Ok(())
}

/// Starts a stream to guest `number` in each of the networks; they go on until [`end_streams`].
fn start_streams(from: &mut Shell, to: &mut Shell, number: u8, networks: &[Network]) -> Result<()> {
    let numbers = networks.iter().map(|network| network.number.to_string()).collect::<Vec<_>>().join(" ");
    let all = |each: &str| format!("{{ for net in {numbers}; do {each} & done; wait; touch /tmp/ended; }} &");
    to.run(&all(&format!("{} >/tmp/digest$net", receive("500$net"))))?;
    let listening = format!("[ $(cat /proc/net/tcp /proc/net/tcp6 | grep -c ' 0A ') = {} ]", networks.len());
    to.run(&format!("until {listening}; do sleep 0.1; done"))?;
    from.run(&all(&format!(
        "mkfifo /tmp/copy$net; sha256sum </tmp/copy$net >/tmp/digest$net & \
         (until [ -e /tmp/stop ]; do cat /tmp/data; sleep 0.2; done) | tee /tmp/copy$net | busybox nc 10.77.$net.{number} 500$net"
    )))?;
    Ok(())
}

/// Ends the streams; both sides must find the same digests.
fn end_streams(from: &mut Shell, to: &mut Shell, networks: &[Network]) -> Result<()> {
    let digests = "until [ -e /tmp/ended ]; do sleep 0.1; done; cat /tmp/digest*";
    let (sent, received) = (from.run(&format!("touch /tmp/stop; {digests}"))?, to.run(digests)?);
    let list = |output: &str| {
        output.lines().filter_map(|line| line.strip_suffix("  -")).map(str::to_owned).collect::<Vec<_>>()
    };
    ensure!(list(&sent).len() == networks.len() && list(&sent) == list(&received), "sent {sent}, received {received}");
    Ok(())
}

/// TCP streams go on over kills of the daemon, and nothing is needed but the daemon's restart.
#[test]
#[ignore = "boots guests"]
fn streams_go_on_over_kills_of_the_daemon() -> Result<()> {
    const KILLS: u32 = 3;
    /// A second is what we aim at; a loaded machine takes its time.
    const RESUMED: Duration = Duration::from_secs(10);
    let mut daemon = Daemon::start("0")?;
    let [mut from, mut to] = boot(&daemon, &NETWORKS)?;
    start_streams(&mut from, &mut to, 2, &NETWORKS)?;
    // TCP waits longer the longer nothing comes; these do not.
    from.run("for net in 1 2 3; do busybox ping -i 0.1 10.77.$net.2 >/dev/null & done")?;
    for kill in 1..=KILLS {
        for network in &NETWORKS {
            wait_for_count(&daemon, &network.port(1), "rx_bytes", DATA)?;
        }
        daemon.kill_and_restart()?;
        let back = Instant::now();
        for network in &NETWORKS {
            wait_for_count(&daemon, &network.port(2), "tx_packets", 1)?;
            wait_for_count(&daemon, &network.port(1), "tx_packets", 1)?;
            println!("kill {kill}: {} resumed {} ms after the restart", network.name, back.elapsed().as_millis());
        }
        ensure!(back.elapsed() < RESUMED, "traffic resumed after {:?}", back.elapsed());
    }
    end_streams(&mut from, &mut to, &NETWORKS)
}

/// Waits until a bridge knows guest 1 behind this port.
fn wait_for_port(daemon: &Daemon, network: &Network, port: &str) -> Result<()> {
    let deadline = Instant::now() + TRAFFIC_TIMEOUT;
    let mac = format!("52:54:00:00:01:{:02}", network.number);
    loop {
        let stations = daemon.rpc("bridge_get_fdb", json!({"bridge": network.name}))?;
        let mut list = stations.as_array().context("a list of stations")?.iter();
        if list.any(|station| station["mac"] == *mac && station["port"] == port) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{mac} is not behind {port}: {stations}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A stream to a guest goes on while the guest moves to other ports of the bridges. In the other network both guests are silent, and the
/// guest cannot announce itself: there the bridge learns where it is from the RARP that the front-end has us send.
#[test]
#[ignore = "boots guests"]
fn a_guest_moves_under_load_and_the_bridge_relearns_it() -> Result<()> {
    let [loaded, silent, _] = NETWORKS;
    let silent =
        Network { properties: ["host_mtu=9000,packed=on,guest_announce=off", "host_mtu=9000,packed=on"], ..silent };
    let networks = [loaded, silent];
    let daemon = Daemon::start("0")?;
    let [mut guest, mut peer] = boot(&daemon, &networks)?;
    guest.run("busybox ping -c 1 -W 5 10.77.2.2")?;
    wait_for_port(&daemon, &networks[1], "packed-1")?;
    let incoming = daemon.file("migration");
    let config = configuration(&daemon, &networks, 1, "moved")?;
    let mut moved = Shell::start(QemuConfig { incoming: Some(incoming.clone()), ..config })?;
    moved.guest().qmp()?;

    start_streams(&mut peer, &mut guest, 1, &networks[..1])?;
    wait_for_count(&daemon, "split-1", "tx_bytes", DATA)?;
    let state = guest.guest().migrate(&incoming)?;
    println!("moved in {} ms, downtime {} ms", state["total-time"], state["downtime"]);
    moved.take_over(guest);

    wait_for_port(&daemon, &networks[1], "packed-moved")?;
    wait_for_port(&daemon, &networks[0], "split-moved")?;
    wait_for_count(&daemon, "split-moved", "tx_bytes", DATA)?;
    end_streams(&mut peer, &mut moved, &networks[..1])?;
    peer.run("busybox ping -c 1 -W 5 10.77.2.1").map(drop)
}
