//! Cold tiers of a node: the registry, reading from them, and the loops that move objects.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use holdfast_actors::ports::{ChunkStore, Clock, MetadataStore, TierLedger};
use holdfast_actors::service::loops::{self, LoopSpec, LoopsHandle, TooOften};
use holdfast_protocol::NodeId;

use crate::admin::SecretSealer;
use crate::config::Config;
use crate::s3::auth::SecretOpener;
use crate::tiers::{self, RegistryParts, TierRegistry, WatchSettings};

/// What they are made of.
pub(super) struct TierParts {
    pub(super) ledger: Arc<dyn TierLedger>,
    pub(super) metadata: Arc<dyn MetadataStore>,
    pub(super) chunks: Arc<dyn ChunkStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) sealer: Arc<dyn SecretSealer>,
    pub(super) opener: Arc<dyn SecretOpener>,
    pub(super) me: NodeId,
    /// What events tell of who did it.
    pub(super) node_name: String,
}

/// The cold tiers of a running node.
pub(super) struct RunningTiers {
    pub(super) registry: TierRegistry,
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
    let TierParts { ledger, clock, sealer, opener, .. } = parts;
    let registry = TierRegistry::new(RegistryParts { ledger, sealer, opener });
    if let Err(error) = registry.refresh_now().await {
        tracing::warn!(%error, "look for cold tiers at the start");
    }
    let mut specs = vec![watcher(config, &registry, clock)];
    if !config.tiering.enabled {
        tracing::warn!("tiering.enabled is false: this node moves no objects to or from cold tiers");
    }
    let loops = loops::start(specs, TooOften::rest()).await.context("start the loops of cold tiers")?;
    Ok(RunningTiers { registry, loops })
}

/// The loop that keeps the registry up to date.
fn watcher(config: &Config, registry: &TierRegistry, clock: Arc<dyn Clock>) -> LoopSpec {
    let settings = WatchSettings { refresh: config.tiering.refresh.duration(), clock };
    let registry = registry.clone();
    let run = move || tiers::run(registry.clone(), settings.clone()).boxed();
    LoopSpec { name: "tier registry", run: Arc::new(run) }
}
