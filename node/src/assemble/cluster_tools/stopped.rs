//! A cluster whose nodes are stopped, for as long as a tool fills its metadata.
//!
//! A node takes the chunks of whatever is not in the metadata for left over, and deletes them. So a tool holds a lease
//! under which no node starts, and looks for nodes when it has the lease; a node looks for the lease when it is
//! registered. Filling may take hours. Where the session ends meanwhile the lease is taken anew, and nodes are looked
//! for again: one that is started over and over, as by a supervisor, may have come in.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::FutureExt as _;
use holdfast_actors::ports::coordination::{Coordination, CoordinationError, FILLING, Lease, LeaseName};
use holdfast_protocol::NodeId;
use tokio::time::{Instant, sleep, timeout};

use super::Taken;

/// Pause between looks and tries.
const RETRY: Duration = Duration::from_secs(1);

/// A cluster whose nodes are stopped. While this is kept none starts, and no other tool fills the metadata.
pub(in crate::assemble) struct Stopped {
    coordination: Arc<dyn Coordination>,
    node: NodeId,
    patience: Duration,
    lease: Option<Lease>,
}

impl Stopped {
    /// Begins when no node runs and no other tool is at work. What was killed counts until its session is over, which
    /// takes no longer than `patience`. `node` is what the others see.
    ///
    /// # Errors
    /// When one runs; when the coordination service does not answer.
    pub(in crate::assemble) async fn begin(
        coordination: Arc<dyn Coordination>,
        node: NodeId,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let mut stopped = Self { coordination, node, patience, lease: None };
        match stopped.take().await {
            Ok(()) => Ok(stopped),
            Err(error) => {
                stopped.end().await;
                Err(error)
            }
        }
    }

    /// Does what has to be alone; `None`: nobody else is there. It breaks off when a node has started.
    ///
    /// # Errors
    /// Those of `work`; as [`Stopped::begin`].
    pub(super) async fn during<T>(
        stopped: Option<&mut Self>,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let Some(stopped) = stopped else { return work.await };
        tokio::select! {
            biased;
            done = work => done,
            error = stopped.broken() => Err(error.context("the session in ZooKeeper ended, and nodes may have started")),
        }
    }

    /// Nodes may start.
    pub(in crate::assemble) async fn end(self) {
        if let Some(lease) = self.lease {
            lease.release().await;
        }
        self.coordination.close().await;
    }

    /// Where the cluster is agreed upon.
    pub(super) fn coordination(&self) -> Arc<dyn Coordination> {
        self.coordination.clone()
    }

    /// Takes the lease, if it is not held, and looks for nodes.
    async fn take(&mut self) -> anyhow::Result<()> {
        let is_held = self.lease.as_ref().is_some_and(|lease| lease.watch_lost().now_or_never().is_none());
        if !is_held {
            let name = LeaseName::new(FILLING).context("name the lease of tools")?;
            // First, so that a node that starts sees it, or is seen.
            self.lease = match timeout(self.patience, self.coordination.acquire(&name, self.node)).await {
                Ok(Ok(lease)) => Some(lease),
                // Where there is no cluster nobody holds anything.
                Ok(Err(CoordinationError::NotFound(_))) => None,
                Ok(Err(error)) => return Err(error).context("see to it that no node starts meanwhile"),
                Err(_) => bail!(Taken(
                    "`holdfast cluster restore-metadata` or `rebuild-metadata` is at work already: run one at a time"
                        .into()
                )),
            };
        }
        let until = Instant::now() + self.patience;
        let alive = loop {
            match self.coordination.cache_seen().await {
                Ok(alive) if !alive.is_empty() && Instant::now() < until => sleep(RETRY).await,
                alive => break alive.context("ask which nodes of the cluster run")?,
            }
        };
        let nodes: Vec<String> = alive.keys().map(ToString::to_string).collect();
        if nodes.is_empty() {
            return Ok(());
        }
        bail!(Taken(format!(
            "nodes of the cluster run, and would delete chunks that the metadata does not know yet: stop {}",
            nodes.join(", ")
        )))
    }

    /// Resolves when nodes cannot be kept from starting any more, or one has started.
    async fn broken(&mut self) -> anyhow::Error {
        loop {
            match self.lease.as_ref().map(Lease::watch_lost) {
                Some(lost) => lost.await,
                None => pending().await,
            }
            tracing::warn!("the session in ZooKeeper ended: it is begun anew, and nodes are looked for again");
            if let Err(error) = self.take_again().await {
                return error;
            }
        }
    }

    async fn take_again(&mut self) -> anyhow::Result<()> {
        loop {
            let taken = match self.coordination.renew_session().await {
                Ok(()) => self.take().await,
                Err(error) => Err(error.into()),
            };
            let Err(error) = taken else { return Ok(()) };
            match error.downcast_ref::<CoordinationError>() {
                // No node can start without it, either.
                Some(
                    CoordinationError::Unavailable(_)
                    | CoordinationError::Unknown(_)
                    | CoordinationError::SessionExpired
                    | CoordinationError::LeaseLost(_),
                ) => sleep(RETRY).await,
                _ => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_actors::ports::coordination::conformance::announcement;
    use holdfast_actors::ports::coordination::{ClusterIdentity, LeaseTable};
    use holdfast_protocol::cluster::LayoutDocument;
    use tokio::sync::{oneshot, watch};

    use super::*;
    use crate::coordination::InProcessCluster;

    const PATIENCE: Duration = Duration::from_secs(30);

    async fn shown(leases: &mut watch::Receiver<Arc<LeaseTable>>, is_taken: bool) {
        let changed = leases.wait_for(|table| table.contains_key(FILLING) == is_taken);
        timeout(PATIENCE, changed).await.unwrap().map(drop).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_tool_outlives_its_session_unless_a_node_starts_meanwhile() {
        let cluster = InProcessCluster::new(Duration::from_millis(300));
        let (founder, tool) = (cluster.participant(), cluster.participant());
        let identity = ClusterIdentity::new(16, 1);
        founder.create_cluster(&identity, &LayoutDocument::new(3)).await.unwrap();
        let mut leases = founder.leases();
        let patience = Duration::from_secs(3);
        let mut stopped = Stopped::begin(Arc::new(tool.clone()), NodeId::from(9), patience).await.unwrap();
        shown(&mut leases, true).await;

        let (end, ended) = oneshot::channel::<()>();
        let work = async { ended.await.map(|()| "all of it").context("it goes on") };
        let meanwhile = async {
            tool.cut();
            shown(&mut leases, false).await;
            tool.restore();
            shown(&mut leases, true).await;
            end.send(()).unwrap();
        };
        let (done, ()) = tokio::join!(Stopped::during(Some(&mut stopped), work), meanwhile);
        assert_eq!(done.unwrap(), "all of it");

        let work = pending::<anyhow::Result<()>>();
        let meanwhile = async {
            tool.cut();
            shown(&mut leases, false).await;
            founder.register(identity.id, announcement(1)).await.unwrap();
            tool.restore();
        };
        let broken = async { tokio::join!(Stopped::during(Some(&mut stopped), work), meanwhile).0 };
        let error = timeout(PATIENCE, broken).await.unwrap().unwrap_err();
        assert!(
            error.downcast_ref::<Taken>().is_some_and(|taken| taken.0.contains("nodes of the cluster run")),
            "{error:#}"
        );
        stopped.end().await;
        shown(&mut leases, false).await;
        let again = Stopped::begin(Arc::new(cluster.participant()), NodeId::from(9), Duration::from_millis(10)).await;
        assert!(again.is_err_and(|error| error.is::<Taken>()), "a node runs");
        shown(&mut leases, false).await;
    }
}
