//! What is due for one version or upload.

use holdfast_protocol::TierName;

use super::{Day, LifecycleRules};
use crate::ports::metadata::{AgedVersion, Standing, Tag};

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LifecycleAction {
    /// The latest version is deleted as a client would delete it: where versioning is on, under a delete marker.
    ExpireCurrent,
    /// An older version is removed for good.
    RemoveNoncurrent,
    /// A delete marker is removed that hides nothing.
    RemoveMarker,
    /// An unfinished upload is aborted.
    AbortUpload,
    /// The bytes of a version are moved to another storage class.
    Transition,
}

impl LifecycleAction {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::ExpireCurrent, Self::RemoveNoncurrent, Self::RemoveMarker, Self::AbortUpload, Self::Transition];

    /// For metrics and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ExpireCurrent => "expire_current",
            Self::RemoveNoncurrent => "remove_noncurrent",
            Self::RemoveMarker => "remove_marker",
            Self::AbortUpload => "abort_upload",
            Self::Transition => "transition",
        }
    }
}

/// Something that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// What.
    pub action: LifecycleAction,
    /// Since when.
    pub since_ms: u64,
    /// Of a transition: to which tier; `None`: to the cluster's disks.
    pub to: Option<TierName>,
}

/// What is known of a version that it does not say itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// Of an older one, how many noncurrent versions of its key are newer, at least: rules that keep more are not asked
    /// for it.
    pub newer: u32,
    /// When its key was last read, as far as that was noted: the begin of that day.
    pub read_ms: Option<u64>,
}

impl LifecycleRules {
    /// When a latest version that is an object expires, and the id of the rule that says so: of several the one that
    /// comes first.
    pub fn expiry(
        &self,
        key: &str,
        size_bytes: u64,
        tags: &[Tag],
        last_modified_ms: u64,
        day: Day,
    ) -> Option<(u64, &str)> {
        let expiries = self.enabled().filter_map(|rule| {
            let expiration = rule.expiration.as_ref()?;
            let due_ms = match (expiration.days, expiration.date_ms) {
                (Some(days), _) => day.due_ms(last_modified_ms, days),
                (None, date_ms) => date_ms?,
            };
            rule.filter.matches(key, Some(size_bytes), tags).then_some((due_ms, rule.id.as_str()))
        });
        expiries.min_by_key(|(due_ms, _)| *due_ms)
    }

    /// What is due for a version now. What deletes it goes before what moves it.
    pub fn judge(&self, version: &AgedVersion, known: Known, now_ms: u64, day: Day) -> Option<Due> {
        let (action, since_ms) = match version.standing {
            Standing::Current => {
                let size_bytes = version.size_bytes?;
                let expiry = self.expiry(&version.key, size_bytes, &version.tags, version.last_modified_ms, day);
                (LifecycleAction::ExpireCurrent, expiry.map(|(due_ms, _)| due_ms))
            }
            Standing::Noncurrent => {
                (LifecycleAction::RemoveNoncurrent, self.noncurrent_since(version, known.newer, day))
            }
            Standing::Marker { is_alone: true } => (LifecycleAction::RemoveMarker, self.marker_since(version, day)),
            Standing::Marker { is_alone: false } => return None,
        };
        if let Some(since_ms) = since_ms.filter(|since_ms| *since_ms <= now_ms) {
            return Some(Due { action, since_ms, to: None });
        }
        let (since_ms, to) = self.target(version, known, now_ms, day)?;
        (to != version.class.as_ref()).then(|| Due { action: LifecycleAction::Transition, since_ms, to: to.cloned() })
    }

    fn noncurrent_since(&self, version: &AgedVersion, newer: u32, day: Day) -> Option<u64> {
        let due = self.enabled().filter_map(|rule| {
            let noncurrent = rule.noncurrent.as_ref()?;
            let surplus = noncurrent.keep.is_none_or(|keep| newer >= keep);
            (surplus && rule.filter.matches(&version.key, version.size_bytes, &version.tags))
                .then(|| day.due_ms(version.since_ms, noncurrent.days))
        });
        due.min()
    }

    fn marker_since(&self, version: &AgedVersion, day: Day) -> Option<u64> {
        let due = self.enabled().filter_map(|rule| {
            let expiration = rule.expiration.as_ref()?;
            let due_ms = match (expiration.days, expiration.date_ms) {
                (Some(days), _) => day.due_ms(version.last_modified_ms, days),
                (None, Some(date_ms)) => date_ms,
                (None, None) if expiration.lone_markers == Some(true) => version.last_modified_ms,
                (None, None) => return None,
            };
            rule.filter.matches(&version.key, None, &[]).then_some(due_ms)
        });
        due.min()
    }

    /// Since when an upload is to be aborted, if it is now.
    pub fn judge_upload(&self, key: &str, begun_ms: u64, now_ms: u64, day: Day) -> Option<Due> {
        let due = self.enabled().filter(|rule| rule.filter.matches_key(key));
        let since_ms = due.filter_map(|rule| rule.abort_uploads_days.map(|days| day.due_ms(begun_ms, days))).min()?;
        (since_ms <= now_ms).then_some(Due { action: LifecycleAction::AbortUpload, since_ms, to: None })
    }

    /// Actions for this key that pass over some of its newest noncurrent versions: over how many, the most first, and
    /// after how many days the others are due, the least of them; each number of versions once.
    pub fn keeps(&self, key: &str) -> Vec<(u32, u32)> {
        let mut keeps: Vec<(u32, u32)> = Vec::new();
        for rule in self.enabled().filter(|rule| rule.filter.matches_key(key)) {
            let removal = rule.noncurrent.iter().map(|one| (one.keep, one.days));
            let moves = rule.noncurrent_transitions.iter().map(|one| (one.keep, one.days));
            for (keep, days) in removal.chain(moves) {
                let Some(keep) = keep else { continue };
                match keeps.iter_mut().find(|(other, _)| *other == keep) {
                    Some((_, least)) => *least = days.min(*least),
                    None => keeps.push((keep, days)),
                }
            }
        }
        keeps.sort_unstable_by_key(|(keep, _)| std::cmp::Reverse(*keep));
        keeps
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
