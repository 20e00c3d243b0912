//! Bucket policies: the IAM policy language, as far as a bucket's own policy needs it.
//!
//! A [`Policy`] is parsed and validated once ([`Policy::parse`]) and then asked about many requests
//! ([`Policy::evaluate`]). Evaluation is a pure function of policy and request facts, and what it costs is bounded:
//! each pattern goes through the text once ([`pattern`]), and a decision that would take too many steps all the same is
//! a Deny ([`work`]).
//!
//! What a policy may say: versions 2012-10-17 and 2008-10-17; Allow and Deny; Principal and NotPrincipal (`*`, users by
//! name or ARN); Action and NotAction, Resource and NotResource with `*` and `?`; policy variables; the condition
//! operators on strings, numbers, dates, booleans, addresses, ARNs and presence, with `...IfExists`, `ForAnyValue:` and
//! `ForAllValues:`. Anything else is refused when the policy is put, by a message that names the statement and the
//! field, rather than silently ignored: an ignored condition would grant more than its author meant.

mod actions;
mod condition;
mod date;
mod json;
mod keys;
mod parse;
mod pattern;
mod work;

use std::collections::BTreeSet;

pub use actions::{ACTIONS, Scope, scope_of};
pub use keys::{ConditionKey, Facts};
pub use parse::{POLICY_BYTES_MAX, PolicyError};

use condition::Condition;
use pattern::Pattern;
use work::Work;

/// What a policy says about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A Deny statement applies: nothing can allow the request.
    Deny,
    /// An Allow statement applies, and no Deny.
    Allow,
    /// No statement applies.
    Silent,
}

/// What a request wants to do, as far as statements look at it without conditions.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The user's name; `None` for anonymous requests.
    pub user: Option<&'a str>,
    /// The action, as in `s3:GetObject`.
    pub action: &'a str,
    /// The bucket's name.
    pub bucket: &'a str,
    /// The object's key for actions on objects.
    pub key: Option<&'a str>,
}

/// A validated bucket policy.
#[derive(Debug, Clone)]
pub struct Policy {
    statements: Vec<Statement>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Allow,
    Deny,
}

#[derive(Debug, Clone)]
struct Statement {
    effect: Effect,
    principal: Principals,
    actions: Vec<Pattern>,
    /// `NotAction`: applies to every action but these.
    actions_negated: bool,
    /// Patterns of what follows `arn:aws:s3:::`.
    resources: Vec<Pattern>,
    /// `NotResource`.
    resources_negated: bool,
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone)]
struct Principals {
    everybody: bool,
    users: Vec<String>,
    /// `NotPrincipal`: everybody but these.
    negated: bool,
}

impl Principals {
    fn include(&self, user: Option<&str>) -> bool {
        let named = self.everybody || user.is_some_and(|user| self.users.iter().any(|u| u == user));
        named != self.negated
    }
}

impl Statement {
    fn applies_to(&self, attempt: &Attempt<'_>, resource: &str, facts: &dyn Facts, work: &Work) -> bool {
        self.principal.include(attempt.user)
            && self.actions.iter().any(|p| p.matches_ignoring_case(attempt.action, work)) != self.actions_negated
            && self.resources.iter().any(|p| p.matches(resource, facts, work)) != self.resources_negated
            && self.conditions.iter().all(|c| c.holds(facts, work))
    }
}

impl Policy {
    /// Parses and validates the policy of a bucket.
    ///
    /// # Errors
    /// [`PolicyError`] naming the statement and field at fault.
    pub fn parse(text: &str, bucket: &str) -> Result<Self, PolicyError> {
        parse::parse(text, bucket)
    }

    /// What the policy says about a request. An explicit Deny wins over every Allow; so does a decision that takes too
    /// much work.
    pub fn evaluate(&self, attempt: &Attempt<'_>, facts: &dyn Facts) -> Verdict {
        let joined;
        let resource = match attempt.key {
            None => attempt.bucket,
            Some(key) => {
                joined = format!("{}/{key}", attempt.bucket);
                &joined
            }
        };
        let work = Work::of_decision();
        let mut verdict = Verdict::Silent;
        for statement in &self.statements {
            if statement.effect == Effect::Allow && verdict == Verdict::Allow {
                continue;
            }
            let applies = statement.applies_to(attempt, resource, facts, &work);
            if work.is_exhausted() {
                return Verdict::Deny;
            }
            if applies {
                match statement.effect {
                    Effect::Deny => return Verdict::Deny,
                    Effect::Allow => verdict = Verdict::Allow,
                }
            }
        }
        verdict
    }

    /// Whether some condition or variable looks at the tags of the stored object, which must then be read before
    /// evaluating.
    pub fn needs_object_tags(&self) -> bool {
        self.statements.iter().any(|s| {
            s.resources.iter().any(Pattern::names_object_tags)
                || s.conditions.iter().any(Condition::looks_at_object_tags)
        })
    }

    /// Whether the policy grants anything to everybody: an Allow for all principals that no condition narrows down to
    /// fixed users or networks. This is what GetBucketPolicyStatus tells.
    pub fn is_public(&self) -> bool {
        self.statements.iter().any(|s| {
            s.effect == Effect::Allow
                && (s.principal.everybody || s.principal.negated)
                && !s.conditions.iter().any(Condition::narrows_callers)
        })
    }

    /// Names of the users that statements name as principals, each once: a policy may name one thousands of times.
    pub fn users(&self) -> BTreeSet<&str> {
        self.statements.iter().flat_map(|s| &s.principal.users).map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests;
