//! An honest NVMe/TCP session with one wrong byte.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvme::fuzz_initiator_session(data));
