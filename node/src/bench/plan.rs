//! What a run does: which keys there are, and what the next request is.
//!
//! Keys follow from the plan, so that filling, reading, checking and cleaning up need no list of them: filled objects
//! are `<prefix><size>/<n>`, objects that worker `w` wrote while measuring are `<prefix>w<w>/<n>-<size>`.

use std::collections::VecDeque;

use anyhow::{Result, ensure};

use super::args::{FilesArgs, LoadArgs};
use super::content::Random;
use super::report::Operation;

/// Bytes that a default fill writes for each size.
const FILL_BYTES: u64 = 256 << 20;
/// Objects that a default fill writes for each size, at least and at most.
const FILL_OBJECTS: (u64, u64) = (16, 1024);
/// Objects of its own that a worker of `mixed` reads back.
const RECENT_MAX: usize = 16;
/// The share of `mixed`'s reads that go to what the same worker wrote last: read after write.
const RECENT_SHARE_PERCENT: u64 = 25;

/// Which requests a run makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Workload {
    Put,
    Get,
    Head,
    List,
    /// With the share of reads.
    Mixed(f64),
}

impl Workload {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
            Self::Mixed(_) => "mixed",
        }
    }

    /// Whether it reads objects that have to be there first.
    pub(super) fn needs_objects(self) -> bool {
        self != Self::Put
    }
}

/// The keys of a run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) workload: Workload,
    pub(super) prefix: String,
    pub(super) sizes: Vec<u64>,
    /// How many objects of each size are filled, in the order of `sizes`.
    pub(super) objects: Vec<u64>,
    /// With `put`: how many keys each worker overwrites in turn; none for a new key each time.
    pub(super) overwritten: Option<u64>,
    /// How filled objects are chosen; none for all alike.
    pub(super) zipf: Option<Zipf>,
}

/// A Zipf distribution over the filled objects, the first one the most likely.
#[derive(Clone, Debug)]
pub(super) struct Zipf {
    /// Up to each object, the sum of the weights; the last is 1.
    sums: Vec<f64>,
}

impl Zipf {
    fn new(objects: u64, exponent: f64) -> Self {
        let mut sums = Vec::new();
        let mut sum = 0.0;
        for rank in 1..=objects {
            sum += (rank as f64).powf(-exponent);
            sums.push(sum);
        }
        sums.iter_mut().for_each(|value| *value /= sum);
        Self { sums }
    }

    fn choose(&self, random: &mut Random) -> u64 {
        let at = random.below(1 << 53) as f64 / (1_u64 << 53) as f64;
        self.sums.partition_point(|sum| *sum <= at).min(self.sums.len() - 1) as u64
    }
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) key: String,
    pub(super) size: u64,
}

/// One request of the workload.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Put(Object),
    Get(Object),
    Head(Object),
    List,
}

impl Step {
    pub(super) fn operation(&self) -> Operation {
        match self {
            Self::Put(_) => Operation::Put,
            Self::Get(_) => Operation::Get,
            Self::Head(_) => Operation::Head,
            Self::List => Operation::List,
        }
    }
}

fn filled_count(size: u64, asked: Option<u64>) -> u64 {
    asked.unwrap_or_else(|| (FILL_BYTES / size.max(1)).clamp(FILL_OBJECTS.0, FILL_OBJECTS.1))
}

fn filled_object(prefix: &str, size: u64, n: u64) -> Object {
    Object { key: format!("{prefix}{size}/{n}"), size }
}

/// The objects that `bench files` writes and a `get` with the same flags reads.
pub(super) fn objects_of_files(args: &FilesArgs) -> impl Iterator<Item = Object> + '_ {
    args.size
        .iter()
        .flat_map(move |&size| (0..filled_count(size, args.objects)).map(move |n| filled_object(&args.prefix, size, n)))
}

impl Plan {
    /// # Errors
    /// When the arguments contradict each other.
    pub(super) fn new(workload: Workload, args: &LoadArgs) -> Result<Self> {
        ensure!(!args.size.is_empty(), "give at least one --size");
        ensure!((0.0..=1.0).contains(&args.get_share), "--get-share is between 0 and 1");
        ensure!((0.0..=1.0).contains(&args.errors_max), "--errors-max is between 0 and 1");
        ensure!((0.0..=10.0).contains(&args.zipf), "--zipf is between 0 and 10");
        ensure!(args.duration.as_secs() <= 86_400, "--duration is at most 24h");
        ensure!(!args.prefix.starts_with('/'), "--prefix does not begin with a slash");
        let mut sizes = args.size.clone();
        sizes.sort_unstable();
        sizes.dedup();
        let objects: Vec<u64> = sizes.iter().map(|&size| filled_count(size, args.objects)).collect();
        let per_worker = args.objects.map(|objects| objects.div_ceil(u64::from(args.concurrency)));
        let overwritten = per_worker.filter(|_| workload == Workload::Put);
        let zipf = (args.zipf > 0.0).then(|| Zipf::new(objects.iter().sum(), args.zipf));
        Ok(Self { workload, prefix: args.prefix.clone(), sizes, objects, overwritten, zipf })
    }

    /// How many objects a fill writes.
    pub(super) fn filled(&self) -> u64 {
        self.objects.iter().sum()
    }

    /// The filled object with number `n` of all of them.
    pub(super) fn filled_nth(&self, mut n: u64) -> Object {
        for (&size, &count) in self.sizes.iter().zip(&self.objects) {
            if n < count {
                return filled_object(&self.prefix, size, n);
            }
            n -= count;
        }
        unreachable!("the caller keeps below filled()")
    }
}

/// A worker's way through the plan.
#[derive(Debug)]
pub(super) struct Script {
    plan: std::sync::Arc<Plan>,
    worker: u32,
    random: Random,
    /// How many keys of its own it has taken.
    written: u64,
    recent: VecDeque<Object>,
}

impl Script {
    pub(super) fn new(plan: std::sync::Arc<Plan>, worker: u32, seed: u64) -> Self {
        let random = Random::new(seed ^ (u64::from(worker) << 32));
        Self { plan, worker, random, written: 0, recent: VecDeque::new() }
    }

    pub(super) fn next(&mut self) -> Step {
        match self.plan.workload {
            Workload::Put => Step::Put(self.fresh()),
            Workload::Get => Step::Get(self.filled()),
            Workload::Head => Step::Head(self.filled()),
            Workload::List => Step::List,
            Workload::Mixed(get_share) => {
                // 2^32 steps of probability: exact enough for a share, and free of float comparison at the ends.
                if self.random.below(1 << 32) as f64 >= get_share * f64::from(u32::MAX) {
                    return Step::Put(self.fresh());
                }
                if !self.recent.is_empty() && self.random.below(100) < RECENT_SHARE_PERCENT {
                    let at = self.random.below(self.recent.len() as u64);
                    return Step::Get(self.recent[usize::try_from(at).expect("below a length")].clone());
                }
                Step::Get(self.filled())
            }
        }
    }

    /// Tells that a put was acknowledged, so that it can be read back.
    pub(super) fn acknowledged(&mut self, object: Object) {
        if matches!(self.plan.workload, Workload::Mixed(_)) {
            if self.recent.len() == RECENT_MAX {
                self.recent.pop_front();
            }
            self.recent.push_back(object);
        }
    }

    /// The objects of its own that may be there now, for cleaning up.
    pub(super) fn own_objects(&self) -> impl Iterator<Item = Object> + '_ {
        let keys = self.plan.overwritten.map_or(self.written, |keys| keys.min(self.written));
        (0..keys).map(|n| self.own(n))
    }

    fn filled(&mut self) -> Object {
        let n = match &self.plan.zipf {
            Some(zipf) => zipf.choose(&mut self.random),
            None => self.random.below(self.plan.filled()),
        };
        self.plan.filled_nth(n)
    }

    fn fresh(&mut self) -> Object {
        let n = self.plan.overwritten.map_or(self.written, |keys| self.written % keys);
        self.written += 1;
        self.own(n)
    }

    /// The size of an own object follows from its number, so that its key is known again when cleaning up.
    fn own(&self, n: u64) -> Object {
        let sizes = self.plan.sizes.len() as u64;
        let size = self.plan.sizes[usize::try_from(Random::new(n).below(sizes)).expect("below a length")];
        Object { key: format!("{}w{}/{n}-{size}", self.plan.prefix, self.worker), size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Arc;

    fn plan(workload: Workload, overwritten: Option<u64>) -> Arc<Plan> {
        Arc::new(Plan {
            workload,
            prefix: "p/".into(),
            sizes: vec![1, 2],
            objects: vec![3, 4],
            overwritten,
            zipf: None,
        })
    }

    #[test]
    fn filled_objects_are_numbered_through_all_sizes() {
        let plan = plan(Workload::Get, None);
        let all: HashSet<String> = (0..plan.filled()).map(|n| plan.filled_nth(n).key).collect();
        assert_eq!(all.len(), 7);
        assert_eq!(plan.filled_nth(3), Object { key: "p/2/0".into(), size: 2 });
    }

    #[test]
    fn zipf_chooses_the_first_ones_most_often_and_all_of_them() {
        let zipf = Zipf::new(100, 1.0);
        let (mut random, mut counts) = (Random::new(5), vec![0_u32; 100]);
        for _ in 0..100_000 {
            counts[usize::try_from(zipf.choose(&mut random)).unwrap()] += 1;
        }
        // The first has 1 of 5.187 parts, the second half of that.
        assert!((18_000..20_600).contains(&counts[0]) && (9_000..10_300).contains(&counts[1]), "{counts:?}");
        assert!(counts.iter().all(|count| *count > 50), "{counts:?}");
    }

    #[test]
    fn own_objects_are_those_that_were_put() {
        for overwritten in [None, Some(5)] {
            let mut script = Script::new(plan(Workload::Put, overwritten), 3, 9);
            let mut put = HashSet::new();
            for _ in 0..20 {
                let Step::Put(object) = script.next() else { panic!("put only puts") };
                put.insert(object.key);
            }
            assert_eq!(put, script.own_objects().map(|object| object.key).collect());
            assert_eq!(put.len(), if overwritten.is_some() { 5 } else { 20 });
        }
    }

    #[test]
    fn mixed_keeps_its_share_and_reads_what_it_wrote() {
        let mut script = Script::new(plan(Workload::Mixed(0.75), None), 0, 4);
        let (mut gets, mut own) = (0, 0);
        for _ in 0..10_000 {
            match script.next() {
                Step::Put(object) => script.acknowledged(object),
                Step::Get(object) => {
                    gets += 1;
                    own += i32::from(object.key.starts_with("p/w0/"));
                }
                Step::Head(_) | Step::List => panic!("mixed does neither"),
            }
        }
        assert!((7_300..7_700).contains(&gets), "{gets}");
        assert!((1_600..2_200).contains(&own), "{own}");
    }
}
