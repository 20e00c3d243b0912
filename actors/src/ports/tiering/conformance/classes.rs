//! Storage classes of versions, and the moves that follow from them.

use holdfast_protocol::{Manifest, NodeId, VersionId};

use super::{LATER, World, cold_object, moved_content, oss, request, tier};
use crate::ports::metadata::conformance::{
    T0, assembled, bucket, bucket_with, content_of, copy_of, delete, latest, part, put, upload,
};
use crate::ports::metadata::{
    AgePosition, AgedKind, CompleteUpload, Content, ContentPlace, ContentSource, ListQuery, ListUploadsQuery,
    ListVersionsQuery, MetadataError, MoveEnd, MoveQueued, MoveReason, Moved, NewObject, NewUpload, ReplicaEvidence,
    Restore, Versioning, WritePrecondition,
};
use crate::ports::tiering::Claim;

pub async fn a_put_with_a_class_queues_a_move_and_one_without_does_not(world: World) {
    let id = bucket(&world.store, "b").await.id;
    put(&world.store, id, "plain", 1).await;
    assert_eq!(world.moves().await, []);
    let committed = world.put(id, "cold", 2, Some(oss())).await.object;
    assert_eq!(committed.class, Some(oss()));
    let read = latest(&world.store, id, "cold").await.unwrap();
    assert_eq!(read, committed);
    assert_eq!(read.content.as_ref().unwrap().place, ContentPlace::Cluster);
    assert_eq!(latest(&world.store, id, "plain").await.unwrap().class, None);
    let [queued] = &world.moves().await[..] else { panic!("one is queued") };
    assert_eq!((queued.bucket, queued.key.as_str(), queued.version), (id, "cold", VersionId::NULL));
    assert_eq!((queued.content, &queued.lane, &queued.to), (content_of(&read), &oss(), &Some(oss())));
    assert_eq!((queued.reason, queued.queued_ms, queued.due_ms), (MoveReason::Stored, T0 + 2, T0 + 2));
    assert_eq!((queued.attempt, queued.owner, queued.failures, &queued.error), (0, None, 0, &None));
}

pub async fn an_overwrite_with_a_class_replaces_the_move_that_waits(world: World) {
    let id = bucket(&world.store, "b").await.id;
    world.put(id, "k", 1, Some(oss())).await;
    let before = world.claim_one(&oss(), T0 + 1).await;
    world.ledger.postpone_move(before.id, before.attempt, T0 + 900, Some("no answer")).await.unwrap();
    let second = world.put(id, "k", 2, Some(oss())).await.object;
    let [queued] = &world.moves().await[..] else { panic!("a version has one move") };
    assert_eq!((queued.content, queued.attempt, queued.failures), (content_of(&second), 0, 0));
    assert_eq!(queued.due_ms, T0 + 2);
    // One that nobody asks for is pointless, and is found so by whoever takes it.
    put(&world.store, id, "k", 3).await;
    let job = world.claim_one(&oss(), T0 + 10).await;
    assert_eq!(world.commit(&job, Moved::Nowhere, T0 + 11).await.unwrap(), MoveEnd::Overtaken);
    assert_eq!(latest(&world.store, id, "k").await.unwrap().class, None);
}

pub async fn the_move_of_an_empty_object_ends_nowhere(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let object = cold_object(id, "k", 1, None);
    let ContentSource::New(content) = object.content else { panic!("it is new") };
    let content = Content { manifest: Manifest::single(content.id, 0), ..content };
    let object = NewObject { content: ContentSource::New(content), ..cold_object(id, "k", 1, Some(oss())) };
    let before = world.store.commit_object(object).await.unwrap().object;
    let job = world.claim_one(&oss(), T0 + 1).await;
    assert_eq!(world.commit(&job, Moved::Nowhere, T0 + 2).await.unwrap(), MoveEnd::Done);
    let after = latest(&world.store, id, "k").await.unwrap();
    assert_eq!((&after.class, &after.content), (&Some(oss()), &before.content));
    assert!(after.sequence > before.sequence);
    assert_eq!(world.moves().await, []);
    assert_eq!(world.store.due_reclaims(LATER, 10, None).await.unwrap(), []);
}

pub async fn a_copy_is_moved_where_its_class_says(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let cold = world.freeze(id, "source", 1, &oss()).await;
    let copy = |key: &str, class| NewObject { class, ..copy_of(id, key, cold.id) };
    let same = world.store.commit_object(copy("same", Some(oss()))).await.unwrap().object;
    assert_eq!(same.content.as_deref(), Some(&cold), "it shares the content where it is");
    assert_eq!(world.moves().await, []);
    world.store.commit_object(copy("other", Some(tier("GLACIER")))).await.unwrap();
    world.store.commit_object(copy("warm", None)).await.unwrap();
    let moves = world.moves().await;
    let wanted = |job: &crate::ports::tiering::Move| (job.key.clone(), job.lane.clone(), job.to.clone(), job.reason);
    assert_eq!(
        moves.iter().map(wanted).collect::<Vec<_>>(),
        [
            ("other".to_owned(), tier("GLACIER"), Some(tier("GLACIER")), MoveReason::Stored),
            ("warm".to_owned(), oss(), None, MoveReason::Stored)
        ]
    );
    let warm = world.carry_out(&oss(), T0 + 400).await;
    let read = latest(&world.store, id, "warm").await.unwrap();
    assert_eq!((read.content.as_deref(), &read.class), (Some(&warm), &None));
    assert_eq!(warm.place, ContentPlace::Cluster);
    assert_eq!(latest(&world.store, id, "source").await.unwrap().content.as_deref(), Some(&cold));
}

pub async fn moving_one_copy_leaves_the_other(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let hot = world.put(id, "stays", 1, None).await.object;
    let copy = NewObject { class: Some(oss()), ..copy_of(id, "goes", content_of(&hot)) };
    world.store.commit_object(copy).await.unwrap();
    let cold = world.carry_out(&oss(), T0 + 10).await;
    assert_eq!(latest(&world.store, id, "stays").await.unwrap(), hot);
    assert_eq!(latest(&world.store, id, "goes").await.unwrap().content.as_deref(), Some(&cold));
    assert_eq!(world.store.due_reclaims(LATER, 10, None).await.unwrap(), [], "the old content has a user");
    delete(&world.store, id, "stays", None).await.unwrap();
    let due = world.store.due_reclaims(LATER, 10, None).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!((&due[0].manifest, due[0].stub), (&hot.content.as_ref().unwrap().manifest, None));
}

/// How clients end a restore for good, and take back a class: what was asked of the version before is not done to the
/// new one.
pub async fn a_copy_onto_itself_stays_where_its_class_says(world: World) {
    let id = bucket(&world.store, "b").await.id;
    // Its way back waits.
    world.freeze(id, "restored", 1, &oss()).await;
    let restore = request(id, "restored", None, MoveReason::Restore { keep_ms: 1000 });
    assert_eq!(world.ask(restore).await, MoveQueued::Queued);
    let hot = world.carry_out(&oss(), T0 + 600).await;
    // Its move waits; somebody is at work on it.
    let stored = world.put(id, "stored", 2, Some(oss())).await.object;
    let job = world.claim_one(&oss(), T0 + 700).await;
    world.reserve(&job).await;
    assert_eq!(world.moves().await.len(), 2);
    for (key, content) in [("restored", hot.id), ("stored", content_of(&stored))] {
        let copied = world.store.commit_object(copy_of(id, key, content)).await.unwrap().object;
        assert_eq!((copied.class.clone(), content_of(&copied)), (None, content), "{key}");
    }
    assert_eq!(world.moves().await, []);
    let moved = moved_content(&job, stored.content.as_ref().unwrap());
    let refused = world.commit_to(&job, moved, T0 + 800).await;
    assert!(matches!(refused, Err(MetadataError::Superseded)), "{refused:?}");
    assert_eq!(world.claim(&oss(), LATER).await, []);
    for key in ["restored", "stored"] {
        let stays = latest(&world.store, id, key).await.unwrap();
        assert_eq!((&stays.class, &stays.content.as_ref().unwrap().place), (&None, &ContentPlace::Cluster), "{key}");
    }
}

pub async fn an_upload_keeps_its_class(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let new = NewUpload { class: Some(oss()), ..upload(id, "k") };
    world.store.create_upload(new.clone()).await.unwrap();
    assert_eq!(world.store.upload(id, "k", new.id).await.unwrap().new.class, Some(oss()));
    let listed = world.store.list_uploads(id, ListUploadsQuery { limit: 10, ..Default::default() }).await.unwrap();
    assert_eq!(listed.entries[0].new.class, Some(oss()));
    let parts = [part(1, 10), part(2, 20)];
    for part in &parts {
        world.store.put_part(id, "k", new.id, part.clone(), ReplicaEvidence::default()).await.unwrap();
    }
    let completion = CompleteUpload {
        bucket: id,
        key: "k".into(),
        upload: new.id,
        parts: parts.iter().map(|part| (part.number, part.content)).collect(),
        content: assembled(&parts),
        version: VersionId::NULL,
        now_ms: T0 + 5,
        precondition: WritePrecondition::default(),
        event: None,
    };
    let made = world.store.complete_upload(completion).await.unwrap().object;
    assert_eq!(made.class, Some(oss()));
    let job = world.claim_one(&oss(), T0 + 5).await;
    assert_eq!((job.content, job.key.as_str(), job.reason), (content_of(&made), "k", MoveReason::Stored));
}

pub async fn listings_show_classes_and_load_no_places(world: World) {
    let id = bucket_with(&world.store, "b", Versioning::Enabled).await;
    let cold = world.freeze(id, "k", 1, &oss()).await;
    world.put(id, "k", 2, None).await;
    world.freeze(id, "restored", 3, &oss()).await;
    let restore = request(id, "restored", None, MoveReason::Restore { keep_ms: 5000 });
    assert_eq!(world.ask(restore).await, MoveQueued::Queued);
    let page = world.store.list_objects(id, ListQuery { limit: 10, ..Default::default() }).await.unwrap();
    let states: Vec<_> = page.entries.iter().map(|e| (e.key.as_str(), e.class.clone(), e.restore)).collect();
    assert_eq!(states, [("k", None, None), ("restored", Some(oss()), Some(Restore::Ongoing))]);
    for limit in [1, 10] {
        let (mut found, mut query) = (Vec::new(), ListVersionsQuery { limit, ..Default::default() });
        loop {
            let page = world.store.list_versions(id, query.clone()).await.unwrap();
            found.extend(page.entries);
            let Some((after, version)) = page.next else { break };
            query = ListVersionsQuery { after, after_version: version, ..query };
        }
        let states: Vec<_> = found
            .iter()
            .map(|v| (v.key.as_str(), v.class.clone(), v.content.as_ref().unwrap().place.clone()))
            .collect();
        let expected = [
            ("k", None, ContentPlace::Cluster),
            ("k", Some(oss()), ContentPlace::NotLoaded),
            ("restored", Some(oss()), ContentPlace::NotLoaded),
        ];
        assert_eq!(states, expected);
        assert_eq!(found[1].content.as_ref().unwrap().id, cold.id);
    }
    for (kind, key) in [(AgedKind::Noncurrent, "k"), (AgedKind::Current, "restored")] {
        let aged = world.store.aged_versions(id, kind, &AgePosition::default(), LATER, 10).await.unwrap();
        let aged = aged.iter().find(|version| version.key == key).unwrap();
        assert_eq!(aged.class, Some(oss()));
    }
}

pub async fn class_and_restore_stay_with_a_version_in_and_out_of_history(world: World) {
    let id = bucket_with(&world.store, "b", Versioning::Enabled).await;
    world.freeze(id, "k", 1, &oss()).await;
    assert_eq!(world.ask(request(id, "k", None, MoveReason::Restore { keep_ms: 5000 })).await, MoveQueued::Queued);
    let here = world.carry_out(&oss(), T0 + 600).await;
    let before = latest(&world.store, id, "k").await.unwrap();
    let until = Some(Restore::Until(T0 + 601 + 5000));
    assert_eq!((&before.class, before.restore), (&Some(oss()), until));
    let copy = NewObject { class: Some(oss()), ..copy_of(id, "copy", here.id) };
    let copy = world.store.commit_object(copy).await.unwrap().object;
    assert_eq!(copy.restore, None, "a copy is another object");
    assert_eq!(latest(&world.store, id, "copy").await.unwrap().restore, None);
    let second = world.put(id, "k", 2, None).await.object;
    assert_eq!((&second.class, second.restore), (&None, None));
    let old = world.version(id, "k", Some(before.version)).await;
    assert_eq!((&old.class, old.restore, old.content.as_deref()), (&Some(oss()), until, Some(&here)));
    delete(&world.store, id, "k", None).await.unwrap();
    let marker = latest(&world.store, id, "k").await.unwrap();
    assert!(marker.is_delete_marker() && marker.class.is_none() && marker.restore.is_none());
    delete(&world.store, id, "k", Some(marker.version)).await.unwrap();
    delete(&world.store, id, "k", Some(second.version)).await.unwrap();
    let again = latest(&world.store, id, "k").await.unwrap();
    assert_eq!((again.version, &again.class, again.restore), (before.version, &Some(oss()), until));
    assert!(again.sequence > before.sequence);
    // Its way back is still known.
    let claim = Claim {
        owner: NodeId([1; 8]),
        now_ms: T0 + 601 + 5000,
        until_ms: LATER,
        spares_restored: false,
        to_cluster_only: false,
    };
    let back = world.ledger.claim_moves(&oss(), claim, 10).await.unwrap();
    assert!(back.iter().any(|job| job.version == before.version && job.reason == MoveReason::Return), "{back:?}");
}
