//! The lines of a backup.

use holdfast_actors::ports::metadata::{
    BucketConfigKind, CannedAcl, ETag, ObjectAttributes, ObjectPart, Restore, Tag, Versioning,
};
use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::{ChecksumAlgorithm, ChecksumType, TierName};
use serde::{Deserialize, Serialize};

use super::Counts;

/// The format that this program writes, and the newest that it reads. From 2 on contents may lie in tiers: a program that knows
/// only 1 would take them for contents on the cluster's disks, and must refuse.
pub(super) const FORMAT: u32 = 2;

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Line {
    HoldfastMetadata {
        format: u32,
        made_ms: u64,
    },
    User {
        name: String,
        admin: bool,
        enabled: bool,
        created_ms: u64,
    },
    Key {
        access_key: String,
        sealed_secret: String,
        user: String,
        enabled: bool,
        description: String,
        created_ms: u64,
    },
    Tier {
        name: TierName,
        /// As stored: secrets in it are sealed.
        settings: String,
        created_ms: u64,
    },
    Bucket {
        name: String,
        owner: String,
        created_ms: u64,
        versioning: Versioning,
        configs: Vec<(BucketConfigKind, String)>,
    },
    Version(Box<VersionLine>),
    Upload(Box<UploadLine>),
    Part(Box<PartLine>),
    End(Counts),
}

#[derive(Serialize, Deserialize)]
pub(super) struct VersionLine {
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) version: String,
    pub(super) last_modified_ms: u64,
    pub(super) owner: String,
    /// Absent: a delete marker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<ContentLine>,
    pub(super) attributes: ObjectAttributes,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tags: Vec<Tag>,
    pub(super) acl: CannedAcl,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) class: Option<TierName>,
    /// Not put back: there is no move that would end it. It tells what was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) restore: Option<Restore>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ContentLine {
    pub(super) id: String,
    /// The encoded manifest.
    pub(super) manifest: String,
    pub(super) etag: ETag,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) checksum: Option<Checksum>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) parts: Vec<ObjectPart>,
    /// The encoded place in a tier. Absent: on the cluster's disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cold: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct UploadLine {
    pub(super) bucket: String,
    pub(super) id: String,
    pub(super) key: String,
    pub(super) owner: String,
    pub(super) begun_ms: u64,
    pub(super) attributes: ObjectAttributes,
    pub(super) tags: Vec<Tag>,
    pub(super) acl: CannedAcl,
    pub(super) checksum: Option<(ChecksumAlgorithm, ChecksumType)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) class: Option<TierName>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct PartLine {
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) upload: String,
    pub(super) number: u16,
    pub(super) content: String,
    pub(super) size_bytes: u64,
    pub(super) md5: String,
    pub(super) checksum: Option<(ChecksumAlgorithm, Vec<u8>)>,
    pub(super) last_modified_ms: u64,
}
