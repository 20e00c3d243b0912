//! The `Outbox` port: messages that are committed with what they tell of, until they are published.
//!
//! A message gets into the outbox by a verb of [`MetadataStore`](super::MetadataStore) that carries an
//! [`EventDraft`](crate::domain::events::EventDraft), in that verb's transaction. The relay ([`crate::flow::relay`])
//! takes it out once the bus has it.
//!
//! # Rules that every adapter keeps
//! * What is ordered by one key is in one partition ([`partition_of`](holdfast_protocol::events::partition_of)), and
//!   its ids rise in the order of the commits. Ids of different keys become visible in any order.
//! * A row stays until [`Outbox::finish`] names it.

use async_trait::async_trait;
use tokio::sync::watch;

use super::events::{Message, Topic};
use super::metadata::MetadataResult;

#[cfg(feature = "conformance")]
pub mod conformance;

/// A message that waits to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// Where it is to be published.
    pub topic: Topic,
    /// The message; the sequence of its id is its place in the partition.
    pub message: Message,
    /// When it was committed, in milliseconds since 1970.
    pub queued_ms: u64,
}

/// What waits in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutboxBacklog {
    /// Rows that wait, counted up to [`COUNTED_MAX`].
    pub rows: u64,
    /// When the lowest of them was committed.
    pub oldest_ms: Option<u64>,
    /// Rows that were published and can be published again, counted likewise.
    pub published: u64,
}

/// Rows of a partition that are counted: a backlog of hours must not cost the database minutes.
pub const COUNTED_MAX: u64 = 20_000;

/// What is to be read of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Which.
    pub partition: u16,
    /// So many of its lowest rows.
    pub limit: u32,
    /// Without those with these sequences, in any order: whoever looks knows them.
    pub except: Vec<u64>,
}

/// Which published messages are to be published again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayFilter {
    /// Of this topic.
    pub topic: Topic,
    /// Committed then or later, in milliseconds since 1970.
    pub from_ms: u64,
    /// Committed before.
    pub to_ms: u64,
    /// Whose order key begins so.
    pub order_key_prefix: String,
}

/// The outbox of a node's metadata store. Errors are those of [`super::MetadataStore`].
#[async_trait]
pub trait Outbox: Send + Sync + 'static {
    /// Changes when something was written through this store; not when another node did.
    fn written(&self) -> watch::Receiver<u64>;

    /// The lowest rows of different partitions, those of each partition in the order of their ids and of one moment.
    /// One query, as far as the database lets it be one.
    async fn look(&self, looks: &[Look]) -> MetadataResult<Vec<Vec<OutboxRow>>>;

    /// The lowest rows of a partition.
    async fn lowest(&self, partition: u16, limit: u32) -> MetadataResult<Vec<OutboxRow>> {
        let found = self.look(&[Look { partition, limit, except: Vec::new() }]).await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Takes rows out, by their partitions and the sequences of their ids, in one transaction. With `keep_at_ms` they
    /// can be published again from then on; else they are gone.
    async fn finish(&self, rows: &[(u16, u64)], keep_at_ms: Option<u64>) -> MetadataResult<()>;

    /// What waits in a partition, without what was published. Its cost follows the number of rows, up to
    /// [`COUNTED_MAX`].
    async fn waiting(&self, partition: u16) -> MetadataResult<OutboxBacklog>;

    /// The same with what was published, which costs as much again.
    async fn backlog(&self, partition: u16) -> MetadataResult<OutboxBacklog>;

    /// Forgets published rows: those published before `before_ms`, and the lowest until only `rows_max` are left; at
    /// most `limit` of each. Returns how many.
    async fn forget_published(&self, partition: u16, before_ms: u64, rows_max: u64, limit: u32) -> MetadataResult<u64>;

    /// Makes published rows wait again, those with a sequence above `after`, in their order, at most `limit`. Returns
    /// how many, and the sequence of the last one looked at; `None`: there are no more.
    async fn replay(
        &self,
        partition: u16,
        filter: &ReplayFilter,
        after: u64,
        limit: u32,
    ) -> MetadataResult<(u64, Option<u64>)>;
}
