//! [`SelfReport`]: what a node tells its peers of itself beside its state: what it is writing for clients, and which shards it
//! found equal.
//!
//! **Writes under way.** The sweep of orphans knows what a node wrote to its own disks lately. A slow upload may put
//! its next chunk there only hours later, so whoever coordinates one says when its oldest began, and nothing as young
//! is condemned.
//!
//! **Proven shards.** A shard is compared by one node, and every node has to say the same of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_protocol::cluster::Epoch;
use holdfast_protocol::{ContentId, ShardId};
use parking_lot::Mutex;

/// See the module's page. Holds an entry for each write in work, which admission bounds, and for each shard.
#[derive(Debug, Default)]
pub struct SelfReport {
    writes: Mutex<BTreeMap<ContentId, usize>>,
    proven: Mutex<BTreeMap<ShardId, Epoch>>,
}

impl SelfReport {
    /// Of a node that does nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A content is being written, until the answer is dropped.
    pub fn begin_write(self: &Arc<Self>, content: ContentId) -> WriteUnderWay {
        *self.writes.lock().entry(content).or_default() += 1;
        WriteUnderWay { report: Arc::clone(self), content }
    }

    /// When the oldest content that is being written was begun, in seconds since 1970.
    pub fn oldest_write_seconds(&self) -> Option<u64> {
        // Contents sort by their time.
        self.writes.lock().first_key_value().map(|(content, _)| content.unix_seconds())
    }

    /// Shards that this node found equal, with their epoch then.
    pub fn proven(&self) -> BTreeMap<ShardId, Epoch> {
        self.proven.lock().clone()
    }

    pub(crate) fn set_proven(&self, proven: BTreeMap<ShardId, Epoch>) {
        *self.proven.lock() = proven;
    }
}

/// A content that is being written.
#[derive(Debug)]
pub struct WriteUnderWay {
    report: Arc<SelfReport>,
    content: ContentId,
}

impl Drop for WriteUnderWay {
    fn drop(&mut self) {
        let mut writes = self.report.writes.lock();
        if let Some(count) = writes.get_mut(&self.content) {
            *count -= 1;
            if *count == 0 {
                writes.remove(&self.content);
            }
        }
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
