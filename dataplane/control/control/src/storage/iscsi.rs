//! Disks at iSCSI targets.

use super::StoragePlane;
use super::disk_kind::{DiskKind, New};
use crate::blocking::blocking;
use crate::rpc::method::{Handler, Row};
use crate::rpc::{OrRefuse, Refuse};
use ::iscsi::{AttachError, Event, EventSink, IscsiDisk, IscsiEvent, IscsiParams, RecoveryOptions};
use api::iscsi::{Create, Delete, Discover, DiscoveredTarget, GetSessions, SessionInfo};
use api::notify::EventType;
use api::{Method, RpcError};
use block::Bdev;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<GetSessions>(), Row::of::<Discover>()]
}

/// Longest pause between attempts to reconnect, where a call gives none.
const DEFAULT_RECONNECT_DELAY_SEC: u32 = 5;

impl DiskKind for Create {
    const DELETED_BY: &'static str = Delete::NAME;
    type Disk = IscsiDisk;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn prepare(&mut self, plane: &Arc<StoragePlane>, _: Option<Arc<dyn Bdev>>) -> Result<New<Self>, RpcError> {
        let mut params = IscsiParams::from_url(&self.name, &self.initiator_iqn, &self.url).or_refuse()?;
        let recovery = RecoveryOptions {
            ctrlr_loss_timeout_sec: self.ctrlr_loss_timeout_sec.unwrap_or(-1),
            reconnect_delay_sec: self.reconnect_delay_sec.unwrap_or(DEFAULT_RECONNECT_DELAY_SEC),
            fast_io_fail_timeout_sec: self.fast_io_fail_timeout_sec.unwrap_or(0),
        };
        params.recovery = recovery.validate().or_refuse()?;
        let details = json!({"iscsi": {
            "initiator_iqn": params.initiator_iqn,
            "portal": params.portal,
            "target_iqn": params.target_iqn,
        }});
        let sink = event_sink(plane, self.name.clone());
        let open = Box::new(move || IscsiDisk::attach(&params, sink).or_refuse());
        Ok(New { open, details, answer: self.name.clone() })
    }
}

/// Turns what a disk reports into events.
fn event_sink(plane: &Arc<StoragePlane>, name: String) -> EventSink {
    let plane = Arc::downgrade(plane);
    Arc::new(move |event| {
        let Some(plane) = plane.upgrade() else { return };
        if let Event::Protocol(IscsiEvent::Resized { .. }) = event {
            plane.announce_resize(&name);
        } else {
            plane.observe.events.add(EventType::BdevPath, &name, event.to_string());
        }
    })
}

impl Refuse for AttachError {
    fn refuse(self) -> RpcError {
        let error = self;
        let message = error.to_string();
        match error {
            AttachError::Invalid(error) => error.refuse(),
            AttachError::Target { .. } => RpcError::errno(libc::EIO, message)
                .hint("check portal, names and secrets; iscsi_discover lists targets"),
            AttachError::System(source) => RpcError::from_io(&source, message),
        }
    }
}

impl Handler for GetSessions {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<Vec<SessionInfo>, RpcError> {
        let disk = plane.bdevs.backend::<IscsiDisk>(&self.name, Self::NAME)?;
        let millis = |span: Duration| span.as_millis() as u64;
        let info = |s: ::iscsi::SessionStatus| SessionInfo {
            session: s.session,
            in_use: s.in_use,
            connected: s.connected,
            reconnects: s.reconnects,
            failed_attempts: s.failed_attempts,
            next_attempt_ms: s.next_attempt.map(millis),
            lost_ms: s.lost_for.map(millis),
            last_error: s.last_error,
            held: s.held,
            oldest_ms: millis(s.oldest),
            aborts: s.aborts,
            retries: s.retries,
        };
        Ok(disk.status().into_iter().map(info).collect())
    }
}

impl Handler for Discover {
    type Plane = StoragePlane;

    async fn call(&mut self, _: &Arc<StoragePlane>) -> Result<Vec<DiscoveredTarget>, RpcError> {
        const TIMEOUT: Duration = Duration::from_secs(10);
        let (portal, iqn) = (self.portal.clone(), self.initiator_iqn.clone());
        let found =
            blocking(move || ::iscsi::discover(&portal, &iqn, ::iscsi::Auth::default(), TIMEOUT)).await?.or_refuse()?;
        Ok(found.into_iter().map(|t| DiscoveredTarget { iqn: t.iqn, addresses: t.addresses }).collect())
    }
}
