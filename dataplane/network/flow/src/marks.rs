//! The tier before all others: hardware has looked a packet up already, and its mark says which flow it belongs to.

use crate::action::PortNo;
use crate::prefetch::prefetch;

/// Marks that can be in use at a time. A mark has the place that its low bits say, and the others tell it from those that had the
/// place before.
pub const MARK_PLACES: u32 = 1 << 16;

/// A mark with the flow that it was given to, as that was then.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marked {
    /// 0 is no mark.
    pub(crate) mark: u32,
    /// Only what comes in by this port can have it.
    pub(crate) port: PortNo,
    pub(crate) epoch: u32,
    pub(crate) flow: u32,
    pub(crate) generation: u32,
}

/// The marks that were given to flows of this cache. Like the tiers behind it, it owns nothing: that a flow is gone is noticed when
/// its mark comes.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// Empty before the first mark.
    places: Vec<Marked>,
}

impl Marks {
    /// Whether no mark was ever given.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(crate) fn insert(&mut self, marked: Marked) {
        self.places.resize(MARK_PLACES as usize, Marked::default());
        self.places[place(marked.mark)] = marked;
    }

    /// Fetches what [`Marks::find`] reads.
    #[inline]
    pub(crate) fn prefetch(&self, mark: u32) {
        prefetch(&self.places, place(mark));
    }

    /// The flow that the mark was given to.
    #[inline]
    pub(crate) fn find(&self, mark: u32, port: PortNo, epoch: u32) -> Option<&Marked> {
        let found = self.places.get(place(mark))?;
        (mark != 0 && (found.mark, found.port, found.epoch) == (mark, port, epoch)).then_some(found)
    }
}

#[inline]
fn place(mark: u32) -> usize {
    (mark % MARK_PLACES) as usize
}
