//! Features, status, configuration space, reset, and the channel for requests of the back-end.

use super::{Answer, OF_TRANSPORT, Session};
use crate::backend::{Backend, Change};
use crate::error::Reason;
use crate::message::Outgoing;
use crate::protocol_feature as pf;
use crate::request::Request;
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use std::os::fd::OwnedFd;
use virtio_spec::feature;

/// Smallest MTU of a network that carries IPv4 (RFC 791).
const MIN_MTU: u16 = 68;

impl Session {
    pub(super) fn offered(&self) -> u64 {
        self.properties.features | OF_TRANSPORT
    }

    pub(super) fn offered_protocol(&self) -> u64 {
        pf::OF_SESSION | self.properties.protocol_features & pf::OF_DEVICE
    }

    /// The negotiated virtio features that concern a device.
    pub(super) fn device_features(&self) -> Option<u64> {
        self.features.map(|features| features & !OF_TRANSPORT)
    }

    pub(super) fn set_features(&mut self, features: u64, device: &mut dyn Backend) -> Result<(), Reason> {
        let offered = self.offered();
        if features & !offered != 0 {
            return Err(Reason::value("features", features, format!("a part of the offered {offered:#x}")));
        }
        let old = self.features.replace(features);
        let changed = old.map_or(0, |old| old ^ features);
        let result = self.features_changed(changed, device);
        if result.is_err() {
            self.features = old;
        }
        result?;
        self.start_ready(device)
    }

    fn features_changed(&mut self, changed: u64, device: &mut dyn Backend) -> Result<(), Reason> {
        if self.any_started() {
            if changed & !feature::VHOST_LOG_ALL != 0 {
                return Err(Reason::Started("features other than VHOST_F_LOG_ALL"));
            }
            if changed != 0 && self.log.is_some() {
                device.apply(Change::SetLog(self.active_log()))?;
            }
        }
        if changed & feature::RING_PACKED != 0
            && let Some(inflight) = &self.inflight
        {
            inflight.clear();
        }
        Ok(())
    }

    pub(super) fn set_protocol_features(&mut self, features: u64) -> Result<(), Reason> {
        let offered = self.offered_protocol();
        if features & !offered != 0 {
            return Err(Reason::value("protocol features", features, format!("a part of the offered {offered:#x}")));
        }
        self.protocol_features = features;
        Ok(())
    }

    pub(super) fn set_status(&mut self, status: u64, device: &mut dyn Backend) -> Result<(), Reason> {
        let status = u8::try_from(status).map_err(|_| Reason::value("status", status, "8 bits"))?;
        // "Writing 0 into this field resets the device" (virtio 1.3, 4.1.4.3.1).
        if status == 0 {
            return self.reset(device);
        }
        self.status = status;
        Ok(())
    }

    /// RESET_DEVICE: "disable all rings and reset all internal device state". Memory table, dirty log and inflight region are
    /// the front-end's and stay; so do the features, which not every front-end repeats.
    pub(super) fn reset(&mut self, device: &mut dyn Backend) -> Result<(), Reason> {
        for index in 0..self.properties.queues {
            if self.rings[usize::from(index)].started
                && let Err(reason) = device.stop_ring(index)
            {
                tracing::warn!(ring = index, %reason, "the ring did not stop cleanly");
            }
        }
        for ring in &mut self.rings {
            ring.reset();
        }
        self.status = 0;
        device.apply(Change::Reset)?;
        Ok(())
    }

    /// RESET_OWNER: "it is recommended that back-ends either ignore this message, or use it to disable all rings".
    pub(super) fn disable_all(&mut self, device: &mut dyn Backend) -> Result<(), Reason> {
        for index in 0..self.properties.queues {
            let ring = &mut self.rings[usize::from(index)];
            ring.enabled = false;
            if ring.started {
                device.apply(Change::EnableRing { index, enabled: false })?;
            }
        }
        Ok(())
    }

    pub(super) fn get_config(offset: u32, size: u32, flags: u32, device: &dyn Backend) -> Answer {
        let mut payload: Vec<u8> = [offset, size, flags].iter().flat_map(|word| word.to_ne_bytes()).collect();
        payload.resize(12 + size as usize, 0);
        device.read_config(offset, &mut payload[12..])?;
        Ok(Some(Outgoing::reply(Request::GET_CONFIG, &payload)))
    }

    pub(super) fn set_mtu(mtu: u64, device: &mut dyn Backend) -> Result<(), Reason> {
        let valid = u16::try_from(mtu).ok().filter(|&mtu| mtu >= MIN_MTU);
        let mtu = valid.ok_or_else(|| Reason::value("mtu", mtu, format!("{MIN_MTU} to 65535")))?;
        Ok(device.apply(Change::SetMtu(mtu))?)
    }

    pub(super) fn set_channel(&mut self, fd: OwnedFd) -> Result<(), Reason> {
        let kind = socket_type(&fd).map_err(|e| Reason::Os { what: "back-end channel", source: e.into() })?;
        if kind != SocketType::STREAM {
            return Err(Reason::value("socket type", kind.as_raw(), "a stream socket"));
        }
        self.channel = Some(fd);
        Ok(())
    }
}
