//! Counters: written by one worker with plain stores, read by any thread.

use flow::{DropReason, FlowCache};
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($(#[$outer:meta])* $shared:ident, $(#[$sum_outer:meta])* $sum:ident { $($(#[$doc:meta])* $name:ident,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub(crate) struct $shared {
            $(pub(crate) $name: AtomicU64,)*
        }

        $(#[$sum_outer])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $sum {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl $sum {
            /// The counters in order, each with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }

        impl $shared {
            /// Counts several.
            pub(crate) fn add(&self, which: impl FnOnce(&$shared) -> &AtomicU64, count: u64) {
                let counter = which(self);
                counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
            }

            /// Counts one.
            #[inline(always)]
            pub(crate) fn count(&self, which: impl FnOnce(&$shared) -> &AtomicU64) {
                self.add(which, 1);
            }

            /// The values as they are now.
            pub(crate) fn read(&self) -> $sum {
                $sum { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl std::ops::Add for $sum {
            type Output = $sum;

            fn add(self, other: $sum) -> $sum {
                $sum { $($name: self.$name + other.$name,)* }
            }
        }
    };
}

counters! {
    /// The counters of one worker for the packets that came in by one port.
    PathCounters,
    /// The datapath's counters of the packets that came in by a port, beside the port's own counters.
    PathStats {
        /// Packets that made an upcall.
        upcalls,
        /// Dropped: more packets or bytes came in than the port's limit.
        rate_limited,
        /// Dropped: over the upcall rate limit of the port.
        upcall_limited,
        /// Dropped: too many upcalls are pending.
        upcall_full,
        /// Dropped: too many packets wait for the same pending upcall.
        parked_full,
        /// Dropped: over the limit for flooding.
        metered,
        /// Copies not sent: the pool was empty.
        no_buffer,
        /// Not sent: the port is gone.
        no_port,
        /// Dropped: the flow says so, or has no action that sends the packet anywhere.
        flow_drop,
        /// Dropped: the packet has no header, or no room for one, as an action of the flow needs.
        not_changed,
        /// Dropped: its TTL is spent.
        ttl_exceeded,
        /// Dropped: recirculated, and then no flow matched.
        recirculated_miss,
        /// Dropped: recirculated too often, or too many at a time.
        recirculated_full,
        /// Not sent: meant for the control plane, which does not listen.
        no_listener,
        /// Not sent: the queue to the worker that has the port's queue was full.
        handed_full,
    }
}

impl PathCounters {
    /// Counts dropped packets.
    pub(crate) fn add_drops(&self, reason: DropReason, count: u64) {
        let counter = match reason {
            DropReason::RateLimited => &self.rate_limited,
            DropReason::UpcallLimited => &self.upcall_limited,
            DropReason::UpcallFull => &self.upcall_full,
            DropReason::PendingFull => &self.parked_full,
            DropReason::Metered => &self.metered,
            DropReason::NoBuffer => &self.no_buffer,
            DropReason::NoPort => &self.no_port,
            // Why the pipeline made such a flow is counted by the sweep.
            DropReason::NoBridge
            | DropReason::Vlan
            | DropReason::BadSource
            | DropReason::Spoofed
            | DropReason::LinkLocal
            | DropReason::NoEgress
            | DropReason::FlowDrop => &self.flow_drop,
            DropReason::NoHeadroom | DropReason::NoHeader => &self.not_changed,
            DropReason::TtlExceeded => &self.ttl_exceeded,
            DropReason::RecirculatedMiss => &self.recirculated_miss,
            DropReason::RecirculatedFull => &self.recirculated_full,
            DropReason::NoListener => &self.no_listener,
            DropReason::HandedFull => &self.handed_full,
        };
        counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }
}

counters! {
    /// The cost of a port on one worker.
    LoadCounters,
    /// The cost of a port on one worker so far.
    PortLoad {
        /// Cycles spent on packets that came in by it, counted once a burst: receiving, look-up and actions, not sending.
        cycles,
        /// Packets that other workers handed over for it.
        handed,
    }
}

counters! {
    /// The counters of one worker.
    WorkerCounters,
    /// The counters of a worker's part of the datapath.
    WorkerStats {
        /// Packets whose flow was found by the mark of hardware.
        hits_mark,
        /// Packets that the exact-match tier answered.
        hits_exact,
        /// Packets that the signature tier answered.
        hits_signature,
        /// Packets that the megaflow tier answered.
        hits_megaflow,
        /// Packets that none answered.
        misses,
        /// Flows in the cache.
        flows,
        /// Different masks among them.
        masks,
        /// Pending upcalls.
        parked,
        /// Flows that found no room in the cache.
        not_installed,
    }
}

impl WorkerCounters {
    pub(crate) fn publish(&self, cache: &FlowCache, pending: usize) {
        let hits = cache.hits();
        let set = |counter: &AtomicU64, value| counter.store(value, Ordering::Relaxed);
        set(&self.hits_mark, hits.mark);
        set(&self.hits_exact, hits.exact);
        set(&self.hits_signature, hits.signature);
        set(&self.hits_megaflow, hits.megaflow);
        set(&self.misses, hits.miss);
        set(&self.flows, cache.len() as u64);
        set(&self.masks, cache.masks().0 as u64);
        set(&self.parked, pending as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_counted_under_its_name() {
        use DropReason::*;
        for reason in [
            RateLimited,
            UpcallLimited,
            UpcallFull,
            PendingFull,
            NoPort,
            FlowDrop,
            Metered,
            NoHeadroom,
            NoHeader,
            TtlExceeded,
            RecirculatedMiss,
            RecirculatedFull,
            NoListener,
            HandedFull,
            NoBuffer,
        ] {
            let counters = PathCounters::default();
            counters.add_drops(reason, 3);
            let counted: Vec<_> = counters.read().named().filter(|(_, count)| *count != 0).collect();
            assert_eq!(counted, [(reason.as_str(), 3)]);
        }
        for reason in DropReason::OF_PIPELINE {
            let counters = PathCounters::default();
            counters.add_drops(reason, 1);
            assert_eq!(counters.read().flow_drop, 1);
        }
    }
}
