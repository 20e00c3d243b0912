//! What the operator told the whole cluster to leave off for a while.
//!
//! It holds until it is taken back: it is bound to no session and to no node, so it outlives both. Every node follows
//! it as far as it sees; one that is cut off goes on by what it saw last.

use holdfast_protocol::NodeId;
use serde::{Deserialize, Serialize};

use super::{Coordination, CoordinationError, CoordinationResult, Versioned};

/// Since when something is paused, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// When it was asked for, in milliseconds since 1970.
    pub since_ms: u64,
    /// Who asked for it, as far as that is known.
    pub by: String,
    /// The node that was asked.
    pub node: NodeId,
}

/// All that is paused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pauses {
    /// Repairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repairs: Option<Pause>,
}

/// Pauses repairs on all nodes, or lets them go on, and returns what holds from then on. What is paused already stays
/// as it is.
///
/// # Errors
/// Those of [`Coordination::store_pauses`] but for conflicts.
pub async fn set_repair_pause(
    coordination: &dyn Coordination,
    wanted: Option<Pause>,
) -> CoordinationResult<Option<Pause>> {
    loop {
        let (version, mut pauses) = match coordination.pauses().await? {
            Some(Versioned { version, value }) => (Some(version), value),
            None => (None, Pauses::default()),
        };
        if pauses.repairs.is_some() == wanted.is_some() {
            return Ok(pauses.repairs);
        }
        pauses.repairs.clone_from(&wanted);
        match coordination.store_pauses(version, &pauses).await {
            Ok(_) => return Ok(wanted),
            Err(CoordinationError::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
    }
}
