//! What becomes of requests for another storage class.

use holdfast_protocol::VersionId;

use super::{LATER, World, oss, request, tier};
use crate::ports::metadata::conformance::{T0, bucket, bucket_with, change_request, content_of, delete, latest, put};
use crate::ports::metadata::{
    MetadataError, MoveQueued, MoveReason, MoveRequest, OnlyIf, OnlyNoncurrent, Tag, Versioning,
};

pub async fn a_class_is_that_of_a_request_when_its_move_is_done(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let before = world.put(id, "k", 1, None).await.object;
    assert_eq!(world.ask(request(id, "k", Some(oss()), MoveReason::Lifecycle)).await, MoveQueued::Queued);
    assert_eq!(latest(&world.store, id, "k").await.unwrap(), before, "a request changes nothing");
    let [queued] = &world.moves().await[..] else { panic!("one is queued") };
    assert_eq!((queued.content, &queued.lane, &queued.to), (content_of(&before), &oss(), &Some(oss())));
    assert_eq!((queued.reason, queued.due_ms), (MoveReason::Lifecycle, T0 + 500));
    let cold = world.carry_out(&oss(), T0 + 500).await;
    let after = latest(&world.store, id, "k").await.unwrap();
    assert_eq!((&after.class, after.content.as_deref()), (&Some(oss()), Some(&cold)));
    // From tier to tier it works with the one that it goes to.
    assert_eq!(world.ask(request(id, "k", Some(tier("GLACIER")), MoveReason::Command)).await, MoveQueued::Queued);
    let colder = world.carry_out(&tier("GLACIER"), T0 + 600).await;
    let after = latest(&world.store, id, "k").await.unwrap();
    assert_eq!((&after.class, after.content.as_deref()), (&Some(tier("GLACIER")), Some(&colder)));
    assert_eq!(world.ask(request(id, "k", None, MoveReason::Command)).await, MoveQueued::Queued);
    world.carry_out(&tier("GLACIER"), T0 + 700).await;
    let after = latest(&world.store, id, "k").await.unwrap();
    assert_eq!((&after.class, &after.restore, after.last_modified_ms), (&None, &None, before.last_modified_ms));
    let due = world.store.due_reclaims(LATER, 10, None).await.unwrap();
    assert_eq!(due.iter().filter(|reclaim| reclaim.stub.is_some()).count(), 2);
    assert_eq!(due.len(), 3);
}

pub async fn one_to_the_same_place_goes_on_and_one_to_another_is_given_up(world: World) {
    let id = bucket(&world.store, "b").await.id;
    world.put(id, "k", 1, Some(oss())).await;
    let job = world.claim_one(&oss(), T0 + 1).await;
    let to_oss = || request(id, "k", Some(oss()), MoveReason::Lifecycle);
    assert_eq!(world.ask(to_oss()).await, MoveQueued::Waiting);
    assert_eq!(world.moves().await, std::slice::from_ref(&job), "who is at work on it goes on");
    world.ledger.postpone_move(job.id, job.attempt, LATER, Some("no answer")).await.unwrap();
    assert_eq!(world.ask(to_oss()).await, MoveQueued::Waiting);
    let [queued] = &world.moves().await[..] else { panic!("one") };
    assert_eq!((queued.id, queued.due_ms, queued.failures), (job.id, T0 + 500, 1), "one that failed is tried at once");
    let job = world.claim_one(&oss(), T0 + 500).await;
    let other = tier("GLACIER");
    assert_eq!(world.ask(request(id, "k", Some(other.clone()), MoveReason::Command)).await, MoveQueued::Queued);
    let gone = world.ledger.renew_move(job.id, job.attempt, LATER, LATER).await;
    assert!(matches!(gone, Err(MetadataError::Superseded)), "{gone:?}");
    let [queued] = &world.moves().await[..] else { panic!("one") };
    assert_eq!((&queued.lane, queued.attempt, queued.failures), (&other, 0, 0));
}

pub async fn what_lies_in_place_only_changes_its_class(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let before = world.put(id, "k", 1, Some(oss())).await.object;
    let job = world.claim_one(&oss(), T0 + 1).await;
    assert_eq!(world.ask(request(id, "k", None, MoveReason::Command)).await, MoveQueued::InPlace);
    let after = latest(&world.store, id, "k").await.unwrap();
    assert_eq!((&after.class, &after.content), (&None, &before.content));
    assert!(after.sequence > before.sequence);
    assert_eq!(world.moves().await, []);
    let gone = world.ledger.renew_move(job.id, job.attempt, LATER, LATER).await;
    assert!(matches!(gone, Err(MetadataError::Superseded)), "{gone:?}");
    assert_eq!(world.ask(request(id, "k", None, MoveReason::Command)).await, MoveQueued::InPlace);
    assert_eq!(latest(&world.store, id, "k").await.unwrap(), after, "nothing to change");
    // What is in a tier and is wanted elsewhere stays, if somebody changes his mind.
    world.freeze(id, "cold", 2, &oss()).await;
    let frozen = latest(&world.store, id, "cold").await.unwrap();
    assert_eq!(world.ask(request(id, "cold", None, MoveReason::Command)).await, MoveQueued::Queued);
    assert_eq!(world.ask(request(id, "cold", Some(oss()), MoveReason::Command)).await, MoveQueued::InPlace);
    assert_eq!(latest(&world.store, id, "cold").await.unwrap(), frozen);
    assert_eq!(world.moves().await, []);
}

pub async fn what_is_not_there_is_not_moved(world: World) {
    let id = bucket_with(&world.store, "b", Versioning::Enabled).await;
    let ask = async |key: &str, version, reason| {
        let to = Some(oss());
        world.store.request_move(MoveRequest { version, ..request(id, key, to, reason) }).await.unwrap_err()
    };
    let restore = MoveReason::Restore { keep_ms: 1 };
    for reason in [MoveReason::Command, MoveReason::Lifecycle, restore] {
        assert!(matches!(ask("k", None, reason).await, MetadataError::NoSuchKey));
        assert!(matches!(ask("k", Some(VersionId::NULL), reason).await, MetadataError::NoSuchVersion));
    }
    let object = put(&world.store, id, "k", 1).await.object;
    assert!(matches!(ask("k", None, restore).await, MetadataError::NotCold));
    let marker = delete(&world.store, id, "k", None).await.unwrap().version;
    for reason in [MoveReason::Command, restore] {
        assert!(matches!(ask("k", None, reason).await, MetadataError::NoSuchKey));
        assert!(matches!(ask("k", marker, reason).await, MetadataError::NoSuchVersion));
    }
    assert!(matches!(ask("k", Some(object.version), restore).await, MetadataError::NotCold));
    assert_eq!(world.moves().await, []);
}

pub async fn a_version_moves_only_as_it_was_judged(world: World) {
    let id = bucket_with(&world.store, "b", Versioning::Enabled).await;
    let first = world.put(id, "k", 1, None).await.object;
    let judged = |sequence| OnlyIf { sequence, ..OnlyIf::default() };
    let ask = async |version, only_if| {
        let only_if = Some(only_if);
        let request = MoveRequest { version, only_if, ..request(id, "k", Some(oss()), MoveReason::Lifecycle) };
        world.store.request_move(request).await
    };
    let refused = |result| assert!(matches!(result, Err(MetadataError::PreconditionFailed)), "{result:?}");
    let tags = vec![Tag { key: "keep".into(), value: "hot".into() }];
    world.store.set_object_tags(change_request(id, "k", None, T0 + 2), tags.clone()).await.unwrap();
    refused(ask(None, judged(first.sequence)).await);
    refused(ask(Some(first.version), judged(first.sequence)).await);
    let now = latest(&world.store, id, "k").await.unwrap().sequence;
    let revision = world.store.bucket("b").await.unwrap().revision;
    refused(ask(None, OnlyIf { revision: Some(revision + 1), ..judged(now) }).await);
    assert_eq!(world.moves().await, []);
    let ok = ask(None, OnlyIf { revision: Some(revision), is_alone: true, ..judged(now) }).await;
    assert_eq!(ok.unwrap(), MoveQueued::Queued);
    // A noncurrent one is compared with what its sequence number does not show.
    world.put(id, "k", 2, None).await;
    refused(ask(None, judged(now)).await);
    let noncurrent = |tags: &[Tag], newer| {
        let noncurrent = Some(OnlyNoncurrent { tags: tags.to_vec(), newer });
        OnlyIf { noncurrent, ..judged(now) }
    };
    refused(ask(Some(first.version), noncurrent(&[], 0)).await);
    refused(ask(Some(first.version), noncurrent(&tags, 1)).await);
    assert_eq!(ask(Some(first.version), noncurrent(&tags, 0)).await.unwrap(), MoveQueued::Waiting);
}
