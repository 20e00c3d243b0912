//! Buckets.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Bucket {
    /// Unique name.
    pub name: String,
    /// Name of the user who owns it.
    pub owner: String,
    /// `unversioned`, `enabled` or `suspended`.
    pub versioning: String,
    /// Names of the configuration documents that are set, such as `policy`.
    #[serde(default)]
    pub configured: Vec<String>,
    /// The class of objects that are stored without one.
    #[serde(default = "standard")]
    pub storage_class: String,
    /// When it was made.
    pub created_ms: u64,
}

/// What a node that knows of no classes does.
fn standard() -> String {
    crate::tiers::STANDARD.to_owned()
}

/// `POST /v1/buckets`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBucket {
    /// S3's rules for names apply.
    pub name: String,
    /// Name of an existing user.
    pub owner: String,
}
