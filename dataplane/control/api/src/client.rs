//! A blocking client of the RPC socket.

use crate::{Method, RpcError, default_sockets};
use serde::Deserialize as _;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The error of a call.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket cannot be connected to.
    #[error("{socket}: {source} (is sluiced running?)", socket = socket.display())]
    Connect {
        /// Path of the socket.
        socket: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The connection was lost, or the answer is not JSON.
    #[error("connection to sluiced lost: {0}")]
    Lost(io::Error),
    /// The daemon refused the call.
    #[error(transparent)]
    Refused(RpcError),
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to `socket`.
    pub fn connect(socket: &Path) -> Result<Client, ClientError> {
        match UnixStream::connect(socket) {
            Ok(stream) => Ok(Client { stream }),
            Err(source) => Err(ClientError::Connect { socket: socket.to_owned(), source }),
        }
    }

    /// Connects to the first of the default sockets that exists.
    pub fn connect_default() -> Result<Client, ClientError> {
        let sockets = default_sockets();
        let socket = sockets.iter().find(|path| path.exists()).unwrap_or(&sockets[0]);
        Client::connect(socket)
    }

    /// Calls a method by name, with parameters and answer as JSON.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value, ClientError> {
        let mut request = json!({"jsonrpc": "2.0", "id": 1, "method": method});
        if !params.is_null() {
            request["params"] = params;
        }
        self.stream.write_all(request.to_string().as_bytes()).map_err(ClientError::Lost)?;
        let mut reader = serde_json::Deserializer::from_reader(&self.stream);
        let mut answer = Value::deserialize(&mut reader).map_err(not_understood)?;
        match answer.get_mut("error") {
            Some(error) => Err(ClientError::Refused(serde_json::from_value(error.take()).map_err(not_understood)?)),
            None => Ok(answer["result"].take()),
        }
    }

    /// Calls a method with typed parameters and a typed answer.
    pub fn request<M: Method>(&mut self, params: &M) -> Result<M::Output, ClientError> {
        let params = serde_json::to_value(params).map_err(not_understood)?;
        serde_json::from_value(self.call(M::NAME, params)?).map_err(not_understood)
    }
}

fn not_understood(error: serde_json::Error) -> ClientError {
    ClientError::Lost(error.into())
}
