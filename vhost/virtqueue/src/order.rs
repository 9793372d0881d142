//! Completion in the order of availability (VIRTIO_F_IN_ORDER; virtio 1.3, 2.7.9 and 2.8.9).

use crate::ChainToken;

/// Completions that wait for those before them.
#[derive(Debug)]
pub(crate) struct InOrder {
    /// By sequence modulo size: a completion that is due but not next.
    waiting: Vec<Option<(ChainToken, u32)>>,
    /// How many wait.
    held: usize,
    next: u16,
}

impl InOrder {
    /// For at most `size` chains in flight whose sequence starts at 0.
    pub(crate) fn new(size: u16) -> InOrder {
        InOrder { waiting: vec![None; usize::from(size).next_power_of_two()], held: 0, next: 0 }
    }

    /// Takes `count` completions from `first` on if they are next and none waits for them, as for a device that works in order.
    /// Returns whether they were.
    #[inline(always)]
    pub(crate) fn advance_if_next(&mut self, first: ChainToken, count: u16) -> bool {
        let next = self.held == 0 && first.sequence() == self.next;
        if next {
            self.next = self.next.wrapping_add(count);
        }
        next
    }

    pub(crate) fn insert(&mut self, token: ChainToken, written: u32) {
        let at = usize::from(token.sequence()) & (self.waiting.len() - 1);
        debug_assert!(self.waiting[at].is_none(), "completed twice");
        self.waiting[at] = Some((token, written));
        self.held += 1;
    }

    /// The next completion in order, if it is there.
    pub(crate) fn take(&mut self) -> Option<(ChainToken, u32)> {
        let at = usize::from(self.next) & (self.waiting.len() - 1);
        let done = self.waiting[at].take()?;
        self.next = self.next.wrapping_add(1);
        self.held -= 1;
        Some(done)
    }
}
