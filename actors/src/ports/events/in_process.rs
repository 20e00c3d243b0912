//! A bus within the process, for nodes without a broker.
//!
//! It stores nothing on disk: [`EventBus::publish`] returns when every group has acknowledged the message, so that the
//! outbox keeps what was not. A message that the relay publishes again while it is still here is not taken twice; the
//! relay then waits for the one that is here.
//!
//! **Bounds.** [`InProcessLimits::messages_max`] messages a topic; beyond that `publish` says [`EventError::Full`]. For
//! [`EventBus::read`] the last [`InProcessLimits::read_back_max`] messages are kept besides.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_protocol::EventId;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::{EventBus, EventError, EventResult, Message, Page, Position, SubscribeOptions, Subscription, Topic};

mod subscription;

use subscription::InProcessSubscription;

/// How much a bus holds, for each topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InProcessLimits {
    /// Messages that some group has not acknowledged.
    pub messages_max: usize,
    /// Messages that can be read again.
    pub read_back_max: usize,
}

impl Default for InProcessLimits {
    fn default() -> Self {
        Self { messages_max: 16_384, read_back_max: 256 }
    }
}

/// The bus. Cheap to clone.
#[derive(Clone)]
pub struct InProcessEventBus {
    topics: Arc<[Shared; Topic::ALL.len()]>,
}

/// One topic.
struct Shared {
    limits: InProcessLimits,
    state: Mutex<State>,
    /// Changes with everything that somebody may wait for.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    closed: bool,
    /// Messages that some group has not acknowledged, with how many those are.
    open: HashMap<EventId, usize>,
    groups: BTreeMap<String, Group>,
    recent: VecDeque<Arc<Message>>,
    /// How many messages there were before those in `recent`.
    recent_start: u64,
    receipts: u64,
}

#[derive(Default)]
struct Group {
    ready: VecDeque<(Arc<Message>, u32)>,
    /// Delivered, by number of the receipt.
    leased: HashMap<u64, Leased>,
    /// Put back, by when they are due.
    paused: BTreeMap<(Instant, u64), (Arc<Message>, u32)>,
}

struct Leased {
    message: Arc<Message>,
    attempt: u32,
    until: Instant,
}

impl Group {
    /// Makes ready what is due: paused messages, and those whose lease is over.
    fn settle(&mut self, now: Instant) {
        while let Some(entry) = self.paused.first_entry()
            && entry.key().0 <= now
        {
            self.ready.push_back(entry.remove());
        }
        let mut over: Vec<u64> = self.leased.iter().filter(|(_, l)| l.until <= now).map(|(n, _)| *n).collect();
        over.sort_unstable();
        for leased in over.into_iter().filter_map(|number| self.leased.remove(&number)) {
            self.ready.push_back((leased.message, leased.attempt + 1));
        }
    }

    /// When there is something to settle next.
    fn next_due(&self) -> Option<Instant> {
        let paused = self.paused.first_key_value().map(|((due, _), _)| *due);
        self.leased.values().map(|leased| leased.until).chain(paused).min()
    }
}

impl InProcessEventBus {
    /// An empty bus.
    pub fn new(limits: InProcessLimits) -> Self {
        let topic = || Shared { limits, state: Mutex::default(), changed: watch::Sender::new(0) };
        Self { topics: Arc::new([topic(), topic(), topic()]) }
    }

    fn topic(&self, topic: Topic) -> &Shared {
        &self.topics[topic as usize]
    }
}

impl Shared {
    fn tell(&self) {
        self.changed.send_modify(|changed| *changed += 1);
    }

    /// Takes a message in, unless it is here already. `None`: no group is there to take it.
    fn take(&self, message: &Message) -> EventResult<Option<()>> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(EventError::Closed);
        }
        if state.open.contains_key(&message.id) {
            return Ok(Some(()));
        }
        if state.groups.is_empty() {
            return Ok(None);
        }
        if state.open.len() >= self.limits.messages_max {
            return Err(EventError::Full(format!("{} messages wait for their consumers", state.open.len())));
        }
        let shared = Arc::new(message.clone());
        let groups = state.groups.len();
        state.open.insert(message.id, groups);
        for group in state.groups.values_mut() {
            group.ready.push_back((shared.clone(), 1));
        }
        state.recent.push_back(shared);
        if state.recent.len() > self.limits.read_back_max {
            state.recent.pop_front();
            state.recent_start += 1;
        }
        drop(state);
        self.tell();
        Ok(Some(()))
    }
}

#[async_trait]
impl EventBus for InProcessEventBus {
    async fn publish(&self, topic: Topic, message: &Message, deadline: Instant) -> EventResult<()> {
        message.check()?;
        let topic = self.topic(topic);
        let mut changed = topic.changed.subscribe();
        let mut taken = false;
        loop {
            changed.borrow_and_update();
            if !taken {
                taken = topic.take(message)?.is_some();
            }
            {
                let state = topic.state.lock();
                if taken && !state.open.contains_key(&message.id) {
                    return Ok(());
                }
                if state.closed {
                    return Err(EventError::Closed);
                }
            }
            if timeout_at(deadline, changed.changed()).await.is_err() {
                return Err(match taken {
                    true => EventError::TimedOut("no consumer has acknowledged it".into()),
                    false => EventError::Unavailable("nobody is subscribed".into()),
                });
            }
        }
    }

    async fn subscribe(&self, topic: Topic, options: SubscribeOptions) -> EventResult<Box<dyn Subscription>> {
        options.check()?;
        let shared = self.topic(topic);
        {
            let mut state = shared.state.lock();
            if state.closed {
                return Err(EventError::Closed);
            }
            state.groups.entry(options.group.clone()).or_default();
        }
        shared.tell();
        Ok(Box::new(InProcessSubscription { bus: self.clone(), topic, options }))
    }

    async fn read(&self, topic: Topic, from: Position, limit: usize, wait: Duration) -> EventResult<Page> {
        let topic = self.topic(topic);
        let deadline = Instant::now() + wait;
        let mut changed = topic.changed.subscribe();
        let mut start = match from {
            Position::Oldest => Some(0),
            Position::Newest => None,
            Position::After(text) => {
                Some(text.parse::<u64>().map_err(|_| EventError::Invalid(format!("{text:?} is no position")))?)
            }
        };
        loop {
            changed.borrow_and_update();
            let page = {
                let state = topic.state.lock();
                if state.closed {
                    return Err(EventError::Closed);
                }
                let end = state.recent_start + state.recent.len() as u64;
                // A position of before a restart, or of what was forgotten since.
                let first = start.map_or(end, |start| start.clamp(state.recent_start, end));
                start = Some(first);
                let skip = (first - state.recent_start) as usize;
                let messages: Vec<Message> =
                    state.recent.iter().skip(skip).take(limit).map(|m| (**m).clone()).collect();
                let next = Position::After((first + messages.len() as u64).to_string());
                Page { messages, next }
            };
            if !page.messages.is_empty() || timeout_at(deadline, changed.changed()).await.is_err() {
                return Ok(page);
            }
        }
    }

    async fn check(&self, topic: Topic) -> EventResult<()> {
        let topic = self.topic(topic);
        let state = topic.state.lock();
        if state.closed {
            return Err(EventError::Closed);
        }
        if state.open.len() >= topic.limits.messages_max {
            return Err(EventError::Full(format!("{} messages wait for their consumers", state.open.len())));
        }
        Ok(())
    }

    async fn close(&self) {
        for topic in &*self.topics {
            *topic.state.lock() = State { closed: true, ..State::default() };
            topic.tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{Harness, message};
    use super::*;

    struct InProcess(InProcessEventBus);

    #[async_trait]
    impl Harness for InProcess {
        fn bus(&self) -> Arc<dyn EventBus> {
            Arc::new(self.0.clone())
        }
    }

    crate::event_bus_conformance!(InProcess(InProcessEventBus::new(InProcessLimits::default())));

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    fn options(group: &str) -> SubscribeOptions {
        SubscribeOptions { group: group.into(), lease: Duration::from_secs(1) }
    }

    #[tokio::test(start_paused = true)]
    async fn publishing_waits_for_every_group() {
        let bus = InProcessEventBus::new(InProcessLimits::default());
        let first = message(1, "key");
        let nobody = bus.publish(Topic::Tasks, &first, soon()).await;
        assert!(matches!(nobody, Err(EventError::Unavailable(_))), "{nobody:?}");
        let mut one = bus.subscribe(Topic::Tasks, options("one")).await.unwrap();
        let mut two = bus.subscribe(Topic::Tasks, options("two")).await.unwrap();
        let publishing = tokio::spawn({
            let (bus, first) = (bus.clone(), first.clone());
            async move { bus.publish(Topic::Tasks, &first, soon()).await }
        });
        let got = one.receive(1, Duration::from_secs(1)).await.unwrap();
        one.ack(&got[0]).await.unwrap();
        tokio::task::yield_now().await;
        assert!(!publishing.is_finished(), "one group has not acknowledged it");
        let got = two.receive(1, Duration::from_secs(1)).await.unwrap();
        two.ack(&got[0]).await.unwrap();
        publishing.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn message_published_again_is_the_one_that_is_here() {
        let bus = InProcessEventBus::new(InProcessLimits::default());
        let mut subscription = bus.subscribe(Topic::Tasks, options("one")).await.unwrap();
        let first = message(1, "key");
        for _ in 0..2 {
            let lost = bus.publish(Topic::Tasks, &first, Instant::now() + Duration::from_millis(10)).await;
            assert!(matches!(lost, Err(EventError::TimedOut(_))), "{lost:?}");
        }
        let got = subscription.receive(9, Duration::from_secs(1)).await.unwrap();
        assert_eq!(got.len(), 1);
        subscription.ack(&got[0]).await.unwrap();
        assert!(subscription.receive(9, Duration::from_secs(5)).await.unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn full_bus_refuses_until_something_is_acknowledged() {
        let bus = InProcessEventBus::new(InProcessLimits { messages_max: 1, read_back_max: 1 });
        let mut subscription = bus.subscribe(Topic::Tasks, options("one")).await.unwrap();
        let (first, second) = (message(1, "a"), message(2, "b"));
        let at_once = || Instant::now() + Duration::from_millis(1);
        assert!(matches!(bus.publish(Topic::Tasks, &first, at_once()).await, Err(EventError::TimedOut(_))));
        assert!(matches!(bus.publish(Topic::Tasks, &second, at_once()).await, Err(EventError::Full(_))));
        assert!(matches!(bus.check(Topic::Tasks).await, Err(EventError::Full(_))));
        let got = subscription.receive(1, Duration::ZERO).await.unwrap();
        subscription.ack(&got[0]).await.unwrap();
        bus.check(Topic::Tasks).await.unwrap();
        assert!(matches!(bus.publish(Topic::Tasks, &second, at_once()).await, Err(EventError::TimedOut(_))));
    }
}
