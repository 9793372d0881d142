//! One connection to the daemon.

use serde::Deserialize as _;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{0}")]
    Usage(String),
    #[error("{socket}: {source}; is sluiced running? --socket says where it listens", socket = socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error("the daemon went away: {0}")]
    Lost(io::Error),
    #[error("{}", .0["message"].as_str().unwrap_or("the daemon refused"))]
    Refused(Value),
}

impl CallError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            CallError::Refused(_) => 1,
            CallError::Usage(_) => 2,
            CallError::Connect { .. } | CallError::Lost(_) => 3,
        }
    }
}

pub(crate) struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to `socket`, else to the first default socket that is there.
    pub(crate) fn connect(socket: Option<PathBuf>) -> Result<Client, CallError> {
        let defaults = api::default_sockets();
        let first = || defaults.iter().find(|path| path.exists()).or(defaults.first()).cloned().unwrap_or_default();
        let socket = socket.unwrap_or_else(first);
        match UnixStream::connect(&socket) {
            Ok(stream) => Ok(Client { stream }),
            Err(source) => Err(CallError::Connect { socket, source }),
        }
    }

    pub(crate) fn call(&mut self, method: &str, params: Value) -> Result<Value, CallError> {
        let mut request = json!({"jsonrpc": "2.0", "id": 1, "method": method});
        if !params.is_null() {
            request["params"] = params;
        }
        self.stream.write_all(request.to_string().as_bytes()).map_err(CallError::Lost)?;
        let mut reader = serde_json::Deserializer::from_reader(&self.stream);
        let mut answer = Value::deserialize(&mut reader).map_err(|e| CallError::Lost(e.into()))?;
        match answer.get_mut("error") {
            Some(error) => Err(CallError::Refused(error.take())),
            None => Ok(answer["result"].take()),
        }
    }
}
