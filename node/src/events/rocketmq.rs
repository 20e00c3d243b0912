//! [`RocketMqEventBus`]: the `EventBus` on Apache RocketMQ 5.
//!
//! It speaks the remoting protocol with name servers and brokers directly ([`wire`]); docs/adr says why. Published
//! messages go to the queue of their order key, many in a request ([`publish`]), and are acknowledged by the broker;
//! its flush and replication policies decide what that is worth. Groups consume by *pop*: the broker keeps who has
//! which message and for how long, so that nodes share a group without knowing of each other.
//!
//! | port | RocketMQ |
//! |---|---|
//! | topic | topic `<prefix>-<topic>`, made if allowed |
//! | group | consumer group `<prefix>-<group>` |
//! | lease | invisible time |
//! | attempt | times consumed, and one |
//!
//! A broker gives a message of a group up after its own number of retries (16 by default; it moves to `%DLQ%<group>`),
//! so a consumer gives up before that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_actors::ports::events::{
    EventBus, EventError, EventResult, Message, Page, Position, SubscribeOptions, Subscription, Topic,
};
use tokio::sync::watch;
use tokio::time::Instant;

mod connection;
mod error;
mod message;
mod options;
mod pop;
mod publish;
mod pull;
mod routes;
mod tls;
mod wire;

#[cfg(test)]
mod damage_tests;

pub use options::{Credentials, RocketMqOptions, Secret};
pub use tls::Tls;

use connection::Connections;
use error::refused;
use routes::{Route, Routes};
use wire::{Command, request, response};

/// The bus. Cheap to clone.
#[derive(Clone)]
pub struct RocketMqEventBus {
    shared: Arc<Shared>,
}

struct Shared {
    connections: Connections,
    routes: Routes,
    closed: watch::Sender<bool>,
}

impl RocketMqEventBus {
    /// A bus. Nothing is connected before it is used.
    pub fn new(options: RocketMqOptions) -> Self {
        let connections = Connections::new(options);
        Self { shared: Arc::new(Shared { connections, routes: Routes::new(), closed: watch::Sender::new(false) }) }
    }
}

impl Shared {
    fn prefixed(&self, name: &str) -> String {
        format!("{}-{name}", self.connections.options().topic_prefix)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.connections.options().request_timeout
    }

    async fn route(&self, topic: &str, deadline: Instant) -> EventResult<Arc<Route>> {
        self.routes.of(&self.connections, topic, deadline).await
    }

    /// Runs `work` until the bus is closed.
    async fn unless_closed<T>(&self, work: impl Future<Output = EventResult<T>>) -> EventResult<T> {
        let mut closed = self.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(EventError::Closed),
            done = work => done,
        }
    }
}

#[async_trait]
impl EventBus for RocketMqEventBus {
    async fn publish(&self, topic: Topic, message: &Message, deadline: Instant) -> EventResult<()> {
        message.check()?;
        self.shared.unless_closed(self.shared.publish(topic, message, deadline)).await
    }

    async fn publish_all(&self, topic: Topic, messages: &[Message], deadline: Instant) -> Vec<EventResult<()>> {
        let published = async { Ok(self.shared.publish_all(topic, messages, deadline).await) };
        let published = self.shared.unless_closed(published).await;
        published.unwrap_or_else(|closed| messages.iter().map(|_| Err(closed.clone())).collect())
    }

    fn lane(&self, topic: Topic, order_key: &str) -> u64 {
        let route = self.shared.routes.known(&self.shared.prefixed(topic.as_str()));
        // Where nothing is known yet all goes together, as far as that is possible once it is.
        route.and_then(|route| route.place_of(order_key)).unwrap_or(0) as u64
    }

    async fn subscribe(&self, topic: Topic, options: SubscribeOptions) -> EventResult<Box<dyn Subscription>> {
        options.check()?;
        if *self.shared.closed.borrow() {
            return Err(EventError::Closed);
        }
        Ok(Box::new(pop::PopSubscription::new(self.shared.clone(), topic, options)))
    }

    async fn read(&self, topic: Topic, from: Position, limit: usize, wait: Duration) -> EventResult<Page> {
        self.shared.unless_closed(pull::read(&self.shared, topic, from, limit, wait)).await
    }

    async fn check(&self, topic: Topic) -> EventResult<()> {
        let check = async {
            let topic = self.shared.prefixed(topic.as_str());
            self.shared.routes.doubt(&topic);
            let route = self.shared.route(&topic, self.shared.deadline()).await?;
            if route.write.is_empty() {
                // Says why.
                return route.queue_of("").map(drop);
            }
            let mut brokers: BTreeMap<&Arc<str>, i32> = BTreeMap::new();
            for (broker, queue) in &route.write {
                brokers.entry(broker).or_insert(*queue);
            }
            for (broker, queue) in brokers {
                let command = Command::new(request::GET_MAX_OFFSET).field("topic", &topic).field("queueId", queue);
                let addr = route.master(broker)?;
                let answer = self.shared.connections.call(addr, command, self.shared.deadline()).await?;
                if answer.code != response::SUCCESS {
                    return Err(refused(&topic, &answer));
                }
            }
            Ok(())
        };
        self.shared.unless_closed(check).await
    }

    async fn close(&self) {
        self.shared.closed.send_replace(true);
        self.shared.connections.close();
    }
}
