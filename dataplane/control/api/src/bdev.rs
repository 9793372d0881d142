//! Disks: those of each kind, and what goes for all of them. SPDK's word for a disk is bdev.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

methods! {
    GetBdevs: "bdev_get_bdevs" -> Vec<BdevInfo>;
    Delete: "bdev_delete" -> bool;
    Rescan: "bdev_rescan" -> bool;
    WaitForExamine: "bdev_wait_for_examine" -> bool;
    SetQosLimit: "bdev_set_qos_limit" -> bool;
    MallocCreate: "bdev_malloc_create" -> String;
    MallocDelete: "bdev_malloc_delete" -> bool;
    NullCreate: "bdev_null_create" -> String;
    NullDelete: "bdev_null_delete" -> bool;
    NullResize: "bdev_null_resize" -> bool;
    AioCreate: "bdev_aio_create" -> String;
    AioDelete: "bdev_aio_delete" -> bool;
    AioRescan: "bdev_aio_rescan" -> bool;
    UringCreate: "bdev_uring_create" -> String;
    UringDelete: "bdev_uring_delete" -> bool;
    UringRescan: "bdev_uring_rescan" -> bool;
    DelayCreate: "bdev_delay_create" -> String;
    DelayDelete: "bdev_delay_delete" -> bool;
    DelayUpdateLatency: "bdev_delay_update_latency" -> bool;
    ErrorCreate: "bdev_error_create" -> bool;
    ErrorDelete: "bdev_error_delete" -> bool;
    ErrorInject: "bdev_error_inject_error" -> bool;
    CidataCreate: "bdev_cidata_create" -> CidataInfo;
    CidataDelete: "bdev_cidata_delete" -> bool;
}

/// Lists the disks.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct GetBdevs {
    /// List only this disk; name or UUID.
    pub name: Option<String>,
    /// Milliseconds to wait for the disk to appear; 0 by default.
    #[serde(default)]
    pub timeout: u64,
}

/// A disk, in SPDK's shape; `held_by` and `size` are additions.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BdevInfo {
    /// The disk's name.
    pub name: String,
    /// The UUID, as another name.
    pub aliases: Vec<String>,
    /// The kind of disk.
    pub product_name: String,
    /// Block size in bytes.
    pub block_size: u32,
    /// Number of blocks.
    pub num_blocks: u64,
    /// Physical block size in bytes.
    pub physical_block_size: u32,
    /// The UUID.
    pub uuid: String,
    /// The limits set by `bdev_set_qos_limit`.
    pub assigned_rate_limits: RateLimits,
    /// Whether the disk is in use.
    pub claimed: bool,
    /// The users: controllers, disks on top, image copies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_by: Vec<String>,
    /// Size in bytes.
    pub size: u64,
    /// Always false.
    pub zoned: bool,
    /// The supported operations.
    pub supported_io_types: IoTypes,
    /// Details of the disk's kind.
    pub driver_specific: Value,
}

/// Rate limits of a disk; 0 is no limit.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RateLimits {
    /// Requests per second.
    pub rw_ios_per_sec: u64,
    /// MiB per second.
    pub rw_mbytes_per_sec: u64,
    /// MiB read per second.
    pub r_mbytes_per_sec: u64,
    /// MiB written per second.
    pub w_mbytes_per_sec: u64,
    /// Reads per second.
    pub r_ios_per_sec: u64,
    /// Writes per second.
    pub w_ios_per_sec: u64,
}

/// The operations that a disk supports.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)] // SPDK's names
pub struct IoTypes {
    pub read: bool,
    pub write: bool,
    pub unmap: bool,
    pub write_zeroes: bool,
    pub flush: bool,
    pub reset: bool,
    pub compare: bool,
    pub compare_and_write: bool,
    pub abort: bool,
    pub nvme_admin: bool,
    pub nvme_io: bool,
    pub copy: bool,
}

/// Deletes a disk of any kind.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Delete {
    /// The disk; name or UUID.
    pub name: String,
}

/// Re-reads the size of a disk of any kind, such as that of its file, and notifies the guest.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Rescan {
    /// The disk; name or UUID.
    pub name: String,
}

/// Waits until all disks are examined. Returns at once: no metadata on disks is examined.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct WaitForExamine {}

/// Limits the I/O rate of a disk. A limit that is not given stays; 0 removes it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct SetQosLimit {
    /// The disk; name or UUID.
    pub name: String,
    /// Reads and writes per second.
    pub rw_ios_per_sec: Option<u64>,
    /// MiB read and written per second.
    pub rw_mbytes_per_sec: Option<u64>,
    /// MiB read per second.
    pub r_mbytes_per_sec: Option<u64>,
    /// MiB written per second.
    pub w_mbytes_per_sec: Option<u64>,
    /// Reads per second.
    pub r_ios_per_sec: Option<u64>,
    /// Writes per second.
    pub w_ios_per_sec: Option<u64>,
    /// Burst allowed after a pause, in milliseconds at the limited rate; at least 10 are always allowed.
    pub burst_ms: Option<u64>,
}

/// Creates a disk in memory. Its content is lost when the daemon stops.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct MallocCreate {
    /// Name of the disk; Malloc and a number by default.
    pub name: Option<String>,
    /// Block size in bytes: a power of two from 512 to 65536.
    pub block_size: u32,
    /// Number of blocks.
    pub num_blocks: u64,
    /// UUID of the disk; random by default.
    pub uuid: Option<Uuid>,
    /// Physical block size in bytes, at least block_size.
    pub physical_block_size: Option<u32>,
    /// NUMA node of the memory; -1, any node, by default.
    pub numa_id: Option<i32>,
    /// I/O boundaries are not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
    pub optimal_io_boundary: Option<u32>,
    /// Metadata is not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
    pub md_size: Option<u32>,
    /// Metadata is not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = false, "x-sluice-formerly-ignored" = true))]
    pub md_interleave: Option<bool>,
    /// Protection information is not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
    pub dif_type: Option<i32>,
    /// Protection information is not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = false, "x-sluice-formerly-ignored" = true))]
    pub dif_is_head_of_md: Option<bool>,
    /// Protection information is not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
    pub dif_pi_format: Option<u32>,
}

/// Deletes a disk in memory with its content.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MallocDelete {
    /// The disk; name or UUID.
    pub name: String,
}

/// Creates a disk that discards writes and returns unspecified data on reads, for benchmarks.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct NullCreate {
    /// Name of the disk.
    pub name: String,
    /// Block size in bytes: a power of two from 512 to 65536.
    pub block_size: u32,
    /// Number of blocks.
    pub num_blocks: u64,
    /// UUID of the disk; random by default.
    pub uuid: Option<Uuid>,
    /// Physical block size in bytes, at least block_size.
    pub physical_block_size: Option<u32>,
    /// Metadata is not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
    pub md_size: Option<u32>,
    /// Protection information is not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
    pub dif_type: Option<i32>,
    /// Protection information is not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
    pub dif_pi_format: Option<u32>,
    /// Protection information is not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = false, "x-sluice-formerly-ignored" = true))]
    pub dif_is_head_of_md: Option<bool>,
    /// Preferred sizes are not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
    pub preferred_write_granularity: Option<u32>,
    /// Preferred sizes are not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
    pub preferred_write_alignment: Option<u32>,
    /// Preferred sizes are not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
    pub optimal_write_size: Option<u32>,
    /// Preferred sizes are not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
    pub preferred_unmap_granularity: Option<u32>,
    /// Preferred sizes are not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
    pub preferred_unmap_alignment: Option<u32>,
}

/// Deletes a null disk.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NullDelete {
    /// The disk; name or UUID.
    pub name: String,
}

/// Resizes a null disk and notifies the guest.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NullResize {
    /// The disk; name or UUID.
    pub name: String,
    /// New size in MiB.
    pub new_size: u64,
}

/// Creates a disk on a file or a block device.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct AioCreate {
    /// Name of the disk.
    pub name: String,
    /// Path of the file or device on the daemon's host.
    pub filename: String,
    /// Block size in bytes: a power of two from 512 to 65536; by default the device's, 512 for a file.
    pub block_size: Option<u32>,
    /// Open the file read-only.
    #[serde(default)]
    pub readonly: bool,
    /// For SPDK's clients: discards always give space back where the file system can.
    #[serde(default)]
    #[schemars(extend("x-sluice-hidden" = true))]
    pub fallocate: bool,
    /// UUID of the disk; random by default.
    pub uuid: Option<Uuid>,
    /// For SPDK's clients: io_uring never blocks the caller.
    #[serde(default)]
    #[schemars(extend("x-sluice-hidden" = true))]
    pub nowait: bool,
}

/// Deletes a disk made by bdev_aio_create. The file stays.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AioDelete {
    /// The disk; name or UUID.
    pub name: String,
}

/// Re-reads the file's size and notifies the guest.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AioRescan {
    /// The disk; name or UUID.
    pub name: String,
}

/// Creates a disk on a file or a block device, accessed with io_uring.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct UringCreate {
    /// Name of the disk.
    pub name: String,
    /// Path of the file or device on the daemon's host.
    pub filename: String,
    /// Block size in bytes: a power of two from 512 to 65536; by default the device's, 512 for a file.
    pub block_size: Option<u32>,
    /// UUID of the disk; random by default.
    pub uuid: Option<Uuid>,
}

/// Deletes a disk made by bdev_uring_create. The file stays.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct UringDelete {
    /// The disk; name or UUID.
    pub name: String,
}

/// Re-reads the file's size and notifies the guest.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct UringRescan {
    /// The disk; name or UUID.
    pub name: String,
}

/// Creates a disk that delays the requests to a base disk: 99 of 100 by the average latency, one by the 99th percentile.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DelayCreate {
    /// Name of the disk.
    pub name: String,
    /// The base disk; name or UUID.
    pub base_bdev_name: String,
    /// Delay of 99 in 100 reads, in microseconds.
    pub avg_read_latency: u64,
    /// Delay of one in 100 reads, in microseconds; at least avg_read_latency.
    pub p99_read_latency: u64,
    /// Delay of 99 in 100 writes, in microseconds.
    pub avg_write_latency: u64,
    /// Delay of one in 100 writes, in microseconds; at least avg_write_latency.
    pub p99_write_latency: u64,
    /// UUID of the disk; random by default.
    pub uuid: Option<Uuid>,
}

/// Deletes a delay disk. The base disk stays.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DelayDelete {
    /// The disk; name or UUID.
    pub name: String,
}

/// Changes one latency of a delay disk.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DelayUpdateLatency {
    /// The delay disk; name or UUID.
    pub delay_bdev_name: String,
    /// The latency to change.
    pub latency_type: DelayLatency,
    /// New latency in microseconds.
    pub latency_us: u64,
}

/// A latency of a delay disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DelayLatency {
    /// Of 99 in 100 reads.
    AvgRead,
    /// Of one in 100 reads.
    P99Read,
    /// Of 99 in 100 writes.
    AvgWrite,
    /// Of one in 100 writes.
    P99Write,
}

/// Creates an error-injection disk over a base disk, named EE_ and the base disk's name.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ErrorCreate {
    /// The base disk; name or UUID.
    pub base_name: String,
    /// UUID of the disk; random by default.
    pub uuid: Option<Uuid>,
}

/// Deletes an error-injection disk. The base disk stays.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ErrorDelete {
    /// Name of the disk, with EE_.
    pub name: String,
}

/// Injects errors into the next requests of an error-injection disk. Not saved: a restarted daemon injects nothing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ErrorInject {
    /// Name of the disk, with EE_.
    pub name: String,
    /// The requests to affect; clear ends all injection and releases pending requests.
    pub io_type: ErrorIoType,
    /// The error to inject.
    pub error_type: InjectedError,
    /// Number of requests to affect; 1 by default.
    pub num: Option<u32>,
    /// Inject only while this many requests are in flight on a queue; 0, always, by default.
    #[serde(default)]
    pub queue_depth: u64,
    /// Offset in the request of the byte to corrupt; 0 by default.
    #[serde(default)]
    pub corrupt_offset: u64,
    /// Value that the byte is XORed with, 1 to 255.
    #[serde(default)]
    pub corrupt_value: u8,
    /// NVMe status codes are not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
    pub nvme_sct: Option<u32>,
    /// NVMe status codes are not supported.
    #[schemars(extend("x-sluice-unsupported" = true, "const" = 0))]
    pub nvme_sc: Option<u32>,
}

/// The requests that an injected error affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // SPDK's names
pub enum ErrorIoType {
    Clear,
    Read,
    Write,
    Unmap,
    Flush,
    All,
}

/// An injected error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InjectedError {
    /// Requests fail.
    Failure,
    /// Requests are held until the injection is cleared.
    Pending,
    /// One byte of the data is corrupted.
    CorruptData,
    /// Requests are refused for lack of memory and retried.
    Nomem,
}

/// Creates a read-only disk labelled cidata, from which cloud-init reads user data and network configuration (NoCloud).
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct CidataCreate {
    /// Name of the disk.
    pub name: String,
    /// Content of user-data: #cloud-config, a script, or another format of cloud-init; empty by default.
    #[serde(default)]
    pub user_data: String,
    /// Content of meta-data: a YAML mapping; empty by default. An instance-id is added if it has none.
    #[serde(default)]
    pub meta_data: String,
    /// Content of network-config, version 1 or 2; no such file by default.
    pub network_config: Option<String>,
    /// The instance-id: a guest that sees a new one runs its first boot again. By default it is derived from the disk's name,
    /// whatever the content.
    pub instance_id: Option<String>,
    /// Generate a new instance-id.
    pub new_instance: Option<bool>,
}

/// A new cloud-init disk.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CidataInfo {
    /// The disk's name.
    pub name: String,
    /// The instance-id that the guest sees.
    pub instance_id: String,
}

/// Deletes a cloud-init disk.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CidataDelete {
    /// The disk; name or UUID.
    pub name: String,
}
