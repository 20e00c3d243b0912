//! The behaviour of a Holdfast node.
//!
//! * [`ports`]: what a node needs from the world, as traits.
//! * [`domain`]: decisions, as pure functions over values.
//! * [`flow`]: what takes time: the paths of requests and the loops behind them, over ports.
//! * [`service`]: supervised actors, thin shells around decisions.
//! * `wait`: how tests wait for what happens.

pub mod domain;
pub mod flow;
#[doc(hidden)]
pub mod fuzz;
pub mod ports;
pub mod service;
#[cfg(any(test, feature = "conformance"))]
pub mod wait;
