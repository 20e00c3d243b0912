//! Cold tiers: adapters of the [`ColdTier`](holdfast_actors::ports::ColdTier) port.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod directory;
pub mod fastdfs;
#[doc(hidden)]
pub mod fuzz;
mod in_flight;
pub mod oss;
