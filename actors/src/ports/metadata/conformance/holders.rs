//! Whose a content is.

use holdfast_protocol::{ContentId, VersionId};

use super::{Store, T0, assembled, bucket, content_of, copy_of, delete, part, put, upload};
use crate::ports::metadata::{CompleteUpload, ContentHolder, ReplicaEvidence, WritePrecondition};

/// Later than everything that a test queues.
const LATER: u64 = T0 + 1_000_000;

async fn holder(store: &Store, extent: ContentId) -> Option<ContentHolder> {
    store.content_holder(extent).await.unwrap()
}

fn referred_to(content: ContentId, references: u64) -> Option<ContentHolder> {
    Some(ContentHolder::Content { content, references, tier: None, queued_ms: None })
}

async fn forget_all(store: &Store) {
    // What was claimed comes again behind what was not.
    let due = store.due_reclaims(LATER + 1, 10, None).await.unwrap();
    assert!(!due.is_empty());
    store.finish_reclaims(&due.iter().map(|reclaim| reclaim.item).collect::<Vec<_>>(), None).await.unwrap();
}

/// Copies count, and what nothing refers to is told apart from what was never there.
pub async fn a_content_is_known_with_its_copies_until_it_is_deleted(store: Store) {
    let id = bucket(&store, "b").await.id;
    assert_eq!(holder(&store, ContentId([0xEE; 12])).await, None);
    let content = content_of(&put(&store, id, "a", 1).await.object);
    let other = content_of(&put(&store, id, "other", 2).await.object);
    assert_eq!(holder(&store, content).await, referred_to(content, 1));
    store.commit_object(copy_of(id, "b", content)).await.unwrap();
    assert_eq!(holder(&store, content).await, referred_to(content, 2));
    assert_eq!(holder(&store, other).await, referred_to(other, 1));

    delete(&store, id, "a", None).await.unwrap();
    assert_eq!(holder(&store, content).await, referred_to(content, 1));
    delete(&store, id, "b", None).await.unwrap();
    let waiting = ContentHolder::Content { content, references: 0, tier: None, queued_ms: Some(T0) };
    assert_eq!(holder(&store, content).await, Some(waiting), "a copy may still take it");
    store.commit_object(copy_of(id, "c", content)).await.unwrap();
    assert_eq!(holder(&store, content).await, referred_to(content, 1));
    delete(&store, id, "c", None).await.unwrap();

    assert_eq!(store.due_reclaims(LATER, 10, None).await.unwrap().len(), 1);
    let claimed = holder(&store, content).await;
    assert!(matches!(claimed, Some(ContentHolder::Reclaim { .. })), "{claimed:?}");
    forget_all(&store).await;
    assert_eq!(holder(&store, content).await, None);
    assert_eq!(holder(&store, other).await, referred_to(other, 1));
    assert_eq!(store.condemn(&[content], T0 + 7).await.unwrap(), [content]);
    assert_eq!(holder(&store, content).await, Some(ContentHolder::Condemned { condemned_ms: T0 + 7 }));
}

/// The chunks of a part are found by its upload, then by the object, whose content has an id of its own.
pub async fn a_part_is_known_by_its_upload_and_then_by_its_object(store: Store) {
    let id = bucket(&store, "b").await.id;
    let upload = upload(id, "k/ä");
    store.create_upload(upload.clone()).await.unwrap();
    let (first, second, left_out) = (part(1, 100), part(7, 200), part(9, 300));
    for part in [&first, &second, &left_out] {
        store.put_part(id, "k/ä", upload.id, part.clone(), ReplicaEvidence::default()).await.unwrap();
        let of_upload =
            ContentHolder::Part { bucket: "b".into(), key: "k/ä".into(), upload: upload.id, number: part.number };
        assert_eq!(holder(&store, part.content).await, Some(of_upload));
    }
    let parts = [first, second];
    let content = assembled(&parts);
    let object = content.id;
    let completion = CompleteUpload {
        bucket: id,
        key: "k/ä".into(),
        upload: upload.id,
        parts: parts.iter().map(|part| (part.number, part.content)).collect(),
        content,
        version: VersionId::generate(T0),
        now_ms: T0 + 5,
        precondition: WritePrecondition::default(),
        event: None,
    };
    store.complete_upload(completion).await.unwrap();
    assert_eq!(holder(&store, left_out.content).await, Some(ContentHolder::Reclaim { queued_ms: T0 + 5 }));
    for extent in [object, parts[0].content, parts[1].content] {
        assert_eq!(holder(&store, extent).await, referred_to(object, 1));
    }
    store.commit_object(copy_of(id, "copy", object)).await.unwrap();
    assert_eq!(holder(&store, parts[1].content).await, referred_to(object, 2));

    for key in ["k/ä", "copy"] {
        delete(&store, id, key, None).await.unwrap();
    }
    let waiting = ContentHolder::Content { content: object, references: 0, tier: None, queued_ms: Some(T0) };
    assert_eq!(holder(&store, parts[0].content).await, Some(waiting));
    // Claimed, and not yet deleted.
    assert_eq!(store.due_reclaims(LATER, 10, None).await.unwrap().len(), 2);
    for extent in [object, parts[0].content, parts[1].content] {
        let claimed = holder(&store, extent).await;
        assert!(matches!(claimed, Some(ContentHolder::Reclaim { .. })), "{claimed:?}");
    }
    forget_all(&store).await;
    for extent in [object, parts[0].content, left_out.content] {
        assert_eq!(holder(&store, extent).await, None);
    }
}
