//! The loop that carries lifecycle rules out.

use std::sync::Arc;

use anyhow::Context as _;
use futures::FutureExt as _;
use holdfast_actors::domain::lifecycle::Day;
use holdfast_actors::flow::lifecycle::{self, LifecycleDuty, LifecycleParts, LifecycleSettings, LifecycleTeller};
use holdfast_actors::ports::{Clock, MetadataStore};
use holdfast_actors::service::loops::{self, LoopSpec, LoopsHandle, TooOften};

use crate::config::Config;

/// Parts of a day that the loop holds still after the start, and after a leap of the clock: a quarter of an hour of a real day.
const HOLD_PARTS: u32 = 96;

/// How long a day of age is by the configuration.
pub(super) fn day(config: &Config) -> Day {
    Day::of_ms(config.lifecycle.day.duration().as_millis() as u64)
}

/// Starts it, unless it is switched off. `node_name` is what events tell of who did it.
///
/// # Errors
/// When the actor cannot be started.
pub(super) async fn start(
    config: &Config,
    metadata: Arc<dyn MetadataStore>,
    clock: Arc<dyn Clock>,
    cluster: Option<LifecycleDuty>,
    node_name: &str,
) -> anyhow::Result<Option<LoopsHandle>> {
    if !config.lifecycle.enabled {
        tracing::warn!("lifecycle.enabled is false: this node carries no lifecycle rules out");
        return Ok(None);
    }
    if day(config) != Day::REAL {
        let day = config.lifecycle.day;
        tracing::warn!(%day, "lifecycle.day is not a day: objects with lifecycle rules expire early, as only tests want it");
    }
    let teller = config
        .events
        .is_on()
        .then(|| LifecycleTeller { node: node_name.into(), region: config.s3.region.as_str().into() });
    let settings = LifecycleSettings {
        day: day(config),
        interval: config.lifecycle.interval.duration(),
        hold: config.lifecycle.day.duration() / HOLD_PARTS,
        ..LifecycleSettings::default()
    };
    let parts = LifecycleParts { metadata, clock, cluster, teller, settings };
    let run = move || lifecycle::run(parts.clone()).boxed();
    let spec = LoopSpec { name: "lifecycle", run: Arc::new(run) };
    loops::start(vec![spec], TooOften::rest()).await.context("start the loop of lifecycle rules").map(Some)
}
