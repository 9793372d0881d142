//! A front-end's messages with descriptors.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhost_user::fuzz_session(data));
