//! The RocketMQ adapter on a real Apache RocketMQ 5: the port's suite, and what brokers refuse.

#![allow(clippy::unwrap_used, reason = "tests")]

// Shared by path: nothing depends on the crate of the black-box tests.
#[allow(dead_code, reason = "this crate uses a part")]
#[path = "../../cluster-tests/src/services"]
mod services {
    pub mod directory;
    pub mod process;
    pub mod rocketmq;
    pub mod tls;
}

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use holdfast_actors::ports::events::conformance::{Harness, message, publish_one};
use holdfast_actors::ports::events::{EventBus, EventError, EventResult, Position, Topic};
use holdfast_actors::wait::{until, until_ok};
use holdfast_node::events::rocketmq::{Credentials, RocketMqEventBus, RocketMqOptions, Secret};
use services::rocketmq::{ACCESS_KEY, RocketMq, SECRET_KEY};
use tokio::time::Instant;

/// One for all tests; each has topics and groups of its own.
static SERVICE: LazyLock<RocketMq> = LazyLock::new(RocketMq::start);

fn options(secret: &str) -> RocketMqOptions {
    static TESTS: AtomicU32 = AtomicU32::new(0);
    let mut options = RocketMqOptions::new(vec![SERVICE.name_servers()]);
    options.topic_prefix = format!("test-{}-{}", std::process::id(), TESTS.fetch_add(1, Ordering::Relaxed));
    options.topic_queues = 4;
    // Patient with a busy machine.
    options.connect_timeout = Duration::from_secs(15);
    options.request_timeout = Duration::from_secs(15);
    let secret_key = Secret::new(secret.into());
    options.credentials = Some(Credentials { access_key: ACCESS_KEY.into(), secret_key });
    options
}

struct OnRocketMq(Arc<RocketMqEventBus>);

#[async_trait]
impl Harness for OnRocketMq {
    fn bus(&self) -> Arc<dyn EventBus> {
        self.0.clone()
    }
}

async fn harness() -> OnRocketMq {
    let options = tokio::task::spawn_blocking(|| options(SECRET_KEY)).await.unwrap();
    OnRocketMq(Arc::new(RocketMqEventBus::new(options)))
}

mod conformance {
    holdfast_actors::event_bus_conformance!(super::harness().await);
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// Whether the service was away or late, as it may be for a moment.
fn is_away(error: &EventError) -> bool {
    matches!(error, EventError::Unavailable(_) | EventError::TimedOut(_))
}

/// Asks until the service answers; with what it refuses.
async fn refusal(ask: impl AsyncFnMut() -> EventResult<()>) -> EventError {
    let is_answer = |answer: &EventResult<()>| !answer.as_ref().is_err_and(is_away);
    until("the service answers", ask, is_answer).await.unwrap_err()
}

#[tokio::test]
async fn wrong_secret_is_denied_with_words_that_help() {
    let options = tokio::task::spawn_blocking(|| options("wrong")).await.unwrap();
    let bus = RocketMqEventBus::new(options);
    let denied = refusal(async || bus.publish(Topic::Objects, &message(1, "key"), soon()).await).await;
    assert!(matches!(denied, EventError::Denied(_)), "{denied:?}");
    assert!(denied.to_string().contains("events.secret_key_file"), "{denied}");
    let denied = refusal(async || bus.check(Topic::Objects).await).await;
    assert!(matches!(denied, EventError::Denied(_)), "{denied:?}");
}

#[tokio::test]
async fn missing_topic_is_told_where_it_may_not_be_made() {
    let mut options = tokio::task::spawn_blocking(|| options(SECRET_KEY)).await.unwrap();
    options.create_topics = false;
    let bus = RocketMqEventBus::new(options.clone());
    let missing = refusal(async || bus.publish(Topic::Objects, &message(1, "key"), soon()).await).await;
    assert!(matches!(missing, EventError::NoTopic(_)), "{missing:?}");
    assert!(missing.to_string().contains(&format!("{}-objects", options.topic_prefix)), "{missing}");
    options.create_topics = true;
    let bus = RocketMqEventBus::new(options);
    // The broker has just been told of the topic.
    until_ok("there is the topic", async || bus.check(Topic::Objects).await).await;
    publish_one(&bus, Topic::Objects, &message(1, "key")).await;
}

#[tokio::test]
async fn name_server_that_is_not_there_is_unavailable_in_time() {
    let mut options = RocketMqOptions::new(vec!["127.0.0.1:1".into()]);
    options.connect_timeout = Duration::from_millis(500);
    let bus = RocketMqEventBus::new(options);
    let gone = bus.publish(Topic::Objects, &message(1, "key"), soon()).await.unwrap_err();
    assert!(matches!(gone, EventError::Unavailable(_)), "{gone:?}");
    assert!(bus.read(Topic::Objects, Position::Newest, 1, Duration::ZERO).await.is_err());
}

#[tokio::test]
async fn keys_of_a_named_broker_that_is_missing_wait_for_it_and_tasks_do_not() {
    let mut options = tokio::task::spawn_blocking(|| options(SECRET_KEY)).await.unwrap();
    options.brokers = vec!["broker-z".into(), "broker-a".into()];
    let bus = RocketMqEventBus::new(options.clone());
    for n in 0..20 {
        publish_one(&bus, Topic::Tasks, &message(n, &format!("key-{n}"))).await;
    }
    let (mut number, mut published, mut waiting) = (0, 0, 0);
    let publish = async || {
        number += 1;
        match bus.publish(Topic::Objects, &message(number, &format!("key-{number}")), soon()).await {
            Ok(()) => published += 1,
            Err(EventError::Unavailable(why)) if why.contains("broker-z") => waiting += 1,
            // The broker has just been told of the topic.
            Err(error) => assert!(is_away(&error), "{error}"),
        }
        (published, waiting)
    };
    until("some are published, and some wait", publish, |(published, waiting)| *published > 0 && *waiting > 0).await;
    let missing = async || bus.check(Topic::Objects).await.unwrap_err().to_string();
    until("it is told who is missing", missing, |error| error.contains("broker-z")).await;
    // Made with four.
    options.topic_queues = 8;
    let other = RocketMqEventBus::new(options);
    let fewer = async || other.check(Topic::Objects).await.unwrap_err().to_string();
    until("it is told what is wrong", fewer, |error| error.contains("events.topic_queues")).await;
}

/// Prints how fast a broker acknowledges; asserts only that it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_messages_on_their_way_at_once_are_all_acknowledged() {
    let bus = harness().await.0;
    until_ok("there is the topic", async || bus.check(Topic::Objects).await).await;
    let begun = std::time::Instant::now();
    let chains = (0..64).map(|chain| {
        let bus = bus.clone();
        async move {
            for n in 0..50 {
                publish_one(&*bus, Topic::Objects, &message(chain * 50 + n, &format!("key-{chain}"))).await;
            }
        }
    });
    futures::future::join_all(chains).await;
    println!("3,200 messages acknowledged in {:?}", begun.elapsed());
}
