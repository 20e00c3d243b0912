//! The operator's side of placement: stage changes, look at their cost, apply or revert them.
//!
//! The document is stored as a whole and changed by compare-and-set, so two operators cannot overwrite each other; and
//! [`apply`] names the version that was reviewed, so nobody applies what they have not seen.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_protocol::NodeId;
use holdfast_protocol::cluster::{
    LAYOUT_NODES_MAX, Layout, LayoutChange, LayoutDocument, LayoutNode, REPLICATION_FACTOR_MAX, STAGED_CHANGES_MAX,
    WEIGHT_MAX, ZONE_NAME_BYTES_MAX,
};

use super::assign::Assignment;

/// Why a change cannot be staged or applied; the text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The node is not in the layout (with the changes staged so far).
    #[error("node {0} is not in the layout")]
    NoSuchNode(NodeId),
    /// The zone's name is empty, too long, or has characters other than letters, digits, `-`, `_` and `.`.
    #[error("zone {0:?}: a name has 1 to {max} letters, digits, '-', '_' or '.'", max = ZONE_NAME_BYTES_MAX)]
    Zone(String),
    /// The weight is out of range.
    #[error("weight {0}: it is 0 to {max}", max = WEIGHT_MAX)]
    Weight(u32),
    /// The replication factor is out of range.
    #[error("replication factor {0}: it is 1 to {max}", max = REPLICATION_FACTOR_MAX)]
    ReplicationFactor(u32),
    /// Apply or revert first.
    #[error("{max} changes are staged already", max = STAGED_CHANGES_MAX)]
    TooManyChanges,
    /// The layout is full.
    #[error("the layout has {max} nodes already", max = LAYOUT_NODES_MAX)]
    TooManyNodes,
    /// There is nothing to apply.
    #[error("no change is staged")]
    NothingStaged,
    /// Somebody applied or staged in between: look again.
    #[error("version {asked} was asked for, but the next one is {next}: show the staged changes again")]
    Version {
        /// The version that the operator named.
        asked: u64,
        /// The version that the staged changes would become.
        next: u64,
    },
}

/// Adds `change` to what is staged, after checking it against the layout that the changes before it make.
///
/// # Errors
/// [`LayoutError`]; the document is then unchanged.
pub fn stage(document: &mut LayoutDocument, change: LayoutChange) -> Result<(), LayoutError> {
    if document.staged.len() >= STAGED_CHANGES_MAX {
        return Err(LayoutError::TooManyChanges);
    }
    let mut preview = preview(document);
    perform(&mut preview, &change)?;
    document.staged.push(change);
    Ok(())
}

/// The layout as it would be with everything staged.
pub fn preview(document: &LayoutDocument) -> Layout {
    let mut layout = document.applied.clone();
    for change in &document.staged {
        // Each was checked when it was staged, on the same base: application empties the list.
        if let Err(error) = perform(&mut layout, change) {
            tracing::warn!(%error, "skipping a staged layout change that does not apply");
        }
    }
    layout
}

/// Makes the staged changes the applied layout. `version` is the one that was shown: the present one plus one.
///
/// # Errors
/// [`LayoutError::NothingStaged`], [`LayoutError::Version`]; the document is then unchanged.
pub fn apply(document: &mut LayoutDocument, version: u64) -> Result<(), LayoutError> {
    let next = document.version.saturating_add(1);
    if version != next {
        return Err(LayoutError::Version { asked: version, next });
    }
    if document.staged.is_empty() {
        return Err(LayoutError::NothingStaged);
    }
    document.applied = preview(document);
    document.staged.clear();
    document.version = next;
    Ok(())
}

/// Forgets what is staged. Returns how many changes that were.
pub fn revert(document: &mut LayoutDocument) -> usize {
    std::mem::take(&mut document.staged).len()
}

fn perform(layout: &mut Layout, change: &LayoutChange) -> Result<(), LayoutError> {
    let known = |layout: &mut Layout, node: &NodeId| -> Result<(), LayoutError> {
        if layout.nodes.contains_key(node) { Ok(()) } else { Err(LayoutError::NoSuchNode(*node)) }
    };
    match change {
        LayoutChange::Assign { node, zone, weight } => {
            let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if zone.is_empty() || zone.len() > ZONE_NAME_BYTES_MAX || !zone.chars().all(fine) {
                return Err(LayoutError::Zone(zone.chars().take(ZONE_NAME_BYTES_MAX).collect()));
            }
            if *weight > WEIGHT_MAX {
                return Err(LayoutError::Weight(*weight));
            }
            if layout.nodes.len() >= LAYOUT_NODES_MAX && !layout.nodes.contains_key(node) {
                return Err(LayoutError::TooManyNodes);
            }
            // A node that drains goes on doing so: taking it back is a decision of its own.
            let draining = layout.nodes.get(node).is_some_and(|n| n.draining);
            layout.nodes.insert(*node, LayoutNode { zone: zone.clone(), weight: *weight, draining });
        }
        LayoutChange::Drain { node } | LayoutChange::Undrain { node } => {
            known(layout, node)?;
            let draining = matches!(change, LayoutChange::Drain { .. });
            layout.nodes.entry(*node).and_modify(|n| n.draining = draining);
        }
        LayoutChange::Remove { node } => {
            known(layout, node)?;
            layout.nodes.remove(node);
        }
        LayoutChange::SetReplicationFactor { replicas } => {
            if !(1..=REPLICATION_FACTOR_MAX).contains(replicas) {
                return Err(LayoutError::ReplicationFactor(*replicas));
            }
            layout.replication_factor = *replicas;
        }
    }
    Ok(())
}

/// What one node gains and loses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeDiff {
    /// Replicas it holds now.
    pub replicas_before: u32,
    /// Replicas it will hold.
    pub replicas_after: u32,
    /// Bytes that it will copy from others.
    pub incoming_bytes: u64,
    /// Bytes that it may delete when all is done.
    pub outgoing_bytes: u64,
}

/// What it takes to go from one assignment to another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayoutDiff {
    /// Shards whose holders change.
    pub shards_changed: u32,
    /// Replicas to be copied.
    pub replicas_moved: u32,
    /// Bytes to be copied.
    pub bytes_moved: u64,
    /// By node; those with neither before nor after are left out.
    pub nodes: BTreeMap<NodeId, NodeDiff>,
}

/// Compares two assignments of the same shards. `shard_bytes` says how much data one replica of each shard holds.
///
/// # Panics
/// When the three do not have the same number of shards.
pub fn diff(before: &[Vec<NodeId>], after: &Assignment, shard_bytes: &[u64]) -> LayoutDiff {
    assert!(before.len() == after.len() && before.len() == shard_bytes.len(), "the same shards on all sides");
    let mut diff = LayoutDiff::default();
    for ((old, new), &bytes) in before.iter().zip(after).zip(shard_bytes) {
        let old: BTreeSet<&NodeId> = old.iter().collect();
        let new: BTreeSet<&NodeId> = new.iter().collect();
        diff.shards_changed += u32::from(old != new);
        for &node in &old {
            let entry = diff.nodes.entry(*node).or_default();
            entry.replicas_before += 1;
            if !new.contains(node) {
                entry.outgoing_bytes += bytes;
            }
        }
        for &node in &new {
            let entry = diff.nodes.entry(*node).or_default();
            entry.replicas_after += 1;
            if !old.contains(node) {
                entry.incoming_bytes += bytes;
                diff.replicas_moved += 1;
                diff.bytes_moved += bytes;
            }
        }
    }
    diff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u64) -> NodeId {
        NodeId::from(n)
    }

    fn assign(n: u64) -> LayoutChange {
        LayoutChange::Assign { node: node(n), zone: "z".into(), weight: 1 }
    }

    #[test]
    fn staged_changes_take_effect_only_when_applied() {
        let mut document = LayoutDocument::new(3);
        stage(&mut document, assign(1)).unwrap();
        stage(&mut document, LayoutChange::Drain { node: node(1) }).unwrap();
        assert!(document.applied.nodes.is_empty());
        assert!(preview(&document).nodes[&node(1)].draining);
        apply(&mut document, 1).unwrap();
        assert_eq!(document.version, 1);
        assert!(document.applied.nodes[&node(1)].draining && document.staged.is_empty());
        assert_eq!(apply(&mut document, 2), Err(LayoutError::NothingStaged));
    }

    #[test]
    fn apply_of_a_version_not_shown_is_refused() {
        let mut document = LayoutDocument::new(3);
        stage(&mut document, assign(1)).unwrap();
        let before = document.clone();
        assert_eq!(apply(&mut document, 2), Err(LayoutError::Version { asked: 2, next: 1 }));
        assert_eq!(apply(&mut document, 0), Err(LayoutError::Version { asked: 0, next: 1 }));
        assert_eq!(document, before);
        assert_eq!(revert(&mut document), 1);
        assert_eq!(document, LayoutDocument::new(3));
    }

    #[test]
    fn nonsense_is_refused_when_it_is_staged() {
        let mut document = LayoutDocument::new(3);
        let bad_zone = LayoutChange::Assign { node: node(1), zone: "a b".into(), weight: 1 };
        assert!(matches!(stage(&mut document, bad_zone), Err(LayoutError::Zone(_))));
        let heavy = LayoutChange::Assign { node: node(1), zone: "a".into(), weight: WEIGHT_MAX + 1 };
        assert!(matches!(stage(&mut document, heavy), Err(LayoutError::Weight(_))));
        for change in [LayoutChange::Drain { node: node(9) }, LayoutChange::Remove { node: node(9) }] {
            assert_eq!(stage(&mut document, change), Err(LayoutError::NoSuchNode(node(9))));
        }
        let replicas = LayoutChange::SetReplicationFactor { replicas: 0 };
        assert_eq!(stage(&mut document, replicas), Err(LayoutError::ReplicationFactor(0)));
        assert!(document.staged.is_empty());
        stage(&mut document, assign(1)).unwrap();
        stage(&mut document, LayoutChange::Remove { node: node(1) }).unwrap();
        assert_eq!(stage(&mut document, LayoutChange::Drain { node: node(1) }), Err(LayoutError::NoSuchNode(node(1))));
    }

    #[test]
    fn diff_counts_each_new_replica_with_its_bytes() {
        let before = vec![vec![node(1), node(2)], vec![node(1), node(3)]];
        let after = vec![vec![node(2), node(1)], vec![node(2), node(4)]];
        let diff = diff(&before, &after, &[10, 100]);
        assert_eq!((diff.shards_changed, diff.replicas_moved, diff.bytes_moved), (1, 2, 200));
        let expected = NodeDiff { replicas_before: 2, replicas_after: 1, incoming_bytes: 0, outgoing_bytes: 100 };
        assert_eq!(diff.nodes[&node(1)], expected);
        assert_eq!(diff.nodes[&node(4)].incoming_bytes, 100);
    }
}
