//! A real controller on a real engine behind a real socket, driven by front-ends and drivers that are not ours: the crates
//! `virtio-driver` and `blkio`, and rust-vmm's `Frontend` as one that follows a script. And death at any instant: a process
//! that serves a ring is killed, another goes on with the same memory and inflight region.
#![allow(unsafe_code)] // foreign drivers take raw buffers; fork and ptrace stop a process between two instructions

mod disk;
mod foreign;
mod guest;
mod hostile;
mod killed;
mod memory_table;
mod migration;
mod rig;
mod rings;
mod stepped;
mod traffic;
