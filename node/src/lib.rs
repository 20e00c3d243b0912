//! The Holdfast node: adapters to the real world, HTTP front ends, CLI and assembly.
//!
//! | module | what |
//! |---|---|
//! | [`assemble`] | joins everything into a running node |
//! | [`cli`], [`config`] | the command line, and what an operator may choose |
//! | [`http`], [`admission_layer`] | connections with their limits, and admission, before the S3 front end |
//! | [`s3`], [`admin`] | the front ends |
//! | [`chunks`], [`metadata`], [`peers`], [`coordination`], [`locks`], [`events`], [`tiers`] | adapters of the ports |
//! | [`redis`] | the way to a Redis server, for the cache of [`metadata`] and for [`locks`] |
//! | [`pki`], [`secrets`], [`secret_file`] | certificates of nodes; secrets, sealed in metadata and in files |
//! | [`telemetry`] | logs and metrics |
//! | [`mod@bench`], [`presign`] | the load generator, and presigned URLs for people and tests |
//! | [`addresses`] | what the address of a machine says of it |

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
