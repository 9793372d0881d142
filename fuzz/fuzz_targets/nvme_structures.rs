//! NVMe data structures.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvme::fuzz_structures(data));
