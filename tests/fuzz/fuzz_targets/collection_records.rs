//! libFuzzer's way to `abd_fuzz::targets::collection_records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| abd_fuzz::targets::collection_records(data));
