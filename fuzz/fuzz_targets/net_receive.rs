//! Chains of any shape that a guest sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio_net::fuzz_receive(data));
