//! One partition, as long as this node owns it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::owner::{Hold, acquire};
use super::{Context, RelayParts, WINDOW_MAX};
use crate::ports::events::{EventError, EventResult};
use crate::ports::outbox::OutboxRow;

/// Nothing is begun when less than this is left of what is proven.
const PROVEN_MIN: Duration = Duration::from_millis(100);
/// What is kept of it for the way of an answer.
const PROVEN_MARGIN: Duration = Duration::from_millis(50);
/// How often what is not proven is looked at.
const UNPROVEN_PAUSE: Duration = Duration::from_millis(100);
/// How long completions are collected before what they acknowledged is removed.
const COLLECT_MAX: Duration = Duration::from_millis(20);
/// The longest wait before rows are looked at again, whatever was missed.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Pauses between looks while there are only keys that were refused: others may come meanwhile.
const HELD_LOOK_MIN: Duration = Duration::from_millis(50);
/// See [`HELD_LOOK_MIN`].
const HELD_LOOK_MAX: Duration = Duration::from_millis(500);
/// How long removing what was published may take after the lease was lost.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Rows that are forgotten at once.
const FORGET_BATCH: u32 = 1_000;

/// Owns the partition whenever it may.
pub(super) async fn run(context: Arc<Context>, partition: u16) {
    loop {
        let hold = Arc::new(acquire(&context.parts.owner, partition).await);
        tracing::debug!(partition, "this node publishes from a partition of the outbox");
        context.status.enter(partition);
        let mut serving = Serving::new(&context, partition, hold.clone());
        tokio::select! {
            biased;
            () = hold.over(partition) => {}
            () = serving.serve() => {}
            () = keep_house(&context, partition) => {}
        }
        // What is on its way is given up; what arrived need not be sent again.
        serving.running.clear();
        drop(tokio::time::timeout(LAST_WORDS, serving.remove_done()).await);
        drop(serving);
        context.status.leave(partition, context.parts.clock.now_ms());
        tracing::debug!(partition, "this node no longer publishes from a partition of the outbox");
        if let Ok(hold) = Arc::try_unwrap(hold) {
            hold.release().await;
        }
    }
}

/// Counts what waits, and forgets what was published long ago.
async fn keep_house(context: &Context, partition: u16) {
    let settings = &context.parts.settings;
    let outbox = &context.parts.outbox;
    let mut interval = tokio::time::interval(settings.housekeeping);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let now_ms = context.parts.clock.now_ms();
        let counted = {
            let _one_at_a_time = context.counting.lock().await;
            outbox.backlog(partition).await
        };
        match counted {
            Ok(backlog) => {
                context.status.change(partition, |status| status.backlog = backlog);
                context.status.tell(now_ms);
                // Where nothing is kept that costs no transaction.
                if backlog.published == 0 {
                    continue;
                }
            }
            // What was published is forgotten all the same: it must not grow because it cannot be counted.
            Err(error) => tracing::warn!(%error, partition, "the backlog of events cannot be counted"),
        }
        let keep_ms = settings.keep.map_or(0, |keep| keep.as_millis() as u64);
        let rows_max = if settings.keep.is_some() { settings.keep_rows_max } else { 0 };
        loop {
            let before_ms = now_ms.saturating_sub(keep_ms);
            match outbox.forget_published(partition, before_ms, rows_max, FORGET_BATCH).await {
                Ok(gone) if gone >= u64::from(FORGET_BATCH) => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::debug!(%error, partition, "forget published events");
                    break;
                }
            }
        }
    }
}

/// What became of the messages of one key.
struct ChainEnd {
    order_key: String,
    /// Sequences that the bus has.
    published: Vec<u64>,
    /// Sequences that it may not have.
    left: Vec<u64>,
    error: Option<EventError>,
}

struct Serving<'a> {
    context: &'a Context,
    partition: u16,
    hold: Arc<Hold>,
    running: FuturesUnordered<BoxFuture<'static, ChainEnd>>,
    /// Keys that have messages on their way.
    busy: HashSet<String>,
    /// Sequences on their way, or published and not removed.
    taken: HashSet<u64>,
    /// Keys whose messages were refused: when they are tried again, and the pause after that. They leave the pipeline to the
    /// others. Not more than there are rows in a look.
    held: HashMap<String, (Instant, Duration)>,
    /// Rows of such keys in the last look: the next one reads so many more.
    held_rows: usize,
    /// Whether the last look saw as many rows as it asked for, and the next one may ask for more.
    sees_more: bool,
    /// Published, to be removed.
    done: Vec<u64>,
    /// Since when there are some.
    done_since: Option<Instant>,
    pipeline: Arc<Semaphore>,
}

impl<'a> Serving<'a> {
    fn new(context: &'a Context, partition: u16, hold: Arc<Hold>) -> Self {
        let pipeline = Arc::new(Semaphore::new(context.parts.settings.pipeline));
        Self {
            context,
            partition,
            hold,
            running: FuturesUnordered::new(),
            busy: HashSet::new(),
            taken: HashSet::new(),
            held: HashMap::new(),
            held_rows: 0,
            sees_more: false,
            done: Vec::new(),
            done_since: None,
            pipeline,
        }
    }

    async fn serve(&mut self) {
        let settings = &self.context.parts.settings;
        let mut pause = settings.backoff.0;
        loop {
            while self.hold.proven() < PROVEN_MIN {
                tokio::time::sleep(UNPROVEN_PAUSE).await;
            }
            let (started, mut failed) = match self.start_more().await {
                Ok(started) => (started, false),
                Err(error) => {
                    self.failed(format!("the outbox cannot be read: {error}"), "database");
                    (false, true)
                }
            };
            let progress = if started || !self.running.is_empty() {
                let (published, errors) = self.collect(started).await;
                failed |= errors;
                published
            } else {
                if let Some(pause) = self.until_retry() {
                    // All that is there is held: wakes tell of nothing else.
                    tokio::time::sleep(pause.min(self.until_removal())).await;
                } else if !failed {
                    let woken = self.context.wake[usize::from(self.partition)].notified();
                    drop(tokio::time::timeout(self.until_removal().min(LOOK_MAX), woken).await);
                }
                false
            };
            if self.until_removal().is_zero() {
                self.remove_done().await;
            }
            if failed && !progress && self.sees_more {
                // The keys that were refused hide others, which may not be.
                tokio::time::sleep(settings.backoff.0).await;
            } else if failed && !progress {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(settings.backoff.1);
            } else if progress {
                pause = settings.backoff.0;
                // Some keys work and some do not, as when one of several brokers is gone: those are not tried at every turn.
                if failed {
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// When to look again where nothing but held keys was found.
    fn until_retry(&self) -> Option<Duration> {
        let first = self.held.values().map(|(until, _)| *until).min().filter(|_| self.held_rows > 0)?;
        Some(first.saturating_duration_since(Instant::now()).clamp(HELD_LOOK_MIN, HELD_LOOK_MAX))
    }

    /// When what was published is to be removed.
    fn until_removal(&self) -> Duration {
        let settings = &self.context.parts.settings;
        if self.done.len() >= settings.batch as usize {
            return Duration::ZERO;
        }
        self.done_since.map_or(Duration::MAX, |since| settings.remove_after.saturating_sub(since.elapsed()))
    }

    /// Reads the lowest rows and starts those whose keys are free. Returns whether there were any.
    async fn start_more(&mut self) -> Result<bool, crate::ports::MetadataError> {
        let batch = self.context.parts.settings.batch as usize;
        let limit = (self.taken.len() + self.held_rows + batch).min(WINDOW_MAX);
        let rows = self.context.parts.outbox.lowest(self.partition, limit as u32).await?;
        self.sees_more = rows.len() == limit && limit < WINDOW_MAX;
        let now = Instant::now();
        self.held_rows = rows.iter().filter(|row| self.held.contains_key(&row.message.order_key)).count();
        if self.held_rows == 0 {
            // They may have been taken out by another owner.
            self.held.clear();
            self.all_is_well();
        }
        let is_held = |key: &String| self.held.get(key).is_some_and(|(until, _)| now < *until);
        let mut chains: HashMap<String, Vec<OutboxRow>> = HashMap::new();
        let mut order = Vec::new();
        for row in rows {
            let key = &row.message.order_key;
            if self.taken.contains(&row.message.id.sequence) || self.busy.contains(key) || is_held(key) {
                continue;
            }
            match chains.get_mut(key) {
                Some(chain) => chain.push(row),
                None => {
                    order.push(key.clone());
                    chains.insert(key.clone(), vec![row]);
                }
            }
        }
        // Oldest first.
        for key in &order {
            let Some(chain) = chains.remove(key) else { continue };
            self.busy.insert(key.clone());
            self.taken.extend(chain.iter().map(|row| row.message.id.sequence));
            let (parts, hold, pipeline) = (self.context.parts.clone(), self.hold.clone(), self.pipeline.clone());
            self.running.push(publish_chain(parts, hold, pipeline, key.clone(), chain).boxed());
        }
        Ok(!order.is_empty())
    }

    /// Collects what ends within a moment. Returns whether something was published, and whether something failed.
    async fn collect(&mut self, started: bool) -> (bool, bool) {
        let (mut published, mut failed) = (false, false);
        let begun = Instant::now();
        loop {
            let first = !published && !failed;
            let wait = if first { LOOK_MAX } else { COLLECT_MAX.saturating_sub(begun.elapsed()) };
            let wait = wait.min(self.until_removal());
            let wake = &self.context.wake[usize::from(self.partition)];
            let end = tokio::select! {
                biased;
                end = self.running.next() => end,
                // There is more, and what runs may be slow.
                () = wake.notified(), if first && !started => None,
                () = tokio::time::sleep(wait) => None,
            };
            let Some(end) = end else { return (published, failed) };
            published |= !end.published.is_empty();
            failed |= self.note(end);
            if self.done.len() >= self.context.parts.settings.batch as usize {
                return (published, failed);
            }
        }
    }

    /// Returns whether it is a failure to pause after.
    fn note(&mut self, end: ChainEnd) -> bool {
        self.busy.remove(&end.order_key);
        for sequence in &end.left {
            self.taken.remove(sequence);
        }
        if !end.published.is_empty() {
            self.done_since.get_or_insert_with(Instant::now);
        }
        self.done.extend(end.published);
        let Some(error) = end.error else {
            self.held.remove(&end.order_key);
            self.all_is_well();
            return false;
        };
        let settings = &self.context.parts.settings;
        let pause = self.held.get(&end.order_key).map_or(settings.backoff.0, |(_, pause)| *pause);
        let next = (pause * 2).min(settings.backoff.1);
        // Those that were held already were counted by the look.
        if !self.held.contains_key(&end.order_key) {
            self.held_rows += end.left.len();
        }
        self.held.insert(end.order_key, (Instant::now() + pause, next));
        self.failed(error.to_string(), error.kind());
        // A message that took too long has paused already.
        !matches!(error, EventError::TimedOut(_))
    }

    /// Nothing is told any more, unless keys are held.
    fn all_is_well(&self) {
        if self.held.is_empty() {
            self.context.status.change(self.partition, |status| status.last_error = None);
        }
    }

    /// Tells of a failure, once for each partition and reason: a broker that is gone is gone for many messages.
    fn failed(&self, text: String, kind: &'static str) {
        metrics::counter!("holdfast_events_publish_failures_total", "kind" => kind).increment(1);
        let mut new = false;
        self.context.status.change(self.partition, |status| {
            new = status.last_error.as_ref() != Some(&text);
            status.last_error = Some(text.clone());
        });
        if new {
            tracing::warn!(partition = self.partition, error = text, "events cannot be published now, they wait");
        }
    }

    /// Removes from the outbox what the bus has, until that is done.
    async fn remove_done(&mut self) {
        let parts = &self.context.parts;
        let mut pause = parts.settings.backoff.0;
        while !self.done.is_empty() {
            let keep_at = parts.settings.keep.map(|_| parts.clock.now_ms());
            match parts.outbox.finish(self.partition, &self.done, keep_at).await {
                Ok(()) => {
                    self.done_since = None;
                    for sequence in self.done.drain(..) {
                        self.taken.remove(&sequence);
                    }
                }
                Err(error) => {
                    self.failed(format!("published events cannot be taken out of the outbox: {error}"), "database");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(parts.settings.backoff.1);
                }
            }
        }
    }
}

/// Publishes the messages of one key, one after the other, up to the first that fails.
async fn publish_chain(
    parts: RelayParts,
    hold: Arc<Hold>,
    pipeline: Arc<Semaphore>,
    order_key: String,
    chain: Vec<OutboxRow>,
) -> ChainEnd {
    let mut end = ChainEnd { order_key, published: Vec::new(), left: Vec::new(), error: None };
    let mut rows = chain.into_iter();
    for row in rows.by_ref() {
        let sequence = row.message.id.sequence;
        match publish_one(&parts, &hold, &pipeline, &row).await {
            Ok(()) => end.published.push(sequence),
            Err(error) => {
                end.left.push(sequence);
                end.error = Some(error);
                break;
            }
        }
    }
    end.left.extend(rows.map(|row| row.message.id.sequence));
    end
}

async fn publish_one(parts: &RelayParts, hold: &Hold, pipeline: &Semaphore, row: &OutboxRow) -> EventResult<()> {
    let Ok(_permit) = pipeline.acquire().await else { return Err(EventError::Closed) };
    // Now, not when the rows were read: this process may have been stopped since.
    let proven = hold.proven();
    if proven < PROVEN_MIN {
        return Err(EventError::Unavailable("the lease of the partition is not proven".into()));
    }
    let started = Instant::now();
    let limit = parts.settings.publish_timeout.min(proven - PROVEN_MARGIN);
    parts.bus.publish(row.topic, &row.message, Instant::now() + limit).await?;
    let topic = row.topic.as_str();
    metrics::counter!("holdfast_events_published_total", "topic" => topic).increment(1);
    metrics::histogram!("holdfast_events_publish_seconds").record(started.elapsed().as_secs_f64());
    let delay_ms = parts.clock.now_ms().saturating_sub(row.queued_ms);
    metrics::histogram!("holdfast_events_delay_seconds", "topic" => topic).record(delay_ms as f64 / 1_000.0);
    Ok(())
}
