//! Admission: how much work a node takes on at once (promise D7).
//!
//! Two classes of work, reads and writes, each have a budget of jobs and of bytes, so that a flood of one leaves the
//! other alone. [`Budget`] is the bookkeeping of one class and decides; the handle around it
//! ([`crate::service::admission::Admission`]) owns the lock and the queue. [`limits_under`] decides what the budgets
//! are under the pressure that the node is under; the ingest actor calls it.

use serde::{Deserialize, Serialize};

/// A class of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum JobKind {
    /// Reads objects or metadata.
    Read,
    /// Brings bytes, or changes metadata.
    Write,
}

impl JobKind {
    /// All classes.
    pub const ALL: [Self; 2] = [Self::Read, Self::Write];

    /// For metrics and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    /// Position in tables of one entry a class.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// The budget of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassLimits {
    /// Requests being worked on.
    pub jobs_max: u32,
    /// Bytes that they may hold in memory together.
    pub bytes_max: u64,
    /// Requests that wait for a place; the next one is refused at once.
    pub queue_max: u32,
    /// Why nothing new is taken, if so.
    pub refused: Option<Refusal>,
}

/// Why a class takes nothing new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The node is starting and has not looked at its parts yet.
    Starting,
    /// The node is about to stop.
    Draining,
    /// No disk has room, or the metadata store has none.
    NoSpace,
    /// No disk is healthy.
    NoDisk,
    /// The metadata store does not answer, or takes no writes.
    NoMetadata,
}

impl Refusal {
    /// For messages and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::NoSpace => "no_space",
            Self::NoDisk => "no_disk",
            Self::NoMetadata => "no_metadata",
        }
    }

    /// When a client should try again, in seconds: about as long as the cause usually lasts.
    pub const fn retry_after_seconds(self) -> u32 {
        match self {
            Self::Starting | Self::NoMetadata => 2,
            Self::Draining => 5,
            Self::NoDisk | Self::NoSpace => 30,
        }
    }
}

/// The budgets of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of reads.
    pub read: ClassLimits,
    /// Of writes.
    pub write: ClassLimits,
    /// How long a request may wait for a place, in milliseconds.
    pub queue_wait_ms: u64,
}

impl Limits {
    /// Those of one class.
    pub const fn of(&self, kind: JobKind) -> &ClassLimits {
        match kind {
            JobKind::Read => &self.read,
            JobKind::Write => &self.write,
        }
    }
}

/// How much of a class is in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    jobs: u32,
    bytes: u64,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on; the budget has been charged.
    Admit,
    /// It must wait for another one to end.
    Wait,
    /// It is refused whatever ends.
    Refuse(Refusal),
}

impl Budget {
    /// Decides on a job of `bytes` and charges it if admitted.
    ///
    /// A job larger than the whole budget is admitted when it is alone, so that no configuration makes a request
    /// impossible for ever. A job that brings no bytes needs no room: deletions are what makes some.
    pub fn decide(&mut self, limits: &ClassLimits, bytes: u64) -> Verdict {
        if let Some(refusal) = limits.refused
            && (refusal != Refusal::NoSpace || bytes > 0)
        {
            return Verdict::Refuse(refusal);
        }
        // A sum that overflows fits into no budget, however large.
        let sum = self.bytes.checked_add(bytes).filter(|sum| *sum <= limits.bytes_max || self.bytes == 0);
        match sum {
            Some(sum) if self.jobs < limits.jobs_max => {
                self.jobs += 1;
                self.bytes = sum;
                Verdict::Admit
            }
            _ => Verdict::Wait,
        }
    }

    /// Gives a job's share back.
    ///
    /// # Panics
    /// When more is given back than was taken, which only a bug does.
    pub fn release(&mut self, bytes: u64) {
        self.jobs = self.jobs.checked_sub(1).expect("every release follows an admission");
        self.bytes = self.bytes.checked_sub(bytes).expect("a release gives back what its admission took");
    }

    /// Jobs in work.
    pub const fn jobs(&self) -> u32 {
        self.jobs
    }

    /// Bytes they hold.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What a disk says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskHealth {
    /// Takes reads and writes.
    Healthy,
    /// Out of room: reads only.
    Full,
    /// Gives no answer and no error: it gets nothing new until it answers again.
    Unresponsive,
    /// Stopped after an I/O error: what can be verified is still read.
    Fenced,
}

impl DiskHealth {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Full, Self::Unresponsive, Self::Fenced];

    /// For metrics and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Full => "full",
            Self::Unresponsive => "unresponsive",
            Self::Fenced => "fenced",
        }
    }
}

/// What presses on the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pressure {
    /// Every disk.
    pub disks: Vec<DiskHealth>,
    /// Whether other nodes have disks too: then a quorum of them decides about each write, and this node's do not
    /// matter.
    pub in_cluster: bool,
    /// Whether the metadata store did not answer its last check.
    pub metadata_down: bool,
    /// Whether the metadata store takes no writes any more.
    pub metadata_readonly: bool,
    /// Whether the metadata store has no room for writes.
    pub metadata_full: bool,
    /// Whether the node is about to stop.
    pub draining: bool,
}

/// The budgets under `pressure`, from what is configured.
///
/// Reads go on while metadata answers and not all disks are fenced: of one that does not answer, what is in memory can
/// be read. Writes need a healthy disk too. In a cluster neither needs a disk of this node.
pub fn limits_under(configured: &Limits, pressure: &Pressure) -> Limits {
    let all_fenced = !pressure.in_cluster && pressure.disks.iter().all(|d| *d == DiskHealth::Fenced);
    let writable = pressure.in_cluster || pressure.disks.contains(&DiskHealth::Healthy);
    let common = if pressure.draining {
        Some(Refusal::Draining)
    } else if pressure.metadata_down {
        Some(Refusal::NoMetadata)
    } else if all_fenced {
        Some(Refusal::NoDisk)
    } else {
        None
    };
    let mut limits = *configured;
    limits.read.refused = common;
    // Where there is a full one, room is what helps, and deletions make some.
    let unwritable = if pressure.disks.contains(&DiskHealth::Full) { Refusal::NoSpace } else { Refusal::NoDisk };
    let unwritten = pressure.metadata_readonly.then_some(Refusal::NoMetadata);
    let unstored = pressure.metadata_full.then_some(Refusal::NoSpace);
    limits.write.refused = common.or(unwritten).or((!writable).then_some(unwritable)).or(unstored);
    limits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn class(jobs_max: u32, bytes_max: u64) -> ClassLimits {
        ClassLimits { jobs_max, bytes_max, queue_max: 10, refused: None }
    }

    fn limits() -> Limits {
        Limits { read: class(4, 100), write: class(2, 100), queue_wait_ms: 10 }
    }

    #[test]
    fn budget_ends_with_jobs_or_bytes() {
        let mut budget = Budget::default();
        assert_eq!(budget.decide(&class(2, 100), 60), Verdict::Admit);
        assert_eq!(budget.decide(&class(2, 100), 60), Verdict::Wait);
        assert_eq!(budget.decide(&class(2, 100), 40), Verdict::Admit);
        assert_eq!(budget.decide(&class(2, 100), 0), Verdict::Wait);
        budget.release(60);
        assert_eq!(budget.decide(&class(2, 100), 1), Verdict::Admit);
    }

    #[test]
    fn a_job_larger_than_the_budget_passes_alone() {
        let mut budget = Budget::default();
        assert_eq!(budget.decide(&class(2, 100), 500), Verdict::Admit);
        assert_eq!(budget.decide(&class(2, 100), 1), Verdict::Wait);
    }

    #[test]
    fn jobs_that_no_number_holds_together_wait_for_each_other() {
        let (unbounded, mut budget) = (class(2, u64::MAX), Budget::default());
        assert_eq!(budget.decide(&unbounded, u64::MAX), Verdict::Admit);
        assert_eq!(budget.decide(&unbounded, u64::MAX), Verdict::Wait);
        budget.release(u64::MAX);
        assert_eq!((budget.jobs(), budget.bytes()), (0, 0));
    }

    #[test]
    fn a_full_disk_refuses_writes_and_leaves_reads_alone() {
        let under = limits_under(
            &limits(),
            &Pressure { disks: vec![DiskHealth::Full, DiskHealth::Fenced], ..Pressure::default() },
        );
        assert_eq!(under.read.refused, None);
        assert_eq!(under.write.refused, Some(Refusal::NoSpace));
    }

    #[test]
    fn a_disk_that_does_not_answer_refuses_writes_and_is_no_reason_to_make_room() {
        let under = limits_under(&limits(), &on(DiskHealth::Unresponsive));
        assert_eq!((under.read.refused, under.write.refused), (None, Some(Refusal::NoDisk)));
        let disks = vec![DiskHealth::Unresponsive, DiskHealth::Healthy];
        let under = limits_under(&limits(), &Pressure { disks, ..Pressure::default() });
        assert_eq!((under.read.refused, under.write.refused), (None, None));
    }

    #[test]
    fn a_full_disk_takes_what_brings_no_bytes() {
        let mut full = class(2, 100);
        full.refused = Some(Refusal::NoSpace);
        let mut budget = Budget::default();
        assert_eq!(budget.decide(&full, 1), Verdict::Refuse(Refusal::NoSpace));
        assert_eq!(budget.decide(&full, 0), Verdict::Admit);
        assert_eq!((budget.jobs(), budget.bytes()), (1, 0));
        full.refused = Some(Refusal::NoMetadata);
        assert_eq!(budget.decide(&full, 0), Verdict::Refuse(Refusal::NoMetadata));
    }

    fn on(disk: DiskHealth) -> Pressure {
        Pressure { disks: vec![disk], ..Pressure::default() }
    }

    #[test]
    fn in_a_cluster_the_disks_of_others_are_enough() {
        for disk in [DiskHealth::Full, DiskHealth::Unresponsive, DiskHealth::Fenced] {
            let under = limits_under(&limits(), &Pressure { in_cluster: true, ..on(disk) });
            assert_eq!((under.read.refused, under.write.refused), (None, None));
        }
    }

    #[test]
    fn one_healthy_disk_is_enough_to_write() {
        let under = limits_under(
            &limits(),
            &Pressure { disks: vec![DiskHealth::Fenced, DiskHealth::Healthy], ..Pressure::default() },
        );
        assert_eq!((under.read.refused, under.write.refused), (None, None));
    }

    #[test]
    fn metadata_down_and_draining_refuse_everything() {
        for (pressure, refusal) in [
            (Pressure { metadata_down: true, ..on(DiskHealth::Healthy) }, Refusal::NoMetadata),
            (Pressure { metadata_down: true, draining: true, ..on(DiskHealth::Healthy) }, Refusal::Draining),
            (on(DiskHealth::Fenced), Refusal::NoDisk),
        ] {
            let under = limits_under(&limits(), &pressure);
            assert_eq!((under.read.refused, under.write.refused), (Some(refusal), Some(refusal)));
        }
    }

    #[test]
    fn metadata_that_take_no_writes_are_read() {
        let under = limits_under(&limits(), &Pressure { metadata_readonly: true, ..on(DiskHealth::Healthy) });
        assert_eq!((under.read.refused, under.write.refused), (None, Some(Refusal::NoMetadata)));
    }

    #[test]
    fn metadata_without_room_are_read_and_a_graver_reason_is_told_first() {
        let full = |disk| Pressure { metadata_full: true, ..on(disk) };
        for (pressure, refusal) in [
            (full(DiskHealth::Healthy), Refusal::NoSpace),
            (Pressure { in_cluster: true, ..full(DiskHealth::Fenced) }, Refusal::NoSpace),
            (full(DiskHealth::Unresponsive), Refusal::NoDisk),
            (Pressure { metadata_readonly: true, ..full(DiskHealth::Healthy) }, Refusal::NoMetadata),
        ] {
            let under = limits_under(&limits(), &pressure);
            assert_eq!((under.read.refused, under.write.refused), (None, Some(refusal)), "{pressure:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_admitted_stays_within_the_budget(jobs in prop::collection::vec((0u64..80, any::<bool>()), 1..200)) {
            let limits = class(5, 100);
            let mut budget = Budget::default();
            let mut held = Vec::new();
            for (bytes, end_one) in jobs {
                if end_one && let Some(bytes) = held.pop() {
                    budget.release(bytes);
                }
                if budget.decide(&limits, bytes) == Verdict::Admit {
                    held.push(bytes);
                }
                prop_assert!(budget.jobs() <= 5);
                prop_assert!(budget.bytes() <= 100);
                prop_assert_eq!(budget.bytes(), held.iter().sum::<u64>());
            }
        }
    }
}
