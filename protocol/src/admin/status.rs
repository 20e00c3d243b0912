//! How one node is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/status`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The node's identity.
    pub node_id: String,
    /// Version of the program.
    pub version: String,
    /// Where S3 is served.
    pub s3_addr: String,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Whether requests are served, and if not why.
    pub readiness: Readiness,
    /// Every disk.
    pub disks: Vec<DiskStatus>,
    /// What is in work.
    pub admission: Vec<AdmissionStatus>,
    /// Passes that give space back.
    pub cleanup: Vec<CleanupStatus>,
}

/// `GET /health/ready`, with 200 or 503.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// Whether requests of all kinds are served.
    pub ready: bool,
    /// What keeps the node from it.
    pub reasons: Vec<Reason>,
    /// What does not work although requests of all kinds are served: `tier_down`, `disk_unresponsive`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub degraded: Vec<Reason>,
}

/// `GET /health/maintenance`, with 200 or 412.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Maintenance {
    /// Whether this node may be stopped without losing availability.
    pub safe_to_stop: bool,
    /// Why, for people.
    pub message: String,
    /// Shards that would have no write quorum without this node; the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<u32>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    /// For programs. Of a node: `starting`, `draining`, `no_space`, `no_disk`, `no_metadata`, `fenced`,
    /// `not_registered`, `no_quorum`, `not_placed`, `disk_unresponsive`, `tier_down`. Those of a cluster are in
    /// docs/operations.md.
    pub code: String,
    /// For people.
    pub message: String,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskStatus {
    /// Directory.
    pub path: String,
    /// `healthy`, `full`, `unresponsive` or `fenced`.
    pub health: String,
    /// Why it is not healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Size of the file system.
    pub total_bytes: u64,
    /// Room left on it.
    pub free_bytes: u64,
    /// Bytes of live chunks.
    pub live_bytes: u64,
    /// Live chunks.
    pub chunks: u64,
    /// Segment files.
    pub segments: u64,
    /// Scrub since the start of the process.
    pub scrub: ScrubStatus,
}

/// Scrub of one disk since the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScrubStatus {
    /// Bytes checked.
    pub bytes: u64,
    /// Chunks checked.
    pub chunks: u64,
    /// Chunks found corrupt.
    pub corrupt: u64,
    /// Times that everything was checked.
    pub passes: u64,
    /// Whether a scrub that an operator asked for still runs.
    pub running: bool,
}

/// What a class of requests has in work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AdmissionStatus {
    /// `read` or `write`.
    pub class: String,
    /// Requests in work.
    pub jobs: u32,
    /// The most there may be.
    pub jobs_max: u32,
    /// Bytes they announced, each up to the window.
    pub bytes: u64,
    /// The most there may be.
    pub bytes_max: u64,
    /// Requests waiting for a place.
    pub queued: u64,
}

/// One kind of cleanup pass since the start of the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CleanupStatus {
    /// `uploads`, `reclaims` or `orphans`.
    pub pass: String,
    /// Passes that ended well.
    pub passes: u64,
    /// Passes that failed.
    pub failures: u64,
    /// Uploads aborted, contents reclaimed or orphaned chunks deleted.
    pub items: u64,
    /// Chunks deleted.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The last failure, until a pass ends well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}
