//! Rules that move objects: what is asked for, once, and what happens around it.

use holdfast_actors::domain::lifecycle::{NoncurrentTransition, Transition};
use holdfast_actors::ports::accesses::ReadNote;
use holdfast_actors::ports::metadata::{
    Content, ContentPlace, MoveEnd, MoveQueued, MoveReason, MoveRequest, Moved, ReplicaEvidence,
};
use holdfast_actors::ports::tiering::{Claim, Move};
use holdfast_actors::ports::tiers::{ColdTier, PieceName, TierError, TierResult, Tiers};
use holdfast_protocol::tiers::BLOCK_BYTES_MIN;
use holdfast_protocol::{ColdPlace, Manifest, NodeId, TierName};
use parking_lot::Mutex;

use super::*;

const LARGE: u64 = 1 << 20;

fn tier(name: &str) -> TierName {
    name.parse().unwrap()
}

fn days(days: u32, to: &str) -> Transition {
    Transition { days: Some(days), to: to.parse().ok(), ..Transition::default() }
}

fn idle(days: u32, to: &str) -> Transition {
    Transition { idle_days: Some(days), to: to.parse().ok(), ..Transition::default() }
}

fn moves(transitions: Vec<Transition>) -> LifecycleRule {
    LifecycleRule { transitions, ..rule("moves") }
}

fn older(noncurrent_transitions: Vec<NoncurrentTransition>) -> LifecycleRule {
    LifecycleRule { noncurrent_transitions, ..rule("older") }
}

/// Tiers by name only, as the test has them.
struct Named(Mutex<Vec<TierName>>);

impl Tiers for Named {
    fn tier(&self, name: &TierName) -> TierResult<Arc<dyn ColdTier>> {
        Err(TierError::Denied(format!("{name} is but a name")))
    }

    fn names(&self) -> Vec<TierName> {
        self.0.lock().clone()
    }
}

impl World {
    async fn with_tiers(versioning: Versioning) -> Self {
        let world = Self::new(versioning).await;
        for name in ["OSS", "FASTDFS"] {
            world.ledger.add_tier(tier(name), "{}".into(), NOON, None).await.unwrap();
        }
        world
    }

    async fn put_large(&self, key: &str) -> VersionId {
        self.put_sized(key, &[], LARGE).await
    }

    async fn queue(&self) -> Vec<Move> {
        self.ledger.moves(None, 0, 1_000).await.unwrap()
    }

    /// Key and target of all moves that wait, by key.
    async fn asked(&self) -> Vec<(String, String)> {
        let name = |to: Option<TierName>| to.map_or("STANDARD".to_owned(), |to| to.to_string());
        let mut asked: Vec<_> = self.queue().await.into_iter().map(|one| (one.key, name(one.to))).collect();
        asked.sort();
        asked
    }

    /// Ends all moves that wait as a mover would: with a new content where the bytes are to lie.
    async fn finish_moves(&self) {
        for lane in ["OSS", "FASTDFS"].map(tier) {
            let now_ms = self.clock.now_ms();
            let claim = Claim {
                owner: NodeId::from(7),
                now_ms,
                until_ms: now_ms + HOUR,
                spares_restored: false,
                to_cluster_only: false,
            };
            for one in self.ledger.claim_moves(&lane, claim, 1_000).await.unwrap() {
                let object = self.store().object(one.bucket, &one.key, Some(one.version)).await.unwrap();
                let content = self.moved(&one, object.content.as_ref().unwrap()).await;
                let moved = Moved::To { content, evidence: ReplicaEvidence::default() };
                let commit = one.commit(moved, None, now_ms);
                assert_eq!(self.store().commit_move(commit).await.unwrap(), MoveEnd::Done);
            }
        }
        assert_eq!(self.queue().await.len(), 0);
    }

    /// What a move makes of a content: in a tier, one piece that was reserved.
    async fn moved(&self, one: &Move, from: &Content) -> Content {
        let id = ContentId::generate(self.clock.now_ms() / 1_000);
        let place = match &one.to {
            None => ContentPlace::Cluster,
            Some(tier) => {
                let name = format!("piece of {}", one.attempt);
                let names = [PieceName::new(name.clone()).unwrap()];
                let due_ms = self.clock.now_ms() + HOUR;
                self.ledger.reserve_pieces(one.id, one.attempt, tier, &names, due_ms).await.unwrap();
                ContentPlace::Tier(Arc::new(ColdPlace {
                    tier: tier.clone(),
                    size_bytes: LARGE,
                    piece_bytes: LARGE,
                    block_bytes: BLOCK_BYTES_MIN,
                    names: vec![name],
                    sums: vec![0; LARGE as usize / BLOCK_BYTES_MIN as usize],
                }))
            }
        };
        Content { id, manifest: Manifest::single(id, LARGE), place, ..from.clone() }
    }

    async fn class(&self, key: &str) -> Option<String> {
        let object = self.store().object(self.bucket, key, None).await.unwrap();
        object.class.as_ref().map(TierName::to_string)
    }

    async fn read(&self, key: &str) {
        let day_ms = self.parts.settings.day.begin_ms(self.clock.now_ms());
        self.reads.note_reads(&[ReadNote { bucket: self.bucket, key: key.into(), day_ms }]).await.unwrap();
    }
}

fn asked(moves: &[(&str, &str)]) -> Vec<(String, String)> {
    moves.iter().map(|(key, to)| ((*key).to_owned(), (*to).to_owned())).collect()
}

#[tokio::test]
async fn an_object_is_asked_to_move_at_its_midnight_once_and_on_from_there() {
    let world = World::with_tiers(Versioning::Unversioned).await;
    world.rules(vec![moves(vec![days(1, "OSS"), days(3, "FASTDFS")])]).await;
    world.put_large("large").await;
    world.put("small").await;
    world.at(NOON + DAY + 12 * HOUR - 1);
    assert_eq!(world.pass().await.transitions, 0);
    world.at(NOON + DAY + 12 * HOUR);
    let stats = world.pass().await;
    assert_eq!((stats.transitions, stats.examined), (1, 2));
    let queue = world.queue().await;
    assert_eq!((queue.len(), queue[0].reason, queue[0].to.clone()), (1, MoveReason::Lifecycle, Some(tier("OSS"))));
    assert_eq!(world.pass().await.examined, 0, "the walk has passed it");
    world.finish_moves().await;
    assert_eq!((world.class("large").await.as_deref(), world.class("small").await), (Some("OSS"), None));
    world.at(NOON + 4 * DAY);
    assert_eq!(world.pass().await.transitions, 1);
    assert_eq!(world.asked().await, asked(&[("large", "FASTDFS")]));
    assert_eq!(world.events().await, [] as [String; 0], "movers tell, when it is done");
}

#[tokio::test]
async fn what_has_the_class_or_expires_is_not_moved() {
    let world = World::with_tiers(Versioning::Unversioned).await;
    world.put_large("there").await;
    world.put_large("expired").await;
    world.rules(vec![moves(vec![days(1, "OSS")])]).await;
    world.at(NOON + 2 * DAY);
    assert_eq!(world.pass().await.transitions, 2);
    world.finish_moves().await;
    // New rules look at everything once more.
    world.rules(vec![moves(vec![days(1, "OSS")]), LifecycleRule { filter: prefix("expired"), ..after_days(1) }]).await;
    let stats = world.pass().await;
    assert_eq!((stats.transitions, stats.expired), (0, 1));
    assert_eq!(world.queue().await.len(), 0);
}

#[tokio::test]
async fn an_object_comes_back_by_a_rule_that_says_standard() {
    let world = World::with_tiers(Versioning::Unversioned).await;
    let wanted = RuleFilter { tags: tags_of(&[("hot", "yes")]), ..RuleFilter::default() };
    let back = LifecycleRule { filter: wanted, ..moves(vec![days(2, "STANDARD")]) };
    world.rules(vec![moves(vec![days(1, "OSS")]), LifecycleRule { id: "back".into(), ..back }]).await;
    world.put_large("k").await;
    world.at(NOON + 5 * DAY);
    assert_eq!(world.pass().await.transitions, 1);
    world.finish_moves().await;
    world.tag("k", None, &[("hot", "yes")]).await;
    assert_eq!(world.pass().await.transitions, 1, "its tags are looked at again");
    world.finish_moves().await;
    assert_eq!(world.class("k").await, None);
}

#[tokio::test]
async fn what_is_restored_for_a_while_stays_until_then() {
    let world = World::with_tiers(Versioning::Unversioned).await;
    world.rules(vec![moves(vec![days(1, "OSS"), days(3, "FASTDFS")])]).await;
    world.put_large("k").await;
    world.at(NOON + 2 * DAY);
    world.pass().await;
    world.finish_moves().await;
    let restore = MoveRequest {
        bucket: world.bucket,
        key: "k".into(),
        version: None,
        to: None,
        reason: MoveReason::Restore { keep_ms: 30 * DAY },
        only_if: None,
        event: None,
        now_ms: world.clock.now_ms(),
    };
    assert_eq!(world.store().request_move(restore).await.unwrap(), MoveQueued::Queued);
    world.at(NOON + 5 * DAY);
    assert_eq!(world.pass().await.transitions, 0);
    assert_eq!(world.asked().await, asked(&[("k", "STANDARD")]), "the restore goes on");
}

#[tokio::test]
async fn older_versions_move_but_for_the_newest_of_them() {
    let world = World::with_tiers(Versioning::Enabled).await;
    let keep = NoncurrentTransition { days: 1, keep: Some(1), to: Some(tier("OSS")) };
    let all = NoncurrentTransition { days: 4, keep: None, to: Some(tier("FASTDFS")) };
    world.rules(vec![older(vec![keep, all])]).await;
    let mut made = Vec::new();
    for hour in 0..4 {
        world.at(NOON + hour * HOUR);
        made.push(world.put_large("k").await);
    }
    world.at(NOON + DAY);
    assert_eq!(world.pass().await.transitions, 0);
    world.at(NOON + 2 * DAY);
    world.pass().await;
    let versions: Vec<VersionId> = world.queue().await.into_iter().map(|one| one.version).collect();
    assert_eq!(versions.len(), 2);
    let all_old = made[..2].iter().all(|version| versions.contains(version));
    assert!(all_old, "the newest noncurrent one stays, and the latest is not concerned: {versions:?} of {made:?}");
    world.finish_moves().await;
    world.at(NOON + 5 * DAY);
    assert_eq!(world.pass().await.transitions, 3);
    assert!(world.queue().await.iter().all(|one| one.to == Some(tier("FASTDFS"))));
    world.finish_moves().await;
    // One more makes another surplus, and all of the key are looked at: those that have moved on stay.
    world.put_large("k").await;
    world.at(NOON + 6 * DAY);
    assert_eq!(world.pass().await.transitions, 0, "the last that was due counts");
    assert_eq!(world.queue().await.len(), 0);
}

#[tokio::test]
async fn rules_wait_for_a_tier_that_is_not_there() {
    let mut world = World::with_tiers(Versioning::Unversioned).await;
    let named = Arc::new(Named(Mutex::new(vec![tier("FASTDFS")])));
    world.parts.tiers = Some(named.clone());
    world.rules(vec![moves(vec![days(1, "OSS"), days(5, "FASTDFS")]), after_days(9)]).await;
    world.put_large("k").await;
    world.at(NOON + 3 * DAY);
    assert_eq!(world.pass().await.transitions, 0);
    assert_eq!(world.queue().await.len(), 0);
    named.0.lock().push(tier("OSS"));
    assert_eq!(world.pass().await.transitions, 1, "its walk stood still");
    assert_eq!(world.asked().await, asked(&[("k", "OSS")]));
}

#[tokio::test]
async fn what_comes_to_be_due_while_its_tier_is_not_there_moves_when_it_is() {
    let mut world = World::with_tiers(Versioning::Enabled).await;
    let named = Arc::new(Named(Mutex::new(vec![tier("OSS")])));
    world.parts.tiers = Some(named.clone());
    let wanted = RuleFilter { tags: tags_of(&[("cold", "yes")]), ..RuleFilter::default() };
    let older = NoncurrentTransition { days: 1, keep: None, to: Some(tier("OSS")) };
    let rule = LifecycleRule { noncurrent_transitions: vec![older], ..moves(vec![days(1, "OSS")]) };
    world.rules(vec![LifecycleRule { filter: wanted, ..rule }]).await;
    let first = world.put_large("k").await;
    world.put_large("k").await;
    world.at(NOON + 3 * DAY);
    let stats = world.pass().await;
    assert_eq!((stats.transitions, stats.examined), (0, 2), "the walks have passed what has no such tag");
    named.0.lock().clear();
    world.tag("k", None, &[("cold", "yes")]).await;
    world.tag("k", Some(first), &[("cold", "yes")]).await;
    assert_eq!(world.pass().await.transitions, 0);
    named.0.lock().push(tier("OSS"));
    assert_eq!(world.pass().await.transitions, 2, "the walks have gone back to them");
    assert_eq!(world.asked().await, asked(&[("k", "OSS"), ("k", "OSS")]));
    assert_eq!(world.pass().await.examined, 0);
}

#[tokio::test]
async fn what_was_not_read_for_so_long_moves_and_what_was_read_does_not() {
    let world = World::with_tiers(Versioning::Unversioned).await;
    world.set(LifecycleRules { rules: vec![moves(vec![idle(2, "OSS")])], ..LifecycleRules::default() }).await;
    for key in ["never", "read", "deleted"] {
        world.put_large(key).await;
    }
    world.at(NOON + 2 * DAY);
    world.read("read").await;
    world.read("deleted").await;
    world.delete("deleted", None).await;
    world.at(NOON + 3 * DAY);
    assert_eq!(world.pass().await.transitions, 1);
    assert_eq!(world.asked().await, asked(&[("never", "OSS")]));
    world.finish_moves().await;
    world.at(NOON + 4 * DAY);
    assert_eq!(world.pass().await.transitions, 0, "two days after its last read, but the midnight is not there");
    world.at(NOON + 5 * DAY);
    assert_eq!(world.pass().await.transitions, 1);
    assert_eq!(world.asked().await, asked(&[("read", "OSS")]));
    assert_eq!(world.reads.next_read_bucket(None).await.unwrap(), None, "notes are forgotten when they are of no use");
    assert_eq!(world.pass().await.examined, 0);
}

#[tokio::test]
async fn new_rules_do_not_take_what_was_there_before_for_never_read() {
    let world = World::with_tiers(Versioning::Unversioned).await;
    world.put_large("k").await;
    let begun = NOON + 9 * DAY;
    world.at(begun);
    let rules = vec![moves(vec![idle(2, "OSS")])];
    world.set(LifecycleRules { rules, reads_since_ms: Some(begun), ..LifecycleRules::default() }).await;
    assert_eq!(world.pass().await.transitions, 0);
    world.at(begun + 3 * DAY);
    assert_eq!(world.pass().await.transitions, 1);
}

#[tokio::test]
async fn what_is_read_in_a_tier_comes_back_where_another_rule_wants_it_on_disks() {
    let world = World::with_tiers(Versioning::Unversioned).await;
    world.rules(vec![moves(vec![idle(2, "OSS"), days(0, "STANDARD")])]).await;
    for key in ["a", "b"] {
        world.put_large(key).await;
    }
    world.at(NOON + 4 * DAY);
    assert_eq!(world.pass().await.transitions, 2);
    world.finish_moves().await;
    world.read("b").await;
    world.at(NOON + 5 * DAY);
    assert_eq!(world.pass().await.transitions, 1);
    assert_eq!(world.asked().await, asked(&[("b", "STANDARD")]));
    world.finish_moves().await;
    assert_eq!((world.class("a").await.as_deref(), world.class("b").await), (Some("OSS"), None));
    world.at(NOON + 7 * DAY);
    assert_eq!(world.pass().await.transitions, 1, "and goes again, when it was not read for so long");
    assert_eq!(world.asked().await, asked(&[("b", "OSS")]));
}

#[tokio::test]
async fn notes_of_reads_that_no_rule_asks_for_are_forgotten() {
    let mut world = World::with_tiers(Versioning::Unversioned).await;
    world.parts.settings = LifecycleSettings { batch: 3, ..LifecycleSettings::default() };
    for number in 0..100 {
        world.read(&number.to_string()).await;
    }
    world.rules(vec![moves(vec![idle(2, "OSS")])]).await;
    world.pass().await;
    assert!(world.reads.next_read_bucket(None).await.unwrap().is_some());
    world.rules(vec![after_days(1)]).await;
    world.pass().await;
    assert_eq!(world.reads.next_read_bucket(None).await.unwrap(), None);
}

#[tokio::test]
async fn many_objects_move_in_batches_and_young_ones_are_not_looked_at() {
    let mut world = World::with_tiers(Versioning::Unversioned).await;
    world.parts.settings = LifecycleSettings { batch: 7, batches_max: 2, ..LifecycleSettings::default() };
    world.rules(vec![moves(vec![days(1, "OSS")])]).await;
    for number in 0..40 {
        world.put_large(&format!("old/{number}")).await;
    }
    world.at(NOON + DAY);
    for number in 0..40 {
        world.put_large(&format!("young/{number}")).await;
    }
    world.at(NOON + 2 * DAY);
    let stats = world.pass().await;
    assert_eq!((stats.transitions, stats.examined), (40, 40));
    assert_eq!(world.queue().await.len(), 40);
}
