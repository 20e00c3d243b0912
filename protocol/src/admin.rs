//! The admin API: JSON over HTTP, which the command line is a pure client of.
//!
//! Every answer that is not 2xx carries an [`ErrorBody`], except those of `/health/…`, whose body says what is wrong.
//! Times are milliseconds since 1970. Fields may be added; clients ignore those that they do not know. Secrets appear
//! in four places only: in [`NewKey`] and [`TierSettings`] on their way in, in [`CreatedKey`] and in [`JoinToken`] once
//! on their way out.
//!
//! `GET /v1/openapi.json` describes every route; `docs/openapi.json` is the same document.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod buckets;
mod chunks;
mod cluster;
mod events;
mod keys;
mod layout;
mod nodes;
mod objects;
mod repair;
mod shards;
mod status;
mod tiering;
mod tiers;

pub use buckets::{Bucket, NewBucket};
pub use chunks::{ChunkHeader, ChunkOwner, ChunkReference, ChunkUpload};
pub use cluster::{CacheStatus, CacheWaiting, ClusterStatus, JoinToken, NewJoinToken, ShardSummary};
pub use events::{EventInfo, EventsLag, EventsPage, PartitionLag, ReplayEvents, ReplayedEvents};
pub use keys::{CreatedKey, Key, NewKey, NewUser, RotateKey, SetEnabled, User};
pub use layout::{ApplyLayout, LayoutCost, LayoutNodeCost, LayoutState, LayoutView, StageChange};
pub use nodes::{DrainStatus, NodeInfo, NodeShards};
pub use objects::{ChunkReplica, ObjectChunk, ObjectCold, ObjectRestore, ObjectStat};
pub use repair::{ComparisonInfo, CopyInfo, PauseInfo, RepairInfo};
pub use shards::{ShardInfo, ShardReplica};
pub use status::{AdmissionStatus, CleanupStatus, DiskStatus, Maintenance, Readiness, Reason, ScrubStatus, Status};
pub use tiering::{
    ChangeTier, DamagedContent, MoveError, MoveView, MovesPage, NewTier, RequestMoves, RequestedMoves, RetriedMoves,
    SetStorageClass, TierBacklog, TierCheck, TierSample, TierStatus, TierUse, TierView, UnreadContent, VerifiedTier,
    VerifyTier,
};
pub use tiers::{
    DirectorySettings, FastdfsSettings, OssAddressing, OssCredentials, OssEncryption, OssSettings, SecretText,
    TierSettings,
};

/// What every error answer carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// What kind of error, for programs.
    pub code: ErrorCode,
    /// What happened, for people.
    pub message: String,
    /// Also in the node's log.
    pub request_id: String,
}

/// Kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed: 400.
    InvalidRequest,
    /// The token is missing or wrong: 401.
    Unauthorized,
    /// What the request names does not exist: 404.
    NotFound,
    /// What the request makes exists already: 409.
    Exists,
    /// What the request removes is in use: 409.
    InUse,
    /// Somebody else changed it in between, or it is not in the state that this needs: 409.
    Conflict,
    /// This node runs alone, or cannot do this for another reason that lasts: 409.
    NotPossible,
    /// The node is starting, stopping or overloaded: 503, try again.
    Unavailable,
    /// A fault of the node: 500.
    Internal,
    /// A kind that this version does not know.
    #[serde(other)]
    Other,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items, in order.
    pub items: Vec<T>,
    /// Pass it as `after` for the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_error_code_is_still_an_error() {
        let body: ErrorBody =
            serde_json::from_str(r#"{"error":{"code":"brand_new","message":"m","request_id":"r"}}"#).unwrap();
        assert_eq!(body.error.code, ErrorCode::Other);
    }
}
