//! Keeps this node registered as long as its session lives, and starts a new session when one is over.
//!
//! What a session lost is not taken back silently: a node that was away finds out from the shard map what became of it.
//! A registration that is refused for a reason that waiting does not cure (another process has this id, the service is
//! that of another cluster) ends the node.
//!
//! A session alone proves nothing
//! ([`Ownership::require_registration`](crate::ports::coordination::Ownership::require_registration)): in one in which
//! this node is not registered yet the others do not wait for it, and it acknowledges nothing.
//!
//! What was registered may go though the session lives: somebody removed it, or a process that takes this one for dead
//! replaced it. The others do not count on this node then, so it owns nothing until it is registered again.
//!
//! Nor does a node register whose session ended, since it stood still, and whose cluster was taken for stopped by a
//! tool that fills the metadata: it is registered when that has ended.
//!
//! What this node has to say of the shared cache is said here too, since it belongs to the registration. A node that
//! has no cache configured keeps it off for all: its writes would not be marked there.

use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::NodeId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Backoff, ClusterShared, Context, silence};
use crate::ports::coordination::{
    CacheSeen, CacheState, CoordinationError, Membership, NodeAnnouncement, SessionState, filler, filler_before,
    turn_cache_off,
};

/// How long the others may take to see that the cache is off: one that does not answer loses its session by then.
const CACHE_PATIENCE: Duration = Duration::from_secs(30);

/// How often the disks are looked at, from memory: that one failed is told at once, since until then the others take
/// for healthy what is not, and may be stopped.
const DISKS_LOOK: Duration = Duration::from_secs(1);

/// Free space is told again when it differs by this part of the capacity. What one node says every other one reads, so
/// that it must not be said after each write.
const FREE_SPACE_PARTS: u64 = 100;

/// Runs until it cannot go on.
pub async fn run(context: Context) -> String {
    tokio::select! {
        reason = keep(&context) => reason,
        never = silence::watch(&context) => match never {},
    }
}

async fn keep(context: &Context) -> String {
    let mut backoff = context.backoff();
    context.parts.coordination.ownership().require_registration();
    // A loop that was started again does not know whether its registration still stands.
    forget(&context.shared);
    loop {
        let error = match stay(context, &mut backoff).await {
            Ok(()) => return "the coordination service is gone".into(),
            Err(error) => error,
        };
        forget(&context.shared);
        context.shared.membership.send_modify(|m| m.last_error = Some(error.to_string()));
        if is_final(&error) {
            tracing::error!(%error, "this node cannot be part of the cluster");
            context.shared.fail(format!("register in the cluster: {error}"));
            // The assembly ends the process; until then there is nothing to be tried.
            std::future::pending::<()>().await;
        }
        tracing::warn!(%error, "this node is not registered, trying again");
        backoff.wait().await;
    }
}

fn forget(shared: &ClusterShared) {
    shared.membership.send_modify(|m| m.registered = false);
}

/// Whether trying again is of no use.
fn is_final(error: &CoordinationError) -> bool {
    match error {
        CoordinationError::WrongCluster { .. }
        | CoordinationError::NodeIdTaken { .. }
        | CoordinationError::Format { .. }
        | CoordinationError::Denied(_)
        | CoordinationError::Invalid(_)
        | CoordinationError::Corrupt(_) => true,
        CoordinationError::Unavailable(_)
        | CoordinationError::Unknown(_)
        | CoordinationError::Conflict(_)
        | CoordinationError::NotFound(_)
        | CoordinationError::ClusterExists(_)
        | CoordinationError::SessionExpired
        | CoordinationError::LeaseLost(_)
        | CoordinationError::NotSeen { .. } => false,
    }
}

fn announcement(context: &Context) -> NodeAnnouncement {
    let parts = &context.parts;
    let mut announcement = parts.announcement.clone();
    announcement.state = *context.shared.state.borrow();
    if !parts.disks.is_empty() {
        let disks: Vec<_> = parts.disks.iter().map(|disk| disk.status()).collect();
        announcement.capacity_bytes = disks.iter().map(|disk| disk.total_bytes).sum();
        announcement.free_bytes = disks.iter().map(|disk| disk.free_bytes).sum();
    }
    (announcement.disks_working, announcement.disks_unrebuilt) = disks(context);
    announcement
}

/// How many disks work, as far as others may count on them, and how many failed of which something is not on the
/// others.
fn disks(context: &Context) -> (Option<u32>, u32) {
    let disks = context.parts.chunks.disk_count();
    // From when they fail until the walk for what is stranded says that nothing is left there.
    let unrebuilt = if *context.shared.rescued.borrow() == disks { 0 } else { disks.fenced };
    let working = if *context.shared.silent.borrow() { 0 } else { disks.working };
    (Some(working), unrebuilt)
}

/// What is to be told now: the free space as it was `said` before while it differs little.
fn worth_telling(mut now: NodeAnnouncement, said: &NodeAnnouncement) -> NodeAnnouncement {
    if now.free_bytes.abs_diff(said.free_bytes) < now.capacity_bytes.div_ceil(FREE_SPACE_PARTS) {
        now.free_bytes = said.free_bytes;
    }
    now
}

/// Waits until the free space is to be looked at again, or a disk failed since `said`.
async fn news_of_disks(context: &Context, said: &NodeAnnouncement) {
    let due = Instant::now() + context.parts.settings.announce_interval;
    while disks(context) == (said.disks_working, said.disks_unrebuilt) && Instant::now() < due {
        sleep_until(due.min(Instant::now() + DISKS_LOOK)).await;
    }
}

/// Refuses while a tool fills the metadata.
fn stay_away(filler: Option<NodeId>) -> Result<(), CoordinationError> {
    let Some(node) = filler else { return Ok(()) };
    let why = format!("a tool fills the metadata on node {node}, this node stays away until that has ended");
    Err(CoordinationError::Unavailable(why))
}

/// Resolves when this node is seen no more as it was registered; false: nothing will be seen any more. Not to be asked
/// before it was seen.
async fn unseen(membership: &mut watch::Receiver<Arc<Membership>>, me: NodeId, incarnation: u64) -> bool {
    let is_gone = |known: &Arc<Membership>| known.nodes.get(&me).is_none_or(|node| node.incarnation != incarnation);
    membership.wait_for(is_gone).await.is_ok()
}

/// This node is not registered any more. If that is not by the end of its session, it would prove its ownership all the
/// same.
fn not_registered(context: &Context) -> CoordinationError {
    let coordination = &context.parts.coordination;
    if *coordination.session().borrow() == SessionState::Expired {
        return CoordinationError::SessionExpired;
    }
    coordination.ownership().registers_anew();
    CoordinationError::NotFound("registration of this node".into())
}

/// Registers, and says what changes until something fails.
async fn stay(context: &Context, backoff: &mut Backoff) -> Result<(), CoordinationError> {
    let coordination = &context.parts.coordination;
    coordination.renew_session().await?;
    stay_away(filler(&**coordination))?;
    // Before the registration: if the session ends in between, this term is over.
    let term = coordination.ownership().term();
    let mut said = announcement(context);
    let registration = coordination.register(context.parts.cluster, said.clone()).await?;
    // A tool may have looked for nodes after this one looked for tools, and before it could be seen.
    stay_away(filler_before(&**coordination, said.id, registration.incarnation).await?)?;
    let mut cache = CacheDuty::begin(context, term, registration.cache_generation).await?;
    backoff.reset();
    tracing::info!(node = %said.id, incarnation = registration.incarnation, "registered in the cluster");
    context.shared.membership.send_modify(|m| {
        m.registered = true;
        m.incarnation = registration.incarnation;
        m.last_error = None;
    });
    let (me, incarnation) = (said.id, registration.incarnation);
    let mut membership = coordination.membership();
    let mut session = coordination.session();
    let mut state = context.shared.state.subscribe();
    let mut rescued = context.shared.rescued.subscribe();
    let mut silent = context.shared.silent.subscribe();
    loop {
        if *session.borrow_and_update() == SessionState::Expired {
            return Err(CoordinationError::SessionExpired);
        }
        state.mark_unchanged();
        rescued.mark_unchanged();
        silent.mark_unchanged();
        match tell(context, &mut cache, &mut said).await {
            Ok(()) => {
                backoff.reset();
                context.shared.membership.send_if_modified(|m| m.last_error.take().is_some());
            }
            // The registration stands as long as the session, and the next try finds out what became of this one.
            Err(error @ (CoordinationError::Unavailable(_) | CoordinationError::Unknown(_))) => {
                tracing::warn!(%error, "what this node has to say does not arrive, trying again");
                context.shared.membership.send_modify(|m| m.last_error = Some(error.to_string()));
                tokio::select! {
                    changed = session.changed() => if changed.is_err() { return Ok(()) },
                    gone = unseen(&mut membership, me, incarnation) => {
                        return if gone { Err(not_registered(context)) } else { Ok(()) };
                    }
                    () = backoff.wait() => {}
                }
                continue;
            }
            Err(error) => {
                if matches!(error, CoordinationError::NotFound(_)) {
                    // The registration is gone, and that was found out here before it was seen. Until it is made anew
                    // nobody counts on this node, though its session lives.
                    coordination.ownership().registers_anew();
                }
                return Err(error);
            }
        }
        tokio::select! {
            changed = session.changed() => if changed.is_err() { return Ok(()) },
            gone = unseen(&mut membership, me, incarnation) => {
                return if gone { Err(not_registered(context)) } else { Ok(()) };
            }
            changed = cache.changed() => if !changed { return Ok(()) },
            changed = state.changed() => if changed.is_err() { return Ok(()) },
            changed = rescued.changed() => if changed.is_err() { return Ok(()) },
            changed = silent.changed() => if changed.is_err() { return Ok(()) },
            () = news_of_disks(context, &said) => {}
        }
    }
}

/// Tells the others what is new.
async fn tell(context: &Context, cache: &mut CacheDuty, said: &mut NodeAnnouncement) -> Result<(), CoordinationError> {
    cache.step(context).await?;
    let now = worth_telling(announcement(context), said);
    if now != *said {
        context.parts.coordination.announce(now.clone()).await?;
        *said = now;
    }
    Ok(())
}

/// What this node owes to the others about the shared cache.
struct CacheDuty {
    said: CacheSeen,
    source: Source,
}

enum Source {
    /// What uses the cache here says what to tell.
    Follower(watch::Receiver<CacheSeen>),
    /// Nothing here marks its writes in a cache, so nobody may read one.
    Refusal(watch::Receiver<CacheState>),
}

impl CacheDuty {
    /// The node is registered and counts as having seen `generation`. On return the cache is off if it has to be, and
    /// every live node knows.
    async fn begin(context: &Context, term: u64, generation: u64) -> Result<Self, CoordinationError> {
        let said = CacheSeen { generation, ..CacheSeen::default() };
        let Some(follower) = &context.parts.cache else {
            let state = context.parts.coordination.watch_cache_state();
            let mut duty = Self { said, source: Source::Refusal(state) };
            let off = duty.refuse(context).await?;
            context.parts.coordination.cache_generation_seen(off, CACHE_PATIENCE).await?;
            // Not before: while somebody reads the cache, a write here that marks nothing would be hidden by it.
            context.parts.coordination.ownership().registered(term);
            return Ok(duty);
        };
        // First, since what follows counts on it. Nobody reads or marks the cache here before it stands.
        context.parts.coordination.ownership().registered(term);
        follower.registered(term, generation);
        Ok(Self { said, source: Source::Follower(follower.seen()) })
    }

    /// Tells the others what is new.
    async fn step(&mut self, context: &Context) -> Result<(), CoordinationError> {
        match &mut self.source {
            Source::Follower(seen) => {
                let mut seen = seen.borrow_and_update().clone();
                seen.generation = seen.generation.max(self.said.generation);
                self.say(context, seen).await
            }
            Source::Refusal(state) => {
                let state = state.borrow_and_update().clone();
                if state.generation > self.said.generation { self.refuse(context).await.map(drop) } else { Ok(()) }
            }
        }
    }

    /// Sees to it that the cache is off, and acknowledges that; gives back since which generation.
    async fn refuse(&mut self, context: &Context) -> Result<u64, CoordinationError> {
        let (coordination, me) = (&*context.parts.coordination, context.me());
        let reason = "a node has no cache configured";
        let off = turn_cache_off(coordination, Some(me), None, reason, |state| state.failures).await?;
        let problem = Some("no cache is configured".to_owned());
        let seen = CacheSeen { generation: off, server: None, problem };
        self.say(context, seen).await?;
        Ok(off)
    }

    async fn say(&mut self, context: &Context, seen: CacheSeen) -> Result<(), CoordinationError> {
        if seen != self.said {
            context.parts.coordination.acknowledge_cache(&seen).await?;
            self.said = seen;
        }
        Ok(())
    }

    /// Waits for something new; false: there will be nothing any more.
    async fn changed(&mut self) -> bool {
        match &mut self.source {
            Source::Follower(seen) => seen.changed().await.is_ok(),
            Source::Refusal(state) => state.changed().await.is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::NodeId;

    use super::*;
    use crate::ports::coordination::{NodeAddresses, NodeState};

    #[test]
    fn free_space_is_told_once_it_moved_by_a_hundredth_and_anything_else_at_once() {
        let address = || "node:1".to_owned();
        let said = NodeAnnouncement {
            id: NodeId::from(1),
            addresses: NodeAddresses { peer: address(), s3: address(), admin: address() },
            zone: String::new(),
            capacity_bytes: 10_000,
            free_bytes: 5_000,
            version: String::new(),
            state: NodeState::Ready,
            publishes: false,
            disks_working: Some(2),
            disks_unrebuilt: 0,
        };
        let with_free = |free_bytes| NodeAnnouncement { free_bytes, ..said.clone() };
        for little in [4_901, 5_000, 5_099] {
            assert_eq!(worth_telling(with_free(little), &said), said, "{little}");
        }
        for much in [0, 4_900, 5_100, 10_000] {
            assert_eq!(worth_telling(with_free(much), &said), with_free(much), "{much}");
        }
        let failed = NodeAnnouncement { disks_working: Some(1), disks_unrebuilt: 1, ..with_free(4_950) };
        let told = worth_telling(failed, &said);
        assert_eq!((told.disks_working, told.disks_unrebuilt, told.free_bytes), (Some(1), 1, 5_000));
    }
}
