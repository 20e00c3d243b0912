//! Queues of leases: who waits for one, and what is left when it is dropped.

use std::sync::Arc;

use holdfast_actors::ports::coordination::{
    CoordinationError, CoordinationResult, FencingToken, Lease, LeaseName, Ownership,
};
use holdfast_protocol::NodeId;
use tokio::sync::watch;

use super::{Candidate, InProcessCoordination, Shared, no_cluster};

impl InProcessCoordination {
    /// Takes a place in the queue of a lease; `None` where only a free one is wanted, and this one is not.
    pub(super) fn enqueue(
        &self,
        lease: &LeaseName,
        node: NodeId,
        only_if_free: bool,
    ) -> CoordinationResult<Option<Waiting>> {
        let session = self.inner.reach()?;
        let shared = &self.inner.shared;
        let mut state = shared.state.lock();
        state.check_session(session)?;
        if state.identity.is_none() {
            return Err(no_cluster());
        }
        let taken = state.queues.get(lease.as_str()).is_some_and(|q| !q.is_empty());
        if taken && only_if_free {
            return Ok(None);
        }
        let token = FencingToken(state.next());
        let (held, granted) = watch::channel(false);
        let candidate = Candidate { session, node, token, held };
        state.queues.entry(lease.as_str().to_owned()).or_default().push_back(candidate);
        shared.publish_leases(&mut state);
        Ok(Some(Waiting { shared: shared.clone(), name: lease.clone(), token, granted, taken: false }))
    }
}

/// A place in a queue; dropped, it is given up.
pub(super) struct Waiting {
    shared: Arc<Shared>,
    name: LeaseName,
    token: FencingToken,
    granted: watch::Receiver<bool>,
    taken: bool,
}

impl Waiting {
    pub(super) async fn wait(mut self, ownership: Ownership) -> CoordinationResult<Lease> {
        // The sender goes away without a grant when the session ends.
        if self.granted.wait_for(|granted| *granted).await.is_err() {
            return Err(CoordinationError::SessionExpired);
        }
        self.taken = true;
        let (shared, name, token) = (self.shared.clone(), self.name.clone(), self.token);
        let release = Box::new(move || -> futures::future::BoxFuture<'static, ()> {
            Box::pin(async move { shared.leave_queue(name.as_str(), token) })
        });
        let key = self.token.to_string();
        Ok(Lease::new(self.name.clone(), self.token, key, self.granted.clone(), ownership, release))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.taken {
            self.shared.leave_queue(self.name.as_str(), self.token);
        }
    }
}
