//! Events: SPDK's notifications.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

methods! {
    GetTypes: "notify_get_types" -> [EventType; EventType::ALL.len()];
    GetNotifications: "notify_get_notifications" -> Vec<Notification>;
}

/// A type of event. The first two are SPDK's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// A disk was created.
    BdevRegister,
    /// A disk was deleted.
    BdevUnregister,
    /// A disk was resized.
    BdevResize,
    /// The path from a disk to its target was lost or re-established, or is being retried.
    BdevPath,
    /// A controller was created.
    VhostControllerCreate,
    /// A controller was deleted.
    VhostControllerDelete,
    /// A device was quarantined: its guest or front-end broke the protocol. It is served again after a reset.
    VhostQuarantine,
    /// A port was created.
    PortCreate,
    /// A port was deleted.
    PortDelete,
    /// A queue was moved to another worker.
    QueueMove,
    /// A call of the configuration could not be carried out; it is retried.
    ConfigPending,
    /// A pending call of the configuration is in effect.
    ConfigRestored,
    /// The state file was damaged.
    StateDamaged,
}

impl EventType {
    /// All types.
    pub const ALL: [EventType; 13] = [
        EventType::BdevRegister,
        EventType::BdevUnregister,
        EventType::BdevResize,
        EventType::BdevPath,
        EventType::VhostControllerCreate,
        EventType::VhostControllerDelete,
        EventType::VhostQuarantine,
        EventType::PortCreate,
        EventType::PortDelete,
        EventType::QueueMove,
        EventType::ConfigPending,
        EventType::ConfigRestored,
        EventType::StateDamaged,
    ];
}

/// An event.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Notification {
    /// Type of the event.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// Name of the object.
    pub ctx: String,
    /// Number of the event, from 0.
    pub id: u64,
    /// Time in milliseconds since 1970.
    pub time_ms: u64,
    /// Details.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Lists the types of events.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetTypes {}

/// Lists the events, oldest first.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetNotifications {
    /// Number of the first event to list; events are numbered from 0.
    #[serde(default)]
    pub id: u64,
    /// Maximum number of events to list; unlimited by default.
    pub max: Option<u64>,
}
