//! Versions and uploads in order of age, places in it, and what has to be looked at again.

use std::collections::BTreeMap;

use holdfast_protocol::VersionId;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{Store, T0, bucket_with, change_request, delete, delete_request, object, put, seeds, upload};
use crate::ports::coordination::{Fence, FencingToken, LeaseName};
use crate::ports::metadata::{
    AgePosition, AgedKind, AgedVersion, BucketConfigKind, BucketId, DeleteRequest, Deleted, ListVersionsQuery,
    MetadataError, MetadataResult, NewObject, NewUpload, OnlyIf, OnlyNoncurrent, Standing, Tag, Versioning,
};

/// All versions of a kind up to a time, page by page.
async fn aged(store: &Store, id: BucketId, kind: AgedKind, until_ms: u64, page: u32) -> Vec<AgedVersion> {
    let (mut all, mut at) = (Vec::new(), AgePosition::default());
    loop {
        let found = store.aged_versions(id, kind, &at, until_ms, page).await.unwrap();
        assert!(found.len() <= page as usize);
        let Some(last) = found.last() else { return all };
        assert!(last.position() > at);
        at = last.position();
        all.extend(found);
    }
}

fn keys(versions: &[AgedVersion]) -> Vec<&str> {
    versions.iter().map(|version| version.key.as_str()).collect()
}

async fn put_at(store: &Store, id: BucketId, key: &str, now_ms: u64) -> VersionId {
    store.commit_object(NewObject { now_ms, ..object(id, key, 1) }).await.unwrap().object.version
}

async fn mark_at(store: &Store, id: BucketId, key: &str, now_ms: u64) -> VersionId {
    let mut deleted = store.delete_objects(id, vec![delete_request(key, None)], now_ms).await.unwrap();
    deleted.remove(0).unwrap().version.unwrap()
}

async fn delete_if(
    store: &Store,
    id: BucketId,
    judged: &AgedVersion,
    version: Option<VersionId>,
    is_alone: bool,
) -> MetadataResult<Deleted> {
    let only_if = Some(OnlyIf { sequence: judged.sequence, is_alone, ..OnlyIf::default() });
    let request = DeleteRequest { only_if, ..delete_request(&judged.key, version) };
    store.delete_objects(id, vec![request], T0).await.unwrap().remove(0)
}

/// With ties of time, in pages of every size, and only of their bucket.
pub async fn current_versions_come_by_age_and_pages_go_on(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    let other = bucket_with(&store, "other", Versioning::Unversioned).await;
    put_at(&store, other, "a", T0).await;
    for (key, at) in [("e", 1), ("d", 2), ("a", 2), ("c", 2), ("b", 3), ("f", 4)] {
        put_at(&store, id, key, T0 + at).await;
    }
    let tags = vec![Tag { key: "a".into(), value: "b".into() }];
    store.set_object_tags(change_request(id, "d", None, T0), tags.clone()).await.unwrap();
    for page in 1..8 {
        let found = aged(&store, id, AgedKind::Current, T0 + 3, page).await;
        assert_eq!(keys(&found), ["e", "a", "c", "d", "b"], "pages of {page}");
        let tagged = &found[3];
        let latest = store.object(id, "d", None).await.unwrap();
        assert_eq!((tagged.sequence, tagged.version, &tagged.tags), (latest.sequence, latest.version, &tags));
        assert_eq!((tagged.last_modified_ms, tagged.since_ms), (T0 + 2, T0 + 2));
        assert_eq!((tagged.standing, tagged.size_bytes), (Standing::Current, Some(1_001)));
    }
    // An overwrite is young again.
    put_at(&store, id, "e", T0 + 9).await;
    assert_eq!(keys(&aged(&store, id, AgedKind::Current, T0 + 3, 10).await), ["a", "c", "d", "b"]);
    assert_eq!(aged(&store, id, AgedKind::Noncurrent, T0 + 9, 10).await, []);
}

/// Whether an object or a marker took its place.
pub async fn noncurrent_versions_count_from_their_successor(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    let first = put_at(&store, id, "k", T0).await;
    put_at(&store, id, "young", T0).await;
    assert_eq!(aged(&store, id, AgedKind::Noncurrent, T0 + 99, 10).await, []);
    let second = put_at(&store, id, "k", T0 + 10).await;
    let marker = mark_at(&store, id, "k", T0 + 20).await;
    let third = put_at(&store, id, "k", T0 + 30).await;
    let upper = mark_at(&store, id, "k", T0 + 40).await;
    let top = mark_at(&store, id, "k", T0 + 50).await;
    let noncurrent = aged(&store, id, AgedKind::Noncurrent, T0 + 99, 2).await;
    let told: Vec<_> = noncurrent.iter().map(|v| (v.version, v.last_modified_ms, v.since_ms, v.size_bytes)).collect();
    assert_eq!(
        told,
        [
            (first, T0, T0 + 10, Some(1_001)),
            (second, T0 + 10, T0 + 20, Some(1_001)),
            (marker, T0 + 20, T0 + 30, None),
            (third, T0 + 30, T0 + 40, Some(1_001)),
            (upper, T0 + 40, T0 + 50, None),
        ]
    );
    assert_eq!(aged(&store, id, AgedKind::Noncurrent, T0 + 29, 10).await.len(), 2);
    // A marker that is the latest again is not noncurrent.
    delete(&store, id, "k", Some(top)).await.unwrap();
    assert_eq!(aged(&store, id, AgedKind::Noncurrent, T0 + 99, 10).await.len(), 4);
    let markers = aged(&store, id, AgedKind::Markers, T0 + 99, 10).await;
    let told: Vec<_> = markers.iter().map(|v| (v.version, v.last_modified_ms, v.since_ms)).collect();
    assert_eq!(told, [(upper, T0 + 40, T0 + 40)]);
    // Nor is an object that is the current version again.
    delete(&store, id, "k", Some(upper)).await.unwrap();
    assert_eq!(aged(&store, id, AgedKind::Markers, T0 + 99, 10).await, []);
    let current = aged(&store, id, AgedKind::Current, T0 + 99, 10).await;
    assert_eq!(keys(&current), ["young", "k"]);
    assert_eq!(current[1].since_ms, T0 + 30);
}

/// The one that is a key's only version, and the one above others.
pub async fn latest_markers_tell_whether_they_hide_anything(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    let object = put_at(&store, id, "hiding", T0).await;
    mark_at(&store, id, "hiding", T0 + 1).await;
    mark_at(&store, id, "alone", T0 + 2).await;
    let standings = async || {
        let found = aged(&store, id, AgedKind::Markers, T0 + 9, 1).await;
        found.into_iter().map(|version| (version.key, version.standing)).collect::<Vec<_>>()
    };
    let marker = |is_alone| Standing::Marker { is_alone };
    assert_eq!(standings().await, [("hiding".to_owned(), marker(false)), ("alone".to_owned(), marker(true))]);
    delete(&store, id, "hiding", Some(object)).await.unwrap();
    assert_eq!(standings().await[0], ("hiding".to_owned(), marker(true)));
    put_at(&store, id, "alone", T0 + 3).await;
    assert_eq!(standings().await.len(), 1);
}

/// Overwritten, tagged, deleted: nothing of it is lost to an expiry that was decided before.
pub async fn an_expiry_spares_what_was_changed_since_it_was_judged(store: Store) {
    for versioning in [Versioning::Unversioned, Versioning::Enabled, Versioning::Suspended] {
        let name = format!("b-{versioning:?}").to_lowercase();
        let id = bucket_with(&store, &name, versioning).await;
        for key in ["overwritten", "tagged", "gone", "same"] {
            put_at(&store, id, key, T0).await;
        }
        let judged = aged(&store, id, AgedKind::Current, T0, 10).await;
        let judged = |key: &str| judged.iter().find(|version| version.key == key).unwrap().clone();
        put_at(&store, id, "overwritten", T0).await;
        store.set_object_tags(change_request(id, "tagged", None, T0), Vec::new()).await.unwrap();
        delete(&store, id, "gone", None).await.unwrap();
        for key in ["overwritten", "tagged", "gone"] {
            let refused = delete_if(&store, id, &judged(key), None, false).await;
            assert!(matches!(refused, Err(MetadataError::PreconditionFailed)), "{versioning:?} {key}: {refused:?}");
        }
        for key in ["overwritten", "tagged"] {
            assert!(!store.object(id, key, None).await.unwrap().is_delete_marker());
        }
        let deleted = delete_if(&store, id, &judged("same"), None, false).await.unwrap();
        assert_eq!(deleted.delete_marker, versioning != Versioning::Unversioned);
        let again = delete_if(&store, id, &judged("same"), None, false).await;
        assert!(matches!(again, Err(MetadataError::PreconditionFailed)));
    }
}

async fn delete_only(store: &Store, id: BucketId, version: &AgedVersion, only_if: OnlyIf) -> bool {
    let only_if = Some(OnlyIf { sequence: version.sequence, ..only_if });
    let request = DeleteRequest { only_if, ..delete_request(&version.key, Some(version.version)) };
    match store.delete_objects(id, vec![request], T0).await.unwrap().remove(0) {
        Ok(_) => true,
        Err(MetadataError::PreconditionFailed) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Its tags and how many are newer change while its number stays.
pub async fn a_noncurrent_version_goes_only_as_it_was_judged(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    let mut made = Vec::new();
    for at in 0..4 {
        made.push(put_at(&store, id, "k", T0 + at).await);
    }
    let tag = |value: &str| vec![Tag { key: "keep".into(), value: value.into() }];
    store.set_object_tags(change_request(id, "k", Some(made[0]), T0), tag("no")).await.unwrap();
    let judged = aged(&store, id, AgedKind::Noncurrent, T0 + 9, 10).await;
    let first = judged.iter().find(|version| version.version == made[0]).unwrap();
    assert_eq!(first.tags, tag("no"));
    let only = |tags, newer| OnlyIf { noncurrent: Some(OnlyNoncurrent { tags, newer }), ..OnlyIf::default() };

    store.set_object_tags(change_request(id, "k", Some(made[0]), T0), tag("yes")).await.unwrap();
    assert!(!delete_only(&store, id, first, only(tag("no"), 0)).await, "it was tagged anew");
    // Two are newer: the third one is the latest version.
    assert!(!delete_only(&store, id, first, only(tag("yes"), 3)).await);
    delete(&store, id, "k", Some(made[1])).await.unwrap();
    assert!(!delete_only(&store, id, first, only(tag("yes"), 2)).await, "it is one of the two that are kept");
    mark_at(&store, id, "k", T0 + 9).await;
    assert!(delete_only(&store, id, first, only(tag("yes"), 2)).await, "under a marker the latest one is noncurrent");
}

/// Other rules, or none, may hold under another revision of the bucket.
pub async fn what_was_judged_under_other_rules_stays(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    let (old, new) = (put_at(&store, id, "k", T0).await, put_at(&store, id, "k", T0 + 1).await);
    let under = store.bucket("b").await.unwrap().revision;
    let judged = aged(&store, id, AgedKind::Noncurrent, T0 + 9, 10).await.remove(0);
    let current = aged(&store, id, AgedKind::Current, T0 + 9, 10).await.remove(0);
    assert_eq!((judged.version, current.version), (old, new));
    store.set_bucket_config("b", id, BucketConfigKind::Lifecycle, None).await.unwrap();
    let only = |revision| OnlyIf { revision: Some(revision), ..OnlyIf::default() };
    for version in [&judged, &current] {
        assert!(!delete_only(&store, id, version, only(under)).await);
    }
    let now = store.bucket("b").await.unwrap().revision;
    assert!(delete_only(&store, id, &judged, only(now)).await);
    assert!(delete_only(&store, id, &current, only(now)).await);
}

/// Not when an object came, nor when it hides something.
pub async fn a_lone_marker_goes_only_while_it_is_alone(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    for key in ["alone", "covered"] {
        mark_at(&store, id, key, T0).await;
    }
    put_at(&store, id, "hiding", T0).await;
    mark_at(&store, id, "hiding", T0).await;
    let judged = aged(&store, id, AgedKind::Markers, T0, 10).await;
    assert_eq!(keys(&judged), ["alone", "covered", "hiding"]);
    put_at(&store, id, "covered", T0).await;
    for (at, is_refused) in [(0, false), (1, true), (2, true)] {
        let marker = &judged[at];
        let result = delete_if(&store, id, marker, Some(marker.version), true).await;
        assert_eq!(matches!(result, Err(MetadataError::PreconditionFailed)), is_refused, "{}", marker.key);
    }
    let left = store.list_versions(id, ListVersionsQuery { limit: 10, ..Default::default() }).await.unwrap().entries;
    assert_eq!(left.len(), 4);
    // A noncurrent version goes by its own number, whatever is above it.
    let covered = aged(&store, id, AgedKind::Noncurrent, T0, 10).await;
    assert_eq!(keys(&covered), ["covered", "hiding"]);
    delete_if(&store, id, &covered[1], Some(covered[1].version), false).await.unwrap();
    let other = AgedVersion { sequence: covered[0].sequence + 1, ..covered[0].clone() };
    let refused = delete_if(&store, id, &other, Some(other.version), false).await;
    assert!(matches!(refused, Err(MetadataError::PreconditionFailed)));
}

/// Oldest first, never the latest version.
pub async fn surplus_versions_are_those_beyond_the_newest(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    let mut made = Vec::new();
    for at in 0..6 {
        made.push(put_at(&store, id, "k", T0 + at).await);
    }
    put_at(&store, id, "kk", T0).await;
    let surplus = async |keep, after, limit| {
        let found = store.surplus_versions(id, "k", keep, after, limit).await.unwrap();
        found.into_iter().map(|version| (version.version, version.sequence)).collect::<Vec<_>>()
    };
    let versions = |found: &[(VersionId, u64)]| found.iter().map(|(version, _)| *version).collect::<Vec<_>>();
    assert_eq!(versions(&surplus(0, 0, 10).await), made[..5]);
    assert_eq!(versions(&surplus(3, 0, 10).await), made[..2]);
    assert_eq!(surplus(5, 0, 10).await, []);
    let first = surplus(2, 0, 2).await;
    assert_eq!(versions(&first), made[..2]);
    assert_eq!(versions(&surplus(2, first[1].1, 2).await), made[2..3]);
    mark_at(&store, id, "k", T0 + 9).await;
    assert_eq!(versions(&surplus(5, 0, 10).await), made[..1], "the marker is the latest, not one of those kept");
}

/// Those of one bucket.
pub async fn uploads_come_by_age(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    let other = bucket_with(&store, "other", Versioning::Unversioned).await;
    let mut begun = Vec::new();
    for (bucket, at) in [(id, 3), (id, 1), (other, 1), (id, 2), (id, 2), (id, 9)] {
        let new = NewUpload { now_ms: T0 + at, ..upload(bucket, "k") };
        begun.push((at, new.id));
        store.create_upload(new).await.unwrap();
    }
    let mut expected: Vec<_> = [0, 1, 3, 4].map(|at| begun[at]).into();
    expected.sort_unstable_by_key(|(at, id)| (*at, *id.as_bytes()));
    for page in 1..6 {
        let (mut found, mut at) = (Vec::new(), AgePosition::default());
        loop {
            let uploads = store.aged_uploads(id, &at, T0 + 3, page).await.unwrap();
            let Some(last) = uploads.last() else { break };
            at = last.position();
            found.extend(uploads.iter().map(|upload| (upload.new.now_ms - T0, upload.new.id)));
        }
        assert_eq!(found, expected, "pages of {page}");
    }
}

/// They go with the rules that they belong to.
pub async fn cursors_are_kept_for_one_generation(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    let other = bucket_with(&store, "other", Versioning::Unversioned).await;
    let at = |at_ms| AgePosition { at_ms, name: "key/\u{e9}".into(), sequence: 7 };
    for (bucket, stream, at_ms) in [(id, "a", 1), (id, "b", 2), (id, "a", 3), (other, "a", 4)] {
        store.save_lifecycle_cursor(bucket, 5, stream, &at(at_ms), None).await.unwrap();
    }
    let mut found = store.lifecycle_cursors(id, 5).await.unwrap();
    found.sort();
    assert_eq!(found, [("a".to_owned(), at(3)), ("b".to_owned(), at(2))]);
    assert_eq!(store.lifecycle_cursors(id, 6).await.unwrap(), []);
    store.save_lifecycle_cursor(id, 6, "c", &at(9), None).await.unwrap();
    assert_eq!(store.lifecycle_cursors(id, 5).await.unwrap(), []);
    assert_eq!(store.lifecycle_cursors(id, 6).await.unwrap().len(), 1);
    store.set_bucket_config("b", id, BucketConfigKind::Policy, Some("{}".into())).await.unwrap();
    assert_eq!(store.lifecycle_cursors(id, 6).await.unwrap().len(), 1);
    store.set_bucket_config("b", id, BucketConfigKind::Lifecycle, Some("{}".into())).await.unwrap();
    assert_eq!(store.lifecycle_cursors(id, 6).await.unwrap(), []);
    assert_eq!(store.lifecycle_cursors(other, 5).await.unwrap().len(), 1);
}

/// Tags, what is the latest version, and a marker that hides nothing any more.
pub async fn changes_that_move_nothing_are_noted_while_there_are_rules(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    let tags = || vec![Tag { key: "a".into(), value: "b".into() }];
    put(&store, id, "k", 1).await;
    store.set_object_tags(change_request(id, "k", None, T0), tags()).await.unwrap();
    assert_eq!(store.rechecks(id, 10).await.unwrap(), [], "nobody would ever look");
    store.set_bucket_config("b", id, BucketConfigKind::Lifecycle, Some("{}".into())).await.unwrap();

    let old = put_at(&store, id, "tagged", T0).await;
    put_at(&store, id, "tagged", T0 + 1).await;
    assert_eq!(store.rechecks(id, 10).await.unwrap(), []);
    store.set_object_tags(change_request(id, "tagged", Some(old), T0), tags()).await.unwrap();
    store.set_object_tags(change_request(id, "k", None, T0), Vec::new()).await.unwrap();
    let noted = store.rechecks(id, 10).await.unwrap();
    let mut standings: Vec<_> = noted[0].versions.iter().map(|v| (v.standing, v.tags.len())).collect();
    standings.sort_by_key(|(standing, _)| *standing == Standing::Noncurrent);
    assert_eq!(standings, [(Standing::Current, 0), (Standing::Noncurrent, 1)]);
    assert_eq!((noted.len(), noted[1].versions.len(), noted[1].versions[0].key.as_str()), (2, 1, "k"));
    assert_eq!(store.rechecks(id, 1).await.unwrap(), noted[..1]);
    let ids: Vec<u64> = noted.iter().map(|recheck| recheck.id).collect();
    store.finish_rechecks(&ids, None).await.unwrap();
    assert_eq!(store.rechecks(id, 10).await.unwrap(), []);

    let finish_all = async || {
        let noted = store.rechecks(id, 10).await.unwrap();
        let ids: Vec<u64> = noted.iter().map(|recheck| recheck.id).collect();
        store.finish_rechecks(&ids, None).await.unwrap();
        noted.into_iter().flat_map(|recheck| recheck.versions).map(|v| (v.key, v.standing)).collect::<Vec<_>>()
    };
    // An old object is the latest version again.
    let marker = mark_at(&store, id, "k", T0 + 5).await;
    assert_eq!(finish_all().await, []);
    delete(&store, id, "k", Some(marker)).await.unwrap();
    assert_eq!(finish_all().await, [("k".to_owned(), Standing::Current)]);
    // A marker is left alone.
    let [first, second] = [put_at(&store, id, "m", T0).await, put_at(&store, id, "m", T0 + 1).await];
    mark_at(&store, id, "m", T0 + 2).await;
    delete(&store, id, "m", Some(first)).await.unwrap();
    assert_eq!(finish_all().await, [], "it still hides something");
    delete(&store, id, "m", Some(second)).await.unwrap();
    assert_eq!(finish_all().await, [("m".to_owned(), Standing::Marker { is_alone: true })]);
    // What is gone since has nothing to be looked at; and all notes go with the rules.
    store.set_object_tags(change_request(id, "k", None, T0), tags()).await.unwrap();
    let latest = store.object(id, "k", None).await.unwrap();
    delete(&store, id, "k", Some(latest.version)).await.unwrap();
    let noted = store.rechecks(id, 10).await.unwrap();
    assert!(noted[0].versions.is_empty());
    store.set_bucket_config("b", id, BucketConfigKind::Lifecycle, None).await.unwrap();
    assert_eq!(store.rechecks(id, 10).await.unwrap(), []);
}

/// As all writes of a duty.
pub async fn a_cursor_under_a_lower_token_is_refused(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    let fence = |token| Fence { name: LeaseName::new("lifecycle").unwrap(), token: FencingToken(token) };
    let (at, later) =
        (AgePosition { at_ms: 1, ..AgePosition::default() }, AgePosition { at_ms: 2, ..Default::default() });
    store.save_lifecycle_cursor(id, 1, "a", &at, Some(&fence(2))).await.unwrap();
    let refused = store.save_lifecycle_cursor(id, 1, "a", &later, Some(&fence(1))).await;
    assert!(matches!(refused, Err(MetadataError::Fenced { .. })), "{refused:?}");
    let refused = store.finish_rechecks(&[1], Some(&fence(1))).await;
    assert!(matches!(refused, Err(MetadataError::Fenced { .. })), "{refused:?}");
    assert_eq!(store.lifecycle_cursors(id, 1).await.unwrap(), [("a".to_owned(), at)]);
}

/// A version of the naive model, newest first in its key: `(version, modified, became what it is, is a marker)`.
type Naive = (VersionId, u64, u64, bool);

/// Whatever happens to keys, the three kinds hold exactly what a list of versions says that they hold.
pub async fn random_histories_age_as_a_naive_model(store: Store) {
    for (round, seed) in seeds(3).into_iter().enumerate() {
        println!("HOLDFAST_TEST_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let name = format!("b{round}");
        let id = bucket_with(&store, &name, Versioning::Enabled).await;
        let mut model: BTreeMap<String, Vec<Naive>> = BTreeMap::new();
        for step in 0..80 {
            let now_ms = T0 + step * 10;
            let key = format!("k{}", rng.random_range(0..4));
            let versions = model.entry(key.clone()).or_default();
            match rng.random_range(0..4) {
                0 | 1 => {
                    let version = put_at(&store, id, &key, now_ms).await;
                    newest(versions, (version, now_ms, now_ms, false));
                }
                2 => {
                    let version = mark_at(&store, id, &key, now_ms).await;
                    newest(versions, (version, now_ms, now_ms, true));
                }
                _ if versions.is_empty() => {}
                _ => {
                    let (version, ..) = versions.remove(rng.random_range(0..versions.len()));
                    delete(&store, id, &key, Some(version)).await.unwrap();
                    if let Some(first) = versions.first_mut() {
                        first.2 = first.1;
                    }
                }
            }
        }
        for kind in [AgedKind::Current, AgedKind::Noncurrent, AgedKind::Markers] {
            let mut expected = Vec::new();
            for (key, versions) in &model {
                for (place, (version, modified_ms, since_ms, marker)) in versions.iter().enumerate() {
                    let standing = match (place, marker) {
                        (0, false) => AgedKind::Current,
                        (0, true) => AgedKind::Markers,
                        _ => AgedKind::Noncurrent,
                    };
                    if standing == kind {
                        let alone = versions.len() == 1 && *marker;
                        expected.push((*since_ms, key.clone(), *version, *modified_ms, alone));
                    }
                }
            }
            let found = aged(&store, id, kind, u64::MAX, rng.random_range(1..20)).await;
            let mut found: Vec<_> = found
                .into_iter()
                .map(|v| {
                    let alone = v.standing == Standing::Marker { is_alone: true };
                    (v.since_ms, v.key, v.version, v.last_modified_ms, alone)
                })
                .collect();
            assert!(found.is_sorted_by_key(|(since_ms, key, ..)| (*since_ms, key.clone())));
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{kind:?}");
        }
    }
}

/// Puts a version above the others.
fn newest(versions: &mut Vec<Naive>, version: Naive) {
    if let Some(first) = versions.first_mut() {
        first.2 = version.1;
    }
    versions.insert(0, version);
}
