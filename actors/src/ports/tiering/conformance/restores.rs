//! Restores of cold versions, and the way back.

use holdfast_protocol::{EventName, NodeId};

use super::{LATER, World, moved_content, oss, request, tier};
use crate::ports::metadata::conformance::{T0, bucket, bucket_with, latest};
use crate::ports::metadata::{
    BucketConfigKind, BucketId, CommitMove, ContentPlace, MetadataError, MoveQueued, MoveReason, MoveRequest, Moved,
    ReplicaEvidence, Restore, Versioning,
};
use crate::ports::outbox::conformance::{draft, record, rows};
use crate::ports::tiering::Claim;

fn restore(bucket: BucketId, key: &str, keep_ms: u64, now_ms: u64) -> MoveRequest {
    MoveRequest { now_ms, ..request(bucket, key, None, MoveReason::Restore { keep_ms }) }
}

pub async fn a_restore_goes_there_and_back(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let cold = world.freeze(id, "k", 1, &oss()).await;
    let frozen = latest(&world.store, id, "k").await.unwrap();
    assert_eq!(world.ask(restore(id, "k", 5000, T0 + 1000)).await, MoveQueued::Queued);
    let asked = latest(&world.store, id, "k").await.unwrap();
    assert_eq!((&asked.class, asked.restore, &asked.content), (&Some(oss()), Some(Restore::Ongoing), &frozen.content));
    assert!(asked.sequence > frozen.sequence);
    assert_eq!(world.ask(restore(id, "k", 9000, T0 + 1001)).await, MoveQueued::Ongoing);
    assert_eq!(latest(&world.store, id, "k").await.unwrap(), asked);
    let [queued] = &world.moves().await[..] else { panic!("one is queued") };
    assert_eq!((&queued.lane, &queued.to, queued.due_ms), (&oss(), &None, T0 + 1000));
    assert_eq!(queued.reason, MoveReason::Restore { keep_ms: 5000 });
    let full = |now_ms| Claim {
        owner: NodeId([7; 8]),
        now_ms,
        until_ms: now_ms + 1,
        spares_restored: false,
        to_cluster_only: true,
    };
    let back = world.ledger.claim_moves(&oss(), full(T0 + 1500), 10).await.unwrap();
    assert_eq!(back.iter().map(|job| job.id).collect::<Vec<_>>(), [queued.id], "a tier without room can be read");
    let hot = world.carry_out(&oss(), T0 + 2000).await;
    let there = latest(&world.store, id, "k").await.unwrap();
    let until_ms = T0 + 2001 + 5000;
    assert_eq!((&there.class, there.restore), (&Some(oss()), Some(Restore::Until(until_ms))));
    assert_eq!(there.content.as_deref(), Some(&hot));
    assert_eq!((hot.place.clone(), there.last_modified_ms), (ContentPlace::Cluster, frozen.last_modified_ms));
    assert!(there.sequence > asked.sequence);
    let [back] = &world.moves().await[..] else { panic!("the way back is queued") };
    assert_eq!((&back.lane, &back.to, back.reason, back.due_ms), (&oss(), &Some(oss()), MoveReason::Return, until_ms));
    assert_eq!((back.content, back.attempt, back.owner), (hot.id, 0, None));
    // What lay in the tier goes after the grace, as everything that nothing refers to.
    let due = world.store.due_reclaims(T0 + 2002, 10, None).await.unwrap();
    assert_eq!(due.iter().filter_map(|reclaim| reclaim.stub).collect::<Vec<_>>(), [cold.id]);

    let end_ms = T0 + 3000 + 70_000;
    assert_eq!(world.ask(restore(id, "k", 70_000, T0 + 3000)).await, MoveQueued::Extended);
    let extended = latest(&world.store, id, "k").await.unwrap();
    assert_eq!((extended.restore, &extended.content), (Some(Restore::Until(end_ms)), &there.content));
    assert!(extended.sequence > there.sequence);
    assert_eq!(world.claim(&oss(), end_ms - 1).await, []);
    let sparing =
        Claim { owner: NodeId([7; 8]), now_ms: end_ms, until_ms: LATER, spares_restored: true, to_cluster_only: false };
    assert_eq!(world.ledger.claim_moves(&oss(), sparing, 10).await.unwrap(), [], "it stays for now");
    assert_eq!(world.ledger.claim_moves(&oss(), full(end_ms), 10).await.unwrap(), [], "there is no room for it");
    // Somebody who is on the way back already is stopped by an extension.
    let late = world.claim_one(&oss(), end_ms).await;
    world.reserve(&late).await;
    assert_eq!(world.ask(restore(id, "k", 5000, end_ms + 1)).await, MoveQueued::Extended);
    let stopped = world.commit_to(&late, moved_content(&late, &hot), end_ms + 2).await;
    assert!(matches!(stopped, Err(MetadataError::Superseded)), "{stopped:?}");
    let again = world.carry_out(&oss(), end_ms + 5001).await;
    let over = latest(&world.store, id, "k").await.unwrap();
    assert_eq!((&over.class, over.restore, over.content.as_deref()), (&Some(oss()), None, Some(&again)));
    assert_eq!(over.last_modified_ms, frozen.last_modified_ms);
    assert_eq!(world.moves().await, []);
    assert_eq!(world.ask(restore(id, "k", 5000, end_ms + 9000)).await, MoveQueued::Queued);
}

pub async fn a_restore_of_what_has_not_moved_yet_keeps_it(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let before = world.put(id, "k", 1, Some(oss())).await.object;
    let job = world.claim_one(&oss(), T0 + 1).await;
    assert_eq!(world.ask(restore(id, "k", 5000, T0 + 10)).await, MoveQueued::Extended);
    let kept = latest(&world.store, id, "k").await.unwrap();
    assert_eq!((kept.restore, &kept.content), (Some(Restore::Until(T0 + 5010)), &before.content));
    let gone = world.ledger.renew_move(job.id, job.attempt, LATER, LATER).await;
    assert!(matches!(gone, Err(MetadataError::Superseded)), "{gone:?}");
    assert_eq!(world.claim(&oss(), T0 + 5009).await, []);
    world.carry_out(&oss(), T0 + 5010).await;
    let over = latest(&world.store, id, "k").await.unwrap();
    assert_eq!((&over.class, over.restore), (&Some(oss()), None));
    assert!(over.content.as_ref().unwrap().cold().is_some());
}

pub async fn rules_leave_what_is_restored_alone(world: World) {
    let id = bucket(&world.store, "b").await.id;
    world.store.set_bucket_config("b", id, BucketConfigKind::Lifecycle, Some("{}".into())).await.unwrap();
    world.freeze(id, "k", 1, &oss()).await;
    let by_rule = |now_ms| MoveRequest { now_ms, ..request(id, "k", Some(tier("GLACIER")), MoveReason::Lifecycle) };
    assert_eq!(world.ask(restore(id, "k", 5000, T0 + 1000)).await, MoveQueued::Queued);
    assert_eq!(world.ask(by_rule(T0 + 1001)).await, MoveQueued::Ongoing);
    world.carry_out(&oss(), T0 + 2000).await;
    assert_eq!(world.ask(by_rule(T0 + 2002)).await, MoveQueued::Ongoing);
    let [back] = &world.moves().await[..] else { panic!("the way back") };
    assert_eq!(back.reason, MoveReason::Return);
    assert_eq!(world.store.rechecks(id, 10).await.unwrap(), []);
    world.carry_out(&oss(), T0 + 8000).await;
    let rechecks = world.store.rechecks(id, 10).await.unwrap();
    assert_eq!(rechecks.len(), 1, "rules look at it again");
    assert_eq!((rechecks[0].versions[0].key.as_str(), &rechecks[0].versions[0].class), ("k", &Some(oss())));
    assert_eq!(world.ask(by_rule(T0 + 9000)).await, MoveQueued::Queued);
}

pub async fn a_command_ends_a_restore(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let command = |key: &str, to| request(id, key, to, MoveReason::Command);
    // One that is under way.
    let cold = world.freeze(id, "ongoing", 1, &oss()).await;
    assert_eq!(world.ask(restore(id, "ongoing", 5000, T0 + 1000)).await, MoveQueued::Queued);
    assert_eq!(world.ask(command("ongoing", Some(oss()))).await, MoveQueued::InPlace);
    assert_eq!(latest(&world.store, id, "ongoing").await.unwrap().restore, Some(Restore::Ongoing), "it stays wanted");
    assert_eq!(world.ask(command("ongoing", Some(tier("GLACIER")))).await, MoveQueued::Queued);
    let asked = latest(&world.store, id, "ongoing").await.unwrap();
    assert_eq!((asked.restore, asked.content.as_deref()), (None, Some(&cold)));
    world.carry_out(&tier("GLACIER"), T0 + 1500).await;
    assert_eq!(latest(&world.store, id, "ongoing").await.unwrap().class, Some(tier("GLACIER")));
    // One that is there, for good.
    world.freeze(id, "there", 2, &oss()).await;
    assert_eq!(world.ask(restore(id, "there", 5000, T0 + 1000)).await, MoveQueued::Queued);
    let hot = world.carry_out(&oss(), T0 + 2000).await;
    assert_eq!(world.ask(command("there", None)).await, MoveQueued::InPlace);
    let stays = latest(&world.store, id, "there").await.unwrap();
    assert_eq!((&stays.class, stays.restore, stays.content.as_deref()), (&None, None, Some(&hot)));
    assert_eq!(world.moves().await, [], "there is no way back");
}

pub async fn a_restore_keeps_a_change_of_class_that_waits(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let command = |key: &str, to| request(id, key, to, MoveReason::Command);
    let class_of = async |key: &str| {
        let now = latest(&world.store, id, key).await.unwrap();
        (now.class.clone(), now.restore, now.content.as_ref().unwrap().cold().map(|place| place.tier.clone()))
    };
    // To another tier: there it goes when the restore is over.
    let (glacier, deep) = (tier("GLACIER"), tier("DEEP"));
    world.freeze(id, "k", 1, &oss()).await;
    assert_eq!(world.ask(command("k", Some(glacier.clone()))).await, MoveQueued::Queued);
    assert_eq!(world.ask(restore(id, "k", 5000, T0 + 1000)).await, MoveQueued::Queued);
    assert_eq!(class_of("k").await, (Some(glacier.clone()), Some(Restore::Ongoing), Some(oss())));
    assert_eq!(world.ask(restore(id, "k", 5000, T0 + 1001)).await, MoveQueued::Ongoing);
    world.ledger.add_tier(glacier.clone(), "{}".into(), T0, None).await.unwrap();
    let refused = world.ledger.remove_tier(&glacier).await;
    assert!(matches!(refused, Err(MetadataError::TierInUse)), "{refused:?}");
    world.carry_out(&oss(), T0 + 2000).await;
    assert_eq!(class_of("k").await, (Some(glacier.clone()), Some(Restore::Until(T0 + 7001)), None));
    let [back] = &world.moves().await[..] else { panic!("the way back") };
    assert_eq!((&back.lane, &back.to, back.reason), (&glacier, &Some(glacier.clone()), MoveReason::Return));
    // The same of a change that was asked for while it is there.
    assert_eq!(world.ask(command("k", Some(deep.clone()))).await, MoveQueued::Queued);
    assert_eq!(world.ask(restore(id, "k", 5000, T0 + 3000)).await, MoveQueued::Extended);
    world.carry_out(&deep, T0 + 8000).await;
    assert_eq!(class_of("k").await, (Some(deep.clone()), None, Some(deep)));
    // To the cluster's disks: that brings it there, for good.
    world.freeze(id, "home", 2, &oss()).await;
    assert_eq!(world.ask(command("home", None)).await, MoveQueued::Queued);
    assert_eq!(world.ask(restore(id, "home", 5000, T0 + 1000)).await, MoveQueued::Ongoing);
    world.carry_out(&oss(), T0 + 9000).await;
    assert_eq!(class_of("home").await, (None, None, None));
    assert_eq!(world.moves().await, []);
}

pub async fn an_older_version_is_restored_in_its_place(world: World) {
    let id = bucket_with(&world.store, "b", Versioning::Enabled).await;
    world.freeze(id, "k", 1, &oss()).await;
    let old = latest(&world.store, id, "k").await.unwrap();
    let new = world.put(id, "k", 2, None).await.object;
    let asked = MoveRequest { version: Some(old.version), ..restore(id, "k", 5000, T0 + 1000) };
    assert_eq!(world.ask(asked.clone()).await, MoveQueued::Queued);
    let state = async || {
        let version = world.version(id, "k", Some(old.version)).await;
        (version.sequence, version.class.clone(), version.restore, version.content.as_ref().unwrap().cold().is_some())
    };
    assert_eq!(state().await, (old.sequence, Some(oss()), Some(Restore::Ongoing), true));
    world.carry_out(&oss(), T0 + 2000).await;
    assert_eq!(state().await, (old.sequence, Some(oss()), Some(Restore::Until(T0 + 7001)), false));
    assert_eq!(world.ask(MoveRequest { now_ms: T0 + 3000, ..asked }).await, MoveQueued::Extended);
    assert_eq!(state().await, (old.sequence, Some(oss()), Some(Restore::Until(T0 + 8000)), false));
    world.carry_out(&oss(), T0 + 8000).await;
    assert_eq!(state().await, (old.sequence, Some(oss()), None, true));
    assert_eq!(latest(&world.store, id, "k").await.unwrap(), new);
}

pub async fn requests_that_are_new_and_ends_of_moves_are_told(world: World) {
    let id = bucket_with(&world.store, "b", Versioning::Enabled).await;
    world.freeze(id, "k", 1, &oss()).await;
    let version = latest(&world.store, id, "k").await.unwrap();
    assert_eq!(rows(&world.outbox).await, []);
    let event = draft(EventName::TaggingPut);
    let asked = MoveRequest { event: event.clone(), ..restore(id, "k", 5000, T0 + 1000) };
    assert_eq!(world.ask(asked.clone()).await, MoveQueued::Queued);
    assert_eq!(world.ask(asked.clone()).await, MoveQueued::Ongoing);
    let told = rows(&world.outbox).await;
    assert_eq!(told.len(), 1, "what is not new is not told");
    let object = record(&told[0]).s3.object;
    assert_eq!((object.key.as_str(), object.version_id), ("k", Some(version.version.to_string())));
    let content = version.content.as_ref().unwrap();
    assert_eq!((object.size, object.e_tag), (Some(content.size_bytes()), Some(content.etag.to_string())));
    let job = world.claim_one(&oss(), T0 + 2000).await;
    let commit = |content| CommitMove {
        id: job.id,
        attempt: job.attempt,
        bucket: id,
        key: "k".into(),
        version: version.version,
        from: job.content,
        moved: Moved::To { content, evidence: ReplicaEvidence::default() },
        event: event.clone(),
        now_ms: T0 + 2001,
    };
    world.store.commit_move(commit(moved_content(&job, content))).await.unwrap();
    world.store.commit_move(commit(moved_content(&job, content))).await.unwrap_err();
    assert_eq!(rows(&world.outbox).await.len(), 2);
    assert_eq!(world.ask(asked).await, MoveQueued::Extended);
    assert_eq!(rows(&world.outbox).await.len(), 2);
}
