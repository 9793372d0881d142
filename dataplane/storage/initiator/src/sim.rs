//! A network under virtual time between an initiator and a target, and the disk as it must be.
//!
//! The network delays, cuts, truncates and swallows. The owner sets the time, turns both sides, and goes on to the next
//! deadline. The same seed gives the same run.

use crate::target::{MemoryStore, ServerConnection, Store, TargetService};
use block::{Op, Request, Status};
use clock::Cycles;
use memory::IoBuffers;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use testkit::Rng;
use transport::io::{ByteStream, Gather, Scatter};

/// Bytes on the way in one direction at most.
const WINDOW: usize = 300_000;

/// Bytes of a block of a [`DiskModel`].
pub const BLOCK: usize = 512;

/// A random time in `range` of microseconds.
pub fn random_micros(rng: &mut Rng, range: Range<u64>) -> Cycles {
    Cycles::from(Duration::from_micros(rng.range(range)))
}

/// How a simulated network behaves.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Time on the way, in microseconds, drawn for each piece.
    pub latency: Range<u64>,
    /// Bytes that one call moves at most.
    pub max_run: u64,
    /// Bytes that were sent before the host reset its connection may still arrive.
    pub delivers_after_reset: bool,
}

/// One direction of a connection: bytes and when they arrive.
#[derive(Debug, Default)]
struct Lane {
    bytes: VecDeque<(Cycles, Vec<u8>)>,
    last: Cycles,
}

impl Lane {
    fn len(&self) -> usize {
        self.bytes.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    fn push(&mut self, due: Cycles, bytes: Vec<u8>) {
        self.last = self.last.max(due);
        self.bytes.push_back((self.last, bytes));
    }

    fn due(&self) -> Cycles {
        self.bytes.front().map_or(Cycles::NEVER, |(due, _)| *due)
    }

    fn pop(&mut self, now: Cycles) -> Option<Vec<u8>> {
        if self.due() <= now { self.bytes.pop_front().map(|(_, bytes)| bytes) } else { None }
    }
}

#[derive(Debug)]
struct Path<C> {
    to_target: Lane,
    to_host: Lane,
    /// The error that the host sees.
    host_error: Option<ErrorKind>,
    /// The target closed the connection: the host sees the end after the bytes that are on the way.
    closed_by_target: bool,
    /// Bytes vanish in both directions, and neither side notices.
    swallows: bool,
    /// Absent once the target has lost the connection.
    connection: Option<C>,
}

struct State<T: TargetService> {
    now: Cycles,
    rng: Rng,
    config: NetworkConfig,
    target: Arc<T>,
    paths: Vec<Path<T::Connection>>,
    down_until: Cycles,
}

/// The network to one target, with its connections.
pub struct Network<T: TargetService>(Arc<Mutex<State<T>>>);

impl<T: TargetService> Clone for Network<T> {
    fn clone(&self) -> Network<T> {
        Network(self.0.clone())
    }
}

impl<T: TargetService> fmt::Debug for Network<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").finish_non_exhaustive()
    }
}

impl<T: TargetService> Network<T> {
    /// A network to `target`.
    pub fn new(target: Arc<T>, config: NetworkConfig, seed: u64, now: Cycles) -> Network<T> {
        let (rng, paths) = (Rng::new(seed), Vec::new());
        Network(Arc::new(Mutex::new(State { now, rng, config, target, paths, down_until: now })))
    }

    /// Makes a connection.
    pub fn connect(&self) -> io::Result<Arc<dyn ByteStream>> {
        let mut state = self.0.lock();
        if state.now < state.down_until {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let connection = Some(state.target.accept());
        state.paths.push(Path {
            to_target: Lane::default(),
            to_host: Lane::default(),
            host_error: None,
            closed_by_target: false,
            swallows: false,
            connection,
        });
        Ok(Arc::new(SimStream { network: self.clone(), path: state.paths.len() - 1 }))
    }

    /// The target side at `now`: delivers, executes, answers.
    pub fn turn(&self, now: Cycles) {
        let mut state = self.0.lock();
        state.now = now;
        let State { target, paths, rng, config, .. } = &mut *state;
        target.tick(now);
        for path in paths {
            path.turn(rng, config, now);
        }
    }

    /// When [`turn`](Network::turn) or the host has something to do.
    pub fn deadline(&self) -> Cycles {
        let state = self.0.lock();
        let live = state.paths.iter().filter(|path| path.host_error.is_none());
        let host = live.map(|path| path.to_host.due()).min().unwrap_or(Cycles::NEVER);
        let deadline = |path: &Path<T::Connection>| match &path.connection {
            Some(connection) => connection.deadline().min(path.to_target.due()),
            None => Cycles::NEVER,
        };
        let target = state.paths.iter().map(deadline).min().unwrap_or(Cycles::NEVER);
        host.min(target).min(state.target.deadline())
    }

    /// The connections that the host has, by number.
    pub fn live_paths(&self) -> Vec<usize> {
        let state = self.0.lock();
        (0..state.paths.len()).filter(|&at| state.paths[at].host_error.is_none()).collect()
    }

    /// Cuts a connection: what is on the way is lost or, with `delivers`, still arrives at the target. Both sides know; but if
    /// the path swallows, only the host.
    pub fn cut(&self, path: usize, delivers: bool) {
        let mut state = self.0.lock();
        let now = state.now;
        state.paths[path].cut(ErrorKind::ConnectionReset, delivers, now);
    }

    /// Cuts every connection, with what is on the way.
    pub fn cut_all(&self) {
        self.live_paths().into_iter().for_each(|path| self.cut(path, false));
    }

    /// From now on the bytes of a connection vanish, and neither side notices.
    pub fn swallow(&self, path: usize) {
        self.0.lock().paths[path].swallows = true;
    }

    /// Refuses connections until `time`.
    pub fn go_down_until(&self, time: Cycles) {
        self.0.lock().down_until = time;
    }
}

impl<C: ServerConnection> Path<C> {
    fn cut(&mut self, error: ErrorKind, delivers: bool, now: Cycles) {
        self.host_error.get_or_insert(error);
        if delivers {
            return; // the target learns it after the last byte
        }
        self.to_target.bytes.clear();
        if let Some(mut connection) = self.connection.take_if(|_| !self.swallows) {
            connection.disconnect(now);
        }
    }

    fn turn(&mut self, rng: &mut Rng, config: &NetworkConfig, now: Cycles) {
        let Some(connection) = &mut self.connection else { return };
        while let Some(bytes) = self.to_target.pop(now) {
            connection.receive(&bytes, now);
        }
        connection.poll(now);
        loop {
            let bytes = connection.output().to_vec();
            if bytes.is_empty() {
                break;
            }
            connection.consume(bytes.len());
            if !self.swallows {
                let due = now + random_micros(rng, config.latency.clone());
                self.to_host.push(due, bytes);
            }
        }
        let host_is_gone = self.host_error.is_some() && !self.swallows && self.to_target.bytes.is_empty();
        if connection.is_closed() || host_is_gone {
            connection.disconnect(now);
            self.connection = None;
            self.closed_by_target = !self.swallows;
        }
    }
}

struct SimStream<T: TargetService> {
    network: Network<T>,
    path: usize,
}

impl<T: TargetService> fmt::Debug for SimStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimStream").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Bytes that one call moves: a few now and then, so that PDUs come in parts.
fn run_len(rng: &mut Rng, max_run: u64) -> usize {
    let most = if rng.percent(10) { 8 } else { max_run };
    1 + rng.below(most) as usize
}

impl<T: TargetService> ByteStream for SimStream<T> {
    fn send(&self, gather: &Gather<'_>) -> io::Result<usize> {
        let mut state = self.network.0.lock();
        let State { now, rng, config, paths, .. } = &mut *state;
        let path = &mut paths[self.path];
        if let Some(error) = path.host_error {
            return Err(error.into());
        }
        let room = WINDOW.saturating_sub(path.to_target.len()).min(run_len(rng, config.max_run));
        let mut bytes = Vec::new();
        let taken = gather.copy_to(&mut bytes, room);
        if taken == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        if !path.swallows {
            let due = *now + random_micros(rng, config.latency.clone());
            path.to_target.push(due, bytes);
        }
        Ok(taken)
    }

    fn receive(&self, scatter: &mut Scatter<'_>) -> io::Result<usize> {
        let mut state = self.network.0.lock();
        let State { now, rng, config, paths, .. } = &mut *state;
        let path = &mut paths[self.path];
        if let Some(error) = path.host_error {
            return Err(error.into());
        }
        let most = run_len(rng, config.max_run).min(scatter.len());
        let mut bytes = Vec::new();
        while bytes.len() < most
            && let Some(piece) = path.to_host.pop(*now)
        {
            bytes.extend(piece);
        }
        if bytes.is_empty() {
            let is_over = path.closed_by_target && path.to_host.bytes.is_empty();
            return if is_over { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        let taken = scatter.copy_from(&bytes[..bytes.len().min(most)]);
        if taken < bytes.len() {
            path.to_host.bytes.push_front((*now, bytes[taken..].to_vec()));
        }
        Ok(taken)
    }

    fn reset(&self) {
        let mut state = self.network.0.lock();
        let (now, delivers) = (state.now, state.config.delivers_after_reset);
        state.paths[self.path].cut(ErrorKind::NotConnected, delivers, now);
    }
}

/// The disk as it must be. A block has one request at a time, so its content after each is known.
#[derive(Debug)]
pub struct DiskModel {
    store: Arc<MemoryStore>,
    content: Vec<u8>,
    busy: Vec<bool>,
    next_stamp: u64,
    /// Requests that were made and not completed.
    pub under_way: usize,
    /// Requests that were completed.
    pub completed: usize,
    /// Requests that were completed with an error.
    pub failed: usize,
    /// Places where the disk held something else than was written last.
    pub stale: Vec<String>,
}

impl DiskModel {
    /// A disk of `blocks` zeroed blocks.
    pub fn new(blocks: usize) -> DiskModel {
        DiskModel {
            store: Arc::new(MemoryStore::new(BLOCK * blocks)),
            content: vec![0; BLOCK * blocks],
            busy: vec![false; blocks],
            next_stamp: 1,
            under_way: 0,
            completed: 0,
            failed: 0,
            stale: Vec::new(),
        }
    }

    /// The store that the target is to serve.
    pub fn store(&self) -> Arc<MemoryStore> {
        self.store.clone()
    }

    fn free_run(&self, rng: &mut Rng) -> Option<(usize, usize)> {
        let start = rng.below(self.busy.len() as u64) as usize;
        let longest = 1 << rng.below(self.busy.len().ilog2().min(9).into());
        let len = self.busy[start..].iter().take(longest).take_while(|busy| !**busy).count();
        (len > 0).then_some((start, len))
    }

    fn range(start: usize, blocks: usize) -> Range<usize> {
        start * BLOCK..(start + blocks) * BLOCK
    }

    /// A random request to random free blocks, if they are free.
    pub fn next_request(&mut self, rng: &mut Rng, now: Cycles) -> Option<Box<Request>> {
        let (start, blocks) = self.free_run(rng)?;
        let op = match rng.below(20) {
            0 => Op::Discard,
            1 => Op::WriteZeroes { unmap: rng.percent(50) },
            2 => Op::Flush,
            3..10 => Op::Read,
            _ => Op::Write,
        };
        let range = if op == Op::Flush { 0..0 } else { DiskModel::range(start, blocks) };
        match op {
            Op::Write => {
                // Words of one write differ, so that data in the wrong place is found.
                for (word, bytes) in self.content[range.clone()].chunks_exact_mut(8).enumerate() {
                    bytes.copy_from_slice(&(self.next_stamp << 16 | word as u64).to_le_bytes());
                }
                self.next_stamp += 1;
            }
            Op::Discard | Op::WriteZeroes { .. } => self.content[range.clone()].fill(0),
            _ => {}
        }
        Some(self.request(op, range, now))
    }

    /// A write of the whole disk.
    pub fn write_all(&mut self, now: Cycles) -> Box<Request> {
        self.content.fill(0xA5);
        self.request(Op::Write, 0..self.content.len(), now)
    }

    fn request(&mut self, op: Op, range: Range<usize>, now: Cycles) -> Box<Request> {
        self.busy[range.start / BLOCK..range.end / BLOCK].fill(true);
        self.under_way += 1;
        let mut request = Request::new(IoBuffers::anonymous(range.len().max(1)).expect("memory"));
        request.op = op;
        request.offset = range.start as u64;
        request.len = range.len() as u64;
        request.submitted = now;
        if op == Op::Write {
            request.buffers.write(0, &self.content[range]).expect("made to measure");
        }
        request
    }

    /// A request ended: checks what it read.
    pub fn complete(&mut self, request: &Request, status: Status) {
        let (start, blocks) = (request.offset as usize / BLOCK, request.len as usize / BLOCK);
        assert!(self.busy[start..start + blocks].iter().all(|busy| *busy), "completed twice");
        self.busy[start..start + blocks].fill(false);
        self.under_way -= 1;
        self.completed += 1;
        self.failed += usize::from(status != Status::Ok);
        if request.op == Op::Read && status == Status::Ok {
            let mut bytes = vec![0; request.len as usize];
            request.buffers.read(0, &mut bytes).expect("made to measure");
            if bytes != self.content[DiskModel::range(start, blocks)] {
                self.stale.push(format!("read of {blocks} blocks at {start}"));
            }
        }
    }

    /// The channels are dropped with what they have under way; whether that is executed is not known.
    pub fn abandon_all(&mut self) {
        self.busy.fill(false);
        self.under_way = 0;
    }

    /// Checks that the target's store holds what was written last.
    pub fn check_store(&mut self) {
        let mut stored = vec![0; self.content.len()];
        self.store.read(0, &mut stored).expect("made to measure");
        for block in 0..self.busy.len() {
            let range = DiskModel::range(block, 1);
            if stored[range.clone()] != self.content[range] {
                self.stale.push(format!("block {block} at the end"));
            }
        }
    }
}
