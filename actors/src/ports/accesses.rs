//! The `AccessLog` port: on which day a latest version was last read, for rules that go by that.
//!
//! It is a help for rules, not a record: notes come late, and some are lost with a node. What is not noted counts as
//! not read.
//!
//! # Rules that every adapter keeps
//! * There is at most one note a key. Its time only rises.
//! * A note outlives its object: whoever walks over notes forgets those of keys that are gone.

use async_trait::async_trait;

use super::metadata::{AgePosition, AgedVersion, BucketId, MetadataResult};

#[cfg(feature = "conformance")]
pub mod conformance;

/// Notes that are written at a time, at most.
pub const NOTES_MAX: usize = 1_000;

/// That the latest version of a key was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadNote {
    /// Bucket.
    pub bucket: BucketId,
    /// Key.
    pub key: String,
    /// The begin of the day on which it was.
    pub day_ms: u64,
}

/// A key that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadKey {
    /// Key.
    pub key: String,
    /// The begin of the day of the last time.
    pub day_ms: u64,
    /// Its latest version; `None`: it has none that is an object.
    pub version: Option<AgedVersion>,
}

impl ReadKey {
    /// Its place in the order of days.
    pub fn position(&self) -> AgePosition {
        AgePosition { at_ms: self.day_ms, name: self.key.clone(), sequence: 0 }
    }
}

/// Last reads. Errors are those of [`super::MetadataStore`].
#[async_trait]
pub trait AccessLog: Send + Sync + 'static {
    /// Notes reads, at most [`NOTES_MAX`] at a time. A note of a later day stays.
    async fn note_reads(&self, notes: &[ReadNote]) -> MetadataResult<()>;

    /// When keys of a bucket were last read, those of which it is noted. At most 1,000 keys at a time.
    async fn last_reads(&self, bucket: BucketId, keys: &[&str]) -> MetadataResult<Vec<(String, u64)>>;

    /// Keys of a bucket that were read, in order of the day, those after `after` and up to `until_ms`, at most `limit`.
    /// The cost follows what is returned.
    async fn read_keys(
        &self,
        bucket: BucketId,
        after: &AgePosition,
        until_ms: u64,
        limit: u32,
    ) -> MetadataResult<Vec<ReadKey>>;

    /// Forgets notes, those that still are of the day named. At most 1,000 at a time.
    async fn forget_reads(&self, notes: &[ReadNote]) -> MetadataResult<()>;

    /// The next bucket, by its number, of which there are notes.
    async fn next_read_bucket(&self, after: Option<BucketId>) -> MetadataResult<Option<BucketId>>;

    /// Forgets notes of a bucket, at most `limit`; returns how many.
    async fn forget_bucket_reads(&self, bucket: BucketId, limit: u32) -> MetadataResult<u64>;
}
