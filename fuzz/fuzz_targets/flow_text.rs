//! Bytes as keys, masks and actions.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flow::fuzz::fuzz_text(data));
