//! The simulator from outside, as a client sees it.
//!
//! | module | what it claims |
//! |---|---|
//! | `wire` | both encodings, refusals, sessions |
//! | `states` | which call is legal when, for VMs, VBDs and VDIs |
//! | `tracking` | changed blocks through snapshots, growth, deletion and attachment |
//! | `transfer` | XVA import, raw and VHD export, raw import |
//! | `moments` | checkpoints, quiesced snapshots, reverts, disks that move |
//! | `storage` | repositories of several hosts, thin and thick, and the chains of their disks |
//! | `events` | `event.from`, tasks, cancellation |
//! | `fate` | the control port: faults, cut connections, the log |
//! | `boots` | real guests: their disks, their end |
//! | `foreign` | clients that none of us wrote |

#![allow(unreachable_pub, clippy::unwrap_used, reason = "tests")]

mod boots;
mod events;
mod fate;
mod foreign;
mod moments;
mod states;
mod storage;
mod support;
mod tracking;
mod transfer;
mod wire;
