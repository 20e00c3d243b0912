//! What is stored: read from the coordination service, changed there, and told to metadata.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt as _, stream};
use holdfast_protocol::ShardId;
use holdfast_protocol::cluster::{Epoch, ShardState};

use super::Term;
use crate::ports::coordination::{CoordinationError, Versioned};

/// Calls of the coordination service under way at once.
const CALLS_AT_ONCE: usize = 32;
/// Epochs that metadata is told at once.
const RAISE_BATCH: usize = 512;

impl Term<'_> {
    /// Reads shards from the service itself.
    pub(super) async fn read(&mut self, shards: Vec<ShardId>) -> Result<(), CoordinationError> {
        let coordination = &self.context.parts.coordination;
        let reads = stream::iter(shards).map(|shard| async move { (shard, coordination.shard(shard).await) });
        let mut reads = reads.buffer_unordered(CALLS_AT_ONCE);
        let mut found = Vec::new();
        while let Some((shard, result)) = reads.next().await {
            match result {
                Ok(state) => found.push((shard, Arc::new(state))),
                Err(CoordinationError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        drop(reads);
        for (shard, state) in found {
            self.see(shard, state);
        }
        Ok(())
    }

    pub(super) async fn store(&mut self, due: Vec<(ShardId, ShardState)>) {
        let (coordination, lease) = (&self.context.parts.coordination, self.lease);
        let stored = &self.stored;
        let writes = stream::iter(due).map(|(shard, state)| {
            let expected = stored.get(&shard).map(|known| known.version);
            async move {
                // An earlier write of this pass may have taken long.
                if !lease.is_held() {
                    return (shard, state, Err(CoordinationError::LeaseLost(lease.name().clone())));
                }
                let result = coordination.store_shard(shard, expected, &state, lease).await;
                (shard, state, result)
            }
        });
        let results: Vec<_> = writes.buffer_unordered(CALLS_AT_ONCE).collect().await;
        let mut unsure = Vec::new();
        for (shard, state, result) in results {
            match result {
                Ok(version) => {
                    metrics::counter!("holdfast_shard_changes_total").increment(1);
                    tracing::debug!(%shard, ?state, "shard stored");
                    self.controller.stored(shard, state.clone());
                    self.stored.insert(shard, Arc::new(Versioned { version, value: state }));
                }
                Err(error) => {
                    // A conflict is no failure: somebody else's state is newer than the mirror.
                    if !matches!(error, CoordinationError::Conflict(_)) {
                        self.note("store a shard", &error);
                    }
                    unsure.push(shard);
                }
            }
        }
        if let Err(error) = self.read(unsure).await {
            self.note("read a shard", &error);
        }
    }

    pub(super) async fn raise(&mut self) {
        let unraised = self.controller.unraised();
        let mut higher = Vec::new();
        for batch in unraised.chunks(RAISE_BATCH) {
            match self.context.parts.metadata.raise_epochs(batch).await {
                Ok(found) => {
                    self.controller.raised(batch);
                    higher.extend(found);
                }
                Err(error) => return self.note("raise epochs in metadata", &error),
            }
        }
        if higher.is_empty() {
            return;
        }
        // The mirror may be later than what a predecessor stored and told.
        let shards = higher.iter().map(|(shard, _)| *shard).collect();
        self.ahead.extend(higher);
        if let Err(error) = self.read(shards).await {
            return self.note("read shards whose epoch is higher in metadata", &error);
        }
        let set_back = self.set_back();
        if let Some(shard) = set_back.first() {
            tracing::error!(
                shards = set_back.len(),
                first = %shard,
                "metadata knows later epochs than the coordination service, which was set back: writes to these shards are refused"
            );
        }
    }

    /// Shards whose stored state is older than metadata know.
    pub(super) fn set_back(&self) -> BTreeSet<ShardId> {
        let is_older =
            |shard: &ShardId, epoch: Epoch| self.stored.get(shard).is_some_and(|known| known.value.epoch < epoch);
        self.ahead.iter().filter(|(shard, epoch)| is_older(shard, **epoch)).map(|(shard, _)| *shard).collect()
    }
}
