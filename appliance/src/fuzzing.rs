//! Doors for `tests/fuzz` to what the rooms keep to themselves. Nothing in the appliance calls them, and nothing of them
//! is in the image.

pub use crate::net::fuzzing::{dhcp_exchange, link_packets};

/// The order's bytes as they come from the orchestrator: decoded, and checked as far as an appliance checks them before
/// it touches a disk.
pub fn order(body: &[u8]) -> Option<wire::Order> {
    let order: wire::Order = wire::decode(body).ok()?;
    let job = order.job.clone();
    crate::worker::check_order(&order, &job).is_ok().then_some(order)
}
