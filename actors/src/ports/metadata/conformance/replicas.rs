//! Epochs, repairs and condemned contents.

use futures::future::join_all;
use holdfast_protocol::{ChunkId, ClusterId, ContentId, Epoch, NodeId, ShardId, VersionId};

use super::{Store, T0, assembled, bucket, content_of, copy_of, delete, latest, object, part, put, seeds, upload};
use crate::ports::metadata::{
    CompleteUpload, Condemned, ContentSource, MetadataError, NewObject, Repair, ReplicaEvidence, WritePrecondition,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Later than everything that a test queues.
const LATER: u64 = T0 + 1_000_000;
/// A place in the order of repairs before all of them.
const START: u64 = 0;

fn node(number: u64) -> NodeId {
    NodeId::from(number)
}

fn evidence(epochs: &[(u32, u64)], missed: &[(ChunkId, NodeId)]) -> ReplicaEvidence {
    ReplicaEvidence {
        epochs: epochs.iter().map(|(shard, epoch)| (ShardId(*shard), Epoch(*epoch))).collect(),
        missed: missed.to_vec(),
    }
}

fn new_content(object: &NewObject) -> ContentId {
    match &object.content {
        ContentSource::New(content) => content.id,
        ContentSource::Shared(id) => *id,
    }
}

fn chunks_and_nodes(repairs: &[Repair]) -> Vec<(ChunkId, NodeId)> {
    repairs.iter().map(|repair| (repair.chunk, repair.node)).collect()
}

async fn raise(store: &Store, shard: u32, epoch: u64) {
    store.raise_epochs(&[(ShardId(shard), Epoch(epoch))]).await.unwrap();
}

/// One stale shard of several is enough; nothing is left behind, and the same content goes in under the present epoch.
pub async fn commit_rejects_stale_epoch(store: Store) {
    let id = bucket(&store, "b").await.id;
    store.raise_epochs(&[(ShardId(1), Epoch(5)), (ShardId(200), Epoch(9))]).await.unwrap();
    let new = |epochs: &[(u32, u64)]| NewObject { evidence: evidence(epochs, &[]), ..object(id, "k", 1) };
    let stale = new(&[(1, 5), (7, 1), (200, 8)]);
    let refused = store.commit_object(stale.clone()).await;
    assert!(
        matches!(refused, Err(MetadataError::StaleEpoch { shard: ShardId(200), current: Epoch(9) })),
        "{refused:?}"
    );
    assert!(matches!(latest(&store, id, "k").await, Err(MetadataError::NoSuchKey)));
    assert_eq!(store.known_contents(&[new_content(&stale)]).await.unwrap(), []);
    let fresh = NewObject { evidence: evidence(&[(1, 5), (7, 1), (200, 10)], &[]), ..stale };
    let committed = store.commit_object(fresh).await.unwrap().object;
    assert_eq!(latest(&store, id, "k").await.unwrap(), committed);
    // What has no evidence is not asked for any.
    put(&store, id, "k", 2).await;
}

/// The part that is there stays.
pub async fn a_part_rejects_stale_epoch(store: Store) {
    let id = bucket(&store, "b").await.id;
    raise(&store, 3, 2).await;
    let new = upload(id, "k");
    store.create_upload(new.clone()).await.unwrap();
    let first = part(1, 10);
    store.put_part(id, "k", new.id, first.clone(), evidence(&[(3, 2)], &[])).await.unwrap();
    let missed = (first.content.chunk(0), node(1));
    let refused = store.put_part(id, "k", new.id, part(1, 20), evidence(&[(3, 1)], &[missed])).await;
    assert!(matches!(refused, Err(MetadataError::StaleEpoch { shard: ShardId(3), current: Epoch(2) })), "{refused:?}");
    assert_eq!(store.list_parts(new.id, 0, 10).await.unwrap(), [first]);
    assert_eq!(store.due_reclaims(LATER, 10, None).await.unwrap(), []);
    assert_eq!(store.repair_backlog().await.unwrap(), []);
}

/// Of many that claim at once, one wins, and all learn which.
pub async fn metadata_belongs_to_the_cluster_that_claims_it_first(store: Store) {
    assert_eq!(store.claim(None).await.unwrap(), None);
    let clusters: Vec<ClusterId> = (0..8).map(|_| ClusterId::generate()).collect();
    let claims = join_all(clusters.iter().map(|cluster| store.claim(Some(*cluster)))).await;
    let owner = store.claim(None).await.unwrap().unwrap();
    assert!(clusters.contains(&owner));
    for claim in claims {
        assert_eq!(claim.unwrap(), Some(owner));
    }
    // While it is filled it is nobody's.
    store.disclaim().await.unwrap();
    assert_eq!(store.claim(None).await.unwrap(), None);
    assert_eq!(store.claim(Some(clusters[1])).await.unwrap(), Some(clusters[1]));
}

/// Whatever the order in which they arrive.
pub async fn epochs_never_fall(store: Store) {
    let id = bucket(&store, "b").await.id;
    raise(&store, 4, 7).await;
    let higher = store.raise_epochs(&[(ShardId(4), Epoch(3)), (ShardId(9), Epoch(3))]).await.unwrap();
    assert_eq!(higher, [(ShardId(4), Epoch(7))], "whose shard map is old learns it");
    // A shard named twice, and none at all.
    let twice = [(ShardId(4), Epoch(8)), (ShardId(5), Epoch(1)), (ShardId(4), Epoch(2))];
    assert_eq!(store.raise_epochs(&twice).await.unwrap(), []);
    assert_eq!(store.raise_epochs(&[]).await.unwrap(), []);
    for (epoch, taken) in [(7, false), (8, true), (9, true)] {
        let new = NewObject { evidence: evidence(&[(4, epoch)], &[]), ..object(id, "k", 1) };
        let result = store.commit_object(new).await;
        assert_eq!(result.is_ok(), taken, "{epoch}: {result:?}");
    }
    let raises = (1..=16u64).map(|epoch| {
        let store = store.clone();
        tokio::spawn(
            async move { store.raise_epochs(&[(ShardId(6), Epoch(epoch)), (ShardId(7), Epoch(17 - epoch))]).await },
        )
    });
    for raised in join_all(raises).await {
        raised.unwrap().unwrap();
    }
    for shard in [6, 7] {
        let new = NewObject { evidence: evidence(&[(shard, 15)], &[]), ..object(id, "k", 1) };
        let refused = store.commit_object(new).await;
        assert!(matches!(refused, Err(MetadataError::StaleEpoch { current: Epoch(16), .. })), "{refused:?}");
    }
}

/// A write that took longer than cleanup waits with orphans learns that its chunks are gone.
pub async fn commit_and_part_of_a_condemned_content_are_refused(store: Store) {
    let id = bucket(&store, "b").await.id;
    let slow = object(id, "k", 1);
    let content = new_content(&slow);
    assert_eq!(store.condemn(&[content], T0).await.unwrap(), [content]);
    assert_eq!(store.condemn(&[content], T0 + 1).await.unwrap(), [content], "given up before");
    assert_eq!(store.condemn(&[], T0).await.unwrap(), []);
    assert!(!store.lost_commits().await.unwrap());
    assert_eq!(store.note_walked(NodeId::from(1), false, &[NodeId::from(2)]).await.unwrap(), [], "nothing was lost");
    assert!(matches!(store.commit_object(slow).await, Err(MetadataError::Condemned)));
    assert!(matches!(latest(&store, id, "k").await, Err(MetadataError::NoSuchKey)));
    assert_eq!(store.known_contents(&[content]).await.unwrap(), []);
    assert!(matches!(store.commit_object(copy_of(id, "k", content)).await, Err(MetadataError::NoSuchContent)));

    let new = upload(id, "m");
    store.create_upload(new.clone()).await.unwrap();
    let (slow, fast) = (part(1, 10), part(1, 20));
    store.condemn(&[slow.content], T0).await.unwrap();
    let refused = store.put_part(id, "m", new.id, slow, ReplicaEvidence::default()).await;
    assert!(matches!(refused, Err(MetadataError::Condemned)), "{refused:?}");
    assert_eq!(store.list_parts(new.id, 0, 10).await.unwrap(), []);
    store.put_part(id, "m", new.id, fast.clone(), ReplicaEvidence::default()).await.unwrap();
    let completion = CompleteUpload {
        bucket: id,
        key: "m".into(),
        upload: new.id,
        parts: vec![(1, fast.content)],
        content: assembled(std::slice::from_ref(&fast)),
        version: VersionId::generate(T0),
        now_ms: T0,
        precondition: WritePrecondition::default(),
        event: None,
    };
    store.condemn(&[completion.content.id], T0).await.unwrap();
    assert!(matches!(store.complete_upload(completion.clone()).await, Err(MetadataError::Condemned)));
    let again = CompleteUpload { content: assembled(&[fast]), ..completion };
    store.complete_upload(again).await.unwrap();
}

/// Objects, versions, parts, extents, and what waits to be reclaimed or is being reclaimed.
pub async fn condemn_spares_what_anything_knows(store: Store) {
    let id = bucket(&store, "b").await.id;
    let current = content_of(&put(&store, id, "k", 1).await.object);
    let queued = content_of(&put(&store, id, "q", 1).await.object);
    delete(&store, id, "q", None).await.unwrap();
    let new = upload(id, "m");
    store.create_upload(new.clone()).await.unwrap();
    let pending = part(1, 10);
    store.put_part(id, "m", new.id, pending.clone(), ReplicaEvidence::default()).await.unwrap();
    let stranger = ContentId([0xEE; 12]);
    let all = [current, queued, pending.content, stranger];
    assert_eq!(store.condemn(&all, T0).await.unwrap(), [stranger]);
    let made = assembled(std::slice::from_ref(&pending));
    let completion = CompleteUpload {
        bucket: id,
        key: "m".into(),
        upload: new.id,
        parts: vec![(1, pending.content)],
        content: made.clone(),
        version: VersionId::generate(T0),
        now_ms: T0,
        precondition: WritePrecondition::default(),
        event: None,
    };
    store.complete_upload(completion).await.unwrap();
    assert_eq!(store.condemn(&[pending.content, made.id], T0).await.unwrap(), []);
    let due = store.due_reclaims(LATER, 10, None).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!(store.condemn(&[queued], T0).await.unwrap(), [], "claimed, not yet deleted");
    store.finish_reclaims(&[due[0].item], None).await.unwrap();
    assert_eq!(store.condemn(&[queued], T0).await.unwrap(), [queued]);
    for key in ["k", "m"] {
        assert!(latest(&store, id, key).await.is_ok());
    }
}

/// Either the content is known and stays, or its commit is refused.
pub async fn of_condemn_and_commit_exactly_one_wins(store: Store) {
    let id = bucket(&store, "b").await.id;
    let new_upload = upload(id, "m");
    store.create_upload(new_upload.clone()).await.unwrap();
    let seed = seeds(1)[0];
    println!("HOLDFAST_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for round in 0..20u16 {
        let objects: Vec<NewObject> = (0..8).map(|i| object(id, &format!("k{i}"), 1)).collect();
        let raced_part = part(round + 1, 10);
        let mut asked: Vec<ContentId> = objects.iter().map(new_content).collect();
        asked.push(raced_part.content);
        let yields = [rng.random_range(0..20), rng.random_range(0..20)];
        let commits = objects.into_iter().map(|object| {
            let store = store.clone();
            tokio::spawn(async move {
                for _ in 0..yields[0] {
                    tokio::task::yield_now().await;
                }
                let content = new_content(&object);
                (content, store.commit_object(object).await.map(drop))
            })
        });
        let mut racers: Vec<_> = commits.collect();
        let (part_store, upload) = (store.clone(), new_upload.id);
        racers.push(tokio::spawn(async move {
            let content = raced_part.content;
            (content, part_store.put_part(id, "m", upload, raced_part, ReplicaEvidence::default()).await)
        }));
        let condemned = {
            let store = store.clone();
            let asked = asked.clone();
            tokio::spawn(async move {
                for _ in 0..yields[1] {
                    tokio::task::yield_now().await;
                }
                store.condemn(&asked, T0).await.unwrap()
            })
        };
        let results = join_all(racers).await;
        let condemned = condemned.await.unwrap();
        for result in results {
            let (content, result) = result.unwrap();
            match result {
                Ok(()) => assert!(!condemned.contains(&content), "committed and condemned"),
                Err(MetadataError::Condemned) => assert!(condemned.contains(&content), "refused for nothing"),
                Err(error) => panic!("{error:?}"),
            }
        }
        let mut accounted = store.known_contents(&asked).await.unwrap();
        accounted.extend(condemned);
        accounted.sort();
        asked.sort();
        assert_eq!(accounted, asked, "each content is known or condemned, never both");
    }
}

/// By the time of the first condemnation, and each only as it was when it was looked at.
pub async fn condemned_contents_are_forgotten_oldest_first(store: Store) {
    let id = bucket(&store, "b").await.id;
    let slow: Vec<NewObject> = (0..3).map(|i| object(id, &format!("k{i}"), 1)).collect();
    for (i, object) in slow.iter().enumerate().rev() {
        store.condemn(&[new_content(object)], T0 + i as u64).await.unwrap();
        store.condemn(&[new_content(object)], T0 + 10).await.unwrap();
    }
    assert_eq!(store.condemned(T0, 10).await.unwrap(), []);
    let all = store.condemned(LATER, 10).await.unwrap();
    let expected: Vec<Condemned> = slow
        .iter()
        .zip(T0..)
        .map(|(object, condemned_ms)| Condemned { content: new_content(object), condemned_ms })
        .collect();
    assert_eq!(all, expected);
    assert_eq!(store.condemned(LATER, 1).await.unwrap(), all[..1]);
    store.forget_condemned(&all[..1]).await.unwrap();
    let mut results = Vec::new();
    for object in &slow {
        results.push(store.commit_object(object.clone()).await.is_ok());
    }
    assert_eq!(results, [true, false, false]);
    // It was condemned anew since somebody looked.
    store.forget_condemned(&[Condemned { condemned_ms: T0, ..all[1] }]).await.unwrap();
    assert_eq!(store.condemned(T0 + 2, 10).await.unwrap(), all[1..2]);
    store.forget_condemned(&all).await.unwrap();
    assert_eq!(store.condemned(LATER, 10).await.unwrap(), []);
    store.commit_object(slow[2].clone()).await.unwrap();
}

/// Those of objects and of parts, each for its node.
pub async fn missed_replicas_become_repairs_in_the_commit(store: Store) {
    let id = bucket(&store, "b").await.id;
    let mut new = object(id, "k", 1);
    let content = new_content(&new);
    let missed = [(content.chunk(0), node(1)), (content.chunk(0), node(2)), (content.chunk(1), node(1))];
    new.evidence = evidence(&[(1, 1)], &missed);
    let now_ms = new.now_ms;
    store.commit_object(new).await.unwrap();
    let of_first = store.repairs(node(1), START, 10).await.unwrap();
    assert_eq!(chunks_and_nodes(&of_first), [missed[0], missed[2]]);
    assert!(of_first[0].id > START && of_first[0].id < of_first[1].id);
    assert_eq!(of_first[0].queued_ms, now_ms);
    assert_eq!(chunks_and_nodes(&store.repairs(node(2), START, 10).await.unwrap()), [missed[1]]);
    assert_eq!(store.repairs(node(3), START, 10).await.unwrap(), []);
    assert_eq!(store.repairs(node(1), START, 1).await.unwrap(), of_first[..1]);
    assert_eq!(store.repairs(node(1), of_first[0].id, 10).await.unwrap(), of_first[1..]);
    assert_eq!(store.repair_backlog().await.unwrap(), [(node(1), 2), (node(2), 1)]);
    assert_eq!(store.repairs_waiting(node(1)).await.unwrap(), 2);
    assert_eq!(store.repairs_waiting(node(9)).await.unwrap(), 0);

    let new = upload(id, "m");
    store.create_upload(new.clone()).await.unwrap();
    let first = part(1, 10);
    let missed = (first.content.chunk(0), node(3));
    store.put_part(id, "m", new.id, first.clone(), evidence(&[], &[missed])).await.unwrap();
    let of_third = store.repairs(node(3), START, 10).await.unwrap();
    assert_eq!(chunks_and_nodes(&of_third), [missed]);
    assert_eq!(of_third[0].queued_ms, first.last_modified_ms);
    assert!(of_third[0].id > of_first[1].id);

    // As many as a part of 5 GiB can have.
    let mut new = object(id, "large", 1);
    let content = new_content(&new);
    new.evidence.missed = (0..320).map(|index| (content.chunk(index), node(4))).collect();
    store.commit_object(new).await.unwrap();
    assert_eq!(store.repairs(node(4), START, 1000).await.unwrap().len(), 320);
}

/// A refusal has no effect at all, be it for a precondition, an epoch or a condemned content.
pub async fn a_refused_commit_queues_no_repair(store: Store) {
    let id = bucket(&store, "b").await.id;
    put(&store, id, "k", 1).await;
    raise(&store, 1, 2).await;
    let with_missed = |epoch: u64| {
        let mut new = object(id, "k", 2);
        new.evidence = evidence(&[(1, epoch)], &[(new_content(&new).chunk(0), node(1))]);
        new
    };
    assert!(matches!(store.commit_object(with_missed(1)).await, Err(MetadataError::StaleEpoch { .. })));
    let mut conditional = with_missed(2);
    conditional.precondition.must_not_exist = true;
    assert!(matches!(store.commit_object(conditional).await, Err(MetadataError::PreconditionFailed)));
    let condemned = with_missed(2);
    store.condemn(&[new_content(&condemned)], T0).await.unwrap();
    assert!(matches!(store.commit_object(condemned).await, Err(MetadataError::Condemned)));
    assert_eq!(store.repair_backlog().await.unwrap(), []);
    store.commit_object(with_missed(2)).await.unwrap();
    assert_eq!(store.repair_backlog().await.unwrap(), [(node(1), 1)]);
}

/// However often it is noticed. What is noticed while it is carried out is not finished with it; what is noticed after
/// it was finished is another one.
pub async fn a_repair_is_queued_once_and_finished_once(store: Store) {
    let id = bucket(&store, "b").await.id;
    let mut new = object(id, "k", 1);
    let chunk = new_content(&new).chunk(0);
    store.queue_repairs(&[(chunk, node(1)), (chunk, node(1)), (chunk, node(2))], T0).await.unwrap();
    let first = store.repairs(node(1), START, 10).await.unwrap();
    assert_eq!(first.len(), 1);
    store.queue_repairs(&[(chunk, node(1))], T0 + 9).await.unwrap();
    new.evidence.missed = vec![(chunk, node(1)), (chunk, node(1))];
    store.commit_object(new).await.unwrap();
    let again = store.repairs(node(1), START, 10).await.unwrap();
    assert_eq!((again.len(), again[0].id), (1, first[0].id), "one row");
    assert!(again[0].queued_ms > first[0].queued_ms, "noticed anew");
    store.finish_repairs(&first).await.unwrap();
    assert_eq!(store.repairs(node(1), START, 10).await.unwrap(), again, "it was noticed after it was read");
    // Also by a node whose clock is behind.
    store.queue_repairs(&[(chunk, node(1))], T0 - 99).await.unwrap();
    store.finish_repairs(&again).await.unwrap();
    let again = store.repairs(node(1), START, 10).await.unwrap();
    assert_eq!(again.len(), 1);
    store.finish_repairs(&again).await.unwrap();
    store.finish_repairs(&again).await.unwrap();
    store.finish_repairs(&[]).await.unwrap();
    store.queue_repairs(&[], T0).await.unwrap();
    assert_eq!(store.repair_backlog().await.unwrap(), [(node(2), 1)]);
    store.queue_repairs(&[(chunk, node(1))], T0 + 9).await.unwrap();
    let second = store.repairs(node(1), START, 10).await.unwrap();
    assert!(second[0].id > first[0].id);
    assert_eq!(second[0].queued_ms, T0 + 9);
    let many: Vec<_> = (0..1000).map(|index| (ContentId([7; 12]).chunk(index), node(5))).collect();
    store.queue_repairs(&many, T0).await.unwrap();
    assert_eq!(chunks_and_nodes(&store.repairs(node(5), START, 1000).await.unwrap()), many);
}
