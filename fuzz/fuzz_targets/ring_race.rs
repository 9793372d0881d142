//! A driver that writes anything anywhere in its ring, while the device reads.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtqueue::fuzz_ring_race(data));
