//! JSON-RPC 2.0 over a Unix socket, in SPDK's framing: JSON values back to back.

mod error;
mod framing;
#[cfg(any(test, fuzzing))]
mod fuzz;
pub(crate) mod introspection;
mod message;
pub(crate) mod method;
mod server;

pub(crate) use error::{OrRefuse, Refuse};
#[cfg(any(test, fuzzing))]
pub use fuzz::fuzz_stream;
pub use server::{ServeError, Server};
