//! Storage: disk files, change tracking, differencing chains, and the VDI, SR and PBD calls on top of them.

pub(crate) mod backend;
pub(crate) mod cbt;
pub(crate) mod chain;
pub(crate) mod cloning;
pub(crate) mod disk;
pub(crate) mod hidden;
pub(crate) mod moving;
pub(crate) mod repository;
pub(crate) mod space;
pub(crate) mod sr;
pub(crate) mod surface;
pub(crate) mod track;
pub(crate) mod vdi;
