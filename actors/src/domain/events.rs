//! Which changes of objects are told, and how: from the rules of a bucket to the message in the outbox.

mod draft;
mod rules;

pub use draft::{EventContext, EventDraft, EventOutcome, HOLDFAST_PRINCIPAL, event_key};
pub use rules::{NotificationRule, NotificationRules, NotificationTarget, RULES_MAX, RuleError};
