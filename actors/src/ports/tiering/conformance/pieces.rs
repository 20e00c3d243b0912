//! Tiers, what lies in them, and what they are to delete.

use super::{LATER, World, cold_object, moved_content, names_of, oss, piece_names, place_in, request, tier};
use crate::ports::metadata::conformance::{T0, bucket, bucket_with, copy_of, delete, latest, put};
use crate::ports::metadata::{
    Content, ContentSource, MetadataError, MoveEnd, MoveQueued, MoveReason, NewObject, Versioning,
};
use crate::ports::tiering::DuePiece;
use crate::ports::tiers::PieceName;

fn sorted(pieces: &[DuePiece]) -> Vec<&str> {
    let mut names: Vec<&str> = pieces.iter().map(|piece| piece.name.as_str()).collect();
    names.sort_unstable();
    names
}

pub async fn a_commit_takes_its_pieces_off_the_list(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let hot = world.put(id, "k", 1, Some(oss())).await.object;
    let first = world.claim_one(&oss(), T0 + 1).await;
    world.reserve(&first).await;
    let job = world.claim_one(&oss(), first.due_ms).await;
    let content = moved_content(&job, hot.content.as_ref().unwrap());
    let refused = async |content: Content| {
        let refused = world.commit_to(&job, content, T0 + 2000).await;
        assert!(matches!(refused, Err(MetadataError::Superseded)), "{refused:?}");
    };
    refused(content.clone()).await;
    let names = names_of(&job);
    world.ledger.reserve_pieces(job.id, job.attempt, &oss(), &piece_names(&names[..2]), LATER).await.unwrap();
    refused(content.clone()).await;
    world.ledger.reserve_pieces(job.id, job.attempt, &oss(), &piece_names(&names[2..]), LATER).await.unwrap();
    let mut others = names.clone();
    others[1] = "another".into();
    refused(Content { place: place_in(&oss(), others), ..content.clone() }).await;
    assert_eq!(world.listed(&oss()).await, 6);
    assert_eq!(world.commit_to(&job, content, T0 + 2001).await.unwrap(), MoveEnd::Done);
    assert_eq!(world.listed(&oss()).await, 3, "those of the attempt before stay");
    let due = world.ledger.due_pieces(&oss(), LATER, LATER + 1, 10).await.unwrap();
    assert_eq!(sorted(&due), names_of(&first));
}

pub async fn a_piece_that_is_being_deleted_refuses_the_commit(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let hot = world.put(id, "k", 1, Some(oss())).await.object;
    let job = world.claim_one(&oss(), T0 + 1).await;
    world.reserve(&job).await;
    let due = world.ledger.due_pieces(&oss(), LATER, LATER + 5, 1).await.unwrap();
    assert_eq!(due.len(), 1);
    let content = moved_content(&job, hot.content.as_ref().unwrap());
    for _ in 0..2 {
        let refused = world.commit_to(&job, content.clone(), T0 + 5).await;
        assert!(matches!(refused, Err(MetadataError::Superseded)), "{refused:?}");
        // Deleted once or not: it may be gone.
        world.ledger.finish_pieces(&due, LATER + 6).await.unwrap();
    }
    assert_eq!(latest(&world.store, id, "k").await.unwrap(), hot);
    assert_eq!(world.store.known_contents(&[content.id]).await.unwrap(), []);
}

/// A dump that was put back knows of an attempt that was under way, and not that it was committed since. A rebuild on
/// top of it brings the content.
pub async fn a_content_that_comes_with_its_place_keeps_its_pieces(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let hot = world.put(id, "k", 1, Some(oss())).await.object;
    let job = world.claim_one(&oss(), T0 + 1).await;
    world.reserve(&job).await;
    let another = ["another".to_owned()];
    world.ledger.reserve_pieces(job.id, job.attempt, &oss(), &piece_names(&another), LATER).await.unwrap();
    let content = moved_content(&job, hot.content.as_ref().unwrap());
    let object = NewObject { content: ContentSource::New(content.clone()), ..cold_object(id, "k", 1, Some(oss())) };
    world.store.commit_object(object).await.unwrap();
    // A mover finds that the version has another content by now, and gives up what the attempt reserved.
    world.ledger.drop_move(job.id, job.attempt).await.unwrap();
    let due = world.ledger.due_pieces(&oss(), LATER, LATER + 1, 10).await.unwrap();
    assert_eq!(sorted(&due), another);
    assert_eq!(latest(&world.store, id, "k").await.unwrap().content.as_deref(), Some(&content));
}

pub async fn reserved_pieces_are_deleted_twice(world: World) {
    let id = bucket(&world.store, "b").await.id;
    world.put(id, "k", 1, Some(oss())).await;
    let job = world.claim_one(&oss(), T0 + 1).await;
    world.reserve(&job).await;
    let due_ms = job.due_ms + 1000;
    let ledger = &world.ledger;
    assert_eq!(ledger.due_pieces(&oss(), due_ms - 1, LATER, 10).await.unwrap(), []);
    assert_eq!(ledger.due_pieces(&tier("OTHER"), LATER, LATER, 10).await.unwrap(), []);
    let some = ledger.due_pieces(&oss(), due_ms, due_ms + 100, 2).await.unwrap();
    let rest = ledger.due_pieces(&oss(), due_ms, due_ms + 100, 2).await.unwrap();
    let all = [some, rest].concat();
    assert_eq!(sorted(&all), names_of(&job));
    assert!(all.iter().all(|piece| piece.is_unsure));
    assert_eq!(ledger.due_pieces(&oss(), due_ms + 99, LATER, 10).await.unwrap(), [], "they are given out");
    let again = ledger.due_pieces(&oss(), due_ms + 100, due_ms + 200, 10).await.unwrap();
    assert_eq!(sorted(&again), names_of(&job), "nobody said that they are deleted");
    ledger.finish_pieces(&again, due_ms + 500).await.unwrap();
    ledger.finish_pieces(&all, due_ms + 900).await.unwrap();
    assert_eq!(ledger.due_pieces(&oss(), due_ms + 499, LATER, 10).await.unwrap(), []);
    let second = ledger.due_pieces(&oss(), due_ms + 500, due_ms + 600, 10).await.unwrap();
    assert_eq!(sorted(&second), names_of(&job));
    assert!(second.iter().all(|piece| !piece.is_unsure));
    ledger.finish_pieces(&second, LATER).await.unwrap();
    assert_eq!(ledger.due_pieces(&oss(), LATER, LATER, 10).await.unwrap(), []);
    assert_eq!(world.listed(&oss()).await, 0);
    ledger.finish_pieces(&[], LATER).await.unwrap();
}

pub async fn what_an_attempt_left_that_is_over_is_deleted_at_once_and_again(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let ledger = &world.ledger;
    // One that is given back, one that is dropped, and one whose commit comes too late.
    for end in 0..3_u8 {
        let hot = world.put(id, "k", end, Some(oss())).await.object;
        let job = world.claim_one(&oss(), T0 + 10).await;
        world.reserve(&job).await;
        assert_eq!(ledger.due_pieces(&oss(), T0 + 20, LATER, 10).await.unwrap(), [], "it is at work");
        match end {
            0 => ledger.postpone_move(job.id, job.attempt, LATER, Some("no answer")).await.unwrap(),
            1 => ledger.drop_move(job.id, job.attempt).await.unwrap(),
            _ => {
                delete(&world.store, id, "k", None).await.unwrap();
                let content = moved_content(&job, hot.content.as_ref().unwrap());
                assert_eq!(world.commit_to(&job, content, T0 + 20).await.unwrap(), MoveEnd::Overtaken);
            }
        }
        let due = ledger.due_pieces(&oss(), T0 + 20, T0 + 30, 10).await.unwrap();
        assert_eq!(sorted(&due), names_of(&job), "{end}");
        assert!(due.iter().all(|piece| piece.is_unsure));
        ledger.finish_pieces(&due, T0 + 50).await.unwrap();
        assert_eq!(ledger.due_pieces(&oss(), T0 + 49, LATER, 10).await.unwrap(), []);
        let again = ledger.due_pieces(&oss(), T0 + 50, LATER, 10).await.unwrap();
        assert_eq!(sorted(&again), names_of(&job), "a request may have taken effect since");
        ledger.finish_pieces(&again, LATER).await.unwrap();
        assert_eq!(world.listed(&oss()).await, 0);
    }
}

pub async fn a_renewed_claim_keeps_its_pieces(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let hot = world.put(id, "k", 1, Some(oss())).await.object;
    let job = world.claim_one(&oss(), T0 + 1).await;
    world.reserve(&job).await;
    world.ledger.renew_move(job.id, job.attempt, T0 + 50_000, T0 + 60_000).await.unwrap();
    assert_eq!(world.ledger.due_pieces(&oss(), T0 + 59_999, LATER, 10).await.unwrap(), []);
    assert_eq!(world.claim(&oss(), T0 + 49_999).await, []);
    let content = moved_content(&job, hot.content.as_ref().unwrap());
    assert_eq!(world.commit_to(&job, content, T0 + 49_999).await.unwrap(), MoveEnd::Done);
}

pub async fn a_reclaimed_content_lists_its_pieces_once_and_its_stub_always(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let cold = world.freeze(id, "k", 1, &oss()).await;
    let hot = world.store.due_reclaims(LATER, 10, None).await.unwrap();
    world.store.finish_reclaims(&[hot[0].item], None).await.unwrap();
    delete(&world.store, id, "k", None).await.unwrap();
    // A copy takes it back, with its place.
    let copy = NewObject { class: Some(oss()), ..copy_of(id, "copy", cold.id) };
    let copy = world.store.commit_object(copy).await.unwrap().object;
    assert_eq!(copy.content.as_deref(), Some(&cold));
    assert_eq!(world.store.due_reclaims(LATER, 10, None).await.unwrap(), []);
    delete(&world.store, id, "copy", None).await.unwrap();
    assert_eq!(world.listed(&oss()).await, 0, "not before the grace is over");
    let due = world.store.due_reclaims(LATER, 10, None).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!((due[0].stub, due[0].manifest.extents.len()), (Some(cold.id), 0));
    assert_eq!(world.listed(&oss()).await, 3);
    let again = world.store.due_reclaims(LATER + 1, 10, None).await.unwrap();
    assert_eq!(again, due);
    assert_eq!(world.listed(&oss()).await, 3);
    let pieces = world.ledger.due_pieces(&oss(), LATER, LATER + 1, 10).await.unwrap();
    assert_eq!(sorted(&pieces), cold.cold().unwrap().names);
    assert!(pieces.iter().all(|piece| !piece.is_unsure), "nobody writes them");
    world.ledger.finish_pieces(&pieces, LATER).await.unwrap();
    assert_eq!(world.listed(&oss()).await, 0);
    assert_eq!(world.store.known_contents(&[cold.id]).await.unwrap(), [cold.id], "the stub is still there");
    world.store.finish_reclaims(&[due[0].item], None).await.unwrap();
    assert_eq!(world.store.known_contents(&[cold.id]).await.unwrap(), []);
    assert_eq!(world.store.due_reclaims(LATER + 2, 10, None).await.unwrap(), []);
}

pub async fn tiers_are_added_changed_and_removed(world: World) {
    let ledger = &world.ledger;
    assert_eq!(ledger.tiers().await.unwrap(), []);
    let added = ledger.add_tier(oss(), "{\"a\":1}".into(), T0, None).await.unwrap();
    assert_eq!((&added.name, added.settings.as_str(), added.created_ms), (&oss(), "{\"a\":1}", T0));
    let taken = ledger.add_tier(oss(), "{}".into(), T0 + 1, None).await;
    assert!(matches!(taken, Err(MetadataError::Exists("tier"))), "{taken:?}");
    let other = ledger.add_tier(tier("GLACIER"), "{}".into(), T0, None).await.unwrap();
    assert_eq!(ledger.tiers().await.unwrap(), [other.clone(), added.clone()]);
    let changed = ledger.change_tier(&oss(), "{\"ü\":2}".into(), None).await.unwrap();
    assert!(changed.revision > added.revision);
    assert_eq!((changed.settings.as_str(), changed.created_ms), ("{\"ü\":2}", T0));
    assert_eq!(ledger.tiers().await.unwrap(), [other.clone(), changed]);
    ledger.remove_tier(&oss()).await.unwrap();
    assert_eq!(ledger.tiers().await.unwrap(), [other]);
    let missing = ledger.remove_tier(&oss()).await;
    assert!(matches!(missing, Err(MetadataError::NotFound("tier"))), "{missing:?}");
    for missing in
        [ledger.change_tier(&oss(), "{}".into(), None).await, ledger.change_empty_tier(&oss(), "{}".into(), None).await]
    {
        assert!(matches!(missing, Err(MetadataError::NotFound("tier"))), "{missing:?}");
    }
}

/// What changes the settings of an empty tier is told when it was not empty any more, and then has changed nothing.
pub async fn a_tier_that_is_to_be_empty_keeps_its_settings_when_it_is_not(world: World) {
    let id = bucket(&world.store, "b").await.id;
    world.ledger.add_tier(oss(), "{}".into(), T0, None).await.unwrap();
    let changed = world.ledger.change_empty_tier(&oss(), "{\"bucket\":\"another\"}".into(), None).await.unwrap();
    assert_eq!((changed.settings.as_str(), changed.revision), ("{\"bucket\":\"another\"}", 2));
    world.put(id, "k", 1, Some(oss())).await;
    world.carry_out(&oss(), T0 + 10).await;
    world.put(id, "waiting", 2, Some(oss())).await;
    let job = world.claim_one(&oss(), T0 + 20).await;
    let refused = world.ledger.change_empty_tier(&oss(), "{}".into(), None).await;
    assert!(matches!(refused, Err(MetadataError::TierInUse)), "{refused:?}");
    assert_eq!(world.ledger.tiers().await.unwrap(), [changed]);
    world.ledger.renew_move(job.id, job.attempt, T0 + 1_000, T0 + 2_000).await.expect("its claim stands");
}

/// The settings before may lead to another store.
pub async fn a_tier_whose_settings_change_takes_nothing_by_those_before(world: World) {
    let id = bucket(&world.store, "b").await.id;
    world.ledger.add_tier(oss(), "{}".into(), T0, None).await.unwrap();
    let object = world.put(id, "k", 1, Some(oss())).await.object;
    let job = world.claim_one(&oss(), T0 + 10).await;
    world.reserve(&job).await;
    world.ledger.change_tier(&oss(), "{\"bucket\":\"another\"}".into(), None).await.unwrap();
    let moved = moved_content(&job, object.content.as_ref().unwrap());
    let refused = world.commit_to(&job, moved, T0 + 20).await;
    assert!(matches!(refused, Err(MetadataError::Superseded)), "{refused:?}");
    assert_eq!(world.version(id, "k", None).await, object);
    // It is begun anew when the claim would have ended.
    assert_eq!(world.claim(&oss(), job.due_ms - 1).await, []);
    world.carry_out(&oss(), job.due_ms).await;
    assert!(world.version(id, "k", None).await.content.as_ref().unwrap().cold().is_some());
}

pub async fn tiers_are_added_and_changed_only_beside_those_that_were_judged(world: World) {
    let ledger = &world.ledger;
    let none = ledger.tiers().await.unwrap();
    ledger.add_tier(oss(), "{}".into(), T0, Some(&none)).await.unwrap();
    let one = ledger.tiers().await.unwrap();
    let refused = |result: crate::ports::metadata::MetadataResult<_>| {
        assert!(matches!(result, Err(MetadataError::PreconditionFailed)), "{result:?}");
    };
    refused(ledger.add_tier(tier("GLACIER"), "{}".into(), T0, Some(&none)).await);
    refused(ledger.change_tier(&oss(), "{\"late\":1}".into(), Some(&none)).await);
    refused(ledger.change_empty_tier(&oss(), "{\"late\":1}".into(), Some(&none)).await);
    assert_eq!(ledger.tiers().await.unwrap(), one);
    ledger.change_tier(&oss(), "{\"a\":1}".into(), Some(&one)).await.unwrap();
    refused(ledger.change_tier(&oss(), "{\"late\":1}".into(), Some(&one)).await);
    let taken = ledger.add_tier(oss(), "{}".into(), T0, Some(&none)).await;
    assert!(matches!(taken, Err(MetadataError::Exists("tier"))), "{taken:?}");
    // Of many at one moment the others did not see the first.
    let judged = ledger.tiers().await.unwrap();
    let additions = (0..6).map(|n| ledger.add_tier(tier(&format!("T{n}")), "{}".into(), T0, Some(&judged)));
    let added = futures::future::join_all(additions).await;
    assert_eq!(added.iter().filter(|added| added.is_ok()).count(), 1, "{added:?}");
    assert_eq!(ledger.tiers().await.unwrap().len(), 2);
}

pub async fn a_tier_in_use_is_not_removed(world: World) {
    let id = bucket(&world.store, "b").await.id;
    let ledger = &world.ledger;
    ledger.add_tier(oss(), "{}".into(), T0, None).await.unwrap();
    ledger.add_tier(tier("FREE"), "{}".into(), T0, None).await.unwrap();
    let in_use = async || {
        let refused = ledger.remove_tier(&oss()).await;
        assert!(matches!(refused, Err(MetadataError::TierInUse)), "{refused:?}");
    };
    world.put(id, "k", 1, Some(oss())).await;
    in_use().await;
    world.carry_out(&oss(), T0 + 10).await;
    assert_eq!(world.moves().await, []);
    in_use().await;
    delete(&world.store, id, "k", None).await.unwrap();
    in_use().await;
    for reclaim in world.store.due_reclaims(LATER, 10, None).await.unwrap() {
        world.store.finish_reclaims(&[reclaim.item], None).await.unwrap();
    }
    in_use().await;
    let pieces = ledger.due_pieces(&oss(), LATER, LATER, 10).await.unwrap();
    let another = PieceName::new("another").unwrap();
    let others: Vec<DuePiece> =
        pieces.iter().map(|piece| DuePiece { name: another.clone(), ..piece.clone() }).collect();
    ledger.finish_pieces(&others, LATER).await.unwrap();
    in_use().await;
    ledger.finish_pieces(&pieces, LATER).await.unwrap();
    ledger.remove_tier(&oss()).await.unwrap();
    ledger.remove_tier(&tier("FREE")).await.unwrap();
}

pub async fn moves_of_versions_that_are_gone_do_not_keep_a_tier(world: World) {
    let (plain, versioned) =
        (bucket(&world.store, "b").await.id, bucket_with(&world.store, "versioned", Versioning::Enabled).await);
    world.ledger.add_tier(oss(), "{}".into(), T0, None).await.unwrap();
    let restored = async |id, key: &str| {
        world.freeze(id, key, 1, &oss()).await;
        let restore = MoveReason::Restore { keep_ms: LATER };
        assert_eq!(world.ask(request(id, key, None, restore)).await, MoveQueued::Queued);
        world.carry_out(&oss(), T0 + 600).await;
        latest(&world.store, id, key).await.unwrap().version
    };
    // The way back of a restore is due when that is over, which nobody waits for.
    restored(plain, "overwritten").await;
    put(&world.store, plain, "overwritten", 2).await;
    assert_eq!(world.moves().await, []);
    restored(plain, "deleted").await;
    delete(&world.store, plain, "deleted", None).await.unwrap();
    assert_eq!(world.moves().await, []);
    let version = restored(versioned, "k").await;
    put(&world.store, versioned, "k", 2).await;
    assert_eq!(world.moves().await.len(), 1, "it is still there, behind the latest");
    delete(&world.store, versioned, "k", Some(version)).await.unwrap();
    assert_eq!(world.moves().await, []);
    // One with a class keeps the move of that.
    restored(plain, "again").await;
    world.put(plain, "again", 2, Some(oss())).await;
    let [stored] = &world.moves().await[..] else { panic!("one") };
    assert_eq!(stored.reason, MoveReason::Stored);
    // A move that waits for a tier which does not answer stays: whoever claims it finds it pointless, or it goes with
    // the tier.
    put(&world.store, plain, "again", 3).await;
    assert_eq!(world.moves().await.len(), 1);
    for reclaim in world.store.due_reclaims(LATER, 100, None).await.unwrap() {
        world.store.finish_reclaims(&[reclaim.item], None).await.unwrap();
    }
    let pieces = world.ledger.due_pieces(&oss(), LATER, LATER, 100).await.unwrap();
    world.ledger.finish_pieces(&pieces, LATER).await.unwrap();
    world.ledger.remove_tier(&oss()).await.unwrap();
    assert_eq!(world.moves().await, []);
}

pub async fn contents_of_a_tier_are_paged_and_counted(world: World) {
    let id = bucket(&world.store, "b").await.id;
    world.ledger.add_tier(tier("EMPTY"), "{}".into(), T0, None).await.unwrap();
    let mut cold = Vec::new();
    for n in 0..5 {
        cold.push(world.freeze(id, &format!("k{n}"), n, &oss()).await);
    }
    world.freeze(id, "other", 9, &tier("GLACIER")).await;
    let copy = NewObject { class: Some(oss()), ..copy_of(id, "copy", cold[0].id) };
    world.store.commit_object(copy).await.unwrap();
    cold.sort_by_key(|content| content.id);
    let mut paged: Vec<Content> = Vec::new();
    loop {
        let after = paged.last().map(|content| content.id);
        let page = world.ledger.cold_contents(&oss(), after, 2).await.unwrap();
        assert!(page.len() <= 2);
        if page.is_empty() {
            break;
        }
        paged.extend(page.iter().map(|content| (**content).clone()));
    }
    assert_eq!(paged, cold);
    let usage = world.ledger.tier_usage().await.unwrap();
    let row = |name: &str| {
        let usage = usage.iter().find(|usage| usage.tier == tier(name)).unwrap();
        (usage.contents, usage.size_bytes, usage.pieces_to_delete)
    };
    assert_eq!(row("OSS"), (5, 5 * super::SIZE, 0));
    assert_eq!(row("GLACIER"), (1, super::SIZE, 0));
    assert_eq!(row("EMPTY"), (0, 0, 0));
    assert_eq!(usage.len(), 3);
}

pub async fn of_a_commit_and_a_sweep_exactly_one_has_the_pieces(world: World) {
    let (id, lane) = (bucket(&world.store, "b").await.id, oss());
    for n in 0..20_u8 {
        let key = format!("k{n}");
        let hot = world.put(id, &key, n, Some(oss())).await.object;
        let job = world.claim_one(&oss(), T0 + 100).await;
        world.reserve(&job).await;
        let content = moved_content(&job, hot.content.as_ref().unwrap());
        let commit = world.commit_to(&job, content.clone(), T0 + 101);
        let sweep = world.ledger.due_pieces(&lane, LATER, LATER + 1, 10);
        // Each is the first to start in every other round.
        let (committed, swept) = if n % 2 == 0 {
            futures::future::join(commit, sweep).await
        } else {
            let (swept, committed) = futures::future::join(sweep, commit).await;
            (committed, swept)
        };
        let swept = swept.unwrap();
        let read = latest(&world.store, id, &key).await.unwrap();
        match committed {
            Ok(end) => {
                assert_eq!((end, swept.len()), (MoveEnd::Done, 0));
                assert_eq!(read.content.as_deref(), Some(&content));
            }
            Err(MetadataError::Superseded) => {
                assert_eq!(sorted(&swept), names_of(&job));
                assert_eq!(read, hot);
                world.ledger.finish_pieces(&swept, T0).await.unwrap();
                let rest = world.ledger.due_pieces(&oss(), T0, LATER, 10).await.unwrap();
                world.ledger.finish_pieces(&rest, T0).await.unwrap();
                world.ledger.drop_move(job.id, job.attempt).await.unwrap();
            }
            Err(error) => panic!("{error:?}"),
        }
        assert_eq!(world.listed(&oss()).await, 0);
    }
}
