//! Copies a shard that this node joins.
//!
//! A round lists the shard on every live member, at the epoch of the join or later, and copies what is not here. The
//! list raises the member's epoch before it is made, so whatever that member acknowledged under an older epoch is in
//! it, and what comes later is written to this node too. So **one round without a failure has everything**, provided
//! that every write under an older epoch was acknowledged by a member that was listed:
//!
//! * a member that is alive and cannot be reached from here may go on acknowledging. Without it, enough others must be
//!   listed that no write quorum is without any of them, also none of a time when the shard had more members;
//! * a member that is not alive is fenced and acknowledges nothing, but it may have what the others missed. It is
//!   waited for as long as a node may be away before its replicas are rebuilt; after that the copy makes do with what
//!   is left.
//!
//! A round that finds nothing new ends the copy. Writes under way show at one member a little before they show here, so
//! under load each round may find something; [`ROUNDS_MAX`] clean ones are enough by the argument above. Every chunk
//! was read back and compared when it was written; those that were here before are read from the disk and compared with
//! their checksums before they count. What writes missed here meanwhile waits as repairs of this node: they are done
//! before the copy ends.
//!
//! A chunk that no member has whole, or at which the program falls over, ends no copy: as long as metadata knows it, it
//! becomes a repair of this node, and the shard is not called healthy while repairs wait.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use holdfast_protocol::cluster::{Epoch, ShardState, write_quorum};
use holdfast_protocol::{ChunkId, NodeId, ShardId};
use tokio::time::Instant;

use super::transfer::{self, TransferError};
use super::{Context, CopyProgress, repair};
use crate::ports::chunks::ChunkInfo;
use crate::ports::peers::{Fence, LIST_MAX, PeerError};
use crate::ports::{ChunkError, MetadataError};

/// Rounds without a failure after which the copy ends though the last one found something.
const ROUNDS_MAX: u32 = 3;
/// Chunks of one shard that are copied at once. Together with the other shards' they share one budget.
const CHUNKS_AT_ONCE: usize = 8;
/// Rounds in which a chunk may be found whole nowhere before it becomes a repair.
const ATTEMPTS_MAX: u32 = 3;

/// Repairs in one page.
const REPAIRS_PAGE: u32 = 256;
/// How long a deletion of leftovers of the shard is waited for, with a place for copies held: a disk may hang in it.
const LEFTOVERS_PATIENCE: Duration = Duration::from_secs(60);

/// Why a copy stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    /// The join is over.
    #[error("the join is over")]
    Over,
    /// Something that passes: go on a moment later. What was copied stays.
    #[error("{0}")]
    Retry(String),
    /// This node takes no more chunks.
    #[error("{0}")]
    GivenUp(String),
}

impl From<MetadataError> for CopyError {
    fn from(error: MetadataError) -> Self {
        Self::Retry(format!("metadata: {error}"))
    }
}

/// The copy of one shard, from its beginning to its end over all its attempts.
pub(super) struct ShardCopy {
    context: Context,
    shard: ShardId,
    since: Epoch,
    /// How often a chunk was found whole nowhere, or could not be dealt with.
    attempts: BTreeMap<ChunkId, u32>,
    /// Chunks that were found whole here or written by this copy: those are not read again in the next round. As many
    /// as the shard has.
    proven: HashSet<ChunkId>,
    /// Since when too few members are alive to be listed, without a break.
    short_since: Option<Instant>,
}

/// What a round did.
#[derive(Default)]
struct Round {
    copied: u64,
    failure: Option<CopyError>,
}

impl ShardCopy {
    pub(super) fn new(context: Context, shard: ShardId, since: Epoch) -> Self {
        let (attempts, proven) = (BTreeMap::new(), HashSet::new());
        Self { context, shard, since, attempts, proven, short_since: None }
    }

    /// Rounds until everything is here. Dropped anywhere, it leaves whole chunks only.
    pub(super) async fn run(&mut self) -> Result<(), CopyError> {
        // No leftover of this shard is deleted meanwhile.
        let context = self.context.clone();
        let locks = &context.shared.shard_locks;
        let Some(_lock) = locks.lock_within(self.shard, LEFTOVERS_PATIENCE).await else {
            return Err(CopyError::Retry("chunks of the shard are still being deleted here".into()));
        };
        for clean in 1.. {
            let round = self.round().await?;
            if let Some(failure) = round.failure {
                return Err(failure);
            }
            self.progress(|p| p.rounds += 1);
            if round.copied == 0 || clean >= ROUNDS_MAX {
                break;
            }
        }
        self.own_repairs().await
    }

    fn progress(&self, change: impl FnOnce(&mut CopyProgress)) {
        let mut status = self.context.shared.rebuild.lock();
        if let Some(progress) = status.copies.get_mut(&self.shard).filter(|p| p.since == self.since) {
            change(progress);
        }
    }

    fn state(&self) -> Result<ShardState, CopyError> {
        let (me, shards) = (self.context.me(), self.context.parts.view.shards());
        let state = shards.borrow().shards.get(&self.shard).map(|s| s.value.clone());
        state.filter(|s| s.joining.iter().any(|j| j.node == me && j.since == self.since)).ok_or(CopyError::Over)
    }

    async fn round(&mut self) -> Result<Round, CopyError> {
        let state = self.state()?;
        let view = &self.context.parts.view;
        let alive: Vec<NodeId> = state.members.iter().copied().filter(|m| view.is_alive(*m)).collect();
        if alive.is_empty() {
            return Err(CopyError::Retry("no member of the shard is alive".into()));
        }
        let fence = Fence { shard: self.shard, epoch: state.epoch };
        self.measure(fence, &alive).await;
        let mut round = Round::default();
        let (mut listed, mut unreachable) = (0, None);
        for member in &alive {
            match self.copy_from(*member, fence, &alive, &mut round).await {
                Ok(()) => listed += 1,
                Err(error @ PeerError::Stale { .. }) => {
                    return Err(CopyError::Retry(format!("the shard map here is late: {error}")));
                }
                Err(error) => unreachable = Some(error.to_string()),
            }
        }
        let covering = covering(&state);
        if listed >= covering {
            self.short_since = None;
            return Ok(round);
        }
        let retry = |detail: String| Err(CopyError::Retry(format!("list the shard on its members: {detail}")));
        if alive.len() >= covering {
            // A member that is alive and cannot be reached is waited for without end. This time does not count as one
            // in which members were away.
            self.short_since = None;
            return retry(unreachable.unwrap_or_default());
        }
        let absent = state.members.len() - alive.len();
        let since = *self.short_since.get_or_insert_with(Instant::now);
        if let Some(detail) = unreachable {
            return retry(detail);
        }
        if since.elapsed() < self.context.parts.settings.rebuild_delay {
            return Err(CopyError::Retry(format!(
                "{listed} members could be listed, {covering} cover every write: {absent} that are absent are waited for"
            )));
        }
        tracing::warn!(shard = %self.shard, listed, covering, absent, "a shard is copied from what is left of its members");
        Ok(round)
    }

    /// Carries out the repairs of this shard that wait for this node: writes that it missed since it was listed.
    /// Repairs may be paused, joins are not.
    async fn own_repairs(&mut self) -> Result<(), CopyError> {
        let context = self.context.clone();
        let (metadata, view) = (&context.parts.metadata, &context.parts.view);
        let mut after = 0;
        loop {
            let rows = metadata.repairs(context.me(), after, REPAIRS_PAGE).await?;
            let last = rows.len() < REPAIRS_PAGE as usize;
            after = rows.last().map_or(after, |row| row.id);
            for row in rows {
                if view.shard_of(&row.chunk) != self.shard {
                    continue;
                }
                match repair::heal(&context, row.chunk).await {
                    Ok(_) => metadata.finish_repairs(&[row]).await?,
                    Err(error) => self.judge(error).await?,
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    /// Finds out how much there is and how much of it is here.
    async fn measure(&self, fence: Fence, alive: &[NodeId]) {
        let mut expected = (0, 0);
        for member in alive {
            if let Ok(digest) = self.context.parts.peers.digest(*member, fence).await {
                expected = expected.max((digest.chunks, digest.bytes));
            }
        }
        let here = self.context.digest_here(self.shard).await;
        self.progress(|p| {
            (p.chunks_expected, p.bytes_expected) = expected;
            (p.chunks_done, p.bytes_done) = (here.chunks, here.bytes);
        });
    }

    /// Copies what `member` has and this node has not.
    async fn copy_from(
        &mut self,
        member: NodeId,
        fence: Fence,
        alive: &[NodeId],
        round: &mut Round,
    ) -> Result<(), PeerError> {
        let mut after = None;
        loop {
            let page = self.context.parts.peers.list(member, fence, after, LIST_MAX).await?;
            after = page.last().map(|info| info.id);
            let last = page.len() < LIST_MAX;
            let missing: Vec<ChunkInfo> = page.into_iter().filter(|info| !self.is_proven(info)).collect();
            let copies = stream::iter(missing).map(|info| {
                let sources = in_turn(info.id, member, alive);
                let context = &self.context;
                async move { (info, transfer::guarded(info.id, copy(context, info, &sources)).await) }
            });
            let mut copies = copies.buffer_unordered(CHUNKS_AT_ONCE);
            let mut failed = Vec::new();
            while let Some((info, result)) = copies.next().await {
                match result {
                    Ok(copied) => {
                        self.proven.insert(info.id);
                        if let Copied::Fetched = copied {
                            round.copied += 1;
                            self.count(u64::from(info.size_bytes));
                        }
                    }
                    Err(error) => failed.push(error),
                }
            }
            drop(copies);
            for error in failed {
                if let Err(error) = self.judge(error).await {
                    // A full disk is the stronger reason.
                    if !matches!(round.failure, Some(CopyError::GivenUp(_))) {
                        round.failure = Some(error);
                    }
                }
            }
            if last || matches!(round.failure, Some(CopyError::GivenUp(_))) {
                return Ok(());
            }
        }
    }

    /// Whether a chunk is here and was compared by this copy.
    fn is_proven(&self, info: &ChunkInfo) -> bool {
        self.proven.contains(&info.id)
            && self.context.parts.chunks.stat(info.id).is_some_and(|here| here.size_bytes == info.size_bytes)
    }

    fn count(&self, bytes: u64) {
        metrics::counter!("holdfast_rebuild_bytes_total").increment(bytes);
        self.context.shared.rebuild.lock().bytes_fetched += bytes;
        self.progress(|p| {
            p.chunks_done += 1;
            p.bytes_done += bytes;
            p.bytes_fetched += bytes;
        });
    }

    /// What a failed copy of a chunk means for the copy of the shard.
    async fn judge(&mut self, error: TransferError) -> Result<(), CopyError> {
        let chunk = match &error {
            TransferError::Unreachable { .. } | TransferError::Busy(_) => {
                return Err(CopyError::Retry(error.to_string()));
            }
            TransferError::Local(ChunkError::NoSpace) => return Err(CopyError::GivenUp(error.to_string())),
            // While a disk works it is about one that does not answer, and may again.
            TransferError::Local(ChunkError::Unavailable(_)) if self.context.parts.chunks.disk_count().working == 0 => {
                return Err(CopyError::GivenUp(error.to_string()));
            }
            TransferError::Local(_) => return Err(CopyError::Retry(error.to_string())),
            TransferError::Gone(chunk)
            | TransferError::Unreadable { chunk, .. }
            | TransferError::Panicked { chunk, .. } => *chunk,
        };
        let context = &self.context;
        if context.parts.metadata.known_contents(&[chunk.content()]).await?.is_empty() {
            return Ok(());
        }
        let attempts = self.attempts.entry(chunk).or_default();
        *attempts += 1;
        if *attempts < ATTEMPTS_MAX {
            return Err(CopyError::Retry(error.to_string()));
        }
        tracing::error!(%chunk, shard = %self.shard, %error, "a chunk cannot be copied, the copy goes on without it");
        context.parts.metadata.queue_repairs(&[(chunk, context.me())], context.parts.clock.now_ms()).await?;
        context.shared.repairs_queued.notify_one();
        Ok(())
    }
}

/// How many members have to be listed, so that every acknowledged write is on one of them at least.
///
/// A member that lost its data is a member no more, but may have been one of the two that acknowledged an older write:
/// a quorum of those that are left says nothing about such a write. So the quorum is taken of as many members as the
/// layout wants, and those that are missing count as ones that were not listed.
fn covering(state: &ShardState) -> usize {
    let members = state.members.len();
    let before = members.max(state.target.len());
    members.min(before + 1 - write_quorum(before as u32) as usize)
}

/// Live members in an order that differs from chunk to chunk, so that they share the reads; the one that listed the
/// chunk has it for certain.
fn in_turn(chunk: ChunkId, member: NodeId, alive: &[NodeId]) -> Vec<NodeId> {
    let start = chunk.0.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    let mut sources: Vec<NodeId> = (0..alive.len()).map(|i| alive[(start + i) % alive.len()]).collect();
    if !sources.contains(&member) {
        sources.push(member);
    }
    sources
}

/// What became of a chunk that a member has.
enum Copied {
    /// It was here, whole.
    Here,
    /// It was fetched.
    Fetched,
}

async fn copy(context: &Context, info: ChunkInfo, sources: &[NodeId]) -> Result<Copied, TransferError> {
    let _permit = context.budget.take(u64::from(info.size_bytes)).await;
    let here = context.parts.chunks.stat(info.id).is_some_and(|here| here.size_bytes == info.size_bytes);
    // The budget covers this read too: what a node was away with may be as much as a whole disk.
    if here && transfer::is_whole(context, info.id).await? {
        return Ok(Copied::Here);
    }
    if here {
        tracing::warn!(chunk = %info.id, "a chunk that was here already is damaged, it is fetched anew");
    }
    let fetched = transfer::fetch(context, info, sources).await?;
    transfer::store(context, fetched).await?;
    Ok(Copied::Fetched)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(members: u8, target: u8) -> ShardState {
        let node = |n| NodeId([n; 8]);
        ShardState {
            members: (1..=members).map(node).collect(),
            ..ShardState::founding((1..=target).map(node).collect())
        }
    }

    #[test]
    fn every_quorum_of_the_members_that_there_were_has_one_that_is_listed() {
        for target in 1..=7_u8 {
            for members in 1..=8_u8 {
                let before = members.max(target);
                let (listed, quorum) = (covering(&state(members, target)) as u32, write_quorum(u32::from(before)));
                // The worst write: on all who are gone, and on those who are not listed.
                let elsewhere = u32::from(before) - listed;
                let all = listed == u32::from(members);
                assert!(all || elsewhere < quorum, "{listed} of {members} members, of {target} that are wanted");
                let one_less = elsewhere + 1;
                assert!(all || one_less >= quorum, "{listed} of {members} are more than it takes");
            }
        }
    }

    #[test]
    fn members_that_lost_a_third_one_are_both_listed() {
        assert_eq!(covering(&state(3, 3)), 2);
        assert_eq!(covering(&state(2, 3)), 2, "the third one may have had a write with either of them");
        assert_eq!(covering(&state(1, 3)), 1);
        assert_eq!(covering(&state(4, 3)), 2);
    }
}
