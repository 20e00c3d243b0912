//! How many replicas each node gets, before it is decided which.
//!
//! The rule: every shard lies in as many zones as it has replicas (or in all zones, when there are fewer); within that,
//! loads follow weights. A weight that asks for more than the rule allows (a zone with most of the capacity) is cut to
//! what is allowed and the rest goes to the others by weight: water filling. An integral placement with these quotas
//! always exists, since the fractional one that gives every shard the same share of each node obeys every limit.

/// What is to be divided.
pub(super) struct QuotaProblem<'a> {
    pub(super) shards: u32,
    pub(super) replicas: u32,
    /// Weight of each node, above zero.
    pub(super) weights: &'a [u32],
    /// Zone of each node, `0..zones`.
    pub(super) zone_of: &'a [usize],
    pub(super) zones: usize,
    /// What each node holds now. Where rounding leaves a choice, who holds more keeps more.
    pub(super) current: &'a [u32],
}

/// The division.
pub(super) struct Quotas {
    /// Replicas of each node; together `shards * replicas`.
    pub(super) per_node: Vec<u32>,
    /// Whether every shard has a replica in every zone, because there are no more zones than replicas.
    pub(super) all_zones: bool,
    /// The most replicas of one shard in each zone.
    pub(super) per_shard_max: Vec<u32>,
}

/// Below this, a fraction is an artefact of the arithmetic.
const EPSILON: f64 = 1e-6;

/// Divides. There must be at least `replicas` nodes.
pub(super) fn quotas(problem: &QuotaProblem<'_>) -> Quotas {
    let nodes = problem.weights.len();
    assert!(nodes >= problem.replicas as usize, "checked by the caller");
    let mut members = vec![Vec::new(); problem.zones];
    for (node, &zone) in problem.zone_of.iter().enumerate() {
        members[zone].push(node);
    }
    let all_zones = problem.zones as u32 <= problem.replicas;
    let per_shard_max: Vec<u32> = members
        .iter()
        .map(|m| if all_zones { (m.len() as u32).min(problem.replicas - problem.zones as u32 + 1) } else { 1 })
        .collect();
    let shards = f64::from(problem.shards);
    let low = if all_zones { shards } else { 0.0 };

    // One water level for the cluster gives the load of each zone.
    let filled = |zone: usize, level: f64| -> f64 {
        members[zone].iter().map(|&n| (level * f64::from(problem.weights[n])).min(shards)).sum()
    };
    let zone_load = |zone: usize, level: f64| filled(zone, level).clamp(low, shards * f64::from(per_shard_max[zone]));
    let wanted = u64::from(problem.shards) * u64::from(problem.replicas);
    let level = water_level(shards, wanted as f64, |level| (0..problem.zones).map(|z| zone_load(z, level)).sum());
    let zone_ideal: Vec<f64> = (0..problem.zones).map(|z| zone_load(z, level)).collect();
    let zone_current: Vec<u32> = members.iter().map(|m| m.iter().map(|&n| problem.current[n]).sum::<u32>()).collect();
    let zone_limit: Vec<u32> = per_shard_max.iter().map(|max| max * problem.shards).collect();
    let zone_total = round(&zone_ideal, &zone_current, &zone_limit, wanted);

    // One level a zone divides its load among its nodes.
    let mut per_node = vec![0; nodes];
    for (zone, nodes_here) in members.iter().enumerate() {
        let total = u64::from(zone_total[zone]);
        let level = water_level(shards, total as f64, |level| filled(zone, level));
        let ideal: Vec<f64> = nodes_here.iter().map(|&n| (level * f64::from(problem.weights[n])).min(shards)).collect();
        let current: Vec<u32> = nodes_here.iter().map(|&n| problem.current[n]).collect();
        let limit = vec![problem.shards; nodes_here.len()];
        for (&node, quota) in nodes_here.iter().zip(round(&ideal, &current, &limit, total)) {
            per_node[node] = quota;
        }
    }
    Quotas { per_node, all_zones, per_shard_max }
}

/// The level at which the rising function `load` reaches `wanted`. At `shards` every node is full, as weights are at
/// least one.
fn water_level(shards: f64, wanted: f64, load: impl Fn(f64) -> f64) -> f64 {
    let (mut below, mut above) = (0.0, shards);
    for _ in 0..200 {
        let middle = f64::midpoint(below, above);
        if load(middle) < wanted {
            below = middle;
        } else {
            above = middle;
        }
    }
    above
}

/// Whole numbers next to `ideal` with the sum `wanted`, none above its limit.
fn round(ideal: &[f64], current: &[u32], limit: &[u32], wanted: u64) -> Vec<u32> {
    let mut rounded: Vec<u32> = ideal.iter().map(|x| (x + EPSILON).floor() as u32).collect();
    let mut sum: u64 = rounded.iter().map(|&r| u64::from(r)).sum();
    let fraction = |i: usize| ideal[i] - ideal[i].floor();
    let mut order: Vec<usize> = (0..ideal.len()).collect();
    // Who would otherwise give a replica away, then the largest remainder; the index makes it the same every time.
    order.sort_by(|&a, &b| {
        let exact = |i: usize| fraction(i) < EPSILON || fraction(i) > 1.0 - EPSILON;
        let keeps = |i: usize| current[i] > rounded[i];
        (exact(a), !keeps(a)).cmp(&(exact(b), !keeps(b))).then(fraction(b).total_cmp(&fraction(a))).then(a.cmp(&b))
    });
    let mut turn = order.iter().cycle();
    while sum < wanted {
        let &i = turn.next().expect("there is at least one node");
        if rounded[i] < limit[i] {
            rounded[i] += 1;
            sum += 1;
        }
    }
    debug_assert_eq!(sum, wanted, "rounding down never exceeds the sum");
    rounded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(shards: u32, replicas: u32, nodes: &[(u32, usize)]) -> Quotas {
        let weights: Vec<u32> = nodes.iter().map(|n| n.0).collect();
        let zone_of: Vec<usize> = nodes.iter().map(|n| n.1).collect();
        let zones = zone_of.iter().max().unwrap() + 1;
        let current = vec![0; nodes.len()];
        quotas(&QuotaProblem { shards, replicas, weights: &weights, zone_of: &zone_of, zones, current: &current })
    }

    #[test]
    fn equal_weights_share_equally() {
        let q = run(256, 3, &[(1, 0), (1, 1), (1, 2), (1, 3)]);
        assert_eq!(q.per_node, [192, 192, 192, 192]);
    }

    #[test]
    fn heavy_zone_is_cut_to_one_replica_a_shard() {
        let q = run(100, 3, &[(1000, 0), (1, 1), (1, 2), (2, 3)]);
        assert_eq!(q.per_node, [100, 50, 50, 100]);
    }

    #[test]
    fn fewer_zones_than_replicas_puts_one_replica_in_each() {
        let q = run(100, 3, &[(10, 0), (10, 0), (1, 1)]);
        assert!(q.all_zones);
        assert_eq!(q.per_node, [100, 100, 100]);
        let q = run(100, 3, &[(10, 0), (10, 0), (10, 0), (10, 1), (10, 1)]);
        assert_eq!(q.per_node, [60, 60, 60, 60, 60]);
    }

    #[test]
    fn one_zone_follows_weights_up_to_one_replica_a_shard() {
        let q = run(120, 2, &[(1, 0), (2, 0), (3, 0)]);
        assert_eq!(q.per_node, [40, 80, 120]);
        let q = run(120, 2, &[(1, 0), (1, 0), (100, 0)]);
        assert_eq!(q.per_node, [60, 60, 120]);
    }
}
