//! A queue of requests that allocates nothing: they are linked through themselves.

use crate::{BlockRequest, Request};

/// A queue, first in, first out. Dropped with requests inside, it abandons them.
///
/// Two stacks: new requests go on `back`; when `front` is empty the whole of `back` is turned over. Each request is moved
/// twice, whatever the length.
#[derive(Debug, Default)]
pub struct RequestQueue {
    front: Option<Box<Request>>,
    back: Option<Box<Request>>,
    len: usize,
}

impl RequestQueue {
    /// An empty queue.
    pub const fn new() -> RequestQueue {
        RequestQueue { front: None, back: None, len: 0 }
    }

    /// Adds a request at the end.
    #[inline]
    pub fn push(&mut self, request: BlockRequest) {
        if let Some(mut request) = request.abandon() {
            request.next = self.back.take();
            self.back = Some(request);
            self.len += 1;
        }
    }

    /// Puts a request back at the front: it could not be served yet.
    pub fn push_front(&mut self, request: BlockRequest) {
        if let Some(mut request) = request.abandon() {
            request.next = self.front.take();
            self.front = Some(request);
            self.len += 1;
        }
    }

    /// Takes the first request.
    #[inline]
    pub fn pop(&mut self) -> Option<BlockRequest> {
        self.turn_over();
        let mut request = self.front.take()?;
        self.front = request.next.take();
        self.len -= 1;
        Some(BlockRequest::new(request))
    }

    /// The first request.
    #[inline]
    pub fn peek(&mut self) -> Option<&Request> {
        self.turn_over();
        self.front.as_deref()
    }

    /// How many wait.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn turn_over(&mut self) {
        if self.front.is_some() {
            return;
        }
        while let Some(mut request) = self.back.take() {
            self.back = request.next.take();
            request.next = self.front.take();
            self.front = Some(request);
        }
    }
}

impl Drop for RequestQueue {
    fn drop(&mut self) {
        // One by one: dropping a long chain of boxes at once would recurse.
        while let Some(request) = self.pop() {
            request.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::IoBuffers;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn numbered(number: u64) -> BlockRequest {
        let mut request = Request::new(IoBuffers::anonymous(1).unwrap());
        request.owner = number;
        BlockRequest::new(request)
    }

    fn number(request: BlockRequest) -> u64 {
        request.abandon().unwrap().owner
    }

    proptest! {
        /// Against the standard library's queue: 0 pops, 1 peeks, 2 pushes to the front, the rest to the end.
        #[test]
        fn it_is_a_queue(steps in prop::collection::vec(0..6, 0..200)) {
            let (mut queue, mut model) = (RequestQueue::new(), VecDeque::new());
            for (next, step) in steps.into_iter().enumerate() {
                let next = next as u64;
                match step {
                    0 => prop_assert_eq!(queue.pop().map(number), model.pop_front()),
                    1 => prop_assert_eq!(queue.peek().map(|request| request.owner), model.front().copied()),
                    2 => {
                        queue.push_front(numbered(next));
                        model.push_front(next);
                    }
                    _ => {
                        queue.push(numbered(next));
                        model.push_back(next);
                    }
                }
                prop_assert_eq!((queue.len(), queue.is_empty()), (model.len(), model.is_empty()));
            }
            while let Some(first) = model.pop_front() {
                prop_assert_eq!(queue.pop().map(number), Some(first));
            }
            prop_assert!(queue.pop().is_none());
        }
    }

    #[test]
    fn a_long_queue_is_dropped_without_recursion() {
        let mut queue = RequestQueue::new();
        let owner = std::sync::Arc::new(());
        for _ in 0..200_000 {
            queue.push(BlockRequest::new(Request::new(IoBuffers::new(owner.clone(), 0))));
        }
        drop(queue);
    }
}
