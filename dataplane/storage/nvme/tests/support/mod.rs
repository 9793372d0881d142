//! What the tests over sockets share.

use block::{Bdev, BlockChannel, BlockRequest, Completions, Op, Request, Status};
use clock::Cycles;
use memory::IoBuffers;
use nvme::NvmeController;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) fn request(op: Op, offset: u64, len: u64, fill: Option<&[u8]>) -> Box<Request> {
    let buffers = IoBuffers::anonymous(len.max(1) as usize).unwrap();
    if let Some(bytes) = fill {
        buffers.write(0, bytes).unwrap();
    }
    let mut request = Request::new(buffers);
    (request.op, request.offset, request.len, request.submitted) = (op, offset, len, Cycles::now());
    request
}

/// Runs one request to its end.
pub(crate) fn run(channel: &mut dyn BlockChannel, request: Box<Request>) -> (Box<Request>, Status) {
    let mut done = Completions::default();
    channel.submit(BlockRequest::new(request), &mut done);
    let end = Instant::now() + Duration::from_secs(60);
    while done.is_empty() {
        assert!(Instant::now() < end, "no completion within 60 s");
        channel.poll(Cycles::now(), &mut done);
    }
    let completed = done.drain().next().unwrap();
    (completed.request, completed.status)
}

pub(crate) fn write(channel: &mut dyn BlockChannel, offset: u64, bytes: &[u8]) -> Status {
    run(channel, request(Op::Write, offset, bytes.len() as u64, Some(bytes))).1
}

pub(crate) fn compare(channel: &mut dyn BlockChannel, offset: u64, bytes: &[u8]) -> Status {
    run(channel, request(Op::Compare, offset, bytes.len() as u64, Some(bytes))).1
}

pub(crate) fn read(channel: &mut dyn BlockChannel, offset: u64, len: u64) -> (Vec<u8>, Status) {
    let (request, status) = run(channel, request(Op::Read, offset, len, None));
    let mut bytes = vec![0; len as usize];
    request.buffers.read(0, &mut bytes).unwrap();
    (bytes, status)
}

pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

pub(crate) fn wait_for(what: &str, mut until: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !until() {
        assert!(Instant::now() < end, "{what} did not happen within 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn first_disk(controller: &NvmeController) -> Arc<dyn Bdev> {
    controller.namespaces()[0].1.clone()
}
