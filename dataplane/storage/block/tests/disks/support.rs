//! A frontend for tests: fills requests, submits them, and keeps the account of who came back.

use block::{Bdev, BlockChannel, BlockRequest, Completions, Op, Request, Status};
use clock::Cycles;
use memory::{IoBuffers, Memory};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a wait for completions may take before the test fails.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// Where a request's bytes lie in its memory: (address, length) of each piece.
pub(crate) type Layout = Vec<(u64, u64)>;

/// A request whose buffers are laid out as told, over memory of its own that is full of `canary`.
pub(crate) fn request(op: Op, offset: u64, len: u64, layout: &Layout, canary: u8) -> Box<Request> {
    let end = layout.iter().map(|(address, len)| address + len).max().unwrap_or(1);
    let memory = Arc::new(Memory::allocate(end as usize, None).unwrap());
    whole(&memory).write(0, &vec![canary; end as usize]).unwrap();
    let mut buffers = IoBuffers::new(memory.clone(), layout.len());
    for &(address, len) in layout {
        memory.append_buffers(address as usize, len as usize, &mut buffers);
    }
    let mut request = Request::new(buffers);
    request.op = op;
    request.offset = offset;
    request.len = len;
    request
}

fn whole(memory: &Arc<Memory>) -> IoBuffers {
    let mut buffers = IoBuffers::new(memory.clone(), 1);
    memory.append_buffers(0, memory.len(), &mut buffers);
    buffers
}

/// The bytes of a request's memory, those between its pieces too.
pub(crate) fn whole_memory(request: &Request) -> Vec<u8> {
    let memory = request.buffers.owner().clone().downcast::<Memory>().unwrap();
    let mut bytes = vec![0; memory.len()];
    whole(&memory).read(0, &mut bytes).unwrap();
    bytes
}

/// A request of `len` bytes, its buffers, if it has any, in one page-aligned piece.
pub(crate) fn simple(op: Op, offset: u64, len: u64) -> Box<Request> {
    let layout = if op.has_buffers() { vec![(0, len)] } else { vec![] };
    request(op, offset, len, &layout, 0)
}

/// A write of `bytes`.
pub(crate) fn write(offset: u64, bytes: &[u8]) -> Box<Request> {
    let request = simple(Op::Write, offset, bytes.len() as u64);
    request.buffers.write(0, bytes).unwrap();
    request
}

/// The bytes of a request's buffers.
pub(crate) fn bytes(request: &Request) -> Vec<u8> {
    let mut bytes = vec![0; request.buffers.len() as usize];
    request.buffers.read(0, &mut bytes).unwrap();
    bytes
}

/// A request that came back.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) request: Box<Request>,
    pub(crate) status: Status,
    /// The time of the poll that gave it back.
    pub(crate) at: Cycles,
}

/// One channel and the account of its requests.
pub(crate) struct Frontend {
    pub(crate) channel: Box<dyn BlockChannel>,
    done: Completions,
    next: u64,
    /// Submitted and not back, by owner.
    out: HashSet<u64>,
    pub(crate) ended: Vec<Ended>,
}

impl Frontend {
    pub(crate) fn new(bdev: &dyn Bdev) -> Frontend {
        let channel = bdev.open_channel().unwrap();
        Frontend { channel, done: Completions::default(), next: 0, out: HashSet::new(), ended: Vec::new() }
    }

    /// Submits at `now`. Returns the owner's mark.
    pub(crate) fn submit(&mut self, mut request: Box<Request>, now: Cycles) -> u64 {
        let owner = self.next;
        self.next += 1;
        request.owner = owner;
        request.submitted = now;
        self.out.insert(owner);
        self.channel.submit(BlockRequest::new(request), &mut self.done);
        self.collect(now);
        owner
    }

    pub(crate) fn poll(&mut self, now: Cycles) -> usize {
        let events = self.channel.poll(now, &mut self.done);
        self.collect(now);
        events
    }

    fn collect(&mut self, now: Cycles) {
        for completed in self.done.drain() {
            let owner = completed.request.owner;
            assert!(self.out.remove(&owner), "request {owner} came back twice, or was never submitted");
            self.ended.push(Ended { request: completed.request, status: completed.status, at: now });
        }
        assert_eq!(self.channel.outstanding(), self.out.len(), "outstanding requests");
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.out.len()
    }

    /// Polls by the wall clock until all are back, and once more: nothing may come after that.
    pub(crate) fn drain(&mut self) -> Vec<Ended> {
        let give_up = Instant::now() + TIMEOUT;
        while self.outstanding() > 0 {
            if self.poll(Cycles::now()) == 0 {
                std::thread::yield_now();
            }
            assert!(Instant::now() < give_up, "{} requests do not come back", self.outstanding());
        }
        self.poll(Cycles::now());
        std::mem::take(&mut self.ended)
    }

    /// One request from submit to its end.
    pub(crate) fn perform(&mut self, request: Box<Request>) -> (Box<Request>, Status) {
        self.submit(request, Cycles::now());
        let mut ended = self.drain();
        assert_eq!(ended.len(), 1);
        let ended = ended.pop().unwrap();
        (ended.request, ended.status)
    }
}
