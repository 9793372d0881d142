//! Misses: from a worker to the translation, and the packets that wait for the answer.

use crate::PortNo;
use arrayvec::ArrayVec;
use crossbeam::queue::ArrayQueue;
use flow::{Key, Miniflow};
use packet::Packet;
use std::sync::OnceLock;
use std::thread::Thread;

/// Flows of one worker that may wait for the translation.
pub const PARKED_FLOWS: usize = 256;
/// How many of those may be of one port: so one that is flooded leaves room for the others.
pub const PARKED_FLOWS_OF_A_PORT: u32 = 64;
/// Packets of one flow that may wait.
pub const PARKED_PACKETS: usize = 64;

/// A packet that no megaflow matches.
#[derive(Debug)]
pub(crate) struct Upcall {
    pub(crate) worker: usize,
    pub(crate) ticket: Ticket,
    pub(crate) key: Key,
    /// The cache has no room for another mask: the megaflow is to match no more than the packet's connection.
    pub(crate) narrow: bool,
}

/// The upcalls of all workers, for the one thread that translates.
#[derive(Debug)]
pub(crate) struct Upcalls {
    queue: ArrayQueue<Upcall>,
    translator: OnceLock<Thread>,
}

impl Upcalls {
    /// A queue with room for everything that `workers` workers can park: it is never full.
    pub(crate) fn new(workers: usize) -> Upcalls {
        Upcalls { queue: ArrayQueue::new(workers.max(1) * PARKED_FLOWS), translator: OnceLock::new() }
    }

    /// Names the thread that is to be woken.
    pub(crate) fn set_translator(&self, thread: Thread) {
        // Set once, by the thread that starts it.
        let _ = self.translator.set(thread);
    }

    /// Queues an upcall; `false` if there is no room.
    pub(crate) fn push(&self, upcall: Upcall) -> bool {
        self.queue.push(upcall).is_ok()
    }

    /// Wakes the translation. Once a turn.
    pub(crate) fn notify(&self) {
        if let Some(thread) = self.translator.get() {
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

/// Names the packets that wait for one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    slot: u32,
    generation: u32,
}

/// What became of a packet that no megaflow matches.
#[derive(Debug)]
pub(crate) enum Parked {
    /// It is the first of its flow: the translation is to be asked.
    First(Ticket),
    /// It waits behind others of its flow.
    Behind,
    /// It cannot wait: its flow, or the worker, has as many waiting as it may.
    Refused(Packet),
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    port: PortNo,
    key: Key,
    packets: ArrayVec<Packet, PARKED_PACKETS>,
}

/// The packets of one worker that wait, by flow and in order. All memory is allocated at the start.
#[derive(Debug)]
pub(crate) struct Parking {
    slots: Vec<Slot>,
    /// The hash of each slot's key; 0 for a free one.
    hashes: Vec<u64>,
    free: Vec<u32>,
}

impl Parking {
    pub(crate) fn new() -> Parking {
        let slot = || Slot { generation: 0, port: 0, key: Key::EMPTY, packets: ArrayVec::new() };
        Parking {
            slots: (0..PARKED_FLOWS).map(|_| slot()).collect(),
            hashes: vec![0; PARKED_FLOWS],
            free: (0..PARKED_FLOWS as u32).rev().collect(),
        }
    }

    /// Flows that wait.
    pub(crate) fn len(&self) -> usize {
        PARKED_FLOWS - self.free.len()
    }

    /// Whether packets with this key wait already.
    pub(crate) fn find(&self, miniflow: &Miniflow) -> Option<usize> {
        if self.len() == 0 {
            return None;
        }
        let hash = hash(miniflow);
        let mut same = self.hashes.iter().enumerate().filter(|(_, own)| **own == hash);
        same.find(|(at, _)| self.slots[*at].key == *miniflow.key()).map(|(at, _)| at)
    }

    /// Puts a packet behind those that [`find`](Parking::find) found.
    pub(crate) fn park_behind(&mut self, at: usize, packet: Packet) -> Parked {
        match self.slots[at].packets.try_push(packet) {
            Ok(()) => Parked::Behind,
            Err(full) => Parked::Refused(full.element()),
        }
    }

    /// Parks the first packet of a flow.
    pub(crate) fn park(&mut self, miniflow: &Miniflow, port: PortNo, packet: Packet) -> Parked {
        let Some(at) = self.free.pop() else { return Parked::Refused(packet) };
        let slot = &mut self.slots[at as usize];
        (slot.key, slot.port) = (*miniflow.key(), port);
        slot.packets.push(packet);
        self.hashes[at as usize] = hash(miniflow);
        Parked::First(Ticket { slot: at, generation: slot.generation })
    }

    /// The key of those that wait for this answer; `None` if they are gone.
    pub(crate) fn key(&self, ticket: Ticket) -> Option<&Key> {
        let slot = &self.slots[ticket.slot as usize];
        (slot.generation == ticket.generation).then_some(&slot.key)
    }

    /// Takes the packets that wait for this answer, in order, with their port.
    pub(crate) fn release(&mut self, ticket: Ticket) -> Option<(PortNo, ArrayVec<Packet, PARKED_PACKETS>)> {
        self.key(ticket)?;
        Some(self.empty(ticket.slot as usize))
    }

    /// Takes the packets of a flow that satisfies `wanted`, as long as there is one.
    pub(crate) fn release_where(
        &mut self,
        wanted: impl Fn(PortNo, &Key) -> bool,
    ) -> Option<(PortNo, ArrayVec<Packet, PARKED_PACKETS>)> {
        if self.len() == 0 {
            return None;
        }
        let mut taken = self.hashes.iter().enumerate().filter(|(_, hash)| **hash != 0);
        let at = taken.find(|(at, _)| wanted(self.slots[*at].port, &self.slots[*at].key))?.0;
        Some(self.empty(at))
    }

    fn empty(&mut self, at: usize) -> (PortNo, ArrayVec<Packet, PARKED_PACKETS>) {
        let slot = &mut self.slots[at];
        slot.generation = slot.generation.wrapping_add(1);
        self.hashes[at] = 0;
        self.free.push(at as u32);
        (slot.port, std::mem::take(&mut slot.packets))
    }
}

/// Never 0. Whoever makes collisions makes only these comparisons longer, and there are few.
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
        let mut parking = Parking::new();
        let Parked::First(ticket) = parking.park(&miniflow(1), 3, pool.take_one().unwrap()) else { panic!("room") };
        for n in 1..PARKED_PACKETS {
            let mut packet = pool.take_one().unwrap();
            packet.append(n).unwrap();
            let at = parking.find(&miniflow(1)).unwrap();
            assert!(matches!(parking.park_behind(at, packet), Parked::Behind));
        }
        let at = parking.find(&miniflow(1)).unwrap();
        assert!(matches!(parking.park_behind(at, pool.take_one().unwrap()), Parked::Refused(_)));
        assert!(parking.find(&miniflow(2)).is_none());
        let (port, packets) = parking.release(ticket).unwrap();
        assert_eq!(port, 3);
        assert!(packets.iter().enumerate().all(|(n, packet)| packet.len() == n));
        assert!(parking.release(ticket).is_none(), "once");
        for n in 0..PARKED_FLOWS as u64 {
            assert!(matches!(parking.park(&miniflow(n), 1, pool.take_one().unwrap()), Parked::First(_)));
        }
        assert!(matches!(parking.park(&miniflow(9999), 1, pool.take_one().unwrap()), Parked::Refused(_)));
        assert!(parking.release_where(|_, key| key.get(field::ETH_SRC) == 17).is_some());
        while parking.release_where(|port, _| port == 1).is_some() {}
        drop((packets, parking));
        assert_eq!(pool.free_count(), 1024);
    }
}
