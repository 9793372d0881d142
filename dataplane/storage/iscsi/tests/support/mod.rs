//! Drives a channel as a worker would, and checks what it reads against what was written.

#![allow(dead_code, unreachable_pub)] // each test file uses a part

use block::{Bdev, BlockChannel, BlockRequest, Completions, Op, Request, Status};
use clock::Cycles;
use iscsi::{Event, EventSink};
use memory::IoBuffers;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const INITIATOR: &str = "iqn.2026-01.org.sluice:host";
pub const TARGET: &str = "iqn.2026-01.org.sluice:disk";

/// Collects events for a test to look at.
#[derive(Clone, Default)]
pub struct Story(Arc<Mutex<Vec<String>>>);

impl Story {
    pub fn sink(&self) -> EventSink {
        let lines = self.0.clone();
        Arc::new(move |event: &Event| lines.lock().unwrap().push(event.to_string()))
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub fn tells(&self, part: &str) -> bool {
        self.lines().iter().any(|line| line.contains(part))
    }
}

/// A channel with its completions.
pub struct Worker {
    pub channel: Box<dyn BlockChannel>,
    done: Completions,
}

impl Worker {
    pub fn open(disk: &Arc<impl Bdev + ?Sized>) -> Worker {
        Worker { channel: disk.open_channel().expect("a channel"), done: Completions::default() }
    }

    pub fn submit(&mut self, request: Box<Request>) {
        self.channel.submit(BlockRequest::new(request), &mut self.done);
    }

    /// Polls until `count` requests have ended.
    pub fn wait(&mut self, count: usize, patience: Duration) -> Vec<(Box<Request>, Status)> {
        let (start, mut ended) = (Instant::now(), Vec::new());
        while ended.len() < count {
            assert!(start.elapsed() < patience, "{} of {count} I/Os ended in {patience:?}", ended.len());
            self.channel.poll(Cycles::now(), &mut self.done);
            ended.extend(self.done.drain().map(|c| (c.request, c.status)));
        }
        ended
    }

    pub fn run(&mut self, request: Box<Request>) -> (Box<Request>, Status) {
        self.submit(request);
        self.wait(1, Duration::from_secs(20)).pop().expect("one")
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Status {
        let request = request(Op::Write, offset, bytes.len());
        request.buffers.write(0, bytes).unwrap();
        self.run(request).1
    }

    pub fn read(&mut self, offset: u64, len: usize) -> (Vec<u8>, Status) {
        let (request, status) = self.run(request(Op::Read, offset, len));
        let mut bytes = vec![0; len];
        request.buffers.read(0, &mut bytes).unwrap();
        (bytes, status)
    }

    pub fn range(&mut self, op: Op, offset: u64, len: u64) -> Status {
        let mut request = request(op, offset, 512);
        request.len = len;
        self.run(request).1
    }
}

pub fn request(op: Op, offset: u64, len: usize) -> Box<Request> {
    let mut request = Request::new(IoBuffers::anonymous(len).unwrap());
    (request.op, request.offset, request.len) = (op, offset, len as u64);
    request
}

/// Bytes that differ from place to place and from version to version.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Writes and reads pieces of many sizes at many places, several at once, and checks every byte against a copy in memory.
pub fn exercise(worker: &mut Worker, disk_len: u64, rounds: u64, seed: u64) {
    let mut model = vec![0u8; disk_len as usize];
    assert_eq!(worker.range(Op::WriteZeroes { unmap: false }, 0, disk_len), Status::Ok);
    let mut random = seed | 1;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for round in 0..rounds {
        // Places of one round do not overlap: each I/O has a lane of the disk.
        let lanes = 1 + next(8);
        let lane_blocks = disk_len / 512 / lanes;
        for lane in 0..lanes {
            let longest = [1, 8, 64, 600][next(4) as usize].min(lane_blocks);
            let blocks = 1 + next(longest);
            let block = lane * lane_blocks + next(lane_blocks - blocks + 1);
            let (offset, len) = (block * 512, (blocks * 512) as usize);
            let op = if next(2) == 0 { Op::Write } else { Op::Read };
            let mut request = request(op, offset, len);
            if op == Op::Write {
                let bytes = pattern(seed ^ (round << 8 | lane), len);
                request.buffers.write(0, &bytes).unwrap();
                model[offset as usize..][..len].copy_from_slice(&bytes);
            }
            request.owner = lane;
            worker.submit(request);
        }
        for (request, status) in worker.wait(lanes as usize, Duration::from_secs(30)) {
            assert_eq!(status, Status::Ok, "{request:?}");
            let mut bytes = vec![0; request.len as usize];
            request.buffers.read(0, &mut bytes).unwrap();
            let expected = &model[request.offset as usize..][..bytes.len()];
            assert!(bytes == expected, "round {round}: {:?} at {}+{}", request.op, request.offset, request.len);
        }
    }
    assert_eq!(worker.range(Op::Flush, 0, 0), Status::Ok);
}
