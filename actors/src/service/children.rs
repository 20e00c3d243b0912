//! What all supervisors have in common: how long they wait for a child, and how they learn that one ended.

use std::time::Duration;

use ractor::{ActorId, SupervisionEvent};

/// Pause before a child that ended is started again.
pub(super) const RESPAWN_DELAY: Duration = Duration::from_millis(50);
/// How long a child may take to end on a stop before it is killed.
pub(super) const CHILD_STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Which child ended, and why; `None` if `event` tells of something else.
pub(super) fn ended(event: SupervisionEvent) -> Option<(ActorId, String)> {
    match event {
        SupervisionEvent::ActorTerminated(cell, _, reason) => {
            Some((cell.get_id(), reason.unwrap_or_else(|| "stopped".into())))
        }
        SupervisionEvent::ActorFailed(cell, error) => Some((cell.get_id(), error.to_string())),
        _ => None,
    }
}
