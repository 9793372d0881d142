//! The other side of a ring: a driver in this process, for tests and benchmarks. It believes the device.

use crate::{RingAddresses, RingSetup};
use guest_memory::{GuestAddress, GuestMemory, UserAddress, Window};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use virtio_spec::feature;
use virtio_spec::ring::{self, DESC_LEN, desc, event};

/// A buffer to make available: address, bytes, whether the device writes it.
pub type Buffer = (GuestAddress, u32, bool);

/// A driver on a ring in memory whose front-end addresses equal its guest addresses.
#[derive(Debug)]
pub struct Driver {
    memory: Arc<GuestMemory>,
    setup: RingSetup,
    descriptors: Window,
    driver_area: Window,
    device_area: Window,
    /// Split: free descriptors. Packed: free buffer ids.
    free: VecDeque<u16>,
    /// Free descriptors.
    room: usize,
    /// By head or buffer id: descriptors taken.
    taken: Vec<u16>,
    /// Ids in the order made available, for in_order.
    order: VecDeque<u16>,
    /// In order: the last id of a batch of used chains, with its length, until all of them are taken back.
    batch: Option<(u16, u32)>,
    avail: u16,
    avail_wrap: bool,
    used: u16,
    used_wrap: bool,
    added: u16,
}

/// Bytes of memory that the three areas of a ring take, from an address aligned to 16.
pub fn ring_len(size: u16) -> usize {
    DESC_LEN * usize::from(size) + ring::avail_len(size).next_multiple_of(16) + ring::used_len(size)
}

impl Driver {
    /// A new ring of `size` entries at `at`, which is aligned to 16.
    pub fn new(memory: &Arc<GuestMemory>, at: GuestAddress, size: u16, features: u64) -> Driver {
        let driver_at = at.0 + (DESC_LEN * usize::from(size)) as u64;
        let device_at = driver_at + ring::avail_len(size).next_multiple_of(16) as u64;
        let window = |at, len| memory.user_window(UserAddress(at), len, 4).expect("the ring lies in memory");
        let addresses = RingAddresses {
            descriptor: UserAddress(at.0),
            driver: UserAddress(driver_at),
            device: UserAddress(device_at),
            used_log: None,
        };
        let packed = features & feature::RING_PACKED != 0;
        let base = if packed { 0x8000_8000 } else { 0 };
        Driver {
            memory: memory.clone(),
            setup: RingSetup { size, features, addresses, base, inflight: None },
            descriptors: window(at.0, DESC_LEN * usize::from(size)),
            driver_area: window(driver_at, ring::avail_len(size)),
            device_area: window(device_at, ring::used_len(size)),
            free: (0..size).collect(),
            room: usize::from(size),
            taken: vec![0; usize::from(size)],
            order: VecDeque::with_capacity(usize::from(size)),
            batch: None,
            avail: 0,
            avail_wrap: true,
            used: 0,
            used_wrap: true,
            added: 0,
        }
    }

    /// What the device needs to start.
    pub fn setup(&self) -> RingSetup {
        self.setup.clone()
    }

    fn has(&self, feature: u64) -> bool {
        self.setup.features & feature != 0
    }

    fn write_desc(&self, index: u16, address: u64, len: u32, id_or_flags: u16, flags_or_next: u16) {
        let at = usize::from(index) * DESC_LEN;
        self.descriptors.store_u64(at, address, Relaxed);
        self.descriptors.store_u32(at + 8, len, Relaxed);
        self.descriptors.store_u16(at + 12, id_or_flags, Relaxed);
        self.descriptors.store_u16(at + 14, flags_or_next, Release);
    }

    /// Makes a chain available. `None` when the ring has no room. Returns its id.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || self.room < buffers.len() {
            return None;
        }
        let id = if self.has(feature::RING_PACKED) { self.add_packed(buffers) } else { self.add_split(buffers) };
        Some(self.added_chain(id, buffers.len()))
    }

    fn added_chain(&mut self, id: u16, count: usize) -> u16 {
        self.taken[usize::from(id)] = count as u16;
        self.room -= count;
        if self.has(feature::IN_ORDER) {
            self.order.push_back(id);
        }
        id
    }

    /// Makes a chain available through an indirect table that is written at `table`.
    pub fn add_indirect(&mut self, table: GuestAddress, buffers: &[Buffer]) -> Option<u16> {
        let packed = self.has(feature::RING_PACKED);
        for (index, &(address, len, write)) in buffers.iter().enumerate() {
            let last = index + 1 == buffers.len();
            let flags = if write { desc::WRITE } else { 0 } | if last || packed { 0 } else { desc::NEXT };
            let mut entry = [0; DESC_LEN];
            entry[..8].copy_from_slice(&address.0.to_le_bytes());
            entry[8..12].copy_from_slice(&len.to_le_bytes());
            let (a, b) = if packed { (0, flags) } else { (flags, index as u16 + 1) };
            entry[12..14].copy_from_slice(&a.to_le_bytes());
            entry[14..].copy_from_slice(&b.to_le_bytes());
            let at = GuestAddress(table.0 + (index * DESC_LEN) as u64);
            self.memory.write(at, &entry).expect("the table lies in memory");
        }
        if self.room == 0 {
            return None;
        }
        let id = self.free.pop_front()?;
        let len = (buffers.len() * DESC_LEN) as u32;
        if packed {
            self.write_packed([(table.0, len, desc::INDIRECT)], id);
        } else {
            self.write_desc(id, table.0, len, desc::INDIRECT, 0);
            self.publish_split(id);
        }
        Some(self.added_chain(id, 1))
    }

    fn add_split(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.free[0];
        for (at, &(address, len, write)) in buffers.iter().enumerate() {
            let index = self.free[0];
            self.free.pop_front();
            let more = at + 1 < buffers.len();
            let flags = if write { desc::WRITE } else { 0 } | if more { desc::NEXT } else { 0 };
            let next = if more { self.free[0] } else { 0 };
            self.write_desc(index, address.0, len, flags, next);
        }
        self.publish_split(head);
        head
    }

    fn publish_split(&mut self, head: u16) {
        let slot = usize::from(self.avail % self.setup.size);
        self.driver_area.store_u16(4 + 2 * slot, head, Relaxed);
        self.avail = self.avail.wrapping_add(1);
        self.added += 1;
        self.driver_area.store_u16(2, self.avail, Release);
    }

    fn add_packed(&mut self, buffers: &[Buffer]) -> u16 {
        let id = self.free.pop_front().expect("as many ids as descriptors");
        let entry = |&(at, len, write): &Buffer| (at.0, len, if write { desc::WRITE } else { 0 });
        self.write_packed(buffers.iter().map(entry), id);
        id
    }

    /// Writes a chain into the packed ring, the flags of its first descriptor last.
    fn write_packed(&mut self, entries: impl IntoIterator<Item = (u64, u32, u16)>, id: u16) {
        let mut first = None;
        let mut entries = entries.into_iter().peekable();
        while let Some((address, len, mut flags)) = entries.next() {
            if entries.peek().is_some() {
                flags |= desc::NEXT;
            }
            flags |= if self.avail_wrap { desc::AVAIL } else { desc::USED };
            if first.is_none() {
                let hidden = flags ^ (desc::AVAIL | desc::USED);
                // Keep the old lap's bits until the chain is whole.
                self.write_desc(self.avail, address, len, id, hidden);
                first = Some((self.avail, flags));
            } else {
                self.write_desc(self.avail, address, len, id, flags);
            }
            self.avail += 1;
            self.added += 1;
            if self.avail == self.setup.size {
                (self.avail, self.avail_wrap) = (0, !self.avail_wrap);
            }
        }
        if let Some((index, flags)) = first {
            self.descriptors.store_u16(usize::from(index) * DESC_LEN + 14, flags, Release);
        }
    }

    /// Whether the device wants a kick for what was added since the last call.
    pub fn kick(&mut self) -> bool {
        fence(SeqCst);
        let added = std::mem::take(&mut self.added);
        if !self.has(feature::RING_PACKED) {
            if !self.has(feature::RING_EVENT_IDX) {
                return self.device_area.load_u16(0, Relaxed) & ring::USED_NO_NOTIFY == 0;
            }
            let wanted = self.device_area.load_u16(4 + 8 * usize::from(self.setup.size), Relaxed);
            return ring::need_event(wanted, self.avail, self.avail.wrapping_sub(added));
        }
        match self.device_area.load_u16(2, Acquire) {
            event::DISABLE => false,
            event::DESC => {
                let bits = self.device_area.load_u16(0, Relaxed);
                let (mut at, wrap) = (bits & 0x7fff, bits >> 15 == 1);
                if wrap != self.avail_wrap {
                    at = at.wrapping_sub(self.setup.size);
                }
                ring::need_event(at, self.avail, self.avail.wrapping_sub(added))
            }
            _ => true,
        }
    }

    /// Takes back the next used chain: its id and the bytes written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let (id, len) = if self.has(feature::IN_ORDER) { self.used_in_order()? } else { self.used_element()? };
        let count = std::mem::take(&mut self.taken[usize::from(id)]);
        assert!(count > 0, "chain {id} used twice");
        self.room += usize::from(count);
        if self.has(feature::RING_PACKED) {
            self.used += count;
            if self.used >= self.setup.size {
                (self.used, self.used_wrap) = (self.used - self.setup.size, !self.used_wrap);
            }
            self.free.push_back(id);
        } else {
            self.used = self.used.wrapping_add(1);
            self.free_split(id);
        }
        Some((id, len))
    }

    fn used_element(&self) -> Option<(u16, u32)> {
        if self.has(feature::RING_PACKED) { self.used_packed() } else { self.used_split() }
    }

    /// One element may stand for a batch: it names the last chain (2.7.9, 2.8.9).
    fn used_in_order(&mut self) -> Option<(u16, u32)> {
        let (last, len) = self.batch.take().or_else(|| self.used_element())?;
        let id = self.order.pop_front().expect("a chain is used that was not available");
        if id != last {
            assert!(self.order.contains(&last), "used out of order");
            self.batch = Some((last, len));
        }
        Some((id, len))
    }

    fn used_split(&self) -> Option<(u16, u32)> {
        if self.device_area.load_u16(2, Acquire) == self.used {
            return None;
        }
        let at = 4 + 8 * usize::from(self.used % self.setup.size);
        let id = self.device_area.load_u32(at, Relaxed) as u16;
        let len = self.device_area.load_u32(at + 4, Relaxed);
        Some((id, len))
    }

    fn used_packed(&self) -> Option<(u16, u32)> {
        let at = usize::from(self.used) * DESC_LEN;
        let flags = self.descriptors.load_u16(at + 14, Acquire);
        let (avail, used) = (flags & desc::AVAIL != 0, flags & desc::USED != 0);
        (avail == used && used == self.used_wrap)
            .then(|| (self.descriptors.load_u16(at + 12, Relaxed), self.descriptors.load_u32(at + 8, Relaxed)))
    }

    fn free_split(&mut self, head: u16) {
        let mut index = head;
        loop {
            self.free.push_back(index);
            let at = usize::from(index) * DESC_LEN;
            if self.descriptors.load_u16(at + 12, Relaxed) & desc::NEXT == 0 {
                return;
            }
            index = self.descriptors.load_u16(at + 14, Relaxed);
        }
    }

    /// Asks for an interrupt at the next used chain, or for none.
    pub fn set_interrupts(&mut self, on: bool) {
        match (self.has(feature::RING_PACKED), self.has(feature::RING_EVENT_IDX)) {
            (false, false) => self.driver_area.store_u16(0, u16::from(!on), Relaxed),
            (false, true) => {
                let event = if on { self.used } else { self.used.wrapping_sub(1) };
                self.driver_area.store_u16(4 + 2 * usize::from(self.setup.size), event, Relaxed);
            }
            (true, false) => self.driver_area.store_u16(2, if on { event::ENABLE } else { event::DISABLE }, Relaxed),
            (true, true) => {
                self.driver_area.store_u16(0, self.used | u16::from(self.used_wrap) << 15, Relaxed);
                self.driver_area.store_u16(2, if on { event::DESC } else { event::DISABLE }, Release);
            }
        }
        fence(SeqCst);
    }
}
