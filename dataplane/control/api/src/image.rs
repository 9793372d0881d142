//! Images copied onto disks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

methods! {
    ImageWrite: "bdev_image_write" -> bool;
    ImageGetProgress: "bdev_image_get_progress" -> ImageProgress;
}

/// Starts copying an image onto an unused disk. `bdev_image_get_progress` shows the progress.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ImageWrite {
    /// The disk; name or UUID.
    pub name: String,
    /// Path of the raw image on the daemon's host; at most as large as the disk.
    pub file: String,
    /// Verify the disk's content afterwards: the disk compares if it can, else it is read back.
    #[serde(default)]
    pub verify: bool,
}

/// Shows the progress of an image copy.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ImageGetProgress {
    /// The disk's name.
    pub name: String,
}

/// The progress of an image copy.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ImageProgress {
    /// Path of the image.
    pub file: String,
    /// Size of the image in bytes.
    pub total: u64,
    /// Bytes copied.
    pub copied: u64,
    /// Bytes verified; null without verification.
    pub verified: Option<u64>,
    /// Whether the copy has ended.
    pub done: bool,
    /// The error that ended the copy.
    pub error: Option<String>,
    /// Offset of the chunk (at most 1 MiB) in which the disk differs from the image.
    pub differs_at: Option<u64>,
}
