//! The conformance suite of the `MetadataStore` port: what every adapter must do, one function a semantic.
//!
//! An adapter's tests expand it with [`metadata_conformance!`](crate::metadata_conformance), naming a function that
//! makes an empty store: `async fn() -> (Arc<dyn MetadataStore>, impl Sized)`; the second value is kept until the test
//! is over. Random tests print their seed; `HOLDFAST_TEST_SEED` replays one.

#![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::sync::Arc;

use holdfast_protocol::{ContentId, Extent, Manifest, UploadId, VersionId};

use super::{
    Bucket, BucketId, CannedAcl, ChangeRequest, Committed, Content, ContentPlace, ContentSource, DeleteRequest,
    Deleted, ETag, MetadataError, MetadataResult, MetadataStore, NewBucket, NewObject, NewUpload, ObjectAttributes,
    ObjectVersion, Part, ReplicaEvidence, User, Versioning, WritePrecondition,
};

pub mod aging;
pub mod buckets;
pub mod holders;
pub mod listing;
pub mod model;
pub mod objects;
pub mod reclaims;
pub mod replicas;
pub mod uploads;
pub mod users;
pub mod versions;

/// The store under test.
pub type Store = Arc<dyn MetadataStore>;

/// Expands the suite as tests of the module where it stands.
#[macro_export]
macro_rules! metadata_conformance {
    ($factory:path) => {
        $crate::metadata_conformance! { @tests $factory;
            buckets::names_are_unique_and_bucket_numbers_are_never_reused,
            buckets::an_owner_is_there_before_the_bucket_and_stays_as_long,
            buckets::configuration_is_replaced_removed_and_raises_the_revision,
            buckets::versioning_never_returns_to_unversioned,
            buckets::lists_in_name_order_by_owner,
            buckets::only_an_empty_bucket_is_deleted,
            buckets::what_was_decided_about_a_bucket_is_not_done_to_one_that_was_made_since,
            buckets::a_deletion_and_what_goes_into_the_bucket_exclude_each_other,
            objects::a_commit_is_read_back_whole,
            objects::a_write_to_a_missing_bucket_is_refused,
            objects::keys_are_byte_exact,
            objects::if_none_match_lets_exactly_one_of_many_through,
            objects::if_match_compares_with_the_latest_etag,
            objects::if_match_lets_exactly_one_of_many_through,
            objects::writers_of_one_key_leave_the_one_with_the_highest_sequence,
            objects::tags_and_acl_change_one_version,
            objects::tags_and_acl_change_only_what_was_judged,
            objects::a_thousand_are_deleted_each_by_itself,
            objects::a_conditional_delete_is_refused_alone,
            versions::unversioned_keeps_one_version,
            versions::enabled_adds_versions_and_markers,
            versions::suspended_replaces_only_the_null_version,
            versions::removing_the_latest_brings_the_one_before_back,
            versions::removing_a_marker_brings_the_object_back,
            versions::sequences_rise_even_after_deletions,
            versions::all_versions_of_a_key_can_be_deleted_at_once,
            reclaims::a_replaced_content_is_queued_once,
            reclaims::a_copy_keeps_the_content,
            reclaims::a_copy_saves_a_queued_content_until_it_is_claimed,
            reclaims::a_copy_that_is_dropped_again_begins_the_grace_anew,
            reclaims::a_copy_onto_itself_keeps_the_content,
            reclaims::a_claimed_content_comes_again_until_finished,
            reclaims::what_is_named_is_claimed_only_while_it_is_due,
            reclaims::claims_by_name_race_with_each_other_and_with_copies,
            reclaims::a_guarded_write_under_a_lower_token_is_refused,
            reclaims::known_contents_follow_a_part_to_its_end,
            reclaims::extents_are_known_of_a_content_that_no_upload_brought,
            reclaims::copies_and_overwrites_race_without_losing_a_content,
            holders::a_content_is_known_with_its_copies_until_it_is_deleted,
            holders::a_part_is_known_by_its_upload_and_then_by_its_object,
            replicas::commit_rejects_stale_epoch,
            replicas::a_part_rejects_stale_epoch,
            replicas::epochs_never_fall,
            replicas::metadata_belongs_to_the_cluster_that_claims_it_first,
            replicas::commit_and_part_of_a_condemned_content_are_refused,
            replicas::condemn_spares_what_anything_knows,
            replicas::of_condemn_and_commit_exactly_one_wins,
            replicas::condemned_contents_are_forgotten_oldest_first,
            replicas::missed_replicas_become_repairs_in_the_commit,
            replicas::a_refused_commit_queues_no_repair,
            replicas::a_repair_is_queued_once_and_finished_once,
            uploads::parts_become_an_object,
            uploads::a_completion_checks_its_parts,
            uploads::exactly_one_of_two_completers_wins,
            uploads::a_refused_precondition_leaves_the_upload,
            uploads::abort_queues_the_parts,
            uploads::an_abort_and_a_completion_exclude_each_other,
            uploads::stale_uploads_come_oldest_first,
            uploads::an_upload_expires_once_and_only_when_it_is_old,
            uploads::lists_uploads_by_key_and_id,
            uploads::a_completion_adds_a_version_where_versioning_is_on,
            listing::prefixes_and_delimiters_group_keys,
            listing::a_page_goes_on_where_the_last_one_ended,
            listing::a_delimiter_may_have_several_characters,
            listing::hidden_keys_are_not_listed,
            listing::versions_page_inside_a_key,
            listing::a_deleted_version_marker_loses_nothing,
            listing::what_becomes_the_latest_during_a_listing_is_not_left_out,
            model::random_histories_match_a_naive_model,
            model::random_uploads_list_as_a_naive_model,
            aging::current_versions_come_by_age_and_pages_go_on,
            aging::noncurrent_versions_count_from_their_successor,
            aging::latest_markers_tell_whether_they_hide_anything,
            aging::an_expiry_spares_what_was_changed_since_it_was_judged,
            aging::a_noncurrent_version_goes_only_as_it_was_judged,
            aging::what_was_judged_under_other_rules_stays,
            aging::a_lone_marker_goes_only_while_it_is_alone,
            aging::surplus_versions_are_those_beyond_the_newest,
            aging::uploads_come_by_age,
            aging::cursors_are_kept_for_one_generation,
            aging::changes_that_move_nothing_are_noted_while_there_are_rules,
            aging::a_cursor_under_a_lower_token_is_refused,
            aging::random_histories_age_as_a_naive_model,
            users::users_are_made_listed_and_removed,
            users::keys_belong_to_users,
            users::a_user_with_buckets_stays,
            users::closing_refuses_what_comes_after,
        }
    };
    (@tests $factory:path; $($module:ident :: $test:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let (store, guard) = $factory().await;
                $crate::ports::metadata::conformance::$module::$test(store.clone()).await;
                store.close().await;
                drop(guard);
            }
        )*
    };
}

/// A time to begin with; tests add to it.
pub(crate) const T0: u64 = 1_800_000_000_000;

/// Makes a user, unless there is one.
pub(crate) async fn owner(store: &Store, name: &str) {
    match store.create_user(User { name: name.into(), admin: false, enabled: true, created_ms: T0 }).await {
        Ok(()) | Err(MetadataError::Exists("user")) => {}
        Err(error) => panic!("{error:?}"),
    }
}

pub(crate) async fn bucket(store: &Store, name: &str) -> Arc<Bucket> {
    owner(store, "alice").await;
    let new = NewBucket { name: name.into(), owner: "alice".into(), acl: CannedAcl::Private, now_ms: T0 };
    store.create_bucket(new).await.unwrap()
}

pub(crate) async fn bucket_with(store: &Store, name: &str, versioning: Versioning) -> BucketId {
    let bucket = bucket(store, name).await;
    if versioning != Versioning::Unversioned {
        store.set_versioning(name, bucket.id, Versioning::Enabled).await.unwrap();
        store.set_versioning(name, bucket.id, versioning).await.unwrap();
    }
    bucket.id
}

pub(crate) fn etag(seed: u8) -> ETag {
    ETag { md5: [seed; 16], parts: None }
}

pub(crate) fn content(seed: u8) -> Content {
    let id = ContentId::generate(T0 / 1000);
    Content {
        id,
        manifest: Manifest::single(id, 1000 + u64::from(seed)),
        etag: etag(seed),
        checksum: None,
        parts: Vec::new(),
        place: ContentPlace::Cluster,
    }
}

pub(crate) fn object(bucket: BucketId, key: &str, seed: u8) -> NewObject {
    NewObject {
        bucket,
        key: key.into(),
        version: VersionId::generate(T0 / 1000),
        now_ms: T0 + u64::from(seed),
        owner: "alice".into(),
        content: ContentSource::New(content(seed)),
        attributes: ObjectAttributes::default(),
        tags: Vec::new(),
        acl: CannedAcl::Private,
        precondition: WritePrecondition::default(),
        event: None,
        evidence: ReplicaEvidence::default(),
        class: None,
    }
}

pub(crate) async fn put(store: &Store, bucket: BucketId, key: &str, seed: u8) -> Committed {
    store.commit_object(object(bucket, key, seed)).await.unwrap()
}

pub(crate) fn copy_of(bucket: BucketId, key: &str, content: ContentId) -> NewObject {
    NewObject { content: ContentSource::Shared(content), ..object(bucket, key, 0) }
}

pub(crate) fn delete_request(key: &str, version: Option<VersionId>) -> DeleteRequest {
    DeleteRequest {
        key: key.into(),
        version,
        marker_version: VersionId::generate(T0 / 1000),
        owner: "alice".into(),
        precondition: WritePrecondition::default(),
        only_if: None,
        event: None,
    }
}

/// A change of a version, whatever it is by now, that nobody is told of.
pub(crate) fn change_request(bucket: BucketId, key: &str, version: Option<VersionId>, now_ms: u64) -> ChangeRequest {
    ChangeRequest { bucket, key: key.into(), version, only_if: None, event: None, now_ms }
}

pub(crate) async fn delete(
    store: &Store,
    bucket: BucketId,
    key: &str,
    version: Option<VersionId>,
) -> MetadataResult<Deleted> {
    store.delete_objects(bucket, vec![delete_request(key, version)], T0).await.unwrap().remove(0)
}

pub(crate) async fn latest(store: &Store, bucket: BucketId, key: &str) -> MetadataResult<Arc<ObjectVersion>> {
    store.object(bucket, key, None).await
}

pub(crate) fn content_of(version: &ObjectVersion) -> ContentId {
    version.content.as_ref().unwrap().id
}

pub(crate) fn upload(bucket: BucketId, key: &str) -> NewUpload {
    NewUpload {
        id: UploadId::generate(),
        bucket,
        key: key.into(),
        owner: "alice".into(),
        now_ms: T0,
        attributes: ObjectAttributes { content_type: Some("video/mp4".into()), ..ObjectAttributes::default() },
        tags: Vec::new(),
        acl: CannedAcl::Private,
        class: None,
        checksum: None,
    }
}

pub(crate) fn part(number: u16, size_bytes: u64) -> Part {
    Part {
        number,
        content: ContentId::generate(T0 / 1000),
        size_bytes,
        md5: [number as u8; 16],
        checksum: None,
        last_modified_ms: T0,
    }
}

/// The content that parts make.
pub(crate) fn assembled(parts: &[Part]) -> Content {
    Content {
        id: ContentId::generate(T0 / 1000),
        manifest: Manifest {
            extents: parts.iter().map(|p| Extent { content: p.content, size_bytes: p.size_bytes }).collect(),
        },
        etag: ETag { md5: [9; 16], parts: Some(parts.len() as u32) },
        checksum: None,
        parts: parts
            .iter()
            .map(|p| super::ObjectPart { number: p.number, size_bytes: p.size_bytes, checksum: None })
            .collect(),
        place: ContentPlace::Cluster,
    }
}

/// The seed of a random test: the one asked for, or a fresh one.
pub(super) fn seeds(count: usize) -> Vec<u64> {
    match std::env::var("HOLDFAST_TEST_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..count).map(|_| rand::random()).collect(),
    }
}
