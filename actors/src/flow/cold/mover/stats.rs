//! How moves ended.

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MoverStats {
    /// Moves claimed.
    pub claimed: u64,
    /// Moves done.
    pub moved: u64,
    /// Bytes of those.
    pub moved_bytes: u64,
    /// Moves done without moving anything: there were no bytes, or they lay there already.
    pub in_place: u64,
    /// Moves that had become pointless, before or while the bytes were moved: the version is gone or has another
    /// content.
    pub overtaken: u64,
    /// Moves that somebody else has taken over, or that this node must leave.
    pub lost: u64,
    /// Moves that failed, and will be tried again.
    pub failed: u64,
}

/// How a claimed move ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::flow::cold) enum Outcome {
    Moved { bytes: u64 },
    InPlace,
    Overtaken,
    Lost,
    Failed,
}

impl Outcome {
    pub(in crate::flow::cold) fn as_str(self) -> &'static str {
        match self {
            Self::Moved { .. } => "moved",
            Self::InPlace => "in_place",
            Self::Overtaken => "overtaken",
            Self::Lost => "lost",
            Self::Failed => "failed",
        }
    }
}

impl MoverStats {
    pub(super) fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Moved { bytes } => {
                self.moved += 1;
                self.moved_bytes += bytes;
            }
            Outcome::InPlace => self.in_place += 1,
            Outcome::Overtaken => self.overtaken += 1,
            Outcome::Lost => self.lost += 1,
            Outcome::Failed => self.failed += 1,
        }
    }
}
