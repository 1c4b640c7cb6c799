//! libFuzzer's way to `abd_fuzz::targets::worker_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| abd_fuzz::targets::worker_frames(data));
