//! A block request, its life and its end.

use clock::Cycles;
use memory::IoBuffers;

/// An operation of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fill the buffers from the disk.
    Read,
    /// Write the buffers to the disk.
    Write,
    /// Look whether the disk holds what the buffers hold: [`Status::Miscompare`] where it does not.
    Compare,
    /// Make all completed writes durable.
    Flush,
    /// The range's content is no longer needed.
    Discard,
    /// The range reads as zero afterwards; with `unmap` it may be deallocated too.
    WriteZeroes {
        /// Deallocation is welcome.
        unmap: bool,
    },
}

impl Op {
    /// Whether the operation has buffers, as long as its range.
    #[inline(always)]
    pub fn has_buffers(self) -> bool {
        matches!(self, Op::Read | Op::Write | Op::Compare)
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done as asked.
    Ok,
    /// The disk could not do it.
    IoError,
    /// The disk does not do this.
    Unsupported,
    /// No space is left under the disk.
    NoSpace,
    /// Compared, and the disk holds something else.
    Miscompare,
}

/// A request at rest: made once, filled again and again by its frontend.
#[derive(Debug)]
pub struct Request {
    /// The operation.
    pub op: Op,
    /// Where on the disk, in bytes; a multiple of the block size.
    pub offset: u64,
    /// How much of the disk, in bytes; a multiple of the block size. Equals `buffers.len()` where the request has buffers.
    pub len: u64,
    /// The memory to fill, to write or to compare with; empty for the rest.
    pub buffers: IoBuffers,
    /// When the frontend submitted it.
    pub submitted: Cycles,
    /// The frontend's own mark (which queue, which chain). A channel leaves it alone.
    pub owner: u64,
    /// For the holder of the request: a channel may keep a word here from `submit` until it completes the request or passes it
    /// on. Frontends leave it alone.
    pub scratch: u64,
    /// The next one in a [`RequestQueue`](crate::RequestQueue).
    pub(crate) next: Option<Box<Request>>,
}

impl Request {
    /// A request at rest over `buffers`.
    pub fn new(buffers: IoBuffers) -> Box<Request> {
        let submitted = Cycles(0);
        Box::new(Request { op: Op::Flush, offset: 0, len: 0, buffers, submitted, owner: 0, scratch: 0, next: None })
    }

    /// Whether a disk of `size_bytes` can serve it: its range lies inside, and it has as many bytes of buffers, if any.
    /// Every channel that turns a range into an address asks this first: the disk may have shrunk since the frontend looked.
    #[inline]
    pub fn fits(&self, size_bytes: u64) -> bool {
        self.op == Op::Flush
            || self.offset.checked_add(self.len).is_some_and(|end| end <= size_bytes)
                && (!self.op.has_buffers() || self.len == self.buffers.len())
    }
}

/// A request under way: completed or abandoned exactly once.
#[derive(Debug)]
#[must_use = "a block request is completed or abandoned, never dropped"]
pub struct BlockRequest(Option<Box<Request>>);

impl BlockRequest {
    /// Puts a request under way.
    pub fn new(request: Box<Request>) -> BlockRequest {
        BlockRequest(Some(request))
    }

    /// Ends it with `status`.
    #[inline]
    pub fn complete(mut self, done: &mut Completions, status: Status) {
        if let Some(request) = self.0.take() {
            done.0.push(Completed { request, status });
        }
    }

    /// Takes the request back without an answer: its device is gone.
    pub fn abandon(mut self) -> Option<Box<Request>> {
        self.0.take()
    }
}

impl std::ops::Deref for BlockRequest {
    type Target = Request;
    #[inline(always)]
    fn deref(&self) -> &Request {
        self.0.as_deref().expect("present until completed or abandoned")
    }
}

impl std::ops::DerefMut for BlockRequest {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Request {
        self.0.as_deref_mut().expect("present until completed or abandoned")
    }
}

impl Drop for BlockRequest {
    fn drop(&mut self) {
        debug_assert!(self.0.is_none() || std::thread::panicking(), "block request dropped: {:?}", self.0);
    }
}

/// A request that has ended.
#[derive(Debug)]
pub struct Completed {
    /// The request, at rest again.
    pub request: Box<Request>,
    /// The status with which the request ended.
    pub status: Status,
}

/// Requests that have ended and wait for their frontend. Keeps its capacity.
#[derive(Debug, Default)]
pub struct Completions(Vec<Completed>);

impl Completions {
    /// Room for `capacity` completions before it has to grow.
    pub fn with_capacity(capacity: usize) -> Completions {
        Completions(Vec::with_capacity(capacity))
    }

    /// Takes out all, in order.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Completed> {
        self.0.drain(..)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
