//! cloud-init NoCloud disks: a small read-only disk, labelled `cidata`, that gives a guest its user data and its network.
//!
//! [`Seed`] is what an operator gives, checked. [`Cidata`] is the disk made of it: a FAT file system in memory with `user-data`,
//! `meta-data` and, if given, `network-config` in its root (cloud-init, "NoCloud"). A guest treats a new `instance-id` as a new
//! machine and runs its first boot again, so the id depends on the disk's name alone unless the operator says otherwise.

mod disk;
mod fat;
mod seed;

pub use disk::Cidata;
pub use seed::{Instance, MAX_FILE_LEN, Seed, SeedError};
