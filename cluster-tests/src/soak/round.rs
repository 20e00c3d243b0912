//! A round of faults: how long it lasts, which faults it may have, and what all who make them share.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::content::Random;

/// Every kind of fault, by the name that `--faults` takes.
pub const KINDS: [&str; 23] = [
    "kill",
    "crash-loop",
    "pause",
    "stop",
    "peers",
    "cut-zookeeper",
    "cut-database",
    "cut-redis",
    "full",
    "rot",
    "rot-index",
    "replace",
    "clock",
    "zookeeper",
    "database",
    "redis",
    "broker",
    "tier-down",
    "tier-slow",
    "tier-cut",
    "tier-corrupt",
    "drain",
    "membership",
];

/// See the module's page.
#[derive(Debug)]
pub struct Round<'a> {
    /// When the soak began: times in its output are from here on.
    pub began: Instant,
    until: Instant,
    kinds: &'a [&'static str],
    /// Set by whoever panics, so that the others end and the panic is seen.
    failed: AtomicBool,
    /// How many faults there were.
    faults: AtomicUsize,
    /// The place of the node whose replicas may be damaged in this round, and whether they were.
    damage: Mutex<Option<usize>>,
}

impl<'a> Round<'a> {
    /// A round that ends after `length`. Of `victim` alone replicas may be damaged, and once: every acknowledged object
    /// is on two nodes, so one good copy of it remains.
    pub fn new(began: Instant, length: Duration, kinds: &'a [&'static str], victim: Option<usize>) -> Self {
        let until = Instant::now() + length;
        let (failed, faults) = (AtomicBool::new(false), AtomicUsize::new(0));
        Self { began, until, kinds, failed, faults, damage: Mutex::new(victim) }
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until || self.failed.load(Ordering::Relaxed)
    }

    /// Ends it before its time.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Waits for so long, or until the round is over.
    pub fn wait(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.is_over() {
            std::thread::sleep(Duration::from_millis(20).min(time));
        }
    }

    /// Waits for a random time up to `max`.
    pub fn wait_up_to(&self, random: &mut Random, max: Duration) {
        self.wait(up_to(random, max));
    }

    /// Tells what is done, with the time.
    pub fn say(&self, what: &str) {
        println!("{:8.3} {what}", self.began.elapsed().as_secs_f64());
    }

    /// How many faults there were so far.
    pub fn faults(&self) -> usize {
        self.faults.load(Ordering::Relaxed)
    }

    /// One of `candidates` that may be, if any: it counts as a fault.
    pub fn choose(&self, random: &mut Random, candidates: &[&'static str]) -> Option<&'static str> {
        let may: Vec<_> = candidates.iter().filter(|kind| self.kinds.contains(*kind)).collect();
        let count = may.len() as u64;
        self.faults.fetch_add(usize::from(count > 0), Ordering::Relaxed);
        (count > 0).then(|| *may[random.below(count) as usize])
    }

    /// Whether the node may be damaged now; true once, for one node.
    pub fn may_damage(&self, at: usize) -> bool {
        let mut victim = self.damage.lock().unwrap();
        let may = *victim == Some(at);
        if may {
            *victim = None;
        }
        may
    }
}

/// A random time up to `max`.
pub fn up_to(random: &mut Random, max: Duration) -> Duration {
    Duration::from_millis(random.below(max.as_millis() as u64 + 1))
}
