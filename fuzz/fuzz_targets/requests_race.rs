//! Requests of a guest that rewrites them while the device reads.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio_blk::fuzz_requests_race(data));
