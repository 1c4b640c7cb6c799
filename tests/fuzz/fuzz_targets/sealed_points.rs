//! libFuzzer's way to `abd_fuzz::targets::sealed_points`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| abd_fuzz::targets::sealed_points(data));
