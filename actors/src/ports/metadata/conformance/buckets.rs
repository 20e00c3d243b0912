//! Buckets.

use futures::future::join_all;

use super::{Store, T0, bucket, object, owner, put, upload};
use crate::ports::metadata::{Bucket, BucketConfigKind, BucketEntry, CannedAcl, MetadataError, NewBucket, Versioning};

fn new(name: &str, owner: &str) -> NewBucket {
    NewBucket { name: name.into(), owner: owner.into(), acl: CannedAcl::Private, now_ms: T0 }
}

/// Two users cannot have one name; a bucket made again is another one.
pub async fn names_are_unique_and_bucket_numbers_are_never_reused(store: Store) {
    owner(&store, "bob").await;
    let first = bucket(&store, "b").await;
    assert!(matches!(
        store.create_bucket(new("b", "alice")).await,
        Err(MetadataError::BucketExists { owned_by_caller: true })
    ));
    assert!(matches!(
        store.create_bucket(new("b", "bob")).await,
        Err(MetadataError::BucketExists { owned_by_caller: false })
    ));
    assert_eq!(store.bucket("b").await.unwrap(), first);
    store.delete_bucket("b", first.id).await.unwrap();
    assert!(matches!(store.bucket("b").await, Err(MetadataError::NoSuchBucket)));
    let second = store.create_bucket(new("b", "bob")).await.unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(second.owner, "bob");

    for i in 0..8 {
        owner(&store, &format!("user{i}")).await;
    }
    let creations = (0..8).map(|i| {
        let store = store.clone();
        tokio::spawn(async move { store.create_bucket(new("raced", &format!("user{i}"))).await })
    });
    let results = futures::future::join_all(creations).await;
    assert_eq!(results.into_iter().filter(|r| r.as_ref().unwrap().is_ok()).count(), 1);
}

/// Of a bucket that is made and its owner's removal at the same time one is refused.
pub async fn an_owner_is_there_before_the_bucket_and_stays_as_long(store: Store) {
    let nobody = store.create_bucket(new("b", "nobody")).await;
    assert!(matches!(nobody, Err(MetadataError::NotFound("user"))), "{nobody:?}");
    assert!(matches!(store.bucket("b").await, Err(MetadataError::NoSuchBucket)));
    for round in 0..8 {
        owner(&store, "carol").await;
        let creating = tokio::spawn({
            let store = store.clone();
            async move { store.create_bucket(new("b", "carol")).await }
        });
        let removed = store.delete_user("carol").await;
        match (creating.await.unwrap(), removed) {
            (Ok(made), Err(MetadataError::BucketNotEmpty)) => store.delete_bucket("b", made.id).await.unwrap(),
            (Err(MetadataError::NotFound("user")), Ok(())) => {}
            (created, removed) => panic!("round {round}: {created:?}, {removed:?}"),
        }
    }
}

/// Documents are set, replaced and removed; each change raises the revision.
pub async fn configuration_is_replaced_removed_and_raises_the_revision(store: Store) {
    owner(&store, "alice").await;
    let public = NewBucket { acl: CannedAcl::PublicRead, ..new("b", "alice") };
    let created = store.create_bucket(public).await.unwrap();
    assert_eq!(created.config(BucketConfigKind::Acl), Some("\"public-read\""));
    assert_eq!(*store.bucket("b").await.unwrap(), *created);
    let mut revision = created.revision;
    for kind in BucketConfigKind::ALL {
        for value in [Some("one"), Some("two"), None] {
            store.set_bucket_config("b", created.id, kind, value.map(str::to_owned)).await.unwrap();
            let now = store.bucket("b").await.unwrap();
            assert_eq!(now.config(kind), value);
            assert!(now.revision > revision);
            revision = now.revision;
        }
    }
    assert!(matches!(
        store.set_bucket_config("none", created.id, BucketConfigKind::Cors, None).await,
        Err(MetadataError::NoSuchBucket)
    ));
}

/// Enabled and Suspended alternate; Unversioned never comes back.
pub async fn versioning_never_returns_to_unversioned(store: Store) {
    let made = bucket(&store, "b").await;
    assert_eq!(made.versioning, Versioning::Unversioned);
    for (asked, expected) in [
        (Versioning::Enabled, Versioning::Enabled),
        (Versioning::Unversioned, Versioning::Enabled),
        (Versioning::Suspended, Versioning::Suspended),
        (Versioning::Unversioned, Versioning::Suspended),
        (Versioning::Enabled, Versioning::Enabled),
    ] {
        store.set_versioning("b", made.id, asked).await.unwrap();
        assert_eq!(store.bucket("b").await.unwrap().versioning, expected);
    }
    let none = store.set_versioning("none", made.id, Versioning::Enabled).await;
    assert!(matches!(none, Err(MetadataError::NoSuchBucket)), "{none:?}");
}

/// Pages of names, of all owners or of one.
pub async fn lists_in_name_order_by_owner(store: Store) {
    for (name, of) in [("c", "alice"), ("a", "bob"), ("b", "alice"), ("d", "alice")] {
        owner(&store, of).await;
        store.create_bucket(new(name, of)).await.unwrap();
    }
    let id = store.bucket("b").await.unwrap().id;
    store.set_bucket_config("b", id, BucketConfigKind::Cors, Some("x".into())).await.unwrap();
    store.set_bucket_config("b", id, BucketConfigKind::Policy, Some("y".into())).await.unwrap();
    let names = |buckets: Vec<std::sync::Arc<crate::ports::metadata::Bucket>>| -> Vec<String> {
        buckets.iter().map(|b| b.name.clone()).collect()
    };
    assert_eq!(names(store.list_buckets(None, None, 100).await.unwrap()), ["a", "b", "c", "d"]);
    assert_eq!(names(store.list_buckets(None, Some("a"), 2).await.unwrap()), ["b", "c"]);
    let page = store.list_buckets(Some("alice"), None, 2).await.unwrap();
    assert_eq!(page[0].configs.len(), 2);
    assert_eq!(names(page), ["b", "c"]);
    assert_eq!(names(store.list_buckets(Some("alice"), Some("c"), 2).await.unwrap()), ["d"]);
    for (owner, after, limit) in
        [(None, None, 100), (None, Some("a"), 2), (Some("alice"), None, 2), (Some("x"), None, 2)]
    {
        let whole = store.list_buckets(owner, after, limit).await.unwrap();
        let entry = |b: &std::sync::Arc<Bucket>| BucketEntry { name: b.name.clone(), created_ms: b.created_ms };
        let expected: Vec<BucketEntry> = whole.iter().map(entry).collect();
        assert_eq!(store.list_bucket_entries(owner, after, limit).await.unwrap(), expected, "{owner:?} {after:?}");
    }
}

/// Versions, markers and unfinished uploads all keep a bucket.
pub async fn only_an_empty_bucket_is_deleted(store: Store) {
    let id = bucket(&store, "b").await.id;
    assert!(matches!(store.delete_bucket("none", id).await, Err(MetadataError::NoSuchBucket)));
    put(&store, id, "k", 1).await;
    assert!(matches!(store.delete_bucket("b", id).await, Err(MetadataError::BucketNotEmpty)));
    super::delete(&store, id, "k", None).await.unwrap();
    store.set_versioning("b", id, Versioning::Enabled).await.unwrap();
    let marker = super::delete(&store, id, "k", None).await.unwrap();
    assert!(matches!(store.delete_bucket("b", id).await, Err(MetadataError::BucketNotEmpty)));
    super::delete(&store, id, "k", marker.version).await.unwrap();
    let upload = upload(id, "k");
    store.create_upload(upload.clone()).await.unwrap();
    assert!(matches!(store.delete_bucket("b", id).await, Err(MetadataError::BucketNotEmpty)));
    store.abort_upload(id, "k", upload.id, T0).await.unwrap();
    store.delete_bucket("b", id).await.unwrap();
}

/// A bucket that was deleted and made again is another one, whoever owns it.
pub async fn what_was_decided_about_a_bucket_is_not_done_to_one_that_was_made_since(store: Store) {
    owner(&store, "bob").await;
    let gone = bucket(&store, "b").await.id;
    store.delete_bucket("b", gone).await.unwrap();
    let document = || Some("{}".to_owned());
    // Whether there is none of the name or another one makes no difference.
    let refuses = async || {
        for kind in BucketConfigKind::ALL {
            for value in [document(), None] {
                let refused = store.set_bucket_config("b", gone, kind, value).await;
                assert!(matches!(refused, Err(MetadataError::NoSuchBucket)), "{kind:?} {refused:?}");
            }
        }
        for versioning in [Versioning::Enabled, Versioning::Suspended, Versioning::Unversioned] {
            let refused = store.set_versioning("b", gone, versioning).await;
            assert!(matches!(refused, Err(MetadataError::NoSuchBucket)), "{versioning:?} {refused:?}");
        }
        let refused = store.delete_bucket("b", gone).await;
        assert!(matches!(refused, Err(MetadataError::NoSuchBucket)), "{refused:?}");
        assert!(matches!(store.commit_object(object(gone, "k", 1)).await, Err(MetadataError::NoSuchBucket)));
        assert!(matches!(store.create_upload(upload(gone, "k")).await, Err(MetadataError::NoSuchBucket)));
    };
    refuses().await;
    let made = store.create_bucket(new("b", "bob")).await.unwrap();
    for kind in BucketConfigKind::ALL {
        store.set_bucket_config("b", made.id, kind, document()).await.unwrap();
    }
    let before = store.bucket("b").await.unwrap();
    assert_eq!((before.id, before.configs.len()), (made.id, BucketConfigKind::ALL.len()));
    refuses().await;
    assert_eq!(store.bucket("b").await.unwrap(), before);
    store.set_versioning("b", made.id, Versioning::Enabled).await.unwrap();
    store.delete_bucket("b", made.id).await.unwrap();
}

/// Of a deletion and writes at the same time the one or the others are refused, whatever else is written beside them.
pub async fn a_deletion_and_what_goes_into_the_bucket_exclude_each_other(store: Store) {
    let others = [bucket(&store, "x").await.id, bucket(&store, "y").await.id];
    for round in 0..8 {
        let id = bucket(&store, "b").await.id;
        let begun = upload(id, "upload");
        let mut writes = vec![tokio::spawn({
            let (store, begun) = (store.clone(), begun.clone());
            async move { store.create_upload(begun).await }
        })];
        for key in 0..6_u8 {
            let store = store.clone();
            writes.push(tokio::spawn(async move {
                let other = object(others[usize::from(key % 2)], &format!("{round}-{key}"), key);
                let into = store.commit_object(object(id, &key.to_string(), key));
                let (written, beside) = tokio::join!(into, store.commit_object(other));
                beside.unwrap();
                written.map(drop)
            }));
        }
        let deleted = store.delete_bucket("b", id).await;
        let written: Vec<_> = join_all(writes).await.into_iter().map(Result::unwrap).collect();
        match deleted {
            Ok(()) => {
                let refused = written.iter().all(|one| matches!(one, Err(MetadataError::NoSuchBucket)));
                assert!(refused, "round {round}: {written:?}");
            }
            Err(MetadataError::BucketNotEmpty) => {
                assert!(written.iter().all(Result::is_ok), "round {round}: {written:?}");
                store.abort_upload(id, "upload", begun.id, T0).await.unwrap();
                for key in 0..6_u8 {
                    super::delete(&store, id, &key.to_string(), None).await.unwrap();
                }
                store.delete_bucket("b", id).await.unwrap();
            }
            Err(error) => panic!("round {round}: {error:?}"),
        }
    }
}
