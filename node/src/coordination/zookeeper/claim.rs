//! By which name a process registers, and what it may replace.

use super::stored::nonce;

/// How many processes that are dead are remembered at most: a node may be killed again before it took the place of the
/// one before.
const DEAD_MAX: usize = 16;

/// The name by which a process registers. Whoever registers the same node id under another name lives, as far as can be
/// known here, and is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    owner: String,
    dead: Vec<String>,
}

impl Claim {
    /// A new name. What one of `dead` registered is replaced without waiting for the end of its session: these
    /// processes are **dead for certain**, since one that lives counts on its registration.
    pub fn replacing(mut dead: Vec<String>) -> Self {
        dead.drain(..dead.len().saturating_sub(DEAD_MAX));
        Self { owner: nonce(), dead }
    }

    /// The name, and those of the dead, the oldest first: what the next process may replace when this one is dead.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.dead.iter().chain([&self.owner]).map(String::as_str)
    }

    /// The name.
    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    /// Whether what was registered under `owner` may be replaced at once.
    pub(super) fn covers(&self, owner: &str) -> bool {
        self.names().any(|name| name == owner)
    }
}

impl Default for Claim {
    fn default() -> Self {
        Self::replacing(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_latest_of_the_dead_are_remembered() {
        let dead: Vec<String> = (0..DEAD_MAX + 2).map(|n| n.to_string()).collect();
        let claim = Claim::replacing(dead);
        assert!(!claim.covers("1") && claim.covers("2") && claim.covers(claim.owner()));
        let next = Claim::replacing(claim.names().map(str::to_owned).collect());
        assert!(next.covers(claim.owner()) && !next.covers("2"));
        assert_ne!(Claim::default().owner(), Claim::default().owner());
    }
}
