//! What listings take and give.

use std::sync::Arc;

use holdfast_protocol::{ChecksumAlgorithm, ChecksumType, TierName, UploadId, VersionId};

use super::{ETag, ObjectVersion, Restore, Upload};

/// Where a listing goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ListAfter {
    /// At the beginning.
    #[default]
    Start,
    /// After this key.
    Key(String),
    /// After every key that starts with this common prefix.
    Prefix(String),
}

/// A listing of objects.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Only keys with this prefix.
    pub prefix: String,
    /// Groups keys up to the first occurrence after the prefix.
    pub delimiter: Option<String>,
    /// Where to go on.
    pub after: ListAfter,
    /// Most entries and common prefixes together, 0 to 1,000.
    pub limit: u32,
}

/// A row of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    /// Key.
    pub key: String,
    /// Size.
    pub size_bytes: u64,
    /// ETag.
    pub etag: ETag,
    /// Last modification.
    pub last_modified_ms: u64,
    /// User name of the owner.
    pub owner: String,
    /// Checksum algorithm and type, if the object has a checksum.
    pub checksum: Option<(ChecksumAlgorithm, ChecksumType)>,
    /// As in [`ObjectVersion`].
    pub class: Option<TierName>,
    /// As in [`ObjectVersion`].
    pub restore: Option<Restore>,
}

/// A page of a listing.
#[derive(Debug, Clone, Default)]
pub struct ListPage {
    /// Objects, in key order.
    pub entries: Vec<ListEntry>,
    /// Common prefixes, in order.
    pub common_prefixes: Vec<String>,
    /// Where the next page starts, if there is one.
    pub next: Option<ListAfter>,
}

/// A listing of versions.
#[derive(Debug, Clone, Default)]
pub struct ListVersionsQuery {
    /// Only keys with this prefix.
    pub prefix: String,
    /// Groups keys up to the first occurrence after the prefix.
    pub delimiter: Option<String>,
    /// Where to go on, by key.
    pub after: ListAfter,
    /// With `ListAfter::Key`: go on within that key, after this version, instead of after the key.
    pub after_version: Option<VersionId>,
    /// Most entries and common prefixes together.
    pub limit: u32,
}

/// A page of a listing of versions.
#[derive(Debug, Clone, Default)]
pub struct ListVersionsPage {
    /// Versions and delete markers, in key order, newest first.
    pub entries: Vec<Arc<ObjectVersion>>,
    /// Common prefixes, in order.
    pub common_prefixes: Vec<String>,
    /// Where the next page starts (with the version to go on after), if there is one.
    pub next: Option<(ListAfter, Option<VersionId>)>,
}

/// A listing of uploads.
#[derive(Debug, Clone, Default)]
pub struct ListUploadsQuery {
    /// Only keys with this prefix.
    pub prefix: String,
    /// Groups keys up to the first occurrence after the prefix.
    pub delimiter: Option<String>,
    /// Where to go on, by key.
    pub after: ListAfter,
    /// With `ListAfter::Key`: go on within that key, after this upload.
    pub after_upload: Option<UploadId>,
    /// Most entries and common prefixes together.
    pub limit: u32,
}

/// A page of a listing of uploads.
#[derive(Debug, Clone, Default)]
pub struct ListUploadsPage {
    /// Uploads in order of key, then of id.
    pub entries: Vec<Arc<Upload>>,
    /// Common prefixes, in order.
    pub common_prefixes: Vec<String>,
    /// Where the next page starts, if there is one.
    pub next: Option<(ListAfter, Option<UploadId>)>,
}
