//! libFuzzer's way to `abd_fuzz::targets::xenstore_requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| abd_fuzz::targets::xenstore_requests(data));
