//! Lifecycle rules of buckets: what they say, and what is due by them.
//!
//! All of it is pure. [`LifecycleRules`] is the stored form of a bucket's configuration, [`LifecycleRules::check`]
//! holds it against S3's rules. [`LifecycleRules::judge`] says of one version what is due now, and
//! [`LifecycleRules::streams`] says which versions have to be looked at at all: those of some age, in order of age.
//! Both use the same arithmetic of [`Day`]s, so that what a walk has passed is what was due when it passed. Moves to
//! other storage classes have their own module, as they are compared with each other.

mod day;
mod judge;
mod rules;
mod streams;
mod transitions;

pub use day::Day;
pub use judge::{Due, Known, LifecycleAction};
pub use rules::{
    Expiration, FilterForm, LifecycleRule, LifecycleRules, NoncurrentExpiration, RULES_MAX, RuleFault, RuleFilter,
};
pub use streams::{Stream, StreamKind};
pub use transitions::{NoncurrentTransition, Transition, TransitionMinimum, class_name};
