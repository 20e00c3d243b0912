//! Joins ports, adapters, actors and front ends into a running node.
//!
//! | module | what |
//! |---|---|
//! | `data_dir`, `limits`, `root`, `vault`, `storage`, `locks`, `journal`, `parts`, `front` | what every node is made of |
//! | `cluster`, `transport` | what makes a node one of a cluster, whatever stands behind the ports |
//! | `events` | the bus, and the relay to it |
//! | `lifecycle` | the loops that carry lifecycle rules out, and note reads for them |
//! | `tiers` | cold tiers, and the loops that move objects to and from them |
//! | `zookeeper` | a cluster of ZooKeeper, MySQL and QUIC |
//! | `dev` | a cluster in one process |
//! | `cluster_tools` | what is done to a node that is stopped: make a cluster, join one, save and rebuild metadata |
//!
//! **Order of the start.** The data directory is locked; the admin port answers that the node lives and is starting; in a
//! cluster, coordination is connected and the cluster compared with the one that the data directory belongs to; metadata and
//! disks are opened, each disk recovered; peers are served; actors start and look at them; in a cluster the node registers,
//! which fails if another process has its id; the root credential is made sure of; S3 is served, and the others are told so.
//! **Order of the stop.** The others are told, new requests are refused, those at hand end within the deadline; lifecycle rules are carried out and objects moved to and from cold tiers no more (a move that is cut off is begun anew by another node); events are published no more; in a cluster the actors of shards stop and peers are served no more; actors stop; the session ends, so that the others see the node
//! leave at once; metadata is closed, disks write their index files, and last the admin port goes. Whatever the stop leaves
//! out costs the next start time, never data: what was acknowledged is durable already.
//!
//! Several nodes can run in one process: nothing here is global but logs, metrics and the limits of the process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use holdfast_actors::flow::reclaim::{self, InFlightWrites, Reclaimer};
use holdfast_actors::flow::relay::RelayOwner;
use holdfast_actors::flow::report::Reporter;
use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::ports::coordination::{Coordination, NodeAddresses, NodeState};
use holdfast_actors::ports::peers::ReplicaService;
use holdfast_actors::ports::tiers::Tiers;
use holdfast_actors::ports::{ChunkStore, Clock, Disk, Locks, MetadataStore, SystemClock};
use holdfast_actors::service::cluster::{ClusterHandle, Findings};
use holdfast_actors::service::loops::LoopsHandle;
use holdfast_actors::service::{self, ChildKind, NodeHandle};
use holdfast_protocol::NodeId;
use holdfast_storage::DiskSet;
use holdfast_storage::buf::{LARGE_BYTES, SMALL_BYTES};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};

use crate::admin::{self, AdminParts, AdminState, ClusterAdmin, EventsAdmin, Pair, SecretSealer, Token};
use crate::chunks::{DiskChunks, EngineDisk, TrackedChunks};
use crate::config::Config;
use crate::http::server::HttpServer;
use crate::locks::InProcessLocks;
use crate::s3::auth::SecretOpener;
use crate::telemetry;

mod cluster;
pub mod cluster_tools;
mod data_dir;
pub mod dev;
mod events;
mod front;
mod journal;
mod lifecycle;
mod limits;
mod locks;
mod parts;
mod root;
mod storage;
mod tiers;
mod transport;
mod vault;
mod zookeeper;

use cluster::{ClusterPorts, JointParts};
use data_dir::DataDir;
pub use data_dir::InUse;
use events::RunningEvents;
use front::FrontParts;
use journal::JournalParts;
use lifecycle::LifecycleStart;
pub use root::{ROOT_USER, Root};
use tiers::{RunningTiers, TierParts};
use transport::Served;

/// How long actors, metadata and disks may take to stop, each.
const STOP_STEP_MAX: Duration = Duration::from_secs(10);

/// How often histograms are tidied, so that they do not grow between scrapes.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Seals and opens secrets.
pub trait Vault: SecretSealer + SecretOpener {
    /// As a sealer.
    fn sealer(&self) -> &dyn SecretSealer;
}

impl<T: SecretSealer + SecretOpener> Vault for T {
    fn sealer(&self) -> &dyn SecretSealer {
        self
    }
}

/// A node that serves requests. [`RunningNode::shutdown`] ends it cleanly; dropping it cuts everything off, as a crash would.
pub struct RunningNode {
    id: NodeId,
    s3_addr: SocketAddr,
    admin_addr: SocketAddr,
    root: Option<Pair>,
    actors: NodeHandle,
    cluster: Option<RunningCluster>,
    events: RunningEvents,
    lifecycle: LoopsHandle,
    tiers: RunningTiers,
    metadata: Arc<dyn MetadataStore>,
    disks: DiskSet,
    server: HttpServer,
    admin_stop: oneshot::Sender<()>,
    admin: JoinHandle<()>,
    upkeep: AbortOnDrop,
    shutdown_timeout: Duration,
    data_dir: DataDir,
}

/// What of a running node is there only in a cluster.
struct RunningCluster {
    actors: ClusterHandle,
    node_actors: NodeHandle,
    coordination: Arc<dyn Coordination>,
    served: Served,
    /// The transport within a process only borrows it.
    _service: Arc<dyn ReplicaService>,
    /// Whether others use the metadata after this node.
    shared_metadata: bool,
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

/// Aborts a task with its owner.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where a node gets its cluster from.
enum Setting {
    /// It is its own.
    Alone,
    /// From the services that the configuration names.
    Services,
    /// From the process that it is one node of.
    Process(dev::Shared),
}

/// Starts a node. Must be called on a multi-threaded runtime, on which actors and the admin API then live.
///
/// # Errors
/// When a part cannot be opened or an address cannot be bound, or when the cluster refuses the node; nothing is left running
/// then.
pub async fn start(config: Config, root: Root) -> anyhow::Result<RunningNode> {
    let setting = if config.cluster.is_on() { Setting::Services } else { Setting::Alone };
    start_in(setting, config, root).await
}

async fn start_in(setting: Setting, config: Config, root: Root) -> anyhow::Result<RunningNode> {
    let started = Instant::now();
    limits::raise_open_files();
    let metrics = telemetry::init_metrics()?;
    let data_dir = DataDir::open(&config.node.data_dir)?;
    let token = Token::read_or_create(&config.admin_token_file())?;

    let listener = TcpListener::bind(config.admin.addr)
        .await
        .with_context(|| format!("listen on admin.addr {}", config.admin.addr))?;
    let admin_addr = listener.local_addr().context("ask for the admin port")?;
    let admin_state = AdminState::default();
    let (admin_stop, stopped) = oneshot::channel::<()>();
    let admin = tokio::spawn(admin::serve(
        listener,
        admin_state.clone(),
        // A node that is dropped instead of stopped stops its admin API too.
        async move { drop(stopped.await) },
        STOP_STEP_MAX,
    ));

    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let shared_metadata = matches!(setting, Setting::Process(_));
    let ports = match setting {
        Setting::Alone => {
            if let Some(cluster) = data_dir.cluster_id()? {
                bail!(
                    "this node belongs to cluster {cluster}, but no cluster is configured: set cluster.zookeeper and \
                     metadata.url, or use another node.data_dir"
                );
            }
            None
        }
        Setting::Services => Some(zookeeper::connect(&config, &data_dir).await?),
        Setting::Process(shared) => Some(shared.ports(&data_dir).await?),
    };
    let vault = Arc::new(vault::open(&data_dir.file("node.secret"))?);
    let findings = Findings::new();
    // A node that runs alone is its own cluster.
    let cluster_id = ports.as_ref().map_or(data_dir.id(), |ports| *ports.identity.id.as_bytes());
    let node_name = if ports.is_some() { data_dir.node_id().to_string() } else { hex::encode(data_dir.id()) };
    let reporter = Reporter::new(node_name, clock.clone());
    let on_finding = ports.as_ref().map(|_| cluster::finding_sink(&findings));
    let on_finding = Some(journal::reporting(reporter.clone(), on_finding));
    let (opened, storage) = tokio::try_join!(
        open_metadata(&data_dir, ports.as_ref()),
        storage::open_disks(&config, cluster_id, data_dir.id(), on_finding)
    )?;
    let storage::Storage { disks, rings } = storage;
    let storage::Metadata { store: metadata, outbox, journal, tiers: ledger, reads, had_buckets } = opened;
    if !had_buckets {
        storage::refuse_lost_metadata(&disks, &metadata_place(&config, &data_dir))?;
    }

    let in_flight = InFlightWrites::new(config.cleanup.orphan_age.duration());
    let local: Arc<dyn ReplicaStore> = Arc::new(TrackedChunks::new(
        DiskChunks::new(disks.clone()),
        in_flight.clone(),
        config.limits.chunk_timeout.duration(),
    ));
    let disk_ports: Vec<Arc<dyn Disk>> =
        disks.disks().iter().map(|engine| Arc::new(EngineDisk::new(engine.clone())) as Arc<dyn Disk>).collect();

    let me = data_dir.node_id();
    let joint = match ports {
        None => None,
        Some(ports) => {
            let parts = JointParts {
                me,
                ports,
                local: local.clone(),
                disks: disk_ports.clone(),
                findings,
                clock: clock.clone(),
                reporter: reporter.clone(),
                buffers_bytes: config.storage.large_buffers as usize * LARGE_BYTES
                    + config.storage.small_buffers as usize * SMALL_BYTES,
            };
            Some(cluster::join_up(parts)?)
        }
    };
    let locks: Arc<dyn Locks> = match &joint {
        None => locks::choose(&config, &hex::encode(data_dir.id()), locks::in_process(InProcessLocks::new()))?,
        Some(joint) => joint.locks.clone(),
    };
    let chunks: Arc<dyn ChunkStore> = match &joint {
        None => local,
        Some(joint) => joint.chunks.clone(),
    };
    let reclaimer = Reclaimer {
        metadata: metadata.clone(),
        chunks: chunks.clone(),
        cluster: joint.as_ref().map(|joint| joint.duty(&config, started)),
        clock: clock.clone(),
        in_flight,
        limits: reclaim::Limits::default(),
    };
    let actors = service::start(parts::node_parts(&config, disk_ports.clone(), reclaimer, reporter.clone()));
    let actors = actors.await.context("start the actors")?;
    parts::first_look(&actors).await?;

    let mut config = config;
    let cluster = match joint {
        None => None,
        Some(joint) => {
            // Others are told the port before it is served.
            config.s3.addr = front::resolve_port(config.s3.addr)?;
            let addresses = addresses(&config, &joint.served, admin_addr);
            let announcement = cluster::announcement(&config, me, addresses);
            let started =
                joint.start(&config, announcement, disk_ports.clone(), metadata.clone(), clock.clone()).await?;
            Some((joint, started))
        }
    };
    let owner = match &cluster {
        None => RelayOwner::Alone,
        Some((joint, _)) => RelayOwner::Cluster { coordination: joint.coordination.clone(), me },
    };
    let tiers = TierParts {
        ledger,
        metadata: metadata.clone(),
        chunks: chunks.clone(),
        clock: clock.clone(),
        sealer: vault.clone(),
        opener: vault.clone(),
        reporter: reporter.clone(),
        me,
        ownership: cluster.as_ref().map(|(joint, _)| joint.coordination.ownership()),
        node_name: hex::encode(data_dir.id()),
    };
    let tiers = tiers::start(&config, tiers).await?;
    let known_tiers: Arc<dyn Tiers> = Arc::new(tiers.registry.clone());
    let (kept, reports) = (journal.clone(), reporter.clone());
    let (journal_clock, settings) = (clock.clone(), config.journal.clone());
    let filling = move |bus| {
        journal::worker(JournalParts { journal: kept, bus, reporter: reports, clock: journal_clock, config: settings })
    };
    let events = RunningEvents::start(&config, outbox.clone(), clock.clone(), owner.clone(), filling).await?;
    let root = root::ensure(&*metadata, &*vault, root, clock.now_ms()).await?;
    let front_name = hex::encode(data_dir.id());
    let lifecycle = LifecycleStart {
        metadata: metadata.clone(),
        tiers: known_tiers.clone(),
        reads,
        clock: clock.clone(),
        cluster: cluster.as_ref().map(|(joint, _)| joint.lifecycle_duty()),
        node_name: front_name.clone(),
    };
    let (lifecycle, recorder) = lifecycle::start(&config, lifecycle).await?;
    let front = FrontParts {
        metadata: metadata.clone(),
        chunks: chunks.clone(),
        cold: tiers.reads.clone(),
        tiers: known_tiers,
        reads: recorder,
        locks,
        clock: clock.clone(),
        opener: vault.clone(),
        actors: actors.clone(),
        rings,
        node_name: front_name,
        ownership: cluster.as_ref().map(|(joint, _)| joint.coordination.ownership()),
    };
    let server = front::serve_s3(&config, front)?;
    let s3_addr = server.local_addr();
    let node_id = if cluster.is_some() { me.to_string() } else { hex::encode(data_dir.id()) };
    let upkeep = spawn_upkeep(metrics.clone());
    admin_state.ready(AdminParts {
        metadata: metadata.clone(),
        journal,
        disks: disk_ports,
        chunks,
        node: actors.clone(),
        cluster: cluster.as_ref().map(|(joint, actors)| ClusterAdmin {
            identity: joint.identity.clone(),
            coordination: joint.coordination.clone(),
            view: joint.view.clone(),
            peers: joint.peers.clone(),
            local: joint.local.clone(),
            actors: actors.clone(),
            enrolment: joint.served.enrolment(),
            settled: Default::default(),
            backlog: Default::default(),
            others: Default::default(),
            has_cache: joint.cache.is_some(),
        }),
        clock,
        sealer: vault,
        tiers: tiers.registry.clone(),
        reporter,
        token,
        metrics,
        events: EventsAdmin { on: config.events.is_on(), bus: events.bus(), outbox, relay: events.status(), owner },
        node_id: node_id.clone(),
        s3_addr,
        started,
    });
    if let Some((_, actors)) = &cluster {
        actors.set_state(NodeState::Ready);
    }
    tracing::info!(
        node = node_id,
        s3 = %s3_addr,
        admin = %admin_addr,
        data_dir = %config.node.data_dir.display(),
        elapsed_ms = started.elapsed().as_millis() as u64,
        "node is ready"
    );
    let shutdown_timeout = config.node.shutdown_timeout.duration();
    Ok(RunningNode {
        id: me,
        s3_addr,
        admin_addr,
        root,
        cluster: cluster.map(|(joint, cluster_actors)| RunningCluster {
            actors: cluster_actors,
            node_actors: actors.clone(),
            coordination: joint.coordination,
            served: joint.served,
            _service: joint.service,
            shared_metadata,
        }),
        actors,
        events,
        lifecycle,
        tiers,
        metadata,
        disks,
        server,
        admin_stop,
        admin,
        upkeep,
        shutdown_timeout,
        data_dir,
    })
}

async fn open_metadata(data_dir: &DataDir, ports: Option<&ClusterPorts>) -> anyhow::Result<storage::Metadata> {
    match ports {
        None => storage::open_sqlite(&data_dir.file("metadata.sqlite")).await,
        Some(ports) => Ok(storage::Metadata {
            store: ports.metadata.clone(),
            outbox: ports.outbox.clone(),
            journal: ports.journal.clone(),
            tiers: ports.tiers.clone(),
            reads: ports.reads.clone(),
            had_buckets: ports.had_buckets,
        }),
    }
}

/// For messages.
fn metadata_place(config: &Config, data_dir: &DataDir) -> String {
    if config.metadata.url.is_empty() {
        data_dir.file("metadata.sqlite").display().to_string()
    } else {
        config.metadata.url.clone()
    }
}

fn addresses(config: &Config, served: &Served, admin_addr: SocketAddr) -> NodeAddresses {
    let told = |told: &Option<String>, bound: String| told.clone().unwrap_or(bound);
    NodeAddresses {
        peer: told(&config.cluster.advertise_peer, served.addr.clone()),
        s3: told(&config.cluster.advertise_s3, config.s3.addr.to_string()),
        admin: told(&config.cluster.advertise_admin, admin_addr.to_string()),
    }
}

/// Makes sure of a root credential in a data directory on which no node runs, and tells it.
///
/// # Errors
/// When the directory is in use; those of the metadata store.
pub async fn prepare_root(config: &Config, root: Root) -> anyhow::Result<Pair> {
    let data_dir = DataDir::open(&config.node.data_dir)?;
    let metadata = cluster_tools::open_metadata(config, &data_dir, cluster_tools::Claim::Require).await?;
    // After the check that a node of a cluster has joined: the secret comes with that.
    let vault = vault::open(&data_dir.file("node.secret"))?;
    let pair = root::ensure(&*metadata, &vault, root, SystemClock.now_ms()).await;
    metadata.close().await;
    zookeeper::invalidate_cache(config).await?;
    pair?.ok_or_else(|| anyhow!("no root credential was asked for"))
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
        self.admin_addr
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

    /// Every actor below the supervisor.
    pub fn actor_kinds(&self) -> Vec<ChildKind> {
        let disks = (0..self.disks.disks().len()).map(ChildKind::Disk);
        [ChildKind::Ingest, ChildKind::Cleanup].into_iter().chain(disks).collect()
    }

    /// Resolves when the actors have given up, or the cluster refuses the node for good, with the reason: the node must be
    /// stopped.
    pub async fn failed(&self) -> String {
        match &self.cluster {
            None => self.actors.failed().await,
            Some(cluster) => tokio::select! {
                reason = self.actors.failed() => reason,
                reason = cluster.actors.failed() => reason,
            },
        }
    }

    /// Stops cleanly; see the module's page for the order. Takes at most the configured time for requests to end, and some
    /// seconds for each other step.
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
            admin_stop,
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
        // An admin API that ended on its own has nobody to hear it.
        let _ = admin_stop.send(());
        step("stop the admin API", async { drop(admin.await) }).await;
        drop(data_dir);
    }
}

async fn step(what: &str, work: impl Future<Output = ()>) {
    if tokio::time::timeout(STOP_STEP_MAX, work).await.is_err() {
        tracing::warn!(what, "a step of the stop took too long");
    }
}

fn spawn_upkeep(metrics: PrometheusHandle) -> AbortOnDrop {
    let task = tokio::spawn(async move {
        let mut interval = tokio::time::interval(METRICS_UPKEEP);
        loop {
            interval.tick().await;
            metrics.run_upkeep();
        }
    });
    AbortOnDrop(task.abort_handle())
}
