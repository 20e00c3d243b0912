//! What every adapter of [`EventBus`] does, as tests. An adapter's test crate implements [`Harness`] and calls
//! [`crate::event_bus_conformance!`].

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(missing_docs, reason = "the names of the cases say what they check")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_protocol::EventId;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{
    Delivery, EventBus, EventError, EventResult, Message, Page, Position, SubscribeOptions, Subscription, Topic,
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// The shortest lease.
const LEASE: Duration = Duration::from_secs(1);
/// One that a busy service answers within, and whose end can be waited for.
const CALM_LEASE: Duration = Duration::from_secs(8);
/// Far enough past the end of a lease or a pause that what is delivered after it would have come.
const AFTERWARDS: Duration = Duration::from_secs(4);
/// A lease that does not end within a test.
const LONG_LEASE: Duration = Duration::from_secs(60);

/// A bus without messages in it.
#[async_trait]
pub trait Harness: Send + Sync {
    fn bus(&self) -> Arc<dyn EventBus>;
}

/// A message with a body of its own.
pub fn message(sequence: u64, order_key: &str) -> Message {
    let id = EventId { sequence, nonce: 7 };
    Message {
        id,
        order_key: order_key.into(),
        tag: "ObjectCreated:Put".into(),
        keys: vec!["some/key".into(), id.to_string()],
        body: Bytes::from(format!("body of {sequence}")),
    }
}

/// Expands to one test a case. `$harness` is an expression that makes a fresh, empty bus: it may await.
#[macro_export]
macro_rules! event_bus_conformance {
    ($harness:expr) => {
        $crate::event_bus_conformance! { @each $harness;
            message_arrives_as_it_was_published
            messages_of_a_key_arrive_in_order
            message_published_before_the_first_subscription_arrives
            acknowledged_message_is_not_delivered_again
            message_that_is_not_acknowledged_is_delivered_again
            message_put_back_returns_after_its_pause_and_holds_up_nobody
            extended_lease_keeps_a_message_away_from_others
            every_group_gets_every_message
            members_of_a_group_share_its_messages
            messages_published_together_arrive_in_the_order_of_their_keys
            readers_see_messages_in_order_and_go_on_where_they_were
            reader_of_the_newest_sees_only_what_follows
            invalid_requests_are_refused
            closed_bus_refuses
        }
    };
    (@each $harness:expr; $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let harness = $harness;
                $crate::ports::events::conformance::$case(&harness).await;
            }
        )*
    };
}

/// Publishes in the background, as the in-process bus waits for consumers; one of a key after the other.
fn publish(bus: &Arc<dyn EventBus>, topic: Topic, messages: Vec<Message>) -> JoinHandle<()> {
    let bus = bus.clone();
    tokio::spawn(async move {
        let mut chains: BTreeMap<String, Vec<Message>> = BTreeMap::new();
        for message in messages {
            chains.entry(message.order_key.clone()).or_default().push(message);
        }
        let chains = chains.into_values().map(|chain| async {
            for message in chain {
                publish_one(&*bus, topic, &message).await;
            }
        });
        futures::future::join_all(chains).await;
    })
}

/// Tries again what a bus that is busy refuses, as a publisher has to.
pub async fn publish_one(bus: &dyn EventBus, topic: Topic, message: &Message) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match bus.publish(topic, message, deadline).await {
            Ok(()) => return,
            Err(EventError::Unavailable(_)) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{message:?}: {error}"),
        }
    }
}

async fn subscribe(bus: &Arc<dyn EventBus>, topic: Topic, group: &str, lease: Duration) -> Box<dyn Subscription> {
    bus.subscribe(topic, SubscribeOptions { group: group.into(), lease }).await.unwrap()
}

/// Receives until `enough` says so, doing `then` with each delivery.
async fn receive_until(
    subscription: &mut Box<dyn Subscription>,
    mut enough: impl FnMut(&Delivery) -> bool,
) -> Vec<Delivery> {
    let deadline = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    loop {
        assert!(Instant::now() < deadline, "only this was delivered: {all:?}");
        for delivery in subscription.receive(16, Duration::from_secs(1)).await.unwrap() {
            let done = enough(&delivery);
            all.push(delivery);
            if done {
                return all;
            }
        }
    }
}

async fn receive_one(subscription: &mut Box<dyn Subscription>) -> Delivery {
    receive_until(subscription, |_| true).await.pop().unwrap()
}

/// Receives and acknowledges `count` messages.
async fn consume(subscription: &mut Box<dyn Subscription>, count: usize) -> Vec<Message> {
    let deadline = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    while all.len() < count {
        assert!(Instant::now() < deadline, "only this was delivered: {all:?}");
        for delivery in subscription.receive(16, Duration::from_secs(1)).await.unwrap() {
            subscription.ack(&delivery).await.unwrap();
            all.push(delivery.message);
        }
    }
    all
}

pub async fn message_arrives_as_it_was_published(harness: &impl Harness) {
    let bus = harness.bus();
    let mut subscription = subscribe(&bus, Topic::Tasks, "workers", LONG_LEASE).await;
    let sent = Message {
        body: Bytes::from((0..=255).collect::<Vec<u8>>()),
        order_key: "bucket/caf\u{e9} noir \u{1f4f7}".into(),
        keys: vec!["caf%C3%A9+noir".into(), "0000000000000001-00000007".into()],
        ..message(1, "")
    };
    let publishing = publish(&bus, Topic::Tasks, vec![sent.clone()]);
    let delivery = receive_one(&mut subscription).await;
    assert_eq!(delivery.message, sent);
    assert_eq!(delivery.attempt, 1);
    subscription.ack(&delivery).await.unwrap();
    publishing.await.unwrap();
}

pub async fn messages_of_a_key_arrive_in_order(harness: &impl Harness) {
    let bus = harness.bus();
    let mut subscription = subscribe(&bus, Topic::Tasks, "workers", LONG_LEASE).await;
    let messages: Vec<Message> = (0..60).map(|n| message(n, &format!("bucket/{}", n % 7))).collect();
    let publishing = publish(&bus, Topic::Tasks, messages);
    let got = consume(&mut subscription, 60).await;
    publishing.await.unwrap();
    in_order(&got);
}

fn in_order(messages: &[Message]) {
    let mut last = BTreeMap::new();
    for message in messages {
        let before = last.insert(&message.order_key, message.id);
        assert!(before.is_none_or(|before| before < message.id), "{message:?} after {before:?}");
    }
}

pub async fn messages_published_together_arrive_in_the_order_of_their_keys(harness: &impl Harness) {
    let bus = harness.bus();
    let mut subscription = subscribe(&bus, Topic::Tasks, "workers", LONG_LEASE).await;
    let mut messages: Vec<Message> = (0..60).map(|n| message(n, &format!("bucket/caf\u{e9} {}", n % 7))).collect();
    // A bus that cannot carry one of them carries the others, and of its key what stands before it.
    messages[20].tag = "no tag".into();
    let refused: Vec<usize> = (20..60).filter(|n| n % 7 == 20 % 7).collect();
    let publishing = tokio::spawn({
        let (bus, messages) = (bus.clone(), messages.clone());
        async move { bus.publish_all(Topic::Tasks, &messages, Instant::now() + PATIENCE).await }
    });
    let mut got = consume(&mut subscription, 60 - refused.len()).await;
    let results = publishing.await.unwrap();
    let failed: Vec<usize> = (0..results.len()).filter(|place| results[*place].is_err()).collect();
    assert_eq!((results.len(), &failed), (60, &refused), "{results:?}");
    assert!(matches!(results[20], Err(EventError::Invalid(_))), "{:?}", results[20]);
    in_order(&got);
    got.sort_by_key(|message| message.id);
    let expected = messages.into_iter().enumerate().filter(|(place, _)| !refused.contains(place));
    assert_eq!(got, expected.map(|(_, message)| message).collect::<Vec<_>>());
    assert!(bus.publish_all(Topic::Tasks, &[], Instant::now() + PATIENCE).await.is_empty());
    // What has one lane once has one place to go to.
    assert_eq!(bus.lane(Topic::Tasks, "bucket/key"), bus.lane(Topic::Tasks, "bucket/key"));
}

pub async fn message_published_before_the_first_subscription_arrives(harness: &impl Harness) {
    let bus = harness.bus();
    let publishing = publish(&bus, Topic::Tasks, vec![message(1, "key")]);
    // Nothing tells when a message is with the bus while nobody receives. If it came later than the subscription for
    // once, the test would prove less, and not fail.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut subscription = subscribe(&bus, Topic::Tasks, "late", LONG_LEASE).await;
    assert_eq!(consume(&mut subscription, 1).await, [message(1, "key")]);
    publishing.await.unwrap();
}

pub async fn acknowledged_message_is_not_delivered_again(harness: &impl Harness) {
    let bus = harness.bus();
    let mut subscription = subscribe(&bus, Topic::Tasks, "workers", CALM_LEASE).await;
    let publishing = publish(&bus, Topic::Tasks, vec![message(1, "key")]);
    consume(&mut subscription, 1).await;
    publishing.await.unwrap();
    let again = subscription.receive(1, CALM_LEASE + AFTERWARDS).await.unwrap();
    assert!(again.is_empty(), "{again:?}");
}

pub async fn message_that_is_not_acknowledged_is_delivered_again(harness: &impl Harness) {
    let bus = harness.bus();
    let mut subscription = subscribe(&bus, Topic::Tasks, "workers", LEASE).await;
    let publishing = publish(&bus, Topic::Tasks, vec![message(1, "key")]);
    let first = receive_one(&mut subscription).await;
    // The one that got it may be gone: another one gets it.
    drop(subscription);
    let mut other = subscribe(&bus, Topic::Tasks, "workers", LONG_LEASE).await;
    let second = receive_one(&mut other).await;
    assert_eq!(second.message, first.message);
    assert!(second.attempt > first.attempt, "{second:?}");
    other.ack(&second).await.unwrap();
    publishing.await.unwrap();
}

pub async fn message_put_back_returns_after_its_pause_and_holds_up_nobody(harness: &impl Harness) {
    let bus = harness.bus();
    let mut subscription = subscribe(&bus, Topic::Tasks, "workers", LONG_LEASE).await;
    let publishing = publish(&bus, Topic::Tasks, vec![message(1, "bad")]);
    let bad = receive_one(&mut subscription).await;
    let put_back = Instant::now();
    // Longer than publishing and delivering the others takes on a busy machine.
    subscription.retry(&bad, Duration::from_secs(10)).await.unwrap();
    // Of the same key and of others.
    let more = publish(&bus, Topic::Tasks, vec![message(2, "bad-not"), message(3, "other")]);
    let mut passed = BTreeSet::new();
    let all = receive_until(&mut subscription, |delivery| {
        passed.insert(delivery.message.id.sequence);
        passed.len() == 3
    });
    let all = all.await;
    let again = all.last().unwrap();
    assert_eq!(again.message, bad.message, "the others came before it");
    assert!(again.attempt > 1, "{again:?}");
    assert!(put_back.elapsed() >= Duration::from_secs(9), "it came after {:?}", put_back.elapsed());
    for delivery in &all {
        subscription.ack(delivery).await.unwrap();
    }
    publishing.await.unwrap();
    more.await.unwrap();
}

pub async fn extended_lease_keeps_a_message_away_from_others(harness: &impl Harness) {
    let bus = harness.bus();
    let mut subscription = subscribe(&bus, Topic::Tasks, "workers", CALM_LEASE).await;
    let publishing = publish(&bus, Topic::Tasks, vec![message(1, "key")]);
    let mut delivery = receive_one(&mut subscription).await;
    subscription.extend(&mut delivery, LONG_LEASE).await.unwrap();
    let again = subscription.receive(1, CALM_LEASE + AFTERWARDS).await.unwrap();
    assert!(again.is_empty(), "{again:?}");
    subscription.ack(&delivery).await.unwrap();
    publishing.await.unwrap();
}

pub async fn every_group_gets_every_message(harness: &impl Harness) {
    let bus = harness.bus();
    let mut one = subscribe(&bus, Topic::Tasks, "one", LONG_LEASE).await;
    let mut two = subscribe(&bus, Topic::Tasks, "two", LONG_LEASE).await;
    let publishing = publish(&bus, Topic::Tasks, (1..=5).map(|n| message(n, "key")).collect());
    let (first, second) = tokio::join!(consume(&mut one, 5), consume(&mut two, 5));
    assert_eq!(first, second);
    publishing.await.unwrap();
}

pub async fn members_of_a_group_share_its_messages(harness: &impl Harness) {
    let bus = harness.bus();
    let mut one = subscribe(&bus, Topic::Tasks, "workers", LONG_LEASE).await;
    let mut two = subscribe(&bus, Topic::Tasks, "workers", LONG_LEASE).await;
    let publishing = publish(&bus, Topic::Tasks, (0..40).map(|n| message(n, &format!("key-{n}"))).collect());
    let mut seen = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while seen.len() < 40 {
        assert!(Instant::now() < deadline, "only these were delivered: {seen:?}");
        for member in [&mut one, &mut two] {
            for delivery in member.receive(3, Duration::from_millis(100)).await.unwrap() {
                member.ack(&delivery).await.unwrap();
                seen.push(delivery.message.id.sequence);
            }
        }
    }
    publishing.await.unwrap();
    seen.sort_unstable();
    assert_eq!(seen, (0..40).collect::<Vec<_>>(), "each once");
}

/// Reads until `count` messages were seen.
async fn read(bus: &Arc<dyn EventBus>, topic: Topic, from: Position, count: usize) -> (Vec<Message>, Position) {
    let deadline = Instant::now() + PATIENCE;
    let (mut all, mut at) = (Vec::new(), from);
    while all.len() < count {
        assert!(Instant::now() < deadline, "only this was read: {all:?}");
        let Page { messages, next } = bus.read(topic, at, 8, Duration::from_secs(1)).await.unwrap();
        all.extend(messages);
        at = next;
    }
    (all, at)
}

pub async fn readers_see_messages_in_order_and_go_on_where_they_were(harness: &impl Harness) {
    let bus = harness.bus();
    let mut subscription = subscribe(&bus, Topic::Objects, "workers", LONG_LEASE).await;
    let messages: Vec<Message> = (0..30).map(|n| message(n, &format!("key-{}", n % 4))).collect();
    let publishing = publish(&bus, Topic::Objects, messages);
    consume(&mut subscription, 30).await;
    publishing.await.unwrap();
    let (first, at) = read(&bus, Topic::Objects, Position::Oldest, 10).await;
    let (rest, at) = read(&bus, Topic::Objects, at, 30 - first.len()).await;
    let all: Vec<Message> = first.into_iter().chain(rest).collect();
    in_order(&all);
    let ids: BTreeSet<u64> = all.iter().map(|message| message.id.sequence).collect();
    assert_eq!((all.len(), ids.len()), (30, 30), "each once");
    let empty = bus.read(Topic::Objects, at, 8, Duration::from_millis(100)).await.unwrap();
    assert!(empty.messages.is_empty(), "{empty:?}");
}

pub async fn reader_of_the_newest_sees_only_what_follows(harness: &impl Harness) {
    let bus = harness.bus();
    let mut subscription = subscribe(&bus, Topic::Objects, "workers", LONG_LEASE).await;
    let before = publish(&bus, Topic::Objects, (0..5).map(|n| message(n, "key")).collect());
    consume(&mut subscription, 5).await;
    before.await.unwrap();
    let page = bus.read(Topic::Objects, Position::Newest, 8, Duration::from_millis(100)).await.unwrap();
    assert!(page.messages.is_empty(), "{page:?}");
    let after = publish(&bus, Topic::Objects, vec![message(5, "key")]);
    let (read, _) = read(&bus, Topic::Objects, page.next, 1).await;
    assert_eq!(read, [message(5, "key")]);
    consume(&mut subscription, 1).await;
    after.await.unwrap();
}

pub async fn invalid_requests_are_refused(harness: &impl Harness) {
    let bus = harness.bus();
    let wrong = Message { tag: "a b".into(), ..message(1, "key") };
    let refused = bus.publish(Topic::Tasks, &wrong, Instant::now() + PATIENCE).await;
    assert!(matches!(refused, Err(EventError::Invalid(_))), "{refused:?}");
    let options = SubscribeOptions { group: "no group".into(), lease: LEASE };
    assert!(matches!(bus.subscribe(Topic::Tasks, options).await, Err(EventError::Invalid(_))));
    let options = SubscribeOptions { group: "group".into(), lease: Duration::ZERO };
    assert!(matches!(bus.subscribe(Topic::Tasks, options).await, Err(EventError::Invalid(_))));
    let nowhere = Position::After("nowhere".into());
    let refused = bus.read(Topic::Tasks, nowhere, 1, Duration::ZERO).await;
    assert!(matches!(refused, Err(EventError::Invalid(_))), "{refused:?}");
}

pub async fn closed_bus_refuses(harness: &impl Harness) {
    let bus = harness.bus();
    let mut subscription = subscribe(&bus, Topic::Tasks, "workers", LONG_LEASE).await;
    let waiting = tokio::spawn(async move { subscription.receive(1, PATIENCE).await });
    // So that it waits already, most of the time; the answer is the same when it comes too late for that.
    tokio::time::sleep(Duration::from_millis(50)).await;
    bus.close().await;
    let ended: EventResult<Vec<Delivery>> = waiting.await.unwrap();
    assert_eq!(ended, Err(EventError::Closed));
    let refused = bus.publish(Topic::Tasks, &message(1, "key"), Instant::now() + PATIENCE).await;
    assert_eq!(refused, Err(EventError::Closed));
}
