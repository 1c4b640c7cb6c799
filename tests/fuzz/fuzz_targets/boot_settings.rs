//! libFuzzer's way to `abd_fuzz::targets::boot_settings`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| abd_fuzz::targets::boot_settings(data));
