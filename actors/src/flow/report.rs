//! Errors that are worth an operator's look: from where they happen to the error log.
//!
//! [`Reporter::report`] never waits: a report goes into a bounded queue, or is dropped and counted. The same error of
//! the same thing is reported once a minute. A task publishes what is in the queue to [`Topic::Errors`]. A consumer
//! stores them in the [`Journal`], once each, whatever comes twice. While the bus is away the task stores them itself:
//! what went wrong must not be lost because something else went wrong too. While both are away it tries again, and the
//! queue fills.
//!
//! What is lost: reports beyond the queue, and those in it when the process ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_protocol::EventId;
use holdfast_protocol::journal::{ErrorKind, ErrorRecord};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::consume::{Consumer, Handled};
use crate::ports::Clock;
use crate::ports::events::{EventBus, EventError, Message, Topic};
use crate::ports::journal::{DETAIL_BYTES_MAX, Journal, TEXT_BYTES_MAX, cut};

/// Reports that may wait.
const QUEUE_MAX: usize = 1_024;
/// The same error is not reported again for so long.
const SAME_FOR: Duration = Duration::from_secs(60);
/// Errors remembered for that.
const SAME_MAX: usize = 1_024;
/// Time for the bus to take one.
const PUBLISH_MAX: Duration = Duration::from_secs(10);
/// How long the bus is left alone after it refused one.
const AWAY_FOR: Duration = Duration::from_secs(15);
/// Pauses after bus and journal refused one: from, to.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(15)];

/// The group that stores errors.
pub const ERROR_LOG_GROUP: &str = "error-log";

/// Where errors are reported to. Cheap to clone.
#[derive(Clone)]
pub struct Reporter {
    shared: Arc<Shared>,
}

struct Shared {
    node: String,
    clock: Arc<dyn Clock>,
    queue: mpsc::Sender<ErrorRecord>,
    /// Taken by whoever publishes; it comes back when that ends.
    reports: tokio::sync::Mutex<mpsc::Receiver<ErrorRecord>>,
    /// What is being published: whoever follows goes on with it.
    at_hand: Mutex<Option<ErrorRecord>>,
    recent: Mutex<HashMap<(ErrorKind, String), Instant>>,
}

impl Reporter {
    /// Reports in the name of `node`.
    pub fn new(node: impl Into<String>, clock: Arc<dyn Clock>) -> Self {
        let (queue, reports) = mpsc::channel(QUEUE_MAX);
        let shared = Shared {
            node: node.into(),
            clock,
            queue,
            reports: tokio::sync::Mutex::new(reports),
            at_hand: Mutex::default(),
            recent: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Reports an error of `subject`. Never waits.
    pub fn report(&self, kind: ErrorKind, subject: impl Into<String>, detail: impl Into<String>) {
        let (subject, detail) = (subject.into(), detail.into());
        if !self.is_news(kind, &subject) {
            metrics::counter!("holdfast_error_reports_total", "outcome" => "repeated").increment(1);
            return;
        }
        let at_ms = self.shared.clock.now_ms();
        let report = ErrorRecord {
            id: EventId::generate(at_ms).to_string(),
            at_ms,
            node: self.shared.node.clone(),
            kind,
            subject: cut(&subject, TEXT_BYTES_MAX).to_owned(),
            detail: cut(&detail, DETAIL_BYTES_MAX).to_owned(),
        };
        let outcome = if self.shared.queue.try_send(report).is_ok() { "queued" } else { "dropped" };
        metrics::counter!("holdfast_error_reports_total", "outcome" => outcome).increment(1);
    }

    fn is_news(&self, kind: ErrorKind, subject: &str) -> bool {
        let now = Instant::now();
        let mut recent = self.shared.recent.lock();
        let key = (kind, subject.to_owned());
        if recent.get(&key).is_some_and(|last| now.duration_since(*last) < SAME_FOR) {
            return false;
        }
        if recent.len() >= SAME_MAX {
            recent.retain(|_, last| now.duration_since(*last) < SAME_FOR);
            if recent.len() >= SAME_MAX {
                recent.clear();
            }
        }
        recent.insert(key, now);
        true
    }

    /// Publishes reports until the bus is closed; returns why it ended. One at a time: another waits for its end.
    pub async fn publish(&self, bus: &dyn EventBus, journal: &dyn Journal) -> String {
        let mut away_until = None;
        let mut reports = self.shared.reports.lock().await;
        loop {
            let left = self.shared.at_hand.lock().clone();
            let report = match left {
                Some(report) => report,
                None => {
                    let Some(report) = reports.recv().await else { return "nobody reports any more".into() };
                    *self.shared.at_hand.lock() = Some(report.clone());
                    report
                }
            };
            if let Err(error) = publish(bus, journal, &report, &mut away_until).await {
                return error.to_string();
            }
            *self.shared.at_hand.lock() = None;
        }
    }
}

/// Publishes one report, or stores it, trying again for as long as that may help. Fails when the bus is closed.
async fn publish(
    bus: &dyn EventBus,
    journal: &dyn Journal,
    report: &ErrorRecord,
    away_until: &mut Option<Instant>,
) -> Result<(), EventError> {
    let Ok(id) = report.id.parse() else { return Ok(()) };
    let message = Message {
        id,
        order_key: report.node.clone(),
        tag: report.kind.as_str().to_owned(),
        keys: vec![report.id.clone()],
        body: serde_json::to_vec(report).map_or_else(|_| Bytes::new(), Bytes::from),
    };
    let mut pause = PAUSES[0];
    loop {
        if away_until.is_none_or(|until| until <= Instant::now()) {
            match bus.publish(Topic::Errors, &message, Instant::now() + PUBLISH_MAX).await {
                Ok(()) => {
                    *away_until = None;
                    return Ok(());
                }
                Err(EventError::Closed) => return Err(EventError::Closed),
                Err(error) => {
                    if away_until.is_none() {
                        tracing::warn!(%error, "error reports cannot be published, they are stored directly");
                    }
                    *away_until = Some(Instant::now() + AWAY_FOR);
                }
            }
        }
        match journal.add_errors(std::slice::from_ref(report)).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::debug!(%error, "store an error report");
                sleep(pause).await;
                pause = (pause * 2).min(PAUSES[1]);
            }
        }
    }
}

/// Stores reports in the error log.
pub struct ErrorLog {
    /// Where.
    pub journal: Arc<dyn Journal>,
}

#[async_trait]
impl Consumer for ErrorLog {
    fn topic(&self) -> Topic {
        Topic::Errors
    }

    fn group(&self) -> &'static str {
        ERROR_LOG_GROUP
    }

    async fn handle(&self, message: &Message) -> Handled {
        let report: ErrorRecord = match serde_json::from_slice(&message.body) {
            Ok(report) => report,
            Err(error) => return Handled::Hopeless(format!("not an error report: {error}")),
        };
        match self.journal.add_errors(&[report]).await {
            Ok(()) => Handled::Done,
            Err(error) => Handled::Failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::consume::tests::Memory;
    use super::*;
    use crate::ports::events::{InProcessEventBus, InProcessLimits, Page, Position, SubscribeOptions, Subscription};

    #[derive(Default)]
    struct StillClock(AtomicU64);

    impl Clock for StillClock {
        fn now_ms(&self) -> u64 {
            self.0.fetch_add(1, Ordering::Relaxed)
        }
    }

    fn reporter() -> Reporter {
        Reporter::new("node", Arc::new(StillClock::default()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_error_of_the_same_thing_is_reported_once_a_minute() {
        let reporter = reporter();
        for _ in 0..3 {
            reporter.report(ErrorKind::Corruption, "chunk", "differs");
            reporter.report(ErrorKind::Corruption, "other", "differs");
            reporter.report(ErrorKind::DiskFenced, "chunk", "EIO");
        }
        assert_eq!(reporter.shared.reports.lock().await.len(), 3);
        tokio::time::advance(SAME_FOR).await;
        reporter.report(ErrorKind::Corruption, "chunk", "differs");
        assert_eq!(reporter.shared.reports.lock().await.len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn reports_beyond_the_queue_are_dropped_and_memory_stays_bounded() {
        let reporter = reporter();
        for n in 0..10 * QUEUE_MAX {
            reporter.report(ErrorKind::Other, format!("thing {n}"), "x".repeat(100_000));
        }
        let queued = reporter.shared.reports.lock().await.len();
        assert_eq!(queued, QUEUE_MAX);
        assert!(reporter.shared.recent.lock().len() <= SAME_MAX);
        let first = reporter.shared.reports.lock().await.recv().await.expect("one");
        assert_eq!(first.detail.len(), DETAIL_BYTES_MAX);
    }

    /// A bus that takes nothing for a while.
    struct Away(InProcessEventBus, AtomicU64);

    #[async_trait]
    impl EventBus for Away {
        async fn publish(&self, topic: Topic, message: &Message, deadline: Instant) -> Result<(), EventError> {
            if self.1.fetch_add(1, Ordering::Relaxed) < 5 {
                return Err(EventError::Unavailable("no broker".into()));
            }
            self.0.publish(topic, message, deadline).await
        }

        async fn subscribe(
            &self,
            topic: Topic,
            options: SubscribeOptions,
        ) -> Result<Box<dyn Subscription>, EventError> {
            self.0.subscribe(topic, options).await
        }

        async fn read(&self, topic: Topic, from: Position, limit: usize, wait: Duration) -> Result<Page, EventError> {
            self.0.read(topic, from, limit, wait).await
        }

        async fn check(&self, topic: Topic) -> Result<(), EventError> {
            self.0.check(topic).await
        }

        async fn close(&self) {
            self.0.close().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_bus_refuses_is_published_when_it_is_back_and_by_whoever_follows() {
        let bus = Away(InProcessEventBus::new(InProcessLimits::default()), AtomicU64::new(0));
        let options = SubscribeOptions { group: "test".into(), lease: Duration::from_secs(60) };
        let mut subscription = bus.subscribe(Topic::Errors, options).await.expect("a subscription");
        tokio::spawn(async move {
            while let Ok(deliveries) = subscription.receive(10, Duration::from_secs(1)).await {
                for delivery in deliveries {
                    subscription.ack(&delivery).await.expect("it is in time");
                }
            }
        });
        let reporter = reporter();
        reporter.report(ErrorKind::DiskFenced, "disk 0", "EIO");
        reporter.report(ErrorKind::Corruption, "chunk", "differs");
        // The first publisher is cut off with a report in its hand, and there is no journal to take it.
        let journal = Memory::default();
        journal.away.store(true, Ordering::Relaxed);
        drop(tokio::time::timeout(Duration::from_secs(1), reporter.publish(&bus, &journal)).await);
        drop(tokio::time::timeout(Duration::from_secs(600), reporter.publish(&bus, &journal)).await);
        let page = bus.read(Topic::Errors, Position::Oldest, 10, Duration::ZERO).await.expect("a page");
        let tags: Vec<&str> = page.messages.iter().map(|message| message.tag.as_str()).collect();
        assert_eq!(tags, ["disk-fenced", "corruption"]);
        let report: ErrorRecord = serde_json::from_slice(&page.messages[0].body).expect("a report");
        assert_eq!((report.node.as_str(), report.subject.as_str()), ("node", "disk 0"));
        bus.close().await;
        reporter.report(ErrorKind::Other, "late", "");
        assert_eq!(reporter.publish(&bus, &journal).await, EventError::Closed.to_string());
    }

    #[tokio::test(start_paused = true)]
    async fn reports_are_stored_directly_while_the_bus_is_away() {
        let bus = Away(InProcessEventBus::new(InProcessLimits::default()), AtomicU64::new(0));
        let (reporter, journal) = (reporter(), Memory::default());
        reporter.report(ErrorKind::DiskFenced, "disk 0", "EIO");
        reporter.report(ErrorKind::Corruption, "chunk", "differs");
        drop(tokio::time::timeout(Duration::from_secs(1), reporter.publish(&bus, &journal)).await);
        let kinds: Vec<_> = journal.errors.lock().iter().map(|error| error.kind).collect();
        assert_eq!(kinds, [ErrorKind::DiskFenced, ErrorKind::Corruption]);
        assert_eq!(bus.1.load(Ordering::Relaxed), 1, "it is left alone for a while");
    }
}
