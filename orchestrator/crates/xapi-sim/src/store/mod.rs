//! The record store: what classes exist, what their members look like, and the records themselves.

pub(crate) mod coerce;
pub(crate) mod db;
pub(crate) mod methods;
pub(crate) mod relations;
pub(crate) mod schema;
pub(crate) mod seed;
