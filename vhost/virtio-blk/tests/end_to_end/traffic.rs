//! Random requests, checked against a copy of the disk, whatever the driver.

use testkit::Rng;

/// Largest request.
pub(crate) const SLOT: u64 = 16 << 10;

/// What a request does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked {
    Read,
    Write,
    /// Write zeroes or discard, as the driver likes: the test's disk reads as zero after both.
    Zero,
    Flush,
}

/// What a driver does for the traffic, in its own words. A slot is a buffer of [`SLOT`] bytes with one request at a time.
pub(crate) trait Queue {
    fn submit(&mut self, asked: Asked, offset: u64, len: usize, slot: usize);
    /// Waits; gives back slots whose requests succeeded. Panics when none comes.
    fn completed(&mut self) -> Vec<usize>;
    fn put(&mut self, slot: usize, bytes: &[u8]);
    fn get(&mut self, slot: usize, bytes: &mut [u8]);
}

struct Request {
    asked: Asked,
    offset: u64,
    bytes: Vec<u8>,
}

/// The traffic of one queue. Each slot has a part of the disk to itself, so that the outcome does not depend on the order.
pub(crate) struct Traffic<'a> {
    rng: Rng,
    slots: Vec<Option<Request>>,
    /// First byte of this queue's part of the disk, and what is on it.
    base: u64,
    model: &'a mut [u8],
    completed: u64,
}

impl<'a> Traffic<'a> {
    pub(crate) fn new(seed: u64, depth: usize, base: u64, model: &'a mut [u8]) -> Traffic<'a> {
        let slots = (0..depth).map(|_| None).collect();
        Traffic { rng: Rng::new(seed), slots, base, model, completed: 0 }
    }

    /// Keeps all slots busy for as long as `go_on` says, given the completions so far, and then empties them.
    pub(crate) fn run(&mut self, queue: &mut dyn Queue, mut go_on: impl FnMut(u64) -> bool) {
        (0..self.slots.len()).for_each(|slot| self.next(queue, slot));
        while go_on(self.completed) {
            for slot in queue.completed() {
                self.check(queue, slot);
                self.next(queue, slot);
            }
        }
        while self.slots.iter().any(Option::is_some) {
            queue.completed().into_iter().for_each(|slot| self.check(queue, slot));
        }
    }

    fn next(&mut self, queue: &mut dyn Queue, slot: usize) {
        let part = self.model.len() as u64 / self.slots.len() as u64 / 512 * 512;
        let len = 512 * (1 + self.rng.below(part.min(SLOT) / 512));
        let offset = slot as u64 * part + 512 * self.rng.below((part - len) / 512 + 1);
        let asked = match self.rng.below(16) {
            0 => Asked::Flush,
            1..=2 => Asked::Zero,
            3..=9 => Asked::Write,
            _ => Asked::Read,
        };
        let mut bytes = vec![0; len as usize];
        if matches!(asked, Asked::Write) {
            let seed = self.rng.below(u64::MAX >> 40);
            bytes.chunks_mut(8).zip(seed..).for_each(|(word, n)| word.copy_from_slice(&n.to_le_bytes()));
            queue.put(slot, &bytes);
        }
        queue.submit(asked, self.base + offset, bytes.len(), slot);
        let before = self.slots[slot].replace(Request { asked, offset, bytes });
        assert!(before.is_none(), "a slot has one request");
    }

    fn check(&mut self, queue: &mut dyn Queue, slot: usize) {
        let Request { asked, offset, mut bytes } = self.slots[slot].take().expect("completed once");
        let model = &mut self.model[offset as usize..][..bytes.len()];
        match asked {
            Asked::Read => {
                queue.get(slot, &mut bytes);
                assert!(*bytes == *model, "slot {slot} read something else at {offset:#x}+{:#x}", bytes.len());
            }
            Asked::Write => model.copy_from_slice(&bytes),
            Asked::Zero => model.fill(0),
            Asked::Flush => {}
        }
        self.completed += 1;
    }
}
