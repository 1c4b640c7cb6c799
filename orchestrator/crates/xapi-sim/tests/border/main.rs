//! The simulator from outside, as a client sees it.
//!
//! | module | what it claims |
//! |---|---|
//! | `wire` | both encodings, refusals, sessions |
//! | `releases` | which release has which calls, parameters and members |
//! | `states` | which call is legal when, for VMs, VBDs and VDIs |
//! | `tracking` | changed blocks through snapshots, growth, deletion and attachment |
//! | `transfer` | XVA import, raw and VHD export, raw import |
//! | `delegates` | the appliance's worker as a process: whole jobs, and every way they end |
//! | `moments` | checkpoints, quiesced snapshots, reverts, disks that move |
//! | `rights` | what users' roles and the pool's licence permit |
//! | `storage` | repositories of several hosts, thin and thick, and the chains of their disks |
//! | `vhd` | exported VHDs in a foreign tool |
//! | `events` | `event.from`, tasks, cancellation |
//! | `fate` | the control port: faults, cut connections, the log |
//! | `contents` | what the disks held at each snapshot |
//! | `faults` | every fault that can be asked for, named for what a client sees |
//! | `freeze` | calls that are never answered, and the list of all calls |
//! | `steps` | asynchronous calls that wait for a test |
//! | `boots` | real guests: their disks, their end |
//! | `foreign` | clients that none of us wrote |

#![allow(unreachable_pub, clippy::unwrap_used, reason = "tests")]

mod boots;
mod contents;
mod delegates;
mod events;
mod fate;
mod faults;
mod foreign;
mod freeze;
mod moments;
mod releases;
mod rights;
mod states;
mod steps;
mod storage;
mod support;
mod tracking;
mod transfer;
mod vhd;
mod wire;
