//! How movers are paced.

use std::time::Duration;

/// How the work is paced.
#[derive(Debug, Clone)]
pub struct MoverSettings {
    /// How long a claim lasts if it is not renewed: after so long the moves of a node that died go on.
    pub claim: Duration,
    /// Time between looks for new moves and new tiers.
    pub poll: Duration,
    /// Moves at once, of one lane and on this node; of small objects four times as many.
    pub moves_per_tier: usize,
    /// Bytes a second, of all lanes on this node: those that go out or come in, and those that are read back. `None`:
    /// as fast as it goes.
    pub bytes_per_second: Option<u64>,
    /// For how long after the end of a claim pieces that its attempt reserved are left alone: longer than a request
    /// that was sent may take effect.
    pub piece_grace: Duration,
    /// The pause after the first failure of a move.
    pub backoff_min: Duration,
    /// The longest pause after failures of a move.
    pub backoff_max: Duration,
    /// For how long a tier that failed is left alone at first.
    pub breaker_min: Duration,
    /// For how long at most; moves that failed with the tier are tried again after that, too.
    pub breaker_max: Duration,
    /// How often one piece is tried before the attempt is given up: being stored, and being read back.
    pub piece_tries: u32,
    /// The pause after the first failure of a piece; doubled each time.
    pub piece_pause: Duration,
    /// Time for one call of the metadata, or for a tier to say whether it works.
    pub call_timeout: Duration,
    /// For how long after a leap of the clock nothing is claimed, and after the start nothing that was restored and
    /// goes back: by a wrong clock all restores are over, and the claims of others; none: clocks are not compared.
    pub hold: Duration,
}

impl Default for MoverSettings {
    /// Four moves a tier at full speed.
    fn default() -> Self {
        Self {
            claim: Duration::from_secs(120),
            poll: Duration::from_secs(5),
            moves_per_tier: 4,
            bytes_per_second: None,
            piece_grace: Duration::from_secs(3600),
            backoff_min: Duration::from_secs(5),
            backoff_max: Duration::from_secs(3600),
            breaker_min: Duration::from_secs(5),
            breaker_max: Duration::from_secs(300),
            piece_tries: 4,
            piece_pause: Duration::from_secs(1),
            call_timeout: Duration::from_secs(30),
            hold: Duration::from_secs(900),
        }
    }
}
