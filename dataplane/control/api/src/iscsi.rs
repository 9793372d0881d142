//! Logical units of iSCSI targets as disks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

methods! {
    Create: "bdev_iscsi_create" -> String;
    Delete: "bdev_iscsi_delete" -> bool;
    GetSessions: "bdev_iscsi_get_sessions" -> Vec<SessionInfo>;
    Discover: "iscsi_discover" -> Vec<DiscoveredTarget>;
}

/// Logs in to an iSCSI target and creates a disk of one logical unit. While the target is unreachable, I/O is queued.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Create {
    /// Name of the disk.
    pub name: String,
    /// Initiator name (IQN), as the target's access list has it.
    pub initiator_iqn: String,
    /// The logical unit: `iscsi://[user[%password]@]host[:port]/target-iqn/lun[?header_digest=crc32c&data_digest=crc32c&...]`.
    pub url: String,
    /// Seconds until a lost session is given up and the disk fails; -1, never, by default.
    pub ctrlr_loss_timeout_sec: Option<i32>,
    /// Longest pause between attempts to reconnect, in seconds; 5 by default.
    pub reconnect_delay_sec: Option<u32>,
    /// Seconds until held I/O fails; 0, never, by default.
    pub fast_io_fail_timeout_sec: Option<u32>,
}

/// Deletes an iSCSI disk and logs its sessions out.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Delete {
    /// The disk; name or UUID.
    pub name: String,
}

/// Shows the sessions of an iSCSI disk, one for each worker that serves it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GetSessions {
    /// The disk; name or UUID.
    pub name: String,
}

/// An iSCSI session.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SessionInfo {
    /// Number of the session.
    pub session: u16,
    /// Whether a worker uses the session.
    pub in_use: bool,
    /// Whether the session is logged in.
    pub connected: bool,
    /// Successful logins after the first.
    pub reconnects: u64,
    /// Failed attempts since the session was lost.
    pub failed_attempts: u32,
    /// Milliseconds until the next attempt.
    pub next_attempt_ms: Option<u64>,
    /// Milliseconds since the session was lost.
    pub lost_ms: Option<u64>,
    /// The reason of the loss, or of the last failed attempt.
    pub last_error: Option<String>,
    /// I/Os queued until reconnect.
    pub held: u64,
    /// Age of the oldest of them in milliseconds.
    pub oldest_ms: u64,
    /// Commands aborted on timeout.
    pub aborts: u64,
    /// Commands retried.
    pub retries: u64,
}

/// Lists the targets of an iSCSI portal (SendTargets).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Discover {
    /// The portal: host or host:port.
    pub portal: String,
    /// Initiator name (IQN), as the portal's access list has it.
    pub initiator_iqn: String,
}

/// A target reported by discovery.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DiscoveredTarget {
    /// The target's name.
    pub iqn: String,
    /// The portals that the target reports.
    pub addresses: Vec<String>,
}
