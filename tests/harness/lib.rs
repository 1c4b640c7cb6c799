//! What the end-to-end tests share: a simulated pool of their own, the built `abd`, and disks with known content.
//!
//! The programs come from the environment that `scripts/test` sets: `ABD_BIN`, `ABD_SIM_BIN`, `ABD_IMAGE_DIR`.
//! Without them a test says why it is skipped.

#![forbid(unsafe_code)]

mod admin;
mod content;
mod digest;
mod draw;
mod lab;
mod model;
mod run;

pub use admin::Admin;
pub use content::{noise, text};
pub use digest::SparseDigest;
pub use draw::Draw;
pub use lab::{Lab, Options, Vm};
pub use model::{Expected, Model, POSITIONS, list};
pub use run::{Output, Running};
