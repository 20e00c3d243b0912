//! Moves of versions to other storage classes: which can be taken, and which one is due.
//!
//! Of several moves that are due the one that became due last counts, as in S3; among equals the one that stands first.
//! So what a version's class should be follows from the rules, the version and the time alone, and judging it again
//! moves nothing.
//!
//! Two things are extensions to S3:
//! * **`STANDARD` as a target** brings bytes back to the cluster's disks.
//! * **Days since the last read** (`DaysSinceLastAccess`), of latest versions. Reads are noted by day, from the moment
//!   on that a rule asks for them ([`LifecycleRules::reads_since_ms`]): what was read before is not known, and what was
//!   not read since counts as read then, so that a new rule does not move what is in use. A read takes the due date
//!   away again; where another rule says `STANDARD`, that one is the last that is due from then on, and the object
//!   comes back.

use std::collections::HashSet;

use holdfast_protocol::TierName;
use holdfast_protocol::tiers::STANDARD;
use serde::{Deserialize, Serialize};

use super::rules::{KEEP_MAX, MIDNIGHT_MS};
use super::{Day, Known, LifecycleRule, LifecycleRules, RuleFault};
use crate::ports::metadata::{AgedVersion, Standing};

/// Smaller objects stay where they are, unless the rules say otherwise: 128 KiB, as in S3.
const MINIMUM_BYTES: u64 = 128 << 10;

/// Classes of AWS that keep the minimum also where it goes by the class.
const CLASSES_WITH_MINIMUM: [&str; 4] = ["STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"];

/// The least size of what is moved to a tier by rules whose filter names no size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransitionMinimum {
    /// 128 KiB, whatever the class.
    AllClasses,
    /// 128 KiB where AWS has it for a class of this name, else none.
    Varies,
}

/// A move of latest versions. Exactly one of the three times is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transition {
    /// Days of age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
    /// From this time on, a midnight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date_ms: Option<u64>,
    /// Days since the last read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_days: Option<u32>,
    /// To which tier; `None`: to the cluster's disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<TierName>,
}

/// A move of older versions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoncurrentTransition {
    /// Days since another version took its place.
    pub days: u32,
    /// So many of the newest noncurrent versions stay where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
    /// To which tier; `None`: to the cluster's disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<TierName>,
}

/// A target as S3 writes it.
pub fn class_name(to: Option<&TierName>) -> &str {
    to.map_or(STANDARD, TierName::as_str)
}

impl TransitionMinimum {
    /// As S3 writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllClasses => "all_storage_classes_128K",
            Self::Varies => "varies_by_storage_class",
        }
    }

    /// The one written so.
    pub fn named(text: &str) -> Option<Self> {
        [Self::AllClasses, Self::Varies].into_iter().find(|minimum| minimum.as_str() == text)
    }

    fn bytes(self, to: Option<&TierName>) -> u64 {
        match (self, to) {
            // Nothing is too small for the cluster.
            (_, None) => 0,
            (Self::AllClasses, Some(_)) => MINIMUM_BYTES,
            (Self::Varies, Some(to)) if CLASSES_WITH_MINIMUM.contains(&to.as_str()) => MINIMUM_BYTES,
            (Self::Varies, Some(_)) => 0,
        }
    }
}

impl Transition {
    fn check(&self) -> Result<(), RuleFault> {
        let times = [self.days.is_some(), self.date_ms.is_some(), self.idle_days.is_some()];
        if times.into_iter().filter(|is_set| *is_set).count() != 1 {
            return Err(RuleFault::Malformed("a Transition has one of Days, a Date and DaysSinceLastAccess"));
        }
        if self.date_ms.is_some_and(|date_ms| !date_ms.is_multiple_of(MIDNIGHT_MS)) {
            return Err(RuleFault::Argument("'Date' must be at midnight GMT"));
        }
        if self.idle_days == Some(0) {
            return Err(RuleFault::Argument("'DaysSinceLastAccess' for Transition action must be a positive integer"));
        }
        if self.idle_days.is_some() && self.to.is_none() {
            return Err(RuleFault::Argument("'DaysSinceLastAccess' cannot be specified with the class STANDARD"));
        }
        Ok(())
    }

    /// When it is due for a latest version.
    fn due_ms(&self, version: &AgedVersion, read_ms: u64, day: Day) -> Option<u64> {
        match (self.days, self.date_ms, self.idle_days) {
            (Some(days), ..) => Some(day.due_ms(version.last_modified_ms, days)),
            (_, Some(date_ms), _) => Some(date_ms),
            (.., Some(days)) => Some(day.due_ms(version.last_modified_ms.max(read_ms), days)),
            (None, None, None) => None,
        }
    }
}

impl LifecycleRule {
    /// Whether its moves can be taken, alone and beside its expirations.
    pub(super) fn check_transitions(&self) -> Result<(), RuleFault> {
        let mut classes = HashSet::new();
        for transition in &self.transitions {
            transition.check()?;
            if !classes.insert(transition.to.as_ref()) {
                return Err(RuleFault::Request(
                    "'StorageClass' must be different for 'Transition' actions in the same 'Rule'",
                ));
            }
        }
        let expiration = self.expiration.unwrap_or_default();
        let by_date = self.transitions.iter().any(|one| one.date_ms.is_some()) || expiration.date_ms.is_some();
        let by_days = self.transitions.iter().any(|one| one.date_ms.is_none()) || expiration.days.is_some();
        if by_date && by_days && !self.transitions.is_empty() {
            return Err(RuleFault::Request(
                "Found mixed 'Date' and 'Days' based Expiration and Transition actions in a lifecycle rule",
            ));
        }
        let days = self.transitions.iter().filter_map(|one| one.days.or(one.idle_days)).max();
        if expiration.days.zip(days).is_some_and(|(expiration, last)| expiration <= last) {
            return Err(RuleFault::Argument(
                "'Days' in the Expiration action must be greater than 'Days' in the Transition action",
            ));
        }
        let date_ms = self.transitions.iter().filter_map(|one| one.date_ms).max();
        if expiration.date_ms.zip(date_ms).is_some_and(|(expiration, last)| expiration <= last) {
            return Err(RuleFault::Argument(
                "'Date' in the Expiration action must be later than 'Date' in the Transition action",
            ));
        }
        self.check_noncurrent_transitions()
    }

    fn check_noncurrent_transitions(&self) -> Result<(), RuleFault> {
        let mut classes = HashSet::new();
        for transition in &self.noncurrent_transitions {
            if transition.keep.is_some_and(|keep| !(1..=KEEP_MAX).contains(&keep)) {
                return Err(RuleFault::Argument(
                    "'NewerNoncurrentVersions' for NoncurrentVersionTransition action must be from 1 to 100",
                ));
            }
            if !classes.insert(transition.to.as_ref()) {
                return Err(RuleFault::Request(
                    "'StorageClass' must be different for 'NoncurrentVersionTransition' actions in the same 'Rule'",
                ));
            }
            if self.noncurrent.is_some_and(|expiration| expiration.days <= transition.days) {
                return Err(RuleFault::Argument(
                    "'NoncurrentDays' in the NoncurrentVersionExpiration action must be greater than 'NoncurrentDays' in \
                     the NoncurrentVersionTransition action",
                ));
            }
        }
        Ok(())
    }
}

/// The move that counts, of those offered so far.
struct Latest<'a> {
    now_ms: u64,
    found: Option<(u64, Option<&'a TierName>)>,
}

impl<'a> Latest<'a> {
    fn offer(&mut self, due_ms: u64, to: Option<&'a TierName>) {
        if due_ms <= self.now_ms && self.found.is_none_or(|(latest_ms, _)| due_ms > latest_ms) {
            self.found = Some((due_ms, to));
        }
    }
}

impl LifecycleRules {
    /// Whether some rule in force goes by reads: they have to be noted then.
    pub fn asks_for_reads(&self) -> bool {
        self.enabled().any(|rule| rule.transitions.iter().any(|transition| transition.idle_days.is_some()))
    }

    /// The most days since the last read that a rule in force asks for.
    pub fn idle_days_max(&self) -> Option<u32> {
        self.enabled().flat_map(|rule| &rule.transitions).filter_map(|transition| transition.idle_days).max()
    }

    /// Tiers that some rule in force moves to.
    pub fn tiers(&self) -> HashSet<&TierName> {
        let current = self.enabled().flat_map(|rule| &rule.transitions).filter_map(|one| one.to.as_ref());
        let noncurrent = self.enabled().flat_map(|rule| &rule.noncurrent_transitions).filter_map(|one| one.to.as_ref());
        current.chain(noncurrent).collect()
    }

    /// The least size of what is moved.
    pub fn minimum(&self) -> TransitionMinimum {
        self.transition_minimum.as_deref().and_then(TransitionMinimum::named).unwrap_or(TransitionMinimum::AllClasses)
    }

    /// When the days since the last read begin to count for what was not read.
    pub(super) fn read_ms(&self, known: Known) -> u64 {
        known.read_ms.unwrap_or(0).max(self.reads_since_ms.unwrap_or(0))
    }

    /// Since when a version should be where, by the rules in force now; `None`: they do not say.
    pub fn target(
        &self,
        version: &AgedVersion,
        known: Known,
        now_ms: u64,
        day: Day,
    ) -> Option<(u64, Option<&TierName>)> {
        let size_bytes = version.size_bytes?;
        let minimum = self.minimum();
        let mut latest = Latest { now_ms, found: None };
        for rule in self.enabled() {
            let fits = |to: Option<&TierName>| rule.filter.has_sizes() || size_bytes >= minimum.bytes(to);
            let says = !rule.transitions.is_empty() || !rule.noncurrent_transitions.is_empty();
            if !says || !rule.filter.matches(&version.key, Some(size_bytes), &version.tags) {
                continue;
            }
            match version.standing {
                Standing::Current => {
                    for transition in rule.transitions.iter().filter(|one| fits(one.to.as_ref())) {
                        if let Some(due_ms) = transition.due_ms(version, self.read_ms(known), day) {
                            latest.offer(due_ms, transition.to.as_ref());
                        }
                    }
                }
                Standing::Noncurrent => {
                    for transition in rule.noncurrent_transitions.iter().filter(|one| fits(one.to.as_ref())) {
                        if transition.keep.is_none_or(|keep| known.newer >= keep) {
                            latest.offer(day.due_ms(version.since_ms, transition.days), transition.to.as_ref());
                        }
                    }
                }
                Standing::Marker { .. } => {}
            }
        }
        latest.found
    }
}

#[cfg(test)]
#[path = "transitions_tests.rs"]
mod tests;
