//! Marks: by them hardware tells workers which flow a packet belongs to.

use flow::MARK_PLACES;
use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};

/// Marks are given in turn up to this one: 8 million others come before one is given again, and devices that keep 24 bits of a mark
/// take them all.
const LAST: u32 = (1 << 23) - 1;
/// Most that are in use at a time: with a place free in eight, the next one is near.
const IN_USE: usize = MARK_PLACES as usize / 8 * 7;

/// The marks that are in use, each in a place of its own in the workers' tables.
#[derive(Debug, Default)]
pub struct Marks(Mutex<InUse>);

#[derive(Debug, Default)]
struct InUse {
    last: u32,
    places: HashSet<u32>,
}

impl Marks {
    fn lock(&self) -> MutexGuard<'_, InUse> {
        self.0.lock().expect("no panic under this lock")
    }

    /// A mark that nobody has; `None` where too many are in use.
    pub(crate) fn take(&self) -> Option<u32> {
        let mut in_use = self.lock();
        if in_use.places.len() >= IN_USE {
            return None;
        }
        loop {
            in_use.last = in_use.last % LAST + 1;
            let mark = in_use.last;
            if in_use.places.insert(mark % MARK_PLACES) {
                return Some(mark);
            }
        }
    }

    /// Nobody has this mark any more.
    pub(crate) fn give_back(&self, mark: u32) {
        self.lock().places.remove(&(mark % MARK_PLACES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_late_and_never_while_its_place_is_taken() {
        let marks = Marks::default();
        assert_eq!(marks.take(), Some(1));
        let mut last = 1;
        for _ in 0..LAST {
            let next = marks.take().unwrap();
            marks.give_back(next);
            assert_ne!(next % MARK_PLACES, 1);
            assert!(next > last || last > LAST - 2 && next < 3, "{next} after {last}");
            last = next;
        }
        marks.give_back(1);
        let all: Vec<u32> = std::iter::from_fn(|| marks.take()).collect();
        let places: HashSet<u32> = all.iter().map(|mark| mark % MARK_PLACES).collect();
        assert_eq!((all.len(), places.len()), (IN_USE, IN_USE));
        all.into_iter().for_each(|mark| marks.give_back(mark));
        assert!(marks.take().is_some());
    }
}
