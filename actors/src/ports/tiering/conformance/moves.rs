//! Claims of moves, and how moves end.

use std::collections::HashSet;
use std::sync::Arc;

use futures::future::join_all;
use holdfast_protocol::{Epoch, NodeId, ShardId};

use super::{LATER, World, cold_object, moved_content, names_of, oss, piece_names, request, tier};
use crate::ports::metadata::conformance::{T0, bucket, bucket_with, change_request, content_of, delete, latest, put};
use crate::ports::metadata::{
    CannedAcl, MetadataError, MoveEnd, MoveQueued, MoveReason, Moved, NewObject, ReplicaEvidence, Tag, Versioning,
};
use crate::ports::tiering::{Claim, Move};

pub async fn a_claim_that_ends_is_followed_by_another(world: World) {
    let id = bucket(&world.store, "b").await.id;
    for (key, seed) in [("late", 9), ("early", 1), ("middle", 5)] {
        world.put(id, key, seed, Some(oss())).await;
    }
    assert_eq!(world.claim(&tier("OTHER"), LATER).await, [], "another lane");
    assert_eq!(world.claim(&oss(), T0).await, [], "none is due");
    let claim = Claim {
        owner: NodeId([3; 8]),
        now_ms: T0 + 5,
        until_ms: T0 + 50,
        spares_restored: false,
        to_cluster_only: false,
    };
    let first = world.ledger.claim_moves(&oss(), claim, 1).await.unwrap();
    assert_eq!(first.iter().map(|job| job.key.as_str()).collect::<Vec<_>>(), ["early"], "the longest due first");
    assert_eq!((first[0].owner, first[0].due_ms), (Some(NodeId([3; 8])), T0 + 50));
    let second = world.ledger.claim_moves(&oss(), claim, 10).await.unwrap();
    assert_eq!(second.iter().map(|job| job.key.as_str()).collect::<Vec<_>>(), ["middle"]);
    assert!(first[0].attempt > 0 && second[0].attempt > first[0].attempt, "attempts rise");
    assert!(world.moves().await.contains(&first[0]), "what was given out is what is kept");
    let again = world.claim(&oss(), T0 + 50).await;
    let keys: HashSet<&str> = again.iter().map(|job| job.key.as_str()).collect();
    assert_eq!(keys, HashSet::from(["early", "middle", "late"]));
    let attempts: HashSet<u64> = again.iter().map(|job| job.attempt).collect();
    assert_eq!(attempts.len(), 3);
    assert!(attempts.iter().all(|attempt| *attempt > second[0].attempt));
    let early = again.iter().find(|job| job.key == "early").unwrap();
    world.ledger.renew_move(early.id, early.attempt, T0 + 9000, T0 + 9000).await.unwrap();
    let third = world.claim(&oss(), T0 + 1050).await;
    assert_eq!(third.len(), 2, "a claim that is renewed is kept: {third:?}");
}

/// Everything that names the attempt `job`.
async fn assert_superseded(world: &World, job: &Move) {
    let Move { id, attempt, .. } = *job;
    let ledger = &world.ledger;
    let superseded = |result| assert!(matches!(result, Err(MetadataError::Superseded)), "{result:?}");
    superseded(ledger.renew_move(id, attempt, LATER, LATER).await);
    superseded(ledger.postpone_move(id, attempt, LATER, None).await);
    superseded(ledger.postpone_move(id, attempt, LATER, Some("x")).await);
    superseded(ledger.drop_move(id, attempt).await);
    superseded(ledger.reserve_pieces(id, attempt, &oss(), &piece_names(&["n".to_owned()]), LATER).await);
    superseded(world.commit(job, Moved::Nowhere, T0 + 99).await.map(drop));
    let version = world.version(job.bucket, &job.key, Some(job.version)).await;
    let content = moved_content(job, version.content.as_ref().unwrap());
    superseded(world.commit_to(job, content, T0 + 99).await.map(drop));
}

pub async fn whoever_was_followed_is_told_so(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let before = world.put(id, "k", 1, Some(oss())).await.object;
    let waiting = world.moves().await.remove(0);
    assert_superseded(&world, &waiting).await;
    let first = world.claim_one(&oss(), T0 + 1).await;
    let second = world.claim_one(&oss(), first.due_ms).await;
    assert_superseded(&world, &first).await;
    world.ledger.postpone_move(second.id, second.attempt, T0 + 100, None).await.unwrap();
    assert_superseded(&world, &second).await;
    let third = world.claim_one(&oss(), T0 + 100).await;
    // Somebody wants it elsewhere.
    let queued = world.ask(request(id, "k", Some(tier("OTHER")), MoveReason::Command)).await;
    assert_eq!(queued, MoveQueued::Queued);
    assert_superseded(&world, &third).await;
    assert_eq!(latest(&world.store, id, "k").await.unwrap(), before, "nothing happened");
    assert_eq!(world.listed(&oss()).await, 0);
    assert_eq!(world.moves().await.len(), 1);
}

pub async fn two_movers_never_have_the_same_move(world: World) {
    let id = bucket(&world.store, "b").await.id;
    for n in 0..24 {
        world.put(id, &format!("k{n}"), 1, Some(oss())).await;
    }
    let ledger = &world.ledger;
    let claims = join_all((0..8).map(|n| {
        let ledger = Arc::clone(ledger);
        async move {
            let claim = Claim {
                owner: NodeId([n; 8]),
                now_ms: T0 + 1,
                until_ms: LATER,
                spares_restored: false,
                to_cluster_only: false,
            };
            let mut had = Vec::new();
            loop {
                let some = ledger.claim_moves(&oss(), claim, 2).await.unwrap();
                if some.is_empty() {
                    return had;
                }
                had.extend(some);
            }
        }
    }));
    let all: Vec<Move> = claims.await.into_iter().flatten().collect();
    assert_eq!(all.len(), 24);
    assert_eq!(all.iter().map(|job| job.id).collect::<HashSet<_>>().len(), 24);
    assert_eq!(all.iter().map(|job| job.attempt).collect::<HashSet<_>>().len(), 24);
}

pub async fn failures_are_counted_and_retried(world: World) {
    let id = bucket(&world.store, "b").await.id;
    for key in ["fails", "waits"] {
        world.put(id, key, 1, Some(oss())).await;
    }
    let jobs = world.claim(&oss(), T0 + 1).await;
    let job = |key: &str| jobs.iter().find(|job| job.key == key).unwrap();
    let long = "ü".repeat(2000);
    world.ledger.postpone_move(job("fails").id, job("fails").attempt, LATER, Some(&long)).await.unwrap();
    let soon = T0 + 3_600_000;
    world.ledger.postpone_move(job("waits").id, job("waits").attempt, soon, None).await.unwrap();
    let moves = world.moves().await;
    let fails = moves.iter().find(|job| job.key == "fails").unwrap();
    let error = fails.error.clone().unwrap();
    assert!(long.starts_with(&error) && (1000..=1024).contains(&error.len()), "{}", error.len());
    assert_eq!((fails.failures, fails.owner, fails.due_ms), (1, None, LATER));
    let waits = moves.iter().find(|job| job.key == "waits").unwrap();
    assert_eq!((waits.failures, &waits.error, waits.due_ms), (0, &None, soon));
    assert_eq!(world.ledger.retry_moves(&tier("OTHER"), T0 + 2).await.unwrap(), 0);
    assert_eq!(world.ledger.retry_moves(&oss(), T0 + 2).await.unwrap(), 1);
    let again = world.claim_one(&oss(), T0 + 2).await;
    assert_eq!((again.key.as_str(), again.failures), ("fails", 1));
    world.ledger.postpone_move(again.id, again.attempt, LATER, Some("again")).await.unwrap();
    let moves = world.moves().await;
    let fails = moves.iter().find(|job| job.key == "fails").unwrap();
    assert_eq!((fails.failures, fails.error.as_deref()), (2, Some("again")));
}

pub async fn what_a_clock_that_was_ahead_put_off_can_be_made_due(world: World) {
    const YEAR: u64 = 365 * 24 * 3_600_000;
    let id = bucket(&world.store, "b").await.id;
    let ledger = &world.ledger;
    // A restore that ends in a year, and is none of it.
    world.freeze(id, "restored", 1, &oss()).await;
    world.ask(request(id, "restored", None, MoveReason::Restore { keep_ms: YEAR })).await;
    world.carry_out(&oss(), T0 + 600).await;
    for key in ["claimed", "at work"] {
        world.put(id, key, 2, Some(oss())).await;
    }
    let far = T0 + 700 + YEAR / 2;
    let claim = Claim {
        owner: NodeId([7; 8]),
        now_ms: T0 + 700,
        until_ms: far,
        spares_restored: false,
        to_cluster_only: false,
    };
    let ahead = ledger.claim_moves(&oss(), claim, 1).await.unwrap().remove(0);
    let names = piece_names(&names_of(&ahead));
    ledger.reserve_pieces(ahead.id, ahead.attempt, &oss(), &names, far).await.unwrap();
    let at_work = world.claim_one(&oss(), T0 + 700).await;
    let queued = cold_object(id, "queued", 3, Some(oss()));
    world.store.commit_object(NewObject { now_ms: far, ..queued }).await.unwrap();
    assert_eq!(world.claim(&oss(), T0 + 800).await, []);

    assert_eq!(ledger.retry_moves(&oss(), T0 + 800).await.unwrap(), 2);
    assert_eq!(ledger.retry_moves(&oss(), T0 + 800).await.unwrap(), 0);
    let mut keys: Vec<String> = world.claim(&oss(), T0 + 800).await.into_iter().map(|job| job.key).collect();
    keys.sort();
    let mut expected = [ahead.key.clone(), "queued".to_owned()];
    expected.sort();
    assert_eq!(keys, expected);
    assert_superseded(&world, &ahead).await;
    let due = ledger.due_pieces(&oss(), T0 + 800, LATER, 10).await.unwrap();
    assert_eq!(due.len(), names.len());
    ledger.postpone_move(at_work.id, at_work.attempt, LATER, None).await.unwrap();
}

pub async fn a_dropped_move_is_gone(world: World) {
    let id = bucket(&world.store, "b").await.id;
    world.put(id, "k", 1, Some(oss())).await;
    let job = world.claim_one(&oss(), T0 + 1).await;
    world.ledger.drop_move(job.id, job.attempt).await.unwrap();
    assert_eq!(world.moves().await, []);
    assert_superseded(&world, &job).await;
}

/// What the move stored is deleted as if it had never been of use.
async fn assert_overtaken(world: &World, job: &Move, content: crate::ports::metadata::Content) {
    assert_eq!(world.commit_to(job, content.clone(), T0 + 20).await.unwrap(), MoveEnd::Overtaken);
    assert_eq!(world.moves().await, []);
    assert_eq!(world.listed(&oss()).await, 3, "the pieces stay on the list");
    assert_eq!(world.store.known_contents(&[content.id]).await.unwrap(), []);
    let again = world.commit_to(job, content, T0 + 21).await;
    assert!(matches!(again, Err(MetadataError::Superseded)), "{again:?}");
}

pub async fn an_overwrite_wins_over_a_move(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let old = world.put(id, "k", 1, Some(oss())).await.object;
    let job = world.claim_one(&oss(), T0 + 1).await;
    world.reserve(&job).await;
    let new = put(&world.store, id, "k", 2).await.object;
    assert_overtaken(&world, &job, moved_content(&job, old.content.as_ref().unwrap())).await;
    assert_eq!(latest(&world.store, id, "k").await.unwrap(), new);
}

pub async fn a_deletion_wins_over_a_move(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let old = world.put(id, "k", 1, Some(oss())).await.object;
    let job = world.claim_one(&oss(), T0 + 1).await;
    world.reserve(&job).await;
    delete(&world.store, id, "k", None).await.unwrap();
    assert_overtaken(&world, &job, moved_content(&job, old.content.as_ref().unwrap())).await;
    assert!(matches!(latest(&world.store, id, "k").await, Err(MetadataError::NoSuchKey)));
    let due = world.store.due_reclaims(LATER, 10, None).await.unwrap();
    assert_eq!(due.len(), 1, "the old content is reclaimed once");
}

pub async fn what_changes_during_a_move_is_kept(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let old = world.put(id, "k", 1, Some(oss())).await.object;
    let job = world.claim_one(&oss(), T0 + 1).await;
    world.reserve(&job).await;
    let tags = vec![Tag { key: "a".into(), value: "b".into() }];
    world.store.set_object_tags(change_request(id, "k", None, T0 + 2), tags.clone()).await.unwrap();
    world.store.set_object_acl(change_request(id, "k", None, T0 + 2), CannedAcl::PublicRead).await.unwrap();
    let before = latest(&world.store, id, "k").await.unwrap();
    let content = moved_content(&job, old.content.as_ref().unwrap());
    assert_eq!(world.commit_to(&job, content.clone(), T0 + 20).await.unwrap(), MoveEnd::Done);
    let after = latest(&world.store, id, "k").await.unwrap();
    assert_eq!((&after.tags, after.acl, &after.class), (&tags, CannedAcl::PublicRead, &Some(oss())));
    assert_eq!(after.content.as_deref(), Some(&content), "with its place, ETag and the rest");
    assert_eq!(after.last_modified_ms, old.last_modified_ms);
    assert!(after.sequence > before.sequence, "caches learn of it");
    let queued_ms = T0 + 20;
    assert_eq!(world.store.due_reclaims(queued_ms, 10, None).await.unwrap(), [], "the grace is not over");
    let due = world.store.due_reclaims(queued_ms + 1, 10, None).await.unwrap();
    assert_eq!((due.len(), &due[0].manifest), (1, &old.content.as_ref().unwrap().manifest));
    assert_eq!(world.store.known_contents(&[content.id]).await.unwrap(), [content.id]);
}

pub async fn an_older_version_is_moved_in_its_place(world: World) {
    let id = bucket_with(&world.store, "b", Versioning::Enabled).await;
    let first = world.put(id, "k", 1, None).await.object;
    let second = world.put(id, "k", 2, Some(oss())).await.object;
    let third = world.put(id, "k", 3, None).await.object;
    let cold = world.carry_out(&oss(), T0 + 10).await;
    let moved = world.version(id, "k", Some(second.version)).await;
    assert_eq!((moved.sequence, moved.content.as_deref()), (second.sequence, Some(&cold)));
    assert_eq!((moved.last_modified_ms, moved.is_latest), (second.last_modified_ms, false));
    assert_eq!(latest(&world.store, id, "k").await.unwrap(), third);
    let old = MoveReason::Command;
    let asked =
        crate::ports::metadata::MoveRequest { version: Some(first.version), ..request(id, "k", Some(oss()), old) };
    assert_eq!(world.ask(asked).await, MoveQueued::Queued);
    world.carry_out(&oss(), T0 + 600).await;
    let moved = world.version(id, "k", Some(first.version)).await;
    assert_eq!((moved.sequence, &moved.class), (first.sequence, &Some(oss())));
    for version in [first.version, second.version, third.version] {
        delete(&world.store, id, "k", Some(version)).await.unwrap();
    }
    // Two hot contents that were moved, two cold ones, and the one that never moved.
    let due = world.store.due_reclaims(LATER, 10, None).await.unwrap();
    assert_eq!((due.len(), due.iter().filter(|reclaim| reclaim.stub.is_some()).count()), (5, 2));
}

pub async fn a_commit_is_refused_as_a_put_is(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let hot = world.put(id, "k", 1, Some(oss())).await.object;
    let job = world.claim_one(&oss(), T0 + 1).await;
    world.reserve(&job).await;
    let given_up = moved_content(&job, hot.content.as_ref().unwrap());
    world.store.condemn(&[given_up.id], T0).await.unwrap();
    let refused = world.commit_to(&job, given_up, T0 + 2).await;
    assert!(matches!(refused, Err(MetadataError::Condemned)), "{refused:?}");
    assert_eq!(latest(&world.store, id, "k").await.unwrap(), hot);
    let cold = moved_content(&job, hot.content.as_ref().unwrap());
    assert_eq!(world.commit_to(&job, cold.clone(), T0 + 3).await.unwrap(), MoveEnd::Done);

    assert_eq!(world.ask(request(id, "k", None, MoveReason::Command)).await, MoveQueued::Queued);
    let job = world.claim_one(&oss(), T0 + 600).await;
    let back = moved_content(&job, &cold);
    let chunk = back.id.chunk(0);
    world.store.raise_epochs(&[(ShardId(3), Epoch(5))]).await.unwrap();
    let under =
        |epoch| ReplicaEvidence { epochs: vec![(ShardId(3), Epoch(epoch))], missed: vec![(chunk, NodeId([9; 8]))] };
    let moved = |epoch| Moved::To { content: back.clone(), evidence: under(epoch) };
    let refused = world.commit(&job, moved(4), T0 + 601).await;
    assert!(matches!(refused, Err(MetadataError::StaleEpoch { current: Epoch(5), .. })), "{refused:?}");
    assert_eq!(world.store.repairs(NodeId([9; 8]), 0, 10).await.unwrap(), []);
    assert_eq!(world.commit(&job, moved(5), T0 + 602).await.unwrap(), MoveEnd::Done);
    let repairs = world.store.repairs(NodeId([9; 8]), 0, 10).await.unwrap();
    assert_eq!(repairs.iter().map(|repair| repair.chunk).collect::<Vec<_>>(), [chunk]);
    let read = latest(&world.store, id, "k").await.unwrap();
    assert_eq!((content_of(&read), &read.class), (back.id, &None));
}

pub async fn moves_are_paged_and_counted(world: World) {
    let id = bucket(&world.store, "b").await.id;
    for n in 0..5 {
        world.put(id, &format!("k{n}"), n + 10, Some(oss())).await;
    }
    world.put(id, "other", 1, Some(tier("GLACIER"))).await;
    let all = world.moves().await;
    let mut paged = Vec::new();
    loop {
        let after = paged.last().map_or(0, |job: &Move| job.id);
        let page = world.ledger.moves(Some(&oss()), after, 2).await.unwrap();
        assert!(page.len() <= 2);
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, all.iter().filter(|job| job.lane == oss()).cloned().collect::<Vec<_>>());
    assert_eq!((all.len(), paged.len()), (6, 5));
    let claim = Claim {
        owner: NodeId([7; 8]),
        now_ms: T0 + 11,
        until_ms: LATER,
        spares_restored: false,
        to_cluster_only: false,
    };
    let [first, _] = &world.ledger.claim_moves(&oss(), claim, 10).await.unwrap()[..] else { panic!("two are due") };
    world.ledger.postpone_move(first.id, first.attempt, LATER, Some("no answer")).await.unwrap();
    let backlog = world.ledger.move_backlog(T0 + 13).await.unwrap();
    let [glacier, oss_lane] = &backlog[..] else { panic!("{backlog:?}") };
    assert_eq!((&glacier.lane, glacier.waiting, glacier.due, glacier.failing), (&tier("GLACIER"), 1, 1, 0));
    assert_eq!(glacier.oldest_due_ms, Some(T0 + 1));
    // One failed, one is claimed, two are due, one is not.
    assert_eq!((&oss_lane.lane, oss_lane.waiting, oss_lane.due, oss_lane.failing), (&oss(), 5, 3, 1));
    assert_eq!(oss_lane.oldest_due_ms, Some(T0 + 12));
    assert_eq!(world.ledger.move_backlog(T0).await.unwrap()[0].oldest_due_ms, None);
    assert_ne!(names_of(first), names_of(&paged[4]));
}

pub async fn overwrites_and_moves_race_without_losing_a_content(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let mut contents = Vec::new();
    for n in 0..20_u8 {
        let old = world.put(id, "k", n, Some(oss())).await.object;
        let job = world.claim_one(&oss(), T0 + 100).await;
        world.reserve(&job).await;
        let cold = moved_content(&job, old.content.as_ref().unwrap());
        let (ended, new) =
            futures::future::join(world.commit_to(&job, cold.clone(), T0 + 101), put(&world.store, id, "k", n)).await;
        let read = latest(&world.store, id, "k").await.unwrap();
        assert_eq!(content_of(&read), content_of(&new.object), "what was written last is there");
        contents.push(content_of(&old));
        match ended.unwrap() {
            MoveEnd::Done => contents.push(cold.id),
            MoveEnd::Overtaken => {
                assert_eq!(world.store.known_contents(&[cold.id]).await.unwrap(), []);
                let left = world.ledger.due_pieces(&oss(), LATER, T0, 10).await.unwrap();
                assert_eq!(left.len(), 3, "nothing that was stored is forgotten");
                world.ledger.finish_pieces(&left, T0).await.unwrap();
                let left = world.ledger.due_pieces(&oss(), T0, T0, 10).await.unwrap();
                world.ledger.finish_pieces(&left, T0).await.unwrap();
            }
        }
        contents.push(content_of(&new.object));
    }
    let last = contents.pop().unwrap();
    let due = world.store.due_reclaims(LATER, 1000, None).await.unwrap();
    assert_eq!(due.len(), contents.len(), "each is reclaimed once");
    for reclaim in due {
        world.store.finish_reclaims(&[reclaim.item], None).await.unwrap();
    }
    assert_eq!(world.store.known_contents(&contents).await.unwrap(), []);
    assert_eq!(world.store.known_contents(&[last]).await.unwrap(), [last]);
}
