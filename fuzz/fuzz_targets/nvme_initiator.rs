//! An NVMe/TCP target's bytes for a busy queue.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvme::fuzz_initiator(data));
