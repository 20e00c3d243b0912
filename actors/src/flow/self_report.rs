//! [`SelfReport`]: what a node tells its peers of itself beside its state: what it is writing for clients, and which
//! shards it found equal.
//!
//! **Writes under way.** The sweep of orphans knows what a node wrote to its own disks lately. A slow upload may put
//! its next chunk there only hours later, so whoever coordinates one says when its oldest began, and nothing as young
//! is condemned.
//!
//! **Proven shards.** A shard is compared by one node, and every node has to say the same of it. A node may hear before
//! that one that a member came back, perhaps with other disks; so what is proven goes with the lives of the nodes by
//! which it stands.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_protocol::cluster::Epoch;
use holdfast_protocol::{ContentId, ShardId};
use parking_lot::Mutex;

use super::held::{HeldContent, HeldContents};

/// Shards that a node found equal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proven {
    /// With their epoch then.
    pub shards: BTreeMap<ShardId, Epoch>,
    /// The lives of nodes for which that stands ([`Membership::lives`](crate::ports::coordination::Membership::lives));
    /// `None` where they are not known.
    pub lives: Option<u64>,
}

/// See the module's page. Holds an entry for each write in work, which admission bounds, and for each shard.
#[derive(Debug, Default)]
pub struct SelfReport {
    writes: Arc<HeldContents>,
    proven: Mutex<Proven>,
}

impl SelfReport {
    /// Of a node that does nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A content is being written, until the answer is dropped.
    pub fn begin_write(&self, content: ContentId) -> HeldContent {
        self.writes.hold(content)
    }

    /// When the oldest content that is being written was begun, in seconds since 1970.
    pub fn oldest_write_seconds(&self) -> Option<u64> {
        self.writes.oldest().map(|content| content.unix_seconds())
    }

    /// Shards that this node found equal.
    pub fn proven(&self) -> Proven {
        self.proven.lock().clone()
    }

    pub(crate) fn set_proven(&self, proven: Proven) {
        *self.proven.lock() = proven;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_write_that_is_not_over_counts() {
        let report = SelfReport::new();
        assert_eq!(report.oldest_write_seconds(), None);
        let (old, young) = (ContentId::generate(100), ContentId::generate(200));
        let (first, second) = (report.begin_write(old), report.begin_write(young));
        let again = report.begin_write(old);
        assert_eq!(report.oldest_write_seconds(), Some(100));
        drop(first);
        assert_eq!(report.oldest_write_seconds(), Some(100), "a part of it goes on");
        drop(again);
        assert_eq!(report.oldest_write_seconds(), Some(200));
        drop(second);
        assert_eq!(report.oldest_write_seconds(), None);
    }
}
