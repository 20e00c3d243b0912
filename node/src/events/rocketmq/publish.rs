//! Sending messages: one, or those of a queue in one request.
//!
//! A batch is a request whose body is a list of messages. The broker stores them one after the other, all or none, and
//! consumers see no difference:
//!
//! ```text
//! size         4 bytes, of the message with this field
//! magic        4 bytes, 0: the broker puts its own here, and the checksum below
//! checksum     4 bytes, 0
//! flags        4 bytes, 0
//! body         4 bytes of length, and bytes
//! properties   2 bytes of length, and text
//! ```

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::join_all;
use holdfast_actors::ports::events::{EventError, EventResult, Message, Topic};
use tokio::time::{Instant, timeout_at};

use super::Shared;
use super::error::refused;
use super::message::properties_of;
use super::wire::{Command, request, response};

/// The group in whose name messages are published; brokers only show it.
const PRODUCERS: &str = "publishers";

/// A queue of a topic.
struct Place {
    addr: String,
    broker: Arc<str>,
    queue: i32,
}

impl Shared {
    pub(super) async fn publish(&self, topic: Topic, message: &Message, deadline: Instant) -> EventResult<()> {
        let is_ordered = match topic {
            Topic::Objects => true,
            // What waits for a broker that is missing would be done by hand, or late.
            Topic::Tasks | Topic::Errors => false,
        };
        let topic = self.prefixed(topic.as_str());
        let sending = async {
            let route = self.route(&topic, deadline).await?;
            let key = &message.order_key;
            let queue = if is_ordered { route.queue_of(key) } else { route.queue_of_any(key) };
            let (addr, broker, queue) = queue.inspect_err(|_| self.routes.doubt(&topic))?;
            let place = Place { addr: addr.to_owned(), broker: broker.clone(), queue };
            self.send(&topic, &place, &[message], deadline).await
        };
        in_time(sending, deadline).await
    }

    pub(super) async fn publish_all(
        &self,
        topic: Topic,
        messages: &[Message],
        deadline: Instant,
    ) -> Vec<EventResult<()>> {
        let topic = self.prefixed(topic.as_str());
        let mut results: Vec<EventResult<()>> = messages.iter().map(Message::check).collect();
        let route = match in_time(self.route(&topic, deadline), deadline).await {
            Ok(route) => route,
            Err(error) => return results.into_iter().map(|checked| checked.and(Err(error.clone()))).collect(),
        };
        // Of each queue: where its broker is, and the places of its messages.
        type Queues<'a> = BTreeMap<(&'a Arc<str>, i32), (&'a str, Vec<usize>)>;
        let mut queues = Queues::new();
        let mut failed: HashSet<&str> = HashSet::new();
        for (at, message) in messages.iter().enumerate() {
            let key = message.order_key.as_str();
            let queue = match &results[at] {
                Ok(()) if failed.contains(key) => Err(after_another()),
                Ok(()) => route.queue_of(key).inspect_err(|_| self.routes.doubt(&topic)),
                Err(error) => Err(error.clone()),
            };
            match queue {
                Ok((addr, broker, queue)) => {
                    queues.entry((broker, queue)).or_insert_with(|| (addr, Vec::new())).1.push(at);
                }
                Err(error) => {
                    failed.insert(key);
                    results[at] = Err(error);
                }
            }
        }
        let sends = queues.into_iter().map(|((broker, queue), (addr, places))| {
            let (place, topic) = (Place { addr: addr.to_owned(), broker: broker.clone(), queue }, &topic);
            async move {
                let of_queue: Vec<&Message> = places.iter().map(|at| &messages[*at]).collect();
                let sent = self.send_together(topic, &place, &of_queue, deadline).await;
                places.into_iter().zip(sent)
            }
        });
        for (at, result) in join_all(sends).await.into_iter().flatten() {
            results[at] = result;
        }
        results
    }

    /// Sends the messages of a queue in one request. Should the broker refuse it for what is in it, each goes alone.
    async fn send_together(
        &self,
        topic: &str,
        place: &Place,
        messages: &[&Message],
        deadline: Instant,
    ) -> Vec<EventResult<()>> {
        let sent = in_time(self.send(topic, place, messages, deadline), deadline).await;
        if messages.len() == 1 || !matches!(sent, Err(EventError::Invalid(_))) {
            return messages.iter().map(|_| sent.clone()).collect();
        }
        let mut failed: HashSet<&str> = HashSet::new();
        let mut results = Vec::with_capacity(messages.len());
        for message in messages.iter().copied() {
            let key = message.order_key.as_str();
            let result = if failed.contains(key) {
                Err(after_another())
            } else {
                in_time(self.send(topic, place, &[message], deadline), deadline).await
            };
            if result.is_err() {
                failed.insert(key);
            }
            results.push(result);
        }
        results
    }

    /// One request, which all or none of the messages survive.
    async fn send(&self, topic: &str, place: &Place, messages: &[&Message], deadline: Instant) -> EventResult<()> {
        if Instant::now() >= deadline {
            // This process may have been stopped, and another node publishes now: nothing is begun any more.
            return Err(no_answer());
        }
        let (code, properties, body) = match messages {
            [one] => (request::SEND_MESSAGE_V2, properties_of(one), one.body.clone()),
            many => (request::SEND_BATCH_MESSAGE, String::new(), batch_of(many)?),
        };
        let born_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
        // The short names are those of the second version of this request.
        let command = Command::new(code)
            .field("a", self.prefixed(PRODUCERS))
            .field("b", topic)
            .field("c", "TBW102")
            .field("d", self.connections.options().topic_queues)
            .field("e", place.queue)
            .field("f", 0)
            .field("g", born_ms)
            .field("h", 0)
            .field("i", properties)
            .field("j", 0)
            .field("k", false)
            .field("m", messages.len() > 1)
            .field("n", &place.broker)
            .body(body);
        let sent = self.connections.call(&place.addr, command, deadline).await;
        let answer = sent.inspect_err(|_| self.routes.doubt(topic))?;
        if answer.code == response::SUCCESS {
            return Ok(());
        }
        if answer.code == response::TOPIC_NOT_EXIST {
            self.routes.doubt(topic);
        }
        Err(refused(topic, &answer))
    }
}

/// The body of a batch.
fn batch_of(messages: &[&Message]) -> EventResult<Bytes> {
    let mut body = BytesMut::with_capacity(messages.iter().map(|message| message.body.len() + 512).sum());
    for message in messages {
        let properties = properties_of(message);
        let length = i16::try_from(properties.len());
        let length = length.map_err(|_| EventError::Invalid("the keys of a message are too long".into()))?;
        // Bounded by what a message may hold.
        body.put_i32((4 * 5 + message.body.len() + 2 + properties.len()) as i32);
        body.put_bytes(0, 4 * 3);
        body.put_i32(message.body.len() as i32);
        body.put_slice(&message.body);
        body.put_i16(length);
        body.put_slice(properties.as_bytes());
    }
    Ok(body.freeze())
}

async fn in_time<T>(work: impl Future<Output = EventResult<T>>, deadline: Instant) -> EventResult<T> {
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(no_answer()))
}

fn no_answer() -> EventError {
    EventError::TimedOut("no broker answered".into())
}

fn after_another() -> EventError {
    EventError::Unavailable("an earlier message of its key was not published".into())
}
