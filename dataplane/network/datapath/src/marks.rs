//! Marks: by them hardware tells workers which flow a packet belongs to.

use crate::limits::{LAST_MARK, MARKS};
use flow::MARK_PLACES;
use parking_lot::Mutex;
use std::collections::HashSet;

/// The marks that are in use, each in a place of its own in the workers' tables.
#[derive(Debug, Default)]
pub struct Marks(Mutex<InUse>);

#[derive(Debug, Default)]
struct InUse {
    last: u32,
    places: HashSet<u32>,
}

impl Marks {
    /// Takes a mark that no flow has; `None` where too many are in use.
    pub(crate) fn take(&self) -> Option<u32> {
        let mut in_use = self.0.lock();
        if in_use.places.len() >= MARKS {
            return None;
        }
        loop {
            in_use.last = in_use.last % LAST_MARK + 1;
            let mark = in_use.last;
            if in_use.places.insert(mark % MARK_PLACES) {
                return Some(mark);
            }
        }
    }

    /// Gives a mark back that no flow has any more.
    pub(crate) fn give_back(&self, mark: u32) {
        self.0.lock().places.remove(&(mark % MARK_PLACES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_reused_late_and_never_while_its_place_is_taken() {
        let marks = Marks::default();
        assert_eq!(marks.take(), Some(1));
        let mut last = 1;
        for _ in 0..LAST_MARK {
            let next = marks.take().unwrap();
            marks.give_back(next);
            assert_ne!(next % MARK_PLACES, 1);
            assert!(next > last || last > LAST_MARK - 2 && next < 3, "{next} after {last}");
            last = next;
        }
        marks.give_back(1);
        let all: Vec<u32> = std::iter::from_fn(|| marks.take()).collect();
        let places: HashSet<u32> = all.iter().map(|mark| mark % MARK_PLACES).collect();
        assert_eq!((all.len(), places.len()), (MARKS, MARKS));
        all.into_iter().for_each(|mark| marks.give_back(mark));
        assert!(marks.take().is_some());
    }
}
