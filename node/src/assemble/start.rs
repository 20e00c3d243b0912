//! The start of a node; the order is on the page of the [parent](super).
//!
//! Three steps: [`open()`] opens what is here, takes the node's place and starts its actors, [`register`] lets the
//! others know of it, [`serve`] begins to serve. What each part is given stands in `wiring`.
//!
//! **Order of bindings.** A step that fails is left by `?`, and nearly all that was begun ends by being dropped:
//! bindings in the reverse of their order, fields of a struct in theirs, which are so written from the last one made to
//! the first. Whatever works on something else ends before that: loops before the ports that they use, peers are served
//! no more before the disks are let go of, then the admin API ends, and nearly at last the data directory is unlocked.
//! So a new binding belongs behind all that it uses, and a new field before. What does not end by being dropped is in
//! [`Begun`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_actors::flow::reclaim::{self, Reclaimer};
use holdfast_actors::flow::report::Reporter;
use holdfast_actors::ports::coordination::NodeState;
use holdfast_actors::ports::tiers::Tiers;
use holdfast_actors::ports::{ChunkStore, Clock, EventBus, Locks, SystemClock};
use holdfast_actors::service::cluster::{ClusterHandle, Findings};
use holdfast_actors::service::{self, LoopSpec, NodeHandle};
use holdfast_protocol::NodeId;
use holdfast_storage::DiskSet;
use holdfast_storage::buf::BufferPool;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::task::AbortOnDropHandle;

use self::opened::{LocalDisks, Stores};
use super::admin_server::AdminServer;
use super::cluster::{self, Joint, Registration};
use super::data_dir::DataDir;
use super::events::{self, RunningEvents};
use super::front::{self, FrontParts, Prepared};
use super::running::{RunningCluster, RunningNode};
use super::storage::{Metadata, Storage};
use super::tasks::{self, TaskParts};
use super::vault::{self, NodeVault};
use super::{Root, STOP_STEP_MAX, Setting, journal, lifecycle, limits, locks, parts, root, tiers};
use crate::admin::{AdminParts, AdminState, EventsAdmin, Token};
use crate::config::Config;
use crate::locks::InProcessLocks;
use crate::telemetry;

mod opened;
mod wiring;

/// How often histograms are tidied, so that they do not grow between scrapes.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

pub(super) async fn start_in(setting: Setting, config: Config, root: Root) -> anyhow::Result<RunningNode> {
    let mut begun = Begun::default();
    let started = start_parts(setting, config, root, &mut begun).await;
    if started.is_err() {
        if let Some(registration) = begun.registration {
            registration.withdraw().await;
        }
        if let Some(actors) = begun.actors {
            actors.stop(STOP_STEP_MAX).await;
        }
    }
    started
}

/// What a start that fails has to take back, since nothing ends it by being dropped.
#[derive(Default)]
struct Begun {
    /// They would go on cleaning up, and keep the disks open.
    actors: Option<NodeHandle>,
    /// There from when on the others know of the node.
    registration: Option<Registration>,
}

/// What a node has before it looks at its data.
struct Base {
    admin: AdminServer,
    admin_state: AdminState,
    token: Token,
    data_dir: DataDir,
    metrics: PrometheusHandle,
    started: Instant,
}

impl Base {
    async fn make(config: &Config) -> anyhow::Result<Self> {
        let started = Instant::now();
        limits::raise_open_files();
        let metrics = telemetry::init_metrics()?;
        let data_dir = DataDir::open(&config.node.data_dir)?;
        data_dir.refuse_unfinished()?;
        let token = Token::read_or_create(&config.admin_token_file())?;
        let admin_state = AdminState::default();
        let admin = AdminServer::start(config.admin.addr, admin_state.clone()).await?;
        Ok(Self { admin, admin_state, token, data_dir, metrics, started })
    }
}

/// What nearly every part is given. When it is dropped does not matter.
struct Common {
    clock: Arc<dyn Clock>,
    vault: Arc<NodeVault>,
    reporter: Reporter,
    me: NodeId,
    /// The whole identity of the data directory: names the node in answers and events.
    data_dir_name: String,
    /// Names the node to operators.
    node_name: String,
}

impl Common {
    fn make(data_dir: &DataDir, in_cluster: bool) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let vault = Arc::new(vault::of(data_dir)?);
        let (me, data_dir_name) = (data_dir.node_id(), hex::encode(data_dir.id()));
        let node_name = if in_cluster { me.to_string() } else { data_dir_name.clone() };
        let reporter = Reporter::new(node_name.clone(), clock.clone());
        Ok(Self { clock, vault, reporter, me, data_dir_name, node_name })
    }
}

/// A node that the others do not know of yet: its data is open and its actors work.
struct Unregistered {
    actors: NodeHandle,
    /// The loop that carries tasks out.
    worker: LoopSpec,
    bus: Arc<dyn EventBus>,
    /// This node's, or in a cluster those of all nodes.
    chunks: Arc<dyn ChunkStore>,
    locks: Arc<dyn Locks>,
    /// In a cluster, until the node is registered.
    joint: Option<Joint>,
    local: LocalDisks,
    metadata: Metadata,
    rings: Option<Arc<BufferPool>>,
    disks: DiskSet,
    common: Common,
    /// Whether the nodes of this process have one database.
    shared_metadata: bool,
    base: Base,
}

/// What a node of a cluster has once it is registered.
struct Member {
    joint: Joint,
    actors: ClusterHandle,
}

async fn start_parts(
    setting: Setting,
    mut config: Config,
    root: Root,
    begun: &mut Begun,
) -> anyhow::Result<RunningNode> {
    let mut node = open(setting, &config, begun).await?;
    // Whatever can refuse a start by itself comes before others are told of the node.
    root::check(&*node.metadata.store, &node.common.vault, &root).await?;
    let prepared = front::prepare(&config)?;
    let member = register(&mut config, &mut node, begun).await?;
    serve(config, node, prepared, member, root).await
}

/// Opens the node's data, serves it to peers where there are some, and starts the actors.
async fn open(setting: Setting, config: &Config, begun: &mut Begun) -> anyhow::Result<Unregistered> {
    let base = Base::make(config).await?;
    let shared_metadata = matches!(setting, Setting::Process(_));
    let ports = opened::cluster_ports(setting, config, &base.data_dir).await?;
    let common = Common::make(&base.data_dir, ports.is_some())?;
    let findings = Findings::new();
    let stores = opened::open_stores(config, &base.data_dir, ports.as_ref(), &findings, &common.reporter).await?;
    let Stores { storage: Storage { disks, rings }, metadata } = stores;
    let local = LocalDisks::new(config, &disks);
    let joint = match ports {
        None => None,
        Some(ports) => Some(cluster::join_up(wiring::joint_parts(config, &common, ports, &local, findings))?),
    };
    let locks: Arc<dyn Locks> = match &joint {
        None => locks::choose(config, &common.data_dir_name, locks::in_process(InProcessLocks::new()))?,
        Some(joint) => joint.locks.clone(),
    };
    let chunks: Arc<dyn ChunkStore> = match &joint {
        None => local.chunks.clone(),
        Some(joint) => joint.chunks.clone(),
    };
    let reclaimer = Reclaimer {
        metadata: metadata.store.clone(),
        chunks: chunks.clone(),
        cluster: joint.as_ref().map(|joint| joint.duty(config, base.started)),
        clock: common.clock.clone(),
        in_flight: local.in_flight.clone(),
        limits: reclaim::Limits::default(),
    };
    let bus = events::bus(&config.events)?;
    let task_parts = TaskParts {
        reclaimer,
        bus: bus.clone(),
        journal: metadata.journal.clone(),
        reporter: common.reporter.clone(),
        clock: common.clock.clone(),
    };
    let (dispatcher, worker) = tasks::make(config, task_parts);
    let actors = service::start(parts::node_parts(config, local.disks.clone(), dispatcher, common.reporter.clone()));
    let actors = actors.await.context("start the actors")?;
    begun.actors = Some(actors.clone());
    parts::first_look(&actors).await?;
    Ok(Unregistered {
        actors,
        worker,
        bus,
        chunks,
        locks,
        joint,
        local,
        metadata,
        rings,
        disks,
        common,
        shared_metadata,
        base,
    })
}

/// Lets the other nodes know of this one, if it has a cluster.
async fn register(config: &mut Config, node: &mut Unregistered, begun: &mut Begun) -> anyhow::Result<Option<Member>> {
    let Some(joint) = node.joint.take() else { return Ok(None) };
    // Others are told the port before it is served.
    config.s3.addr = front::free_addr(config.s3.addr)?;
    let announcement = wiring::announcement(config, node.common.me, &joint.served, node.base.admin.addr());
    let (disks, metadata) = (node.local.disks.clone(), node.metadata.store.clone());
    let actors = joint.start(config, announcement, disks, metadata, node.common.clock.clone()).await?;
    begun.registration = Some(joint.registration(&actors));
    Ok(Some(Member { joint, actors }))
}

/// Starts the loops, makes sure of the root credential, and serves.
async fn serve(
    config: Config,
    node: Unregistered,
    prepared: Prepared,
    member: Option<Member>,
    root: Root,
) -> anyhow::Result<RunningNode> {
    let (common, metadata) = (&node.common, &node.metadata);
    let owner = wiring::relay_owner(common, member.as_ref());
    let tier_parts = wiring::tier_parts(&node, member.as_ref());
    let tiers = tiers::start(&config, tier_parts).await?;
    let known_tiers: Arc<dyn Tiers> = Arc::new(tiers.registry.clone());
    let consumers = vec![journal::worker(wiring::journal_parts(&config, &node)), node.worker.clone()];
    let (bus, outbox, clock) = (node.bus.clone(), metadata.outbox.clone(), common.clock.clone());
    let events = RunningEvents::start(&config, bus, outbox, clock, owner.clone(), consumers).await?;
    let root = root::ensure(&*metadata.store, &common.vault, root, common.clock.now_ms()).await?;
    let lifecycle_start = wiring::lifecycle_start(&node, known_tiers.clone(), member.as_ref());
    let (lifecycle, recorder) = lifecycle::start(&config, lifecycle_start).await?;
    let front = FrontParts {
        metadata: metadata.store.clone(),
        chunks: node.chunks.clone(),
        cold: tiers.reads.clone(),
        tiers: known_tiers,
        reads: recorder,
        locks: node.locks.clone(),
        clock: common.clock.clone(),
        opener: common.vault.clone(),
        actors: node.actors.clone(),
        rings: node.rings.clone(),
        node_name: common.data_dir_name.clone(),
        ownership: member.as_ref().map(|member| member.joint.coordination.ownership()),
    };
    let server = front::serve_s3(&config, prepared, front)?;
    let (s3_addr, admin_addr, started) = (server.local_addr(), node.base.admin.addr(), node.base.started);
    let upkeep = spawn_upkeep(node.base.metrics.clone());
    let (bus, outbox) = (events.bus(), metadata.outbox.clone());
    node.base.admin_state.ready(AdminParts {
        metadata: metadata.store.clone(),
        journal: metadata.journal.clone(),
        disks: node.local.disks,
        local: node.local.chunks,
        node: node.actors.clone(),
        cluster: member.as_ref().map(|member| member.joint.admin(member.actors.clone())),
        clock: common.clock.clone(),
        sealer: common.vault.clone(),
        tiers: tiers.registry.clone(),
        reporter: common.reporter.clone(),
        token: node.base.token,
        metrics: node.base.metrics,
        events: EventsAdmin { on: config.events.is_on(), bus, outbox, relay: events.status(), owner },
        node_id: common.node_name.clone(),
        s3_addr,
        started,
    });
    if let Some(member) = &member {
        member.actors.set_state(NodeState::Ready);
    }
    tracing::info!(
        node = common.node_name,
        s3 = %s3_addr,
        admin = %admin_addr,
        data_dir = %config.node.data_dir.display(),
        elapsed_ms = started.elapsed().as_millis() as u64,
        "node is ready"
    );
    Ok(RunningNode {
        id: common.me,
        s3_addr,
        root,
        cluster: member.map(|Member { joint, actors }| RunningCluster {
            actors,
            node_actors: node.actors.clone(),
            coordination: joint.coordination,
            served: joint.served,
            _service: joint.service,
            shared_metadata: node.shared_metadata,
        }),
        actors: node.actors,
        events,
        lifecycle,
        tiers,
        metadata: node.metadata.store,
        disks: node.disks,
        server,
        admin: node.base.admin,
        upkeep,
        shutdown_timeout: config.node.shutdown_timeout.duration(),
        data_dir: node.base.data_dir,
    })
}

fn spawn_upkeep(metrics: PrometheusHandle) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut interval = tokio::time::interval(METRICS_UPKEEP);
        loop {
            interval.tick().await;
            metrics.run_upkeep();
        }
    }))
}
