//! An NVMe controller's answers to the initiator's admin queue.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nvme::fuzz_admin_session(data));
