//! Boot disks of hosts: a remote disk and its cloud-init disk, attached and served in one call.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

methods! {
    BootCreate: "boot_create" -> BootInfo;
    BootDelete: "boot_delete" -> bool;
}

/// Creates the boot disk of a host: attaches the remote disk, reads its first block, creates the cloud-init disk, and serves both.
/// If a step fails, the steps before it are undone.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct BootCreate {
    /// Name of the host. The controllers, and the disks, are NAME and NAME-cidata.
    pub name: String,
    /// The remote disk at an NVMe/TCP target: parameters of bdev_nvme_attach_controller without name, and nsid (1 by default).
    pub nvme: Option<Map<String, Value>>,
    /// The remote disk at an iSCSI target: parameters of bdev_iscsi_create without name.
    pub iscsi: Option<Map<String, Value>>,
    /// The cloud-init disk: parameters of bdev_cidata_create without name; none by default.
    pub cidata: Option<Map<String, Value>>,
    /// The controller of the boot disk: parameters of vhost_create_blk_controller without ctrlr and dev_name.
    pub controller: Option<Map<String, Value>>,
}

/// A new boot disk.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BootInfo {
    /// The boot disk.
    pub disk: String,
    /// The controller of the boot disk.
    pub controller: String,
    /// The controller of the cloud-init disk.
    pub cidata_controller: Option<String>,
    /// The steps in order.
    pub steps: Vec<BootStep>,
    /// Duration of the call in microseconds.
    pub total_us: u64,
}

/// A step of creating a boot disk.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BootStep {
    /// The method called, or `first read`.
    pub step: String,
    /// Duration of the step in microseconds.
    pub us: u64,
}

/// Deletes the boot disk of a host: everything that boot_create created.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BootDelete {
    /// Name of the host.
    pub name: String,
}
