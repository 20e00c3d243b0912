//! Copies the shards that this node joins, a few at a time, the most endangered first, and tells the controller of each
//! until the shard map shows that it was heard.
//!
//! What is to be done is read from the shard map alone: a process that starts again goes on by itself, and what is on
//! the disks is not fetched again. A copy ends at once when the map no longer shows its join.
//!
//! **Failures.** A copy that cannot go on now keeps what it knows, gives its place to others, and has its next turn
//! after a pause that grows and behind those that did not fail: what keeps one shard from being copied (a member that
//! cannot be reached, one that is waited for) must not keep all of them.
//!
//! Replicas of this node whose data is gone are looked for by [`losses`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::ShardId;
use holdfast_protocol::cluster::{Epoch, ShardState};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;

use super::copy_shard::{CopyError, ShardCopy};
use super::{Backoff, Context, CopyPhase, CopyProgress};
use crate::domain::placement::danger::endangered;
use crate::flow::panics::caught;
use crate::ports::coordination::ShardMap;
use crate::ports::peers::ShardReport;

mod losses;

/// The longest time between two reports of the same.
const REPORT_PAUSE_MAX: Duration = Duration::from_secs(2);

/// A join, over all its attempts.
struct Join {
    shard: ShardId,
    since: Epoch,
    copy: ShardCopy,
    backoff: Backoff,
}

impl Join {
    fn new(context: &Context, shard: ShardId, since: Epoch) -> Self {
        tracing::info!(%shard, %since, "join begins");
        Self { shard, since, copy: ShardCopy::new(context.clone(), shard, since), backoff: context.backoff() }
    }
}

/// A join whose last attempt failed, and when the next one is due.
struct Paused {
    join: Box<Join>,
    due: Instant,
}

/// What became of a task.
type Ended = Result<Option<Paused>, JoinError>;

/// Runs until it cannot go on.
pub async fn run(context: Context) -> String {
    let mut membership = context.shared.membership.subscribe();
    let mut shards = context.parts.view.shards();
    let mut alive = context.parts.view.membership();
    let mut rebuild = Rebuild::new(context.clone());
    context.shared.rebuild.lock().copies.clear();
    if membership.wait_for(|m| m.registered).await.is_err() {
        return "the node is gone".into();
    }
    rebuild.look_for_losses();
    let mut ended: Option<Ended> = None;
    loop {
        while let Some(task) = ended.take().or_else(|| rebuild.tasks.try_join_next()) {
            if !rebuild.take(task) {
                return "a copy panicked".into();
            }
        }
        let map = shards.borrow_and_update().clone();
        alive.mark_unchanged();
        let joins = joins(&context, &map);
        rebuild.end_others(&joins, &map);
        show_waiting(&context, &joins);
        // One moment for both: what falls due between two would neither have its turn nor be waited for. One that is
        // due and finds no place is woken by whoever gives up one.
        let (due, next_due) = rebuild.due_at(Instant::now());
        let turns = rebuild.turns(&map, &joins, due);
        rebuild.begin(turns, &joins);
        tokio::select! {
            changed = shards.changed() => if changed.is_err() { return "the shard map is gone".into() },
            changed = alive.changed() => if changed.is_err() { return "the membership is gone".into() },
            () = rebuild.moved_on.notified() => {}
            () = until(next_due) => {}
            Some(task) = rebuild.tasks.join_next(), if !rebuild.tasks.is_empty() => ended = Some(task),
        }
    }
}

/// The joins of this node, each with a task that copies it, or paused.
struct Rebuild {
    context: Context,
    /// Told by a copy that gives its place to another.
    moved_on: Arc<Notify>,
    tasks: JoinSet<Option<Paused>>,
    running: BTreeMap<ShardId, (Epoch, AbortHandle)>,
    paused: BTreeMap<ShardId, Paused>,
}

impl Rebuild {
    fn new(context: Context) -> Self {
        Self {
            context,
            moved_on: Arc::new(Notify::new()),
            tasks: JoinSet::new(),
            running: BTreeMap::new(),
            paused: BTreeMap::new(),
        }
    }

    /// Looks once for replicas whose data is gone.
    fn look_for_losses(&mut self) {
        let looking = losses::report(self.context.clone());
        self.tasks.spawn(async move {
            // Not tried again: it would panic with each start of this loop, and comparisons find what it looks for.
            if let Err(panic) = caught(looking).await {
                tracing::error!(panic, "the look for replicas whose data is gone panicked");
            }
            None
        });
    }

    /// Takes back a join whose attempt failed; `false` when the task panicked.
    fn take(&mut self, task: Ended) -> bool {
        match task {
            // The map may show another join by now.
            Ok(Some(failed)) if self.running.get(&failed.join.shard).is_some_and(|r| r.0 == failed.join.since) => {
                self.running.remove(&failed.join.shard);
                self.paused.insert(failed.join.shard, failed);
            }
            Err(error) if error.is_panic() => return false,
            _ => {}
        }
        true
    }

    /// Ends what is not among the joins that the map shows.
    fn end_others(&mut self, joins: &BTreeMap<ShardId, Epoch>, map: &ShardMap) {
        let context = &self.context;
        self.running.retain(|shard, (since, task)| {
            let stays = joins.get(shard) == Some(since);
            if !stays {
                task.abort();
                end(context, *shard, *since, map);
            }
            stays
        });
        self.paused.retain(|shard, Paused { join, .. }| {
            let stays = joins.get(shard) == Some(&join.since);
            if !stays {
                end(context, *shard, join.since, map);
            }
            stays
        });
    }

    /// Of joins that failed those that are due at `now`, and when the first of the others is due.
    fn due_at(&self, now: Instant) -> (Vec<ShardId>, Option<Instant>) {
        due_at(self.paused.iter().map(|(shard, paused)| (*shard, paused.due)), now)
    }

    /// Shards to be joined in the order of their turns: those whose last attempt did not fail, the most endangered
    /// first; then the others that are due.
    fn turns(&self, map: &ShardMap, joins: &BTreeMap<ShardId, Epoch>, due: Vec<ShardId>) -> Vec<ShardId> {
        let mut turns = order(&self.context, map, joins);
        turns.retain(|shard| !self.paused.contains_key(shard));
        turns.extend(due);
        turns
    }

    /// Begins attempts while there are places for them.
    fn begin(&mut self, turns: Vec<ShardId>, joins: &BTreeMap<ShardId, Epoch>) {
        for shard in turns {
            if copying(&self.context) >= self.context.parts.settings.copies_max {
                break;
            }
            let Some(&since) = joins.get(&shard).filter(|_| !self.running.contains_key(&shard)) else { continue };
            let join = self.paused.remove(&shard).map(|paused| paused.join);
            let join = join.unwrap_or_else(|| Box::new(Join::new(&self.context, shard, since)));
            set_phase(&self.context, shard, CopyPhase::Copying);
            let task = self.tasks.spawn(attempt(self.context.clone(), join, self.moved_on.clone()));
            self.running.insert(shard, (since, task));
        }
    }
}

/// For ever, if nothing is due.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn joins(context: &Context, map: &ShardMap) -> BTreeMap<ShardId, Epoch> {
    let me = context.me();
    let mine = |state: &ShardState| state.joining.iter().find(|joiner| joiner.node == me).map(|joiner| joiner.since);
    map.shards.iter().filter_map(|(shard, state)| Some((*shard, mine(&state.value)?))).collect()
}

/// Of joins that failed those that are due at `now`, the one that waits longest first; and when the first of the others
/// is due.
fn due_at(paused: impl Iterator<Item = (ShardId, Instant)>, now: Instant) -> (Vec<ShardId>, Option<Instant>) {
    let (mut due, later): (Vec<_>, Vec<_>) = paused.partition(|(_, due)| *due <= now);
    due.sort_by_key(|(_, due)| *due);
    let next = later.into_iter().map(|(_, due)| due).min();
    (due.into_iter().map(|(shard, _)| shard).collect(), next)
}

/// Shards to be joined, the most endangered first.
fn order(context: &Context, map: &ShardMap, joins: &BTreeMap<ShardId, Epoch>) -> Vec<ShardId> {
    let states: Vec<_> = joins.keys().filter_map(|s| Some((*s, &map.shards.get(s)?.value))).collect();
    let absent = states.iter().flat_map(|(_, state)| &state.members).copied();
    let absent = absent.filter(|node| !context.parts.view.is_alive(*node)).collect();
    // Zones are the controller's to look at: it chose what joins now.
    let mut order: Vec<_> =
        endangered(states.iter().copied(), &absent, &BTreeMap::new()).into_iter().map(|d| d.shard).collect();
    order.extend(joins.keys().filter(|shard| !order.contains(shard)).copied().collect::<Vec<_>>());
    order
}

fn show_waiting(context: &Context, joins: &BTreeMap<ShardId, Epoch>) {
    let mut status = context.shared.rebuild.lock();
    status.copies.retain(|shard, copy| joins.get(shard) == Some(&copy.since));
    for (shard, since) in joins {
        status.copies.entry(*shard).or_insert_with(|| CopyProgress::new(*since));
    }
}

fn copying(context: &Context) -> usize {
    let status = context.shared.rebuild.lock();
    status.copies.values().filter(|copy| copy.phase == CopyPhase::Copying).count()
}

fn set_phase(context: &Context, shard: ShardId, phase: CopyPhase) {
    if let Some(copy) = context.shared.rebuild.lock().copies.get_mut(&shard) {
        copy.phase = phase;
    }
}

fn end(context: &Context, shard: ShardId, since: Epoch, map: &ShardMap) {
    let joined = map.shards.get(&shard).is_some_and(|state| state.value.is_member(context.me()));
    tracing::info!(%shard, %since, joined, "join ended");
    context.shared.rebuild.lock().shards_joined += u64::from(joined);
}

/// Copies a shard, then tells the controller until it is aborted. Gives the join back when something failed that may
/// pass.
async fn attempt(context: Context, mut join: Box<Join>, moved_on: Arc<Notify>) -> Option<Paused> {
    let (shard, since) = (join.shard, join.since);
    let copied = caught(join.copy.run()).await;
    let copied = copied.unwrap_or_else(|panic| {
        tracing::error!(%shard, panic, "the copy of a shard panicked, it is begun anew");
        join.copy = ShardCopy::new(context.clone(), shard, since);
        Err(CopyError::Retry("the program panicked".into()))
    });
    let (phase, report) = match copied {
        Ok(()) => (CopyPhase::Reporting, ShardReport::Verified { shard, since }),
        Err(CopyError::Over) => return None,
        Err(CopyError::GivenUp(reason)) => {
            note(&context, shard, &reason);
            (CopyPhase::Failed, ShardReport::JoinFailed { shard, since, reason })
        }
        Err(CopyError::Retry(reason)) => {
            tracing::debug!(%shard, reason, "a copy is tried again later");
            note(&context, shard, &reason);
            set_phase(&context, shard, CopyPhase::Waiting);
            let due = Instant::now() + join.backoff.pause();
            return Some(Paused { join, due });
        }
    };
    set_phase(&context, shard, phase);
    // Another shard may take its turn.
    moved_on.notify_one();
    let mut backoff = context.backoff();
    loop {
        if let Err(error) = context.report(report.clone()).await {
            tracing::debug!(%shard, %error, "the controller does not hear");
        }
        tokio::time::sleep(backoff.pause().min(REPORT_PAUSE_MAX)).await;
    }
}

fn note(context: &Context, shard: ShardId, reason: &str) {
    let mut status = context.shared.rebuild.lock();
    status.last_error = Some(format!("shard {shard}: {reason}"));
    if let Some(copy) = status.copies.get_mut(&shard) {
        copy.last_error = Some(reason.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_join_that_failed_has_its_turn_or_is_waited_for_whenever_it_falls_due() {
        let now = Instant::now();
        let pause = Duration::from_nanos(1);
        let paused = [(1, now + pause), (2, now), (3, now + 2 * pause), (4, now - pause)];
        let paused = || paused.iter().map(|(shard, due)| (ShardId(*shard), *due));
        assert_eq!(due_at(paused(), now), (vec![ShardId(4), ShardId(2)], Some(now + pause)));
        assert_eq!(due_at(paused(), now + 2 * pause).1, None, "all have their turn");
        assert_eq!(due_at(std::iter::empty(), now), (vec![], None));
    }
}
