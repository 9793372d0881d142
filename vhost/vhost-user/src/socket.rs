//! Where front-ends come from: a listening socket, or a connection to theirs.

use crate::wait::{Stopped, Waiter};
use rustix::fs::{Mode, chmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest path of a Unix socket: `sun_path` has 108 bytes with the closing zero.
const MAX_PATH: usize = 107;
/// Connections that wait while a session runs.
const BACKLOG: i32 = 16;
/// First and longest pause between attempts to connect or accept.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Who opens the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The device listens and the front-end connects.
    Server,
    /// The front-end listens; the device connects, and again after a loss.
    Client,
}

/// Where a device meets its front-end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Path of the Unix socket.
    pub path: PathBuf,
    /// Who opens the connection.
    pub role: Role,
    /// Permissions of a socket on which the device listens; 0o600 lets only the daemon's user in.
    pub mode: u32,
}

/// An endpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path does not fit `sun_path`.
    #[error("socket path {path:?} has {len} bytes, at most {MAX_PATH} are possible; use a shorter directory")]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        len: usize,
    },
    /// The path is empty or has a zero byte.
    #[error("socket path {path:?} is not a path of a file")]
    NotAPath {
        /// The path.
        path: PathBuf,
    },
    /// The directory is missing.
    #[error("directory {directory:?} of socket {path:?} does not exist; create it first")]
    NoDirectory {
        /// The path.
        path: PathBuf,
        /// Its directory.
        directory: PathBuf,
    },
    /// Something else has this name.
    #[error("{path:?} exists and is not a socket; remove it or choose another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Another process listens there.
    #[error("socket {path:?} is in use by a live process; stop it or choose another path")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{what} {path:?}: {source}")]
    Os {
        /// The call.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
}

/// An endpoint that has been checked and, as server, listens. Dropping it removes the socket file that it made.
#[derive(Debug)]
pub struct Socket {
    endpoint: Endpoint,
    address: SocketAddrUnix,
    listener: Option<Listener>,
}

#[derive(Debug)]
struct Listener {
    fd: OwnedFd,
    /// Device and inode of the socket file: another may have been put in its place.
    file: (u64, u64),
}

impl Socket {
    /// Checks the endpoint and, as server, listens. A socket file that a dead process left is replaced.
    pub fn open(endpoint: Endpoint) -> Result<Socket, SocketError> {
        let path = || endpoint.path.clone();
        let len = endpoint.path.as_os_str().as_bytes().len();
        if len > MAX_PATH {
            return Err(SocketError::PathTooLong { path: path(), len });
        }
        let address = SocketAddrUnix::new(&endpoint.path).map_err(|_| SocketError::NotAPath { path: path() })?;
        if len == 0 {
            return Err(SocketError::NotAPath { path: path() });
        }
        let listener = match endpoint.role {
            Role::Server => Some(Listener::open(&endpoint, &address)?),
            Role::Client => None,
        };
        Ok(Socket { endpoint, address, listener })
    }

    /// Where it is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The next connection, not blocking. Waits for as long as it takes, or until stopped.
    pub(crate) fn next(&self, waiter: &Waiter) -> Result<OwnedFd, Stopped> {
        let mut pause = RETRY.0;
        loop {
            // A front-end would take one more connection, which ends at once, for its new back-end.
            if waiter.is_stopped() {
                return Err(Stopped);
            }
            let attempt = match &self.listener {
                Some(listener) => {
                    waiter.readable(&listener.fd)?;
                    accept_with(&listener.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
                }
                None => self.connect(),
            };
            match attempt {
                Ok(connection) => return Ok(connection),
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) if self.listener.is_some() => continue,
                Err(error) => {
                    // A server out of descriptors is worth a word at every attempt; an absent front-end is not.
                    if self.listener.is_some() {
                        tracing::warn!(%error, "cannot accept a connection; trying again");
                    } else if pause == RETRY.0 {
                        tracing::info!(%error, "cannot connect; trying until it works");
                    }
                    waiter.pause(pause)?;
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        }
    }

    fn connect(&self) -> Result<OwnedFd, Errno> {
        let fd = stream()?;
        connect(&fd, &self.address)?;
        Ok(fd)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let path = &self.endpoint.path;
        if let Some(listener) = &self.listener
            && fs::symlink_metadata(path).is_ok_and(|file| (file.dev(), file.ino()) == listener.file)
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(?path, %error, "the socket file stays behind");
        }
    }
}

impl Listener {
    fn open(endpoint: &Endpoint, address: &SocketAddrUnix) -> Result<Listener, SocketError> {
        let path = endpoint.path.as_path();
        let os = |what| move |source: Errno| SocketError::Os { what, path: path.to_owned(), source: source.into() };
        make_way(path, address)?;
        let fd = stream().map_err(os("socket for"))?;
        bind(&fd, address).map_err(|error| match error {
            Errno::NOENT => no_directory(path),
            Errno::ADDRINUSE => SocketError::InUse { path: path.to_owned() },
            other => os("bind to")(other),
        })?;
        // No client can connect before `listen`, so the permissions are in force in time.
        chmod(path, Mode::from_raw_mode(endpoint.mode)).map_err(os("chmod of"))?;
        let file = fs::symlink_metadata(path).map_err(|source| io_error("stat of", path, source))?;
        listen(&fd, BACKLOG).map_err(os("listen on"))?;
        Ok(Listener { fd, file: (file.dev(), file.ino()) })
    }
}

/// Removes a socket file that no process listens on.
fn make_way(path: &Path, address: &SocketAddrUnix) -> Result<(), SocketError> {
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(io_error("stat of", path, source)),
    };
    if !file.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path.to_owned() });
    }
    let probe = stream().map_err(|e| io_error("socket for", path, e.into()))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {
            tracing::info!(?path, "replaces the socket file of a dead process");
            fs::remove_file(path).map_err(|source| io_error("remove stale socket", path, source))
        }
        Err(Errno::NOENT) => Ok(()),
        // Connected, or its backlog is full: alive.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(error) => Err(io_error("connect to", path, error.into())),
    }
}

fn stream() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

fn no_directory(path: &Path) -> SocketError {
    let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
    SocketError::NoDirectory { path: path.to_owned(), directory }
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> SocketError {
    SocketError::Os { what, path: path.to_owned(), source }
}
