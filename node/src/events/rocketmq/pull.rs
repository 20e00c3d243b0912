//! Reading a topic from a position, in no group's name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_actors::ports::events::{EventError, EventResult, Message, Page, Position, Topic};
use tokio::time::Instant;

use super::Shared;
use super::error::{refused, unexpected};
use super::message::Stored;
use super::pop::create_group;
use super::routes::Route;
use super::wire::{Command, request, response};

/// The group that brokers want to be told; it keeps nothing.
const READERS: &str = "readers";
/// Pause between looks at all queues while there is nothing.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Says that the request itself names what it subscribes to.
const WITH_SUBSCRIPTION: i32 = 4;
/// The most messages that brokers give at once.
const PULL_MAX: usize = 32;

/// How far each queue was read.
type Offsets = BTreeMap<(Arc<str>, i32), i64>;

/// As text: `broker/queue=offset,…`.
fn position_of(offsets: &Offsets) -> Position {
    let parts: Vec<String> = offsets.iter().map(|((broker, queue), at)| format!("{broker}/{queue}={at}")).collect();
    Position::After(parts.join(","))
}

fn parse(text: &str) -> Option<Offsets> {
    let mut offsets = Offsets::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (place, offset) = part.split_once('=')?;
        let (broker, queue) = place.rsplit_once('/')?;
        offsets.insert((broker.into(), queue.parse().ok()?), offset.parse().ok()?);
    }
    Some(offsets)
}

/// Reads a text as a position, for tests.
#[cfg(test)]
pub(super) fn read_texts(text: &str) {
    if let Some(offsets) = parse(text) {
        let Position::After(again) = position_of(&offsets) else { panic!("it is after something") };
        assert_eq!(parse(&again), Some(offsets));
    }
}

pub(super) async fn read(
    shared: &Shared,
    topic: Topic,
    from: Position,
    limit: usize,
    wait: Duration,
) -> EventResult<Page> {
    let known = match &from {
        Position::After(text) => parse(text).ok_or_else(|| EventError::Invalid(format!("{text:?} is no position")))?,
        Position::Oldest | Position::Newest => Offsets::new(),
    };
    let until = Instant::now() + wait;
    let topic = shared.prefixed(topic.as_str());
    let route = shared.route(&topic, shared.deadline()).await?;
    let mut offsets = Offsets::new();
    for place in &route.read {
        // A queue that was not there before is read from its beginning.
        let code = if from == Position::Newest { request::GET_MAX_OFFSET } else { request::GET_MIN_OFFSET };
        let offset = match known.get(place) {
            Some(offset) => *offset,
            None => Queue { shared, topic: &topic, route: &route, place }.end(code).await?,
        };
        offsets.insert(place.clone(), offset);
    }
    loop {
        let mut messages = Vec::new();
        for (place, offset) in &mut offsets {
            if messages.len() >= limit {
                break;
            }
            let queue = Queue { shared, topic: &topic, route: &route, place };
            queue.pull(offset, limit - messages.len(), &mut messages).await?;
        }
        if !messages.is_empty() || Instant::now() >= until {
            // Those of a broker that is missing: it is read on from there when it is back.
            let missing = known.iter().filter(|(place, _)| !route.read.contains(place));
            offsets.extend(missing.map(|(place, offset)| (place.clone(), *offset)));
            return Ok(Page { messages, next: position_of(&offsets) });
        }
        tokio::time::sleep(LOOK_PAUSE.min(until.saturating_duration_since(Instant::now()))).await;
    }
}

/// One queue of a topic: which broker has it, and its number there.
struct Queue<'a> {
    shared: &'a Shared,
    topic: &'a str,
    route: &'a Route,
    place: &'a (Arc<str>, i32),
}

impl Queue<'_> {
    /// One end of it.
    async fn end(&self, code: i32) -> EventResult<i64> {
        let Self { shared, topic, route, place } = *self;
        let command = Command::new(code).field("topic", topic).field("queueId", place.1);
        let answer = shared.connections.call(route.master(&place.0)?, command, shared.deadline()).await?;
        if answer.code != response::SUCCESS {
            return Err(refused(topic, &answer));
        }
        answer.number("offset").ok_or_else(|| unexpected("an offset", &"none"))
    }

    /// Reads on from `offset`.
    async fn pull(&self, offset: &mut i64, limit: usize, messages: &mut Vec<Message>) -> EventResult<()> {
        let Self { shared, topic, route, place } = *self;
        let group = shared.prefixed(READERS);
        let command = Command::new(request::PULL_MESSAGE)
            .field("consumerGroup", &group)
            .field("topic", topic)
            .field("queueId", place.1)
            .field("queueOffset", *offset)
            .field("maxMsgNums", limit.clamp(1, PULL_MAX))
            .field("sysFlag", WITH_SUBSCRIPTION)
            .field("commitOffset", 0)
            .field("suspendTimeoutMillis", 0)
            .field("subscription", "*")
            .field("subVersion", 0)
            .field("expressionType", "TAG");
        let answer = shared.connections.call(route.master(&place.0)?, command, shared.deadline()).await?;
        match answer.code {
            response::SUCCESS => {
                let stored = Stored::all(answer.body.clone()).ok_or_else(|| unexpected("messages", &"damaged"))?;
                messages.extend(stored.iter().filter_map(Stored::to_message));
            }
            response::PULL_NOT_FOUND | response::PULL_RETRY_IMMEDIATELY | response::PULL_OFFSET_MOVED => {}
            response::GROUP_NOT_EXIST => return create_group(shared, &group).await,
            _ => return Err(refused(topic, &answer)),
        }
        *offset = answer.number("nextBeginOffset").ok_or_else(|| unexpected("messages", &"no offset"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::{RocketMqEventBus, RocketMqOptions};
    use super::*;

    /// Name server and broker in one; nothing new is in the queues.
    async fn serve(listener: TcpListener, route: String) {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut buffer = BytesMut::new();
        while let Ok(1..) = stream.read_buf(&mut buffer).await {
            while let Some(asked) = Command::decode(&mut buffer).expect("a frame") {
                let code = match asked.code {
                    request::PULL_MESSAGE => response::PULL_NOT_FOUND,
                    _ => response::SUCCESS,
                };
                let answer = Command { opaque: asked.opaque, is_answer: true, ..Command::new(code) };
                let next = asked.number("queueOffset").unwrap_or(0);
                let answer = answer.field("offset", 0).field("nextBeginOffset", next).body(route.clone());
                stream.write_all(&answer.encode()).await.expect("it is read");
            }
        }
    }

    /// Or all that it has would be read once more when it is back.
    #[tokio::test]
    async fn where_a_queue_was_read_to_is_kept_while_its_broker_is_missing() {
        const LONG: Duration = Duration::from_secs(60);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let addr = listener.local_addr().expect("an address").to_string();
        let route = format!(
            r#"{{"brokerDatas":[{{"brokerAddrs":{{0:"{addr}"}},"brokerName":"a"}}],
                "queueDatas":[{{"brokerName":"a","perm":6,"readQueueNums":2,"writeQueueNums":2}}]}}"#
        );
        tokio::spawn(serve(listener, route));
        let mut options = RocketMqOptions::new(vec![addr]);
        (options.connect_timeout, options.request_timeout) = (LONG, LONG);
        let bus = RocketMqEventBus::new(options);
        let from = Position::After("a/0=5,b/0=7".into());
        let page = read(&bus.shared, Topic::Objects, from, 10, Duration::ZERO).await.expect("a page");
        assert_eq!(page.next, Position::After("a/0=5,a/1=0,b/0=7".into()));
    }
}
