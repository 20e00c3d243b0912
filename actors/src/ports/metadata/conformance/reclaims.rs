//! Reference counts and the queue of contents to reclaim.

use futures::future::join_all;
use holdfast_protocol::{ContentId, ReclaimItem};

use super::{
    Store, T0, assembled, bucket, bucket_with, content_of, copy_of, delete, delete_request, latest, object, part, put,
    upload,
};
use crate::ports::coordination::{Fence, FencingToken, LeaseName};
use crate::ports::metadata::{
    CompleteUpload, ContentSource, MetadataError, NewObject, ReplicaEvidence, Versioning, WritePrecondition,
};

/// Later than everything that a test queues.
const LATER: u64 = T0 + 1_000_000;

async fn known(store: &Store, content: ContentId) -> bool {
    let stranger = ContentId([0xEE; 12]);
    let found = store.known_contents(&[stranger, content]).await.unwrap();
    assert!(!found.contains(&stranger));
    found == [content]
}

/// The content of an overwritten object is queued, with its manifest, and once.
pub async fn a_replaced_content_is_queued_once(store: Store) {
    let id = bucket(&store, "b").await.id;
    let old = put(&store, id, "k", 1).await.object;
    assert_eq!(store.due_reclaims(LATER, 10, None).await.unwrap(), []);
    put(&store, id, "k", 2).await;
    let queued_ms = T0 + 2;
    assert_eq!(store.due_reclaims(queued_ms, 10, None).await.unwrap(), [], "the grace is not over");
    let due = store.due_reclaims(queued_ms + 1, 10, None).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].manifest, old.content.as_ref().unwrap().manifest);
    assert!(known(&store, content_of(&old)).await);
    store.finish_reclaims(&[due[0].item], None).await.unwrap();
    assert!(!known(&store, content_of(&old)).await);
    assert_eq!(store.due_reclaims(LATER, 10, None).await.unwrap(), []);
    store.finish_reclaims(&[], None).await.unwrap();
}

/// A write that a lock guards is refused once a later grant has written, whatever its own holder believes.
pub async fn a_guarded_write_under_a_lower_token_is_refused(store: Store) {
    let id = bucket(&store, "b").await.id;
    put(&store, id, "k", 1).await;
    put(&store, id, "k", 2).await;
    let fence = |name: &str, token| Fence { name: LeaseName::new(name).unwrap(), token: FencingToken(token) };
    let due = store.due_reclaims(LATER, 10, Some(&fence("cleanup", 7))).await.unwrap();
    assert_eq!(due.len(), 1);
    // The same grant writes again, another lock's tokens are its own, and whoever has no lock is not asked for one.
    store.finish_reclaims(&[], Some(&fence("cleanup", 7))).await.unwrap();
    store.finish_reclaims(&[], Some(&fence("other", 1))).await.unwrap();
    store.due_reclaims(T0, 10, None).await.unwrap();
    let next = store.due_reclaims(LATER + 1, 10, Some(&fence("cleanup", 9))).await.unwrap();
    assert_eq!(next.len(), 1);
    for _ in 0..2 {
        let refused = store.finish_reclaims(&[due[0].item], Some(&fence("cleanup", 8))).await;
        let told =
            matches!(&refused, Err(MetadataError::Fenced { name, current: FencingToken(9) }) if name == "cleanup");
        assert!(told, "{refused:?}");
    }
    assert!(matches!(
        store.due_reclaims(LATER + 2, 10, Some(&fence("cleanup", 7))).await,
        Err(MetadataError::Fenced { .. })
    ));
    assert_eq!(store.due_reclaims(LATER + 2, 10, None).await.unwrap().len(), 1, "what was refused changed nothing");
    store.finish_reclaims(&[due[0].item], Some(&fence("cleanup", u64::MAX >> 1))).await.unwrap();
    assert_eq!(store.due_reclaims(LATER + 3, 10, None).await.unwrap(), []);
}

/// A content lives as long as one of its copies.
pub async fn a_copy_keeps_the_content(store: Store) {
    let id = bucket(&store, "b").await.id;
    let source = put(&store, id, "a", 1).await.object;
    let content = content_of(&source);
    let copy = store.commit_object(copy_of(id, "b", content)).await.unwrap().object;
    assert_eq!(copy.content, source.content);
    store.commit_object(copy_of(id, "c", content)).await.unwrap();
    for key in ["a", "b"] {
        delete(&store, id, key, None).await.unwrap();
        assert_eq!(store.due_reclaims(LATER, 10, None).await.unwrap(), []);
    }
    assert_eq!(content_of(&latest(&store, id, "c").await.unwrap()), content);
    delete(&store, id, "c", None).await.unwrap();
    assert_eq!(store.due_reclaims(LATER, 10, None).await.unwrap().len(), 1);
    let unknown = store.commit_object(copy_of(id, "d", ContentId([3; 12]))).await;
    assert!(matches!(unknown, Err(MetadataError::NoSuchContent)));
}

/// A copy whose source was deleted meanwhile takes the content back, or is told that it is gone.
pub async fn a_copy_saves_a_queued_content_until_it_is_claimed(store: Store) {
    let id = bucket(&store, "b").await.id;
    let content = content_of(&put(&store, id, "a", 1).await.object);
    delete(&store, id, "a", None).await.unwrap();
    store.commit_object(copy_of(id, "b", content)).await.unwrap();
    assert_eq!(store.due_reclaims(LATER, 10, None).await.unwrap(), []);
    delete(&store, id, "b", None).await.unwrap();
    let due = store.due_reclaims(LATER, 10, None).await.unwrap();
    assert_eq!(due.len(), 1);
    let refused = store.commit_object(copy_of(id, "c", content)).await;
    assert!(matches!(refused, Err(MetadataError::NoSuchContent)), "{refused:?}");
    store.finish_reclaims(&[due[0].item], None).await.unwrap();
    assert!(matches!(store.commit_object(copy_of(id, "c", content)).await, Err(MetadataError::NoSuchContent)));
}

/// The grace is that of the last dereference, also where a claim was on its way when a copy took the content and was
/// dropped again.
pub async fn a_copy_that_is_dropped_again_begins_the_grace_anew(store: Store) {
    let id = bucket(&store, "b").await.id;
    let content = content_of(&put(&store, id, "a", 1).await.object);
    delete(&store, id, "a", None).await.unwrap();
    store.commit_object(copy_of(id, "b", content)).await.unwrap();
    store.delete_objects(id, vec![delete_request("b", None)], LATER).await.unwrap().remove(0).unwrap();
    assert_eq!(store.due_reclaims(LATER, 10, None).await.unwrap(), [], "it was dropped just now");
    assert_eq!(store.due_reclaims(LATER + 1, 10, None).await.unwrap().len(), 1);
    for round in 0..20u8 {
        let content = content_of(&put(&store, id, "a", round).await.object);
        delete(&store, id, "a", None).await.unwrap();
        let taken_and_dropped = {
            let store = store.clone();
            tokio::spawn(async move {
                if store.commit_object(copy_of(id, "b", content)).await.is_err() {
                    return false;
                }
                store.delete_objects(id, vec![delete_request("b", None)], LATER).await.unwrap().remove(0).unwrap();
                true
            })
        };
        let claimed = store.due_reclaims(T0 + 1_000, 100, None).await.unwrap();
        let claimed = claimed.iter().any(|reclaim| reclaim.manifest.extents[0].content == content);
        assert!(!(taken_and_dropped.await.unwrap() && claimed), "claimed in the grace of its last dereference");
        let due = store.due_reclaims(LATER + 2, 100, None).await.unwrap();
        store.finish_reclaims(&due.iter().map(|reclaim| reclaim.item).collect::<Vec<_>>(), None).await.unwrap();
    }
}

/// CopyObject of an object onto itself changes its metadata and nothing else.
pub async fn a_copy_onto_itself_keeps_the_content(store: Store) {
    for versioning in [Versioning::Unversioned, Versioning::Enabled, Versioning::Suspended] {
        let id = bucket_with(&store, &format!("b{versioning:?}").to_lowercase(), versioning).await;
        let content = content_of(&put(&store, id, "k", 1).await.object);
        store.commit_object(copy_of(id, "k", content)).await.unwrap();
        assert_eq!(store.due_reclaims(LATER, 10, None).await.unwrap(), []);
        assert_eq!(content_of(&latest(&store, id, "k").await.unwrap()), content);
    }
}

/// Cleanup may die between claiming and finishing.
pub async fn a_claimed_content_comes_again_until_finished(store: Store) {
    let id = bucket(&store, "b").await.id;
    for i in 0..5 {
        put(&store, id, &format!("k{i}"), i).await;
        delete(&store, id, &format!("k{i}"), None).await.unwrap();
    }
    let mut seen = std::collections::HashSet::new();
    for round in 1..=3 {
        seen.extend(store.due_reclaims(LATER + round, 2, None).await.unwrap().into_iter().map(|reclaim| reclaim.item));
    }
    assert_eq!(seen.len(), 5, "what is not finished must not hold up what waits behind it");
    let again = store.due_reclaims(LATER + 10, 10, None).await.unwrap();
    assert_eq!(again.len(), 5);
    let items: Vec<ReclaimItem> = again.iter().map(|reclaim| reclaim.item).collect();
    store.finish_reclaims(&items[..4], None).await.unwrap();
    let rest = store.due_reclaims(LATER + 11, 10, None).await.unwrap();
    assert_eq!(rest.iter().map(|reclaim| reclaim.item).collect::<Vec<_>>(), items[4..]);
}

/// From upload to object to reclaim, the chunks of a part are never an orphan's.
pub async fn known_contents_follow_a_part_to_its_end(store: Store) {
    let id = bucket(&store, "b").await.id;
    let upload = upload(id, "k");
    store.create_upload(upload.clone()).await.unwrap();
    let replaced = part(1, 100);
    let kept = part(1, 200);
    let second = part(2, 300);
    let left_out = part(3, 400);
    let empty = part(4, 0);
    for part in [&replaced, &kept, &second, &left_out, &empty] {
        assert!(!known(&store, part.content).await);
        store.put_part(id, "k", upload.id, part.clone(), ReplicaEvidence::default()).await.unwrap();
        assert!(known(&store, part.content).await);
    }
    assert!(known(&store, replaced.content).await, "queued for reclaiming");
    let parts = [kept.clone(), second.clone()];
    let completion = CompleteUpload {
        bucket: id,
        key: "k".into(),
        upload: upload.id,
        parts: parts.iter().chain([&empty]).map(|part| (part.number, part.content)).collect(),
        content: assembled(&parts),
        version: holdfast_protocol::VersionId::generate(T0),
        now_ms: T0,
        precondition: WritePrecondition::default(),
        event: None,
    };
    store.complete_upload(completion).await.unwrap();
    assert!(!known(&store, empty.content).await, "it has no chunks, and no manifest by which it would be forgotten");
    let due = store.due_reclaims(LATER, 10, None).await.unwrap();
    let mut reclaimed: Vec<ContentId> = due.iter().map(|reclaim| reclaim.manifest.extents[0].content).collect();
    reclaimed.sort();
    let mut expected = vec![replaced.content, left_out.content];
    expected.sort();
    assert_eq!(reclaimed, expected);
    store.finish_reclaims(&due.iter().map(|reclaim| reclaim.item).collect::<Vec<_>>(), None).await.unwrap();
    for part in [&replaced, &left_out] {
        assert!(!known(&store, part.content).await);
    }
    for part in &parts {
        assert!(known(&store, part.content).await, "extents of the object");
    }
    delete(&store, id, "k", None).await.unwrap();
    let due = store.due_reclaims(LATER, 10, None).await.unwrap();
    assert_eq!(due[0].manifest.extents.len(), 2);
    for part in &parts {
        assert!(known(&store, part.content).await, "claimed, not yet deleted");
    }
    store.finish_reclaims(&[due[0].item], None).await.unwrap();
    for part in &parts {
        assert!(!known(&store, part.content).await);
    }
}

/// As from a backup: else the walk for orphans would delete what the object is made of.
pub async fn extents_are_known_of_a_content_that_no_upload_brought(store: Store) {
    let id = bucket(&store, "b").await.id;
    // More than one statement takes.
    let parts: Vec<_> = (1..=150).map(|number| part(number, 100)).collect();
    let object = NewObject { content: ContentSource::New(assembled(&parts)), ..object(id, "k", 1) };
    store.commit_object(object).await.unwrap();
    for part in &parts {
        assert!(known(&store, part.content).await);
    }
    delete(&store, id, "k", None).await.unwrap();
    let due = store.due_reclaims(LATER, 10, None).await.unwrap();
    store.finish_reclaims(&due.iter().map(|reclaim| reclaim.item).collect::<Vec<_>>(), None).await.unwrap();
    for part in &parts {
        assert!(!known(&store, part.content).await);
    }
}

/// Copies of a content race with the deletion of its holders and with claims: an object that a copy made is never one
/// whose content was claimed.
pub async fn copies_and_overwrites_race_without_losing_a_content(store: Store) {
    let id = bucket(&store, "b").await.id;
    for round in 0..5u8 {
        let content = content_of(&put(&store, id, "source", round).await.object);
        let copies = (0..8).map(|i| {
            let store = store.clone();
            tokio::spawn(async move {
                if i % 2 == 0 {
                    store.commit_object(copy_of(id, &format!("copy{i}"), content)).await.map(|_| ())
                } else {
                    delete(&store, id, "source", None).await.map(|_| ())
                }
            })
        });
        let claims = {
            let store = store.clone();
            tokio::spawn(async move { store.due_reclaims(LATER, 100, None).await.unwrap() })
        };
        let results = join_all(copies).await;
        let claimed = claims.await.unwrap();
        let was_claimed = claimed.iter().any(|reclaim| reclaim.manifest.extents[0].content == content);
        let copied = results
            .into_iter()
            .step_by(2)
            .filter(|result| match result.as_ref().unwrap() {
                Ok(()) => true,
                Err(error) => {
                    assert!(matches!(error, MetadataError::NoSuchContent), "{error:?}");
                    false
                }
            })
            .count();
        assert!(!(was_claimed && copied > 0), "claimed although {copied} copies hold it");
        for i in (0..8).step_by(2) {
            delete(&store, id, &format!("copy{i}"), None).await.unwrap();
        }
        let due = store.due_reclaims(LATER + 1 + u64::from(round), 100, None).await.unwrap();
        assert!(due.iter().any(|reclaim| reclaim.manifest.extents[0].content == content));
        store.finish_reclaims(&due.iter().map(|reclaim| reclaim.item).collect::<Vec<_>>(), None).await.unwrap();
    }
}

/// What is named is claimed only while it is due, by all of its name, and as often as it is asked for.
pub async fn what_is_named_is_claimed_only_while_it_is_due(store: Store) {
    let id = bucket(&store, "b").await.id;
    let mut contents = Vec::new();
    for (at, key) in ["taken", "young", "due", "other"].into_iter().enumerate() {
        contents.push(content_of(&put(&store, id, key, at as u8).await.object));
        store.delete_objects(id, vec![delete_request(key, None)], T0 + at as u64).await.unwrap().remove(0).unwrap();
    }
    let waiting = store.waiting_reclaims(LATER, 10).await.unwrap();
    assert_eq!(waiting.iter().map(|item| item.content).collect::<Vec<_>>(), contents, "oldest first");
    assert_eq!(store.waiting_reclaims(T0 + 2, 10).await.unwrap(), waiting[..2], "the others are too young");
    assert_eq!(store.waiting_reclaims(LATER, 3).await.unwrap(), waiting[..3]);
    let (due, other) = (waiting[2], waiting[3]);

    // Between the look and the claim one is taken up again, and dropped once more.
    store.commit_object(copy_of(id, "copy", contents[0])).await.unwrap();
    let young = ReclaimItem { id: waiting[1].id, content: contents[1] };
    let wrong = [ReclaimItem { id: other.id, ..due }, ReclaimItem { id: due.id, ..other }];
    let absent = ReclaimItem { id: other.id + 1_000, content: ContentId([9; 12]) };
    let named = [waiting[0], due, wrong[0], wrong[1], absent];
    for _ in 0..3 {
        let claimed = store.claim_reclaims(&named, T0 + 3).await.unwrap();
        assert_eq!(claimed.iter().map(|reclaim| reclaim.item).collect::<Vec<_>>(), [due]);
        assert_eq!(claimed[0].manifest.extents[0].content, due.content);
    }
    assert_eq!(store.claim_reclaims(&[young], T0 + 1).await.unwrap(), [], "its grace is not over");
    assert_eq!(store.claim_reclaims(&[], LATER).await.unwrap(), []);
    // What was claimed no copy can take; what was not can be taken.
    assert!(matches!(store.commit_object(copy_of(id, "c", due.content)).await, Err(MetadataError::NoSuchContent)));
    store.commit_object(copy_of(id, "d", other.content)).await.unwrap();
    assert!(store.waiting_reclaims(LATER, 10).await.unwrap().contains(&due), "claimed, not yet deleted");
    store.delete_objects(id, vec![delete_request("copy", None)], LATER).await.unwrap().remove(0).unwrap();
    assert_eq!(store.claim_reclaims(&[waiting[0]], LATER).await.unwrap(), [], "the grace began anew");

    store.finish_reclaims(&wrong, None).await.unwrap();
    assert!(
        store.waiting_reclaims(LATER, 10).await.unwrap().contains(&due),
        "another content is not done by its number"
    );
    store.finish_reclaims(&[due], None).await.unwrap();
    assert_eq!(store.claim_reclaims(&[due], LATER).await.unwrap(), [], "it is done");
    assert!(!known(&store, due.content).await);
}

/// Several claim the same at once, while copies are made: whoever gets it gets it for good.
pub async fn claims_by_name_race_with_each_other_and_with_copies(store: Store) {
    let id = bucket(&store, "b").await.id;
    for round in 0..5u8 {
        let content = content_of(&put(&store, id, "source", round).await.object);
        delete(&store, id, "source", None).await.unwrap();
        let item = store.waiting_reclaims(LATER, 10).await.unwrap().remove(0);
        assert_eq!(item.content, content);
        let claims = join_all((0..4).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.claim_reclaims(&[item], LATER).await.unwrap() })
        }));
        let copies = join_all((0..2).map(|n| {
            let store = store.clone();
            tokio::spawn(async move { store.commit_object(copy_of(id, &format!("copy{n}"), content)).await.is_ok() })
        }));
        let (claims, copies) = tokio::join!(claims, copies);
        let claimed = claims.into_iter().any(|claimed| !claimed.unwrap().is_empty());
        let copied = copies.into_iter().any(|copied| copied.unwrap());
        assert_ne!(claimed, copied, "exactly one of the two has it");
        for n in 0..2 {
            delete(&store, id, &format!("copy{n}"), None).await.unwrap();
        }
        let due = store.due_reclaims(LATER + 1 + u64::from(round), 100, None).await.unwrap();
        assert_eq!(due.len(), 1);
        store.finish_reclaims(&[due[0].item], None).await.unwrap();
    }
}
