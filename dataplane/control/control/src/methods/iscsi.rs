//! Disks at iSCSI targets.

use super::bdev;
use crate::Control;
use crate::desired::{Call, Object};
use crate::events::EventType;
use crate::rpc::RpcError;
use crate::rpc::method::{Effect, Entry, Method, blocking};
use ::iscsi::{AttachError, Event, EventSink, IscsiDisk, IscsiParams};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

pub(super) fn methods() -> Vec<Entry> {
    vec![
        Entry::of::<BdevIscsiCreate>(),
        Entry::of::<BdevIscsiDelete>(),
        Entry::of::<BdevIscsiGetSessions>(),
        Entry::of::<IscsiDiscover>(),
    ]
}

/// Logs in to an iSCSI target and makes a disk of one of its units. While the target cannot be reached its I/O is held.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevIscsiCreate {
    /// Its name.
    name: String,
    /// Our own name: an IQN that the target allows.
    initiator_iqn: String,
    /// Where and what: iscsi://[user[%password]@]host[:port]/target-iqn/lun[?header_digest=crc32c&data_digest=crc32c&...].
    url: String,
}

impl Method for BdevIscsiCreate {
    const NAME: &'static str = "bdev_iscsi_create";
    type Output = String;

    fn effect(&self) -> Effect {
        let undo = Call::new(BdevIscsiDelete::NAME, json!({"name": self.name}));
        Effect::Keep { slot: Object::bdev(&self.name).itself(), undo: Some(undo) }
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<String, RpcError> {
        let params = IscsiParams::from_url(&self.name, &self.initiator_iqn, &self.url).map_err(AttachError::Param)?;
        let new = bdev::New {
            name_field: "name",
            name: &self.name,
            deleted_by: BdevIscsiDelete::NAME,
            base: None,
            about: json!({"iscsi": {
                "initiator_iqn": params.initiator_iqn,
                "portal": params.portal,
                "target_iqn": params.target_iqn,
            }}),
        };
        let sink = story(control, self.name.clone());
        bdev::register(control, new, move || IscsiDisk::attach(&params, sink)).await?;
        Ok(self.name.clone())
    }
}

/// Turns what a disk reports into events.
fn story(control: &Arc<Control>, name: String) -> EventSink {
    let control = Arc::downgrade(control);
    Arc::new(move |event| {
        let Some(control) = control.upgrade() else { return };
        if let Event::Resized { .. } = event {
            bdev::announce_resize(&control, &name);
        } else {
            control.events.add(EventType::BdevPath, &name, event.to_string());
        }
    })
}

impl From<AttachError> for RpcError {
    fn from(error: AttachError) -> RpcError {
        let message = error.to_string();
        match error {
            AttachError::Param(p) => RpcError::invalid(p.field, p.got, p.expected).hint(p.hint),
            AttachError::Target { .. } => RpcError::errno(libc::EIO, message)
                .hint("check portal, names and secrets; iscsi_discover lists targets"),
            AttachError::System(source) => RpcError::from_io(&source, message),
        }
    }
}

/// Deletes an iSCSI disk: its sessions log out.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevIscsiDelete {
    /// Its name.
    name: String,
}

impl Method for BdevIscsiDelete {
    const NAME: &'static str = "bdev_iscsi_delete";
    type Output = bool;

    fn effect(&self) -> Effect {
        Effect::Forget(Object::bdev(&self.name))
    }

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        self.name = bdev::delete(control, &self.name, Self::NAME).await?;
        Ok(true)
    }
}

/// Tells how the sessions of an iSCSI disk are, one a worker that serves it.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevIscsiGetSessions {
    /// The disk.
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct SessionInfo {
    /// Its number.
    session: u16,
    /// A worker uses it.
    in_use: bool,
    /// It is up.
    connected: bool,
    /// Logins that succeeded after the first.
    reconnects: u64,
    /// Attempts that failed since it was lost.
    failed_attempts: u32,
    /// Milliseconds until the next attempt.
    next_attempt_ms: Option<u64>,
    /// Milliseconds since it was lost.
    lost_ms: Option<u64>,
    /// Why it was lost, or why the last attempt failed.
    last_error: Option<String>,
    /// I/Os that wait for it.
    held: u64,
    /// Age of the oldest of them in milliseconds.
    oldest_ms: u64,
    /// Commands aborted because they took too long.
    aborts: u64,
    /// Commands sent again.
    retries: u64,
}

impl Method for BdevIscsiGetSessions {
    const NAME: &'static str = "bdev_iscsi_get_sessions";
    type Output = Vec<SessionInfo>;

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

/// Asks an iSCSI portal for its targets (SendTargets).
#[derive(Serialize, Deserialize, JsonSchema)]
struct IscsiDiscover {
    /// Where: host, or host:port.
    portal: String,
    /// Our own name: an IQN that the portal allows.
    initiator_iqn: String,
}

#[derive(Serialize, JsonSchema)]
struct FoundTarget {
    /// Its name.
    iqn: String,
    /// Where it listens, as it says itself.
    addresses: Vec<String>,
}

impl Method for IscsiDiscover {
    const NAME: &'static str = "iscsi_discover";
    type Output = Vec<FoundTarget>;

    async fn call(&mut self, _: &Arc<Control>) -> Result<Vec<FoundTarget>, RpcError> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let (portal, iqn) = (self.portal.clone(), self.initiator_iqn.clone());
        let found = blocking(move || ::iscsi::discover(&portal, &iqn, ::iscsi::Auth::default(), PATIENCE)).await??;
        Ok(found.into_iter().map(|t| FoundTarget { iqn: t.iqn, addresses: t.addresses }).collect())
    }
}
