//! Disks at iSCSI targets.

use super::bdev;
use crate::Control;
use crate::desired::Object;
use crate::rpc::method::{Effect, Handler, Row, blocking};
use crate::rpc::{OrRefuse, Refuse};
use ::iscsi::{AttachError, Event, EventSink, IscsiDisk, IscsiEvent, IscsiParams};
use api::config::Call;
use api::iscsi::{Create, Delete, Discover, DiscoveredTarget, GetSessions, SessionInfo};
use api::notify::EventType;
use api::{Method, RpcError};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

pub(super) fn methods() -> Vec<Row> {
    vec![Row::of::<Create>(), Row::of::<Delete>(), Row::of::<GetSessions>(), Row::of::<Discover>()]
}

impl Handler for Create {
    fn effect(&self) -> Effect {
        let undo = Call::new(Delete::NAME, json!({"name": self.name}));
        Effect::Keep { slot: Object::bdev(&self.name).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<String, RpcError> {
        let params = IscsiParams::from_url(&self.name, &self.initiator_iqn, &self.url).or_refuse()?;
        let new = bdev::New {
            name_field: "name",
            name: &self.name,
            deleted_by: Delete::NAME,
            base: None,
            about: json!({"iscsi": {
                "initiator_iqn": params.initiator_iqn,
                "portal": params.portal,
                "target_iqn": params.target_iqn,
            }}),
        };
        let sink = event_sink(control, self.name.clone());
        bdev::register(control, new, move || IscsiDisk::attach(&params, sink)).await?;
        Ok(self.name.clone())
    }
}

/// Turns what a disk reports into events.
fn event_sink(control: &Arc<Control>, name: String) -> EventSink {
    let control = Arc::downgrade(control);
    Arc::new(move |event| {
        let Some(control) = control.upgrade() else { return };
        if let Event::Protocol(IscsiEvent::Resized { .. }) = event {
            bdev::announce_resize(&control, &name);
        } else {
            control.events.add(EventType::BdevPath, &name, event.to_string());
        }
    })
}

impl Refuse for AttachError {
    fn refuse(self) -> RpcError {
        let error = self;
        let message = error.to_string();
        match error {
            AttachError::Invalid(invalid) => invalid.refuse(),
            AttachError::Target { .. } => RpcError::errno(libc::EIO, message)
                .hint("check portal, names and secrets; iscsi_discover lists targets"),
            AttachError::System(source) => RpcError::from_io(&source, message),
        }
    }
}

impl Handler for Delete {
    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
    }
}

impl Handler for GetSessions {
    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<SessionInfo>, RpcError> {
        let disk = control.bdevs.backend::<IscsiDisk>(&self.name, Self::NAME)?;
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
    async fn call(&mut self, _: &Arc<Control>) -> Result<Vec<DiscoveredTarget>, RpcError> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let (portal, iqn) = (self.portal.clone(), self.initiator_iqn.clone());
        let found = blocking(move || ::iscsi::discover(&portal, &iqn, ::iscsi::Auth::default(), PATIENCE))
            .await?
            .or_refuse()?;
        Ok(found.into_iter().map(|t| DiscoveredTarget { iqn: t.iqn, addresses: t.addresses }).collect())
    }
}
