//! Insertions, removals and look-ups: the cache against a list of flows.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| { flow::fuzz::fuzz_cache(data); });
