//! Rings: described piece by piece in any order, started when complete, stopped by GET_VRING_BASE.

use super::{Answer, Session};
use crate::backend::{Backend, Change, RingStart};
use crate::error::Reason;
use crate::message::Outgoing;
use crate::request::Request;
use crate::ring::{Ring, check_areas, check_kick, check_size, initial_base, signalled, start_base};
use std::os::fd::OwnedFd;
use virtio_spec::feature;
use virtqueue::{RingAddresses, RingSetup};

impl Session {
    pub(super) fn set_size(&mut self, index: u32, num: u32, device: &mut dyn Backend) -> Result<(), Reason> {
        let packed = self.device_features().map(|features| features & feature::RING_PACKED != 0);
        let size = check_size(num, self.properties.max_queue_size, packed)?;
        let (index, ring) = self.ring(index)?;
        if ring.started && ring.size != Some(size) {
            return Err(Reason::Started("the ring's size"));
        }
        ring.size = Some(size);
        self.start_if_ready(index, device)
    }

    pub(super) fn set_addresses(
        &mut self,
        index: u32,
        addresses: RingAddresses,
        device: &mut dyn Backend,
    ) -> Result<(), Reason> {
        let (index, ring) = self.ring(index)?;
        if ring.started {
            // Migration switches VHOST_VRING_F_LOG on live rings.
            let used_log = ring.addresses.and_then(|old| old.used_log);
            if ring.addresses != Some(RingAddresses { used_log, ..addresses }) {
                return Err(Reason::Started("the ring's addresses"));
            }
            if addresses.used_log != used_log {
                device.apply(Change::SetUsedLog { index, address: addresses.used_log })?;
            }
        }
        ring.addresses = Some(addresses);
        self.start_if_ready(index, device)
    }

    pub(super) fn set_base(&mut self, index: u32, base: u32, device: &mut dyn Backend) -> Result<(), Reason> {
        let (index, ring) = self.ring(index)?;
        if ring.started {
            return Err(Reason::Started("the ring's base"));
        }
        ring.base = Some(base);
        self.start_if_ready(index, device)
    }

    /// GET_VRING_BASE: the ring is drained before the front-end hears its base. It starts again with the next SET_VRING_KICK.
    pub(super) fn stop_ring(&mut self, index: u32, device: &mut dyn Backend) -> Answer {
        let features = self.device_features().unwrap_or(0);
        let (index, ring) = self.ring(index)?;
        ring.kick = None;
        if std::mem::take(&mut ring.started) {
            let base = device.stop_ring(index);
            ring.base = base.as_ref().ok().copied();
            tracing::debug!(ring = index, ?base, "ring stopped");
            base?;
        }
        let base = ring.base.unwrap_or(initial_base(features));
        let payload: Vec<u8> = [u32::from(index), base].iter().flat_map(|word| word.to_ne_bytes()).collect();
        Ok(Some(Outgoing::reply(Request::GET_VRING_BASE, &payload)))
    }

    pub(super) fn set_kick(&mut self, index: u32, fd: Option<OwnedFd>, device: &mut dyn Backend) -> Result<(), Reason> {
        let (index, ring) = self.ring(index)?;
        fd.as_ref().map_or(Ok(()), check_kick)?;
        let copy = copy(&fd)?;
        if ring.started {
            device.apply(Change::SetKick { index, fd: copy })?;
        }
        ring.kick = Some(fd);
        self.start_if_ready(index, device)
    }

    pub(super) fn set_call(&mut self, index: u32, fd: Option<OwnedFd>, device: &mut dyn Backend) -> Result<(), Reason> {
        let (index, ring) = self.ring(index)?;
        let fd = fd.map(signalled).transpose()?;
        let copy = copy(&fd)?;
        if ring.started {
            device.apply(Change::SetCall { index, fd: copy })?;
        }
        ring.call = fd;
        Ok(())
    }

    pub(super) fn set_err(&mut self, index: u32, fd: Option<OwnedFd>, device: &mut dyn Backend) -> Result<(), Reason> {
        let (index, ring) = self.ring(index)?;
        let fd = fd.map(signalled).transpose()?;
        let copy = copy(&fd)?;
        if ring.started {
            device.apply(Change::SetErr { index, fd: copy })?;
        }
        ring.err = fd;
        Ok(())
    }

    /// May come before SET_FEATURES: QEMU enables the first queue pair of a network device early.
    pub(super) fn enable_ring(&mut self, index: u32, enabled: bool, device: &mut dyn Backend) -> Result<(), Reason> {
        if self.features.is_some_and(|features| features & feature::VHOST_USER_PROTOCOL_FEATURES == 0) {
            return Err(Reason::NotNegotiated("VHOST_USER_F_PROTOCOL_FEATURES"));
        }
        let (index, ring) = self.ring(index)?;
        if ring.started && ring.enabled != enabled {
            device.apply(Change::EnableRing { index, enabled })?;
        }
        ring.enabled = enabled;
        Ok(())
    }

    /// "If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the ring starts directly in the enabled state."
    pub(super) fn is_enabled(&self, ring: &Ring) -> bool {
        let gated = self.features.unwrap_or(0) & feature::VHOST_USER_PROTOCOL_FEATURES != 0;
        ring.enabled || !gated
    }

    /// Starts every ring that lacked only what just came. One whose areas are not yet in memory goes on waiting.
    pub(super) fn start_ready(&mut self, device: &mut dyn Backend) -> Result<(), Reason> {
        for index in 0..self.properties.queues {
            match self.start_if_ready(index, device) {
                Err(reason @ Reason::Area { .. }) => tracing::debug!(%reason, "the ring waits for memory"),
                other => other?,
            }
        }
        Ok(())
    }

    pub(super) fn started_rings(&self) -> Vec<u16> {
        (0..self.properties.queues).filter(|&index| self.rings[usize::from(index)].started).collect()
    }

    /// The ring's setup as far as the front-end has described it: base and inflight region are left to the start.
    pub(super) fn setup(&self, index: u16) -> Option<RingSetup> {
        let ring = &self.rings[usize::from(index)];
        Some(RingSetup {
            size: ring.size?,
            features: self.device_features()?,
            addresses: ring.addresses?,
            base: ring.base?,
            inflight: None,
        })
    }

    fn start_if_ready(&mut self, index: u16, device: &mut dyn Backend) -> Result<(), Reason> {
        let Some(start) = self.ring_start(index)? else { return Ok(()) };
        tracing::debug!(
            ring = index,
            size = start.setup.size,
            packed = start.setup.packed(),
            base = start.setup.base,
            inflight = start.setup.inflight.is_some(),
            enabled = start.enabled,
            "ring starts"
        );
        device.apply(Change::StartRing(start))?;
        self.rings[usize::from(index)].started = true;
        Ok(())
    }

    /// What the device needs to start the ring, once all of it is known and a kick was given. `None`: not yet, or started.
    fn ring_start(&self, index: u16) -> Result<Option<RingStart>, Reason> {
        let ring = &self.rings[usize::from(index)];
        let memory = self.table.memory();
        let (Some(kick), Some(mut setup)) = (&ring.kick, self.setup(index)) else { return Ok(None) };
        if ring.started || memory.regions().is_empty() {
            return Ok(None);
        }
        let packed = setup.packed();
        check_size(setup.size.into(), self.properties.max_queue_size, Some(packed))?;
        check_areas(index, &setup, memory)?;
        setup.base = start_base(&setup, memory)?;
        let window = |inflight: &crate::inflight::Inflight| inflight.window(index, packed, setup.size);
        setup.inflight = self.inflight.as_ref().map(window).transpose()?;
        Ok(Some(RingStart {
            index,
            setup,
            memory: memory.clone(),
            log: self.active_log(),
            enabled: self.is_enabled(ring),
            kick: copy(kick)?,
            call: copy(&ring.call)?,
            err: copy(&ring.err)?,
        }))
    }

    fn ring(&mut self, index: u32) -> Result<(u16, &mut Ring), Reason> {
        let queues = self.properties.queues;
        let ring = self.rings.get_mut(index as usize);
        let ring = ring.ok_or_else(|| Reason::value("index", index, format!("below the device's {queues} queues")))?;
        Ok((index as u16, ring))
    }
}

/// A second descriptor for the device; the session keeps the first for the next start.
fn copy(fd: &Option<OwnedFd>) -> Result<Option<OwnedFd>, Reason> {
    fd.as_ref().map(OwnedFd::try_clone).transpose().map_err(Reason::os("dup of a ring's descriptor"))
}
