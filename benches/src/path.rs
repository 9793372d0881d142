//! The whole path in this process: from a request in the available ring to its answer in the used ring, in cycles.
//!
//! The same requests go to a null disk, to a disk in memory, and, as nothing but the copy of their payload, to a plain array.
//! The disk fits into the second-level cache, so that what is seen is the path and not the memory.

use crate::instructions::measured;
use crate::measure::{Measurement, Pinned, Plan, RealTime, take_turns, timer_cost};
use crate::report::{Bars, Report, Table};
use crate::request::{BLOCK, Kind, MAX_DEPTH, Requests, SLOTS_LEN};
use anyhow::{Context, Result, anyhow, ensure};
use block::{Bdev, Malloc, MallocParams, Null, NullParams};
use clock::Cycles;
use engine::Source;
use guest_memory::{GuestAddress, GuestMemory};
use std::sync::Arc;
use testkit::Rng;
use virtio_spec::feature::{RING_EVENT_IDX, RING_PACKED, VERSION_1};
use virtqueue::driver::{Driver, ring_len};

const SIZE: u16 = 512;
const DEPTHS: [usize; 3] = [1, 32, 128];
const DISK: usize = 512 << 10;
const BLOCKS: u64 = (DISK / BLOCK) as u64;
/// Chains that virtio-blk takes from a queue in one turn.
const BURST: usize = 32;

/// Bursts whose instructions are counted.
const COUNTED_ROUNDS: usize = 2000;

/// A way to serve requests: cycles for a burst of them at `depth`.
trait Serve {
    fn burst(&mut self, kind: Kind, depth: usize) -> Result<Cycles>;
}

/// A disk behind a virtio-blk queue.
struct Disk {
    requests: Requests,
    random: Rng,
    source: Box<dyn Source>,
}

impl Disk {
    fn new(bdev: &dyn Bdev, packed: u64) -> Result<Disk> {
        let memory = Arc::new(GuestMemory::anonymous(SLOTS_LEN + ring_len(SIZE))?);
        let features = packed | RING_EVENT_IDX | VERSION_1;
        let mut driver = Driver::new(&memory, GuestAddress(SLOTS_LEN as u64), SIZE, features);
        driver.set_interrupts(false);
        let (source, _) = virtio_blk::stand_alone(bdev, &memory, &[driver.setup()]).map_err(|e| anyhow!("{e}"))?;
        Ok(Disk { requests: Requests::new(memory, driver, GuestAddress(0)), random: Rng::new(1), source })
    }

    /// Has a burst served by what `serve` does. Returns what that returns.
    fn round<T>(&mut self, kind: Kind, depth: usize, serve: impl FnOnce(&mut dyn Source) -> T) -> Result<T> {
        for slot in 0..depth {
            self.requests.submit(slot, kind, self.random.below(BLOCKS))?;
        }
        let result = serve(self.source.as_mut());
        for _ in 0..depth {
            ensure!(self.requests.take()?.is_some(), "a request is not served in {} turns", depth.div_ceil(BURST));
        }
        Ok(result)
    }
}

impl Serve for Disk {
    fn burst(&mut self, kind: Kind, depth: usize) -> Result<Cycles> {
        self.round(kind, depth, |source| {
            let start = Cycles::now();
            for _ in 0..depth.div_ceil(BURST) {
                source.poll(Cycles::now());
            }
            Cycles::now().since(start)
        })
    }
}

/// The payload's copy alone.
struct Copy {
    memory: GuestMemory,
    disk: Vec<u8>,
    random: Rng,
}

impl Serve for Copy {
    fn burst(&mut self, kind: Kind, depth: usize) -> Result<Cycles> {
        let places = [(); MAX_DEPTH].map(|()| self.random.below(BLOCKS) as usize * BLOCK);
        let start = Cycles::now();
        for (slot, &place) in places[..depth].iter().enumerate() {
            let (guest, disk) = (Requests::data(GuestAddress(0), slot), &mut self.disk[place..][..BLOCK]);
            match kind {
                Kind::Read => self.memory.write(guest, disk)?,
                Kind::Write => self.memory.read(guest, disk)?,
            }
        }
        Ok(Cycles::now().since(start))
    }
}

/// A way to serve, by the name that it has in the report.
type Variant = (&'static str, Box<dyn Serve>);

fn disks() -> Result<[(&'static str, Arc<dyn Bdev>); 2]> {
    let null = Null::create(NullParams::new("null", BLOCK as u32, BLOCKS))?;
    let ram = Malloc::create(MallocParams::new("ram", BLOCK as u32, BLOCKS))?;
    Ok([("null", null), ("ram", ram)])
}

/// For callgrind: serves bursts of the disk of this name.
pub(crate) fn instructions(disk: &str, kind: Kind, packed: u64) -> Result<u64> {
    let (_, bdev) = disks()?.into_iter().find(|(name, _)| *name == disk).context("no such disk")?;
    let mut disk = Disk::new(&*bdev, packed)?;
    for _ in 0..COUNTED_ROUNDS {
        let now = Cycles::now();
        disk.round(kind, BURST, |source| measured(|| source.poll(now)))?;
    }
    Ok((COUNTED_ROUNDS * BURST) as u64)
}

fn variants(packed: u64) -> Result<[Variant; 3]> {
    let [(_, null), (_, ram)] = disks()?;
    let copy = Copy { memory: GuestMemory::anonymous(SLOTS_LEN)?, disk: vec![1; DISK], random: Rng::new(1) };
    Ok([
        ("null", Box::new(Disk::new(&*null, packed)?)),
        ("ram", Box::new(Disk::new(&*ram, packed)?)),
        ("copy", Box::new(copy)),
    ])
}

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let _pinned = Pinned::to(plan.backend_cpu)?;
    let real_time = RealTime::enter();
    let timer = timer_cost();
    let mut table = Table::new(["ring", "request", "depth", "null", "ram", "copy alone", "ram without copy"]);
    let mut bars = Bars::new("path", "Whole path in process: cycles a 4 KiB request", "cycles");
    for (ring, packed) in [("split", 0), ("packed", RING_PACKED)] {
        let mut variants = variants(packed)?;
        for kind in [Kind::Read, Kind::Write] {
            for depth in DEPTHS {
                let bursts = plan.items.div_ceil(16 * depth);
                let windows = take_turns(plan.windows, &mut variants, |(_, serve)| {
                    let mut spent = 0;
                    for _ in 0..bursts {
                        spent += serve.burst(kind, depth)?.0.saturating_sub(timer);
                    }
                    Ok(spent as f64 / (bursts * depth) as f64)
                })?;
                let without: Vec<f64> = windows[1].iter().zip(&windows[2]).map(|(ram, copy)| ram - copy).collect();
                let mut row = vec![ring.to_owned(), kind.name().to_owned(), depth.to_string()];
                for ((name, _), figure) in variants.iter().zip(windows) {
                    let figure = Measurement::new(figure);
                    row.push(figure.show(0));
                    if ring == "split" {
                        bars.push(&format!("{} at {depth}", kind.name()), name, figure);
                    }
                }
                row.push(Measurement::new(without).show(0));
                table.push(row);
            }
        }
    }
    report.section("Whole path in process");
    report.text(&format!(
        "Cycles a 4 KiB request of one worker's source (take, parse, submit, complete, publish), random places on a disk of \
         {} KiB, one core{}. Median of {} windows (range). The aim is 600 cycles for a read on ram without its copy.",
        DISK >> 10,
        if real_time.permitted() { " under `chrt -f 1`" } else { "" },
        plan.windows,
    ));
    report.table(table);
    report.bars(bars)
}
