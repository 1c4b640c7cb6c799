//! The whole job of the worker without a VM: files as disks, over TLS, against a real store.
//!
//! `backup` and `restore` of what kinds of disks; `bad`: disks that cannot be read everywhere; `audit`: what is read
//! again, and what comes of it; `rate`: how fast
//! is read at most; `diagnose`: what is measured without a job, and how far a first call came; `encryption`: the same with an encrypted store; `failure`: what goes wrong and how it is said; `memory`: what a
//! process of its own needs at most, and how often it allocates.

mod audit;
mod backup;
mod bad;
mod bound;
mod counting;
mod diagnose;
mod encryption;
mod failure;
mod lab;
mod memory;
mod proxy;
mod rate;
mod restore;
