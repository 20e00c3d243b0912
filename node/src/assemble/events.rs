//! The bus that the configuration names, and the relay that publishes to it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use holdfast_actors::flow::relay::{self, RelayOwner, RelayParts, RelaySettings, RelayStatus};
use holdfast_actors::ports::events::{InProcessEventBus, InProcessLimits};
use holdfast_actors::ports::{Clock, EventBus, Outbox};
use holdfast_actors::service::loops::{self, LoopSpec, LoopsHandle, TooOften};
use holdfast_protocol::events::PARTITIONS;

use crate::config::{Config, EventsConfig};
use crate::events::rocketmq::{Credentials, RocketMqEventBus, RocketMqOptions, Secret, Tls};
use crate::secret_file;

/// How long a node that stops waits for its partitions to be handed over: it has said that it stops, and what is on its
/// way to a broker that works is answered sooner.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);

/// The bus and the relay.
pub(super) struct RunningEvents {
    bus: Arc<dyn EventBus>,
    status: Arc<RelayStatus>,
    /// Whether other nodes take the partitions.
    moves: bool,
    loops: LoopsHandle,
}

impl RunningEvents {
    /// Starts the relay where somebody is told of changes, and the loops that consume. RocketMQ need not be there: what
    /// is to be published waits for it. A node that tells nobody takes nothing out of the outbox: others may.
    ///
    /// # Errors
    /// When the actors cannot be started.
    pub(super) async fn start(
        config: &Config,
        bus: Arc<dyn EventBus>,
        outbox: Arc<dyn Outbox>,
        clock: Arc<dyn Clock>,
        owner: RelayOwner,
        consumers: Vec<LoopSpec>,
    ) -> anyhow::Result<Self> {
        let status = Arc::<RelayStatus>::default();
        let settings = settings(&config.events);
        let moves = matches!(owner, RelayOwner::Cluster { .. });
        let parts = RelayParts { outbox, bus: bus.clone(), clock, owner, settings };
        let watched = status.clone();
        let run = move || relay::run(parts.clone(), watched.clone()).boxed();
        let relay = LoopSpec { name: "relay", run: Arc::new(run) };
        let mut specs = consumers;
        specs.extend(config.events.is_on().then_some(relay));
        let loops = loops::start(specs, TooOften::rest()).await;
        Ok(Self { bus, status, moves, loops: loops.context("start the relay")? })
    }

    /// The bus.
    pub(super) fn bus(&self) -> Arc<dyn EventBus> {
        self.bus.clone()
    }

    /// What the relay knows.
    pub(super) fn status(&self) -> Arc<RelayStatus> {
        self.status.clone()
    }

    /// Kills the actor of a loop, for tests of supervision.
    pub(super) fn kill_loop(&self, name: &str) -> bool {
        self.loops.kill_actor(name)
    }

    /// Ends both. What was not published waits for the next start, or for another node. What is on its way is waited
    /// for, for a moment: another node would publish it once more.
    pub(super) async fn stop(self, deadline: Duration) {
        if self.moves {
            drop(tokio::time::timeout(HAND_OVER_MAX, self.status.left()).await);
        }
        // All of it is one step of the stop, and the bus is to be closed within it.
        self.loops.stop(deadline.saturating_sub(HAND_OVER_MAX)).await;
        self.bus.close().await;
    }
}

/// The bus that the configuration names. Nothing is connected before it is used.
///
/// # Errors
/// When a file that the configuration names cannot be read.
pub(super) fn bus(config: &EventsConfig) -> anyhow::Result<Arc<dyn EventBus>> {
    if !config.is_on() {
        return Ok(Arc::new(InProcessEventBus::new(InProcessLimits::default())));
    }
    let mut options = RocketMqOptions::new(config.name_servers());
    options.topic_prefix.clone_from(&config.topic_prefix);
    options.create_topics = config.create_topics;
    options.topic_queues = config.topic_queues;
    options.brokers = config.broker_names();
    if let (Some(access_key), Some(file)) = (&config.access_key, &config.secret_key_file) {
        let secret = secret_file::read(file).context("events.secret_key_file")?;
        let secret_key = Secret::new(secret.to_string());
        options.credentials = Some(Credentials { access_key: access_key.clone(), secret_key });
    }
    if config.tls {
        options.tls =
            Some(Tls::new(config.tls_ca.as_deref(), config.tls_server_name.clone()).context("events.tls_ca")?);
    }
    Ok(Arc::new(RocketMqEventBus::new(options)))
}

fn settings(config: &EventsConfig) -> RelaySettings {
    let keep = config.replay_age.duration();
    RelaySettings {
        // In the process nobody could have lost what was consumed.
        keep: (config.is_on() && !keep.is_zero()).then_some(keep),
        keep_rows_max: config.replay_events.div_ceil(u64::from(PARTITIONS)),
        ..RelaySettings::default()
    }
}
