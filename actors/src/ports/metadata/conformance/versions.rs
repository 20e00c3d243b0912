//! Versioning, in its three states.

use holdfast_protocol::VersionId;

use super::{Store, T0, bucket_with, content_of, delete, delete_request, latest, put};
use crate::ports::metadata::{BucketId, Deleted, ListVersionsQuery, MetadataError, Versioning};

/// `(version, is latest, is marker)` of all versions of a bucket.
async fn all(store: &Store, id: BucketId) -> Vec<(VersionId, bool, bool)> {
    let page = store.list_versions(id, ListVersionsQuery { limit: 1000, ..Default::default() }).await.unwrap();
    assert_eq!(page.next, None);
    page.entries.iter().map(|v| (v.version, v.is_latest, v.is_delete_marker())).collect()
}

/// A write replaces, a deletion removes, and neither speaks of versions.
pub async fn unversioned_keeps_one_version(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    put(&store, id, "k", 1).await;
    let second = put(&store, id, "k", 2).await.object;
    assert_eq!(second.version, VersionId::NULL);
    assert_eq!(all(&store, id).await, [(VersionId::NULL, true, false)]);
    let nothing = Deleted { version: None, delete_marker: false };
    let unknown = delete(&store, id, "k", Some(VersionId([7; 12]))).await.unwrap();
    assert_eq!(unknown, nothing);
    assert_eq!(latest(&store, id, "k").await.unwrap(), second);
    assert_eq!(delete(&store, id, "k", None).await.unwrap(), nothing);
    assert_eq!(all(&store, id).await, []);
    assert_eq!(delete(&store, id, "k", None).await.unwrap(), nothing);
    put(&store, id, "k", 3).await;
    delete(&store, id, "k", Some(VersionId::NULL)).await.unwrap();
    assert!(matches!(latest(&store, id, "k").await, Err(MetadataError::NoSuchKey)));
}

/// Each write adds a version, each deletion a marker, also of a key that never was.
pub async fn enabled_adds_versions_and_markers(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    let null = put(&store, id, "k", 1).await.object;
    store.set_versioning("b", id, Versioning::Enabled).await.unwrap();
    let first = put(&store, id, "k", 2).await;
    assert_eq!(first.versioning, Versioning::Enabled);
    assert!(!first.object.version.is_null());
    let second = put(&store, id, "k", 3).await.object;
    let deleted = delete(&store, id, "k", None).await.unwrap();
    assert!(deleted.delete_marker);
    let marker = deleted.version.unwrap();
    assert_eq!(
        all(&store, id).await,
        [
            (marker, true, true),
            (second.version, false, false),
            (first.object.version, false, false),
            (VersionId::NULL, false, false)
        ]
    );
    let read = latest(&store, id, "k").await.unwrap();
    assert!(read.is_delete_marker() && read.is_latest && read.version == marker);
    let old = store.object(id, "k", Some(VersionId::NULL)).await.unwrap();
    assert_eq!((content_of(&old), old.is_latest), (content_of(&null), false));
    let again = delete(&store, id, "k", None).await.unwrap();
    assert!(again.delete_marker && again.version != Some(marker));
    let never = delete(&store, id, "never", None).await.unwrap();
    assert!(never.delete_marker && never.version.is_some());
    assert!(latest(&store, id, "never").await.unwrap().is_delete_marker());
    assert_eq!(store.due_reclaims(T0 + 1000, 10, None).await.unwrap(), []);
}

/// Writes and deletions go for the null version; named versions stay.
pub async fn suspended_replaces_only_the_null_version(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    let named = put(&store, id, "k", 1).await.object;
    store.set_versioning("b", id, Versioning::Suspended).await.unwrap();
    assert_eq!(put(&store, id, "k", 2).await.object.version, VersionId::NULL);
    put(&store, id, "k", 3).await;
    assert_eq!(all(&store, id).await, [(VersionId::NULL, true, false), (named.version, false, false)]);
    assert_eq!(store.due_reclaims(T0 + 1000, 10, None).await.unwrap().len(), 1);

    let deleted = delete(&store, id, "k", None).await.unwrap();
    assert_eq!(deleted, Deleted { version: Some(VersionId::NULL), delete_marker: true });
    assert_eq!(all(&store, id).await, [(VersionId::NULL, true, true), (named.version, false, false)]);
    // A marker over a marker; an object over a marker.
    delete(&store, id, "k", None).await.unwrap();
    assert_eq!(all(&store, id).await, [(VersionId::NULL, true, true), (named.version, false, false)]);
    put(&store, id, "k", 4).await;
    assert_eq!(all(&store, id).await, [(VersionId::NULL, true, false), (named.version, false, false)]);

    // The null version may lie below a named one.
    store.set_versioning("b", id, Versioning::Enabled).await.unwrap();
    let top = put(&store, id, "k", 5).await.object;
    store.set_versioning("b", id, Versioning::Suspended).await.unwrap();
    put(&store, id, "k", 6).await;
    assert_eq!(
        all(&store, id).await,
        [(VersionId::NULL, true, false), (top.version, false, false), (named.version, false, false)]
    );
    store.set_versioning("b", id, Versioning::Enabled).await.unwrap();
    let higher = put(&store, id, "k", 7).await.object;
    store.set_versioning("b", id, Versioning::Suspended).await.unwrap();
    delete(&store, id, "k", None).await.unwrap();
    assert_eq!(
        all(&store, id).await,
        [
            (VersionId::NULL, true, true),
            (higher.version, false, false),
            (top.version, false, false),
            (named.version, false, false)
        ]
    );
}

/// Removing the latest version for good makes the one before it the latest.
pub async fn removing_the_latest_brings_the_one_before_back(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    let v1 = put(&store, id, "k", 1).await.object;
    let v2 = put(&store, id, "k", 2).await.object;
    let v3 = put(&store, id, "k", 3).await.object;
    let removed = delete(&store, id, "k", Some(v3.version)).await.unwrap();
    assert_eq!(removed, Deleted { version: Some(v3.version), delete_marker: false });
    let now = latest(&store, id, "k").await.unwrap();
    assert_eq!((now.version, now.is_latest, content_of(&now)), (v2.version, true, content_of(&v2)));
    assert!(now.sequence > v3.sequence, "a cache that saw the removed version must take this one for newer");
    assert_eq!(now.last_modified_ms, v2.last_modified_ms);
    // An old one goes without a change of the latest.
    delete(&store, id, "k", Some(v1.version)).await.unwrap();
    assert_eq!(latest(&store, id, "k").await.unwrap(), now);
    assert!(matches!(store.object(id, "k", Some(v1.version)).await, Err(MetadataError::NoSuchVersion)));
    // What is not there is removed all the same.
    let gone = delete(&store, id, "k", Some(v1.version)).await.unwrap();
    assert_eq!(gone, Deleted { version: Some(v1.version), delete_marker: false });
    delete(&store, id, "k", Some(v2.version)).await.unwrap();
    assert!(matches!(latest(&store, id, "k").await, Err(MetadataError::NoSuchKey)));
    assert_eq!(store.due_reclaims(T0 + 1000, 10, None).await.unwrap().len(), 3);
}

/// Undelete, through markers over markers.
pub async fn removing_a_marker_brings_the_object_back(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    let object = put(&store, id, "k", 1).await.object;
    let below = delete(&store, id, "k", None).await.unwrap().version;
    let above = delete(&store, id, "k", None).await.unwrap().version;
    let removed = delete(&store, id, "k", above).await.unwrap();
    assert_eq!(removed, Deleted { version: above, delete_marker: true });
    let now = latest(&store, id, "k").await.unwrap();
    assert_eq!((Some(now.version), now.is_delete_marker(), now.is_latest), (below, true, true));
    delete(&store, id, "k", below).await.unwrap();
    let now = latest(&store, id, "k").await.unwrap();
    assert_eq!((now.version, now.is_latest), (object.version, true));
    let page =
        store.list_objects(id, crate::ports::metadata::ListQuery { limit: 5, ..Default::default() }).await.unwrap();
    assert_eq!(page.entries.len(), 1);
}

/// A key that vanished and came back counts on.
pub async fn sequences_rise_even_after_deletions(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    let mut last = 0;
    for i in 0..5 {
        let object = put(&store, id, "k", i).await.object;
        assert!(object.sequence > last);
        last = object.sequence;
        delete(&store, id, "k", None).await.unwrap();
    }
}

/// Clients empty a bucket by deleting all versions that a listing gave, many of one key in one request.
pub async fn all_versions_of_a_key_can_be_deleted_at_once(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    for i in 0..20 {
        put(&store, id, "k", i).await;
        if i % 5 == 0 {
            delete(&store, id, "k", None).await.unwrap();
        }
    }
    let listed = all(&store, id).await;
    assert_eq!(listed.len(), 24);
    let requests = listed.iter().map(|(version, ..)| delete_request("k", Some(*version))).collect();
    for (result, (version, _, marker)) in store.delete_objects(id, requests, T0).await.unwrap().into_iter().zip(listed)
    {
        assert_eq!(result.unwrap(), Deleted { version: Some(version), delete_marker: marker });
    }
    assert_eq!(all(&store, id).await, []);
    assert!(matches!(latest(&store, id, "k").await, Err(MetadataError::NoSuchKey)));
    store.delete_bucket("b", id).await.unwrap();
}
