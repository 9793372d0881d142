//! A disk whose requests can be held: what is in flight while something else happens is the test's choice.

use block::{Bdev, BlockChannel, BlockError, BlockRequest, Completions, Geometry, Identity, Op, Status};
use clock::Cycles;
use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, memfd_create};
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How long a channel that holds requests waits before it looks again.
const LOOK: Duration = Duration::from_micros(100);

/// A disk in a file. Requests complete out of order: the youngest first.
pub(crate) struct Disk {
    identity: Identity,
    geometry: Mutex<Geometry>,
    shared: Arc<Shared>,
}

struct Shared {
    file: File,
    /// Requests at or behind this offset wait.
    held_from: AtomicU64,
    /// All requests fail.
    broken: AtomicBool,
    /// Requests that channels have.
    taken: AtomicU64,
}

impl Disk {
    pub(crate) fn new(size: u64) -> Arc<Disk> {
        Disk::over(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap().into(), size)
    }

    pub(crate) fn over(file: File, size: u64) -> Arc<Disk> {
        file.set_len(size).unwrap();
        let geometry = Geometry {
            block_size: 512,
            num_blocks: size / 512,
            physical_block_size: 4096,
            optimal_io_size: 0,
            max_io_size: u32::MAX,
            max_discard_blocks: 1 << 16,
            max_write_zeroes_blocks: 1 << 16,
            compare: false,
            read_only: false,
            write_cache: true,
        };
        let identity = Identity { name: "held-disk".into(), product_name: "Test disk", uuid: uuid::Uuid::nil() };
        let (held_from, taken) = (AtomicU64::new(u64::MAX), AtomicU64::new(0));
        let shared = Arc::new(Shared { file, held_from, broken: AtomicBool::new(false), taken });
        Arc::new(Disk { identity, geometry: Mutex::new(geometry), shared })
    }

    /// Requests at or behind `offset` wait until they are released.
    pub(crate) fn hold_from(&self, offset: u64) {
        self.shared.held_from.store(offset, Ordering::SeqCst);
    }

    pub(crate) fn release(&self) {
        self.hold_from(u64::MAX);
    }

    /// Requests that wait in channels.
    pub(crate) fn taken(&self) -> u64 {
        self.shared.taken.load(Ordering::SeqCst)
    }

    pub(crate) fn resize(&self, size: u64) {
        self.shared.file.set_len(size).unwrap();
        self.geometry.lock().num_blocks = size / 512;
    }

    pub(crate) fn break_it(&self, broken: bool) {
        self.shared.broken.store(broken, Ordering::SeqCst);
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.shared.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        self.shared.file.write_all_at(bytes, offset).unwrap();
    }
}

impl Bdev for Disk {
    fn identity(&self) -> &Identity {
        &self.identity
    }
    fn geometry(&self) -> Geometry {
        *self.geometry.lock()
    }
    fn open_channel(&self) -> Result<Box<dyn BlockChannel>, BlockError> {
        Ok(Box::new(Channel { shared: self.shared.clone(), requests: VecDeque::new(), copy: Vec::new() }))
    }
}

struct Channel {
    shared: Arc<Shared>,
    requests: VecDeque<BlockRequest>,
    copy: Vec<u8>,
}

impl Channel {
    fn serve(&mut self, request: &BlockRequest) -> Status {
        self.copy.resize(request.len as usize, 0);
        let (file, copy) = (&self.shared.file, &mut self.copy[..]);
        let done = match request.op {
            _ if self.shared.broken.load(Ordering::SeqCst) => return Status::IoError,
            Op::Compare => return Status::Unsupported,
            Op::Flush => Ok(()),
            Op::Read => file.read_exact_at(copy, request.offset).map(|()| request.buffers.write(0, copy).unwrap()),
            Op::Write => {
                request.buffers.read(0, copy).unwrap();
                file.write_all_at(copy, request.offset)
            }
            Op::Discard | Op::WriteZeroes { .. } => {
                copy.fill(0);
                file.write_all_at(copy, request.offset)
            }
        };
        done.map_or(Status::IoError, |()| Status::Ok)
    }
}

impl BlockChannel for Channel {
    fn submit(&mut self, request: BlockRequest, _: &mut Completions) {
        self.shared.taken.fetch_add(1, Ordering::SeqCst);
        self.requests.push_front(request);
    }

    fn poll(&mut self, _: Cycles, done: &mut Completions) -> usize {
        let held_from = self.shared.held_from.load(Ordering::SeqCst);
        let mut served = 0;
        for _ in 0..self.requests.len() {
            let Some(request) = self.requests.pop_front() else { break };
            if request.offset >= held_from {
                self.requests.push_back(request);
                continue;
            }
            let status = self.serve(&request);
            self.shared.taken.fetch_sub(1, Ordering::SeqCst);
            request.complete(done, status);
            served += 1;
        }
        served
    }

    fn deadline(&self) -> Cycles {
        if self.requests.is_empty() { Cycles::NEVER } else { Cycles(Cycles::now().0 + Cycles::from(LOOK).0) }
    }

    fn outstanding(&self) -> usize {
        self.requests.len()
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.requests.drain(..).for_each(|request| drop(request.abandon()));
    }
}
