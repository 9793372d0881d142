//! A channel over threads that block in the kernel, for systems that forbid io_uring.

use super::transfer::{Bounce, Step, Transfer};
use super::{BOUNCE_BYTES, DEPTH, Disk};
use crate::{BlockChannel, BlockRequest, Completions, Request, RequestQueue, Status};
use clock::Cycles;
use crossbeam::channel::{Receiver, Sender, bounded};
use memory::Memory;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

/// Requests of one channel that can be in the kernel at a time.
const THREADS: usize = 4;

pub(super) struct ThreadsChannel {
    disk: Arc<Disk>,
    /// `None` once the channel ends: the threads then finish what they have and go.
    jobs: Option<Sender<BlockRequest>>,
    finished: Receiver<(BlockRequest, Status)>,
    event: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
    /// Requests that wait for room in `jobs`.
    backlog: RequestQueue,
    now: Cycles,
    timeout: Option<Cycles>,
}

impl ThreadsChannel {
    pub(super) fn open(disk: Arc<Disk>) -> io::Result<ThreadsChannel> {
        let (jobs, receiver) = bounded::<BlockRequest>(DEPTH);
        let (sender, finished) = bounded(DEPTH);
        let event = Arc::new(eventfd()?);
        let timeout = disk.timeout.map(Cycles::from);
        let mut channel = ThreadsChannel {
            disk,
            jobs: Some(jobs),
            finished,
            event,
            threads: Vec::with_capacity(THREADS),
            in_flight: 0,
            backlog: RequestQueue::new(),
            now: Cycles(0),
            timeout,
        };
        for _ in 0..THREADS {
            let worker = Worker {
                disk: channel.disk.clone(),
                jobs: receiver.clone(),
                finished: sender.clone(),
                event: channel.event.clone(),
                bounce: Memory::allocate(BOUNCE_BYTES, None).map_err(io::Error::other)?,
            };
            channel.threads.push(thread::Builder::new().name("file-io".into()).spawn(move || worker.run())?);
        }
        Ok(channel)
    }

    #[inline]
    fn send(&mut self, request: BlockRequest) {
        self.in_flight += 1;
        let jobs = self.jobs.as_ref().expect("there until the channel is dropped");
        jobs.try_send(request)
            .expect("room for as many as may be in flight, and threads that live as long as the channel");
    }

    fn give_back(&mut self, request: BlockRequest, status: Status, done: &mut Completions) {
        self.in_flight -= 1;
        // A thread in the kernel cannot be called back: a late request is counted when it comes.
        if self.timeout.is_some_and(|timeout| self.now.since(request.submitted) > timeout) {
            self.disk.timed_out.fetch_add(1, Ordering::Relaxed);
        }
        request.complete(done, status);
    }
}

impl BlockChannel for ThreadsChannel {
    fn submit(&mut self, request: BlockRequest, _: &mut Completions) {
        if self.in_flight < DEPTH && self.backlog.is_empty() {
            self.send(request);
        } else {
            self.backlog.push(request);
        }
    }

    fn poll(&mut self, now: Cycles, done: &mut Completions) -> usize {
        self.now = now;
        let mut events = 0;
        while let Ok((request, status)) = self.finished.try_recv() {
            self.give_back(request, status, done);
            events += 1;
        }
        while self.in_flight < DEPTH
            && let Some(request) = self.backlog.pop()
        {
            self.send(request);
        }
        events
    }

    fn wake_fd(&self) -> Option<RawFd> {
        Some(self.event.as_raw_fd())
    }

    fn outstanding(&self) -> usize {
        self.in_flight + self.backlog.len()
    }
}

impl Drop for ThreadsChannel {
    /// Waits for the threads: until then they use the requests' buffers.
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // a thread that panicked has said so
        }
        while let Ok((request, _)) = self.finished.try_recv() {
            request.abandon();
        }
    }
}

struct Worker {
    disk: Arc<Disk>,
    jobs: Receiver<BlockRequest>,
    finished: Sender<(BlockRequest, Status)>,
    event: Arc<OwnedFd>,
    bounce: Memory,
}

impl Worker {
    fn run(self) {
        for request in &self.jobs {
            let status = perform(&self.disk, &request, self.bounce.as_ptr());
            if let Err(unsent) = self.finished.send((request, status)) {
                // The channel is dropped, and nothing waits for the request.
                unsent.into_inner().0.abandon();
            }
            let one = 1_u64.to_ne_bytes();
            // SAFETY: writes 8 bytes of ours to our eventfd. It fails only when the count is full: it is readable then.
            unsafe { libc::write(self.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }
}

fn perform(disk: &Disk, request: &Request, bounce: Bounce) -> Status {
    let mut transfer = match Transfer::begin(disk, request) {
        Ok(transfer) => transfer,
        Err(status) => return status,
    };
    loop {
        let result = call(disk.fd(), transfer.step(disk, request, Some(bounce)));
        if let Some(status) = transfer.advance(disk, request, Some(bounce), result) {
            return status;
        }
    }
}

/// Performs a step. Returns bytes or a negative errno, as io_uring does.
fn call(fd: RawFd, step: Step) -> i32 {
    // SAFETY: the step's memory (the request's buffers, this thread's bounce memory, the disk's zeros) outlives the call.
    let result = unsafe {
        match step {
            Step::One { write: false, address, len, offset } => {
                libc::pread(fd, address.cast(), len as usize, offset as libc::off_t)
            }
            Step::One { write: true, address, len, offset } => {
                libc::pwrite(fd, address.cast(), len as usize, offset as libc::off_t)
            }
            Step::Many { write: false, iovecs, count, offset } => {
                libc::preadv(fd, iovecs, count as i32, offset as libc::off_t)
            }
            Step::Many { write: true, iovecs, count, offset } => {
                libc::pwritev(fd, iovecs, count as i32, offset as libc::off_t)
            }
            Step::Sync => libc::fdatasync(fd) as isize,
            Step::Allocate { mode, offset, len } => {
                libc::fallocate(fd, mode, offset as libc::off_t, len as libc::off_t) as isize
            }
        }
    };
    if result < 0 { -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) } else { result as i32 }
}

fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: creates a descriptor that we own, or fails with -1.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fresh and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
