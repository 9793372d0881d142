//! How a supervisor thread is woken and gets commands.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use transport::io::{EventFd, Interest};

/// Wakes a supervisor thread. Without a descriptor under virtual time, where the supervisor is called anyway.
#[derive(Debug)]
pub struct SupervisorWake(Option<EventFd>);

impl SupervisorWake {
    /// A wake for a thread.
    pub fn new() -> io::Result<Arc<SupervisorWake>> {
        Ok(Arc::new(SupervisorWake(Some(EventFd::new()?))))
    }

    /// A wake for a supervisor under virtual time.
    pub fn none() -> Arc<SupervisorWake> {
        Arc::new(SupervisorWake(None))
    }

    /// Wakes the supervisor.
    pub fn wake(&self) {
        if let Some(fd) = &self.0 {
            fd.signal();
        }
    }

    pub(crate) fn clear(&self) {
        if let Some(fd) = &self.0 {
            fd.clear();
        }
    }

    pub(crate) fn interest(&self) -> Option<Interest> {
        self.0.as_ref().map(|fd| Interest { fd: fd.as_raw_fd(), writable: false })
    }
}

/// Commands to a supervisor, in order.
#[derive(Debug)]
pub struct CommandQueue<C> {
    commands: Mutex<VecDeque<C>>,
    wake: Arc<SupervisorWake>,
}

impl<C> CommandQueue<C> {
    /// An empty queue of the supervisor that `wake` wakes.
    pub fn new(wake: Arc<SupervisorWake>) -> CommandQueue<C> {
        CommandQueue { commands: Mutex::new(VecDeque::new()), wake }
    }

    /// Sends a command and wakes the supervisor.
    pub fn send(&self, command: C) {
        self.commands.lock().push_back(command);
        self.wake.wake();
    }

    /// Takes the oldest command.
    pub fn pop(&self) -> Option<C> {
        self.commands.lock().pop_front()
    }
}
