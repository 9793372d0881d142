//! Captures of ports.

use super::NetworkPlane;
use super::captures::{Progress, Wanted};
use crate::blocking::blocking;
use crate::rpc::method::{Handler, Row};
use api::RpcError;
use api::capture::{CaptureGet, CaptureInfo, CaptureStart, CaptureStop};
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<CaptureStart>(), Row::of::<CaptureGet>(), Row::of::<CaptureStop>()]
}

/// Enough for any headers and most packets.
const DEFAULT_SNAP_LEN: u32 = 2048;
const MAX_SNAP_LEN: u32 = 65535;
const DEFAULT_MAX_BYTES: u64 = 1 << 30;

impl Handler for CaptureStart {
    type Plane = NetworkPlane;

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<bool, RpcError> {
        let snap_len = self.snap_len.unwrap_or(DEFAULT_SNAP_LEN);
        if !(14..=MAX_SNAP_LEN).contains(&snap_len) {
            return Err(RpcError::invalid("snap_len", snap_len, format!("14 to {MAX_SNAP_LEN}")));
        }
        let switch = plane.switch("port", &self.port)?;
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
        let plane = plane.clone();
        blocking(move || plane.captures.start(switch, wanted)).await??;
        Ok(true)
    }
}

impl Handler for CaptureGet {
    type Plane = NetworkPlane;

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<Vec<CaptureInfo>, RpcError> {
        let wanted = |one: &Arc<Progress>| self.port.as_ref().is_none_or(|port| *port == one.wanted.port);
        let found: Vec<CaptureInfo> =
            plane.captures.all().iter().filter(|one| wanted(one)).map(|one| describe(one)).collect();
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
        error: progress.error.lock().clone(),
    }
}

impl Handler for CaptureStop {
    type Plane = NetworkPlane;

    async fn call(&mut self, plane: &Arc<NetworkPlane>) -> Result<CaptureInfo, RpcError> {
        let (owner, port) = (plane.clone(), self.port.clone());
        let stopped = blocking(move || owner.captures.stop(&port)).await?;
        stopped.map(|one| describe(&one)).ok_or_else(|| RpcError::no_such("capture of port", &self.port))
    }
}
