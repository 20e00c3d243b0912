//! Names: who has one, and what lies under it.

use std::collections::HashSet;

use super::{
    Harness, PieceName, PieceSpec, assert_deleted, assert_empty, assert_is, assert_missing, pattern, piece, store,
};

pub async fn names_of_other_moves_differ(harness: &dyn Harness) {
    let (tier, other) = (harness.tier().await, harness.tier().await);
    let first = piece(1, 1000);
    let mut names = HashSet::new();
    for spec in [
        first.clone(),
        PieceSpec { attempt: 2, ..first.clone() },
        PieceSpec { attempt: u64::MAX, ..first.clone() },
        PieceSpec { index: 1, ..first.clone() },
        PieceSpec { index: 1, attempt: 2, ..first.clone() },
        PieceSpec { index: u32::MAX, ..first.clone() },
        piece(2, 1000),
    ] {
        for tier in [&tier, &other] {
            let name = tier.reserve(&spec).await.expect("reserve");
            assert_eq!(PieceName::new(name.as_str()).expect("metadata can keep it"), name);
            names.insert((spec.content, spec.index, spec.attempt, name.clone()));
        }
    }
    // The same attempt may be given its name again; another must not be.
    for one in &names {
        for two in &names {
            assert!(one.3 != two.3 || (one.0, one.1, one.2) == (two.0, two.1, two.2), "{one:?} is {two:?}");
        }
    }
    for (.., name) in names {
        tier.delete(&name).await.expect("delete");
    }
    assert_empty(harness).await;
}

pub async fn names_survive_a_new_instance(harness: &dyn Harness) {
    let first = harness.tier().await;
    let data = pattern(300_000, 1);
    let name = store(&first, &piece(1, data.len()), &data).await;
    let reserved = first.reserve(&piece(2, data.len())).await.expect("reserve");
    drop(first);

    let second = harness.tier().await;
    assert_is(&second, &PieceName::new(name.as_str()).unwrap(), &data).await;
    second.put(&reserved, &piece(2, data.len()), super::body(&data, 4096)).await.expect("put of a name from before");
    drop(second);

    let third = harness.tier().await;
    assert_is(&third, &reserved, &data).await;
    third.delete(&name).await.expect("delete");
    assert_is(&third, &reserved, &data).await;
    assert_deleted(harness, &third, &reserved).await;
}

pub async fn missing_pieces_are_not_found(harness: &dyn Harness) {
    let (tier, other) = (harness.tier().await, harness.tier().await);
    let reserved = tier.reserve(&piece(1, 100)).await.expect("reserve");
    assert_missing(&tier, &reserved).await;
    assert_missing(&other, &reserved).await;

    let data = pattern(100, 1);
    let stored = store(&tier, &piece(2, data.len()), &data).await;
    other.delete(&stored).await.expect("delete");
    assert_missing(&tier, &stored).await;
    assert_missing(&other, &stored).await;
    assert_deleted(harness, &tier, &reserved).await;
}

pub async fn deleting_is_idempotent(harness: &dyn Harness) {
    let (tier, other) = (harness.tier().await, harness.tier().await);
    let reserved = tier.reserve(&piece(1, 100)).await.expect("reserve");
    let data = pattern(100_000, 1);
    let stored = store(&tier, &piece(2, data.len()), &data).await;
    for _ in 0..3 {
        for tier in [&tier, &other] {
            tier.delete(&reserved).await.expect("delete of a name without bytes");
            tier.delete(&stored).await.expect("delete of a piece");
        }
    }
    assert_missing(&tier, &stored).await;
    assert_deleted(harness, &other, &reserved).await;
}

pub async fn check_stores_nothing(harness: &dyn Harness) {
    let tier = harness.tier().await;
    for _ in 0..3 {
        tier.check().await.expect("the store is there");
    }
    assert!(!tier.kind().is_empty() && tier.piece_bytes_max() > 0);
    assert_empty(harness).await;
}
