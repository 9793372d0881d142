//! Ring layouts (virtio 1.3, 2.7 split, 2.8 packed).

/// Largest ring (2.7, 2.8).
pub const MAX_SIZE: u16 = 32768;
/// Bytes of a descriptor, split or packed.
pub const DESC_LEN: usize = 16;

/// Descriptor flags (2.7.5, 2.8.5).
pub mod desc {
    /// The buffer goes on in the next descriptor.
    pub const NEXT: u16 = 1;
    /// The device writes this buffer.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
    /// Packed: matches the driver's wrap counter when available (2.8.1).
    pub const AVAIL: u16 = 1 << 7;
    /// Packed: matches the device's wrap counter when used (2.8.1).
    pub const USED: u16 = 1 << 15;
}

/// Split ring: available ring flag, the driver does not want notifications (2.7.6).
pub const AVAIL_NO_INTERRUPT: u16 = 1;
/// Split ring: used ring flag, the device does not want kicks (2.7.8).
pub const USED_NO_NOTIFY: u16 = 1;

/// Packed event suppression, `flags` (2.8.10).
pub mod event {
    /// Events wanted.
    pub const ENABLE: u16 = 0;
    /// No events.
    pub const DISABLE: u16 = 1;
    /// An event at a descriptor, with [`crate::feature::RING_EVENT_IDX`].
    pub const DESC: u16 = 2;
}

/// Bytes of the split available ring with `size` entries, `used_event` included (2.7.6).
pub const fn avail_len(size: u16) -> usize {
    6 + 2 * size as usize
}

/// Bytes of the split used ring with `size` entries, `avail_event` included (2.7.8).
pub const fn used_len(size: u16) -> usize {
    6 + 8 * size as usize
}

/// Whether an event at `event` is due after an index moved from `old` to `new` (2.7.7.1, `vring_need_event`).
#[inline]
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_due_when_the_index_passes_it() {
        assert!(need_event(5, 6, 5));
        assert!(need_event(5, 9, 2));
        assert!(!need_event(5, 5, 2));
        assert!(!need_event(5, 9, 6));
        assert!(need_event(0xffff, 1, 0xfffe));
    }
}
