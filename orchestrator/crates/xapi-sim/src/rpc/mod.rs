//! The two wire encodings of the API, written for the simulator alone: a mistake in a client's encoder must not cancel
//! out against the same mistake here.

pub mod json;
pub mod value;
pub mod xml;

use value::Value;

/// A decoded call, whichever way it arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// `Class.message`, possibly behind `Async.`
    pub method: String,
    /// Positional parameters, the session first where there is one.
    pub params: Vec<Value>,
}
