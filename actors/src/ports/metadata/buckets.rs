//! What is kept of a bucket.

use serde::{Deserialize, Serialize};

/// A bucket's number: objects refer to it, so that a bucket that is deleted and made again starts empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BucketId(pub u64);

/// Whether a bucket keeps old versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Versioning {
    /// Never switched on.
    #[default]
    Unversioned,
    /// Every write adds a version.
    Enabled,
    /// Writes replace the null version; older versions stay.
    Suspended,
}

/// The canned ACLs that Holdfast knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CannedAcl {
    /// Only the owner.
    #[default]
    Private,
    /// Anybody may read.
    PublicRead,
}

/// A configuration document of a bucket, kept as text (XML or JSON as S3 has it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BucketConfigKind {
    /// Bucket policy, JSON.
    Policy,
    /// CORS rules, as JSON of our own domain type.
    Cors,
    /// Bucket tags, as JSON of [`Tag`]s.
    Tagging,
    /// Canned ACL of the bucket, as JSON of [`CannedAcl`].
    Acl,
    /// Lifecycle rules.
    Lifecycle,
    /// Event notifications.
    Notification,
    /// The storage class of objects that are stored without one: the name of a tier. Absent: `STANDARD`.
    StorageClass,
}

impl BucketConfigKind {
    /// All kinds.
    pub const ALL: [Self; 7] =
        [Self::Policy, Self::Cors, Self::Tagging, Self::Acl, Self::Lifecycle, Self::Notification, Self::StorageClass];

    /// The stored name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Cors => "cors",
            Self::Tagging => "tagging",
            Self::Acl => "acl",
            Self::Lifecycle => "lifecycle",
            Self::Notification => "notification",
            Self::StorageClass => "storage_class",
        }
    }
}

/// A bucket to be made.
#[derive(Debug, Clone)]
pub struct NewBucket {
    /// Globally unique name, already validated.
    pub name: String,
    /// Name of the user who owns it.
    pub owner: String,
    /// Its initial canned ACL.
    pub acl: CannedAcl,
    /// Creation time.
    pub now_ms: u64,
}

/// A bucket with its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Number.
    pub id: BucketId,
    /// Name.
    pub name: String,
    /// User name of the owner.
    pub owner: String,
    /// When it was made.
    pub created_ms: u64,
    /// Versioning state.
    pub versioning: Versioning,
    /// Configuration documents that are set.
    pub configs: Vec<(BucketConfigKind, String)>,
    /// Rises with each change of the bucket.
    pub revision: u64,
}

impl Bucket {
    /// One configuration document.
    pub fn config(&self, kind: BucketConfigKind) -> Option<&str> {
        self.configs.iter().find(|(k, _)| *k == kind).map(|(_, v)| v.as_str())
    }
}

/// A bucket without what its owner has written about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketEntry {
    /// Name.
    pub name: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
}

/// An S3 tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// 1 to 128 characters.
    pub key: String,
    /// Up to 256 characters.
    pub value: String,
}
