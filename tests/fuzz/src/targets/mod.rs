//! The targets: one function for each place where bytes from outside are read.
//!
//! Where a checksum stands between the bytes and the code behind it, a target puts the right one in and reads once
//! more: no search finds one, and whoever means harm can compute it.

mod appliance;
mod collection;
mod diagnosis;
mod encryption;
mod index;
mod pool;
mod served;
mod store;
mod wire;

pub use appliance::{
    boot_settings, dhcp_exchanges, link_packets, worker_frames, xenstore_answers, xenstore_messages,
    xenstore_requests,
};
pub use collection::collection_records;
pub(crate) use collection::{golden_packs, some_lease};
pub use diagnosis::diagnoses;
pub(crate) use encryption::{
    a_document, golden, golden_files, identity_text, sealed, with_right_lines, with_right_slot_check,
};
pub use encryption::{encrypted_packs, key_slots, recovery_kits, sealed_points};
pub use index::index_runs;
pub(crate) use index::{a_run, with_right_sums};
pub use pool::{job_files, ova_descriptions, pool_answers, vhd_heads, xva_files};
pub use served::served_requests;
pub use store::{packs, store_files, trees};
pub(crate) use store::{some_config, with_right_hash};
pub use wire::{cbt_bitmaps, orders, store_answers, store_questions};

/// Splits a byte off, which says what the rest is.
fn tagged(data: &[u8]) -> Option<(u8, &[u8])> {
    data.split_first().map(|(tag, rest)| (*tag, rest))
}

/// The next piece of a list of pieces, each behind two bytes of its size; the last may be short.
fn piece<'a>(data: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (size, rest) = data.split_first_chunk()?;
    let size = usize::from(u16::from_le_bytes(*size)).min(rest.len());
    let (piece, rest) = rest.split_at(size);
    *data = rest;
    Some(piece)
}
