//! Parts that the test targets of all protocols share: storage, the server on sockets, late writes.

mod server;
mod store;

pub use server::{Server, ServerConnection, TargetService};
pub use store::{FileStore, MemoryStore, Store};

use clock::Cycles;

/// Writes of lost connections that a target executes late: allowed by the standards, and deadly for an initiator that does not
/// wait.
#[derive(Debug)]
pub struct LateWrites<W>(Vec<(Cycles, W)>);

impl<W> Default for LateWrites<W> {
    fn default() -> LateWrites<W> {
        LateWrites(Vec::new())
    }
}

impl<W> LateWrites<W> {
    /// Adds a write that is executed at `due`.
    pub fn push(&mut self, due: Cycles, write: W) {
        self.0.push((due, write));
    }

    /// Takes out the writes that are due and that `wanted` selects.
    pub fn take_due(&mut self, now: Cycles, wanted: impl Fn(&W) -> bool) -> Vec<W> {
        self.0.extract_if(.., |(due, write)| *due <= now && wanted(write)).map(|(_, write)| write).collect()
    }

    /// When the next write is due.
    pub fn deadline(&self) -> Cycles {
        self.0.iter().map(|(due, _)| *due).min().unwrap_or(Cycles::NEVER)
    }
}
