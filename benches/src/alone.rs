//! The file backend alone, in this process: no ring, no socket, no client. A closed loop that sleeps when there is nothing to do.

use crate::client::Load;
use crate::measure::{Pinned, Plan, cpu_time};
use crate::request::{BLOCK, Kind};
use crate::window::{Demand, Window};
use anyhow::{Context, Result, ensure};
use block::{Bdev, BlockChannel, BlockRequest, Completions, FileBdev, FileParams, Op, Request, Status};
use clock::Cycles;
use hdrhistogram::Histogram;
use memory::IoBuffers;
use std::path::Path;
use std::time::Instant;
use testkit::Rng;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// A channel into a file, and what wakes its loop.
pub(crate) struct Alone {
    channel: Box<dyn BlockChannel>,
    bell: Epoll,
    blocks: u64,
    random: Rng,
}

impl Alone {
    pub(crate) fn open(file: &Path) -> Result<Alone> {
        let bdev = FileBdev::create(FileParams::new("file", file))?;
        let channel = bdev.open_channel()?;
        let bell = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        bell.ctl(ControlOperation::Add, channel.wake_fd().context("no io_uring")?, event)?;
        let blocks = bdev.geometry().size_bytes() / BLOCK as u64;
        Ok(Alone { channel, bell, blocks, random: Rng::new(1) })
    }

    pub(crate) fn window(&mut self, plan: &Plan, demand: Demand) -> Result<Window> {
        let _pinned = Pinned::to(plan.backend_cpu)?;
        let before = cpu_time(std::process::id())?;
        let load = self.load(demand)?;
        let cpu = cpu_time(std::process::id())? - before;
        Ok(Window::of(&load, cpu, f64::NAN))
    }

    fn load(&mut self, demand: Demand) -> Result<Load> {
        let mut latency = Histogram::new_with_bounds(1, 1 << 40, 3)?;
        let mut done = Completions::with_capacity(demand.depth);
        let mut idle = Vec::with_capacity(demand.depth);
        for _ in 0..demand.depth {
            idle.push(Request::new(IoBuffers::anonymous(BLOCK)?));
        }
        let (start, mut now) = (Instant::now(), Cycles::now());
        let end = now + Cycles::from(demand.span);
        while now < end || idle.len() < demand.depth {
            if now < end {
                idle.drain(..).for_each(|request| self.submit(request, demand.kind, now, &mut done));
            }
            let events = self.channel.poll(now, &mut done);
            now = Cycles::now();
            for completed in done.drain() {
                ensure!(completed.status == Status::Ok, "a request ended with {:?}", completed.status);
                latency.saturating_record(now.since(completed.request.submitted).0);
                idle.push(completed.request);
            }
            if events == 0 {
                // The kernel may end it early, to have us run what completes a request.
                let _woken_or_interrupted = self.bell.wait(100, &mut [EpollEvent::default()]);
                now = Cycles::now();
            }
        }
        Ok(Load { elapsed: start.elapsed(), latency })
    }

    fn submit(&mut self, mut request: Box<Request>, kind: Kind, now: Cycles, done: &mut Completions) {
        request.op = match kind {
            Kind::Read => Op::Read,
            Kind::Write => Op::Write,
        };
        (request.offset, request.len) = (self.random.below(self.blocks) * BLOCK as u64, BLOCK as u64);
        request.submitted = now;
        self.channel.submit(BlockRequest::new(request), done);
    }
}
