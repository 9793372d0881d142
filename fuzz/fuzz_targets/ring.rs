//! A driver that writes anything anywhere in its ring, between the device's steps.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtqueue::fuzz_ring(data));
