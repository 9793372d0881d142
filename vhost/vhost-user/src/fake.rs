//! A device that does no I/O and holds the session to its contract. For tests and fuzzing.

use crate::backend::{Backend, Change, Properties, Refusal, RingStart};
use crate::protocol_feature as pf;
use guest_memory::{DirtyLog, GuestAddress, GuestMemory};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use virtio_spec::feature;

/// What the fake offers: the ring features, and two bits of its own type.
pub(crate) const FEATURES: u64 = feature::VERSION_1
    | feature::RING_PACKED
    | feature::RING_EVENT_IDX
    | feature::RING_INDIRECT_DESC
    | feature::IN_ORDER
    | 0b11;
pub(crate) const QUEUES: u16 = 4;
pub(crate) const MAX_SIZE: u16 = 1024;

/// A ring as the device sees it.
#[derive(Debug)]
pub(crate) struct FakeRing {
    pub(crate) start: RingStart,
    /// The used ring's log address in force.
    pub(crate) used_log: Option<GuestAddress>,
}

/// Keeps what it is told and panics when it is told nonsense.
#[derive(Debug)]
pub(crate) struct FakeDevice {
    pub(crate) properties: Properties,
    pub(crate) config: Vec<u8>,
    /// The started rings.
    pub(crate) rings: BTreeMap<u16, FakeRing>,
    /// Refuses every change but [`Change::Reset`].
    pub(crate) refuses: bool,
    pub(crate) resets: usize,
    pub(crate) memory_changes: usize,
    pub(crate) log_changes: usize,
    pub(crate) rarp: Option<[u8; 6]>,
    pub(crate) mtu: Option<u16>,
    /// A memory table that requests in flight still use although `SetMemory` was applied: a device with a bug.
    pub(crate) held: Option<Arc<GuestMemory>>,
    pub(crate) holds_memory: bool,
    /// The base that stopped rings report; counts up from what they started with otherwise.
    pub(crate) progress: u32,
}

impl Default for FakeDevice {
    fn default() -> FakeDevice {
        FakeDevice {
            properties: Properties {
                features: FEATURES,
                protocol_features: pf::CONFIG | pf::INFLIGHT_SHMFD | pf::RARP | pf::NET_MTU,
                queues: QUEUES,
                max_queue_size: MAX_SIZE,
            },
            config: (0..60).collect(),
            rings: BTreeMap::new(),
            refuses: false,
            resets: 0,
            memory_changes: 0,
            log_changes: 0,
            rarp: None,
            mtu: None,
            held: None,
            holds_memory: false,
            progress: 0,
        }
    }
}

impl FakeDevice {
    fn ring(&mut self, index: u16) -> &mut FakeRing {
        self.rings.get_mut(&index).expect("changes come for started rings only")
    }

    fn start(&mut self, start: RingStart) {
        let RingStart { index, setup, memory, .. } = &start;
        assert!(*index < self.properties.queues, "index inside");
        assert!(!self.rings.contains_key(index), "a started ring is not started again");
        assert!((1..=self.properties.max_queue_size).contains(&setup.size), "size inside");
        assert!(setup.packed() || setup.size.is_power_of_two(), "split sizes are powers of two");
        assert_eq!(setup.features & !self.properties.features, 0, "only what we offer");
        crate::ring::check_areas(*index, setup, memory).expect("areas in memory");
        if setup.packed() {
            assert_eq!(setup.base & 0xffff, setup.base >> 16, "a drained ring's halves agree");
            assert!((setup.base & 0x7fff) < u32::from(setup.size), "index inside the ring");
        }
        if let Some(window) = &setup.inflight {
            assert!(window.len() >= virtqueue::inflight::region_len(setup.packed(), setup.size));
        }
        let used_log = setup.addresses.used_log;
        self.rings.insert(*index, FakeRing { start, used_log });
    }

    fn set_memory(&mut self, memory: Arc<GuestMemory>) {
        assert!(!self.rings.is_empty(), "memory changes come only while a ring is started");
        self.memory_changes += 1;
        for (&index, ring) in &mut self.rings {
            crate::ring::check_areas(index, &ring.start.setup, &memory).expect("live rings stay in memory");
            let old = std::mem::replace(&mut ring.start.memory, memory.clone());
            if self.holds_memory {
                self.held = Some(old);
            }
        }
    }

    fn set_log(&mut self, log: Option<DirtyLog>) {
        assert!(!self.rings.is_empty(), "log changes come only while a ring is started");
        self.log_changes += 1;
        for ring in self.rings.values_mut() {
            ring.start.log = log.clone();
        }
    }
}

impl Backend for FakeDevice {
    fn properties(&self) -> Properties {
        self.properties
    }

    fn read_config(&self, offset: u32, bytes: &mut [u8]) -> Result<(), Refusal> {
        let range = offset as usize..offset as usize + bytes.len();
        let config = self.config.get(range).ok_or_else(|| Refusal::new("outside the configuration space"))?;
        bytes.copy_from_slice(config);
        Ok(())
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8], flags: u32) -> Result<(), Refusal> {
        let range = offset as usize..offset as usize + bytes.len();
        let config = self.config.get_mut(range).filter(|_| flags <= 1);
        config.ok_or_else(|| Refusal::new("outside the configuration space"))?.copy_from_slice(bytes);
        Ok(())
    }

    fn apply(&mut self, change: Change) -> Result<(), Refusal> {
        if self.refuses && !matches!(change, Change::Reset) {
            return Err(Refusal::new("the device was told to refuse"));
        }
        let replace = |slot: &mut Option<OwnedFd>, fd| *slot = fd;
        match change {
            Change::StartRing(start) => self.start(start),
            Change::EnableRing { index, enabled } => self.ring(index).start.enabled = enabled,
            Change::SetKick { index, fd } => replace(&mut self.ring(index).start.kick, fd),
            Change::SetCall { index, fd } => replace(&mut self.ring(index).start.call, fd),
            Change::SetErr { index, fd } => replace(&mut self.ring(index).start.err, fd),
            Change::SetUsedLog { index, address } => self.ring(index).used_log = address,
            Change::SetMemory(memory) => self.set_memory(memory),
            Change::SetLog(log) => self.set_log(log),
            Change::SendRarp { mac } => self.rarp = Some(mac),
            Change::SetMtu(mtu) => self.mtu = Some(mtu),
            Change::Reset => {
                assert!(self.rings.is_empty(), "rings are stopped before a reset");
                self.resets += 1;
            }
        }
        Ok(())
    }

    fn stop_ring(&mut self, index: u16) -> Result<u32, Refusal> {
        let ring = self.rings.remove(&index).expect("only a started ring is stopped");
        Ok(ring.start.setup.base.wrapping_add(self.progress * 0x1_0001)
            & if ring.start.setup.packed() { !0 } else { 0xffff })
    }
}
