//! What a disk costs: random 4 KiB requests through one channel, from one thread.
//!
//!     cargo run --release -p block --example measure -- null|malloc|qos|FILE [read|write] [depth] [seconds] [spin|sleep] [engine]
//!
//! Prints requests a second, CPU time a request (user and system, of the whole process), and the cycles of turns
//! that did something. With `sleep` the thread blocks on the channel's descriptor when there is nothing to do.

#![allow(unsafe_code)] // epoll and getrusage

use block::{
    Bdev, BlockChannel, BlockRequest, Completions, FileBdev, FileEngine, FileParams, IoStats, Malloc, MallocParams,
    Null, NullParams, Op, OpKind, Qos, Request, Status,
};
use clock::Cycles;
use memory::{IoBuffers, MemoryError};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

const BLOCK: u64 = 4096;
/// Requests between two looks at the clock.
const ROUND: u64 = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |at: usize, default: &str| arguments.get(at).cloned().unwrap_or(default.into());
    let op = if argument(1, "read") == "write" { Op::Write } else { Op::Read };
    let (depth, seconds): (usize, f64) = (argument(2, "32").parse()?, argument(3, "3").parse()?);
    let sleep = argument(4, "spin") == "sleep";
    let bdev = disk(&argument(0, "null"), &argument(5, "auto"))?;

    let channel = bdev.open_channel()?;
    let waker = channel.wake_fd().filter(|_| sleep).map(epoll);
    let stats = IoStats::default();
    let mut load =
        Load { channel, stats, op, blocks: bdev.geometry().size_bytes() / BLOCK, random: 88_172_645_463_325_252 };
    let request = |_| Ok::<_, MemoryError>(Request::new(IoBuffers::anonymous(BLOCK as usize)?));
    let mut idle: Idle = (0..depth).map(request).collect::<Result<_, _>>()?;
    let mut done = Completions::with_capacity(depth);

    run(&mut load, &mut idle, &mut done, waker, Duration::from_millis(300)); // warm
    let (begin, cpu) = (Instant::now(), cpu_time());
    let before = load.stats.snapshot();
    let (count, busy) = run(&mut load, &mut idle, &mut done, waker, Duration::from_secs_f64(seconds));
    let (elapsed, cpu) = (begin.elapsed().as_secs_f64(), cpu_time() - cpu);
    println!(
        "{} {:?} depth {depth}: {:.0} requests/s, {:.2} us CPU a request, {:.0} cycles a request in busy turns",
        bdev.identity().product_name,
        op,
        count as f64 / elapsed,
        cpu.as_secs_f64() * 1e6 / count as f64,
        busy as f64 / count as f64
    );
    let snapshot = load.stats.snapshot().since(&before);
    let latency = |quantile| snapshot.of(OpKind::from(op)).quantile(quantile).to_duration();
    println!("    latency p50 {:?}, p99 {:?}, p99.9 {:?}", latency(0.5), latency(0.99), latency(0.999));
    while load.channel.outstanding() > 0 {
        load.channel.poll(Cycles::now(), &mut done);
    }
    Ok(())
}

fn disk(kind: &str, engine: &str) -> Result<Arc<dyn Bdev>, Box<dyn std::error::Error>> {
    let engine = if engine == "threads" { FileEngine::Threads } else { FileEngine::Auto };
    Ok(match kind {
        "null" => Null::create(NullParams::new("null", 512, 1 << 21))?,
        "qos" => Qos::new(Null::create(NullParams::new("null", 512, 1 << 21))?),
        "malloc" => Malloc::create(MallocParams::new("malloc", 512, 1 << 19))?,
        path => FileBdev::create(FileParams { engine, ..FileParams::new("file", path) })?,
    })
}

/// Requests at rest: boxed, as a channel takes them.
#[allow(clippy::vec_box)]
type Idle = Vec<Box<Request>>;

struct Load {
    channel: Box<dyn BlockChannel>,
    stats: IoStats,
    op: Op,
    blocks: u64,
    random: u64,
}

impl Load {
    fn submit(&mut self, mut request: Box<Request>, now: Cycles, done: &mut Completions) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        request.op = self.op;
        request.offset = self.random % self.blocks * BLOCK;
        request.len = BLOCK;
        request.submitted = now;
        self.channel.submit(BlockRequest::new(request), done);
    }
}

/// Keeps all requests under way for `span`. Returns how many ended and the cycles of turns that did something.
fn run(load: &mut Load, idle: &mut Idle, done: &mut Completions, waker: Option<RawFd>, span: Duration) -> (u64, u64) {
    let (end, mut count, mut busy) = (Instant::now() + span, 0, 0);
    while Instant::now() < end {
        let next_look = count + ROUND;
        while count < next_look {
            let begin = Cycles::now();
            let mut work = idle.len();
            for request in idle.drain(..) {
                load.submit(request, begin, done);
            }
            work += load.channel.poll(begin, done);
            work += done.len();
            let now = if done.is_empty() { begin } else { Cycles::now() };
            for completed in done.drain() {
                assert_eq!(completed.status, Status::Ok);
                load.stats.record(&completed, now);
                idle.push(completed.request);
                count += 1;
            }
            if work > 0 {
                busy += Cycles::now().since(begin).0;
            } else if let Some(waker) = waker {
                // SAFETY: one event of ours, filled by the kernel.
                unsafe { libc::epoll_wait(waker, &mut libc::epoll_event { events: 0, u64: 0 }, 1, 1000) };
            }
        }
    }
    (count, busy)
}

fn epoll(fd: RawFd) -> RawFd {
    let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: 0 };
    // SAFETY: plain system calls; the set lives as long as the process.
    unsafe {
        let set = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        assert_eq!(libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, fd, &mut event), 0);
        set
    }
}

/// User and system time of the process.
fn cpu_time() -> Duration {
    // SAFETY: a rusage of zeros is a valid value, and the kernel fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let span =
        |time: libc::timeval| Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64);
    span(usage.ru_utime) + span(usage.ru_stime)
}
