//! The Holdfast node: adapters to the real world, HTTP front ends, CLI and assembly.

pub mod addresses;
pub mod admin;
pub mod admission_layer;
pub mod assemble;
pub mod bench;
pub mod chunks;
pub mod cli;
pub mod config;
pub mod coordination;
pub mod events;
pub mod http;
pub mod locks;
pub mod metadata;
pub mod peers;
pub mod pki;
pub mod presign;
pub mod redis;
pub mod s3;
pub mod secret_file;
pub mod secrets;
pub mod telemetry;
pub mod tiers;
