//! An iSCSI initiator's bytes for the target.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| iscsi::fuzz::fuzz_target(data));
