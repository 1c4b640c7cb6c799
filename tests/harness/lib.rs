//! What the end-to-end tests share: a simulated pool of their own, the built `abd`, and disks with known content.
//!
//! The programs come from the environment that `scripts/test` sets: `ABD_BIN`, `ABD_SIM_BIN`, `ABD_IMAGE_DIR`.
//! Without the programs a test says why it is skipped; the image is needed
//! by labs whose delegates are guests.

#![forbid(unsafe_code)]

mod admin;
mod api;
mod content;
mod digest;
mod draw;
mod inventory;
mod lab;
mod model;
mod relay;
mod run;
mod stored;
mod xen;

pub use admin::Admin;
pub use api::Api;
pub use content::{noise, text};
pub use digest::sparse_digest;
pub use draw::{Draw, seed};
pub use inventory::Inventory;
pub use lab::{Delegates, Lab, Options, Vm};
pub use model::{Expected, Model, POSITIONS, list};
pub use relay::Relay;
pub use run::{Output, Running};
pub use stored::stored_digest;
