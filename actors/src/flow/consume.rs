//! Consumers of a topic: tries again with growing pauses, and gives up what fails too often.
//!
//! A [`Consumer`] is idempotent, as a message may come again after it was handled. What it fails with is tried again
//! after a pause that doubles; after [`ConsumeSettings::attempts_max`] deliveries the message is kept as a dead letter,
//! for an operator to look at and requeue, and others pass meanwhile. A message is acknowledged only when it is done or
//! kept.
//!
//! Bound: as many messages at once as [`ConsumeSettings::batch`]; while the bus is away there are none. A message whose
//! handling takes longer than its lease is cut off, which counts as a failure. So does one whose handling panics: it
//! would otherwise take its consumer down each time it comes, on one node after the other, and never be given up.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use holdfast_protocol::journal::ErrorKind;
use tokio::time::Instant;

use super::panics::caught;
use super::report::Reporter;
use super::told::Told;
use crate::ports::events::{Delivery, EventBus, EventError, Message, SubscribeOptions, Subscription, Topic};
use crate::ports::journal::{Journal, NewDeadLetter};
use crate::ports::{Clock, MetadataError};

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handled {
    /// It is done.
    Done,
    /// Its time has not come, or it is done in part; it is delivered again after this long.
    Later(Duration),
    /// It failed, and may succeed later.
    Failed(String),
    /// It can never succeed: it is kept for an operator at once.
    Hopeless(String),
}

/// Work on the messages of a topic.
#[async_trait]
pub trait Consumer: Send + Sync + 'static {
    /// Which topic.
    fn topic(&self) -> Topic;

    /// The name of its group.
    fn group(&self) -> &'static str;

    /// Returns once it may be given messages.
    async fn ready(&self) {}

    /// Handles one message. It may be dropped at any point, and the message comes again.
    async fn handle(&self, message: &Message) -> Handled;
}

/// How consumers are paced.
#[derive(Debug, Clone)]
pub struct ConsumeSettings {
    /// Messages in work at once.
    pub batch: usize,
    /// How long a message may take.
    pub lease: Duration,
    /// How long a look for messages waits.
    pub wait: Duration,
    /// The first pause after a failure; it doubles with each.
    pub pause: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// Deliveries until a message is given up.
    pub attempts_max: u32,
}

impl Default for ConsumeSettings {
    /// About half an hour of tries.
    fn default() -> Self {
        Self {
            batch: 16,
            lease: Duration::from_secs(60),
            wait: Duration::from_secs(5),
            pause: Duration::from_secs(1),
            pause_max: Duration::from_secs(600),
            attempts_max: 12,
        }
    }
}

impl ConsumeSettings {
    pub(super) fn pause_after(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(20);
        self.pause.saturating_mul(1 << doublings).min(self.pause_max).max(Duration::from_secs(1))
    }
}

/// What a consumer works with.
#[derive(Clone)]
pub struct ConsumeParts {
    /// Where messages come from.
    pub bus: Arc<dyn EventBus>,
    /// Where dead letters are kept.
    pub journal: Arc<dyn Journal>,
    /// Time of day.
    pub clock: Arc<dyn Clock>,
    /// Where it is reported that a message was given up, besides.
    pub reporter: Option<Reporter>,
    /// How it is paced.
    pub settings: ConsumeSettings,
}

/// Consumes until the bus is closed; returns why it ended.
pub async fn run(parts: ConsumeParts, consumer: Arc<dyn Consumer>) -> String {
    let options = SubscribeOptions { group: consumer.group().to_owned(), lease: parts.settings.lease };
    let mut subscription = match parts.bus.subscribe(consumer.topic(), options).await {
        Ok(subscription) => subscription,
        Err(error) => return format!("subscribe: {error}"),
    };
    let mut told = Told::default();
    loop {
        consumer.ready().await;
        match subscription.receive(parts.settings.batch, parts.settings.wait).await {
            Ok(deliveries) => {
                told.settle(Instant::now());
                let (parts, consumer, subscription) = (&parts, &*consumer, &*subscription);
                futures::stream::iter(deliveries)
                    .for_each_concurrent(None, |delivery| settle(parts, consumer, subscription, delivery))
                    .await;
            }
            Err(EventError::Closed) => return "the bus is closed".into(),
            Err(error) => {
                if told.is_news(&error.to_string(), Instant::now()) {
                    tracing::warn!(topic = %consumer.topic(), %error, "messages cannot be had, trying again");
                }
                tokio::time::sleep(parts.settings.pause).await;
            }
        }
    }
}

/// Handles one delivery and tells the bus what became of it.
async fn settle(parts: &ConsumeParts, consumer: &dyn Consumer, subscription: &dyn Subscription, delivery: Delivery) {
    let (group, attempt) = (consumer.group(), delivery.attempt);
    // Less than the lease: what became of it has to be told within it too.
    let limit = parts.settings.lease.mul_f64(0.8);
    let handled = match tokio::time::timeout(limit, caught(consumer.handle(&delivery.message))).await {
        Ok(Ok(handled)) => handled,
        Ok(Err(panic)) => Handled::Failed(format!("it panicked: {panic}")),
        Err(_) => Handled::Failed(format!("not done within {} s", limit.as_secs())),
    };
    let (outcome, told) = match handled {
        Handled::Done => ("done", subscription.ack(&delivery).await),
        Handled::Later(pause) => ("later", subscription.retry(&delivery, pause.max(Duration::from_secs(1))).await),
        Handled::Failed(error) if attempt < parts.settings.attempts_max => {
            tracing::warn!(id = %delivery.message.id, group, attempt, error, "a message failed, it is tried again");
            ("failed", subscription.retry(&delivery, parts.settings.pause_after(attempt)).await)
        }
        Handled::Failed(error) | Handled::Hopeless(error) => {
            give_up(parts, consumer, subscription, &delivery, error).await
        }
    };
    metrics::counter!("holdfast_consumer_messages_total", "group" => group, "outcome" => outcome).increment(1);
    match told {
        // It comes again, and whoever handles it finds it done.
        Ok(()) | Err(EventError::Expired) => {}
        Err(error) => {
            tracing::debug!(id = %delivery.message.id, %error, "the bus was not told, the message comes again")
        }
    }
}

/// Keeps a message as a dead letter, and only then takes it from the bus.
async fn give_up(
    parts: &ConsumeParts,
    consumer: &dyn Consumer,
    subscription: &dyn Subscription,
    delivery: &Delivery,
    error: String,
) -> (&'static str, Result<(), EventError>) {
    let (message, group) = (&delivery.message, consumer.group());
    let letter = NewDeadLetter {
        topic: consumer.topic(),
        group: group.to_owned(),
        message: message.clone(),
        attempts: delivery.attempt,
        error: error.clone(),
        now_ms: parts.clock.now_ms(),
    };
    match parts.journal.add_dead_letter(letter).await {
        Ok(()) => {
            if let Some(reporter) = &parts.reporter {
                let subject = format!("message {} ({}) of {}", message.id, message.tag, consumer.topic());
                reporter.report(ErrorKind::TaskFailed, subject, error.clone());
            }
            tracing::error!(id = %message.id, tag = message.tag, group, error, "a message was given up, see `holdfast events dead list`");
            ("dead", subscription.ack(delivery).await)
        }
        Err(reason) => {
            let full = matches!(reason, MetadataError::Busy);
            tracing::warn!(id = %message.id, group, %reason, full, "a dead letter could not be kept, the message comes again");
            ("failed", subscription.retry(delivery, parts.settings.pause_max).await)
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
