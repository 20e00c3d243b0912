//! Slow work that is given out: the dispatcher, and the loop that carries tasks out on every node.

use std::sync::Arc;

use futures::FutureExt as _;
use holdfast_actors::flow::consume::{self, ConsumeParts};
use holdfast_actors::flow::reclaim::Reclaimer;
use holdfast_actors::flow::report::Reporter;
use holdfast_actors::flow::tasks::{self, DispatchSettings, Dispatcher, Tally, TaskWorker};
use holdfast_actors::ports::{Clock, EventBus, Journal};
use holdfast_actors::service::LoopSpec;

use super::lifecycle::hold_after_leaps;
use crate::config::Config;

/// What both work with.
pub(super) struct TaskParts {
    pub(super) reclaimer: Reclaimer,
    pub(super) bus: Arc<dyn EventBus>,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) reporter: Reporter,
    pub(super) clock: Arc<dyn Clock>,
}

/// The dispatcher, which the cleanup actor asks, and the loop of the worker.
pub(super) fn make(config: &Config, parts: TaskParts) -> (Dispatcher, LoopSpec) {
    let TaskParts { reclaimer, bus, journal, reporter, clock } = parts;
    let tally = Arc::<Tally>::default();
    let worker = Arc::new(TaskWorker {
        reclaimer: reclaimer.clone(),
        tally: tally.clone(),
        grace: config.cleanup.grace.duration(),
        upload_age: config.cleanup.stale_upload_age.nonzero(),
    });
    let settings = DispatchSettings { hold: hold_after_leaps(config), ..DispatchSettings::default() };
    let dispatcher = Dispatcher::new(reclaimer, bus.clone(), tally, settings);
    let settings = tasks::consume_settings();
    let consuming = ConsumeParts { bus, journal, clock, reporter: Some(reporter), settings };
    let run = move || {
        let (consuming, worker) = (consuming.clone(), worker.clone());
        async move { format!("carry tasks out: {}", consume::run(consuming, worker).await) }.boxed()
    };
    (dispatcher, LoopSpec { name: "tasks", run: Arc::new(run) })
}
