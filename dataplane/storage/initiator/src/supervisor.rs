//! The loop of a supervisor thread.

use crate::SupervisorWake;
use clock::Cycles;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use transport::io::{Interest, sleep_on};

/// Longest sleep: nothing depends on it, it bounds the harm of a wake-up that was missed.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// The life of a disk's or controller's connections. Never blocks in [`turn`](Supervisor::turn), so that it runs under virtual
/// time as well.
pub trait Supervisor: Send {
    /// Does what is to be done now. Called again at the [`deadline`](Supervisor::deadline), when one of the
    /// [`interests`](Supervisor::interests) wakes, or a command was sent.
    fn turn(&mut self, now: Cycles);
    /// When the next turn is due.
    fn deadline(&self) -> Cycles;
    /// Adds the descriptors to sleep on.
    fn interests(&self, list: &mut Vec<Interest>);
    /// Whether the supervisor has nothing to do any more, for ever.
    fn is_finished(&self) -> bool;
}

/// Runs `supervisor` on a thread of its own until it is finished.
pub fn spawn(
    name: String,
    mut supervisor: impl Supervisor + 'static,
    wake: Arc<SupervisorWake>,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(move || {
        let mut interests = Vec::new();
        loop {
            supervisor.turn(Cycles::now());
            if supervisor.is_finished() {
                return;
            }
            interests.clear();
            interests.extend(wake.interest());
            supervisor.interests(&mut interests);
            let left = supervisor.deadline().since(Cycles::now()).to_duration();
            if !left.is_zero() {
                sleep_on(&interests, left.min(MAX_SLEEP));
            }
            wake.clear();
        }
    })
}
