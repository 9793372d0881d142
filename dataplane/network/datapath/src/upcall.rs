//! Upcalls: from a worker to the upcall handler, and the packets that wait for the reply.

use crate::PortNo;
use crate::limits::{PENDING_PACKETS, PENDING_UPCALLS};
use arrayvec::ArrayVec;
use crossbeam::queue::ArrayQueue;
use flow::{Key, Miniflow};
use packet::Packet;
use std::sync::OnceLock;
use std::thread::Thread;

/// A packet that no megaflow matches.
#[derive(Debug)]
pub(crate) struct Upcall {
    pub(crate) worker: usize,
    pub(crate) ticket: Ticket,
    pub(crate) key: Key,
    /// The cache has no room for another mask: the megaflow is to match no more than the packet's connection.
    pub(crate) narrow: bool,
}

/// The upcalls of all workers, for the thread of the upcall handler.
#[derive(Debug)]
pub(crate) struct Upcalls {
    queue: ArrayQueue<Upcall>,
    handler: OnceLock<Thread>,
}

impl Upcalls {
    /// A queue with room for all pending upcalls of `workers` workers: it is never full.
    pub(crate) fn new(workers: usize) -> Upcalls {
        Upcalls { queue: ArrayQueue::new(workers.max(1) * PENDING_UPCALLS), handler: OnceLock::new() }
    }

    /// Sets the thread that upcalls wake.
    pub(crate) fn set_handler(&self, thread: Thread) {
        let _ = self.handler.set(thread); // set once, by the thread that starts the handler
    }

    /// Queues an upcall; `false` if there is no room.
    pub(crate) fn push(&self, upcall: Upcall) -> bool {
        self.queue.push(upcall).is_ok()
    }

    /// Wakes the upcall handler; called once a turn.
    pub(crate) fn notify(&self) {
        if let Some(thread) = self.handler.get() {
            thread.unpark();
        }
    }

    pub(crate) fn take(&self) -> Option<Upcall> {
        self.queue.pop()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// Names one pending upcall of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    slot: u32,
    generation: u32,
}

/// A packet for which there is no room among the pending upcalls.
#[derive(Debug)]
pub(crate) struct Full(pub(crate) Packet);

#[derive(Debug)]
struct Slot {
    generation: u32,
    port: PortNo,
    key: Key,
    packets: ArrayVec<Packet, PENDING_PACKETS>,
}

/// The pending upcalls of one worker, each with the packets that wait for the reply, in order. All memory is allocated at the
/// start.
#[derive(Debug)]
pub(crate) struct PendingUpcalls {
    slots: Vec<Slot>,
    /// The hash of each slot's key; 0 for a free one.
    hashes: Vec<u64>,
    free: Vec<u32>,
}

impl PendingUpcalls {
    pub(crate) fn new() -> PendingUpcalls {
        let slot = || Slot { generation: 0, port: 0, key: Key::EMPTY, packets: ArrayVec::new() };
        PendingUpcalls {
            slots: (0..PENDING_UPCALLS).map(|_| slot()).collect(),
            hashes: vec![0; PENDING_UPCALLS],
            free: (0..PENDING_UPCALLS as u32).rev().collect(),
        }
    }

    /// The number of pending upcalls.
    pub(crate) fn len(&self) -> usize {
        PENDING_UPCALLS - self.free.len()
    }

    /// The pending upcall of packets with this key.
    pub(crate) fn find(&self, miniflow: &Miniflow) -> Option<usize> {
        if self.len() == 0 {
            return None;
        }
        let hash = hash(miniflow);
        let mut same = self.hashes.iter().enumerate().filter(|(_, own)| **own == hash);
        same.find(|(at, _)| self.slots[*at].key == *miniflow.key()).map(|(at, _)| at)
    }

    /// Adds a packet to the pending upcall that [`find`](PendingUpcalls::find) found.
    pub(crate) fn append(&mut self, at: usize, packet: Packet) -> Result<(), Full> {
        self.slots[at].packets.try_push(packet).map_err(|full| Full(full.element()))
    }

    /// Adds a pending upcall with its first packet.
    pub(crate) fn insert(&mut self, miniflow: &Miniflow, port: PortNo, packet: Packet) -> Result<Ticket, Full> {
        let Some(at) = self.free.pop() else { return Err(Full(packet)) };
        let slot = &mut self.slots[at as usize];
        slot.key = *miniflow.key();
        slot.port = port;
        slot.packets.push(packet);
        self.hashes[at as usize] = hash(miniflow);
        Ok(Ticket { slot: at, generation: slot.generation })
    }

    /// The key of a pending upcall; `None` if it is pending no more.
    pub(crate) fn key(&self, ticket: Ticket) -> Option<&Key> {
        let slot = &self.slots[ticket.slot as usize];
        (slot.generation == ticket.generation).then_some(&slot.key)
    }

    /// Takes out a pending upcall: its port, and its packets in order.
    pub(crate) fn take(&mut self, ticket: Ticket) -> Option<(PortNo, ArrayVec<Packet, PENDING_PACKETS>)> {
        self.key(ticket)?;
        Some(self.free_slot(ticket.slot as usize))
    }

    /// Takes out a pending upcall that satisfies `wanted`, as long as there is one.
    pub(crate) fn take_matching(
        &mut self,
        wanted: impl Fn(PortNo, &Key) -> bool,
    ) -> Option<(PortNo, ArrayVec<Packet, PENDING_PACKETS>)> {
        if self.len() == 0 {
            return None;
        }
        let mut taken = self.hashes.iter().enumerate().filter(|(_, hash)| **hash != 0);
        let at = taken.find(|(at, _)| wanted(self.slots[*at].port, &self.slots[*at].key))?.0;
        Some(self.free_slot(at))
    }

    fn free_slot(&mut self, at: usize) -> (PortNo, ArrayVec<Packet, PENDING_PACKETS>) {
        let slot = &mut self.slots[at];
        slot.generation = slot.generation.wrapping_add(1);
        self.hashes[at] = 0;
        self.free.push(at as u32);
        (slot.port, std::mem::take(&mut slot.packets))
    }
}

/// A hash that is never 0. A sender who makes collisions makes only these few comparisons longer.
fn hash(miniflow: &Miniflow) -> u64 {
    let words = miniflow.key().words();
    let (mut map, mut hash) = (miniflow.bitmap(), 0_u64);
    while map != 0 {
        hash = (hash.rotate_left(5) ^ words[map.trailing_zeros() as usize]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        map &= map - 1;
    }
    hash | 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow::field;
    use packet::Pool;

    fn miniflow(n: u64) -> Miniflow {
        let mut key = Key::EMPTY;
        key.set(field::ETH_SRC, n);
        Miniflow::from(&key)
    }

    #[test]
    fn packets_wait_in_order_and_within_bounds() {
        let pool = Pool::new(1024, None).unwrap();
        let mut pending = PendingUpcalls::new();
        let ticket = pending.insert(&miniflow(1), 3, pool.take_one().unwrap()).unwrap();
        for n in 1..PENDING_PACKETS {
            let mut packet = pool.take_one().unwrap();
            packet.append(n).unwrap();
            let at = pending.find(&miniflow(1)).unwrap();
            pending.append(at, packet).unwrap();
        }
        let at = pending.find(&miniflow(1)).unwrap();
        assert!(pending.append(at, pool.take_one().unwrap()).is_err());
        assert!(pending.find(&miniflow(2)).is_none());
        let (port, packets) = pending.take(ticket).unwrap();
        assert_eq!(port, 3);
        assert!(packets.iter().enumerate().all(|(n, packet)| packet.len() == n));
        assert!(pending.take(ticket).is_none(), "once");
        for n in 0..PENDING_UPCALLS as u64 {
            pending.insert(&miniflow(n), 1, pool.take_one().unwrap()).unwrap();
        }
        assert!(pending.insert(&miniflow(9999), 1, pool.take_one().unwrap()).is_err());
        assert!(pending.take_matching(|_, key| key.get(field::ETH_SRC) == 17).is_some());
        while pending.take_matching(|port, _| port == 1).is_some() {}
        drop((packets, pending));
        assert_eq!(pool.free_count(), 1024);
    }
}
