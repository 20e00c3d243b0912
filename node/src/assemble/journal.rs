//! What operators look up later: the worker that fills the error log, and keeps the logs within their bounds.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use holdfast_actors::flow::clocks::{HOLD, LeapGuard};
use holdfast_actors::flow::consume::{self, ConsumeParts, ConsumeSettings};
use holdfast_actors::flow::report::{ErrorLog, Reporter};
use holdfast_actors::ports::journal::Retention;
use holdfast_actors::ports::{Clock, EventBus, Journal};
use holdfast_actors::service::LoopSpec;
use holdfast_protocol::journal::ErrorKind;
use holdfast_storage::finding::FindingSink;

use crate::config::JournalConfig;

/// Time between looks for entries that are too old or too many; up to half as long again, so that nodes that were
/// started together do not all remove the same.
const TRIM_INTERVAL: Duration = Duration::from_secs(600);

/// Entries removed in one transaction.
const TRIM_BATCH: u32 = 1_000;

/// What the worker works on.
#[derive(Clone)]
pub(super) struct JournalParts {
    pub(super) journal: Arc<dyn Journal>,
    pub(super) bus: Arc<dyn EventBus>,
    pub(super) reporter: Reporter,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) config: JournalConfig,
}

/// Publishes reports, stores them and trims the logs. One loop for the three: each waits nearly all the time.
pub(super) fn worker(parts: JournalParts) -> LoopSpec {
    let run = move || {
        let parts = parts.clone();
        async move { serve(&parts).await }.boxed()
    };
    LoopSpec { name: "journal", run: Arc::new(run) }
}

async fn serve(parts: &JournalParts) -> String {
    let consuming = ConsumeParts {
        bus: parts.bus.clone(),
        journal: parts.journal.clone(),
        clock: parts.clock.clone(),
        // What cannot be stored in the error log is not reported to it.
        reporter: None,
        settings: ConsumeSettings::default(),
    };
    let log = Arc::new(ErrorLog { journal: parts.journal.clone() });
    tokio::select! {
        reason = parts.reporter.publish(&*parts.bus, &*parts.journal) => format!("publish errors: {reason}"),
        reason = consume::run(consuming, log) => format!("store errors: {reason}"),
        () = trim(parts) => unreachable!("it has no end"),
    }
}

async fn trim(parts: &JournalParts) {
    let leaps = LeapGuard::new(&*parts.clock, HOLD);
    let mut pause = Duration::ZERO;
    loop {
        tokio::time::sleep(pause).await;
        pause = TRIM_INTERVAL.mul_f64(rand::random_range(1.0..1.5));
        // What is too old by a clock that is wrong is gone for good.
        if leaps.holds(&*parts.clock, "the error log and the audit log") {
            continue;
        }
        let now_ms = parts.clock.now_ms();
        let from_ms = |age: Duration| now_ms.saturating_sub(age.as_millis() as u64);
        let config = &parts.config;
        let errors = Retention { from_ms: from_ms(config.errors_age.duration()), entries_max: config.errors_max };
        let audit = Retention { from_ms: from_ms(config.audit_age.duration()), entries_max: config.audit_max };
        loop {
            match parts.journal.trim(errors, audit, TRIM_BATCH).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "remove old entries of the error log and the audit log");
                    break;
                }
            }
        }
    }
}

/// Reports damage that disks find, and passes it on.
pub(super) fn reporting(reporter: Reporter, next: Option<FindingSink>) -> FindingSink {
    Arc::new(move |finding| {
        let subject = match &finding.chunk {
            Some(chunk) => format!("chunk {chunk}"),
            None => format!("record at {} of segment {}", finding.offset, finding.segment),
        };
        let detail = format!("{} (found by {:?})", finding.detail, finding.source);
        reporter.report(ErrorKind::Corruption, subject, detail);
        if let Some(next) = &next {
            next(finding);
        }
    })
}
