//! The start of a node; the order is on the page of the [parent](super).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use holdfast_actors::flow::reclaim::{self, InFlightWrites, Reclaimer};
use holdfast_actors::flow::relay::RelayOwner;
use holdfast_actors::flow::report::Reporter;
use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::ports::coordination::{NodeAddresses, NodeState};
use holdfast_actors::ports::tiers::Tiers;
use holdfast_actors::ports::{ChunkStore, Clock, Disk, Locks, SystemClock};
use holdfast_actors::service::cluster::Findings;
use holdfast_actors::service::{self, NodeHandle};
use holdfast_storage::buf::{LARGE_BYTES, SMALL_BYTES};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::task::AbortOnDropHandle;

use super::admin_server::AdminServer;
use super::cluster::{self, ClusterPorts, JointParts, Registration};
use super::data_dir::DataDir;
use super::events::{self, RunningEvents};
use super::front::{self, FrontParts};
use super::journal::{self, JournalParts};
use super::lifecycle::{self, LifecycleStart};
use super::running::{RunningCluster, RunningNode};
use super::tasks::{self, TaskParts};
use super::tiers::{self, TierParts};
use super::transport::Served;
use super::{Root, STOP_STEP_MAX, Setting, limits, locks, parts, root, storage, vault, zookeeper};
use crate::admin::{AdminParts, AdminState, EventsAdmin, Token};
use crate::chunks::{DiskChunks, EngineDisk, TrackedChunks};
use crate::config::Config;
use crate::locks::InProcessLocks;
use crate::telemetry;
use crate::tiers::Counts;

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

/// The start itself.
async fn start_parts(setting: Setting, config: Config, root: Root, begun: &mut Begun) -> anyhow::Result<RunningNode> {
    let started = Instant::now();
    limits::raise_open_files();
    let metrics = telemetry::init_metrics()?;
    let data_dir = DataDir::open(&config.node.data_dir)?;
    data_dir.refuse_unfinished()?;
    let token = Token::read_or_create(&config.admin_token_file())?;

    let admin_state = AdminState::default();
    let admin = AdminServer::start(config.admin.addr, admin_state.clone()).await?;

    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let shared_metadata = matches!(setting, Setting::Process(_));
    let ports = cluster_ports(setting, &config, &data_dir).await?;
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
        storage::open_disks(&config, cluster_id, &data_dir, on_finding)
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
    let bus = events::bus(&config.events)?;
    let task_parts = TaskParts {
        reclaimer,
        bus: bus.clone(),
        journal: journal.clone(),
        reporter: reporter.clone(),
        clock: clock.clone(),
    };
    let (dispatcher, worker) = tasks::make(&config, task_parts);
    let actors = service::start(parts::node_parts(&config, disk_ports.clone(), dispatcher, reporter.clone()));
    let actors = actors.await.context("start the actors")?;
    begun.actors = Some(actors.clone());
    parts::first_look(&actors).await?;

    let mut config = config;
    // Whatever can refuse a start by itself comes before others are told of the node.
    root::check(&*metadata, &vault, &root).await?;
    let prepared = front::prepare(&config)?;
    let cluster = match joint {
        None => None,
        Some(joint) => {
            // Others are told the port before it is served.
            config.s3.addr = front::free_addr(config.s3.addr)?;
            let addresses = addresses(&config, &joint.served, admin.addr());
            let announcement = cluster::announcement(&config, me, addresses);
            let started =
                joint.start(&config, announcement, disk_ports.clone(), metadata.clone(), clock.clone()).await?;
            begun.registration = Some(joint.registration(&started));
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
        counts: cluster.as_ref().map_or_else(|| Arc::new(|| true) as Counts, |(joint, _)| joint.counts()),
    };
    let tiers = tiers::start(&config, tiers).await?;
    let known_tiers: Arc<dyn Tiers> = Arc::new(tiers.registry.clone());
    let filling = journal::worker(JournalParts {
        journal: journal.clone(),
        bus: bus.clone(),
        reporter: reporter.clone(),
        clock: clock.clone(),
        config: config.journal.clone(),
    });
    let consumers = vec![filling, worker];
    let events = RunningEvents::start(&config, bus, outbox.clone(), clock.clone(), owner.clone(), consumers).await?;
    let root = root::ensure(&*metadata, &vault, root, clock.now_ms()).await?;
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
    let server = front::serve_s3(&config, prepared, front)?;
    let s3_addr = server.local_addr();
    let node_id = if cluster.is_some() { me.to_string() } else { hex::encode(data_dir.id()) };
    let upkeep = spawn_upkeep(metrics.clone());
    admin_state.ready(AdminParts {
        metadata: metadata.clone(),
        journal,
        disks: disk_ports,
        chunks,
        node: actors.clone(),
        cluster: cluster.as_ref().map(|(joint, actors)| joint.admin(actors.clone())),
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
        admin = %admin.addr(),
        data_dir = %config.node.data_dir.display(),
        elapsed_ms = started.elapsed().as_millis() as u64,
        "node is ready"
    );
    let shutdown_timeout = config.node.shutdown_timeout.duration();
    Ok(RunningNode {
        id: me,
        s3_addr,
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
        admin,
        upkeep,
        shutdown_timeout,
        data_dir,
    })
}

/// What a node of a cluster has in common with the others; `None`: it runs alone.
async fn cluster_ports(setting: Setting, config: &Config, data_dir: &DataDir) -> anyhow::Result<Option<ClusterPorts>> {
    match setting {
        Setting::Alone => match data_dir.cluster_id()? {
            None => Ok(None),
            Some(cluster) => bail!(
                "this node belongs to cluster {cluster}, but no cluster is configured: set cluster.zookeeper and \
                 metadata.url, or use another node.data_dir"
            ),
        },
        Setting::Services => zookeeper::connect(config, data_dir).await.map(Some),
        Setting::Process(shared) => shared.ports(data_dir).await.map(Some),
    }
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

fn spawn_upkeep(metrics: PrometheusHandle) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut interval = tokio::time::interval(METRICS_UPKEEP);
        loop {
            interval.tick().await;
            metrics.run_upkeep();
        }
    }))
}
