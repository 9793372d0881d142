//! Virtio layouts and constants, as the specification (OASIS virtio 1.3) has them. No unsafe, no allocation, no I/O.

#![no_std]
#![forbid(unsafe_code)]

pub mod blk;
pub mod feature;
pub mod net;
pub mod ring;
