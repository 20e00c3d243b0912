//! What is told of a move that is done.

use holdfast_protocol::EventName;

use crate::domain::events::EventDraft;
use crate::flow::lifecycle::{LifecycleTeller, draft};
use crate::ports::metadata::{Bucket, MoveReason};

/// The event of a move in this bucket, of any direction.
pub(super) fn draft_of_move(teller: &LifecycleTeller, bucket: &Bucket, reason: MoveReason) -> EventDraft {
    let name = match reason {
        MoveReason::Stored | MoveReason::Lifecycle | MoveReason::Command => EventName::LifecycleTransition,
        MoveReason::Restore { .. } => EventName::RestoreCompleted,
        MoveReason::Return => EventName::RestoreDelete,
    };
    EventDraft { name, ..draft(teller, bucket) }
}
