//! Counters: written by one worker with plain stores, read by anybody.

use flow::FlowCache;
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
            /// Their names in order, with their values.
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

            /// As they are now.
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
    /// What one worker counts of the packets that came in by one port.
    PathCounters,
    /// What the switch counts of the packets that came in by a port, beside the port's own counters.
    PathStats {
        /// Packets for which the translation was asked.
        upcalls,
        /// Dropped: more packets or bytes came in than the port's limit.
        rate_limited,
        /// Dropped: more misses a second than the port may have.
        upcall_limited,
        /// Dropped: as many flows wait for the translation as may.
        upcall_full,
        /// Dropped: as many packets of the flow wait for the translation as may.
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
        /// Not sent: meant for the control plane, where nobody listens.
        no_listener,
        /// Not sent: the queue to the worker that has the port's queue was full.
        handed_full,
    }
}

macro_rules! losses {
    ($($name:ident = $counter:ident,)*) => {
        /// Why the switch dropped a packet: each reason is one of the [`PathStats`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Loss {
            $(#[doc = concat!("See [`PathStats::", stringify!($counter), "`].")] $name,)*
        }

        impl Loss {
            /// The name of its counter.
            pub fn name(self) -> &'static str {
                match self {
                    $(Loss::$name => stringify!($counter),)*
                }
            }
        }

        impl PathCounters {
            /// Counts a packet that was dropped.
            pub(crate) fn lose(&self, loss: Loss) {
                match loss {
                    $(Loss::$name => self.count(|c| &c.$counter),)*
                }
            }
        }
    };
}

losses! {
    RateLimited = rate_limited,
    UpcallLimited = upcall_limited,
    UpcallFull = upcall_full,
    ParkedFull = parked_full,
    Metered = metered,
    NoPort = no_port,
    FlowDrop = flow_drop,
    NotChanged = not_changed,
    TtlExceeded = ttl_exceeded,
    RecirculatedMiss = recirculated_miss,
    RecirculatedFull = recirculated_full,
    NoListener = no_listener,
    HandedFull = handed_full,
}

counters! {
    /// What a port costs one worker.
    LoadCounters,
    /// What a port cost a worker so far.
    PortLoad {
        /// Cycles spent on packets that came in by it, counted once a burst: receiving, look-up and actions, not sending.
        cycles,
        /// Packets that other workers handed over for it.
        handed,
    }
}

counters! {
    /// What one worker counts.
    WorkerCounters,
    /// What a worker's part of the switch has done.
    WorkerStats {
        /// Packets whose flow hardware told by a mark.
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
        /// Flows whose packets wait for the translation.
        parked,
        /// Flows that found no room in the cache.
        not_installed,
    }
}

impl WorkerCounters {
    pub(crate) fn publish(&self, cache: &FlowCache, parked: usize) {
        let hits = cache.hits();
        let set = |counter: &AtomicU64, value| counter.store(value, Ordering::Relaxed);
        set(&self.hits_mark, hits.mark);
        set(&self.hits_exact, hits.exact);
        set(&self.hits_signature, hits.signature);
        set(&self.hits_megaflow, hits.megaflow);
        set(&self.misses, hits.miss);
        set(&self.flows, cache.len() as u64);
        set(&self.masks, cache.masks().0 as u64);
        set(&self.parked, parked as u64);
    }
}
