//! Requests of a guest, in chains of any shape.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio_blk::fuzz_requests(data));
