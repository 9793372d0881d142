//! Bytes for every parser of iSCSI.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| iscsi::fuzz::fuzz_parsers(data));
