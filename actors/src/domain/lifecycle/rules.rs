//! The rules of a bucket as they are stored, and which of them can be taken.
//!
//! What is stored may be a newer version's. A condition that this one does not know would be left out when it is read,
//! and the rule be about more than it is meant for: so no field is passed over, and such rules are not understood at
//! all.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{NoncurrentTransition, Transition};
use crate::domain::objects::tags::{TAG_KEY_CHARS_MAX, TAG_VALUE_CHARS_MAX};
use crate::ports::metadata::Tag;

/// The most rules of a bucket, as in S3.
pub const RULES_MAX: usize = 1_000;
/// The longest id of a rule, in characters, as in S3.
const ID_CHARS_MAX: usize = 255;
/// The longest prefix, in bytes: that of a key.
const PREFIX_BYTES_MAX: usize = 1_024;
/// The most tags of a filter: those of an object.
const TAGS_MAX: usize = 10;
/// The most noncurrent versions that a rule can keep, as in S3.
pub(super) const KEEP_MAX: u32 = 100;
/// Dates are midnights of real days, however long a day of age is.
pub(super) const MIDNIGHT_MS: u64 = 86_400_000;

/// All rules of a bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LifecycleRules {
    /// A number of this configuration that no other has, below 2⁶³: how far walks have come counts under it only.
    pub generation: u64,
    /// What the client wrote about the least size of what is moved: see
    /// [`TransitionMinimum`](super::TransitionMinimum).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transition_minimum: Option<String>,
    /// Since when reads of latest versions are noted, where a rule asks for them: what was not read since counts as
    /// read then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads_since_ms: Option<u64>,
    /// The rules, as they were given.
    pub rules: Vec<LifecycleRule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LifecycleRule {
    /// Its id.
    pub id: String,
    /// Whether it is in force.
    pub enabled: bool,
    /// What it is about.
    pub filter: RuleFilter,
    /// What becomes of latest versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration: Option<Expiration>,
    /// What becomes of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noncurrent: Option<NoncurrentExpiration>,
    /// Where latest versions are moved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transitions: Vec<Transition>,
    /// Where older versions are moved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub noncurrent_transitions: Vec<NoncurrentTransition>,
    /// Days after which an unfinished upload is aborted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort_uploads_days: Option<u32>,
}

/// How a filter was written, so that it is read back like that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilterForm {
    /// `Prefix` in the rule itself, as before there were filters.
    Prefix,
    /// `Filter` with at most one condition.
    #[default]
    Single,
    /// `Filter` with `And`.
    And,
}

/// What a rule is about: all conditions must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleFilter {
    /// As it was written.
    pub form: FilterForm,
    /// Keys that begin like this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Objects with all of these tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Tag>,
    /// Objects of more bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub larger_than_bytes: Option<u64>,
    /// Objects of fewer bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smaller_than_bytes: Option<u64>,
}

/// What becomes of latest versions. Exactly one of these is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expiration {
    /// Days of age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
    /// From this time on, a midnight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date_ms: Option<u64>,
    /// Whether a delete marker goes that is the only version of its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lone_markers: Option<bool>,
}

/// What becomes of older versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoncurrentExpiration {
    /// Days since another version took its place.
    pub days: u32,
    /// So many of the newest noncurrent versions stay, however old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
}

/// Rules that cannot be taken; each variant is another code of S3.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleFault {
    /// Not what the schema has.
    #[error("The XML you provided was not well-formed or did not validate against our published schema: {0}")]
    Malformed(&'static str),
    /// What does not go together.
    #[error("{0}")]
    Request(&'static str),
    /// A value out of its range.
    #[error("{0}")]
    Argument(&'static str),
}

impl LifecycleRules {
    /// Whether they can be taken.
    ///
    /// # Errors
    /// See [`RuleFault`].
    pub fn check(&self) -> Result<(), RuleFault> {
        if self.rules.is_empty() || self.rules.len() > RULES_MAX {
            return Err(RuleFault::Malformed("a configuration has 1 to 1000 rules"));
        }
        let mut ids = HashSet::new();
        for rule in &self.rules {
            if !ids.insert(rule.id.as_str()) {
                return Err(RuleFault::Argument("Rule ID must be unique. Found same ID for more than one rule"));
            }
            rule.check()?;
        }
        Ok(())
    }

    /// The rules in force.
    pub(super) fn enabled(&self) -> impl Iterator<Item = &LifecycleRule> {
        self.rules.iter().filter(|rule| rule.enabled)
    }
}

impl LifecycleRule {
    fn check(&self) -> Result<(), RuleFault> {
        if self.id.chars().count() > ID_CHARS_MAX {
            return Err(RuleFault::Argument("ID length should not exceed allowed limit of 255"));
        }
        self.filter.check()?;
        let moves = !self.transitions.is_empty() || !self.noncurrent_transitions.is_empty();
        if self.expiration.is_none() && self.noncurrent.is_none() && self.abort_uploads_days.is_none() && !moves {
            return Err(RuleFault::Request("At least one action needs to be specified in a rule"));
        }
        if let Some(expiration) = &self.expiration {
            self.check_expiration(expiration)?;
        }
        if let Some(noncurrent) = &self.noncurrent {
            if noncurrent.days == 0 {
                return Err(RuleFault::Argument(
                    "'NoncurrentDays' for NoncurrentVersionExpiration action must be a positive integer",
                ));
            }
            if noncurrent.keep.is_some_and(|keep| !(1..=KEEP_MAX).contains(&keep)) {
                return Err(RuleFault::Argument(
                    "'NewerNoncurrentVersions' for NoncurrentVersionExpiration action must be from 1 to 100",
                ));
            }
        }
        self.check_transitions()?;
        if let Some(days) = self.abort_uploads_days {
            if days == 0 {
                return Err(RuleFault::Argument(
                    "'DaysAfterInitiation' for AbortIncompleteMultipartUpload action must be a positive integer",
                ));
            }
            if !self.filter.tags.is_empty() {
                return Err(RuleFault::Request("AbortIncompleteMultipartUpload cannot be specified with Tags"));
            }
            if self.filter.has_sizes() {
                return Err(RuleFault::Request("AbortIncompleteMultipartUpload cannot be specified with Object Size"));
            }
        }
        Ok(())
    }

    fn check_expiration(&self, expiration: &Expiration) -> Result<(), RuleFault> {
        let Expiration { days, date_ms, lone_markers } = *expiration;
        if days.is_none() && date_ms.is_none() && lone_markers.is_none() {
            return Err(RuleFault::Malformed("an Expiration says nothing"));
        }
        if days.is_some() && date_ms.is_some() {
            return Err(RuleFault::Malformed("an Expiration has Days or a Date, not both"));
        }
        if days == Some(0) {
            return Err(RuleFault::Argument("'Days' for Expiration action must be a positive integer"));
        }
        if date_ms.is_some_and(|date_ms| !date_ms.is_multiple_of(MIDNIGHT_MS)) {
            return Err(RuleFault::Argument("'Date' must be at midnight GMT"));
        }
        if lone_markers == Some(true) {
            if days.is_some() || date_ms.is_some() {
                return Err(RuleFault::Malformed("ExpiredObjectDeleteMarker goes with neither Days nor a Date"));
            }
            if !self.filter.tags.is_empty() {
                return Err(RuleFault::Request("ExpiredObjectDeleteMarker cannot be specified with Tags."));
            }
            if self.filter.has_sizes() {
                return Err(RuleFault::Request("ExpiredObjectDeleteMarker cannot be specified with Object Size"));
            }
        }
        Ok(())
    }
}

impl RuleFilter {
    /// Whether it names a size.
    pub(super) fn has_sizes(&self) -> bool {
        self.larger_than_bytes.is_some() || self.smaller_than_bytes.is_some()
    }

    fn check(&self) -> Result<(), RuleFault> {
        let conditions = usize::from(self.prefix.is_some())
            + self.tags.len()
            + usize::from(self.larger_than_bytes.is_some())
            + usize::from(self.smaller_than_bytes.is_some());
        match self.form {
            FilterForm::Prefix | FilterForm::Single if conditions > 1 => {
                return Err(RuleFault::Malformed("a Filter with several conditions has them in And"));
            }
            FilterForm::And if conditions < 2 => {
                return Err(RuleFault::Malformed("And has at least two conditions"));
            }
            FilterForm::Prefix | FilterForm::Single | FilterForm::And => {}
        }
        if self.prefix.as_ref().is_some_and(|prefix| prefix.len() > PREFIX_BYTES_MAX) {
            return Err(RuleFault::Request("The maximum size of a prefix is 1024"));
        }
        if self.tags.len() > TAGS_MAX {
            return Err(RuleFault::Request("A filter cannot have more than 10 tags"));
        }
        for (at, tag) in self.tags.iter().enumerate() {
            if tag.key.is_empty() || tag.key.chars().count() > TAG_KEY_CHARS_MAX {
                return Err(RuleFault::Request("The TagKey you have provided is invalid"));
            }
            if tag.value.chars().count() > TAG_VALUE_CHARS_MAX {
                return Err(RuleFault::Request("The TagValue you have provided is invalid"));
            }
            if self.tags[..at].iter().any(|other| other.key == tag.key) {
                return Err(RuleFault::Request("Duplicate Tag Keys are not allowed."));
            }
        }
        if self.smaller_than_bytes == Some(0) {
            return Err(RuleFault::Request("'ObjectSizeLessThan' must be a positive integer"));
        }
        if let (Some(larger), Some(smaller)) = (self.larger_than_bytes, self.smaller_than_bytes)
            && smaller <= larger
        {
            return Err(RuleFault::Request(
                "'ObjectSizeLessThan' has to be a value greater than 'ObjectSizeGreaterThan'",
            ));
        }
        Ok(())
    }

    /// Whether keys may match at all.
    pub(super) fn matches_key(&self, key: &str) -> bool {
        self.prefix.as_ref().is_none_or(|prefix| key.starts_with(prefix.as_str()))
    }

    /// Whether the rule is about this version. A delete marker has no size and no tags: what asks for one is not about
    /// it.
    pub(super) fn matches(&self, key: &str, size_bytes: Option<u64>, tags: &[Tag]) -> bool {
        self.matches_key(key)
            && self.tags.iter().all(|tag| tags.contains(tag))
            && self.larger_than_bytes.is_none_or(|least| size_bytes.is_some_and(|size| size > least))
            && self.smaller_than_bytes.is_none_or(|most| size_bytes.is_some_and(|size| size < most))
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
