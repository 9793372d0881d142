//! Virtio layouts and constants, as the specification ([virtio 1.3]) has them. No unsafe, no allocation, no I/O.
//!
//! [virtio 1.3]: https://docs.oasis-open.org/virtio/virtio/v1.3/virtio-v1.3.html

#![no_std]
#![forbid(unsafe_code)]

pub mod blk;
pub mod feature;
pub mod net;
pub mod ring;
