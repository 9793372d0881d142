//! A client of QEMU's machine protocol.

use crate::json_socket::JsonSocket;
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// A client of QEMU's machine protocol (also spoken by `qemu-storage-daemon`).
pub struct Qmp(JsonSocket);

impl Qmp {
    /// Connects to the monitor at `path` and leaves capabilities negotiation.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Qmp> {
        let mut qmp = Qmp(JsonSocket::connect(path, timeout)?);
        let _greeting = qmp.0.receive()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and returns what it answered. Events that arrive meanwhile are passed over.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.0.send(&json!({"execute": command, "arguments": arguments}))?;
        loop {
            let mut message = self.0.receive()?;
            if let Some(error) = message.get("error") {
                bail!("QMP {command} {arguments}: {error}");
            }
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }

    /// Waits until a migration that was started has ended well, and returns the answer of `query-migrate`.
    pub fn wait_migrated(&mut self, timeout: Duration) -> Result<Value> {
        let deadline = Instant::now() + timeout;
        loop {
            let state = self.execute("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("completed") => return Ok(state),
                Some("failed" | "cancelled") => bail!("migration: {state}"),
                _ if Instant::now() > deadline => bail!("migration has not ended in {timeout:?}: {state}"),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}
