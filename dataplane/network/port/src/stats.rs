//! Counters of a shard.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one shard: written by its worker with plain stores, read by anyone.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct PortStats {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        /// Counters of a port, summed over its shards.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Their names in order, with their values.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }

        impl<'a> std::iter::Sum<&'a PortStats> for Counters {
            fn sum<I: Iterator<Item = &'a PortStats>>(shards: I) -> Counters {
                shards.fold(Counters::default(), |sum, shard| Counters {
                    $($name: sum.$name + shard.$name.load(Ordering::Relaxed),)*
                })
            }
        }
    };
}

counters! {
    /// Packets received.
    rx_packets,
    /// Bytes received.
    rx_bytes,
    /// Packets sent.
    tx_packets,
    /// Bytes sent.
    tx_bytes,
    /// Not received: the pool was empty.
    rx_no_buffer,
    /// Not received: malformed, too short or too long.
    rx_invalid,
    /// Not sent: no room in the queue.
    tx_full,
    /// Not sent: the other side is not there, or the queue is not enabled.
    tx_down,
    /// Not sent: the pool was empty when the packet had to be copied for the device.
    tx_no_buffer,
    /// Not sent: larger than the other side takes, or it breaks what the other side negotiated.
    tx_invalid,
}

impl PortStats {
    /// Adds to a counter. Only its worker calls this, so a plain store does.
    #[inline(always)]
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }
}
