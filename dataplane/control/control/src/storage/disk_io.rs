//! I/O of the control plane on a disk, beside the workers: the first read of a cloud disk, the copy of an image.
//! Blocks: for blocking threads only.

use block::{Bdev, BlockChannel, BlockRequest, Completions, Op, Request, Status};
use clock::Cycles;
use memory::{IoBuffers, Memory};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pause between two polls of a channel without completions.
const PAUSE: Duration = Duration::from_micros(100);
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A channel with one request and its buffer.
pub(crate) struct DiskIo {
    channel: Box<dyn BlockChannel>,
    memory: Arc<Memory>,
    request: Option<Box<Request>>,
    done: Completions,
}

impl DiskIo {
    /// Opens a disk for requests of at most `len` bytes.
    pub(crate) fn open(bdev: &dyn Bdev, len: usize) -> io::Result<DiskIo> {
        let memory = Arc::new(Memory::allocate(len, None).map_err(io::Error::other)?);
        let channel = bdev.open_channel().map_err(io::Error::other)?;
        let request = Request::new(IoBuffers::new(memory.clone(), 1));
        Ok(DiskIo { channel, memory, request: Some(request), done: Completions::with_capacity(1) })
    }

    /// Reads `bytes.len()` bytes at `offset`.
    pub(crate) fn read(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.resize(bytes.len())?;
        // Bytes that the disk does not fill must not be those of an earlier request.
        self.buffers()?.zero(0, bytes.len() as u64).map_err(io::Error::other)?;
        outcome(self.perform(Op::Read, offset)?)?;
        self.buffers()?.read(0, bytes).map_err(io::Error::other)
    }

    /// Writes `bytes` at `offset`.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.fill(bytes)?;
        outcome(self.perform(Op::Write, offset)?)
    }

    /// Has the disk compare its content at `offset` with `bytes`. Returns whether they are equal.
    pub(crate) fn compare(&mut self, offset: u64, bytes: &[u8]) -> io::Result<bool> {
        self.fill(bytes)?;
        match self.perform(Op::Compare, offset)? {
            Status::Miscompare => Ok(false),
            status => outcome(status).map(|()| true),
        }
    }

    /// Makes what was written durable.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.resize(0)?;
        outcome(self.perform(Op::Flush, 0)?)
    }

    fn buffers(&self) -> io::Result<&IoBuffers> {
        self.request.as_deref().map(|request| &request.buffers).ok_or_else(lost)
    }

    /// Cuts the buffer to the next request's bytes.
    fn resize(&mut self, len: usize) -> io::Result<()> {
        let buffers = &mut self.request.as_deref_mut().ok_or_else(lost)?.buffers;
        buffers.clear();
        if len > 0 {
            self.memory.append_buffers(0, len, buffers);
        }
        Ok(())
    }

    fn fill(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.resize(bytes.len())?;
        self.buffers()?.write(0, bytes).map_err(io::Error::other)
    }

    /// Runs a request over the whole buffer to its end.
    fn perform(&mut self, op: Op, offset: u64) -> io::Result<Status> {
        let mut request = self.request.take().ok_or_else(lost)?;
        let len = request.buffers.len();
        (request.op, request.offset, request.len, request.submitted) = (op, offset, len, Cycles::now());
        self.channel.submit(BlockRequest::new(request), &mut self.done);
        let end = Instant::now() + REQUEST_TIMEOUT;
        loop {
            self.channel.poll(Cycles::now(), &mut self.done);
            if let Some(completed) = self.done.drain().next() {
                self.request = Some(completed.request);
                return Ok(completed.status);
            }
            if Instant::now() > end {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer"));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn outcome(status: Status) -> io::Result<()> {
    match status {
        Status::Ok => Ok(()),
        Status::NoSpace => Err(io::Error::new(io::ErrorKind::StorageFull, "no space is left under the disk")),
        Status::Unsupported => Err(io::Error::new(io::ErrorKind::Unsupported, "the disk does not do this")),
        Status::Miscompare => Err(io::Error::new(io::ErrorKind::InvalidData, "the disk holds something else")),
        Status::IoError => Err(io::Error::other("I/O error")),
    }
}

fn lost() -> io::Error {
    io::Error::other("an earlier request was not answered")
}
