//! Cold tiers of a node: the registry, reading from them, and the loops that move objects and delete what is left over.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use holdfast_actors::flow::cold::mover::{self, MoverParts, MoverSettings};
use holdfast_actors::flow::cold::read::{ColdReadSettings, ColdReads};
use holdfast_actors::flow::cold::sweep::{self, SweeperParts, SweeperSettings};
use holdfast_actors::flow::lifecycle::LifecycleTeller;
use holdfast_actors::flow::report::Reporter;
use holdfast_actors::ports::coordination::Ownership;
use holdfast_actors::ports::{ChunkStore, Clock, MetadataStore, TierLedger};
use holdfast_actors::service::loops::{self, LoopSpec, LoopsHandle, TooOften};
use holdfast_protocol::NodeId;

use crate::config::Config;
use crate::secrets::{SecretOpener, SecretSealer};
use crate::tiers::{self, Counts, RegistryParts, TierRegistry, WatchSettings};

/// What they are made of.
pub(super) struct TierParts {
    pub(super) ledger: Arc<dyn TierLedger>,
    pub(super) metadata: Arc<dyn MetadataStore>,
    pub(super) chunks: Arc<dyn ChunkStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) sealer: Arc<dyn SecretSealer>,
    pub(super) opener: Arc<dyn SecretOpener>,
    pub(super) reporter: Reporter,
    pub(super) me: NodeId,
    /// In a cluster: up to when this node may act as a member.
    pub(super) ownership: Option<Ownership>,
    /// What events tell of who did it.
    pub(super) node_name: String,
    /// Whether this node counts for all what lies in tiers.
    pub(super) counts: Counts,
}

/// The cold tiers of a running node.
pub(super) struct RunningTiers {
    pub(super) registry: TierRegistry,
    pub(super) reads: Arc<ColdReads>,
    loops: LoopsHandle,
}

impl RunningTiers {
    /// Stops the loops. A move that is cut off is begun anew, by any node, when its claim ends.
    pub(super) async fn stop(&self, deadline: Duration) {
        self.loops.stop(deadline).await;
    }
}

/// Looks which tiers there are, and starts the loops. Tiers that cannot be reached hold nobody up.
///
/// # Errors
/// When an actor cannot be started.
pub(super) async fn start(config: &Config, parts: TierParts) -> anyhow::Result<RunningTiers> {
    let (sealer, opener) = (parts.sealer.clone(), parts.opener.clone());
    let registry = TierRegistry::new(RegistryParts { ledger: parts.ledger.clone(), sealer, opener });
    if let Err(error) = registry.refresh_now().await {
        tracing::warn!(%error, "look for cold tiers at the start");
    }
    let settings = ColdReadSettings {
        cache_bytes_max: config.tiering.cache_bytes.get(),
        streams_max: config.tiering.reads_max as usize,
        ..ColdReadSettings::default()
    };
    let reads = ColdReads::with_reporter(Arc::new(registry.clone()), settings, Some(parts.reporter.clone()));
    let mut specs = vec![watching(config, &registry, &parts)];
    if config.tiering.enabled {
        specs.push(sweeping(config, &registry, &parts));
        specs.push(moving(config, &registry, parts));
    } else {
        tracing::warn!("tiering.enabled is false: this node moves no objects to or from cold tiers");
    }
    let loops = loops::start(specs, TooOften::rest()).await.context("start the loops of cold tiers")?;
    Ok(RunningTiers { registry, reads: Arc::new(reads), loops })
}

/// The loop that keeps the registry up to date.
fn watching(config: &Config, registry: &TierRegistry, parts: &TierParts) -> LoopSpec {
    let (clock, counts) = (parts.clock.clone(), parts.counts.clone());
    let settings = WatchSettings { refresh: config.tiering.refresh.duration(), clock, counts };
    let registry = registry.clone();
    let run = move || tiers::run(registry.clone(), settings.clone()).boxed();
    LoopSpec { name: "tier registry", run: Arc::new(run) }
}

/// The loop that deletes pieces that nothing refers to.
fn sweeping(config: &Config, registry: &TierRegistry, parts: &TierParts) -> LoopSpec {
    let defaults = SweeperSettings::default();
    let poll = config.tiering.poll.duration();
    let [at_first, at_most] = defaults.breaker;
    let settings = SweeperSettings {
        interval: poll,
        again: config.tiering.piece_grace.duration(),
        breaker: [at_first.min(poll.saturating_mul(3)), at_most],
        ..defaults
    };
    let parts = SweeperParts {
        ledger: parts.ledger.clone(),
        tiers: Arc::new(registry.clone()),
        clock: parts.clock.clone(),
        ownership: parts.ownership.clone(),
        settings,
    };
    let run = move || sweep::run_sweeper(parts.clone()).boxed();
    LoopSpec { name: "tier sweeper", run: Arc::new(run) }
}

/// The loop that moves objects.
fn moving(config: &Config, registry: &TierRegistry, parts: TierParts) -> LoopSpec {
    let TierParts { ledger, metadata, chunks, clock, reporter, me, ownership, node_name, .. } = parts;
    let tiering = &config.tiering;
    let (defaults, poll) = (MoverSettings::default(), tiering.poll.duration());
    let settings = MoverSettings {
        claim: tiering.claim.duration(),
        poll,
        moves_per_tier: tiering.moves_per_tier as usize,
        bytes_per_second: Some(tiering.bandwidth.get()).filter(|bytes| *bytes > 0),
        piece_grace: tiering.piece_grace.duration(),
        // Who looks often tries again soon.
        backoff_min: defaults.backoff_min.min(poll),
        breaker_min: defaults.breaker_min.min(poll),
        piece_pause: defaults.piece_pause.min(poll),
        ..defaults
    };
    let teller = config
        .events
        .is_on()
        .then(|| LifecycleTeller { node: node_name.as_str().into(), region: config.s3.region.as_str().into() });
    let parts = MoverParts {
        metadata,
        ledger,
        chunks,
        tiers: Arc::new(registry.clone()),
        clock,
        node: me,
        ownership,
        teller,
        reporter: Some(reporter),
        settings,
    };
    let run = move || mover::run(parts.clone()).boxed();
    LoopSpec { name: "tier mover", run: Arc::new(run) }
}
