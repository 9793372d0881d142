//! Requests that a channel holds: for room in the queue, for a connection, or for the fence of a lost one.

use crate::Fence;
use clock::Cycles;
use std::collections::VecDeque;

/// Requests that wait before a list grows.
const WAITING: usize = 256;

/// A request that can be held.
pub trait HeldRequest {
    /// When the request was submitted.
    fn submitted(&self) -> Cycles;
    /// Whether the request changes the medium, so that executing it late does harm.
    fn changes_medium(&self) -> bool;
}

/// The requests that a channel holds.
#[derive(Debug)]
pub struct HeldRequests<R> {
    /// Requests that can be sent as soon as there is a connection with room, oldest first.
    waiting: VecDeque<R>,
    /// Requests that the target may still execute, each with its connection.
    fenced: VecDeque<(u64, R)>,
}

impl<R: HeldRequest> HeldRequests<R> {
    /// An empty list.
    #[allow(clippy::new_without_default)] // allocates
    pub fn new() -> HeldRequests<R> {
        HeldRequests { waiting: VecDeque::with_capacity(WAITING), fenced: VecDeque::with_capacity(WAITING) }
    }

    /// Adds a request at the end.
    #[inline]
    pub fn push(&mut self, request: R) {
        self.waiting.push_back(request);
    }

    /// Puts a request back to the front: it is to be sent next.
    #[inline]
    pub fn push_front(&mut self, request: R) {
        self.waiting.push_front(request);
    }

    /// Takes the first request that can be sent.
    #[inline]
    pub fn pop(&mut self) -> Option<R> {
        self.waiting.pop_front()
    }

    /// Whether a request can be sent.
    #[inline]
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The number of requests that can be sent and of those behind a fence.
    pub fn count(&self) -> usize {
        self.waiting.len() + self.fenced.len()
    }

    /// The number of requests behind a fence.
    #[inline]
    pub fn fenced(&self) -> usize {
        self.fenced.len()
    }

    /// Takes back a request of a lost `connection`, the newest first. `started` says that the target may have seen it.
    /// Returns whether it is fenced.
    pub fn take_back(&mut self, connection: u64, started: bool, request: R) -> bool {
        let is_fenced = started && request.changes_medium();
        if is_fenced {
            self.fenced.push_front((connection, request));
        } else {
            self.waiting.push_front(request);
        }
        is_fenced
    }

    /// Makes the fenced requests of released connections ready to be sent, first of all. Returns their number.
    pub fn lift(&mut self, fence: &Fence) -> usize {
        let (released, before) = (fence.released(), self.waiting.len());
        // Newest first: each goes to the front, so the oldest ends up first.
        for at in (0..self.fenced.len()).rev() {
            if self.fenced[at].0 <= released
                && let Some((_, request)) = self.fenced.remove(at)
            {
                self.waiting.push_front(request);
            }
        }
        self.waiting.len() - before
    }

    /// When the oldest request was submitted.
    pub fn oldest(&self) -> Cycles {
        let waiting = self.waiting.iter().map(HeldRequest::submitted);
        let fenced = self.fenced.iter().map(|(_, request)| request.submitted());
        waiting.chain(fenced).min().unwrap_or(Cycles::NEVER)
    }

    /// Takes out all requests, because their channel is dropped or its connection is given up. Whether the target may still
    /// execute some of them is noted in `fence`, for the next channel's sake.
    pub fn take_all(&mut self, fence: &Fence) -> impl Iterator<Item = R> {
        if let Some(connection) = self.fenced.iter().map(|(connection, _)| *connection).max() {
            fence.abandon(connection);
        }
        self.fenced.drain(..).map(|(_, request)| request).chain(self.waiting.drain(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Fake(u64, bool);

    impl HeldRequest for Fake {
        fn submitted(&self) -> Cycles {
            Cycles(self.0)
        }

        fn changes_medium(&self) -> bool {
            self.1
        }
    }

    #[test]
    fn fenced_writes_go_out_first_and_in_order_once_released() {
        let (mut held, fence) = (HeldRequests::new(), Fence::default());
        held.push(Fake(5, true));
        // In flight when connection 3 died: writes 1 and 2, read 3; write 4 was not sent.
        assert!(!held.take_back(3, false, Fake(4, true)));
        assert!(!held.take_back(3, true, Fake(3, false)));
        assert!(held.take_back(3, true, Fake(2, true)) && held.take_back(3, true, Fake(1, true)));
        assert_eq!((held.fenced(), held.count(), held.oldest()), (2, 5, Cycles(1)));
        fence.release(2);
        assert_eq!(held.lift(&fence), 0);
        fence.release(3);
        assert_eq!(held.lift(&fence), 2);
        let order: Vec<u64> = std::iter::from_fn(|| held.pop()).map(|request| request.0).collect();
        assert_eq!(order, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_channel_dropped_with_fenced_writes_blocks_new_queues() {
        let (mut held, fence) = (HeldRequests::new(), Fence::default());
        held.take_back(1, true, Fake(1, true));
        assert_eq!(held.take_all(&fence).count(), 1);
        assert!(fence.blocks_new_queues());
        fence.release(1);
        assert!(!fence.blocks_new_queues());
    }
}
