//! Configuration: what an operator may choose, its defaults, and where values come from.
//!
//! A value comes from the first of these that has it: a flag, the environment (`HOLDFAST_<SECTION>_<KEY>`), the TOML
//! file (`--config`, else `./holdfast.toml`, else `/etc/holdfast/holdfast.toml`), the default. Unknown keys are errors,
//! and every error names the file with line and column, or the variable, that it comes from, and says how to put it
//! right. A variable that names no section may be somebody else's: the command line tells of it.
//!
//! `holdfast.example.toml` shows every key with its default; a test holds it to that.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod addr;
mod background;
mod check;
mod cluster;
mod events;
mod load;
mod units;

pub use addr::listen_addr;
pub use background::{CleanupConfig, JournalConfig, LifecycleConfig, TieringConfig};
pub use cluster::{CacheConfig, ClusterConfig, LocksBackend, LocksConfig, MetadataConfig, MetadataTls, RedisConfig};
pub use events::EventsConfig;
pub use load::{ConfigError, Loaded, Overrides, SYSTEM_FILE, WORKING_FILE, load, nearest, variables};
pub use units::{Bytes, Span};

/// A node's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where data lives.
    pub node: NodeConfig,
    /// The S3 front end.
    pub s3: S3Config,
    /// The admin front end.
    pub admin: AdminConfig,
    /// What a node takes on at once.
    pub limits: LimitsConfig,
    /// The disk engine.
    pub storage: StorageConfig,
    /// Giving space back.
    pub cleanup: CleanupConfig,
    /// Rules of buckets about the age of objects.
    pub lifecycle: LifecycleConfig,
    /// Moves between the cluster's disks and cold tiers.
    pub tiering: TieringConfig,
    /// The cluster that the node is one of.
    pub cluster: ClusterConfig,
    /// The cluster's metadata.
    pub metadata: MetadataConfig,
    /// The Redis server.
    pub redis: RedisConfig,
    /// Locks between nodes.
    pub locks: LocksConfig,
    /// The cache before it.
    pub cache: CacheConfig,
    /// Who is told of changes.
    pub events: EventsConfig,
    /// The error log and the audit log.
    pub journal: JournalConfig,
    /// Logs.
    pub log: LogConfig,
    /// Threads of the data plane.
    pub data_plane: DataPlaneConfig,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Metadata, identity, secrets and, unless `disks` says otherwise, chunks.
    pub data_dir: PathBuf,
    /// One directory a disk for chunks. Empty: `<data_dir>/disks/0`.
    pub disks: Vec<PathBuf>,
    /// How long a stop waits for requests to end.
    pub shutdown_timeout: Span,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self { data_dir: "holdfast-data".into(), disks: vec![], shutdown_timeout: Span::seconds(30) }
    }
}

impl NodeConfig {
    /// The directories of the disks, the default filled in.
    pub fn disk_dirs(&self) -> Vec<PathBuf> {
        if self.disks.is_empty() { vec![self.data_dir.join("disks").join("0")] } else { self.disks.clone() }
    }
}

/// `[s3]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Config {
    /// Where S3 is served. Port 0 takes a free one.
    #[serde(deserialize_with = "addr::deserialize")]
    pub addr: SocketAddr,
    /// Base domains for virtual-hosted requests (`bucket.domain`).
    pub domains: Vec<String>,
    /// What GetBucketLocation answers.
    pub region: String,
    /// PEM file with the certificate chain; together with `tls_key` it switches HTTPS on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            addr: SocketAddr::from(([127, 0, 0, 1], 9000)),
            domains: vec![],
            region: "us-east-1".into(),
            tls_cert: None,
            tls_key: None,
        }
    }
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Where the admin API, health and metrics are served. It speaks plain HTTP: keep it on loopback or a private
    /// network.
    #[serde(deserialize_with = "addr::deserialize")]
    pub addr: SocketAddr,
    /// File with the bearer token of the admin API. Default: `<data_dir>/admin.token`, made at the first start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { addr: SocketAddr::from(([127, 0, 0, 1], 9001)), token_file: None }
    }
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Connections to the S3 port.
    pub connections: u32,
    /// Those of one address, or of one IPv6 network of 64 bits; 0: a quarter of `connections`.
    pub connections_per_address: u32,
    /// Blocks of addresses that may have more: of load balancers and proxies, behind which there are many clients.
    pub connections_exempt: Vec<String>,
    /// Requests that read, in work at once.
    pub read_jobs: u32,
    /// Requests that write, in work at once.
    pub write_jobs: u32,
    /// Bytes that writes in work may announce together, each counted up to `write_window`.
    pub inflight_bytes: Bytes,
    /// The most bytes one write counts for: what it can hold in buffers at once.
    pub write_window: Bytes,
    /// Requests of each kind that wait for a place before others are refused at once.
    pub queue: u32,
    /// How long a request waits for a place before it is refused with SlowDown.
    pub queue_wait: Span,
    /// Time for a request's head to arrive; also how long a connection may be idle between requests.
    pub header_timeout: Span,
    /// A body, in either direction, must move at least 16 KiB in this time, else the connection is closed.
    pub idle_timeout: Span,
    /// Time from the first to the last byte of one chunk (16 MiB) of an upload.
    pub chunk_timeout: Span,
}

impl LimitsConfig {
    /// Connections of one address, the default filled in.
    pub fn connections_of_address(&self) -> u32 {
        match self.connections_per_address {
            0 => (self.connections / 4).max(1),
            count => count,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_address: 0,
            connections_exempt: vec!["127.0.0.0/8".into(), "::1/128".into()],
            read_jobs: 4_096,
            write_jobs: 1_024,
            inflight_bytes: Bytes::mib(1_024),
            write_window: Bytes::mib(4),
            queue: 1_024,
            queue_wait: Span::milliseconds(500),
            header_timeout: Span::seconds(60),
            idle_timeout: Span::seconds(30),
            chunk_timeout: Span::minutes(15),
        }
    }
}

/// `[storage]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// How to reach the disks.
    pub io: IoMode,
    /// Size of a segment file. Changing it affects new segments only.
    pub segment_size: Bytes,
    /// Room left free on each disk; writes stop before it.
    pub reserve: Bytes,
    /// A disk with an operation in flight for longer gets nothing new until it answers again; 0: disks are not watched.
    pub unresponsive_after: Span,
    /// A disk with an operation in flight for so long is fenced, if at least as many others answer as do not; 0: never.
    pub fence_unresponsive_after: Span,
    /// Everything stored is read and checked once within this time; 0 switches scrub off.
    pub scrub_period: Span,
    /// Buffers of 1 MiB, for uploads and for reads that are not in the page cache.
    pub large_buffers: u32,
    /// Buffers of 64 KiB.
    pub small_buffers: u32,
    /// Time between writes of all index files that list deleted chunks; where many were deleted it is done at once.
    pub checkpoint_interval: Span,
    /// Time between looks for segments that are worth compacting.
    pub compact_interval: Span,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            io: IoMode::Auto,
            segment_size: Bytes::mib(1_024),
            reserve: Bytes::mib(256),
            unresponsive_after: Span::seconds(30),
            fence_unresponsive_after: Span::minutes(10),
            scrub_period: Span::days(30),
            large_buffers: 80,
            small_buffers: 256,
            checkpoint_interval: Span::minutes(5),
            compact_interval: Span::minutes(1),
        }
    }
}

/// How disks are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoMode {
    /// io_uring where the kernel allows it, else blocking calls.
    Auto,
    /// io_uring; the node does not start without it.
    Uring,
    /// Blocking calls on threads.
    Std,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Form of a line.
    pub format: LogFormat,
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or a filter such as `info,holdfast_storage=debug`.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into() }
    }
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[data_plane]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataPlaneConfig {
    /// How connections are spread over threads.
    pub runtime: RuntimeKind,
    /// Threads; 0 means one a core.
    pub threads: u32,
}

impl Default for DataPlaneConfig {
    fn default() -> Self {
        Self { runtime: RuntimeKind::PerCore, threads: 0 }
    }
}

/// How connections are spread over threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeKind {
    /// One runtime a core with its own ring; a connection stays where it was accepted.
    PerCore,
    /// One runtime whose threads share all connections.
    MultiThread,
}

impl Config {
    /// File with the admin API's bearer token.
    pub fn admin_token_file(&self) -> PathBuf {
        self.admin.token_file.clone().unwrap_or_else(|| token_file_in(&self.node.data_dir))
    }
}

/// Where a data directory keeps the admin API's bearer token.
pub fn token_file_in(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.token")
}
