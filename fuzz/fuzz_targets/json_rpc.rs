//! Bytes on the RPC socket, up to the point where a method would act.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    control::fuzz_stream(data);
});
