//! The ring alone: cycles that the device side of a virtqueue spends on a chain.
//!
//! Driver and device take turns on one core. Only the device's part is timed: pop until there is no more, complete each, flush
//! once. What the reading of the clock costs is subtracted.

use crate::instructions::measured;
use crate::measure::{Measurement, Pinned, Plan, RealTime, take_turns, timer_cost};
use crate::report::{Bars, Report, Table};
use anyhow::{Context, Result};
use clock::Cycles;
use guest_memory::{GuestAddress, GuestMemory, UserAddress};
use std::sync::Arc;
use virtio_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED, VERSION_1};
use virtqueue::driver::{Buffer, Driver};
use virtqueue::{Chain, Token, Virtqueue, inflight};

const SIZE: u16 = 512;
const BATCHES: [usize; 4] = [1, 8, 32, 128];
/// Batches whose instructions are counted, and their chains.
const COUNTED_ROUNDS: usize = 2000;
const COUNTED_BATCH: usize = 32;
const MEMORY: usize = 1 << 20;
const RING: GuestAddress = GuestAddress(0);
const INFLIGHT: UserAddress = UserAddress(0x2_0000);
const TABLES: u64 = 0x4_0000;
const DATA: u64 = 0x8_0000;

/// A kind of ring and of chain.
struct Shape {
    name: &'static str,
    features: u64,
    /// Descriptors a chain.
    chain: usize,
    inflight: bool,
}

const fn shape(name: &'static str, features: u64) -> Shape {
    Shape { name, features, chain: 1, inflight: false }
}

const SHAPES: [Shape; 7] = [
    shape("plain", 0),
    shape("in order", IN_ORDER),
    shape("event idx", RING_EVENT_IDX),
    Shape { inflight: true, ..shape("inflight region", 0) },
    Shape { chain: 3, ..shape("chain of 3", 0) },
    Shape { chain: 3, ..shape("indirect table of 3", RING_INDIRECT_DESC) },
    Shape {
        chain: 3,
        inflight: true,
        ..shape("of 3, indirect, event idx, inflight", RING_INDIRECT_DESC | RING_EVENT_IDX)
    },
];

/// A driver and a device on one ring.
struct Rig {
    driver: Driver,
    queue: Virtqueue,
    chain: Chain,
    tokens: Vec<Token>,
    buffers: Vec<Buffer>,
    indirect: bool,
    next_table: u64,
}

impl Rig {
    fn new(shape: &Shape, packed: u64) -> Result<Rig> {
        let memory = Arc::new(GuestMemory::anonymous(MEMORY)?);
        let mut driver = Driver::new(&memory, RING, SIZE, shape.features | packed | VERSION_1);
        driver.set_interrupts(false);
        let mut setup = driver.setup();
        if shape.inflight {
            let len = inflight::region_len(packed != 0, SIZE);
            setup.inflight = Some(memory.user_window(INFLIGHT, len, 64)?);
        }
        let mut queue = Virtqueue::new(memory, &setup)?;
        queue.disarm();
        let buffers = (0..shape.chain as u64).map(|i| (GuestAddress(DATA + i * 0x1000), 4096, i > 0)).collect();
        let indirect = shape.features & RING_INDIRECT_DESC != 0;
        let (chain, tokens) = (Virtqueue::chain(SIZE), Vec::with_capacity(usize::from(SIZE)));
        Ok(Rig { driver, queue, chain, tokens, buffers, indirect, next_table: 0 })
    }

    fn add(&mut self) -> Result<()> {
        let id = if self.indirect {
            self.next_table = (self.next_table + 1) % u64::from(SIZE);
            self.driver.add_indirect(GuestAddress(TABLES + self.next_table * 64), &self.buffers)
        } else {
            self.driver.add(&self.buffers)
        };
        id.map(drop).context("the ring is full")
    }

    /// The device's part.
    #[inline(always)]
    fn serve(&mut self) -> Result<()> {
        while self.queue.pop(&mut self.chain)? {
            self.tokens.push(self.chain.token());
        }
        for token in self.tokens.drain(..) {
            self.queue.complete(token, 4096);
        }
        // With event idx even a driver that polls is notified once in 65,536 chains.
        std::hint::black_box(self.queue.flush());
        Ok(())
    }

    /// Has `batch` chains served by what `serve` does. Returns what that returns.
    fn round<T>(&mut self, batch: usize, serve: impl FnOnce(&mut Rig) -> Result<T>) -> Result<T> {
        (0..batch).try_for_each(|_| self.add())?;
        let result = serve(self)?;
        for _ in 0..batch {
            self.driver.take_used().context("a chain did not come back")?;
        }
        Ok(result)
    }

    /// Cycles a chain, over about `items` chains in batches of `batch`.
    fn window(&mut self, batch: usize, items: usize, timer: u64) -> Result<f64> {
        let rounds = items.div_ceil(batch);
        let mut spent = 0;
        for _ in 0..rounds {
            let cycles = self.round(batch, |rig| {
                let start = Cycles::now();
                rig.serve()?;
                Ok(Cycles::now().since(start))
            })?;
            spent += cycles.0.saturating_sub(timer);
        }
        Ok(spent as f64 / (rounds * batch) as f64)
    }
}

/// For callgrind: serves batches of 32 of the shape of this name.
pub(crate) fn instructions(shape: &str, packed: u64) -> Result<u64> {
    let shape = SHAPES.iter().find(|it| it.name == shape).context("no such shape")?;
    let mut rig = Rig::new(shape, packed)?;
    for _ in 0..COUNTED_ROUNDS {
        rig.round(COUNTED_BATCH, |rig| measured(|| rig.serve()))?;
    }
    Ok((COUNTED_ROUNDS * COUNTED_BATCH) as u64)
}

pub(crate) fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let _pinned = Pinned::to(plan.backend_cpu)?;
    let real_time = RealTime::enter();
    let timer = timer_cost();
    let batches = BATCHES.map(|batch| format!("batch {batch}"));
    let columns = ["ring", "chain"].into_iter().map(str::to_owned).chain(batches);
    let mut table = Table::new(columns.chain(["best at 32".to_owned(), "a descriptor at 32".to_owned()]));
    let mut bars = Bars::new("ring", "Ring alone: device-side cycles a chain at batch 32", "cycles");
    for (layout, packed) in [("split", 0), ("packed", RING_PACKED)] {
        for shape in &SHAPES {
            let mut rig = Rig::new(shape, packed)?;
            let window = |batch: &mut usize| rig.window(*batch, plan.items, timer);
            let figures: Vec<_> =
                take_turns(plan.windows, &mut BATCHES.clone(), window)?.into_iter().map(Measurement::new).collect();
            let at_32 = &figures[2];
            let mut row = vec![layout.to_owned(), shape.name.to_owned()];
            row.extend(figures.iter().map(|figure| figure.show(1)));
            row.push(format!("{:.1}", at_32.min()));
            row.push(format!("{:.1}", at_32.median() / shape.chain as f64));
            table.push(row);
            bars.push(shape.name, layout, at_32.clone());
        }
    }
    report.section("Ring alone");
    report.text(&format!(
        "Device-side cycles a chain (pop, complete, and one flush a batch; the driver's part is not timed), one core{}, ring of \
         {SIZE} entries, chains of one descriptor where not said otherwise. Median of {} windows (range). The aim is 15 \
         cycles a descriptor at batch 32.",
        if real_time.permitted() { " under `chrt -f 1`" } else { ", no real-time priority permitted" },
        plan.windows,
    ));
    report.table(table);
    report.bars(bars)
}
