//! One front-end's session as a state machine: a frame in, a reply out, changes to the device on the way. No I/O on the socket.

mod control;
mod memory;
mod rings;

use crate::backend::{Backend, Change, Properties};
use crate::error::{Reason, SessionError};
use crate::inflight::Inflight;
use crate::memory_table::{MemoryTable, Retired};
use crate::message::{Frame, Message, Outgoing};
use crate::protocol_feature as pf;
use crate::request::{Failure, Request};
use crate::ring::Ring;
use crate::status::{RingStatus, SessionStatus};
use guest_memory::DirtyLog;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use virtio_spec::feature;

/// Virtio bits that are between front-end and back-end alone.
const OF_TRANSPORT: u64 = feature::VHOST_USER_PROTOCOL_FEATURES | feature::VHOST_LOG_ALL;

/// All that a front-end has said.
#[derive(Debug)]
pub(crate) struct Session {
    properties: Properties,
    /// SET_FEATURES.
    features: Option<u64>,
    /// SET_PROTOCOL_FEATURES.
    protocol_features: u64,
    rings: Vec<Ring>,
    table: MemoryTable,
    inflight: Option<Inflight>,
    /// SET_LOG_BASE. In force only with VHOST_LOG_ALL.
    log: Option<DirtyLog>,
    /// SET_LOG_FD.
    log_fd: Option<OwnedFd>,
    /// SET_BACKEND_REQ_FD.
    channel: Option<OwnedFd>,
    /// SET_STATUS.
    status: u8,
    refused: u64,
    last_refusal: Option<String>,
}

type Answer = Result<Option<Outgoing>, Reason>;

impl Session {
    /// A session with a front-end that has just connected. `retired` are the mappings that an earlier one left in use.
    pub(crate) fn new(properties: Properties, retired: Retired) -> Session {
        assert!((1..=crate::MAX_QUEUES).contains(&properties.queues), "a device has 1 to 256 queues");
        Session {
            properties,
            features: None,
            protocol_features: 0,
            rings: (0..properties.queues).map(|_| Ring::default()).collect(),
            table: MemoryTable::new(retired),
            inflight: None,
            log: None,
            log_fd: None,
            channel: None,
            status: 0,
            refused: 0,
            last_refusal: None,
        }
    }

    /// Takes one frame. An error ends the session: the front-end could not be told otherwise.
    pub(crate) fn handle(&mut self, frame: Frame, device: &mut dyn Backend) -> Result<Option<Outgoing>, SessionError> {
        let request = frame.header.request;
        let wants_reply = frame.header.needs_reply();
        let answer = self.permit(request).and_then(|()| Message::parse(frame)).and_then(|m| self.dispatch(m, device));
        // "The back-end MUST respond ..., unless the message already has an explicit reply body."
        let acknowledges = wants_reply && self.protocol_features & pf::REPLY_ACK != 0;
        match answer {
            Ok(Some(reply)) => Ok(Some(reply)),
            Ok(None) => Ok(acknowledges.then(|| Outgoing::reply_u64(request, 0))),
            Err(reason) => self.refuse(request, acknowledges, reason),
        }
    }

    /// Whether the protocol feature that the request belongs to was negotiated.
    fn permit(&self, request: Request) -> Result<(), Reason> {
        match request.needs() {
            Some((mask, name)) if self.protocol_features & mask == 0 => Err(Reason::NotNegotiated(name)),
            _ => Ok(()),
        }
    }

    fn refuse(
        &mut self,
        request: Request,
        acknowledges: bool,
        reason: Reason,
    ) -> Result<Option<Outgoing>, SessionError> {
        let reply = match request.failure() {
            Failure::Acknowledgement if acknowledges => Outgoing::reply_u64(request, 1),
            Failure::Status => Outgoing::reply_u64(request, 1),
            Failure::Empty => Outgoing::reply(request, &[]),
            Failure::Acknowledgement | Failure::Unspeakable => return Err(SessionError::Refused { request, reason }),
        };
        self.refused += 1;
        if self.refused == 1 {
            tracing::warn!(%request, %reason, "refused; further refusals of this session are logged at debug level");
        } else {
            tracing::debug!(%request, %reason, "refused");
        }
        self.last_refusal = Some(format!("{request}: {reason}"));
        Ok(Some(reply))
    }

    fn dispatch(&mut self, message: Message, device: &mut dyn Backend) -> Answer {
        match message {
            Message::GetFeatures => reply_u64(Request::GET_FEATURES, self.offered()),
            Message::SetFeatures(features) => done(self.set_features(features, device)),
            Message::GetProtocolFeatures => reply_u64(Request::GET_PROTOCOL_FEATURES, self.offered_protocol()),
            Message::SetProtocolFeatures(features) => done(self.set_protocol_features(features)),
            Message::GetQueueNum => reply_u64(Request::GET_QUEUE_NUM, self.properties.queues.into()),
            Message::SetOwner => Ok(None),
            Message::ResetOwner => done(self.disable_all(device)),
            Message::ResetDevice => done(self.reset(device)),
            Message::SetStatus(status) => done(self.set_status(status, device)),
            Message::GetStatus => reply_u64(Request::GET_STATUS, self.status.into()),
            Message::GetConfig { offset, size, flags } => Self::get_config(offset, size, flags, device),
            Message::SetConfig { offset, flags, bytes } => done(device.write_config(offset, &bytes, flags)),
            Message::SendRarp(mac) => done(device.apply(Change::SendRarp { mac })),
            Message::NetSetMtu(mtu) => done(Self::set_mtu(mtu, device)),
            Message::SetBackendReqFd(fd) => done(self.set_channel(fd)),
            Message::SetMemTable(regions) => done(self.set_memory_table(regions, device)),
            Message::AddMemReg(region, fd) => done(self.add_region(region, fd, device)),
            Message::RemMemReg(region) => done(self.remove_region(region, device)),
            Message::GetMaxMemSlots => reply_u64(Request::GET_MAX_MEM_SLOTS, crate::memory_table::MAX_MEM_SLOTS as u64),
            Message::SetLogBase { size, offset, fd } => self.set_log_base(size, offset, fd, device),
            Message::SetLogFd(fd) => done(self.set_log_fd(fd)),
            Message::GetInflightFd(asked) => self.get_inflight(asked),
            Message::SetInflightFd(given, fd) => done(self.set_inflight(given, fd)),
            Message::SetVringNum { index, num } => done(self.set_size(index, num, device)),
            Message::SetVringAddr { index, addresses } => done(self.set_addresses(index, addresses, device)),
            Message::SetVringBase { index, base } => done(self.set_base(index, base, device)),
            Message::GetVringBase { index } => self.stop_ring(index, device),
            Message::SetVringKick { index, fd } => done(self.set_kick(index, fd, device)),
            Message::SetVringCall { index, fd } => done(self.set_call(index, fd, device)),
            Message::SetVringErr { index, fd } => done(self.set_err(index, fd, device)),
            Message::SetVringEnable { index, enabled } => done(self.enable_ring(index, enabled, device)),
            Message::Other => Err(Reason::NotOffered),
        }
    }

    /// What is to be done now and then: a look at the files behind memory, unmapping, the log descriptor.
    pub(crate) fn tick(&mut self) -> Result<(), SessionError> {
        if self.table.memory().is_truncated() || self.inflight.as_ref().is_some_and(Inflight::is_truncated) {
            return Err(SessionError::MemoryLost);
        }
        self.table.collect();
        self.signal_log();
        Ok(())
    }

    /// The channel for requests of the back-end, when the front-end gave one.
    pub(crate) fn channel(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// The channel failed: there is none any more.
    pub(crate) fn drop_channel(&mut self) {
        self.channel = None;
    }

    /// Ends the session: every ring is stopped and the device is as it was made.
    pub(crate) fn close(mut self, device: &mut dyn Backend) -> Retired {
        if let Err(reason) = self.reset(device) {
            tracing::warn!(%reason, "the device did not reset cleanly");
        }
        self.log = None;
        self.table.close()
    }

    /// Tells what there is to tell about the session.
    pub(crate) fn describe(&self, status: &mut SessionStatus) {
        status.features = self.features;
        status.protocol_features = self.protocol_features;
        status.memory_regions = self.table.memory().regions().len();
        status.rings.clear();
        for (index, ring) in self.rings.iter().enumerate().filter(|(_, ring)| ring.started) {
            let size = ring.size.unwrap_or(0);
            status.rings.push(RingStatus { index: index as u16, size, enabled: self.is_enabled(ring) });
        }
        status.refused = self.refused;
        if self.last_refusal.is_some() {
            status.last_error.clone_from(&self.last_refusal);
        }
    }

    fn any_started(&self) -> bool {
        self.rings.iter().any(|ring| ring.started)
    }
}

fn done<E: Into<Reason>>(result: Result<(), E>) -> Answer {
    result.map(|()| None).map_err(Into::into)
}

fn reply_u64(request: Request, value: u64) -> Answer {
    Ok(Some(Outgoing::reply_u64(request, value)))
}
