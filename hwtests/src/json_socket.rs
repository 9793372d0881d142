//! JSON objects back to back over a Unix socket.

use anyhow::{Context, Result};
use serde::Deserialize as _;
use serde_json::Value;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// JSON objects back to back over a Unix socket: the framing of QMP and of SPDK's RPC.
pub(crate) struct JsonSocket {
    stream: UnixStream,
}

impl JsonSocket {
    /// Connects, trying again until `timeout` has passed; each later read waits 20 s at most.
    pub(crate) fn connect(path: &Path, timeout: Duration) -> Result<JsonSocket> {
        let deadline = Instant::now() + timeout;
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
                    return Ok(JsonSocket { stream });
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("connect to {} for {timeout:?}", path.display()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    pub(crate) fn send(&mut self, value: &Value) -> Result<()> {
        self.stream.write_all(value.to_string().as_bytes()).context("send")
    }

    /// The next object. Reads no byte beyond its closing brace.
    pub(crate) fn receive(&mut self) -> Result<Value> {
        let mut reader = serde_json::Deserializer::from_reader(&self.stream);
        Value::deserialize(&mut reader).context("receive a JSON object")
    }
}
