//! NVMe/TCP controllers and their namespaces as disks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

methods! {
    AttachController: "bdev_nvme_attach_controller" -> Vec<String>;
    DetachController: "bdev_nvme_detach_controller" -> bool;
    GetControllers: "bdev_nvme_get_controllers" -> Vec<ControllerInfo>;
    GetIoPaths: "bdev_nvme_get_io_paths" -> IoPaths;
    ResetController: "bdev_nvme_reset_controller" -> bool;
    Discover: "nvme_discover" -> Vec<DiscoveredSubsystem>;
}

/// Connects to an NVMe/TCP subsystem and creates a disk of each namespace. Returns the names of the disks. While the controller
/// is unreachable, I/O is queued.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct AttachController {
    /// Name of the controller. Its disks are named after it: the name, n, and the namespace ID.
    pub name: String,
    /// Transport type: TCP.
    pub trtype: String,
    /// IP address of the target.
    pub traddr: String,
    /// Address family, IPv4 or IPv6; must match traddr.
    pub adrfam: Option<String>,
    /// TCP port of the target; 4420 by default.
    pub trsvcid: Option<String>,
    /// NQN of the subsystem.
    pub subnqn: String,
    /// NQN of this host; derived from the daemon's host ID by default.
    pub hostnqn: Option<String>,
    /// Local address to connect from.
    pub hostaddr: Option<String>,
    /// Local port to connect from.
    pub hostsvcid: Option<String>,
    /// Enable header digests (CRC32C).
    #[serde(default)]
    pub hdgst: bool,
    /// Enable data digests (CRC32C).
    #[serde(default)]
    pub ddgst: bool,
    /// Timeout of connecting a queue in microseconds; 0 and by default: 5 s.
    pub fabrics_connect_timeout_us: Option<u64>,
    /// Maximum number of I/O queues, one for each worker that serves a disk of the controller: 1 to 1024; 64 by default.
    pub num_io_queues: Option<u32>,
    /// Seconds until a lost controller is given up and its disks fail; -1, never, by default.
    pub ctrlr_loss_timeout_sec: Option<i32>,
    /// Maximum delay between reconnect attempts in seconds; 2 by default.
    pub reconnect_delay_sec: Option<u32>,
    /// Seconds until queued I/O fails; 0, never, by default.
    pub fast_io_fail_timeout_sec: Option<u32>,
    /// Socket priorities are not supported.
    #[schemars(extend("x-sluice-unsupported" = true))]
    pub priority: Option<String>,
    /// Protection information is not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = false))]
    pub prchk_reftag: Option<bool>,
    /// Protection information is not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = false))]
    pub prchk_guard: Option<bool>,
    /// Multipath is not supported: a controller has one path.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = "disable"))]
    pub multipath: Option<String>,
    /// TLS is not supported.
    #[schemars(extend("x-sluice-unsupported" = true))]
    pub psk: Option<String>,
    /// DH-HMAC-CHAP is not supported.
    #[schemars(extend("x-sluice-unsupported" = true))]
    pub dhchap_key: Option<String>,
    /// DH-HMAC-CHAP is not supported.
    #[schemars(extend("x-sluice-unsupported" = true))]
    pub dhchap_ctrlr_key: Option<String>,
    /// Maximum number of disks: a subsystem with more namespaces is refused; any number by default.
    #[schemars(extend("x-sluice-formerly-ignored" = true))]
    pub max_bdevs: Option<u32>,
    /// Namespaces of command sets other than NVM are not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = false, "x-sluice-formerly-ignored" = true))]
    pub allow_unrecognized_csi: Option<bool>,
}

/// Disconnects an NVMe controller and deletes its disks.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DetachController {
    /// Name of the controller.
    pub name: String,
}

/// Lists the NVMe controllers.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetControllers {
    /// List only this controller.
    pub name: Option<String>,
}

/// An NVMe controller, in SPDK's shape.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ControllerInfo {
    /// Name of the controller.
    pub name: String,
    /// The paths to the controller: one.
    pub ctrlrs: Vec<PathInfo>,
    /// Names of the disks.
    pub bdevs: Vec<String>,
}

/// The path to an NVMe controller; below `host` are additions to SPDK's shape.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PathInfo {
    /// SPDK's word for the state: enabled, reconnect_is_delayed, failed.
    pub state: String,
    /// Controller ID.
    pub cntlid: u16,
    /// Address of the target.
    pub trid: TransportId,
    /// This host.
    pub host: HostId,
    /// Failed reconnect attempts since the connection was lost.
    pub failed_attempts: u32,
    /// The last error.
    pub last_error: Option<String>,
    /// I/Os queued until reconnect.
    pub held: u64,
    /// Age of the oldest of them in milliseconds.
    pub oldest_ms: u64,
    /// Associations so far.
    pub associations: u64,
    /// I/Os retried.
    pub retried: u64,
    /// Writes fenced before a retry.
    pub fenced: u64,
    /// Connections lost.
    pub connections_lost: u64,
    /// Digest errors.
    pub digest_errors: u64,
    /// Timeouts.
    pub timeouts: u64,
}

/// The address of an NVMe subsystem.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TransportId {
    /// Transport type.
    pub trtype: String,
    /// Address family.
    pub adrfam: String,
    /// IP address.
    pub traddr: String,
    /// TCP port.
    pub trsvcid: String,
    /// NQN of the subsystem.
    pub subnqn: String,
}

/// A host as an NVMe controller knows it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HostId {
    /// NQN of the host.
    pub nqn: String,
}

/// Lists the paths from disks to their NVMe controllers.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetIoPaths {
    /// List only the paths of this disk.
    pub name: Option<String>,
}

/// I/O paths in SPDK's shape: one group.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct IoPaths {
    /// The groups.
    pub poll_groups: Vec<PollGroup>,
}

/// I/O paths of a group of workers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PollGroup {
    /// The group's name.
    pub thread: String,
    /// The paths.
    pub io_paths: Vec<IoPath>,
}

/// A path from a disk to its NVMe controller.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct IoPath {
    /// The disk.
    pub bdev_name: String,
    /// Controller ID.
    pub cntlid: u16,
    /// Whether I/O takes this path.
    pub current: bool,
    /// Whether the controller is connected.
    pub connected: bool,
    /// Whether the namespace is accessible.
    pub accessible: bool,
    /// Address of the target.
    pub transport: TransportId,
}

/// Resets an NVMe controller: ends the association and establishes a new one. I/O is queued meanwhile.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ResetController {
    /// Name of the controller.
    pub name: String,
}

/// Lists the subsystems that an NVMe/TCP discovery controller, and those it refers to, report.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Discover {
    /// IP address of the discovery controller.
    pub traddr: String,
    /// TCP port of the discovery controller; 8009 by default.
    pub trsvcid: Option<String>,
    /// NQN of this host; derived from the daemon's host ID by default.
    pub hostnqn: Option<String>,
}

/// A subsystem reported by discovery.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DiscoveredSubsystem {
    /// NQN of the subsystem.
    pub subnqn: String,
    /// IP address.
    pub traddr: String,
    /// TCP port.
    pub trsvcid: String,
}
