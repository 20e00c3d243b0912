//! How much a decision may cost.
//!
//! The text of a policy is its author's, and what it is compared with is the client's: a policy of 20 KiB and a header
//! of 32 KiB can ask for a billion comparisons. A decision that would take more steps than [`STEPS_MAX`] is not made:
//! it is a Deny. Policies that people write take a few thousand.

use std::cell::Cell;

/// The most steps of one decision: some ten milliseconds.
const STEPS_MAX: usize = 8 << 20;

/// What is left of the steps of one decision.
#[derive(Debug)]
pub(super) struct Work {
    left: Cell<Option<usize>>,
}

impl Work {
    /// The work of one decision.
    pub(super) fn of_decision() -> Self {
        Self { left: Cell::new(Some(STEPS_MAX)) }
    }

    /// Takes steps, before they are done. Whether they may be.
    pub(super) fn spend(&self, steps: usize) -> bool {
        let left = self.left.get().and_then(|left| left.checked_sub(steps));
        self.left.set(left);
        left.is_some()
    }

    /// Whether something was not done, so that what was found is not to be relied on.
    pub(super) fn is_exhausted(&self) -> bool {
        self.left.get().is_none()
    }
}
