//! Which node holds which shard: the fewest moves that reach the quotas.
//!
//! The quotas (see [`super::quota`]) fix how many replicas each node gets. Among all placements that meet them and the
//! rule of zones, one that keeps as many replicas as possible where they are is a minimum-cost flow:
//!
//! ```text
//! source → shard → (shard, zone) → node → sink
//!          RF      max a zone      1 (cost 0 if it is there already, else 1)    quota
//! ```
//!
//! When every shard must lie in every zone, one unit flows from the source straight into each (shard, zone), the rest
//! through the shard. The result is exact: no placement with these quotas moves less.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_protocol::NodeId;
use holdfast_protocol::cluster::{Layout, REPLICATION_FACTOR_MAX, SHARD_COUNT_MAX};
use holdfast_protocol::hash::mix64;

use super::flow::FlowNetwork;
use super::quota::{QuotaProblem, Quotas, quotas};

/// Why there is no placement; the text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Add nodes, undrain some, or ask for fewer replicas.
    #[error(
        "{replicas} replicas need {replicas} nodes that take data, but there are {usable} (of {nodes} in the layout, \
         {draining} are draining, {weightless} have weight 0, {lost} are lost)"
    )]
    TooFewNodes {
        /// Replicas asked for.
        replicas: u32,
        /// Nodes that can take data.
        usable: usize,
        /// Nodes in the layout.
        nodes: usize,
        /// Of them draining.
        draining: usize,
        /// Of them, not draining, without weight.
        weightless: usize,
        /// Of the rest, lost.
        lost: usize,
    },
    /// The replication factor is not one that a cluster can have.
    #[error("a replication factor of {0} is not possible: it is 1 to {max}", max = REPLICATION_FACTOR_MAX)]
    ReplicationFactor(u32),
    /// The number of shards is not one that a cluster can have.
    #[error("{0} shards are not possible: it is 1 to {max}", max = SHARD_COUNT_MAX)]
    ShardCount(usize),
}

/// The replicas of each shard, by shard.
pub type Assignment = Vec<Vec<NodeId>>;

/// Computes who should hold each shard.
///
/// `current` has one entry a shard: who holds it, or is on the way to (empty for a new cluster). Nodes in `lost` get
/// nothing. Replicas that stay come first, in their order; so a shard that does not change compares equal. The same
/// input gives the same output.
///
/// # Errors
/// [`PlacementError`], when the layout allows no placement at all.
pub fn assign(layout: &Layout, lost: &BTreeSet<NodeId>, current: &[Vec<NodeId>]) -> Result<Assignment, PlacementError> {
    let replicas = layout.replication_factor;
    if !(1..=REPLICATION_FACTOR_MAX).contains(&replicas) {
        return Err(PlacementError::ReplicationFactor(replicas));
    }
    if current.is_empty() || current.len() > SHARD_COUNT_MAX as usize {
        return Err(PlacementError::ShardCount(current.len()));
    }
    let field = Field::new(layout, lost);
    if field.nodes.len() < replicas as usize {
        return Err(too_few(layout, lost, field.nodes.len()));
    }

    // Holders that may keep their replica, as indices.
    let held: Vec<Vec<u32>> = current
        .iter()
        .map(|nodes| {
            let mut kept: Vec<u32> = Vec::with_capacity(nodes.len());
            for node in nodes {
                if let Some(&index) = field.index.get(node)
                    && !kept.contains(&index)
                {
                    kept.push(index);
                }
            }
            kept
        })
        .collect();
    let mut load = vec![0; field.nodes.len()];
    held.iter().flatten().for_each(|&n| load[n as usize] += 1);
    let quotas = quotas(&QuotaProblem {
        shards: current.len() as u32,
        replicas,
        weights: &field.weights,
        zone_of: &field.zone_of,
        zones: field.zones.len(),
        current: &load,
    });
    let chosen = solve(&field, &quotas, &held, replicas);

    Ok(chosen
        .into_iter()
        .zip(&held)
        .map(|(mut shard, held)| {
            shard.sort_by_key(|n| (held.iter().position(|h| h == n).unwrap_or(usize::MAX), *n));
            shard.into_iter().map(|n| field.nodes[n as usize]).collect()
        })
        .collect())
}

fn too_few(layout: &Layout, lost: &BTreeSet<NodeId>, usable: usize) -> PlacementError {
    let draining = layout.nodes.values().filter(|n| n.draining).count();
    let weightless = layout.nodes.values().filter(|n| !n.draining && n.weight == 0).count();
    let nodes = layout.nodes.len();
    let lost = layout.nodes.iter().filter(|(id, n)| n.takes_data() && lost.contains(id)).count();
    PlacementError::TooFewNodes { replicas: layout.replication_factor, usable, nodes, draining, weightless, lost }
}

/// The nodes that can take data, numbered.
struct Field {
    nodes: Vec<NodeId>,
    index: BTreeMap<NodeId, u32>,
    weights: Vec<u32>,
    zone_of: Vec<usize>,
    /// Nodes of each zone.
    zones: Vec<Vec<u32>>,
}

impl Field {
    fn new(layout: &Layout, lost: &BTreeSet<NodeId>) -> Self {
        let usable = layout.nodes.iter().filter(|(id, n)| n.takes_data() && !lost.contains(id));
        let mut zone_numbers = BTreeMap::new();
        let mut field = Self {
            nodes: Vec::new(),
            index: BTreeMap::new(),
            weights: Vec::new(),
            zone_of: Vec::new(),
            zones: Vec::new(),
        };
        for (id, node) in usable {
            let number = field.nodes.len() as u32;
            let zone = *zone_numbers.entry(node.zone.as_str()).or_insert(field.zones.len());
            if zone == field.zones.len() {
                field.zones.push(Vec::new());
            }
            field.zones[zone].push(number);
            field.nodes.push(*id);
            field.index.insert(*id, number);
            field.weights.push(node.weight);
            field.zone_of.push(zone);
        }
        field
    }
}

fn solve(field: &Field, quotas: &Quotas, held: &[Vec<u32>], replicas: u32) -> Vec<Vec<u32>> {
    let shards = held.len() as u32;
    let zones = field.zones.len() as u32;
    let nodes = field.nodes.len() as u32;
    let (source, sink) = (0, 1);
    let node_vertex = |n: u32| 2 + n;
    let shard_vertex = |s: u32| 2 + nodes + s;
    let zone_vertex = |s: u32, z: u32| 2 + nodes + shards + s * zones + z;
    let vertices = 2 + nodes + shards + shards * zones;
    let arcs = nodes + shards + shards * zones * 2 + shards * nodes;
    let mut net = FlowNetwork::new(vertices as usize, arcs as usize);

    for n in 0..nodes {
        net.arc(node_vertex(n), sink, quotas.per_node[n as usize], 0);
    }
    // (arc, node) for each shard, to read the result.
    let mut choices: Vec<Vec<(u32, u32)>> = Vec::with_capacity(held.len());
    let mut order: Vec<u32> = Vec::new();
    for s in 0..shards {
        let free = if quotas.all_zones { replicas - zones } else { replicas };
        if free > 0 {
            net.arc(source, shard_vertex(s), free, 0);
        }
        let mut choice = Vec::with_capacity(nodes as usize);
        // Shards visit zones and nodes in an order of their own. Otherwise the same few nodes would share all their
        // shards, and a lost node would be rebuilt from few others.
        order.clear();
        order.extend(0..zones);
        order.sort_by_key(|&z| mix64(u64::from(s) << 32 | u64::from(z)));
        for &z in &order {
            let max = quotas.per_shard_max[z as usize];
            let free = if quotas.all_zones {
                net.arc(source, zone_vertex(s, z), 1, 0);
                max - 1
            } else {
                max
            };
            if free > 0 {
                net.arc(shard_vertex(s), zone_vertex(s, z), free, 0);
            }
            let mut here = field.zones[z as usize].clone();
            here.sort_by_key(|&n| mix64(mix64(u64::from(s)) ^ u64::from(n)));
            for n in here {
                let cost = i32::from(!held[s as usize].contains(&n));
                choice.push((net.arc(zone_vertex(s, z), node_vertex(n), 1, cost), n));
            }
        }
        choices.push(choice);
    }
    let placed = net.run(source, sink);
    assert_eq!(placed, u64::from(shards) * u64::from(replicas), "quotas always allow a placement");
    choices
        .into_iter()
        .map(|choice| choice.into_iter().filter(|&(arc, _)| net.flow(arc) > 0).map(|(_, n)| n).collect())
        .collect()
}
