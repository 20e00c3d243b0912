use super::*;

fn n(i: u64) -> NodeId {
    NodeId::from(i)
}

fn nodes(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().map(|i| n(*i)).collect()
}

fn none() -> BTreeSet<NodeId> {
    BTreeSet::new()
}

fn retarget(ids: &[u64]) -> ShardEvent {
    ShardEvent::Retarget { target: nodes(ids) }
}

#[test]
fn replacement_joins_verifies_then_the_old_member_leaves_after_the_grace() {
    let start = ShardState::founding(nodes(&[1, 2, 3]));
    let joined = apply(&start, &retarget(&[1, 2, 4]), &none());
    assert_eq!(joined.state.members, nodes(&[1, 2, 3]), "nobody leaves yet");
    assert_eq!(joined.state.epoch, Epoch(2), "writers must send to the joiner from now on");
    let copy = ShardEffect::StartCopy { node: n(4), since: Epoch(2), sources: nodes(&[1, 2, 3]) };
    assert_eq!(joined.effects, [copy]);

    let swapped = apply(&joined.state, &ShardEvent::Verified { node: n(4), since: Epoch(2) }, &none());
    assert_eq!(swapped.state.members, nodes(&[1, 2, 4]));
    assert_eq!(swapped.state.leaving, [Leaver { node: n(3), since: Epoch(3) }]);
    assert_eq!(swapped.state.epoch, Epoch(3));

    let done = apply(&swapped.state, &ShardEvent::GraceElapsed { node: n(3), since: Epoch(3) }, &none());
    assert!(done.state.leaving.is_empty());
    assert_eq!(done.state.epoch, Epoch(3), "writers need not know");
    assert_eq!(done.effects, [ShardEffect::DropReplica { node: n(3) }]);
}

#[test]
fn report_of_an_earlier_join_does_not_count() {
    let start = ShardState::founding(nodes(&[1, 2, 3]));
    let first = apply(&start, &retarget(&[1, 2, 4]), &none()).state;
    let cancelled = apply(&first, &retarget(&[1, 2, 3]), &none()).state;
    assert!(cancelled.joining.is_empty() && cancelled.is_leaving(n(4)));
    let second = apply(&cancelled, &retarget(&[1, 2, 4]), &none()).state;
    assert_eq!(second.joining, [Joiner { node: n(4), since: Epoch(4) }]);
    let stale = apply(&second, &ShardEvent::Verified { node: n(4), since: Epoch(2) }, &none());
    assert_eq!(stale, Transition { state: second.clone(), effects: vec![] });
    let late = apply(&second, &ShardEvent::GraceElapsed { node: n(4), since: Epoch(3) }, &none());
    assert_eq!(late.state, second, "the grace of a leave that was taken back drops nothing");
}

#[test]
fn lost_member_stays_until_its_replacement_is_verified() {
    let start = ShardState::founding(nodes(&[1, 2, 3]));
    let lost = BTreeSet::from([n(3)]);
    let after = apply(&start, &ShardEvent::NodeLost { node: n(3) }, &lost);
    assert_eq!(after.state, start);
    let joined = apply(&start, &retarget(&[1, 2, 4]), &lost);
    let copy = ShardEffect::StartCopy { node: n(4), since: Epoch(2), sources: nodes(&[1, 2]) };
    assert_eq!(joined.effects, [copy], "a lost node is no source");
    let done = apply(&joined.state, &ShardEvent::Verified { node: n(4), since: Epoch(2) }, &lost);
    assert_eq!(done.state.members, nodes(&[1, 2, 4]));
    assert!(done.state.leaving.is_empty(), "nobody waits for a node that is gone");
}

#[test]
fn lost_members_are_replaced_before_a_drained_one_may_go() {
    // 2 is drained while 3 is lost: the first joiner replaces the lost replica, only the second frees the drained one.
    let start = ShardState::founding(nodes(&[1, 2, 3]));
    let lost = BTreeSet::from([n(3)]);
    let state = apply(&start, &retarget(&[1, 4, 5]), &lost).state;
    let state = apply(&state, &ShardEvent::Verified { node: n(4), since: Epoch(2) }, &lost).state;
    assert_eq!(state.members, nodes(&[1, 2, 4]), "the drained one stays while it is needed");
    let state = apply(&state, &ShardEvent::Verified { node: n(5), since: Epoch(2) }, &lost).state;
    assert_eq!(state.members, nodes(&[1, 4, 5]));
    assert!(state.is_leaving(n(2)));
}

#[test]
fn lower_replication_factor_releases_without_a_join() {
    let start = ShardState::founding(nodes(&[1, 2, 3]));
    let done = apply(&start, &retarget(&[1, 3]), &none());
    assert_eq!(done.state.members, nodes(&[1, 3]));
    assert!(done.state.is_leaving(n(2)) && done.state.epoch == Epoch(2));
}

#[test]
fn replaced_disk_makes_a_member_join_again_but_the_last_one_is_kept() {
    let start = ShardState::founding(nodes(&[1, 2]));
    let lost_data = apply(&start, &ShardEvent::DataLost { node: n(2) }, &none());
    assert_eq!(lost_data.state.members, nodes(&[1]));
    assert_eq!(lost_data.state.joining, [Joiner { node: n(2), since: Epoch(2) }]);
    let last = apply(&lost_data.state, &ShardEvent::DataLost { node: n(1) }, &none());
    assert_eq!(last.state, lost_data.state);
    assert_eq!(last.effects, [ShardEffect::LastReplicaLost { node: n(1) }]);
}

#[test]
fn new_controller_finds_all_work_that_is_under_way() {
    let start = ShardState::founding(nodes(&[1, 2, 3]));
    let state = apply(&start, &retarget(&[1, 4, 5]), &none()).state;
    let state = apply(&state, &ShardEvent::Verified { node: n(4), since: Epoch(2) }, &none()).state;
    let work = pending(&state, &none());
    assert_eq!(work.len(), 2, "{work:?}");
    assert!(matches!(&work[0], ShardEffect::StartCopy { node, since: Epoch(2), .. } if *node == n(5)));
    assert!(matches!(&work[1], ShardEffect::StartGrace { since: Epoch(3), .. }));
}

#[test]
fn stored_nonsense_is_recognised() {
    let mut state = ShardState::founding(nodes(&[1, 2]));
    state.joining.push(Joiner { node: n(2), since: Epoch(1) });
    assert!(check(&state).unwrap_err().contains("two roles"));
    let mut state = ShardState::founding(nodes(&[1]));
    state.leaving.push(Leaver { node: n(2), since: Epoch(9) });
    assert!(check(&state).unwrap_err().contains("epoch 9"));
    state.members.clear();
    assert!(check(&state).is_err());
}
