//! CPU time of the initiator an I/O, over loopback, at several depths, digests off and on.
//!
//! Initiator and target take turns on one thread, so that nothing waits and nothing spins: time is taken around the
//! initiator's part alone. `cargo run --release -p nvme --example read_cost`, best when the machine is otherwise idle.

use block::{BlockChannel, BlockRequest, Completions, Op, Request};
use clock::Cycles;
use guest_memory::IoBuffers;
use nvme::target::{Access, Connection, MemoryStore, Namespace, Target, TargetConfig};
use nvme::{AttachParams, NvmeController, no_events};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const NQN: &str = "nqn.2024-01.org.sluice:bench";
const DISK: usize = 64 << 20;

/// The target's side, to be turned by whoever has the thread.
struct Peer {
    target: Arc<Target>,
    listener: TcpListener,
    clients: Vec<(TcpStream, Connection)>,
    buffer: Vec<u8>,
}

impl Peer {
    fn turn(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).expect("a socket");
            self.clients.push((stream, Connection::new(self.target.clone())));
        }
        let now = Cycles::now();
        for (stream, connection) in &mut self.clients {
            while let Ok(count @ 1..) = stream.read(&mut self.buffer) {
                connection.input(&self.buffer[..count], now);
            }
            connection.poll(now);
            while !connection.output().is_empty() {
                match stream.write(connection.output()) {
                    Ok(count) => connection.consume(count),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("target: {error}"),
                }
            }
        }
    }
}

// Requests are boxed at the block seam.
#[allow(clippy::vec_box)]
struct Load {
    op: Op,
    len: u64,
    depth: usize,
    idle: Vec<Box<Request>>,
    next: u64,
}

impl Load {
    fn new(op: Op, len: u64, depth: usize) -> Load {
        let idle = (0..depth).map(|_| Request::new(IoBuffers::anonymous(len as usize).expect("memory"))).collect();
        Load { op, len, depth, idle, next: 0 }
    }

    /// Keeps `depth` requests under way until `count` are done. Returns the cycles that the initiator used.
    fn run(&mut self, channel: &mut dyn BlockChannel, peer: &mut Peer, count: usize) -> Cycles {
        let mut done = Completions::with_capacity(self.depth);
        let (mut completed, mut used) = (0, 0);
        while completed < count {
            let start = Cycles::now();
            while let Some(mut request) = self.idle.pop() {
                let offset = self.next * 7919 * self.len % DISK as u64;
                self.next += 1;
                (request.op, request.offset, request.len) = (self.op, offset, self.len);
                channel.submit(BlockRequest::new(request), &mut done);
            }
            channel.poll(start, &mut done);
            used += Cycles::now().since(start).0;
            peer.turn();
            let start = Cycles::now();
            channel.poll(start, &mut done);
            completed += done.len();
            for completed in done.drain() {
                assert_eq!(completed.status, block::Status::Ok);
                self.idle.push(completed.request);
            }
            used += Cycles::now().since(start).0;
            peer.turn();
        }
        Cycles(used * count as u64 / completed as u64)
    }
}

fn attach(hdgst: bool, ddgst: bool) -> (NvmeController, Peer) {
    let target = Target::new(TargetConfig::new(NQN), 1);
    let uuid = uuid::Uuid::from_u128(1);
    let store = Arc::new(MemoryStore::new(DISK));
    target.set_namespace(1, Namespace { store, block_size: 512, access: Access::ReadWrite, uuid });
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    listener.set_nonblocking(true).expect("a socket");
    let mut params = AttachParams::new("Nvme0", listener.local_addr().expect("bound"), NQN);
    (params.hdgst, params.ddgst) = (hdgst, ddgst);
    let mut peer = Peer { target, listener, clients: Vec::new(), buffer: vec![0; 1 << 20] };
    let attached = Arc::new(AtomicBool::new(false));
    let turning = std::thread::spawn({
        let attached = attached.clone();
        move || {
            while !attached.load(Ordering::Acquire) {
                peer.turn();
            }
            peer
        }
    });
    let controller = NvmeController::attach(&params, no_events()).expect("attach");
    attached.store(true, Ordering::Release);
    (controller, turning.join().expect("no panic"))
}

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    println!("| case | depth | digests | ns an I/O |\n|---|---|---|---|");
    for (hdgst, ddgst) in [(false, false), (true, true)] {
        let (controller, mut peer) = attach(hdgst, ddgst);
        let mut channel = controller.namespaces()[0].1.open_channel().expect("a queue");
        let cases = [
            ("4 KiB read", Op::Read, 4096, 1),
            ("4 KiB read", Op::Read, 4096, 8),
            ("4 KiB read", Op::Read, 4096, 32),
            ("4 KiB read", Op::Read, 4096, 120),
            ("4 KiB write", Op::Write, 4096, 32),
            ("128 KiB read", Op::Read, 131_072, 8),
            ("128 KiB write", Op::Write, 131_072, 8),
        ];
        for (name, op, len, depth) in cases {
            let count = (if quick { 2_000 } else { 100_000 }) / (len as usize / 4096).min(16);
            let mut load = Load::new(op, len, depth);
            load.run(channel.as_mut(), &mut peer, count / 10);
            // Best of several windows: the rest is noise of the machine.
            let best = (0..5).map(|_| load.run(channel.as_mut(), &mut peer, count)).min().unwrap_or_default();
            let digests = if ddgst { "header, data" } else { "none" };
            println!("| {name} | {depth} | {digests} | {:.0} |", best.as_nanos() as f64 / count as f64);
        }
        drop(channel);
        drop(controller);
        let end = Cycles::now() + Cycles::from(Duration::from_millis(50));
        while Cycles::now() < end {
            peer.turn();
        }
    }
}
