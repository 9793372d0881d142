//! Sessions one after the other, until told to stop.

use crate::backend::Backend;
use crate::connection::{Connection, Received, send_some};
use crate::error::SessionError;
use crate::memory_table::Retired;
use crate::message::{BACKEND_CONFIG_CHANGE, Outgoing};
use crate::session::Session;
use crate::socket::Socket;
use crate::status::SessionStatus;
use crate::wait::{Stopped, Waiter};
use parking_lot::Mutex;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a session looks for truncated memory, signals the log descriptor and unmaps what was left in use.
const TICK: Duration = Duration::from_millis(500);
/// Pause after a session that ended with an error, so that a broken front-end that reconnects does not cost a core.
const AFTER_ERROR: Duration = Duration::from_millis(10);

/// The other threads' hand on [`serve`]. Clones lead to the same one.
#[derive(Clone, Debug)]
pub struct Control(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiter: Waiter,
    /// The configuration changed and the front-end has not been told.
    config_changed: AtomicBool,
    status: Mutex<SessionStatus>,
}

impl Control {
    /// Fails when the process is out of descriptors.
    pub fn new() -> io::Result<Control> {
        let status = Mutex::default();
        Ok(Control(Arc::new(Shared { waiter: Waiter::new()?, config_changed: AtomicBool::new(false), status })))
    }

    /// Ends [`serve`]: the session's rings are stopped first. May be called before, and more than once.
    pub fn stop(&self) {
        self.0.waiter.stop();
    }

    /// The device's configuration space changed: tells the front-end over the back-end channel, if it gave one.
    pub fn config_changed(&self) {
        self.0.config_changed.store(true, Ordering::Release);
        self.0.waiter.wake();
    }

    /// The session as it was after its last message.
    pub fn status(&self) -> SessionStatus {
        self.0.status.lock().clone()
    }

    fn update(&self, change: impl FnOnce(&mut SessionStatus)) {
        change(&mut self.0.status.lock());
    }
}

/// Serves front-ends at `socket`, one at a time, until `control` says stop. After a session the device has no ring, no memory
/// and no log. As server it then waits for the next connection, as client it connects again.
pub fn serve(socket: &Socket, device: &mut dyn Backend, control: &Control) {
    let span = tracing::info_span!("vhost-user", socket = %socket.endpoint().path.display());
    let _entered = span.enter();
    let mut retired = Retired::default();
    while let Ok(connection) = socket.next(&control.0.waiter) {
        let connection = Connection::new(connection);
        let mut session = Session::new(device.properties(), retired);
        control.0.config_changed.store(false, Ordering::Release);
        control.update(|status| {
            status.connected = true;
            status.connections += 1;
            status.peer = connection.peer();
        });
        tracing::info!(peer = ?connection.peer(), "front-end connected");
        let end = run(connection, &mut session, device, control);
        retired = session.close(device);
        let error = report(end, control);
        if error && control.0.waiter.pause(AFTER_ERROR).is_err() {
            break;
        }
    }
}

/// Puts the end of a session on record. Returns whether it was an error.
fn report(end: Result<Result<(), SessionError>, Stopped>, control: &Control) -> bool {
    let error = match end {
        Ok(Err(error)) => {
            tracing::warn!(%error, "session ended by an error");
            Some(error.to_string())
        }
        Ok(Ok(())) => {
            tracing::info!("front-end disconnected");
            None
        }
        Err(Stopped) => None,
    };
    let failed = error.is_some();
    control.update(|status| {
        let (connections, peer, last_error) = (status.connections, status.peer, error.or(status.last_error.take()));
        *status = SessionStatus { connections, peer, last_error, ..SessionStatus::default() };
    });
    failed
}

/// One session. Ends when the front-end leaves, with an error, or stopped.
fn run(
    mut connection: Connection,
    session: &mut Session,
    device: &mut dyn Backend,
    control: &Control,
) -> Result<Result<(), SessionError>, Stopped> {
    let waiter = &control.0.waiter;
    loop {
        tell_config_changed(session, control);
        match connection.receive() {
            Ok(Received::Frame(frame)) => {
                let reply = match session.handle(frame, device) {
                    Ok(reply) => reply,
                    Err(error) => return Ok(Err(error)),
                };
                control.update(|status| session.describe(status));
                if let Some(reply) = reply
                    && let Err(error) = connection.send(reply, waiter)?
                {
                    return Ok(Err(error));
                }
            }
            Ok(Received::Nothing) => {
                waiter.wait(&[(connection.fd(), PollFlags::IN)], Some(TICK))?;
            }
            Ok(Received::Closed) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        }
        if let Err(error) = session.tick() {
            return Ok(Err(error));
        }
        if waiter.is_stopped() {
            return Err(Stopped);
        }
    }
}

/// Sends CONFIG_CHANGE_MSG when there is news and a channel. A channel that is full is tried again with the next tick.
fn tell_config_changed(session: &mut Session, control: &Control) {
    let Some(channel) = session.channel() else { return };
    if !control.0.config_changed.swap(false, Ordering::AcqRel) {
        return;
    }
    let message = Outgoing::request(BACKEND_CONFIG_CHANGE);
    match send_some(channel, &message.bytes, None) {
        Ok(sent) if sent == message.bytes.len() => tracing::debug!("front-end told of a new configuration"),
        Err(Errno::AGAIN | Errno::INTR) => control.0.config_changed.store(true, Ordering::Release),
        Ok(_) | Err(_) => {
            tracing::warn!("the back-end channel failed; the front-end does not hear of configuration changes");
            session.drop_channel();
        }
    }
}
