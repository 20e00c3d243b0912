//! What a verb locks before it reads, where several nodes write to one server.
//!
//! A lock on something that may not exist yet (a key, a content, a name) is a lock on one of a fixed number of rows
//! that stand for everything. They are taken in one statement and in the order of their numbers, so that verbs wait for
//! each other in one order and do not deadlock. Two things that share a row by chance wait for each other; that is all.

use std::collections::BTreeSet;

use holdfast_actors::ports::coordination::Fence;
use holdfast_actors::ports::metadata::BucketId;
use holdfast_protocol::hash::fnv1a_folded;
use holdfast_protocol::{ContentId, TierName, UploadId};

/// Rows that stand for things: with 64 keys and 64 contents in each of two transactions, about one pair in two meets.
pub(in crate::metadata) const SLOTS: u32 = 32_768;

/// How a verb treats the epochs of shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::metadata) enum Epochs {
    #[default]
    Untouched,
    /// No epoch rises before its commit.
    Held,
    /// No commit that compares with an epoch is under way.
    Raised,
}

/// The locks of one verb.
#[derive(Debug, Clone, Default)]
pub(in crate::metadata) struct Locks {
    /// Rows of the fixed number, exclusive.
    pub(in crate::metadata) slots: BTreeSet<u32>,
    /// Buckets that must not be deleted before the commit.
    pub(in crate::metadata) buckets: BTreeSet<BucketId>,
    pub(in crate::metadata) epochs: Epochs,
}

impl Locks {
    pub(in crate::metadata) fn none() -> Self {
        Self::default()
    }

    /// The number of a thing is stable: nodes of other versions lock the same row. It is hashed from the kind and the
    /// name.
    fn slot(mut self, kind: u8, parts: &[&[u8]]) -> Self {
        let bytes = std::iter::once(&kind).chain(parts.iter().copied().flatten());
        self.slots.insert(fnv1a_folded(bytes.copied()) % SLOTS);
        self
    }

    pub(in crate::metadata) fn key(self, bucket: BucketId, key: &str) -> Self {
        self.slot(b'k', &[&bucket.0.to_be_bytes(), key.as_bytes()])
    }

    pub(in crate::metadata) fn content(self, content: ContentId) -> Self {
        self.slot(b'c', &[content.as_bytes()])
    }

    pub(in crate::metadata) fn contents(self, contents: &[ContentId]) -> Self {
        contents.iter().fold(self, |locks, content| locks.content(*content))
    }

    pub(in crate::metadata) fn upload(self, upload: UploadId) -> Self {
        self.slot(b'u', &[upload.as_bytes()])
    }

    pub(in crate::metadata) fn bucket_name(self, name: &str) -> Self {
        self.slot(b'b', &[name.as_bytes()])
    }

    pub(in crate::metadata) fn user(self, name: &str) -> Self {
        self.slot(b'n', &[name.as_bytes()])
    }

    pub(in crate::metadata) fn access_key(self, access_key: &str) -> Self {
        self.slot(b'a', &[access_key.as_bytes()])
    }

    /// The queue of contents to reclaim: one reaper at a time.
    pub(in crate::metadata) fn reclaims(self) -> Self {
        self.slot(b'r', &[])
    }

    /// Which tiers there are, and all that they are set up with: one change at a time.
    pub(in crate::metadata) fn tiers(self) -> Self {
        self.slot(b't', &[])
    }

    /// A tier as operators have set it up.
    pub(in crate::metadata) fn tier(self, tier: &TierName) -> Self {
        self.slot(b't', &[tier.as_str().as_bytes()])
    }

    /// The moves of a lane that are given out: one claimant at a time.
    pub(in crate::metadata) fn lane(self, lane: &TierName) -> Self {
        self.slot(b'l', &[lane.as_str().as_bytes()])
    }

    /// The pieces of a tier that are given out: one sweeper at a time.
    pub(in crate::metadata) fn pieces(self, tier: &TierName) -> Self {
        self.slot(b'p', &[tier.as_str().as_bytes()])
    }

    /// The highest token seen of a lock.
    pub(in crate::metadata) fn fence(self, fence: Option<&Fence>) -> Self {
        match fence {
            Some(fence) => self.slot(b'f', &[fence.name.as_str().as_bytes()]),
            None => self,
        }
    }

    pub(in crate::metadata) fn in_bucket(mut self, bucket: BucketId) -> Self {
        self.buckets.insert(bucket);
        self
    }

    pub(in crate::metadata) fn epochs(mut self, epochs: Epochs) -> Self {
        self.epochs = epochs;
        self
    }
}
