//! Who has acknowledged a chunk, who is given up, and whether a quorum is still possible. Shared between a write's sink
//! and the tasks that feed its remote replicas, any of which may settle its own replica.

use holdfast_protocol::cluster::ShardState;
use holdfast_protocol::{Epoch, NodeId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::ports::ChunkError;
use crate::ports::peers::{Fence, PeerError};

/// Why a write cannot succeed any more.
#[derive(Debug, Clone)]
pub(super) enum Doom {
    /// Its epoch is over.
    Moved(Epoch),
    /// Too few members are left.
    NoQuorum {
        /// Every member that failed was full.
        full: bool,
        /// Who failed, and why.
        detail: String,
    },
}

impl Doom {
    /// As the caller of the store gets it.
    pub(super) fn error(&self, fence: Fence) -> ChunkError {
        let shard = fence.shard;
        match self {
            Self::Moved(current) => {
                let epoch = fence.epoch;
                ChunkError::Unavailable(format!("shard {shard} moved from epoch {epoch} to {current}: retry the write"))
            }
            Self::NoQuorum { full: true, .. } => ChunkError::NoSpace,
            Self::NoQuorum { full: false, detail } => {
                ChunkError::Unavailable(format!("shard {shard} has no write quorum: {detail}"))
            }
        }
    }
}

#[derive(Debug)]
enum Outcome {
    Pending,
    Acknowledged,
    Missed(PeerError),
}

#[derive(Debug)]
struct Replica {
    node: NodeId,
    /// Counts for the quorum of members; a joiner counts for the other one only.
    member: bool,
    /// Has taken the write on.
    begun: bool,
    outcome: Outcome,
}

#[derive(Debug)]
struct State {
    replicas: Vec<Replica>,
    doom: Option<Doom>,
}

/// Where a write stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// Both quorums have acknowledged.
    pub(super) met: bool,
    /// Nobody is waited for.
    pub(super) settled: bool,
}

/// Acknowledgements that make a write durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quorums {
    /// Of members: a majority of them, so that every list of enough members has the chunk.
    pub(super) members: usize,
    /// Of members and joiners: a majority of the wanted replicas, so that the loss of a minority leaves one, however
    /// few members there are.
    pub(super) all: usize,
}

impl Quorums {
    pub(super) fn of(state: &ShardState) -> Self {
        Self { members: state.write_quorum() as usize, all: state.target_quorum() as usize }
    }
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Tally {
    quorums: Quorums,
    state: Mutex<State>,
    /// For the one who waits: the sink.
    changed: Notify,
}

impl Tally {
    /// Of these replicas, members first.
    pub(super) fn new(quorums: Quorums, nodes: impl Iterator<Item = (NodeId, bool)>) -> Self {
        let replica = |(node, member)| Replica { node, member, begun: false, outcome: Outcome::Pending };
        let state = State { replicas: nodes.map(replica).collect(), doom: None };
        Self { quorums, state: Mutex::new(state), changed: Notify::new() }
    }

    /// The replica has taken the write on.
    pub(super) fn begun(&self, index: usize) {
        self.state.lock().replicas[index].begun = true;
        self.changed.notify_one();
    }

    /// The replica has the chunk, durable, and said so under the fence.
    pub(super) fn acknowledged(&self, index: usize) {
        let mut state = self.state.lock();
        let outcome = &mut state.replicas[index].outcome;
        // One that was given up before stays so: what was decided on it stands.
        if matches!(outcome, Outcome::Pending) {
            *outcome = Outcome::Acknowledged;
        }
        drop(state);
        self.changed.notify_one();
    }

    /// The replica failed.
    pub(super) fn missed(&self, index: usize, error: PeerError) {
        let mut state = self.state.lock();
        if let PeerError::Stale { current, .. } = error
            && state.doom.is_none()
        {
            state.doom = Some(Doom::Moved(current));
        }
        let outcome = &mut state.replicas[index].outcome;
        if matches!(outcome, Outcome::Pending) {
            *outcome = Outcome::Missed(error);
        }
        if state.doom.is_none() && !state.possible().meets(self.quorums) {
            state.doom = Some(state.no_quorum(self.quorums));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Gives up a replica that does not get on, if the write can do without it. `false`: it is still needed.
    pub(super) fn spare(&self, index: usize) -> bool {
        let mut state = self.state.lock();
        let (node, member) = (state.replicas[index].node, state.replicas[index].member);
        let possible = state.possible();
        let needed = member && possible.members <= self.quorums.members || possible.all <= self.quorums.all;
        if state.doom.is_none() && needed {
            return false;
        }
        let outcome = &mut state.replicas[index].outcome;
        if matches!(outcome, Outcome::Pending) {
            *outcome = Outcome::Missed(PeerError::Timeout { node });
        }
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Why the write cannot succeed any more, if it cannot.
    pub(super) fn doom(&self) -> Option<Doom> {
        self.state.lock().doom.clone()
    }

    /// Where the write stands.
    pub(super) fn standing(&self) -> Standing {
        let state = self.state.lock();
        let acknowledged = state.count(|outcome| matches!(outcome, Outcome::Acknowledged));
        let settled = !state.replicas.iter().any(|replica| matches!(replica.outcome, Outcome::Pending));
        Standing { met: acknowledged.meets(self.quorums), settled }
    }

    /// Whether every replica but those that `excused` names has taken the write on or failed.
    pub(super) fn all_begun(&self, excused: impl Fn(NodeId) -> bool) -> bool {
        let state = self.state.lock();
        let mut waiting = state.replicas.iter().filter(|r| !r.begun && matches!(r.outcome, Outcome::Pending));
        waiting.all(|replica| excused(replica.node))
    }

    /// Replicas that nothing was heard of.
    pub(super) fn pending(&self) -> Vec<NodeId> {
        let state = self.state.lock();
        state.replicas.iter().filter(|r| matches!(r.outcome, Outcome::Pending)).map(|r| r.node).collect()
    }

    /// Replicas that did not acknowledge.
    pub(super) fn not_acknowledged(&self) -> Vec<NodeId> {
        let state = self.state.lock();
        state.replicas.iter().filter(|r| !matches!(r.outcome, Outcome::Acknowledged)).map(|r| r.node).collect()
    }

    /// Waits until something changed since the last wait. For one waiter.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Runs `work` unless the write is doomed meanwhile.
    pub(super) async fn unless_doomed<T>(&self, work: impl Future<Output = T>) -> Result<T, Doom> {
        let mut work = std::pin::pin!(work);
        loop {
            if let Some(doom) = self.doom() {
                return Err(doom);
            }
            tokio::select! {
                biased;
                done = work.as_mut() => return Ok(done),
                () = self.changed() => {}
            }
        }
    }
}

/// So many replicas.
struct Count {
    members: usize,
    all: usize,
}

impl Count {
    fn meets(&self, quorums: Quorums) -> bool {
        self.members >= quorums.members && self.all >= quorums.all
    }
}

impl State {
    fn count(&self, counts: impl Fn(&Outcome) -> bool) -> Count {
        let counted = || self.replicas.iter().filter(|replica| counts(&replica.outcome));
        Count { members: counted().filter(|replica| replica.member).count(), all: counted().count() }
    }

    /// Replicas that have acknowledged or still may.
    fn possible(&self) -> Count {
        self.count(|outcome| !matches!(outcome, Outcome::Missed(_)))
    }

    fn no_quorum(&self, quorums: Quorums) -> Doom {
        let possible = self.possible();
        // Joiners matter only where enough members are left.
        let joiners_too = possible.members >= quorums.members;
        let failed = || {
            let asked = self.replicas.iter().filter(move |replica| replica.member || joiners_too);
            asked.filter_map(|replica| match &replica.outcome {
                Outcome::Missed(error) => Some((replica.node, error)),
                _ => None,
            })
        };
        let full = failed().all(|(_, error)| matches!(error, PeerError::Chunk(ChunkError::NoSpace)));
        let reasons: Vec<_> = failed().map(|(node, error)| format!("{node}: {error}")).collect();
        let (what, left, needed) = if joiners_too {
            ("replicas", possible.all, quorums.all)
        } else {
            ("members", possible.members, quorums.members)
        };
        let detail = format!("{left} {what} left of {needed} needed ({})", reasons.join("; "));
        Doom::NoQuorum { full, detail }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::ShardId;

    use super::*;

    /// Of a shard that has as many members as it is to have.
    fn tally(members: u64, joiners: u64, quorum: usize) -> Tally {
        wanted(members, joiners, Quorums { members: quorum, all: quorum })
    }

    fn wanted(members: u64, joiners: u64, quorums: Quorums) -> Tally {
        Tally::new(quorums, (0..members + joiners).map(|n| (NodeId::from(n), n < members)))
    }

    fn failure() -> PeerError {
        PeerError::Busy
    }

    #[test]
    fn quorum_counts_members_only() {
        let tally = tally(3, 2, 2);
        for index in [3, 4, 0] {
            tally.acknowledged(index);
        }
        assert!(!tally.standing().met);
        tally.acknowledged(2);
        assert_eq!(tally.standing(), Standing { met: true, settled: false });
        assert_eq!(tally.not_acknowledged(), [NodeId::from(1)]);
    }

    #[test]
    fn write_is_doomed_exactly_when_no_quorum_is_left() {
        for members in 1..=5_usize {
            let quorum = members / 2 + 1;
            for failing in 0_u32..1 << members {
                let tally = tally(members as u64, 1, quorum);
                tally.missed(members, failure());
                for index in (0..members).filter(|index| failing >> index & 1 == 1) {
                    tally.missed(index, failure());
                }
                let left = members - failing.count_ones() as usize;
                assert_eq!(tally.doom().is_some(), left < quorum, "{failing:b} of {members} fail");
            }
        }
    }

    #[test]
    fn only_who_is_not_needed_is_spared() {
        let tally = tally(3, 1, 2);
        assert!(tally.spare(1), "two others may do");
        assert!(!tally.spare(2) && !tally.spare(0), "both are needed now");
        assert!(tally.spare(3), "a joiner never is");
        assert!(tally.doom().is_none());
        tally.acknowledged(1);
        assert_eq!(tally.not_acknowledged().len(), 4, "who was given up does not count any more");
    }

    #[test]
    fn one_stale_replica_dooms_the_write_even_beyond_the_quorum() {
        let tally = tally(3, 1, 2);
        tally.acknowledged(0);
        tally.acknowledged(1);
        tally.missed(3, PeerError::Stale { shard: ShardId(1), current: Epoch(7) });
        assert!(matches!(tally.doom(), Some(Doom::Moved(Epoch(7)))));
    }

    #[test]
    fn a_last_member_acknowledges_nothing_without_a_joiner() {
        let quorums = Quorums { members: 1, all: 2 };
        let tally = wanted(1, 2, quorums);
        tally.acknowledged(0);
        assert!(!tally.standing().met, "one of three wanted replicas");
        assert!(tally.spare(1), "the other joiner may do");
        assert!(!tally.spare(2), "it is needed now");
        tally.acknowledged(2);
        assert!(tally.standing().met);
        let joiners_only = wanted(1, 2, quorums);
        joiners_only.acknowledged(1);
        joiners_only.acknowledged(2);
        assert!(!joiners_only.standing().met, "a joiner has not what was written before");
        let tally = wanted(1, 2, quorums);
        tally.missed(1, failure());
        assert!(tally.doom().is_none());
        tally.missed(2, failure());
        assert!(matches!(tally.doom(), Some(Doom::NoQuorum { detail, .. }) if detail.contains("1 replicas left of 2")));
    }

    #[test]
    fn full_members_are_said_to_be_full() {
        let tally = tally(2, 0, 2);
        tally.missed(1, PeerError::Chunk(ChunkError::NoSpace));
        let fence = Fence { shard: ShardId(1), epoch: Epoch(1) };
        assert!(matches!(tally.doom().map(|doom| doom.error(fence)), Some(ChunkError::NoSpace)));
    }
}
