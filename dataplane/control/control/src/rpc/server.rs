//! The RPC socket: who may connect, and one task a client.

use super::framing::Framer;
use super::message;
use crate::{Control, limits};
use api::RpcError;
use serde_json::Value;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The path does not fit `sun_path`.
    #[error(
        "socket {path}: its path has {got} bytes, at most {} are possible; use a shorter directory",
        limits::SOCKET_PATH_BYTES
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Bytes of the path.
        got: usize,
    },
    /// A live process answers there.
    #[error("socket {path}: another process serves it; stop that one, or choose another path")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else stands at the path.
    #[error("socket {path}: a file that is not a socket is in the way; move it, or choose another path")]
    NotSocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("socket {path}: {what}: {source}")]
    Os {
        /// The path.
        path: PathBuf,
        /// The operation.
        what: &'static str,
        /// The reason that the system gave.
        source: io::Error,
    },
}

/// A listening RPC socket. Dropping it removes the socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    allowed_uids: Vec<u32>,
}

impl Server {
    /// Listens at `path` for this process's user, root and `allowed_uids`; `mode` are the socket's permissions. A socket that
    /// a dead process left behind is replaced.
    pub fn bind(path: &Path, mode: u32, mut allowed_uids: Vec<u32>) -> Result<Server, ServeError> {
        let os = |what| move |source| ServeError::Os { path: path.to_owned(), what, source };
        let got = path.as_os_str().len();
        if got > limits::SOCKET_PATH_BYTES {
            return Err(ServeError::TooLong { path: path.to_owned(), got });
        }
        clear_stale(path)?;
        let listener = UnixListener::bind(path).map_err(os("bind"))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(os("chmod"))?;
        let own = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").map_err(os("own user"))?);
        allowed_uids.extend([0, own]);
        Ok(Server { listener, path: path.to_owned(), allowed_uids })
    }

    /// Serves for ever.
    pub async fn serve(&self, control: Arc<Control>) {
        let room = Arc::new(Semaphore::new(limits::CLIENTS));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors: wait until some are closed.
                    tracing::error!(%error, "rpc: accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = room.clone().try_acquire_owned() else {
                tokio::spawn(turn_away(stream, RpcError::limit("clients", limits::CLIENTS)));
                continue;
            };
            match self.admit(&stream) {
                Ok(()) => {
                    let control = control.clone();
                    tokio::spawn(async move {
                        converse(control, stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tokio::spawn(turn_away(stream, error));
                }
            }
        }
    }

    fn admit(&self, stream: &UnixStream) -> Result<(), RpcError> {
        let peer = stream.peer_cred().map_err(|e| RpcError::from_io(&e, format!("peer credentials: {e}")))?;
        if self.allowed_uids.contains(&peer.uid()) {
            return Ok(());
        }
        tracing::warn!(uid = peer.uid(), pid = peer.pid(), "rpc: client refused");
        let message = format!("user {} may not use this socket", peer.uid());
        Err(RpcError::errno(libc::EACCES, message)
            .hint("name the user's id in rpc_allowed_uids of the daemon's configuration"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // Already gone, or replaced by hand.
    }
}

/// Removes what a dead process left at `path`; refuses what is alive or is no socket.
fn clear_stale(path: &Path) -> Result<(), ServeError> {
    let os = |what| move |source| ServeError::Os { path: path.to_owned(), what, source };
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(os("stat")(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ServeError::NotSocket { path: path.to_owned() });
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(ServeError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "rpc: a socket left by a dead process is replaced");
            std::fs::remove_file(path).map_err(os("remove"))
        }
        Err(error) => Err(os("connect")(error)),
    }
}

/// Reads requests and answers them in order, until the client leaves or breaks the framing.
async fn converse(control: Arc<Control>, mut stream: UnixStream) {
    let (mut framer, mut chunk) = (Framer::default(), vec![0; 16 << 10]);
    loop {
        match framer.next() {
            Ok(Some(text)) => {
                let Some(answer) = message::answer(&control, &text).await else { continue };
                if send(&mut stream, &answer).await.is_err() {
                    return;
                }
            }
            Ok(None) => match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(n) => framer.push(&chunk[..n]),
            },
            Err(error) => return turn_away(stream, RpcError::parse(error.to_string())).await,
        }
    }
}

/// Sends an error and closes, once the client has had the time to read it: requests that still arrive must not reset the
/// connection before.
async fn turn_away(mut stream: UnixStream, error: RpcError) {
    const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
    let mut ignored = vec![0; 16 << 10];
    let farewell = async {
        send(&mut stream, &message::refusal(error)).await?;
        stream.shutdown().await?;
        while stream.read(&mut ignored).await? > 0 {}
        Ok::<(), io::Error>(())
    };
    let _ = tokio::time::timeout(FAREWELL_TIMEOUT, farewell).await; // The client is gone, or does not read.
}

async fn send(stream: &mut UnixStream, answer: &Value) -> io::Result<()> {
    let mut text = answer.to_string();
    text.push('\n');
    stream.write_all(text.as_bytes()).await
}
