//! Writes, conditions and reads of objects.

use futures::future::join_all;
use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::{ChecksumAlgorithm, ChecksumType, VersionId};

use super::{
    Store, T0, bucket, bucket_with, change_request, content, delete, delete_request, etag, latest, object, put,
};
use crate::ports::metadata::{
    BucketId, CannedAcl, ChangeRequest, ContentSource, MetadataError, ObjectAttributes, ObjectPart, ObjectVersion,
    OnlyIf, OnlyNoncurrent, Tag, Versioning, WritePrecondition,
};

/// Nothing of what was written is lost or changed, and the answer is what a read gives.
pub async fn a_commit_is_read_back_whole(store: Store) {
    let id = bucket(&store, "b").await.id;
    let mut new = object(id, "k", 1);
    let mut bytes = content(1);
    bytes.checksum = Some(Checksum {
        algorithm: ChecksumAlgorithm::Sha256,
        checksum_type: ChecksumType::Composite,
        value: vec![7; 32],
        parts: Some(2),
    });
    bytes.parts = vec![
        ObjectPart { number: 1, size_bytes: 5 << 20, checksum: Some(vec![1; 32]) },
        ObjectPart { number: 3, size_bytes: 1, checksum: None },
    ];
    new.content = ContentSource::New(bytes);
    new.attributes = ObjectAttributes {
        content_type: Some("text/plain; charset=\"ü\"".into()),
        cache_control: Some("no-cache".into()),
        content_disposition: Some("inline".into()),
        content_encoding: Some("gzip".into()),
        content_language: Some("de".into()),
        expires: Some("soon".into()),
        website_redirect_location: Some("/x".into()),
        user_metadata: vec![("a".into(), "1".into()), ("b".into(), "\"\u{1F980}".into())],
        completion: Some("00ff".into()),
    };
    new.tags = vec![Tag { key: "t".into(), value: "v".into() }];
    new.acl = CannedAcl::PublicRead;
    let committed = store.commit_object(new.clone()).await.unwrap();
    assert_eq!(committed.versioning, Versioning::Unversioned);
    let read = latest(&store, id, "k").await.unwrap();
    assert_eq!(read, committed.object);
    assert_eq!(store.object(id, "k", Some(VersionId::NULL)).await.unwrap(), read);
    assert_eq!(read.attributes, new.attributes);
    assert_eq!((read.is_latest, read.version, read.last_modified_ms), (true, VersionId::NULL, new.now_ms));
    assert!(matches!(latest(&store, id, "K").await, Err(MetadataError::NoSuchKey)));
    let other = Some(VersionId([1; 12]));
    assert!(matches!(store.object(id, "k", other).await, Err(MetadataError::NoSuchVersion)));
}

/// Also when the bucket was deleted in between.
pub async fn a_write_to_a_missing_bucket_is_refused(store: Store) {
    let id = bucket(&store, "b").await.id;
    store.delete_bucket("b", id).await.unwrap();
    for id in [id, BucketId(1 << 40)] {
        let refused = store.commit_object(object(id, "k", 1)).await;
        assert!(matches!(refused, Err(MetadataError::NoSuchBucket)), "{refused:?}");
        assert!(matches!(store.create_upload(super::upload(id, "k")).await, Err(MetadataError::NoSuchBucket)));
    }
}

/// Case, accents, trailing blanks, control characters, length: two keys are one only if their bytes are.
pub async fn keys_are_byte_exact(store: Store) {
    let id = bucket(&store, "b").await.id;
    let mut keys: Vec<String> = (0..=0xff_u32).filter_map(char::from_u32).map(|c| format!("x{c}")).collect();
    keys.extend(
        [
            "a",
            "A",
            "a ",
            " a",
            "a\0",
            "\u{e9}",
            "e\u{301}",
            "\u{df}",
            "ss",
            "\u{ffff}",
            "\u{10000}",
            "\u{10ffff}",
            "%_\\'\"",
            "\0",
        ]
        .map(str::to_owned),
    );
    keys.extend(["y".repeat(1023), "y".repeat(1024), "\u{1F980}".repeat(256)]);
    for (i, key) in keys.iter().enumerate() {
        store.commit_object(object(id, key, i as u8)).await.unwrap();
    }
    for (i, key) in keys.iter().enumerate() {
        let read = latest(&store, id, key).await.unwrap();
        assert_eq!(read.key, *key);
        assert_eq!(read.content.as_ref().unwrap().etag, etag(i as u8), "key {key:?}");
    }
    keys.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    let query = crate::ports::metadata::ListQuery { limit: 1000, ..Default::default() };
    let page = store.list_objects(id, query).await.unwrap();
    assert_eq!(page.entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>(), keys);
}

/// The conditional create is a lock that clients build on.
pub async fn if_none_match_lets_exactly_one_of_many_through(store: Store) {
    for versioning in [Versioning::Unversioned, Versioning::Enabled, Versioning::Suspended] {
        let id = bucket_with(&store, &format!("b{versioning:?}").to_lowercase(), versioning).await;
        let condition = WritePrecondition { must_not_exist: true, must_match: None };
        for round in 0..3 {
            let writers = (0..16).map(|i| {
                let store = store.clone();
                let mut new = object(id, "k", i);
                new.precondition = condition.clone();
                tokio::spawn(async move { store.commit_object(new).await })
            });
            let mut winners = Vec::new();
            for result in join_all(writers).await {
                match result.unwrap() {
                    Ok(committed) => winners.push(committed),
                    Err(error) => assert!(matches!(error, MetadataError::PreconditionFailed), "{error:?}"),
                }
            }
            assert_eq!(winners.len(), 1, "round {round}");
            assert_eq!(latest(&store, id, "k").await.unwrap(), winners[0].object);
            // A delete marker counts as absent.
            delete(&store, id, "k", None).await.unwrap();
        }
    }
}

/// A missing object is `NoSuchKey`, another ETag is `PreconditionFailed`, and `*` takes any.
pub async fn if_match_compares_with_the_latest_etag(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    let with = |must_match| {
        let mut new = object(id, "k", 2);
        new.precondition = WritePrecondition { must_not_exist: false, must_match: Some(must_match) };
        new
    };
    assert!(matches!(store.commit_object(with(None)).await, Err(MetadataError::NoSuchKey)));
    put(&store, id, "k", 1).await;
    assert!(matches!(store.commit_object(with(Some(etag(9)))).await, Err(MetadataError::PreconditionFailed)));
    store.commit_object(with(Some(etag(1)))).await.unwrap();
    assert!(matches!(store.commit_object(with(Some(etag(1)))).await, Err(MetadataError::PreconditionFailed)));
    store.commit_object(with(None)).await.unwrap();
    delete(&store, id, "k", None).await.unwrap();
    assert!(matches!(store.commit_object(with(None)).await, Err(MetadataError::NoSuchKey)));
}

/// Compare-and-swap loops lose no update.
pub async fn if_match_lets_exactly_one_of_many_through(store: Store) {
    let id = bucket(&store, "b").await.id;
    put(&store, id, "k", 100).await;
    let writers = (0..16).map(|i| {
        let store = store.clone();
        let mut new = object(id, "k", i);
        new.precondition = WritePrecondition { must_not_exist: false, must_match: Some(Some(etag(100))) };
        tokio::spawn(async move { store.commit_object(new).await })
    });
    let results = join_all(writers).await;
    assert_eq!(results.into_iter().filter(|r| r.as_ref().unwrap().is_ok()).count(), 1);
}

/// What is latest is what was committed last.
pub async fn writers_of_one_key_leave_the_one_with_the_highest_sequence(store: Store) {
    for versioning in [Versioning::Unversioned, Versioning::Enabled] {
        let id = bucket_with(&store, &format!("b{versioning:?}").to_lowercase(), versioning).await;
        let writers = (0..32).map(|i| {
            let store = store.clone();
            let new = object(id, "k", i);
            tokio::spawn(async move { store.commit_object(new).await.unwrap() })
        });
        let committed: Vec<_> = join_all(writers).await.into_iter().map(Result::unwrap).collect();
        let last = committed.iter().max_by_key(|committed| committed.object.sequence).unwrap();
        assert_eq!(latest(&store, id, "k").await.unwrap(), last.object);
        let distinct: std::collections::HashSet<u64> = committed.iter().map(|c| c.object.sequence).collect();
        assert_eq!(distinct.len(), 32);
    }
}

/// Changes hit the version named, or the latest, and nothing else.
pub async fn tags_and_acl_change_one_version(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    let old = put(&store, id, "k", 1).await.object;
    let new = put(&store, id, "k", 2).await.object;
    let tags = |value: &str| vec![Tag { key: "t".into(), value: value.into() }];
    assert_eq!(store.set_object_tags(change_request(id, "k", None, 5), tags("new")).await.unwrap(), new.version);
    assert_eq!(
        store.set_object_tags(change_request(id, "k", Some(old.version), 5), tags("old")).await.unwrap(),
        old.version
    );
    assert_eq!(
        store.set_object_acl(change_request(id, "k", Some(old.version), 5), CannedAcl::PublicRead).await.unwrap(),
        old.version
    );
    let latest_now = latest(&store, id, "k").await.unwrap();
    assert_eq!((latest_now.version, latest_now.tags.clone(), latest_now.acl), (new.version, tags("new"), new.acl));
    assert!(latest_now.sequence > new.sequence, "caches order the latest version by its sequence");
    assert_eq!(latest_now.last_modified_ms, new.last_modified_ms);
    let old_now = store.object(id, "k", Some(old.version)).await.unwrap();
    assert_eq!((old_now.tags.clone(), old_now.acl, old_now.is_latest), (tags("old"), CannedAcl::PublicRead, false));
    store.set_object_tags(change_request(id, "k", None, 5), Vec::new()).await.unwrap();
    assert_eq!(latest(&store, id, "k").await.unwrap().tags, []);

    assert!(matches!(
        store.set_object_tags(change_request(id, "none", None, 5), Vec::new()).await,
        Err(MetadataError::NoSuchKey)
    ));
    let missing = store.set_object_acl(change_request(id, "k", Some(VersionId([9; 12])), 5), CannedAcl::Private).await;
    assert!(matches!(missing, Err(MetadataError::NoSuchVersion)));
    delete(&store, id, "k", None).await.unwrap();
    assert!(matches!(
        store.set_object_tags(change_request(id, "k", None, 5), Vec::new()).await,
        Err(MetadataError::NoSuchKey)
    ));
}

/// Who was allowed to change an object may not be allowed to change the one that took its place.
pub async fn tags_and_acl_change_only_what_was_judged(store: Store) {
    let tags = |value: &str| vec![Tag { key: "t".into(), value: value.into() }];
    let only = |judged: &ObjectVersion| {
        let noncurrent = Some(OnlyNoncurrent { tags: judged.tags.clone(), newer: 0 });
        Some(OnlyIf { sequence: judged.sequence, noncurrent, ..OnlyIf::default() })
    };
    for versioning in [Versioning::Unversioned, Versioning::Suspended, Versioning::Enabled] {
        let id = bucket_with(&store, &format!("b-{versioning:?}").to_lowercase(), versioning).await;
        put(&store, id, "k", 1).await;
        let judged = latest(&store, id, "k").await.unwrap();
        let change = |version| ChangeRequest { only_if: only(&judged), ..change_request(id, "k", version, 5) };
        store.set_object_acl(change(None), CannedAcl::PublicRead).await.unwrap();
        let again = store.set_object_tags(change(None), tags("stale")).await;
        assert!(matches!(again, Err(MetadataError::PreconditionFailed)), "{versioning:?}: {again:?}");

        let judged = latest(&store, id, "k").await.unwrap();
        let change = |version| ChangeRequest { only_if: only(&judged), ..change_request(id, "k", version, 5) };
        let next = put(&store, id, "k", 2).await.object;
        // The null version is one name of both, where there is no other.
        let named = (judged.version == next.version).then_some(next.version);
        for version in [None, named] {
            let refused = store.set_object_tags(change(version), tags("stale")).await;
            assert!(matches!(refused, Err(MetadataError::PreconditionFailed)), "{versioning:?}: {refused:?}");
            let refused = store.set_object_acl(change(version), CannedAcl::PublicRead).await;
            assert!(matches!(refused, Err(MetadataError::PreconditionFailed)), "{versioning:?}: {refused:?}");
        }
        let now = latest(&store, id, "k").await.unwrap();
        assert_eq!((&now.tags, now.acl, now.sequence), (&next.tags, next.acl, next.sequence), "{versioning:?}");

        let judged = now;
        let change = ChangeRequest { only_if: only(&judged), ..change_request(id, "k", Some(judged.version), 5) };
        store.set_object_tags(change, tags("new")).await.unwrap();
        let judged = latest(&store, id, "k").await.unwrap();
        assert_eq!(judged.tags, tags("new"), "{versioning:?}");
        delete(&store, id, "k", None).await.unwrap();
        let change = ChangeRequest { only_if: only(&judged), ..change_request(id, "k", None, 5) };
        let gone = store.set_object_tags(change, tags("stale")).await;
        assert!(matches!(gone, Err(MetadataError::NoSuchKey)), "{versioning:?}: {gone:?}");
    }

    // A noncurrent version keeps its number when it is tagged anew.
    let id = bucket_with(&store, "noncurrent", Versioning::Enabled).await;
    let old = put(&store, id, "k", 1).await.object.version;
    put(&store, id, "k", 2).await;
    let judged = store.object(id, "k", Some(old)).await.unwrap();
    let change = || ChangeRequest { only_if: only(&judged), ..change_request(id, "k", Some(old), 5) };
    store.set_object_tags(change(), tags("held")).await.unwrap();
    let refused = store.set_object_tags(change(), tags("stale")).await;
    assert!(matches!(refused, Err(MetadataError::PreconditionFailed)), "{refused:?}");
    let refused = store.set_object_acl(change(), CannedAcl::PublicRead).await;
    assert!(matches!(refused, Err(MetadataError::PreconditionFailed)), "{refused:?}");
    let now = store.object(id, "k", Some(old)).await.unwrap();
    assert_eq!((now.tags.clone(), now.acl), (tags("held"), CannedAcl::Private));

    // So does one that was the latest when it was judged.
    let judged = latest(&store, id, "k").await.unwrap();
    put(&store, id, "k", 3).await;
    let change = || ChangeRequest { only_if: only(&judged), ..change_request(id, "k", Some(judged.version), 5) };
    store.set_object_tags(change(), tags("held")).await.unwrap();
    let refused = store.set_object_tags(change(), tags("stale")).await;
    assert!(matches!(refused, Err(MetadataError::PreconditionFailed)), "{refused:?}");
    let refused = store.set_object_acl(change(), CannedAcl::PublicRead).await;
    assert!(matches!(refused, Err(MetadataError::PreconditionFailed)), "{refused:?}");
}

/// Present and missing keys together; results come in the order of the requests.
pub async fn a_thousand_are_deleted_each_by_itself(store: Store) {
    let id = bucket(&store, "b").await.id;
    let puts = (0..500).map(|i| {
        let store = store.clone();
        tokio::spawn(async move { put(&store, id, &format!("k{i:04}"), i as u8).await })
    });
    for result in join_all(puts).await {
        result.unwrap();
    }
    let requests = (0..1000).map(|i| delete_request(&format!("k{i:04}"), None)).collect();
    let results = store.delete_objects(id, requests, T0).await.unwrap();
    assert_eq!(results.len(), 1000);
    for result in results {
        let deleted = result.unwrap();
        assert_eq!((deleted.version, deleted.delete_marker), (None, false));
    }
    let query = crate::ports::metadata::ListQuery { limit: 10, ..Default::default() };
    assert!(store.list_objects(id, query).await.unwrap().entries.is_empty());
    assert_eq!(store.due_reclaims(T0 + 1, 1000, None).await.unwrap().len(), 500);
}

/// One request's condition does not hold: the others go through.
pub async fn a_conditional_delete_is_refused_alone(store: Store) {
    let id = bucket(&store, "b").await.id;
    put(&store, id, "a", 1).await;
    put(&store, id, "b", 2).await;
    let mut refused = delete_request("a", None);
    refused.precondition = WritePrecondition { must_not_exist: false, must_match: Some(Some(etag(9))) };
    let mut held = delete_request("b", None);
    held.precondition = WritePrecondition { must_not_exist: false, must_match: Some(Some(etag(2))) };
    let results = store.delete_objects(id, vec![refused, held], T0).await.unwrap();
    assert!(matches!(results[0], Err(MetadataError::PreconditionFailed)));
    assert!(results[1].is_ok());
    assert!(latest(&store, id, "a").await.is_ok());
    assert!(matches!(latest(&store, id, "b").await, Err(MetadataError::NoSuchKey)));
}
