//! The whole job of the worker without a VM: files as disks, over TLS, against a real store.
//!
//! `backup` and `restore` of what kinds of disks; `failure`: what goes wrong and how it is said; `memory`: what a
//! process of its own needs at most.

mod backup;
mod failure;
mod lab;
mod memory;
mod proxy;
mod restore;
