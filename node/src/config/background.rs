//! `[cleanup]`, `[lifecycle]`, `[tiering]` and `[journal]`: what a node does by itself.

use serde::{Deserialize, Serialize};

use super::{Bytes, Span};

/// `[cleanup]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CleanupConfig {
    /// Time from the last dereference of a content to the deletion of its chunks. Longer than a download takes.
    pub grace: Span,
    /// Time after which a chunk that nothing refers to is taken for left over. Chunks from before a restart need not
    /// wait.
    pub orphan_age: Span,
    /// Age at which an unfinished multipart upload is aborted; 0 keeps them for ever.
    pub stale_upload_age: Span,
    /// Time between looks for contents to reclaim.
    pub interval: Span,
    /// Time between walks over all chunks for orphans.
    pub orphan_interval: Span,
}

impl Default for CleanupConfig {
    fn default() -> Self {
        Self {
            grace: Span::minutes(10),
            orphan_age: Span::hours(1),
            stale_upload_age: Span::days(7),
            interval: Span::seconds(30),
            orphan_interval: Span::hours(1),
        }
    }
}

/// `[lifecycle]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LifecycleConfig {
    /// Whether this node may carry lifecycle rules out.
    pub enabled: bool,
    /// Time between looks for what is due by lifecycle rules.
    pub interval: Span,
    /// How long a day of a rule is. For tests only.
    pub day: Span,
}

impl Default for LifecycleConfig {
    fn default() -> Self {
        Self { enabled: true, interval: Span::minutes(5), day: Span::days(1) }
    }
}

/// `[tiering]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TieringConfig {
    /// Whether this node moves objects to and from cold tiers, and deletes what lies there for nothing. It reads from
    /// them anyway.
    pub enabled: bool,
    /// Moves of each tier that this node has in work at once.
    pub moves_per_tier: u32,
    /// Bytes a second that the moves of this node may read and write together; 0: no limit.
    pub bandwidth: Bytes,
    /// Time between looks for moves that are due, and for pieces to be deleted.
    pub poll: Span,
    /// How long a move belongs to the node that works on it without a sign of life.
    pub claim: Span,
    /// Time from the end of a move that came to nothing to the deletion of what it left in the tier.
    pub piece_grace: Span,
    /// Time between looks for tiers that were added, changed or removed through another node.
    pub refresh: Span,
    /// Memory for blocks that were read from tiers lately.
    pub cache_bytes: Bytes,
    /// Reads from tiers in work at once.
    pub reads_max: u32,
}

impl Default for TieringConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            moves_per_tier: 4,
            bandwidth: Bytes::mib(0),
            poll: Span::seconds(5),
            claim: Span::minutes(2),
            piece_grace: Span::hours(1),
            refresh: Span::seconds(5),
            cache_bytes: Bytes::mib(16),
            reads_max: 64,
        }
    }
}

/// `[journal]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JournalConfig {
    /// Age at which entries of the error log are removed.
    pub errors_age: Span,
    /// Entries of the error log that are kept at most.
    pub errors_max: u64,
    /// Age at which entries of the audit log are removed.
    pub audit_age: Span,
    /// Entries of the audit log that are kept at most.
    pub audit_max: u64,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self { errors_age: Span::days(30), errors_max: 100_000, audit_age: Span::days(365), audit_max: 1_000_000 }
    }
}
