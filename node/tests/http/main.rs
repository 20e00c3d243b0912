//! The HTTP front over real sockets: bodies from a mapped segment, hostile clients, shutdown.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod limits;
mod sending;
mod shutdown;
mod support;
