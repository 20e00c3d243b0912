//! What multipart uploads take and give.

use holdfast_protocol::{ChecksumAlgorithm, ChecksumType, ContentId, TierName, UploadId, VersionId};

use super::{BucketId, CannedAcl, Content, ObjectAttributes, Tag, WritePrecondition};
use crate::domain::events::EventDraft;

/// An upload to be started.
#[derive(Debug, Clone)]
pub struct NewUpload {
    /// Its id.
    pub id: UploadId,
    /// Bucket.
    pub bucket: BucketId,
    /// Key.
    pub key: String,
    /// User name of the initiator, who will own the object.
    pub owner: String,
    /// Start time.
    pub now_ms: u64,
    /// Headers of the object to be.
    pub attributes: ObjectAttributes,
    /// Tags of the object to be.
    pub tags: Vec<Tag>,
    /// ACL of the object to be.
    pub acl: CannedAcl,
    /// Storage class of the object to be.
    pub class: Option<TierName>,
    /// Checksum algorithm and type, if the client chose one.
    pub checksum: Option<(ChecksumAlgorithm, ChecksumType)>,
}

/// An unfinished upload.
#[derive(Debug, Clone)]
pub struct Upload {
    /// As it was started.
    pub new: NewUpload,
    /// Name of its bucket.
    pub bucket_name: String,
}

/// An uploaded part whose chunks are durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// From 1 to 10,000.
    pub number: u16,
    /// The content that holds its bytes, one extent (UploadPartCopy writes the bytes anew).
    pub content: ContentId,
    /// Size.
    pub size_bytes: u64,
    /// MD5 of its bytes.
    pub md5: [u8; 16],
    /// Its checksum by the upload's algorithm, when there is one.
    pub checksum: Option<(ChecksumAlgorithm, Vec<u8>)>,
    /// When it was stored.
    pub last_modified_ms: u64,
}

/// A completion of a multipart upload, already checked against S3's rules by [`Part`]s that were read before.
#[derive(Debug, Clone)]
pub struct CompleteUpload {
    /// Bucket.
    pub bucket: BucketId,
    /// Key.
    pub key: String,
    /// Upload.
    pub upload: UploadId,
    /// Number and content of each part that makes the object, in order. The transaction checks that the stored parts
    /// still have these contents.
    pub parts: Vec<(u16, ContentId)>,
    /// The resulting content: a fresh id, the parts' extents, ETag, checksum.
    pub content: Content,
    /// The version id to use if the bucket has versioning on.
    pub version: VersionId,
    /// Time of the commit.
    pub now_ms: u64,
    /// Conditions.
    pub precondition: WritePrecondition,
    /// What is told of it, in the same transaction; `None`: nothing.
    pub event: Option<EventDraft>,
}
