//! CPU time of the initiator an I/O, against libiscsi's `iscsi-perf` on the same tgt in the same run.
//!
//! `cargo run --release -p iscsi --example cpu_per_io [SECONDS]`. Prints CPU nanoseconds an I/O and thousands of I/Os a second;
//! both sides sleep in poll(2) when nothing is there, so CPU time is what an I/O costs.

#![allow(unsafe_code)] // clock_gettime and getrusage

#[path = "../tests/support/mod.rs"]
mod support;

use block::{Bdev, Op};
use clock::Cycles;
use iscsi::io::{Interest, sleep_on};
use iscsi::{DigestPolicy, IscsiDisk, IscsiParams, Lun};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::peers::{self, Setup};
use support::{INITIATOR, Story, request};

fn main() {
    if !peers::installed("tgtd") || !peers::installed("iscsi-perf") {
        return;
    }
    let seconds = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(3);
    println!("digests  bytes  depth  ours: ns/IO  kIOPS   libiscsi: ns/IO  kIOPS   ratio");
    for digests in [false, true] {
        let setup = Setup { digests, ..Setup::default() };
        let peer = peers::tgt(setup, peers::free_port(), tempfile::tempdir().unwrap());
        for (bytes, depth) in [(4096, 1), (4096, 32), (4096, 128), (131_072, 8)] {
            let (ours, our_rate) = measure_ours(&peer, digests, bytes, depth, seconds);
            let (theirs, their_rate) = measure_libiscsi(&peer, digests, bytes, depth, seconds);
            println!(
                "{:7}  {bytes:6}  {depth:5}  {ours:11.0}  {:5.1}  {theirs:16.0}  {:5.1}   {:.2}",
                if digests { "CRC32C" } else { "None" },
                our_rate / 1e3,
                their_rate / 1e3,
                ours / theirs
            );
        }
    }
}

/// CPU nanoseconds an I/O, and I/Os a second.
fn measure_ours(peer: &peers::Peer, digests: bool, bytes: usize, depth: usize, seconds: u64) -> (f64, f64) {
    let mut params = IscsiParams::new("disk", INITIATOR, &peer.portal, &peer.target, Lun::from_number(peer.lun));
    let policy = if digests { DigestPolicy::Require } else { DigestPolicy::None };
    (params.header_digest, params.data_digest) = (policy, policy);
    let disk = IscsiDisk::attach(&params, Story::default().sink()).expect("attach");
    let mut channel = disk.open_channel().expect("channel");
    let mut done = block::Completions::with_capacity(depth);
    let mut random = 1u64;
    let mut place = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % (peers::LEN / bytes as u64) * bytes as u64
    };
    for _ in 0..depth {
        channel.submit(block::BlockRequest::new(request(Op::Read, place(), bytes)), &mut done);
    }
    let (start, cpu, mut count) = (Instant::now(), thread_cpu(), 0u64);
    while start.elapsed() < Duration::from_secs(seconds) {
        if channel.poll(Cycles::now(), &mut done) == 0 {
            let interests = channel.wake_fd().map(|fd| Interest { fd, writable: false });
            let limit = channel.deadline().since(Cycles::now()).to_duration();
            sleep_on(interests.as_slice(), limit);
        }
        for completed in done.drain().collect::<Vec<_>>() {
            count += 1;
            let mut request = completed.request;
            request.offset = place();
            channel.submit(block::BlockRequest::new(request), &mut done);
        }
    }
    let (cpu, wall) = (thread_cpu() - cpu, start.elapsed().as_secs_f64());
    while channel.outstanding() > 0 {
        channel.poll(Cycles::now(), &mut done);
        done.drain().for_each(drop);
    }
    (cpu.as_nanos() as f64 / count as f64, count as f64 / wall)
}

fn measure_libiscsi(peer: &peers::Peer, digests: bool, bytes: usize, depth: usize, seconds: u64) -> (f64, f64) {
    let option = if digests { "?header_digest=crc32c&data_digest=crc32c" } else { "" };
    let url = format!("iscsi://{}/{}/{}{option}", peer.portal, peer.target, peer.lun);
    let before = children_cpu();
    let output = Command::new("iscsi-perf")
        .args(["-i", INITIATOR, "-m", &depth.to_string(), "-b", &(bytes / 512).to_string(), "-r"])
        .args(["-t", &(seconds + 1).to_string(), &url])
        .stderr(Stdio::null())
        .output()
        .expect("iscsi-perf");
    let cpu = children_cpu() - before;
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "\n");
    // "iops average 35034 (137 MB/s)": the last line of the run counts.
    let average = text.lines().rev().find_map(|line| {
        let after = line.split("average").nth(1)?;
        after.split_whitespace().next()?.parse::<f64>().ok()
    });
    let rate = average.unwrap_or_else(|| panic!("iscsi-perf says {text:?}"));
    (cpu.as_nanos() as f64 / (rate * (seconds + 1) as f64), rate)
}

fn thread_cpu() -> Duration {
    // SAFETY: all zeros is a valid timespec, and the call only writes to it.
    let spent = unsafe {
        let mut spent: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut spent);
        spent
    };
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

fn children_cpu() -> Duration {
    // SAFETY: all zeros is a valid rusage, and the call only writes to it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let span = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    span(usage.ru_utime) + span(usage.ru_stime)
}
