//! A packet's key that remembers what was looked at.

use flow::key::{Field, Wide};
use flow::{Key, Mask};

/// Whoever decides over a packet reads its key through this: what was read is the mask of the megaflow, so that every packet that
/// agrees with it would be decided alike.
#[derive(Debug)]
pub(crate) struct Tracked<'a> {
    key: &'a Key,
    mask: Mask,
}

impl<'a> Tracked<'a> {
    pub(crate) fn new(key: &'a Key) -> Tracked<'a> {
        Tracked { key, mask: Mask::EMPTY }
    }

    pub(crate) fn get(&mut self, field: Field) -> u64 {
        self.mask.set_exact(field);
        self.key.get(field)
    }

    pub(crate) fn get_wide(&mut self, field: Wide) -> u128 {
        self.mask.set_exact_wide(field);
        self.key.get_wide(field)
    }

    /// What was looked at.
    pub(crate) fn mask(&self) -> Mask {
        self.mask
    }
}
