//! Packet captures of ports.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

methods! {
    CaptureStart: "capture_start" -> bool;
    CaptureGet: "capture_get" -> Vec<CaptureInfo>;
    CaptureStop: "capture_stop" -> CaptureInfo;
}

/// Starts capturing the packets that a port receives and sends into a pcapng file. A dropped packet is recorded once more, with the
/// reason as its comment. The datapath never waits for the file: packets that cannot be written in time are counted as lost.
/// Captures are not part of the configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct CaptureStart {
    /// Name of the port.
    pub port: String,
    /// Path of the file on the daemon's host; an existing file is overwritten.
    pub file: String,
    /// Snapshot length: bytes kept of each packet, 14 to 65535; 2048 by default.
    pub snap_len: Option<u32>,
    /// Stop after this many packets; unlimited by default.
    pub count: Option<u64>,
    /// Stop when the file has this many bytes; 1 GiB by default.
    pub max_bytes: Option<u64>,
}

/// Lists the captures that run, and those that have ended and were not stopped.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct CaptureGet {
    /// List only the capture of this port.
    pub port: Option<String>,
}

/// A packet capture.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CaptureInfo {
    /// The port.
    pub port: String,
    /// Path of the file.
    pub file: String,
    /// Whether the capture runs.
    pub running: bool,
    /// Packets in the file.
    pub packets: u64,
    /// Bytes of these packets in the file.
    pub bytes: u64,
    /// Packets that could not be written in time.
    pub lost: u64,
    /// The error that ended the capture.
    pub error: Option<String>,
}

/// Stops a capture. The file is complete when the call returns.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CaptureStop {
    /// Name of the port.
    pub port: String,
}
