//! The conformance suite of cold tiers in metadata: the verbs that move versions, and the [`TierLedger`]; one function
//! a semantic.
//!
//! An adapter's tests expand it with [`tiering_conformance!`](crate::tiering_conformance), naming a function that makes
//! an empty store: `async fn() -> (Arc<dyn MetadataStore>, Arc<dyn TierLedger>, Arc<dyn Outbox>, impl Sized)`, all on
//! one database; the last value is kept until the test is over.

#![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]
#![allow(missing_docs, reason = "the names of the cases say what they check")]

use std::sync::Arc;

use holdfast_protocol::{ColdPlace, ContentId, Manifest, NodeId, TierName, VersionId};

use super::{Claim, Move, TierLedger};
use crate::ports::metadata::conformance::{Store, T0, content, object};
use crate::ports::metadata::{
    BucketId, Committed, Content, ContentPlace, ContentSource, MetadataResult, MoveEnd, MoveQueued, MoveReason,
    MoveRequest, Moved, NewObject, ObjectVersion, ReplicaEvidence,
};
use crate::ports::outbox::Outbox;
use crate::ports::tiers::PieceName;

pub mod classes;
pub mod moves;
pub mod pieces;
pub mod requests;
pub mod restores;

/// Expands the suite as tests of the module where it stands.
#[macro_export]
macro_rules! tiering_conformance {
    ($factory:path) => {
        $crate::tiering_conformance! { @tests $factory;
            classes::a_put_with_a_class_queues_a_move_and_one_without_does_not,
            classes::an_overwrite_with_a_class_replaces_the_move_that_waits,
            classes::the_move_of_an_empty_object_ends_nowhere,
            classes::a_copy_is_moved_where_its_class_says,
            classes::moving_one_copy_leaves_the_other,
            classes::a_copy_onto_itself_stays_where_its_class_says,
            classes::an_upload_keeps_its_class,
            classes::listings_show_classes_and_load_no_places,
            classes::class_and_restore_stay_with_a_version_in_and_out_of_history,
            moves::a_claim_that_ends_is_followed_by_another,
            moves::whoever_was_followed_is_told_so,
            moves::two_movers_never_have_the_same_move,
            moves::failures_are_counted_and_retried,
            moves::what_a_clock_that_was_ahead_put_off_can_be_made_due,
            moves::a_dropped_move_is_gone,
            moves::an_overwrite_wins_over_a_move,
            moves::a_deletion_wins_over_a_move,
            moves::what_changes_during_a_move_is_kept,
            moves::an_older_version_is_moved_in_its_place,
            moves::a_commit_is_refused_as_a_put_is,
            moves::moves_are_paged_and_counted,
            moves::overwrites_and_moves_race_without_losing_a_content,
            requests::a_class_is_that_of_a_request_when_its_move_is_done,
            requests::one_to_the_same_place_goes_on_and_one_to_another_is_given_up,
            requests::what_lies_in_place_only_changes_its_class,
            requests::what_is_not_there_is_not_moved,
            requests::a_version_moves_only_as_it_was_judged,
            pieces::a_commit_takes_its_pieces_off_the_list,
            pieces::a_piece_that_is_being_deleted_refuses_the_commit,
            pieces::a_content_that_comes_with_its_place_keeps_its_pieces,
            pieces::reserved_pieces_are_deleted_twice,
            pieces::what_an_attempt_left_that_is_over_is_deleted_at_once_and_again,
            pieces::a_renewed_claim_keeps_its_pieces,
            pieces::of_a_commit_and_a_sweep_exactly_one_has_the_pieces,
            pieces::a_reclaimed_content_lists_its_pieces_once_and_its_stub_always,
            pieces::tiers_are_added_changed_and_removed,
            pieces::a_tier_whose_settings_change_takes_nothing_by_those_before,
            pieces::a_tier_that_is_to_be_empty_keeps_its_settings_when_it_is_not,
            pieces::tiers_are_added_and_changed_only_beside_those_that_were_judged,
            pieces::a_tier_in_use_is_not_removed,
            pieces::moves_of_versions_that_are_gone_do_not_keep_a_tier,
            pieces::contents_of_a_tier_are_paged_and_counted,
            restores::a_restore_goes_there_and_back,
            restores::a_restore_of_what_has_not_moved_yet_keeps_it,
            restores::rules_leave_what_is_restored_alone,
            restores::a_command_ends_a_restore,
            restores::a_restore_keeps_a_change_of_class_that_waits,
            restores::an_older_version_is_restored_in_its_place,
            restores::requests_that_are_new_and_ends_of_moves_are_told,
        }
    };
    (@tests $factory:path; $($module:ident :: $test:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let (store, ledger, outbox, guard) = $factory().await;
                let world = $crate::ports::tiering::conformance::World { store: store.clone(), ledger, outbox };
                $crate::ports::tiering::conformance::$module::$test(world).await;
                store.close().await;
                drop(guard);
            }
        )*
    };
}

/// Later than everything that a test queues.
const LATER: u64 = T0 + 1_000_000_000;
/// Bytes of an object: three pieces.
const SIZE: u64 = 300 << 10;
const PIECE: u32 = 128 << 10;

/// The store under test, and its ledger.
pub struct World {
    /// The one.
    pub store: Store,
    /// The other.
    pub ledger: Arc<dyn TierLedger>,
    /// What is told of changes.
    pub outbox: Arc<dyn Outbox>,
}

fn tier(name: &str) -> TierName {
    name.parse().unwrap()
}

fn oss() -> TierName {
    tier("OSS")
}

/// An object of three pieces, of a class.
fn cold_object(bucket: BucketId, key: &str, seed: u8, class: Option<TierName>) -> NewObject {
    let content = content(seed);
    let content = Content { manifest: Manifest::single(content.id, SIZE), ..content };
    NewObject { content: ContentSource::New(content), class, ..object(bucket, key, seed) }
}

fn names_of(job: &Move) -> Vec<String> {
    (0..3).map(|index| format!("{}-{index}", job.attempt)).collect()
}

fn place_in(tier: &TierName, names: Vec<String>) -> ContentPlace {
    let place = ColdPlace {
        tier: tier.clone(),
        size_bytes: SIZE,
        piece_bytes: u64::from(PIECE),
        block_bytes: PIECE,
        names,
        sums: vec![1, 2, 3],
    };
    ContentPlace::Tier(Arc::new(place))
}

/// What a move makes of a content.
fn moved_content(job: &Move, from: &Content) -> Content {
    let id = ContentId::generate(T0 / 1000);
    let place = job.to.as_ref().map_or(ContentPlace::Cluster, |tier| place_in(tier, names_of(job)));
    Content { id, manifest: Manifest::single(id, from.size_bytes()), place, ..from.clone() }
}

fn request(bucket: BucketId, key: &str, to: Option<TierName>, reason: MoveReason) -> MoveRequest {
    MoveRequest { bucket, key: key.into(), version: None, to, reason, only_if: None, event: None, now_ms: T0 + 500 }
}

fn piece_names(names: &[String]) -> Vec<PieceName> {
    names.iter().map(|name| PieceName::new(name.clone()).unwrap()).collect()
}

impl World {
    async fn put(&self, bucket: BucketId, key: &str, seed: u8, class: Option<TierName>) -> Committed {
        self.store.commit_object(cold_object(bucket, key, seed, class)).await.unwrap()
    }

    async fn version(&self, bucket: BucketId, key: &str, version: Option<VersionId>) -> Arc<ObjectVersion> {
        self.store.object(bucket, key, version).await.unwrap()
    }

    /// Claims what is due by `now_ms`, for a thousand milliseconds.
    async fn claim(&self, lane: &TierName, now_ms: u64) -> Vec<Move> {
        let claim = Claim {
            owner: NodeId([7; 8]),
            now_ms,
            until_ms: now_ms + 1000,
            spares_restored: false,
            to_cluster_only: false,
        };
        self.ledger.claim_moves(lane, claim, 100).await.unwrap()
    }

    /// Claims the only move of a lane.
    async fn claim_one(&self, lane: &TierName, now_ms: u64) -> Move {
        let mut found = self.claim(lane, now_ms).await;
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    async fn reserve(&self, job: &Move) -> Vec<String> {
        let names = names_of(job);
        let tier = job.to.as_ref().unwrap();
        let due_ms = job.due_ms + 1000;
        self.ledger.reserve_pieces(job.id, job.attempt, tier, &piece_names(&names), due_ms).await.unwrap();
        names
    }

    async fn commit(&self, job: &Move, moved: Moved, now_ms: u64) -> MetadataResult<MoveEnd> {
        self.store.commit_move(job.commit(moved, None, now_ms)).await
    }

    async fn commit_to(&self, job: &Move, content: Content, now_ms: u64) -> MetadataResult<MoveEnd> {
        self.commit(job, Moved::To { content, evidence: ReplicaEvidence::default() }, now_ms).await
    }

    /// Does the only move of a lane that is due.
    async fn carry_out(&self, lane: &TierName, now_ms: u64) -> Content {
        let job = self.claim_one(lane, now_ms).await;
        let from = self.version(job.bucket, &job.key, Some(job.version)).await;
        let from = from.content.as_ref().unwrap();
        assert_eq!(from.id, job.content);
        if job.to.is_some() {
            self.reserve(&job).await;
        }
        let content = moved_content(&job, from);
        assert_eq!(self.commit_to(&job, content.clone(), now_ms + 1).await.unwrap(), MoveEnd::Done);
        content
    }

    /// An object that lies in a tier.
    async fn freeze(&self, bucket: BucketId, key: &str, seed: u8, tier: &TierName) -> Content {
        self.put(bucket, key, seed, Some(tier.clone())).await;
        self.carry_out(tier, T0 + 300).await
    }

    async fn ask(&self, request: MoveRequest) -> MoveQueued {
        self.store.request_move(request).await.unwrap()
    }

    /// All moves.
    async fn moves(&self) -> Vec<Move> {
        self.ledger.moves(None, 0, 1000).await.unwrap()
    }

    /// Names on the list of what a tier is to delete.
    async fn listed(&self, tier: &TierName) -> u64 {
        let usage = self.ledger.tier_usage().await.unwrap();
        usage.iter().find(|usage| usage.tier == *tier).map_or(0, |usage| usage.pieces_to_delete)
    }
}
