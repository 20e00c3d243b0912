//! Minimum-cost flow on small integer costs: the engine of [`super::assign()`].
//!
//! Primal-dual: the largest flow over arcs of zero reduced cost is found by levels (Dinic), then the potentials are
//! raised by the shortest distances that remain, until the sink cannot be reached. Costs are 0 or 1 here, so few rounds
//! are needed, each linear in the arcs; the result is exact. No recursion, so deep networks cannot exhaust the stack.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

const NONE: u32 = u32::MAX;

/// A network under construction, then its flow.
pub(super) struct FlowNetwork {
    /// First arc that leaves each vertex.
    head: Vec<u32>,
    /// Next arc of the same vertex.
    next: Vec<u32>,
    to: Vec<u32>,
    /// What still fits; the reverse of arc `e` is `e ^ 1`.
    residual: Vec<u32>,
    cost: Vec<i32>,
}

impl FlowNetwork {
    pub(super) fn new(vertices: usize, arcs: usize) -> Self {
        Self {
            head: vec![NONE; vertices],
            next: Vec::with_capacity(2 * arcs),
            to: Vec::with_capacity(2 * arcs),
            residual: Vec::with_capacity(2 * arcs),
            cost: Vec::with_capacity(2 * arcs),
        }
    }

    /// Adds an arc and returns its name. Costs must not be negative.
    pub(super) fn arc(&mut self, from: u32, to: u32, capacity: u32, cost: i32) -> u32 {
        debug_assert!(cost >= 0, "potentials start at zero");
        let name = self.to.len() as u32;
        self.half(from, to, capacity, cost);
        self.half(to, from, 0, -cost);
        name
    }

    fn half(&mut self, from: u32, to: u32, residual: u32, cost: i32) {
        self.next.push(self.head[from as usize]);
        self.head[from as usize] = self.to.len() as u32;
        self.to.push(to);
        self.residual.push(residual);
        self.cost.push(cost);
    }

    /// Flow on an arc.
    pub(super) fn flow(&self, arc: u32) -> u32 {
        self.residual[arc as usize ^ 1]
    }

    /// Sends as much as possible from `source` to `sink` at the least cost. Returns the amount.
    pub(super) fn run(&mut self, source: u32, sink: u32) -> u64 {
        let mut potential = vec![0_i32; self.head.len()];
        let mut total = 0;
        loop {
            total += self.saturate(source, sink, &potential);
            if !self.raise(source, sink, &mut potential) {
                return total;
            }
        }
    }

    fn admissible(&self, arc: u32, from: u32, potential: &[i32]) -> bool {
        let e = arc as usize;
        self.residual[e] > 0 && self.cost[e] + potential[from as usize] == potential[self.to[e] as usize]
    }

    /// The largest flow over arcs of zero reduced cost.
    fn saturate(&mut self, source: u32, sink: u32, potential: &[i32]) -> u64 {
        let mut total = 0;
        let mut level = vec![NONE; self.head.len()];
        let mut queue = VecDeque::new();
        let mut path: Vec<u32> = Vec::new();
        loop {
            level.fill(NONE);
            level[source as usize] = 0;
            queue.clear();
            queue.push_back(source);
            while let Some(u) = queue.pop_front() {
                let mut arc = self.head[u as usize];
                while arc != NONE {
                    let v = self.to[arc as usize];
                    if level[v as usize] == NONE && self.admissible(arc, u, potential) {
                        level[v as usize] = level[u as usize] + 1;
                        queue.push_back(v);
                    }
                    arc = self.next[arc as usize];
                }
            }
            if level[sink as usize] == NONE {
                return total;
            }
            let mut cursor = self.head.clone();
            path.clear();
            let mut u = source;
            'walk: loop {
                if u == sink {
                    let amount =
                        path.iter().map(|&arc| self.residual[arc as usize]).min().expect("source is not the sink");
                    total += u64::from(amount);
                    let mut keep = path.len();
                    for (place, &arc) in path.iter().enumerate().rev() {
                        self.residual[arc as usize] -= amount;
                        self.residual[arc as usize ^ 1] += amount;
                        if self.residual[arc as usize] == 0 {
                            keep = place;
                        }
                    }
                    u = self.to[path[keep] as usize ^ 1];
                    path.truncate(keep);
                    continue;
                }
                while cursor[u as usize] != NONE {
                    let arc = cursor[u as usize];
                    let v = self.to[arc as usize];
                    if level[v as usize] == level[u as usize] + 1 && self.admissible(arc, u, potential) {
                        path.push(arc);
                        u = v;
                        continue 'walk;
                    }
                    cursor[u as usize] = self.next[arc as usize];
                }
                let Some(arc) = path.pop() else { break };
                u = self.to[arc as usize ^ 1];
                cursor[u as usize] = self.next[arc as usize];
            }
        }
    }

    /// Raises the potentials by the distances in reduced cost. Returns whether the sink is still reachable.
    fn raise(&self, source: u32, sink: u32, potential: &mut [i32]) -> bool {
        let mut distance = vec![i32::MAX; self.head.len()];
        let mut heap = BinaryHeap::new();
        distance[source as usize] = 0;
        heap.push(Reverse((0, source)));
        while let Some(Reverse((d, u))) = heap.pop() {
            if d > distance[u as usize] {
                continue;
            }
            let mut arc = self.head[u as usize];
            while arc != NONE {
                let e = arc as usize;
                let v = self.to[e] as usize;
                if self.residual[e] > 0 {
                    let reduced = self.cost[e] + potential[u as usize] - potential[v];
                    debug_assert!(reduced >= 0, "potentials keep reduced costs from being negative");
                    if d + reduced < distance[v] {
                        distance[v] = d + reduced;
                        heap.push(Reverse((d + reduced, v as u32)));
                    }
                }
                arc = self.next[e];
            }
        }
        let limit = distance[sink as usize];
        if limit == i32::MAX {
            return false;
        }
        for (p, d) in potential.iter_mut().zip(&distance) {
            *p += (*d).min(limit);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detour_is_taken_when_the_cheap_way_is_full() {
        // 0 → 1 → 3 is free with room for one; 0 → 2 → 3 costs one.
        let mut net = FlowNetwork::new(4, 4);
        net.arc(0, 1, 2, 0);
        let free = net.arc(1, 3, 1, 0);
        let dear = net.arc(0, 2, 5, 1);
        net.arc(2, 3, 2, 0);
        assert_eq!(net.run(0, 3), 3);
        assert_eq!(net.flow(free), 1);
        assert_eq!(net.flow(dear), 2);
    }

    #[test]
    fn earlier_choice_is_taken_back_when_that_is_cheaper() {
        // Two workers, two jobs: worker 1 can do both for nothing, worker 2 can do only job 3 for nothing.
        let mut net = FlowNetwork::new(6, 8);
        net.arc(0, 1, 1, 0);
        net.arc(0, 2, 1, 0);
        let a = net.arc(1, 4, 1, 0);
        net.arc(1, 3, 1, 0);
        let b = net.arc(2, 3, 1, 0);
        net.arc(2, 4, 1, 1);
        net.arc(3, 5, 1, 0);
        net.arc(4, 5, 1, 0);
        assert_eq!(net.run(0, 5), 2);
        assert_eq!((net.flow(a), net.flow(b)), (1, 1));
    }
}
