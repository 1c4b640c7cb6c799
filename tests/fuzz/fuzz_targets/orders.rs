//! libFuzzer's way to `abd_fuzz::targets::orders`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| abd_fuzz::targets::orders(data));
