//! Compares the replicas of each shard, and queues a repair for every chunk that metadata knows and a member lacks.
//!
//! A shard is compared by its first live member: at the start, after every change of its epoch, when a member comes
//! back, when an operator asks, and once within a period. A member that comes back may have other disks than it left
//! with, so what was proven before says nothing any more.
//!
//! Digests are compared first. Where they differ, the members' lists are, after a pause in which writes under way
//! arrive everywhere; a chunk that still is missing somewhere, or has another size than on most members, counts if
//! metadata knows it. Others belong to writes that are not committed, or are orphans. A shard with a difference is
//! compared again until there is none.
//!
//! Nothing is proven while a member has chunks on a disk that failed and nowhere else ([`super::stranded`]): they still
//! are in its lists.
//!
//! Comparing sees what is there and how large it is, from indexes in memory. That the bytes are right is the scrub's to
//! find.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt as _, stream};
use holdfast_protocol::cluster::ShardState;
use holdfast_protocol::{ChunkId, NodeId, ShardId};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{ComparisonReport, Context, transfer};
use crate::flow::self_report::Proven;
use crate::ports::chunks::ChunkInfo;
use crate::ports::coordination::{Membership, ShardMap};
use crate::ports::peers::{Fence, IDS_MAX, LIST_MAX, PeerError, ShardDigest};

mod lists;

use lists::{Lists, Suspect};

/// Shards that are compared at once; most of their time is spent waiting.
const SHARDS_AT_ONCE: usize = 8;
/// A shard with differences, or that could not be compared, is due again after this many pauses of
/// [`super::ClusterSettings::comparison_settle`].
const AGAIN_PAUSES: u32 = 3;

/// The last comparison of a shard.
struct Compared {
    /// When it ended.
    at: Instant,
    /// The members that were alive when it began.
    alive: Alive,
}

/// The members that are alive, each with its incarnation and how many of its disks failed and are not rebuilt.
type Alive = BTreeMap<NodeId, (u64, u32)>;

/// The last comparison of each shard.
type Times = BTreeMap<ShardId, Compared>;

/// Runs until it cannot go on.
pub async fn run(context: Context) -> String {
    let mut membership = context.shared.membership.subscribe();
    let mut shards = context.parts.view.shards();
    let (mut alive, mut arrivals) = (context.parts.view.membership(), context.parts.view.membership());
    let mut wanted = context.shared.comparison_wanted.subscribe();
    if membership.wait_for(|m| m.registered).await.is_err() {
        return "the node is gone".into();
    }
    let mut own = OwnShards { context: &context, states: BTreeMap::new(), times: Times::new(), lives: None };
    // Nobody looked whether members came back since then.
    context.shared.comparison.lock().shards.clear();
    // What an operator asked for before this loop was started again is still to be done.
    let mut served = if context.shared.comparison.lock().running { 0 } else { *wanted.borrow() };
    loop {
        let asked = *wanted.borrow_and_update();
        alive.mark_unchanged();
        let map = shards.borrow_and_update().clone();
        let anew = asked > served;
        let due = own.look(&map, anew);
        let worked = !due.is_empty();
        if !own.compare_all(due, &alive, &mut arrivals).await {
            return "the membership is gone".into();
        }
        if anew {
            served = asked;
            let again = *wanted.borrow() > served;
            context.shared.comparison.lock().running = again;
        }
        // What is due again after a few of these pauses is not to wait for one that is as long as all of them.
        let pause = if worked || own.is_unproven() {
            context.parts.settings.comparison_settle
        } else {
            context.parts.settings.comparison_settle * AGAIN_PAUSES
        };
        tokio::select! {
            changed = shards.changed() => if changed.is_err() { return "the shard map is gone".into() },
            changed = alive.changed() => if changed.is_err() { return "the membership is gone".into() },
            changed = wanted.changed() => if changed.is_err() { return "the node is gone".into() },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The shards of which this node is the first live member.
struct OwnShards<'a> {
    context: &'a Context,
    states: BTreeMap<ShardId, ShardState>,
    times: Times,
    /// The lives of nodes for which what was proven was last looked at.
    lives: Option<u64>,
}

impl OwnShards<'_> {
    /// Takes over the shard map; gives the shards that are to be compared: all of them, when they are wanted `anew`.
    fn look(&mut self, map: &ShardMap, anew: bool) -> Vec<(ShardId, ShardState)> {
        let context = self.context;
        self.states = own_states(context, map);
        self.doubt();
        // What is known of the last comparisons stays: by that it is noticed who comes back during the next.
        self.times.retain(|shard, _| self.states.contains_key(shard));
        context.shared.comparison.lock().shards.retain(|shard, _| self.states.contains_key(shard));
        self.publish();
        let due: Vec<(ShardId, ShardState)> = self
            .states
            .iter()
            .filter(|(shard, state)| anew || is_due(context, **shard, state, &self.times))
            .map(|(shard, state)| (*shard, state.clone()))
            .collect();
        context.shared.comparison.lock().waiting = due.len() as u64;
        due
    }

    /// Compares shards, some at once; `false` when nobody tells any more who is here.
    async fn compare_all(
        &mut self,
        due: Vec<(ShardId, ShardState)>,
        alive: &watch::Receiver<Arc<Membership>>,
        arrivals: &mut watch::Receiver<Arc<Membership>>,
    ) -> bool {
        let context = self.context;
        let comparisons = stream::iter(due).map(|(shard, state)| async move {
            // Before it: who comes back meanwhile may be compared as it was before.
            let present = alive_of(context, &state);
            let report = compare(context, shard, &state, &present).await;
            (shard, present, report)
        });
        let mut comparisons = comparisons.buffer_unordered(SHARDS_AT_ONCE);
        loop {
            let ended = tokio::select! {
                ended = comparisons.next() => ended,
                // Comparisons of large shards take long, and who comes back meanwhile is counted on by nobody before
                // the next.
                changed = arrivals.changed() => {
                    if changed.is_err() {
                        return false;
                    }
                    self.doubt();
                    self.publish();
                    continue;
                }
            };
            let Some((shard, present, report)) = ended else { return true };
            self.times.insert(shard, Compared { at: Instant::now(), alive: present });
            let mut status = context.shared.comparison.lock();
            status.waiting = status.waiting.saturating_sub(1);
            if let Some(error) = &report.error {
                status.last_error = Some(format!("shard {shard}: {error}"));
            }
            status.shards.insert(shard, report);
            drop(status);
            if alive.has_changed().unwrap_or(true) {
                self.doubt();
            }
            self.publish();
        }
    }

    /// Takes back what was proven of shards of which a member came back, or lost a disk, since.
    fn doubt(&mut self) {
        // Before it: of whoever comes back meanwhile nothing is taken back yet.
        self.lives = Some(self.context.parts.view.membership().borrow().lives());
        let mut status = self.context.shared.comparison.lock();
        status.shards.retain(|shard, report| {
            let outdated = || {
                let state_and_time = self.states.get(shard).zip(self.times.get(shard));
                state_and_time.is_some_and(|(state, compared)| is_outdated(compared, &alive_of(self.context, state)))
            };
            !report.proves(report.epoch) || !outdated()
        });
    }

    /// Tells every node which shards are proven to be equal.
    fn publish(&self) {
        let status = self.context.shared.comparison.lock();
        let proven = status.shards.iter().filter(|(_, report)| report.proves(report.epoch));
        let shards = proven.map(|(shard, report)| (*shard, report.epoch)).collect();
        self.context.parts.self_report.set_proven(Proven { shards, lives: self.lives });
    }

    /// Whether one of them is not proven to hold the same on its members of now.
    fn is_unproven(&self) -> bool {
        let status = self.context.shared.comparison.lock();
        self.states
            .iter()
            .any(|(shard, state)| status.shards.get(shard).is_none_or(|report| !report.proves(state.epoch)))
    }
}

/// Shards of which this node is the first live member.
fn own_states(context: &Context, map: &ShardMap) -> BTreeMap<ShardId, ShardState> {
    let view = &context.parts.view;
    let first = |state: &ShardState| state.members.iter().copied().find(|member| view.is_alive(*member));
    let own = map.shards.iter().filter(|(_, state)| first(&state.value) == Some(context.me()));
    own.map(|(shard, state)| (*shard, state.value.clone())).collect()
}

fn alive_of(context: &Context, state: &ShardState) -> Alive {
    let view = &context.parts.view;
    let membership = view.membership().borrow().clone();
    let found = |member: &NodeId| {
        let node = membership.nodes.get(member);
        node.map_or((0, 0), |node| (node.incarnation, node.announcement.disks_unrebuilt))
    };
    let alive = state.members.iter().filter(|member| view.is_alive(**member));
    alive.map(|member| (*member, found(member))).collect()
}

/// Whether a member that is here now was not here, or not in this life or with these disks, when the shard was
/// compared.
fn is_outdated(compared: &Compared, alive: &Alive) -> bool {
    alive.iter().any(|(member, found)| compared.alive.get(member) != Some(found))
}

fn is_short(alive: &Alive) -> bool {
    alive.values().any(|(_, unrebuilt)| *unrebuilt > 0)
}

fn is_due(context: &Context, shard: ShardId, state: &ShardState, times: &Times) -> bool {
    let settings = &context.parts.settings;
    let Some(compared) = times.get(&shard) else { return true };
    let (elapsed, alive) = (compared.at.elapsed(), alive_of(context, state));
    let status = context.shared.comparison.lock();
    match status.shards.get(&shard) {
        // It was taken back.
        None => true,
        // The end of the join is a change of its own.
        Some(report) if report.epoch != state.epoch => {
            state.joining.is_empty() || elapsed >= settings.comparison_settle * AGAIN_PAUSES
        }
        Some(report) if report.proves(state.epoch) => elapsed >= settings.comparison_period,
        // A member that is away, or has a disk's content to rebuild, is waited for.
        Some(report)
            if report.differences == 0
                && (alive.len() < state.members.len() || is_short(&alive))
                && alive == compared.alive =>
        {
            elapsed >= settings.comparison_period
        }
        _ => elapsed >= settings.comparison_settle * AGAIN_PAUSES,
    }
}

async fn compare(context: &Context, shard: ShardId, state: &ShardState, alive: &Alive) -> ComparisonReport {
    let outcome = Comparison { context, fence: Fence { shard, epoch: state.epoch }, state }.run().await;
    let (complete, differences, error) = match outcome {
        Ok((true, differences)) if is_short(alive) => {
            (false, differences, Some("a disk of a member failed, and what it held is not rebuilt".to_owned()))
        }
        Ok((complete, differences)) => {
            (complete, differences, (!complete).then(|| "not every member could be asked".to_owned()))
        }
        Err(error) => (false, 0, Some(error)),
    };
    if differences > 0 {
        tracing::warn!(%shard, differences, "replicas differ, repairs are queued");
    }
    metrics::counter!("holdfast_comparisons_total").increment(1);
    metrics::counter!("holdfast_comparison_differences_total").increment(differences);
    ComparisonReport { epoch: state.epoch, at_ms: context.parts.clock.now_ms(), complete, differences, error }
}

struct Comparison<'a> {
    context: &'a Context,
    fence: Fence,
    state: &'a ShardState,
}

impl Comparison<'_> {
    /// Whether every member was asked, and how much is missing.
    async fn run(&self) -> Result<(bool, u64), String> {
        let (complete, equal) = self.digests().await?;
        if equal {
            return Ok((complete, 0));
        }
        let lists = self.lists().await?;
        let complete = lists.members.len() == self.state.members.len();
        let (suspects, undecided) = (lists.suspects(), lists.undecided());
        drop(lists);
        if suspects.is_empty() && undecided.is_empty() {
            return Ok((complete, 0));
        }
        tokio::time::sleep(self.context.parts.settings.comparison_settle).await;
        let mut differences = self.undecided(&undecided).await?;
        for (member, chunks) in suspects {
            differences += self.confirm(member, &chunks).await?;
        }
        Ok((complete, differences))
    }

    /// How many of these chunks metadata knows. Most members have them in no one size, so nobody can say which is
    /// wrong.
    async fn undecided(&self, chunks: &[ChunkId]) -> Result<u64, String> {
        let known = transfer::known(self.context, chunks.iter().copied()).await.map_err(|error| error.to_string())?;
        let known: Vec<&ChunkId> = chunks.iter().filter(|chunk| known.contains(&chunk.content())).collect();
        for chunk in &known {
            tracing::error!(%chunk, shard = %self.fence.shard, "a chunk has different sizes, none of them on most members");
        }
        Ok(known.len() as u64)
    }

    /// Whether every member was asked, and whether all digests are equal.
    async fn digests(&self) -> Result<(bool, bool), String> {
        let mut digests: Vec<ShardDigest> = Vec::new();
        for member in &self.state.members {
            match self.digest(*member).await {
                Ok(digest) => digests.push(digest),
                Err(error @ PeerError::Stale { .. }) => return Err(error.to_string()),
                Err(error) => tracing::debug!(%member, shard = %self.fence.shard, %error, "not compared"),
            }
        }
        let equal = digests.windows(2).all(|pair| pair[0] == pair[1]);
        Ok((digests.len() == self.state.members.len(), equal))
    }

    async fn digest(&self, member: NodeId) -> Result<ShardDigest, PeerError> {
        let parts = &self.context.parts;
        if member == self.context.me() {
            parts.view.admit(self.fence)?;
            return Ok(self.context.digest_here(self.fence.shard).await);
        }
        parts.peers.digest(member, self.fence).await
    }

    async fn lists(&self) -> Result<Lists, String> {
        let mut lists = Lists::default();
        for member in &self.state.members {
            match self.list(*member, &mut lists).await {
                Ok(()) => lists.members.push(*member),
                Err(error @ PeerError::Stale { .. }) => return Err(error.to_string()),
                // Half a list says nothing.
                Err(error) => {
                    tracing::debug!(%member, shard = %self.fence.shard, %error, "not listed");
                    lists.forget_last();
                }
            }
        }
        Ok(lists)
    }

    async fn list(&self, member: NodeId, lists: &mut Lists) -> Result<(), PeerError> {
        let parts = &self.context.parts;
        let Fence { shard, .. } = self.fence;
        let mut after = None;
        loop {
            let page: Vec<ChunkInfo> = if member == self.context.me() {
                parts.view.admit(self.fence)?;
                self.context.list_here(shard, after, LIST_MAX).await
            } else {
                parts.peers.list(member, self.fence, after, LIST_MAX).await?
            };
            page.iter().for_each(|info| lists.add(*info));
            if page.len() < LIST_MAX {
                return Ok(());
            }
            after = page.last().map(|info| info.id);
        }
    }

    /// Queues repairs of what `member` still lacks, or has in another size, and metadata knows; returns how many.
    async fn confirm(&self, member: NodeId, suspects: &[Suspect]) -> Result<u64, String> {
        let parts = &self.context.parts;
        let mut missing = BTreeSet::new();
        for batch in suspects.chunks(IDS_MAX) {
            let ids: Vec<ChunkId> = batch.iter().map(|suspect| suspect.chunk).collect();
            let found: Vec<Option<ChunkInfo>> = if member == self.context.me() {
                ids.iter().map(|chunk| parts.chunks.stat(*chunk)).collect()
            } else {
                parts.peers.probe(member, &ids).await.map_err(|error| error.to_string())?
            };
            let wrong = batch.iter().zip(&found).filter(|(suspect, found)| suspect.is_wrong(**found));
            missing.extend(wrong.map(|(suspect, _)| suspect.chunk));
        }
        let known = transfer::known(self.context, missing.iter().copied()).await.map_err(|error| error.to_string())?;
        let rows: Vec<(ChunkId, NodeId)> =
            missing.into_iter().filter(|chunk| known.contains(&chunk.content())).map(|chunk| (chunk, member)).collect();
        for batch in rows.chunks(transfer::METADATA_BATCH) {
            let queued = parts.metadata.queue_repairs(batch, parts.clock.now_ms()).await;
            queued.map_err(|error| format!("queue repairs: {error}"))?;
        }
        self.context.shared.comparison.lock().repairs_queued += rows.len() as u64;
        if member == self.context.me() && !rows.is_empty() {
            self.context.shared.repairs_queued.notify_one();
        }
        Ok(rows.len() as u64)
    }
}
