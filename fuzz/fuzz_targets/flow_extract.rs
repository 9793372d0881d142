//! Bytes as packets: the fast extraction against the slow one.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flow::fuzz::fuzz_extract(data));
