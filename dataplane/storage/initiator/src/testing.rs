//! What tests over sockets share: driving a channel as a worker would, and checking what it reads against what was written.

use crate::{Event, EventSink};
use block::{Bdev, BlockChannel, BlockRequest, Completions, Op, Request, Status};
use clock::Cycles;
use memory::IoBuffers;
use parking_lot::Mutex;
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::Rng;

/// Time for anything that must come.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A request of `len` bytes with memory for them.
pub fn request(op: Op, offset: u64, len: usize) -> Box<Request> {
    let mut request = Request::new(IoBuffers::anonymous(len.max(1)).expect("memory"));
    request.op = op;
    request.offset = offset;
    request.len = len as u64;
    request.submitted = Cycles::now();
    request
}

/// A write of `bytes`, or another request that sends them.
pub fn request_with(op: Op, offset: u64, bytes: &[u8]) -> Box<Request> {
    let request = request(op, offset, bytes.len());
    request.buffers.write(0, bytes).expect("made to measure");
    request
}

/// Bytes that differ from place to place and from seed to seed.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Rng::new(seed).fill(&mut bytes);
    bytes
}

/// Waits until `happened`; `what` says what for.
#[track_caller]
pub fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < TIMEOUT, "{what} did not happen within {TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Events, collected for a test to look at.
#[derive(Debug)]
pub struct EventLog<P>(Arc<Mutex<Vec<Event<P>>>>);

impl<P> Clone for EventLog<P> {
    fn clone(&self) -> EventLog<P> {
        EventLog(self.0.clone())
    }
}

impl<P> Default for EventLog<P> {
    fn default() -> EventLog<P> {
        EventLog(Arc::default())
    }
}

impl<P: Clone + Display + Send + 'static> EventLog<P> {
    /// A sink that adds to the log.
    pub fn sink(&self) -> EventSink<P> {
        let events = self.0.clone();
        Arc::new(move |event: &Event<P>| events.lock().push(event.clone()))
    }

    /// The events so far.
    pub fn events(&self) -> Vec<Event<P>> {
        self.0.lock().clone()
    }

    /// Whether one of the events so far is `wanted`.
    pub fn any(&self, wanted: impl Fn(&Event<P>) -> bool) -> bool {
        self.0.lock().iter().any(wanted)
    }

    /// The events so far, in words.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().iter().map(Event::to_string).collect()
    }

    /// Whether one of the events so far says `part`.
    pub fn says(&self, part: &str) -> bool {
        self.lines().iter().any(|line| line.contains(part))
    }
}

/// A channel with its completions.
#[allow(missing_debug_implementations)] // a channel has none
pub struct Worker {
    /// The channel.
    pub channel: Box<dyn BlockChannel>,
    done: Completions,
}

impl Worker {
    /// Opens a channel of `disk`.
    pub fn open(disk: &(impl Bdev + ?Sized)) -> Worker {
        Worker::new(disk.open_channel().expect("a channel"))
    }

    /// Drives `channel`.
    pub fn new(channel: Box<dyn BlockChannel>) -> Worker {
        Worker { channel, done: Completions::default() }
    }

    /// Submits a request.
    pub fn submit(&mut self, request: Box<Request>) {
        self.channel.submit(BlockRequest::new(request), &mut self.done);
    }

    /// Polls once. Returns the requests that ended.
    pub fn poll(&mut self) -> Vec<(Box<Request>, Status)> {
        self.channel.poll(Cycles::now(), &mut self.done);
        self.done.drain().map(|c| (c.request, c.status)).collect()
    }

    /// Polls for `time`. Returns the requests that ended.
    pub fn poll_for(&mut self, time: Duration) -> Vec<(Box<Request>, Status)> {
        let (start, mut ended) = (Instant::now(), Vec::new());
        while start.elapsed() < time {
            ended.extend(self.poll());
        }
        ended
    }

    /// Polls until `count` requests have ended.
    #[track_caller]
    pub fn wait(&mut self, count: usize) -> Vec<(Box<Request>, Status)> {
        let (start, mut ended) = (Instant::now(), Vec::new());
        while ended.len() < count {
            assert!(start.elapsed() < TIMEOUT, "{} of {count} I/Os ended within {TIMEOUT:?}", ended.len());
            ended.extend(self.poll());
        }
        ended
    }

    /// Runs one request to its end.
    #[track_caller]
    pub fn run(&mut self, request: Box<Request>) -> (Box<Request>, Status) {
        self.submit(request);
        self.wait(1).pop().expect("one")
    }

    /// Writes `bytes`.
    #[track_caller]
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Status {
        self.run(request_with(Op::Write, offset, bytes)).1
    }

    /// Compares `bytes` with the disk.
    #[track_caller]
    pub fn compare(&mut self, offset: u64, bytes: &[u8]) -> Status {
        self.run(request_with(Op::Compare, offset, bytes)).1
    }

    /// Reads `len` bytes.
    #[track_caller]
    pub fn read(&mut self, offset: u64, len: usize) -> (Vec<u8>, Status) {
        let (request, status) = self.run(request(Op::Read, offset, len));
        let mut bytes = vec![0; len];
        request.buffers.read(0, &mut bytes).expect("made to measure");
        (bytes, status)
    }

    /// Runs an operation without data on `len` bytes.
    #[track_caller]
    pub fn range(&mut self, op: Op, offset: u64, len: u64) -> Status {
        let mut request = request(op, offset, 512);
        request.len = len;
        self.run(request).1
    }
}

/// Writes and reads pieces of many sizes at many places, several at once, and checks every byte against a copy in memory.
pub fn exercise(worker: &mut Worker, disk_len: u64, rounds: u64, seed: u64) {
    let mut model = vec![0u8; disk_len as usize];
    assert_eq!(worker.range(Op::WriteZeroes { unmap: false }, 0, disk_len), Status::Ok);
    let mut rng = Rng::new(seed);
    for round in 0..rounds {
        // Places of one round do not overlap: each I/O has a lane of the disk.
        let lanes = 1 + rng.below(8);
        let lane_blocks = disk_len / 512 / lanes;
        for lane in 0..lanes {
            let longest = [1, 8, 64, 600][rng.below(4) as usize].min(lane_blocks);
            let blocks = 1 + rng.below(longest);
            let block = lane * lane_blocks + rng.below(lane_blocks - blocks + 1);
            let (offset, len) = (block * 512, (blocks * 512) as usize);
            let mut request = if rng.percent(50) {
                let bytes = pattern(seed ^ (round << 8 | lane), len);
                model[offset as usize..][..len].copy_from_slice(&bytes);
                request_with(Op::Write, offset, &bytes)
            } else {
                request(Op::Read, offset, len)
            };
            request.owner = lane;
            worker.submit(request);
        }
        for (request, status) in worker.wait(lanes as usize) {
            assert_eq!(status, Status::Ok, "{request:?}");
            let mut bytes = vec![0; request.len as usize];
            request.buffers.read(0, &mut bytes).expect("made to measure");
            let expected = &model[request.offset as usize..][..bytes.len()];
            assert!(bytes == expected, "round {round}: {:?} at {}+{}", request.op, request.offset, request.len);
        }
    }
    assert_eq!(worker.range(Op::Flush, 0, 0), Status::Ok);
}
