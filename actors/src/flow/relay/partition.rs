//! One partition, as long as this node owns it.
//!
//! Everything that may take a while (a look at the outbox, requests to the bus, the removal of what was published) runs
//! beside the others; [`Serving`] decides what comes next. While a look is under way nothing that was held is let go:
//! the look did not ask for those rows, and would show later ones of their keys.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::held::{Held, Lane};
use super::house::keep_house;
use super::owner::{Hold, acquire};
use super::publish::{GroupEnd, PROVEN_MIN, publish_group};
use super::{Context, WINDOW_MAX};
use crate::flow::told::Told;
use crate::ports::events::Topic;
use crate::ports::outbox::{Look, OutboxRow};

/// How often what is not proven is looked at.
const UNPROVEN_PAUSE: Duration = Duration::from_millis(100);
/// The longest wait before rows are looked at again, whatever was missed.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// How long removing what was published may take after the lease was lost.
const LAST_WORDS: Duration = Duration::from_secs(2);

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
        serving.hand_over().await;
        drop(serving);
        context.status.leave(partition, context.parts.clock.now_ms());
        tracing::debug!(partition, "this node no longer publishes from a partition of the outbox");
        if let Ok(hold) = Arc::try_unwrap(hold) {
            hold.release().await;
        }
    }
}

/// What happened.
enum Step {
    Found(Result<Vec<OutboxRow>, String>),
    Ended(GroupEnd),
    Removed(Result<(), String>),
    /// There may be more.
    Woken,
    /// It is time for the next look.
    Due,
}

/// Something that may be under way.
type Slot<T> = Option<BoxFuture<'static, Result<T, String>>>;

async fn done<T>(slot: &mut Slot<T>) -> Result<T, String> {
    match slot {
        Some(under_way) => under_way.await,
        None => std::future::pending().await,
    }
}

pub(super) struct Serving<'a> {
    context: &'a Context,
    partition: u16,
    hold: Arc<Hold>,
    running: FuturesUnordered<BoxFuture<'static, GroupEnd>>,
    pipeline: Arc<Semaphore>,
    /// Keys that have messages on their way.
    busy: HashSet<String>,
    /// Sequences on their way, or published and not removed: looks leave them out.
    taken: HashSet<u64>,
    /// What was refused. Looks leave it out too.
    held: Held,
    looking: Slot<Vec<OutboxRow>>,
    /// How many rows that look asked for.
    asked: usize,
    looked: Instant,
    /// Whether there may be rows that no look saw.
    wanted: bool,
    /// Whether the last look saw rows of keys that were busy.
    passed_over: bool,
    /// No look before.
    not_before: Instant,
    /// Pause after the next failure of the database.
    pause: Duration,
    /// Published, to be removed.
    done: Vec<u64>,
    removing: Slot<()>,
    /// What that removes.
    removed: Vec<u64>,
    /// No removal before.
    remove_not_before: Instant,
    told: Told,
}

impl<'a> Serving<'a> {
    pub(super) fn new(context: &'a Context, partition: u16, hold: Arc<Hold>) -> Self {
        let (settings, now) = (&context.parts.settings, Instant::now());
        Self {
            context,
            partition,
            hold,
            running: FuturesUnordered::new(),
            pipeline: Arc::new(Semaphore::new(settings.pipeline)),
            busy: HashSet::new(),
            taken: HashSet::new(),
            held: Held::default(),
            looking: None,
            asked: 0,
            looked: now,
            wanted: true,
            passed_over: false,
            not_before: now,
            pause: settings.backoff.0,
            done: Vec::new(),
            removing: None,
            removed: Vec::new(),
            remove_not_before: now,
            told: Told::default(),
        }
    }

    pub(super) async fn serve(&mut self) {
        loop {
            let now = Instant::now();
            if self.next_look().is_some_and(|at| at <= now) {
                self.begin_look(now);
            }
            self.begin_removal(now);
            match self.next_step().await {
                Step::Found(found) => {
                    self.looking = None;
                    self.found(found);
                }
                Step::Ended(end) => self.ended(end),
                Step::Removed(removed) => self.note_removed(removed),
                Step::Woken => self.wanted = true,
                Step::Due => {}
            }
        }
    }

    /// Ends what is under way. Answers are waited for as long as the right to the partition is proven: whoever follows
    /// would send the same once more, and this request might come behind that, and behind what follows it. What arrived
    /// is taken out.
    pub(super) async fn hand_over(&mut self) {
        let limit = self.context.parts.settings.publish_timeout.min(self.hold.proven());
        let answered = async {
            while let Some(end) = self.running.next().await {
                self.ended(end);
            }
        };
        drop(tokio::time::timeout(limit, answered).await);
        self.running.clear();
        drop(tokio::time::timeout(LAST_WORDS, self.remove_all()).await);
    }

    /// When to look next. `None`: something else must happen first.
    fn next_look(&self) -> Option<Instant> {
        if self.looking.is_some() {
            return None;
        }
        let due = self.held.next_due();
        let full = self.taken.len() + self.held.rows() >= WINDOW_MAX;
        let at = match (full, self.wanted) {
            // Only what is let go makes room, or what is removed.
            (true, _) => due?,
            (false, true) => self.not_before,
            (false, false) => {
                let latest = self.looked + LOOK_MAX;
                due.map_or(latest, |due| due.min(latest))
            }
        };
        Some(at.max(self.not_before))
    }

    async fn next_step(&mut self) -> Step {
        let at = self.next_look();
        let retry = (self.removing.is_none() && !self.done.is_empty()).then_some(self.remove_not_before);
        let at = [at, retry].into_iter().flatten().min().unwrap_or_else(|| Instant::now() + LOOK_MAX);
        let Self { looking, running, removing, .. } = self;
        tokio::select! {
            biased;
            Some(end) = running.next() => Step::Ended(end),
            found = done(looking) => Step::Found(found),
            removed = done(removing) => Step::Removed(removed),
            () = self.context.wake[usize::from(self.partition)].notified() => Step::Woken,
            () = tokio::time::sleep_until(at) => Step::Due,
        }
    }

    fn begin_look(&mut self, now: Instant) {
        if self.hold.proven() < PROVEN_MIN {
            self.not_before = now + UNPROVEN_PAUSE;
            return;
        }
        self.held.release(now);
        (self.wanted, self.passed_over, self.looked) = (false, false, now);
        let room = WINDOW_MAX.saturating_sub(self.taken.len() + self.held.rows());
        self.asked = room.min(self.context.parts.settings.batch as usize);
        let except = self.taken.iter().copied().chain(self.held.sequences()).collect();
        let look = Look { partition: self.partition, limit: self.asked as u32, except };
        self.looking = Some(self.context.gather.clone().look(look).boxed());
    }

    /// Starts the rows whose keys are free, those of a lane together.
    fn found(&mut self, found: Result<Vec<OutboxRow>, String>) {
        let settings = &self.context.parts.settings;
        let rows = match found {
            Ok(rows) => rows,
            Err(error) => {
                self.failed(format!("the outbox cannot be read: {error}"), "database");
                (self.wanted, self.not_before) = (true, Instant::now() + self.pause);
                self.pause = (self.pause * 2).min(settings.backoff.1);
                return;
            }
        };
        self.pause = settings.backoff.0;
        let is_full = rows.len() >= self.asked;
        let mut groups: HashMap<Lane, (Topic, Vec<OutboxRow>)> = HashMap::new();
        // Of each key one: the bus may learn of other places in the middle of this, and one key must not be in two
        // groups.
        let mut lanes: HashMap<(Topic, String), Lane> = HashMap::new();
        let (mut order, mut passed_over) = (Vec::new(), 0);
        let count = rows.len();
        for row in rows {
            let key = &row.message.order_key;
            if self.busy.contains(key) {
                passed_over += 1;
                continue;
            }
            let bus_lane = || Lane::Of(row.topic, self.context.parts.bus.lane(row.topic, key));
            let lane = lanes.entry((row.topic, key.clone())).or_insert_with(bus_lane).clone();
            if self.held.holds(&lane, key, row.message.id.sequence) {
                self.held.add(&lane, row.message.order_key, row.message.id.sequence);
                continue;
            }
            let (_, group) = groups.entry(lane.clone()).or_insert_with(|| {
                order.push(lane);
                (row.topic, Vec::new())
            });
            group.push(row);
        }
        self.passed_over = passed_over > 0;
        // What is busy is seen again when it is no longer.
        self.wanted |= is_full && passed_over < count;
        // Oldest first.
        for lane in &order {
            if let Some((topic, rows)) = groups.remove(lane) {
                self.start(topic, lane.clone(), rows);
            }
        }
        // At the bound nothing more is looked for until something is let go. What was let go may have another lane by
        // now, as when the bus has learnt its places, and then says nothing of the one that it was held by.
        let is_bound = self.taken.len() + self.held.rows() >= WINDOW_MAX;
        if !is_full || is_bound {
            self.held.settle();
        }
        if !is_full {
            self.all_is_well();
        }
    }

    fn start(&mut self, topic: Topic, lane: Lane, rows: Vec<OutboxRow>) {
        self.busy.extend(rows.iter().map(|row| row.message.order_key.clone()));
        self.taken.extend(rows.iter().map(|row| row.message.id.sequence));
        if !self.held.is_empty() {
            self.held.begun(&lane);
            rows.iter().for_each(|row| self.held.begun(&Lane::Key(row.message.order_key.clone())));
        }
        let (parts, hold, pipeline) = (self.context.parts.clone(), self.hold.clone(), self.pipeline.clone());
        self.running.push(publish_group(parts, hold, pipeline, (topic, lane), rows).boxed());
    }

    fn ended(&mut self, end: GroupEnd) {
        let GroupEnd { lane, published, left, error, is_lane } = end;
        let (now, backoff) = (Instant::now(), self.context.parts.settings.backoff);
        if !is_lane {
            self.held.works(&lane, now, backoff);
        }
        for (key, sequences) in published {
            self.busy.remove(&key);
            let has_some = !sequences.is_empty();
            self.done.extend(sequences);
            let alone = Lane::Key(key);
            if has_some {
                self.held.works(&alone, now, backoff);
            } else if self.held.has(&alone) {
                self.held.hold(&alone, now, backoff);
            }
        }
        for (key, sequence) in left {
            self.taken.remove(&sequence);
            let lane = if is_lane { lane.clone() } else { Lane::Key(key.clone()) };
            self.held.hold(&lane, now, backoff);
            self.held.add(&lane, key, sequence);
        }
        // They may be read now.
        self.wanted |= self.passed_over;
        match error {
            Some(error) => self.failed(error.to_string(), error.kind()),
            None => self.all_is_well(),
        }
    }

    /// Nothing is told any more, unless something is held.
    fn all_is_well(&mut self) {
        if self.held.is_empty() {
            self.told.settle(Instant::now());
            self.context.status.change(self.partition, |status| status.last_error = None);
        }
    }

    /// Tells of a failure, now and then for each partition and reason: a broker that is gone is gone for many messages.
    fn failed(&mut self, text: String, kind: &'static str) {
        metrics::counter!("holdfast_events_publish_failures_total", "kind" => kind).increment(1);
        self.context.status.change(self.partition, |status| status.last_error = Some(text.clone()));
        if self.told.is_news(&text, Instant::now()) {
            tracing::warn!(partition = self.partition, error = text, "events cannot be published now, they wait");
        }
    }

    /// Has what the bus has taken out of the outbox, one removal at a time.
    fn begin_removal(&mut self, now: Instant) {
        if self.removing.is_some() || self.done.is_empty() || now < self.remove_not_before {
            return;
        }
        self.removed = std::mem::take(&mut self.done);
        let removal = self.context.gather.clone().remove(self.partition, self.removed.clone());
        self.removing = Some(removal.boxed());
    }

    fn note_removed(&mut self, removed: Result<(), String>) {
        self.removing = None;
        match removed {
            Ok(()) => {
                for sequence in self.removed.drain(..) {
                    self.taken.remove(&sequence);
                }
            }
            Err(error) => {
                self.done.append(&mut self.removed);
                self.failed(format!("published events cannot be taken out of the outbox: {error}"), "database");
                self.remove_not_before = Instant::now() + self.context.parts.settings.backoff.1;
            }
        }
    }

    /// Removes at once what the bus has, if the outbox can be reached.
    async fn remove_all(&mut self) {
        while self.removing.is_some() || !self.done.is_empty() {
            self.begin_removal(Instant::now());
            if self.removing.is_none() {
                return;
            }
            self.context.gather.hurry();
            let removed = done(&mut self.removing).await;
            self.note_removed(removed);
        }
    }
}
