//! The behaviour of a Holdfast node.
//!
//! * [`ports`]: what a node needs from the world, as traits.
//! * [`domain`]: decisions, as pure functions over values.
//! * [`flow`]: the asynchronous paths of a request, over ports.
//! * [`service`]: supervised actors, thin shells around decisions.

pub mod domain;
pub mod flow;
#[doc(hidden)]
pub mod fuzz;
pub mod ports;
pub mod service;
