//! Disks: the bdevs of every kind, and the controllers that serve them.

pub(crate) mod bdevs;
pub(crate) mod controllers;
pub(crate) mod disk_io;
pub(crate) mod nvme_controllers;
