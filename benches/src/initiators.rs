//! The initiators: CPU time an I/O of each alone, iSCSI against libiscsi on the same tgt, and NVMe/TCP against SPDK's.
//!
//! For NVMe/TCP there is no peer among Debian's packages: SPDK is asked for with `--spdk DIR`.

pub(crate) mod alone;
mod bare;
mod libiscsi;
mod spdk;

use crate::measure::Plan;
use crate::report::Report;
use crate::request::Kind;
use anyhow::{Result, ensure};
use block::{BlockChannel, BlockRequest, Completions, Op, Request, Status};
use clock::Cycles;
use memory::IoBuffers;
use std::path::Path;
use testkit::Rng;

pub(crate) fn run(plan: &Plan, spdk: Option<&Path>, report: &mut Report) -> Result<()> {
    alone::run(plan, report)?;
    libiscsi::run(plan, report)?;
    spdk::run(plan, spdk, report)
}

/// Reads, or writes, at random places, as many as the depth.
#[allow(clippy::vec_box, reason = "the block seam takes boxed requests")]
struct Reads {
    kind: Kind,
    len: u64,
    places: u64,
    depth: usize,
    random: Rng,
    idle: Vec<Box<Request>>,
    done: Completions,
}

impl Reads {
    fn new(len: usize, depth: usize, disk_len: u64) -> Result<Reads> {
        let idle = (0..depth).map(|_| Ok(Request::new(IoBuffers::anonymous(len)?))).collect::<Result<_>>()?;
        let (len, done) = (len as u64, Completions::with_capacity(depth));
        Ok(Reads { kind: Kind::Read, len, places: disk_len / len, depth, random: Rng::new(1), idle, done })
    }

    fn are_idle(&self) -> bool {
        self.idle.len() == self.depth
    }

    /// Submits all that are idle.
    fn submit(&mut self, channel: &mut dyn BlockChannel) {
        for mut request in self.idle.drain(..) {
            let offset = self.random.below(self.places) * self.len;
            request.op = match self.kind {
                Kind::Read => Op::Read,
                Kind::Write => Op::Write,
            };
            (request.offset, request.len) = (offset, self.len);
            channel.submit(BlockRequest::new(request), &mut self.done);
        }
    }

    /// Polls once. Returns the events that the channel saw, and how many reads have ended.
    fn poll(&mut self, channel: &mut dyn BlockChannel) -> Result<(usize, usize)> {
        let events = channel.poll(Cycles::now(), &mut self.done);
        let ended = self.done.len();
        for completed in self.done.drain() {
            ensure!(completed.status == Status::Ok, "a request ended with {:?}", completed.status);
            self.idle.push(completed.request);
        }
        Ok((events, ended))
    }
}
