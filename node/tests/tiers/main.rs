//! Objects move to cold tiers and back over real metadata: each is whole at every moment, whatever fails, and nothing
//! is left behind.

#![allow(clippy::unwrap_used, reason = "tests")]

mod claims;
mod clocks;
mod crashes;
mod doubles;
mod failures;
mod lying;
#[allow(dead_code, reason = "this test uses a part")]
#[path = "../support/metadata.rs"]
mod support_metadata;
mod sweeping;
mod world;
mod yielding;

use std::pin::pin;

use holdfast_actors::flow::cold::mover::MoverStats;
use holdfast_actors::ports::metadata::{
    ContentSource, MoveQueued, MoveReason, NewObject, ObjectAttributes, Restore, Tag, Versioning, samples,
};
use holdfast_protocol::{ChunkLabel, STUB_INDEX};

use doubles::Gate;
use world::{HOUR, PIECE_BYTES, World, pattern, tier};

/// Blocks and pieces of more than one size, the last ones short.
const LEN: usize = 2 * PIECE_BYTES as usize + 150_001;

fn moved(objects: u64, bytes: u64) -> MoverStats {
    MoverStats { claimed: objects, moved: objects, moved_bytes: bytes, ..MoverStats::default() }
}

#[tokio::test]
async fn objects_of_every_size_are_in_the_tier_whole_and_nowhere_else() {
    let world = World::new(Versioning::Unversioned).await;
    let block = 128 << 10;
    let sizes = [1, block - 1, block, block + 1, PIECE_BYTES as usize, PIECE_BYTES as usize + 1, LEN];
    for (salt, size) in sizes.into_iter().enumerate() {
        let data = pattern(size, salt as u32);
        world.put(&format!("key-{size}"), &data, Some("ONE")).await;
    }
    assert_eq!(world.pass("ONE").await, moved(7, sizes.iter().sum::<usize>() as u64));
    for (salt, size) in sizes.into_iter().enumerate() {
        let key = format!("key-{size}");
        assert_eq!(world.place(&key).await, "ONE");
        assert!(world.read(&key).await == pattern(size, salt as u32), "{size}");
        let content = world.content(&key).await;
        assert_eq!(content.cold().unwrap().names.len(), size.div_ceil(PIECE_BYTES as usize));
        let label = world.memory.label(content.id.chunk(STUB_INDEX)).expect("a stub");
        let label = ChunkLabel::decode(&label).unwrap();
        assert!(label.is_stub && label.bucket == "bucket" && label.key == key, "{label:?}");
    }
    assert_eq!(world.object("key-1").await.class, Some(tier("ONE")));
    world.assert_clean().await;
    let events = world.events().await;
    assert_eq!(events.len(), 7);
    assert!(events.contains(&"LifecycleTransition bucket/key-1".to_owned()), "{events:?}");
}

#[tokio::test]
async fn empty_object_changes_its_class_and_has_nothing_to_move() {
    let world = World::new(Versioning::Unversioned).await;
    world.put("empty", &pattern(0, 0), Some("ONE")).await;
    let stats = world.pass("ONE").await;
    assert_eq!(stats, MoverStats { claimed: 1, in_place: 1, ..MoverStats::default() });
    assert_eq!(world.object("empty").await.class, Some(tier("ONE")));
    assert!(world.read("empty").await.is_empty());
    world.assert_clean().await;
}

#[tokio::test]
async fn many_tiny_objects_are_all_moved() {
    let world = World::new(Versioning::Unversioned).await;
    for number in 0..100 {
        world.put(&format!("key-{number:03}"), &pattern(number + 1, number as u32), Some("ONE")).await;
    }
    assert_eq!(world.pass("ONE").await, moved(100, 5_050));
    for number in 0..100 {
        assert!(world.read(&format!("key-{number:03}")).await == pattern(number + 1, number as u32));
    }
    world.assert_clean().await;
}

#[tokio::test]
async fn object_comes_back_as_if_it_had_been_put() {
    let world = World::new(Versioning::Enabled).await;
    let data = pattern(LEN, 3);
    world.put("key", &data, Some("ONE")).await;
    world.pass("ONE").await;
    let cold = world.content("key").await;
    assert_eq!(world.request("key", None, MoveReason::Command).await, MoveQueued::Queued);
    assert_eq!(world.pass("ONE").await, moved(1, LEN as u64));
    assert_eq!(world.place("key").await, "cluster");
    assert!(world.read("key").await == data);
    let (object, hot) = (world.object("key").await, world.content("key").await);
    assert_eq!((object.class.clone(), hot.etag), (None, cold.etag));
    assert_ne!(hot.id, cold.id);
    let label = ChunkLabel::decode(&world.memory.label(hot.id.chunk(0)).unwrap()).unwrap();
    assert_eq!((label.version, label.created_ms), (object.version, object.last_modified_ms));
    assert!(label.attributes.unwrap().contains("text/plain"));
    world.assert_clean().await;
}

#[tokio::test]
async fn version_with_more_tags_and_headers_than_a_label_takes_moves_all_the_same() {
    // As a copy may have them, within the limits of S3. In a label a quote takes four bytes.
    let quotes = |count: usize| "\"".repeat(count);
    let tags: Vec<Tag> = (0..10).map(|n| Tag { key: format!("{n}{}", quotes(127)), value: quotes(256) }).collect();
    let key = "\u{1}".repeat(1_024);
    for (content_disposition, keeps_headers) in [(None, true), (Some(quotes(6_000)), false)] {
        let world = World::new(Versioning::Unversioned).await;
        let data = pattern(LEN, 5);
        world.put("source", &data, None).await;
        let user_metadata = vec![("a".to_owned(), quotes(2_047))];
        let copy = NewObject {
            now_ms: world.clock_ms(),
            content: ContentSource::Shared(world.content("source").await.id),
            attributes: ObjectAttributes { content_disposition, user_metadata, ..ObjectAttributes::default() },
            tags: tags.clone(),
            ..samples::object(world.bucket, &key)
        };
        world.store().commit_object(copy).await.unwrap();
        world.request(&key, Some("ONE"), MoveReason::Command).await;
        assert_eq!(world.pass("ONE").await, moved(1, LEN as u64));
        assert_eq!(world.place(&key).await, "ONE");
        let stub = world.content(&key).await.id.chunk(STUB_INDEX);
        let label = ChunkLabel::decode(&world.memory.label(stub).expect("a stub")).unwrap();
        let told = label.attributes.unwrap();
        assert!(told.contains("owner") && !told.contains("\"tags\":"), "{told}");
        assert!(told.contains("left_out"), "{told}");
        assert_eq!(told.contains("user_metadata"), keeps_headers, "{told}");
        world.request(&key, None, MoveReason::Command).await;
        assert_eq!(world.pass("ONE").await, moved(1, LEN as u64));
        assert!(world.read(&key).await == data);
        assert_eq!(world.object(&key).await.tags, tags, "what is known of it is whole");
        world.assert_clean().await;
    }
}

#[tokio::test]
async fn restored_object_goes_back_when_its_time_is_over() {
    let world = World::new(Versioning::Unversioned).await;
    let data = pattern(LEN, 4);
    world.put("key", &data, Some("ONE")).await;
    world.pass("ONE").await;
    let restore = MoveReason::Restore { keep_ms: 24 * HOUR };
    assert_eq!(world.request("key", None, restore).await, MoveQueued::Queued);
    assert_eq!(world.object("key").await.restore, Some(Restore::Ongoing));
    assert_eq!(world.pass("ONE").await, moved(1, LEN as u64));
    let object = world.object("key").await;
    assert!(matches!(object.restore, Some(Restore::Until(_))), "{:?}", object.restore);
    assert_eq!((object.class.clone(), world.place("key").await), (Some(tier("ONE")), "cluster".to_owned()));
    assert_eq!(world.pass("ONE").await.claimed, 0, "its time is not over");
    world.go_on(25 * HOUR);
    assert_eq!(world.pass("ONE").await, moved(1, LEN as u64));
    assert_eq!(world.place("key").await, "ONE");
    assert!(world.read("key").await == data);
    world.assert_clean().await;
    let expected =
        ["LifecycleTransition bucket/key", "ObjectRestore:Completed bucket/key", "ObjectRestore:Delete bucket/key"];
    assert_eq!(world.events().await, expected);
}

#[tokio::test]
async fn object_goes_from_tier_to_tier() {
    let world = World::new(Versioning::Unversioned).await;
    let data = pattern(LEN, 5);
    world.put("key", &data, Some("ONE")).await;
    world.pass("ONE").await;
    world.request("key", Some("TWO"), MoveReason::Command).await;
    assert_eq!(world.pass("TWO").await, moved(1, LEN as u64));
    assert_eq!((world.place("key").await, world.object("key").await.class.clone()), ("TWO".into(), Some(tier("TWO"))));
    assert!(world.read("key").await == data);
    world.assert_clean().await;
}

/// Runs a pass that stops where the gate says, does something meanwhile, and lets it go on.
async fn with_a_stop(world: &World, gate: Gate, meanwhile: impl AsyncFnOnce(&World)) -> MoverStats {
    world.one.close(gate);
    let mover = world.mover.clone();
    let lane = tier("ONE");
    let mut pass = pin!(mover.pass(&lane));
    tokio::select! {
        ended = &mut pass => panic!("the pass ended before it came to {gate:?}: {ended:?}"),
        () = world.one.reached() => {}
    }
    let other = async {
        meanwhile(world).await;
        world.one.open();
    };
    tokio::join!(pass, other).0.unwrap()
}

#[tokio::test]
async fn overwrite_and_deletion_during_a_move_win() {
    for gate in [Gate::AtPut, Gate::AtGet] {
        let world = World::new(Versioning::Unversioned).await;
        world.put("key", &pattern(LEN, 1), Some("ONE")).await;
        let later = pattern(70_000, 2);
        let stats = with_a_stop(&world, gate, async |world| {
            world.put("key", &later, None).await;
        })
        .await;
        assert_eq!((stats.overtaken + stats.lost, stats.moved), (1, 0), "{stats:?}");
        assert_eq!(world.bytes_in("ONE").await, 0, "what it stored goes at once");
        assert!(world.read("key").await == later);
        assert_eq!((world.place("key").await, world.object("key").await.class.clone()), ("cluster".into(), None));
        world.assert_clean().await;

        world.put("gone", &pattern(LEN, 3), Some("ONE")).await;
        let stats = with_a_stop(&world, gate, async |world| world.delete("gone").await).await;
        assert_eq!((stats.overtaken + stats.lost, stats.moved), (1, 0), "{stats:?}");
        world.assert_clean().await;
    }
}

#[tokio::test]
async fn copy_that_is_made_during_a_move_keeps_what_it_shares() {
    let world = World::new(Versioning::Unversioned).await;
    let data = pattern(LEN, 1);
    world.put("key", &data, Some("ONE")).await;
    let stats = with_a_stop(&world, Gate::AtGet, async |world| world.copy("key", "copy", None).await).await;
    assert_eq!(stats, moved(1, LEN as u64));
    world.assert_clean().await;
    for (key, place) in [("key", "ONE"), ("copy", "cluster")] {
        assert_eq!(world.place(key).await, place);
        assert!(world.read(key).await == data, "{key}");
    }
    // A copy of a cold object shares what lies in the tier, and keeps it when the object goes.
    world.copy("key", "cold", Some("ONE")).await;
    world.delete("key").await;
    world.assert_clean().await;
    assert!(world.read("cold").await == data);
}
