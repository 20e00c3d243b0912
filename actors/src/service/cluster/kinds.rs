//! The loops, by name.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::flow::shards::{Context, compare, controller, leftovers, membership, rebuild, repair};
use crate::service::loops::LoopSpec;

/// A loop of [`crate::flow::shards`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LoopKind {
    /// Registration.
    Membership,
    /// The controller, or a candidate.
    Controller,
    /// Joins.
    Rebuild,
    /// Chunks that need not be here.
    Leftovers,
    /// Repairs.
    Repair,
    /// Comparisons.
    Comparison,
}

impl LoopKind {
    /// All of them, in the order in which they are started.
    pub const ALL: [Self; 6] =
        [Self::Membership, Self::Controller, Self::Rebuild, Self::Leftovers, Self::Repair, Self::Comparison];

    /// For logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Membership => "membership",
            Self::Controller => "controller",
            Self::Rebuild => "rebuild",
            Self::Leftovers => "leftovers",
            Self::Repair => "repair",
            Self::Comparison => "comparison",
        }
    }

    pub(super) fn spec(self, context: Context) -> LoopSpec {
        LoopSpec { name: self.as_str(), run: Arc::new(move || self.run(context.clone())) }
    }

    fn run(self, context: Context) -> BoxFuture<'static, String> {
        match self {
            Self::Membership => membership::run(context).boxed(),
            Self::Controller => controller::run(context).boxed(),
            Self::Rebuild => rebuild::run(context).boxed(),
            Self::Leftovers => leftovers::run(context).boxed(),
            Self::Repair => repair::run(context).boxed(),
            Self::Comparison => compare::run(context).boxed(),
        }
    }
}
