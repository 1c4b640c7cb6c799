//! HTTP/1.1 of the simulator's own: real servers answer in ways that ordinary libraries avoid (a status before the
//! body is read, bodies that end with the connection, a second page inside a first), and clients must cope with them.

pub(crate) mod listen;
pub(crate) mod routes;
pub(crate) mod wire;
