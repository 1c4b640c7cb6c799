//! The whole product, driven as its users drive it: the built `abd` against a simulated pool whose guests are real.
//! The table of contents is in README.md.

mod backup;
mod bad_disks;
mod bad_input;
mod bound;
mod copies;
mod damage;
mod doctor_delegate;
mod encryption;
mod faults;
mod format;
mod guest_agent;
mod headless;
mod image;
mod incremental;
mod jobs;
mod kill_points;
mod networks;
mod persistent;
mod plan;
mod pool_faults;
mod pools;
mod preflight;
mod release;
mod retention;
mod s3;
mod serve;
#[path = "../orchestrator/crates/ads/tests/support/servers.rs"]
mod servers;
mod signing;
mod slow_disks;
mod soak;
mod template;
mod terminal;
mod uefi;
mod xen;
mod xva_foreign;
