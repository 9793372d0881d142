//! The objects of the daemon: their names, what is desired of them, how that is kept in a file and applied again.

pub(crate) mod config;
pub(crate) mod desired;
pub(crate) mod object;
pub(crate) mod registry;
mod restore;
pub(crate) mod store;
