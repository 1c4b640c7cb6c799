//! libFuzzer's way to `abd_fuzz::targets::encrypted_packs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| abd_fuzz::targets::encrypted_packs(data));
