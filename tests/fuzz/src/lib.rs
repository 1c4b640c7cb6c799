//! Every place where bytes from outside are read, as a function of those bytes, for a fuzzer to search.
//!
//! Owns: the [`targets`], what a search starts from ([`seeds`]), and a search that needs nothing but this crate
//! ([`mutate`]); the search that follows the program's branches is libFuzzer's, in `fuzz_targets/`, by `scripts/fuzz`.
//! Promises: a target does the same for the same bytes, and panics only where something is wrong: a panic of the code
//! under test, or one of the target's own checks (what was decoded encodes to the same, what counts as good is within
//! its bounds). Never: reads a clock or a random number.

#![forbid(unsafe_code)]

pub mod mutate;
pub mod seeds;
pub mod targets;

/// One place where bytes from outside are read.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: of the function, of its corpus, of its program.
    pub name: &'static str,
    /// Reads the bytes.
    pub run: fn(&[u8]),
    /// Bytes that are as they should be, made by our own encoders, so that they never go out of date.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many changed inputs the tests try. About a second's worth.
    pub tries: u32,
}

/// Largest input. Nothing here needs more to show what it does, and short ones are tried faster.
pub const MAX_INPUT: usize = 64 << 10;

/// All of them.
pub const TARGETS: &[Target] = &[
    target("xenstore_messages", targets::xenstore_messages, seeds::xenstore_messages, 20_000),
    target("xenstore_answers", targets::xenstore_answers, seeds::xenstore_answers, 1_000),
    target("xenstore_requests", targets::xenstore_requests, seeds::xenstore_requests, 3_000),
    target("dhcp_exchanges", targets::dhcp_exchanges, seeds::dhcp_exchanges, 20_000),
    target("link_packets", targets::link_packets, seeds::link_packets, 20_000),
    target("boot_settings", targets::boot_settings, seeds::boot_settings, 10_000),
    target("worker_frames", targets::worker_frames, seeds::worker_frames, 20_000),
    target("orders", targets::orders, seeds::orders, 20_000),
    target("store_questions", targets::store_questions, seeds::store_questions, 20_000),
    target("store_answers", targets::store_answers, seeds::store_answers, 10_000),
    target("diagnoses", targets::diagnoses, seeds::diagnoses, 5_000),
    target("cbt_bitmaps", targets::cbt_bitmaps, seeds::cbt_bitmaps, 2_000),
    target("packs", targets::packs, seeds::packs, 2_000),
    target("trees", targets::trees, seeds::trees, 500),
    target("store_files", targets::store_files, seeds::store_files, 300),
    target("collection_records", targets::collection_records, seeds::collection_records, 150),
    target("key_slots", targets::key_slots, seeds::key_slots, 300),
    target("recovery_kits", targets::recovery_kits, seeds::recovery_kits, 3_000),
    target("sealed_points", targets::sealed_points, seeds::sealed_points, 100),
    target("encrypted_packs", targets::encrypted_packs, seeds::encrypted_packs, 10_000),
    target("index_runs", targets::index_runs, seeds::index_runs, 1_000),
    target("served_requests", targets::served_requests, seeds::served_requests, 20_000),
    target("xva_files", targets::xva_files, seeds::xva_files, 1_000),
    target("ova_descriptions", targets::ova_descriptions, seeds::ova_descriptions, 500),
    target("vhd_heads", targets::vhd_heads, seeds::vhd_heads, 5_000),
    target("pool_answers", targets::pool_answers, seeds::pool_answers, 5_000),
    target("job_files", targets::job_files, seeds::job_files, 1_000),
];

const fn target(name: &'static str, run: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>, tries: u32) -> Target {
    Target { name, run, seeds, tries }
}
