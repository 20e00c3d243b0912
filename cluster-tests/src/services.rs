//! The real services that a cluster needs, private to a test: own directories, free loopback ports, no root.
//!
//! `node/tests` includes the files below by path, since nothing may depend on this crate: what they use is in `std`,
//! `rustix` and `tempfile` alone.

pub mod directory;
pub mod mariadb;
pub mod process;
pub mod redis;
pub mod rocketmq;
pub mod tcp_proxy;
pub mod tls;
pub mod udp_network;
pub mod zookeeper;
