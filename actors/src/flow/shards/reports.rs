//! What other nodes report to the controller, between the replica service that takes it and the controller that acts on
//! it.

use std::collections::VecDeque;

use holdfast_protocol::NodeId;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::ports::peers::{PeerError, ShardReport};

/// Reports that may wait. Reporters repeat what was not heard, so more than this is refused without harm.
const REPORTS_MAX: usize = 16_384;

#[derive(Debug, Default)]
struct Inbox {
    open: bool,
    waiting: VecDeque<(NodeId, ShardReport)>,
}

/// A bounded queue that is open while this node is the controller.
#[derive(Debug, Default)]
pub struct ReportInbox {
    inbox: Mutex<Inbox>,
    arrived: Notify,
}

impl ReportInbox {
    /// Takes a report from `from`, whose identity was proven. That it was taken does not mean that it will be acted on:
    /// the reporter repeats it until the shard map shows that it was.
    ///
    /// # Errors
    /// [`PeerError::Fenced`] when this node is not the controller, [`PeerError::Busy`] when too many wait.
    pub fn push(&self, from: NodeId, report: ShardReport) -> Result<(), PeerError> {
        let mut inbox = self.inbox.lock();
        if !inbox.open {
            return Err(PeerError::Fenced);
        }
        let entry = (from, report);
        if inbox.waiting.contains(&entry) {
            return Ok(());
        }
        if inbox.waiting.len() >= REPORTS_MAX {
            return Err(PeerError::Busy);
        }
        inbox.waiting.push_back(entry);
        drop(inbox);
        self.arrived.notify_one();
        Ok(())
    }

    /// Opens or closes it; what waits is dropped.
    pub(crate) fn set_open(&self, open: bool) {
        let mut inbox = self.inbox.lock();
        inbox.open = open;
        inbox.waiting.clear();
    }

    /// Takes everything out.
    pub fn take(&self) -> VecDeque<(NodeId, ShardReport)> {
        std::mem::take(&mut self.inbox.lock().waiting)
    }

    /// Waits until something was put in.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::ShardId;

    use super::*;

    #[test]
    fn reports_are_refused_by_who_is_not_the_controller_and_not_queued_twice() {
        let inbox = ReportInbox::default();
        let report = ShardReport::DataLost { shard: ShardId(1) };
        assert!(matches!(inbox.push(NodeId::from(1), report.clone()), Err(PeerError::Fenced)));
        inbox.set_open(true);
        inbox.push(NodeId::from(1), report.clone()).unwrap();
        inbox.push(NodeId::from(1), report.clone()).unwrap();
        inbox.push(NodeId::from(2), report.clone()).unwrap();
        assert_eq!(inbox.take().len(), 2);
        inbox.push(NodeId::from(1), report).unwrap();
        inbox.set_open(false);
        assert!(inbox.take().is_empty());
    }
}
