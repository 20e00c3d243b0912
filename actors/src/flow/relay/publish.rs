//! Publishing a group of rows: those of one lane, in requests of many messages.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::RelayParts;
use super::held::Lane;
use super::owner::Hold;
use crate::ports::events::{EventError, EventResult, Message, Topic};
use crate::ports::outbox::OutboxRow;

/// Nothing is begun when less than this is left of what is proven.
pub(super) const PROVEN_MIN: Duration = Duration::from_millis(100);
/// What is kept of it for the way of an answer.
const PROVEN_MARGIN: Duration = Duration::from_millis(50);
/// Messages of one request.
const TOGETHER_MAX: usize = 256;
/// Bytes of one request, about: brokers take 4 MiB at once.
const TOGETHER_BYTES_MAX: usize = 512 << 10;

/// What became of a group.
pub(super) struct GroupEnd {
    pub(super) lane: Lane,
    /// Sequences that the bus has, by their keys; none for a key of which it has nothing.
    pub(super) published: BTreeMap<String, Vec<u64>>,
    /// Keys and sequences of what it may not have, in order.
    pub(super) left: Vec<(String, u64)>,
    /// Why; the last of several reasons.
    pub(super) error: Option<EventError>,
    /// The bus took nothing of the last request: the lane is at fault, and not some of its keys.
    pub(super) is_lane: bool,
}

/// Publishes rows of one lane in their order. Of a key whose message fails nothing more is published, and nothing at
/// all after a request of which the bus took nothing.
pub(super) async fn publish_group(
    parts: RelayParts,
    hold: Arc<Hold>,
    pipeline: Arc<Semaphore>,
    (topic, lane): (Topic, Lane),
    rows: Vec<OutboxRow>,
) -> GroupEnd {
    let mut end = GroupEnd { lane, published: BTreeMap::new(), left: Vec::new(), error: None, is_lane: false };
    for row in &rows {
        end.published.entry(row.message.order_key.clone()).or_default();
    }
    let mut failed: HashMap<String, EventError> = HashMap::new();
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let (mut messages, mut queued_ms, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(row) = rows.next_if(|_| messages.len() < TOGETHER_MAX && bytes < TOGETHER_BYTES_MAX) {
            if end.is_lane || failed.contains_key(&row.message.order_key) {
                end.left.push((row.message.order_key, row.message.id.sequence));
                continue;
            }
            bytes += row.message.body.len();
            messages.push(row.message);
            queued_ms.push(row.queued_ms);
        }
        if messages.is_empty() {
            continue;
        }
        let results = publish_together(&parts, &hold, &pipeline, topic, &messages, &queued_ms).await;
        // One message that is refused for what it is says nothing of others.
        let is_lane =
            |result: &EventResult<()>| matches!(result, Err(error) if !matches!(error, EventError::Invalid(_)));
        end.is_lane = results.iter().all(is_lane);
        for (message, result) in messages.into_iter().zip(results) {
            let (key, sequence) = (message.order_key, message.id.sequence);
            match result {
                Ok(()) => end.published.entry(key).or_default().push(sequence),
                Err(error) => {
                    failed.insert(key.clone(), error.clone());
                    end.left.push((key, sequence));
                    end.error = Some(error);
                }
            }
        }
    }
    end
}

/// One request.
async fn publish_together(
    parts: &RelayParts,
    hold: &Hold,
    pipeline: &Semaphore,
    topic: Topic,
    messages: &[Message],
    queued_ms: &[u64],
) -> Vec<EventResult<()>> {
    let none = |error: EventError| messages.iter().map(|_| Err(error.clone())).collect();
    let Ok(_permit) = pipeline.acquire().await else { return none(EventError::Closed) };
    // Now, not when the rows were read: this process may have been stopped since.
    let proven = hold.proven();
    if proven < PROVEN_MIN {
        return none(EventError::Unavailable("the lease of the partition is not proven".into()));
    }
    let started = Instant::now();
    let limit = parts.settings.publish_timeout.min(proven - PROVEN_MARGIN);
    metrics::counter!("holdfast_events_requests_total", "to" => "publish").increment(1);
    let results = parts.bus.publish_all(topic, messages, started + limit).await;
    let now_ms = parts.clock.now_ms();
    let delay = metrics::histogram!("holdfast_events_delay_seconds", "topic" => topic.as_str());
    let mut published = 0;
    for (queued_ms, _) in queued_ms.iter().zip(&results).filter(|(_, result)| result.is_ok()) {
        delay.record(now_ms.saturating_sub(*queued_ms) as f64 / 1_000.0);
        published += 1;
    }
    if published > 0 {
        metrics::counter!("holdfast_events_published_total", "topic" => topic.as_str()).increment(published);
        metrics::histogram!("holdfast_events_publish_seconds").record(started.elapsed().as_secs_f64());
    }
    results
}
