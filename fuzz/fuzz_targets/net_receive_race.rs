//! A guest that rewrites what it sends while it is read.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio_net::fuzz_receive_race(data));
