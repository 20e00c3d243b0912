//! Decisions as pure, synchronous functions: no I/O, no clock, no randomness that is not passed in.

pub mod access;
pub mod admission;
pub mod cleanup;
pub mod dispatch;
pub mod events;
pub mod lifecycle;
pub mod objects;
pub mod placement;
pub mod restarts;
