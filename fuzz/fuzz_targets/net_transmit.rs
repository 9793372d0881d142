//! Receive buffers of any shape.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio_net::fuzz_transmit(data));
