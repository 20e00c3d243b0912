//! The rules of a bucket notification configuration.

use holdfast_protocol::events::{EventName, EventPattern};
use serde::{Deserialize, Serialize};

/// The most rules of a bucket, as in S3.
pub const RULES_MAX: usize = 100;
/// The longest prefix or suffix, in bytes: that of a key.
const PART_BYTES_MAX: usize = 1_024;
/// The longest id of a rule, in characters, as in S3.
const ID_CHARS_MAX: usize = 255;

/// One rule: these events of keys like this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotificationRule {
    /// Its id, told in the events that it chose.
    pub id: String,
    /// Which kind of target the client named, so that it reads back what it wrote.
    pub target: NotificationTarget,
    /// What the client named as the target.
    pub arn: String,
    /// Events, as S3 names them.
    pub events: Vec<String>,
    /// Only keys that begin like this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Only keys that end like this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
}

/// S3's kinds of targets. All of them are the one topic here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotificationTarget {
    /// `TopicConfiguration`
    Topic,
    /// `QueueConfiguration`
    Queue,
}

/// All rules of a bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotificationRules {
    /// Whether what no rule chooses is told too.
    #[serde(default)]
    pub everything: bool,
    /// The rules, as they were given.
    pub rules: Vec<NotificationRule>,
}

/// A rule that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// More rules than S3 allows.
    #[error("a bucket has at most {RULES_MAX} notification rules")]
    TooMany,
    /// An event that is not known.
    #[error("the event '{0}' is not supported for notifications")]
    UnknownEvent(String),
    /// A rule without events.
    #[error("the rule '{0}' names no event")]
    NoEvents(String),
    /// Two rules with one id.
    #[error("two rules have the id '{0}'")]
    SameId(String),
    /// A prefix, suffix or id that is too long.
    #[error("the {0} of a rule is too long")]
    TooLong(&'static str),
}

impl NotificationRules {
    /// Whether they can be taken.
    ///
    /// # Errors
    /// See [`RuleError`].
    pub fn check(&self) -> Result<(), RuleError> {
        if self.rules.len() > RULES_MAX {
            return Err(RuleError::TooMany);
        }
        for (at, rule) in self.rules.iter().enumerate() {
            if rule.id.chars().count() > ID_CHARS_MAX {
                return Err(RuleError::TooLong("id"));
            }
            if self.rules[..at].iter().any(|other| other.id == rule.id) {
                return Err(RuleError::SameId(rule.id.clone()));
            }
            if rule.events.is_empty() {
                return Err(RuleError::NoEvents(rule.id.clone()));
            }
            for event in &rule.events {
                event.parse::<EventPattern>().map_err(|error| RuleError::UnknownEvent(error.0))?;
            }
            for (part, name) in [(&rule.prefix, "prefix"), (&rule.suffix, "suffix")] {
                if part.as_ref().is_some_and(|part| part.len() > PART_BYTES_MAX) {
                    return Err(RuleError::TooLong(name));
                }
            }
        }
        Ok(())
    }

    /// Whether an event is told: the id of the first rule that chooses it, empty if none has to.
    pub fn choose(&self, name: EventName, key: &str) -> Option<&str> {
        let rule = self.rules.iter().find(|rule| rule.chooses(name, key)).map(|rule| rule.id.as_str());
        rule.or_else(|| self.everything.then_some(""))
    }
}

impl NotificationRule {
    fn chooses(&self, name: EventName, key: &str) -> bool {
        let named = |event: &String| event.parse::<EventPattern>().is_ok_and(|pattern| pattern.matches(name));
        self.prefix.as_ref().is_none_or(|prefix| key.starts_with(prefix.as_str()))
            && self.suffix.as_ref().is_none_or(|suffix| key.ends_with(suffix.as_str()))
            && self.events.iter().any(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(id: &str, events: &[&str], prefix: Option<&str>, suffix: Option<&str>) -> NotificationRule {
        NotificationRule {
            id: id.into(),
            target: NotificationTarget::Topic,
            arn: "arn:aws:sns:::holdfast".into(),
            events: events.iter().map(|event| (*event).to_owned()).collect(),
            prefix: prefix.map(str::to_owned),
            suffix: suffix.map(str::to_owned),
        }
    }

    #[test]
    fn first_rule_with_event_prefix_and_suffix_is_chosen() {
        let rules = NotificationRules {
            everything: false,
            rules: vec![
                rule("jpg", &["s3:ObjectCreated:*"], Some("in/"), Some(".jpg")),
                rule("gone", &["s3:ObjectRemoved:Delete", "s3:ObjectCreated:Copy"], None, None),
            ],
        };
        rules.check().expect("fine");
        let chosen = |name, key: &str| rules.choose(name, key);
        assert_eq!(chosen(EventName::CreatedPut, "in/a.jpg"), Some("jpg"));
        assert_eq!(chosen(EventName::CreatedCopy, "in/a.jpg"), Some("jpg"));
        assert_eq!(chosen(EventName::CreatedCopy, "in/a.png"), Some("gone"));
        assert_eq!(chosen(EventName::CreatedPut, "out/a.jpg"), None);
        assert_eq!(chosen(EventName::RemovedDelete, "out/a.jpg"), Some("gone"));
        assert_eq!(chosen(EventName::RemovedDeleteMarkerCreated, "out/a.jpg"), None);
        assert_eq!(NotificationRules::default().choose(EventName::CreatedPut, "a"), None);
        let all = NotificationRules { everything: true, ..rules };
        assert_eq!(all.choose(EventName::CreatedPut, "out/a.jpg"), Some(""));
        assert_eq!(all.choose(EventName::CreatedPut, "in/a.jpg"), Some("jpg"));
    }

    #[test]
    fn rules_that_cannot_work_are_refused() {
        let fine = || rule("a", &["s3:ObjectCreated:*"], None, None);
        let check = |rules: Vec<NotificationRule>| NotificationRules { everything: false, rules }.check();
        assert_eq!(
            check(vec![rule("a", &["s3:Nothing"], None, None)]),
            Err(RuleError::UnknownEvent("s3:Nothing".into()))
        );
        assert_eq!(check(vec![rule("a", &[], None, None)]), Err(RuleError::NoEvents("a".into())));
        assert_eq!(check(vec![fine(), fine()]), Err(RuleError::SameId("a".into())));
        let long = "x".repeat(1_025);
        assert_eq!(
            check(vec![rule("a", &["s3:ObjectCreated:*"], Some(&long), None)]),
            Err(RuleError::TooLong("prefix"))
        );
        let many = (0..=RULES_MAX).map(|n| NotificationRule { id: n.to_string(), ..fine() }).collect();
        assert_eq!(check(many), Err(RuleError::TooMany));
    }
}
