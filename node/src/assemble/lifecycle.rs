//! The loops that carry lifecycle rules out, and note reads for them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use holdfast_actors::domain::lifecycle::Day;
use holdfast_actors::flow::accesses::{self, ReadRecorder};
use holdfast_actors::flow::lifecycle::{self, LifecycleDuty, LifecycleParts, LifecycleSettings, LifecycleTeller};
use holdfast_actors::ports::tiers::Tiers;
use holdfast_actors::ports::{AccessLog, Clock, MetadataStore};
use holdfast_actors::service::loops::{self, LoopSpec, LoopsHandle, TooOften};

use crate::config::Config;

/// Parts of a day that the loop holds still after the start, and after a leap of the clock: a quarter of an hour of a
/// real day.
const HOLD_PARTS: u32 = 96;

/// Parts of a day after which noted reads are written away: a minute of a real day.
const FLUSH_PARTS: u32 = 1_440;

/// The least of that, however short a day is.
const FLUSH_MIN: Duration = Duration::from_millis(100);

/// How long a day of age is by the configuration.
pub(super) fn day(config: &Config) -> Day {
    Day::of_ms(config.lifecycle.day.duration().as_millis() as u64)
}

/// What they are made of.
pub(super) struct LifecycleStart {
    pub(super) metadata: Arc<dyn MetadataStore>,
    pub(super) tiers: Arc<dyn Tiers>,
    pub(super) reads: Arc<dyn AccessLog>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) cluster: Option<LifecycleDuty>,
    /// What events tell of who did it.
    pub(super) node_name: String,
}

/// Starts them. Where rules are not carried out, reads are noted all the same: others may go by them. Gives where to
/// note them.
///
/// # Errors
/// When the actor cannot be started.
pub(super) async fn start(config: &Config, parts: LifecycleStart) -> anyhow::Result<(LoopsHandle, Arc<ReadRecorder>)> {
    let recorder = Arc::new(ReadRecorder::new(day(config)));
    let flushing = {
        let (recorder, log) = (recorder.clone(), parts.reads.clone());
        let interval = (config.lifecycle.day.duration() / FLUSH_PARTS).max(FLUSH_MIN);
        move || accesses::run(recorder.clone(), log.clone(), interval).boxed()
    };
    let mut specs = vec![LoopSpec { name: "reads", run: Arc::new(flushing) }];
    if config.lifecycle.enabled {
        specs.push(carrier(config, parts));
    } else {
        tracing::warn!("lifecycle.enabled is false: this node carries no lifecycle rules out");
    }
    let loops = loops::start(specs, TooOften::rest()).await.context("start the loops of lifecycle rules")?;
    Ok((loops, recorder))
}

/// For how long what goes by the time of day holds still after that has leapt.
pub(super) fn hold_after_leaps(config: &Config) -> Duration {
    config.lifecycle.day.duration() / HOLD_PARTS
}

/// The loop that carries rules out.
fn carrier(config: &Config, parts: LifecycleStart) -> LoopSpec {
    if day(config) != Day::REAL {
        let day = config.lifecycle.day;
        tracing::warn!(%day, "lifecycle.day is not a day: objects with lifecycle rules expire early, as only tests want it");
    }
    let LifecycleStart { metadata, tiers, reads, clock, cluster, node_name } = parts;
    let teller = config
        .events
        .is_on()
        .then(|| LifecycleTeller { node: node_name.as_str().into(), region: config.s3.region.as_str().into() });
    let settings = LifecycleSettings {
        day: day(config),
        interval: config.lifecycle.interval.duration(),
        hold: hold_after_leaps(config),
        ..LifecycleSettings::default()
    };
    let parts = LifecycleParts { metadata, tiers: Some(tiers), reads: Some(reads), clock, cluster, teller, settings };
    let run = move || lifecycle::run(parts.clone()).boxed();
    LoopSpec { name: "lifecycle", run: Arc::new(run) }
}
