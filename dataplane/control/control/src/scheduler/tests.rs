//! Queues of ports under traffic, on real workers: spread by load, and every packet in its order.

use super::*;
use crate::{Control, Log};
use ::port::{
    Assignment, Deal, MemoryPeer, MemoryPort, PortError, PortInfo, PortKind, PortShard, PortStats, QueueReport, Queues,
};
use api::config::Call;
use clock::Cycles;
use crossbeam::queue::ArrayQueue;
use engine::{Engine, IdlePolicy};
use flow::Action;
use flow::text::FlowMatch;
use l2::{PortConfig, Switch};
use packet::{Burst, Packet, Pool};
use serde_json::json;
use tokio::runtime::Runtime;

const TIMEOUT: Duration = Duration::from_secs(20);
/// Ports that send, and the number of the one that receives.
const SOURCES: u32 = 4;
const SINK: u32 = SOURCES + 1;
/// Packets between two looks, and packets under way.
const ROUND: u64 = 500;
const WINDOW: u64 = 128;
/// What it costs to receive a packet: so the workers have something to do, however fast the machine is.
const COST: Duration = Duration::from_micros(20);

/// A port with one queue, which can be moved.
struct Lane(Arc<Assignment<Arc<ArrayQueue<Packet>>>>);

struct Shard(Queues<Arc<ArrayQueue<Packet>>>);

impl Port for Lane {
    fn open_shard(&self, worker: &WorkerHandle) -> Result<Box<dyn PortShard>, PortError> {
        Ok(Box::new(Shard(self.0.open(worker))))
    }

    fn info(&self) -> PortInfo {
        PortInfo { kind: PortKind::Memory, mac: [0; 6], mtu: 1500, link_up: true, rx_queues: 1, tx_queues: 0 }
    }

    fn stats(&self) -> Vec<Arc<PortStats>> {
        Vec::new()
    }

    fn move_rx_queue(&self, queue: u16, worker: &WorkerHandle) -> Result<(), PortError> {
        self.0.assign(queue, worker.id())
    }

    fn rx_queues(&self) -> Vec<QueueReport> {
        self.0.report()
    }
}

impl PortShard for Shard {
    fn rx(&mut self, burst: &mut Burst) -> usize {
        let (before, Shard(queues)) = (burst.len(), self);
        for at in 0..queues.held.len() {
            let held = burst.len();
            while !burst.is_full()
                && let Some(packet) = queues.held[at].queue.pop()
            {
                let until = Cycles::now() + COST.into();
                while Cycles::now() < until {}
                burst.push(packet);
            }
            queues.count(at, burst.len() - held);
        }
        burst.len() - before
    }

    fn tx(&mut self, burst: &mut Burst) {
        burst.clear();
    }

    fn arm(&mut self) -> bool {
        !self.0.held.is_empty() || self.0.is_waiting()
    }

    fn quiesce(&mut self) {
        self.0.settle();
    }
}

struct Rig {
    runtime: Runtime,
    control: Arc<Control>,
    switch: Arc<Switch>,
    lanes: Vec<Arc<ArrayQueue<Packet>>>,
    sink: Arc<MemoryPeer>,
    pool: Pool,
    watch: Watch,
    /// By source.
    sent: Vec<u64>,
    received: Vec<u64>,
}

impl Rig {
    /// `None`, with a word about it, where there are no two CPUs.
    fn new() -> Option<Rig> {
        let engine = match Engine::start(&[0, 1], IdlePolicy::default()) {
            Ok(engine) => engine,
            Err(error) => {
                println!("skipped: {error}");
                return None;
            }
        };
        let settings = crate::Settings {
            state_dir: None,
            vhost_dir: std::env::temp_dir(),
            vhost_socket_mode: 0o600,
            packet_buffers: 1024,
            offload_rules_per_port: None,
            eal: None,
            idle: IdlePolicy::default(),
        };
        let control = Control::new(engine, Log::silent(), settings).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let switch = runtime.block_on(control.network.make_switch()).unwrap();
        let (pool, (port, sink)) = (Pool::new(1024, None).unwrap(), MemoryPort::new(1024));
        let add = |number: u32, port: Arc<dyn Port>| {
            let config = PortConfig { number: Some(number), upcall_pps: None };
            switch.add_port(&number.to_string(), port, &config).unwrap();
        };
        add(SINK, Arc::new(port));
        let lane = |number: u32| {
            // The flow is there before its port: no packet asks for one.
            let FlowMatch { key, mask } = format!("in_port({number}),eth_type(0x88b5)").parse().unwrap();
            switch.add_flow(&key, &mask, vec![Action::Output(SINK)]).unwrap();
            let queue = Arc::new(ArrayQueue::new(WINDOW as usize));
            add(number, Arc::new(Lane(Assignment::new([queue.clone()], Deal::InTurn))));
            queue
        };
        let lanes = (1..=SOURCES).map(lane).collect();
        let counts = vec![0; SOURCES as usize];
        let (watch, sent, received) = (Watch::default(), counts.clone(), counts);
        Some(Rig { runtime, control, switch, lanes, sink, pool, watch, sent, received })
    }

    /// Sends numbered packets by every source, and sees that they arrive in order.
    fn exchange(&mut self, packets: u64) {
        let (end, count) = (Instant::now() + TIMEOUT, u64::from(SOURCES));
        let target = self.received.iter().sum::<u64>() + packets;
        let mut under_way = 0;
        while under_way > 0 || self.received.iter().sum::<u64>() < target {
            let sent: u64 = self.sent.iter().sum();
            if sent < target && under_way < WINDOW {
                self.send((sent % count) as usize);
                under_way += 1;
            }
            under_way -= self.take();
            assert!(Instant::now() < end, "packets were lost: {:?} {:?}", self.sent, self.received);
        }
    }

    fn send(&mut self, source: usize) {
        let mut packet = self.pool.take_one().unwrap();
        let number = self.sent[source].to_be_bytes();
        let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, source as u8], &[0x88, 0xb5], &number, &[0; 38]].concat();
        assert!(packet.extend_from_slice(&frame, &self.pool));
        self.lanes[source].push(packet).expect("there is room for all that are under way");
        self.sent[source] += 1;
        // As a port does when something comes: the workers may sleep.
        self.control.scheduler.workers.all().iter().for_each(|worker| worker.waker().wake());
    }

    fn take(&mut self) -> u64 {
        let mut taken = 0;
        while let Some(packet) = self.sink.receive() {
            let source = usize::from(packet.data()[11]);
            let number = u64::from_be_bytes(packet.data()[14..22].try_into().unwrap());
            assert_eq!(number, self.received[source], "out of order, of source {source}");
            self.received[source] += 1;
            taken += 1;
        }
        taken
    }

    /// A period with traffic, and a look at its end.
    fn period(&mut self) {
        self.exchange(ROUND);
        let (watch, scheduler) = (&mut self.watch, &self.control.scheduler);
        self.runtime.block_on(async {
            watch.look(scheduler).await;
            // Moves that it began.
            while scheduler.moving.lock().values().any(|turn| Arc::strong_count(turn) > 1) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }

    fn places(&self) -> Vec<usize> {
        let lanes = self.switch.ports().into_iter().filter(|port| port.number != SINK);
        lanes.map(|port| port.port.rx_queues()[0].worker.unwrap()).collect()
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Rig) -> bool) {
        let end = Instant::now() + TIMEOUT;
        while !holds(self) {
            assert!(Instant::now() < end, "{what}: {:?} {:?}", self.places(), self.control.scheduler.loads());
            self.period();
        }
    }

    fn call(&self, method: &str, params: serde_json::Value) {
        let Call { method, params } = Call::new(method, params);
        self.runtime.block_on(self.control.call(&method, params)).unwrap();
    }
}

#[test]
fn queues_are_spread_by_load_and_packets_stay_in_order() {
    let Some(mut rig) = Rig::new() else { return };
    assert_eq!(rig.places(), [0; SOURCES as usize], "all of the work is the first worker's");
    (0..3).for_each(|_| rig.period());
    assert_eq!(rig.places(), [0; SOURCES as usize], "nothing moves unless it is wanted");

    let thresholds = Thresholds { load: 0.2, improvement: 0.25 };
    rig.control.scheduler.set(Settings { dynamic: true, period: Duration::from_millis(1), thresholds });
    rig.until("spread", |rig| rig.places().contains(&1));
    let by_load = rig.control.scheduler.moves()[1].1;
    let events = rig.control.observe.events.since(0, usize::MAX);
    let told = events.iter().filter(|event| json!(event)["detail"].as_str().unwrap_or_default().ends_with("by load"));
    assert!(by_load > 0 && told.count() as u64 == by_load);

    // By hand all go to the second worker, and none leaves it.
    for source in 1..=SOURCES {
        rig.call("port_move_queue", json!({"name": source.to_string(), "queue": 0, "worker": 1}));
    }
    (0..5).for_each(|_| rig.period());
    assert_eq!(rig.places(), [1; SOURCES as usize]);
    assert!(rig.control.scheduler.loads().queues.iter().all(|queue| queue.allowed.is_empty()));
    // Two are given back: one goes.
    for source in ["1", "2"] {
        rig.call("port_move_queue", json!({"name": source, "queue": 0}));
    }
    rig.until("spread anew", |rig| rig.places().contains(&0));
    assert_eq!(rig.places()[2..], [1, 1], "those that are pinned stay");
    rig.exchange(ROUND);
    assert_eq!(rig.sent, rig.received);
    assert_eq!(rig.pool.free_count(), rig.pool.capacity());
}
