//! The `EventBus` port: what is told to others, and work that is done later.
//!
//! What must not be lost is not published directly: it is written to the outbox of the
//! [`MetadataStore`](super::MetadataStore) in the transaction of the change that it tells of, and the relay publishes
//! it from there; or a table says that it is still to be done, and it is published again ([`crate::flow::tasks`]). So a
//! message is published at least once, and a consumer may see it again, with the same [`Message::id`].
//!
//! # Rules that every adapter keeps
//! * When [`EventBus::publish`] returns `Ok`, the message is no longer the publisher's: a broker has it, or, in the
//!   process, every group that is subscribed has acknowledged it. A crash of the node before that loses nothing that
//!   the outbox still has.
//! * Messages of [`Topic::Objects`] with one [`Message::order_key`] are in the order of their publishing if the
//!   publisher waits for each before it publishes the next; so are those of the other topics, but while a part of the
//!   bus is missing. [`EventBus::read`] shows them in that order. So does [`Subscription::receive`] for what is
//!   delivered for the first time, as long as a group has one subscription; a message that is delivered again comes
//!   after later ones.
//! * A message goes to every group, and within a group to one subscription at a time. What is not acknowledged within
//!   the lease is delivered again, with a higher [`Delivery::attempt`]; it does not hold up others.
//! * A group that is new begins with the oldest message that there is. It stays when its subscriptions are dropped.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use holdfast_protocol::EventId;
use tokio::time::Instant;

#[cfg(feature = "conformance")]
pub mod conformance;
mod in_process;

pub use in_process::{InProcessEventBus, InProcessLimits};

/// What a message is about, and who may read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Changes of objects, as S3 event notifications. Public.
    Objects,
    /// Work that is done later. Internal.
    Tasks,
    /// Errors that operators should know of.
    Errors,
}

impl Topic {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Objects, Self::Tasks, Self::Errors];

    /// Its name: what follows the configured prefix in the name of a broker's topic.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Objects => "objects",
            Self::Tasks => "tasks",
            Self::Errors => "errors",
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Topic {
    type Err = EventError;

    fn from_str(text: &str) -> Result<Self, EventError> {
        let found = Self::ALL.into_iter().find(|topic| topic.as_str() == text);
        found.ok_or_else(|| {
            let all = Self::ALL.map(Self::as_str).join(", ");
            EventError::Invalid(format!("there is no topic {text:?}: it can be one of {all}"))
        })
    }
}

/// The longest tag and the longest name of a group, in bytes.
pub const NAME_BYTES_MAX: usize = 100;
/// The largest body of a message, in bytes: a quarter of what RocketMQ takes by default.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// The longest order key and each of the longest [`Message::keys`], in bytes: the name of a bucket and a key, encoded.
pub const KEY_BYTES_MAX: usize = 4096;

/// What is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its id, by which a consumer tells a repetition.
    pub id: EventId,
    /// Messages of one key are ordered. Any text.
    pub order_key: String,
    /// What kind of message it is; consumers filter by it. Letters, digits, `-`, `_`, `.` and `:`.
    pub tag: String,
    /// Words by which it may be looked for, without spaces.
    pub keys: Vec<String>,
    /// What it says.
    pub body: Bytes,
}

impl Message {
    /// Whether every adapter can carry it.
    ///
    /// # Errors
    /// [`EventError::Invalid`].
    pub fn check(&self) -> EventResult<()> {
        check_name("tag", &self.tag)?;
        if self.body.len() > BODY_BYTES_MAX {
            let size = self.body.len();
            return Err(EventError::Invalid(format!("a body of {size} bytes; {BODY_BYTES_MAX} are allowed")));
        }
        let wrong = |key: &&String| key.is_empty() || key.len() > KEY_BYTES_MAX || key.contains(wrong_in_word);
        if let Some(key) = self.keys.iter().find(wrong) {
            return Err(EventError::Invalid(format!("the key {key:?} is empty, too long or has spaces in it")));
        }
        if self.order_key.len() > KEY_BYTES_MAX || self.order_key.contains(char::is_control) {
            return Err(EventError::Invalid("the order key is too long or has control characters in it".into()));
        }
        Ok(())
    }
}

fn wrong_in_word(c: char) -> bool {
    c.is_whitespace() || c.is_control()
}

/// Tags and names of groups.
pub(crate) fn check_name(what: &str, name: &str) -> EventResult<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(fine) {
        return Err(EventError::Invalid(format!("{name:?} is no {what}")));
    }
    Ok(())
}

/// How a group consumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Name of the group: letters, digits, `-`, `_`.
    pub group: String,
    /// How long a delivery may take until it counts as failed; [`Subscription::extend`] gives it more. At least a
    /// second.
    pub lease: Duration,
}

impl SubscribeOptions {
    /// Whether every adapter can do this.
    ///
    /// # Errors
    /// [`EventError::Invalid`].
    pub fn check(&self) -> EventResult<()> {
        check_name("name of a group", &self.group)?;
        if self.group.contains(['.', ':']) {
            return Err(EventError::Invalid(format!("{:?} is no name of a group", self.group)));
        }
        if self.lease < Duration::from_secs(1) {
            return Err(EventError::Invalid("a lease takes at least a second".into()));
        }
        Ok(())
    }
}

/// By what an adapter knows a delivery. Of one delivery, not of the message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt(pub String);

/// A message that this subscription has until its lease ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// Which delivery within the group it is, from 1. Give a message up when this is too high: no adapter does.
    pub attempt: u32,
    /// For [`Subscription::ack`] and its like.
    pub receipt: Receipt,
}

/// A place between messages of a topic, for [`EventBus::read`]. It means nothing to another bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// Before the oldest message that there is.
    Oldest,
    /// After the newest one.
    Newest,
    /// After what was read before: [`Page::next`].
    After(String),
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Messages; those of one order key in order.
    pub messages: Vec<Message>,
    /// Where to go on.
    pub next: Position,
}

/// Why something with the bus failed; each variant asks another thing of the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// The broker cannot be reached, or refuses work for now: try again later.
    #[error("the event bus is not available: {0}")]
    Unavailable(String),
    /// No answer in time. A message that was being published may be there: publish it again.
    #[error("the event bus did not answer in time: {0}")]
    TimedOut(String),
    /// The topic does not exist and may not be created: the operator must.
    #[error("{0}")]
    NoTopic(String),
    /// The credentials are wrong or lack a right: the operator must change them.
    #[error("the event bus denies access: {0}")]
    Denied(String),
    /// The bus can hold no more: a full disk, or too many messages that nobody acknowledges. Try again later.
    #[error("the event bus is full: {0}")]
    Full(String),
    /// The caller broke a rule of the port. The same will fail again.
    #[error("invalid: {0}")]
    Invalid(String),
    /// The lease of a delivery is over: it is delivered again, or was acknowledged.
    #[error("the delivery is no longer this subscription's")]
    Expired,
    /// The bus was closed.
    #[error("the event bus is closed")]
    Closed,
}

impl EventError {
    /// For metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::TimedOut(_) => "timed_out",
            Self::NoTopic(_) => "no_topic",
            Self::Denied(_) => "denied",
            Self::Full(_) => "full",
            Self::Invalid(_) => "invalid",
            Self::Expired => "expired",
            Self::Closed => "closed",
        }
    }
}

/// Shorthand of this port.
pub type EventResult<T> = Result<T, EventError>;

/// A bus of messages. See the module's rules.
#[async_trait]
pub trait EventBus: Send + Sync + 'static {
    /// Publishes a message. Two of one order key must not be under way at once. Dropping the future leaves it open
    /// whether the message is published.
    ///
    /// # Errors
    /// After every error but [`EventError::Invalid`] the message may be published all the same, later than others of
    /// its order key that follow it: with the same id, so that consumers can tell.
    async fn publish(&self, topic: Topic, message: &Message, deadline: Instant) -> EventResult<()>;

    /// Publishes several messages, those of one order key in their order, and gives back what became of each. Of a key
    /// whose message failed no later one is published. No key may be under way elsewhere. What is sent is begun before
    /// `deadline` and at once, in as few requests as the bus can.
    ///
    /// # Errors
    /// Each as [`EventBus::publish`].
    async fn publish_all(&self, topic: Topic, messages: &[Message], deadline: Instant) -> Vec<EventResult<()>> {
        let mut chains: BTreeMap<&str, Vec<(usize, &Message)>> = BTreeMap::new();
        for (place, message) in messages.iter().enumerate() {
            chains.entry(&message.order_key).or_default().push((place, message));
        }
        let chains = chains.into_values().map(|chain| async move {
            let mut results = Vec::with_capacity(chain.len());
            let mut failed = None;
            for (place, message) in chain {
                let result = match &failed {
                    None => self.publish(topic, message, deadline).await,
                    Some(error) => Err(EventError::clone(error)),
                };
                failed = result.as_ref().err().cloned();
                results.push((place, result));
            }
            results
        });
        let mut results: Vec<_> = join_all(chains).await.into_iter().flatten().collect();
        results.sort_unstable_by_key(|(place, _)| *place);
        results.into_iter().map(|(_, result)| result).collect()
    }

    /// What messages have in common that the bus can send together: those of keys with one lane. It is a hint, and may
    /// be another one with every call.
    fn lane(&self, topic: Topic, order_key: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        (topic, order_key).hash(&mut hasher);
        hasher.finish()
    }

    /// Makes a subscription of a group; it shares the group's messages with its other subscriptions.
    ///
    /// # Errors
    /// [`EventError::Invalid`], [`EventError::Closed`]; what else is wrong shows in [`Subscription::receive`].
    async fn subscribe(&self, topic: Topic, options: SubscribeOptions) -> EventResult<Box<dyn Subscription>>;

    /// Reads without being in any group: nothing is acknowledged. Waits up to `wait` while there is nothing; then the
    /// page is empty. At most about `limit` messages.
    ///
    /// # Errors
    /// [`EventError::Invalid`] for a position of another bus.
    async fn read(&self, topic: Topic, from: Position, limit: usize, wait: Duration) -> EventResult<Page>;

    /// Whether messages of `topic` could be published now, as far as can be told without doing so.
    ///
    /// # Errors
    /// Why not.
    async fn check(&self, topic: Topic) -> EventResult<()>;

    /// Ends everything that is under way with [`EventError::Closed`].
    async fn close(&self);
}

/// One consumer of a group. Dropping it leaves what it holds to others, once their leases end.
#[async_trait]
pub trait Subscription: Send + Sync {
    /// Up to `limit` messages, or none if none came within `wait`. Dropping the future may leave messages delivered to
    /// nobody until their leases end.
    ///
    /// # Errors
    /// Those that say to try again; the subscription goes on.
    async fn receive(&mut self, limit: usize, wait: Duration) -> EventResult<Vec<Delivery>>;

    /// The message is done: the group does not get it again. Done durably when this returns.
    ///
    /// # Errors
    /// [`EventError::Expired`]: it will come again.
    async fn ack(&self, delivery: &Delivery) -> EventResult<()>;

    /// The message failed: the group gets it again after `pause`, a second or more.
    ///
    /// # Errors
    /// [`EventError::Expired`]: it comes again anyway.
    async fn retry(&self, delivery: &Delivery, pause: Duration) -> EventResult<()>;

    /// The message needs more time: its lease ends `lease` from now, and its receipt changes.
    ///
    /// # Errors
    /// [`EventError::Expired`]: somebody else may have it already.
    async fn extend(&self, delivery: &mut Delivery, lease: Duration) -> EventResult<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message {
            id: EventId { sequence: 1, nonce: 2 },
            order_key: "bucket/key with spaces".into(),
            tag: "ObjectCreated:Put".into(),
            keys: vec!["key+with+spaces".into(), "0000000000000001-00000002".into()],
            body: Bytes::from_static(b"{}"),
        }
    }

    #[test]
    fn messages_that_some_adapter_cannot_carry_are_refused() {
        message().check().expect("fine");
        let changes: [fn(&mut Message); 7] = [
            |m| m.tag.clear(),
            |m| m.tag = "a b".into(),
            |m| m.tag = "a|b".into(),
            |m| m.keys.push("a b".into()),
            |m| m.keys.push(String::new()),
            |m| m.order_key = "a\u{1}b".into(),
            |m| m.body = vec![0; BODY_BYTES_MAX + 1].into(),
        ];
        for change in changes {
            let mut wrong = message();
            change(&mut wrong);
            assert!(matches!(wrong.check(), Err(EventError::Invalid(_))), "{wrong:?}");
        }
    }

    #[test]
    fn topics_are_read_as_they_are_written() {
        for topic in Topic::ALL {
            assert_eq!(topic.as_str().parse(), Ok(topic));
        }
    }
}
