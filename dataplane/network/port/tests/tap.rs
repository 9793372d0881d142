//! The kernel's network stack at the other end of a tap.

use clock::Cycles;
use engine::{Engine, IdlePolicy, Source, WorkerHandle};
use packet::{Burst, L4Checksum, Packet, Pool};
use port::{Port, PortError, PortKind, PortShard, TapParams, TapPort};
use std::net::UdpSocket;
use std::process::Command;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

const REPLY_TIMEOUT: Duration = Duration::from_secs(20);
const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

struct Rig {
    port: TapPort,
    shard: Box<dyn PortShard>,
    pool: Pool,
    _engine: Engine,
}

/// `None`, with a word about it, where the test may not make interfaces.
fn rig(queues: u16) -> Option<Rig> {
    let engine = Engine::start(&[0], IdlePolicy::default()).unwrap();
    let pool = Pool::new(1024, None).unwrap();
    let name = format!("slt{}q{queues}", std::process::id());
    let params = TapParams { name, queues, mtu: 1400, pool: pool.clone() };
    let port = match TapPort::open(params) {
        Err(PortError::Os { what, source }) => {
            eprintln!("skipped: {what}: {source}");
            return None;
        }
        other => other.unwrap(),
    };
    let shard = port.open_shard(&engine.workers()[0]).unwrap();
    Some(Rig { port, shard, pool, _engine: engine })
}

impl Rig {
    /// Waits for a packet of which `is` holds.
    fn receive(&mut self, is: impl Fn(&Packet) -> bool) -> Packet {
        let end = Instant::now() + REPLY_TIMEOUT;
        loop {
            let mut burst = Burst::new();
            self.shard.rx(&mut burst);
            if let Some(packet) = burst.drain(..).find(&is) {
                return packet;
            }
            assert!(Instant::now() < end, "waited in vain");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn send(&mut self, frame: &[u8]) {
        let mut packet = self.pool.take_one().unwrap();
        assert!(packet.extend_from_slice(frame, &self.pool));
        let mut burst = Burst::new();
        burst.push(packet);
        self.shard.tx(&mut burst);
    }
}

fn arp_reply(to: &[u8; 6], our_ip: [u8; 4], their_ip: [u8; 4]) -> Vec<u8> {
    let head = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2];
    [to, &OUR_MAC[..], &head, &OUR_MAC, &our_ip, to, &their_ip].concat()
}

#[test]
fn the_kernel_answers_and_leaves_checksums_to_us() {
    let Some(mut rig) = rig(1) else { return };
    let name = format!("slt{}q1", std::process::id());
    let status = Command::new("ip").args(["addr", "add", "198.19.254.1/30", "dev", &name]).status();
    assert!(status.expect("iproute2").success());
    let info = rig.port.info();
    assert_eq!((info.kind, info.mtu, info.rx_queues), (PortKind::Tap, 1400, 1));

    // It asks who has the address, is told, and sends.
    let socket = UdpSocket::bind("198.19.254.1:0").unwrap();
    let payload: Vec<u8> = (0..999_u32).map(|at| at as u8).collect();
    socket.send_to(&payload, "198.19.254.2:9").unwrap();
    let asked = rig.receive(|packet| packet.data()[12..14] == [8, 6] && packet.data()[38..42] == [198, 19, 254, 2]);
    assert_eq!(asked.data()[6..12], info.mac);
    drop(asked);
    rig.send(&arp_reply(&info.mac, [198, 19, 254, 2], [198, 19, 254, 1]));
    let mut sent = rig.receive(|packet| packet.data()[12..14] == [8, 0] && packet.data()[30..34] == [198, 19, 254, 2]);
    assert_eq!(sent.data()[..6], OUR_MAC);
    assert_eq!(sent.data()[42..], payload);
    assert_eq!(sent.offload().checksum, Some(L4Checksum::Udp));

    // Sent back with addresses and ports exchanged and the checksum still open, it arrives.
    let bytes = sent.data_mut();
    let (source, target) = bytes.split_at_mut(6);
    source.swap_with_slice(&mut target[..6]);
    let (source, target) = bytes[26..].split_at_mut(4);
    source.swap_with_slice(&mut target[..4]);
    let (source, target) = bytes[34..].split_at_mut(2);
    source.swap_with_slice(&mut target[..2]);
    let mut burst = Burst::new();
    burst.push(sent);
    rig.shard.tx(&mut burst);
    socket.set_read_timeout(Some(REPLY_TIMEOUT)).unwrap();
    let mut got = [0; 2000];
    let (len, from) = socket.recv_from(&mut got).unwrap();
    assert_eq!((&got[..len], from.to_string()), (payload.as_slice(), "198.19.254.2:9".to_owned()));

    let Rig { port, shard, pool, .. } = rig;
    drop(shard);
    drop(port);
    assert_eq!(pool.free_count(), pool.capacity(), "buffers were lost");
}

#[test]
fn several_queues_work_with_an_empty_pool() {
    let Some(mut rig) = rig(4) else { return };
    assert_eq!(rig.port.info().tx_queues, 4);
    let held: Vec<_> = std::iter::from_fn(|| rig.pool.take_one()).collect();
    let mut burst = Burst::new();
    assert_eq!(rig.shard.rx(&mut burst), 0);
    assert!(rig.shard.arm(), "left for want of buffers");
    drop(held);
    // IPv6 announces itself on an interface that comes up.
    rig.receive(|packet| packet.data()[12..14] == [0x86, 0xdd]);
    assert!(!rig.shard.arm());
}

/// Tells which worker received a datagram.
struct Listener {
    shard: Box<dyn PortShard>,
    worker: usize,
    heard: Sender<usize>,
}

impl Source for Listener {
    fn poll(&mut self, _: Cycles) -> usize {
        let mut burst = Burst::new();
        let received = self.shard.rx(&mut burst);
        let datagrams = burst.iter().filter(|packet| packet.data()[12..14] == [8, 0]);
        datagrams.for_each(|_| self.heard.send(self.worker).unwrap());
        received
    }

    fn arm(&mut self) -> bool {
        self.shard.arm()
    }

    fn quiesce(&mut self) {
        self.shard.quiesce();
    }
}

#[test]
fn a_queue_moves_and_wakes_its_new_worker() {
    // They sleep whenever they can.
    let engine = match Engine::start(&[0, 1], IdlePolicy::spin_for(Duration::ZERO)) {
        Err(error) => return println!("skipped: {error}"),
        Ok(engine) => engine,
    };
    let (pool, name) = (Pool::new(1024, None).unwrap(), format!("slt{}m", std::process::id()));
    let port = match TapPort::open(TapParams { name: name.clone(), queues: 1, mtu: 1400, pool }) {
        Err(PortError::Os { what, source }) => return println!("skipped: {what}: {source}"),
        other => other.unwrap(),
    };
    let (heard, hears) = mpsc::channel();
    let listen = |worker: &WorkerHandle| {
        let shard = port.open_shard(worker).unwrap();
        worker.add("tap", Box::new(Listener { shard, worker: worker.id(), heard: heard.clone() }))
    };
    let sources: Vec<_> = engine.workers().iter().map(listen).collect();
    let run = |words: &[&str]| assert!(Command::new("ip").args(words).status().expect("iproute2").success());
    run(&["addr", "add", "198.19.254.5/30", "dev", &name]);
    run(&["neigh", "add", "198.19.254.6", "lladdr", "02:00:00:00:00:02", "dev", &name]);
    let socket = UdpSocket::bind("198.19.254.5:0").unwrap();
    for worker in [0, 1, 0, 1, 1] {
        port.move_rx_queue(0, &engine.workers()[worker]).unwrap();
        // Until the first has put it down, it receives.
        let end = Instant::now() + REPLY_TIMEOUT;
        loop {
            socket.send_to(b"?", "198.19.254.6:9").unwrap();
            if hears.recv_timeout(REPLY_TIMEOUT).expect("a sleeping worker was not woken") == worker {
                break;
            }
            assert!(Instant::now() < end, "the queue did not move");
        }
        for _ in 0..20 {
            socket.send_to(b"?", "198.19.254.6:9").unwrap();
            assert_eq!(hears.recv_timeout(REPLY_TIMEOUT), Ok(worker), "a sleeping worker was not woken");
        }
    }
    let queue = port.rx_queues()[0];
    assert!(queue.worker == Some(1) && queue.packets >= 100);
    assert!(
        matches!(port.move_rx_queue(1, &engine.workers()[0]), Err(PortError::Invalid(invalid)) if invalid.field == "queue")
    );
    engine.workers().iter().zip(sources).for_each(|(worker, source)| drop(worker.remove(source)));
}

#[test]
fn invalid_tap_parameters_are_refused() {
    let pool = Pool::new(64, None).unwrap();
    let open =
        |name: &str, queues, mtu| TapPort::open(TapParams { name: name.to_owned(), queues, mtu, pool: pool.clone() });
    for (name, queues) in [("", 1), ("sixteen-bytes-00", 1), ("a/b", 1), ("t%d", 1), ("ok", 0), ("ok", 257)] {
        assert!(matches!(open(name, queues, 1500), Err(PortError::Invalid(_))), "{name}, {queues}");
    }
    assert!(matches!(open("ok", 1, 67), Err(PortError::Invalid(invalid)) if invalid.field == "mtu"));
}
