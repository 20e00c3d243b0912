//! A node that serves, and how it stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_actors::ports::MetadataStore;
use holdfast_actors::ports::coordination::{Coordination, NodeState};
use holdfast_actors::ports::peers::ReplicaService;
use holdfast_actors::service::cluster::ClusterHandle;
use holdfast_actors::service::loops::LoopsHandle;
use holdfast_actors::service::{ChildKind, NodeHandle};
use holdfast_protocol::NodeId;
use holdfast_storage::DiskSet;
use tokio_util::task::AbortOnDropHandle;

use super::STOP_STEP_MAX;
use super::admin_server::AdminServer;
use super::data_dir::DataDir;
use super::events::RunningEvents;
use super::tiers::RunningTiers;
use super::transport::Served;
use crate::admin::Pair;
use crate::http::server::HttpServer;

/// A node that serves requests. [`RunningNode::shutdown`] ends it cleanly; dropping it cuts everything off, as a crash
/// would.
pub struct RunningNode {
    pub(super) id: NodeId,
    pub(super) s3_addr: SocketAddr,
    pub(super) root: Option<Pair>,
    pub(super) actors: NodeHandle,
    pub(super) cluster: Option<RunningCluster>,
    pub(super) events: RunningEvents,
    pub(super) lifecycle: LoopsHandle,
    pub(super) tiers: RunningTiers,
    pub(super) metadata: Arc<dyn MetadataStore>,
    pub(super) disks: DiskSet,
    pub(super) server: HttpServer,
    pub(super) admin: AdminServer,
    pub(super) upkeep: AbortOnDropHandle<()>,
    pub(super) shutdown_timeout: Duration,
    pub(super) data_dir: DataDir,
}

/// What of a running node is there only in a cluster.
pub(super) struct RunningCluster {
    pub(super) actors: ClusterHandle,
    pub(super) node_actors: NodeHandle,
    pub(super) coordination: Arc<dyn Coordination>,
    pub(super) served: Served,
    /// The transport within a process only borrows it.
    pub(super) _service: Arc<dyn ReplicaService>,
    /// Whether others use the metadata after this node.
    pub(super) shared_metadata: bool,
}

/// A crash does not say goodbye, but within a process actors have to be told that their node is gone.
impl Drop for RunningCluster {
    fn drop(&mut self) {
        let (actors, node_actors) = (self.actors.clone(), self.node_actors.clone());
        let coordination = self.coordination.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                actors.stop(Duration::ZERO).await;
                coordination.close().await;
                node_actors.stop(Duration::ZERO).await;
            });
        }
    }
}

impl RunningNode {
    /// The node's identity in a cluster.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Where S3 is served.
    pub fn s3_addr(&self) -> SocketAddr {
        self.s3_addr
    }

    /// Where the admin API is served.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.addr()
    }

    /// The root credential, if the start was allowed to know it.
    pub fn root(&self) -> Option<&Pair> {
        self.root.as_ref()
    }

    /// The actors, for tests of supervision.
    pub fn actors(&self) -> &NodeHandle {
        &self.actors
    }

    /// The actors of a cluster's node.
    pub fn cluster(&self) -> Option<&ClusterHandle> {
        self.cluster.as_ref().map(|cluster| &cluster.actors)
    }

    /// Kills the actor that fills the error log, for tests of supervision.
    pub fn kill_journal(&self) -> bool {
        self.events.kill_loop("journal")
    }

    /// Kills the actor that carries tasks out, for tests of supervision.
    pub fn kill_task_worker(&self) -> bool {
        self.events.kill_loop("tasks")
    }

    /// Every actor below the supervisor.
    pub fn actor_kinds(&self) -> Vec<ChildKind> {
        let disks = (0..self.disks.disks().len()).map(ChildKind::Disk);
        [ChildKind::Ingest, ChildKind::Cleanup].into_iter().chain(disks).collect()
    }

    /// Resolves when the actors have given up, the cluster refuses the node for good, or nothing serves S3 or peers any
    /// more, with the reason: the node must be stopped.
    pub async fn failed(&self) -> String {
        let in_cluster = async {
            match &self.cluster {
                None => std::future::pending().await,
                Some(cluster) => tokio::select! {
                    reason = cluster.actors.failed() => reason,
                    () = cluster.served.lost() => "peers are answered no more: the log says why".into(),
                },
            }
        };
        tokio::select! {
            reason = self.actors.failed() => reason,
            reason = in_cluster => reason,
            () = self.server.lost() => "nothing accepts connections to the S3 port any more".into(),
        }
    }

    /// Stops cleanly; see the module's page for the order. Takes at most the configured time for requests to end, and
    /// some seconds for each other step.
    pub async fn shutdown(self) {
        let Self {
            actors,
            cluster,
            events,
            lifecycle,
            tiers,
            metadata,
            disks,
            server,
            admin,
            upkeep,
            shutdown_timeout,
            data_dir,
            ..
        } = self;
        if let Some(cluster) = &cluster {
            cluster.actors.set_state(NodeState::Stopping);
        }
        actors.drain();
        let drained = server.shutdown(shutdown_timeout).await;
        if !drained.in_time {
            tracing::warn!(all_left = drained.all_left, "requests were cut off by the stop");
        }
        step("stop carrying out lifecycle rules", lifecycle.stop(STOP_STEP_MAX)).await;
        step("stop moving objects to and from cold tiers", tiers.stop(STOP_STEP_MAX)).await;
        step("stop publishing events", events.stop(STOP_STEP_MAX)).await;
        let mut close_metadata = true;
        if let Some(mut cluster) = cluster {
            cluster.actors.stop(STOP_STEP_MAX).await;
            step("stop serving peers", cluster.served.stop()).await;
            step("end the session", cluster.coordination.close()).await;
            close_metadata = !cluster.shared_metadata;
        }
        actors.stop(STOP_STEP_MAX).await;
        if close_metadata {
            step("close metadata", metadata.close()).await;
        }
        step("write index files", async {
            if let Err(error) = disks.shutdown().await {
                tracing::warn!(%error, "write index files: the next start scans");
            }
        })
        .await;
        drop(upkeep);
        step("stop the admin API", admin.stop()).await;
        drop(data_dir);
    }
}

async fn step(what: &str, work: impl Future<Output = ()>) {
    if tokio::time::timeout(STOP_STEP_MAX, work).await.is_err() {
        tracing::warn!(what, "a step of the stop took too long");
    }
}
