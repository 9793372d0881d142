//! An NVMe/TCP initiator's bytes for the target.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvme::fuzz_target(data));
