//! Captures of ports.

use crate::Control;
use crate::capture::{Progress, Wanted};
use crate::rpc::RpcError;
use crate::rpc::method::{Entry, Method, blocking};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<CaptureStart>(), Entry::of::<CaptureGet>(), Entry::of::<CaptureStop>()]
}

/// Enough for any headers and most packets.
const DEFAULT_SNAP_LEN: u32 = 2048;
const MAX_SNAP_LEN: u32 = 65535;
const DEFAULT_MAX_BYTES: u64 = 1 << 30;

/// Writes the packets that come in and go out by a port into a pcapng file, from now on. One that the switch drops is there a second
/// time, with the reason as its comment. The port's packets never wait for the file: what cannot be written in time is counted.
/// A capture is not part of the configuration.
#[derive(Serialize, Deserialize, JsonSchema)]
struct CaptureStart {
    /// The port.
    port: String,
    /// The file, on the daemon's side. What was in it is lost.
    file: String,
    /// Bytes of each packet that are kept, 14 to 65535; 2048 when it is not given.
    snap_len: Option<u32>,
    /// Packets after which it ends; any number when it is not given.
    count: Option<u64>,
    /// Bytes of the file after which it ends; a GiB when it is not given.
    max_bytes: Option<u64>,
}

impl Method for CaptureStart {
    const NAME: &'static str = "capture_start";
    type Output = bool;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let snap_len = self.snap_len.unwrap_or(DEFAULT_SNAP_LEN);
        if !(14..=MAX_SNAP_LEN).contains(&snap_len) {
            return Err(RpcError::invalid("snap_len", snap_len, format!("14 to {MAX_SNAP_LEN}")));
        }
        let switch = control.switch("port", &self.port)?;
        if !switch.ports().iter().any(|port| port.name == self.port) {
            return Err(RpcError::no_such("port", &self.port).hint("port_get lists the ports"));
        }
        let wanted = Wanted {
            port: self.port.clone(),
            file: self.file.clone(),
            snap_len: snap_len as usize,
            packets: self.count.unwrap_or(u64::MAX),
            bytes: self.max_bytes.unwrap_or(DEFAULT_MAX_BYTES),
        };
        let control = control.clone();
        blocking(move || control.captures.start(switch, wanted)).await??;
        Ok(true)
    }
}

/// Lists the captures that run, and those that have ended and were not stopped.
#[derive(Serialize, Deserialize, JsonSchema)]
struct CaptureGet {
    /// Only that of this port.
    port: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct CaptureInfo {
    port: String,
    file: String,
    running: bool,
    /// Packets in the file.
    packets: u64,
    /// Bytes of them there.
    bytes: u64,
    /// Packets that could not be written in time.
    lost: u64,
    /// Why it ended before its end.
    error: Option<String>,
}

impl Method for CaptureGet {
    const NAME: &'static str = "capture_get";
    type Output = Vec<CaptureInfo>;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Vec<CaptureInfo>, RpcError> {
        let wanted = |one: &Arc<Progress>| self.port.as_ref().is_none_or(|port| *port == one.wanted.port);
        let found: Vec<CaptureInfo> =
            control.captures.all().iter().filter(|one| wanted(one)).map(|one| describe(one)).collect();
        match &self.port {
            Some(port) if found.is_empty() => Err(RpcError::no_such("capture of port", port)),
            _ => Ok(found),
        }
    }
}

fn describe(progress: &Progress) -> CaptureInfo {
    // Before the numbers: those of a capture that has ended are its last.
    let running = progress.running.load(Ordering::Acquire);
    CaptureInfo {
        port: progress.wanted.port.clone(),
        file: progress.wanted.file.clone(),
        running,
        packets: progress.packets.load(Ordering::Relaxed),
        bytes: progress.bytes.load(Ordering::Relaxed),
        lost: progress.lost(),
        error: progress.error.lock().expect("no panic under this lock").clone(),
    }
}

/// Ends a capture. Its file is complete when this returns.
#[derive(Serialize, Deserialize, JsonSchema)]
struct CaptureStop {
    /// The port.
    port: String,
}

impl Method for CaptureStop {
    const NAME: &'static str = "capture_stop";
    type Output = CaptureInfo;

    async fn call(&mut self, control: &Arc<Control>) -> Result<CaptureInfo, RpcError> {
        let (owner, port) = (control.clone(), self.port.clone());
        let stopped = blocking(move || owner.captures.stop(&port)).await?;
        stopped.map(|one| describe(&one)).ok_or_else(|| RpcError::no_such("capture of port", &self.port))
    }
}
