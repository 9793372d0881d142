//! An iSCSI session whose target's answers are tampered with.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| iscsi::fuzz::fuzz_session(data));
