//! Groups: messages are popped from brokers, which keep them invisible to the rest of the group until they are
//! acknowledged or their lease ends.
//!
//! **Clocks.** A broker waits for messages from when the request says that it was made, which is told by the node's
//! clock. A broker whose clock is half a second ahead takes each request for one that is over, and answers at once; one
//! that is a second ahead does not even look for messages. One that is behind waits for longer than the node does. So a
//! broker that does not wait as it was asked to is only looked at for a while, with a time that no clock takes for the
//! past, and the pauses are made here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_actors::ports::events::{
    Delivery, EventError, EventResult, Receipt, SubscribeOptions, Subscription, Topic,
};
use tokio::time::Instant;

use super::Shared;
use super::error::{refused, unexpected};
use super::message::Stored;
use super::routes::masters;
use super::wire::{Command, request, response};

/// The most messages that brokers give at once.
const POP_MAX: usize = 32;
/// How long one broker is waited for before the next is asked.
const POLL_MAX: Duration = Duration::from_millis(500);
/// For how long a broker that does not wait as it was asked to is only looked at.
const LOOKS_FOR: Duration = Duration::from_secs(300);
/// By how much later than it was a look says that it was made. Only waits are reckoned from that.
const LOOK_AHEAD: Duration = Duration::from_secs(86_400);

/// A subscription.
pub(super) struct PopSubscription {
    shared: Arc<Shared>,
    topic: String,
    group: String,
    lease: Duration,
    /// Where the next round over the brokers begins.
    turn: usize,
    /// Until when brokers are only looked at.
    looks_until: Option<Instant>,
}

/// What names one delivery to its broker. As text: broker, topic, queue, offset, and the broker's own words, with `|`
/// between.
struct Handle {
    broker: Arc<str>,
    /// That of the group's retries, for a message that comes again.
    topic: String,
    queue: i32,
    offset: i64,
    extra: String,
}

impl Handle {
    fn to_receipt(&self) -> Receipt {
        let Self { broker, topic, queue, offset, extra } = self;
        Receipt(format!("{broker}|{topic}|{queue}|{offset}|{extra}"))
    }

    fn parse(receipt: &Receipt) -> EventResult<Self> {
        let parse = || {
            let mut parts = receipt.0.splitn(5, '|');
            Some(Self {
                broker: parts.next()?.into(),
                topic: parts.next()?.into(),
                queue: parts.next()?.parse().ok()?,
                offset: parts.next()?.parse().ok()?,
                extra: parts.next()?.into(),
            })
        };
        parse().ok_or(EventError::Expired)
    }

    fn command(&self, code: i32, group: &str) -> Command {
        Command::new(code)
            .field("consumerGroup", group)
            .field("topic", &self.topic)
            .field("queueId", self.queue)
            .field("extraInfo", &self.extra)
            .field("offset", self.offset)
    }
}

/// Which of the group's topics a message is from, as brokers write it.
fn retry_mark(topic: &str) -> &'static str {
    match topic.strip_prefix("%RETRY%") {
        None => "0",
        Some(rest) if rest.contains('+') => "2",
        Some(_) => "1",
    }
}

impl PopSubscription {
    pub(super) fn new(shared: Arc<Shared>, topic: Topic, options: SubscribeOptions) -> Self {
        let (topic, group) = (shared.prefixed(topic.as_str()), shared.prefixed(&options.group));
        Self { shared, topic, group, lease: options.lease, turn: 0, looks_until: None }
    }

    /// Whether no broker is asked to wait for messages.
    fn only_looks(&self) -> bool {
        self.looks_until.is_some_and(|until| Instant::now() < until)
    }

    fn only_look(&mut self) {
        self.looks_until = Some(Instant::now() + LOOKS_FOR);
    }

    async fn receive_open(&mut self, limit: usize, wait: Duration) -> EventResult<Vec<Delivery>> {
        let until = Instant::now() + wait;
        let mut first_round = true;
        loop {
            let route = self.shared.route(&self.topic, self.shared.deadline()).await?;
            let brokers: BTreeMap<&Arc<str>, ()> = route.read.iter().map(|(broker, _)| (broker, ())).collect();
            let brokers: Vec<&Arc<str>> = brokers.into_keys().collect();
            let mut failure = None;
            let mut answered = false;
            for _ in 0..brokers.len() {
                let broker = brokers[self.turn % brokers.len()];
                self.turn = self.turn.wrapping_add(1);
                let left = until.saturating_duration_since(Instant::now());
                // With several brokers, first see what there is.
                let is_look = self.only_looks() || (first_round && brokers.len() > 1);
                let poll = if is_look { Duration::ZERO } else { left.min(POLL_MAX) };
                match self.pop(broker, route.master(broker), limit, poll).await {
                    Ok(deliveries) if deliveries.is_empty() => answered = true,
                    Ok(deliveries) => return Ok(deliveries),
                    Err(error) => {
                        self.shared.routes.doubt(&self.topic);
                        failure = Some(error);
                    }
                }
            }
            first_round = false;
            match failure {
                Some(error) if !answered => return Err(error),
                _ if Instant::now() >= until => return Ok(Vec::new()),
                // Nobody waits there.
                _ if brokers.is_empty() || self.only_looks() => {
                    tokio::time::sleep(POLL_MAX.min(until.saturating_duration_since(Instant::now()))).await;
                }
                _ => {}
            }
        }
    }

    async fn pop(
        &mut self,
        broker: &Arc<str>,
        addr: EventResult<&str>,
        limit: usize,
        poll: Duration,
    ) -> EventResult<Vec<Delivery>> {
        let addr = addr?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let born = if poll.is_zero() { now + LOOK_AHEAD } else { now };
        let command = Command::new(request::POP_MESSAGE)
            .field("consumerGroup", &self.group)
            .field("topic", &self.topic)
            // Any queue.
            .field("queueId", -1)
            .field("maxMsgNums", limit.clamp(1, POP_MAX))
            .field("invisibleTime", self.lease.as_millis())
            .field("pollTime", poll.as_millis())
            .field("bornTime", born.as_millis())
            // A new group begins with the oldest message.
            .field("initMode", 0)
            .field("expType", "TAG")
            .field("exp", "*")
            .field("order", false);
        let (asked, deadline) = (Instant::now(), self.shared.deadline() + poll);
        let answer = self.shared.connections.call(addr, command, deadline).await;
        if matches!(answer, Err(EventError::TimedOut(_))) && !poll.is_zero() {
            // It may wait still.
            self.only_look();
        }
        let answer = answer?;
        match answer.code {
            response::SUCCESS => self.deliveries(broker, answer).await,
            response::PULL_NOT_FOUND | response::POLLING_TIMEOUT => {
                let waited = asked.elapsed();
                if waited >= poll / 2 {
                    return Ok(Vec::new());
                }
                if poll < POLL_MAX {
                    // Brokers answer a moment before the time is over, and of a short one that is all.
                    tokio::time::sleep(poll - waited).await;
                } else {
                    tracing::warn!(
                        %broker,
                        topic = self.topic,
                        "a broker does not wait for messages as it is asked to: compare its clock with this node's"
                    );
                    self.only_look();
                }
                Ok(Vec::new())
            }
            // Too many wait there already.
            response::POLLING_FULL => {
                tokio::time::sleep(poll).await;
                Ok(Vec::new())
            }
            response::GROUP_NOT_EXIST => {
                create_group(&self.shared, &self.group).await?;
                Ok(Vec::new())
            }
            _ => Err(refused(&self.topic, &answer)),
        }
    }

    async fn deliveries(&self, broker: &Arc<str>, answer: Command) -> EventResult<Vec<Delivery>> {
        let missing = |name: &'static str| move || unexpected("popped messages", &format!("{name} is missing"));
        let number = |name: &'static str| answer.number(name).ok_or_else(missing(name));
        let (pop_time, invisible, revive) = (number("popTime")?, number("invisibleTime")?, number("reviveQid")?);
        let starts = answer.fields.get("startOffsetInfo").map(|info| start_offsets(info)).unwrap_or_default();
        let stored = Stored::all(answer.body.clone()).ok_or_else(missing("a message"))?;
        let mut deliveries = Vec::with_capacity(stored.len());
        for stored in stored {
            let Stored { queue, offset, .. } = stored;
            let extra = match stored.property("POP_CK") {
                Some(extra) => extra.to_owned(),
                None => {
                    let mark = retry_mark(&stored.topic);
                    let start = starts.get(&(mark.to_owned(), queue)).copied().unwrap_or(offset);
                    format!("{start} {pop_time} {invisible} {revive} {mark} {broker} {queue} {offset}")
                }
            };
            let handle = Handle { broker: broker.clone(), topic: self.marked(&extra), queue, offset, extra };
            match stored.to_message() {
                Some(message) => {
                    let attempt = u32::try_from(stored.reconsumed).unwrap_or(0).saturating_add(1);
                    deliveries.push(Delivery { message, attempt, receipt: handle.to_receipt() });
                }
                None => {
                    tracing::warn!(
                        topic = self.topic,
                        queue,
                        offset,
                        "a message that is not Holdfast's is passed over"
                    );
                    // Those that came with it must not wait for their leases to end.
                    if let Err(error) = self.end(&handle).await {
                        tracing::debug!(%error, "a message that is not Holdfast's comes again");
                    }
                }
            }
        }
        Ok(deliveries)
    }

    /// The topic that the mark in a broker's words stands for.
    fn marked(&self, extra: &str) -> String {
        let Self { topic, group, .. } = self;
        match extra.split(' ').nth(4) {
            Some("1") => format!("%RETRY%{group}_{topic}"),
            Some("2") => format!("%RETRY%{group}+{topic}"),
            _ => topic.clone(),
        }
    }

    async fn call(&self, handle: &Handle, command: Command) -> EventResult<Command> {
        let deadline = self.shared.deadline();
        let route = self.shared.route(&self.topic, deadline).await?;
        let answer = self.shared.connections.call(route.master(&handle.broker)?, command, deadline).await?;
        match answer.code {
            response::SUCCESS => Ok(answer),
            // The lease is over, or the broker forgot it.
            response::MESSAGE_ILLEGAL => Err(EventError::Expired),
            _ => Err(refused(&self.topic, &answer)),
        }
    }

    async fn end(&self, handle: &Handle) -> EventResult<()> {
        self.call(handle, handle.command(request::ACK_MESSAGE, &self.group)).await.map(drop)
    }

    /// Returns the receipt of the lease that is made.
    async fn change_lease(&self, delivery: &Delivery, lease: Duration) -> EventResult<Receipt> {
        let mut handle = Handle::parse(&delivery.receipt)?;
        let command = handle.command(request::CHANGE_INVISIBLE_TIME, &self.group);
        let answer = self.call(&handle, command.field("invisibleTime", lease.as_millis())).await?;
        let number = |name| answer.number(name).ok_or(EventError::Expired);
        let mark = handle.extra.split(' ').nth(4).unwrap_or("0").to_owned();
        let Handle { broker, queue, offset, .. } = &handle;
        let (pop_time, invisible, revive) = (number("popTime")?, number("invisibleTime")?, number("reviveQid")?);
        handle.extra = format!("{offset} {pop_time} {invisible} {revive} {mark} {broker} {queue} {offset}");
        Ok(handle.to_receipt())
    }
}

/// From `mark queue offset;…`.
fn start_offsets(info: &str) -> HashMap<(String, i32), i64> {
    let one = |part: &str| {
        let mut words = part.split(' ');
        let (mark, queue, offset) = (words.next()?, words.next()?, words.next()?);
        Some(((mark.to_owned(), queue.parse().ok()?), offset.parse().ok()?))
    };
    info.split(';').filter_map(one).collect()
}

/// Reads a text as each of the forms above, for tests.
#[cfg(test)]
pub(super) fn read_texts(text: &str) {
    start_offsets(text);
    retry_mark(text);
    if let Ok(handle) = Handle::parse(&Receipt(text.to_owned())) {
        let receipt = handle.to_receipt();
        assert_eq!(Handle::parse(&receipt).map(|again| again.to_receipt()), Ok(receipt));
    }
}

/// Makes a consumer group at every broker, where brokers do not do so themselves.
pub(super) async fn create_group(shared: &Shared, group: &str) -> EventResult<()> {
    if !shared.connections.options().create_topics {
        return Err(EventError::NoTopic(format!(
            "RocketMQ has no consumer group {group}: create it there, or set events.create_topics = true"
        )));
    }
    let config = serde_json::json!({
        "groupName": group,
        "consumeEnable": true,
        "consumeFromMinEnable": true,
        "consumeBroadcastEnable": true,
        "retryQueueNums": 1,
        "retryMaxTimes": 16,
    });
    let body = serde_json::to_vec(&config).map_err(|error| EventError::Invalid(error.to_string()))?;
    for master in masters(&shared.connections, shared.deadline()).await?.into_values() {
        let command = Command::new(request::UPDATE_AND_CREATE_GROUP).body(body.clone());
        let answer = shared.connections.call(&master, command, shared.deadline()).await?;
        if answer.code != response::SUCCESS {
            return Err(refused(group, &answer));
        }
    }
    Ok(())
}

#[async_trait]
impl Subscription for PopSubscription {
    async fn receive(&mut self, limit: usize, wait: Duration) -> EventResult<Vec<Delivery>> {
        let shared = self.shared.clone();
        shared.unless_closed(self.receive_open(limit, wait)).await
    }

    async fn ack(&self, delivery: &Delivery) -> EventResult<()> {
        let handle = Handle::parse(&delivery.receipt)?;
        self.shared.unless_closed(self.end(&handle)).await
    }

    async fn retry(&self, delivery: &Delivery, pause: Duration) -> EventResult<()> {
        self.shared.unless_closed(self.change_lease(delivery, pause)).await.map(drop)
    }

    async fn extend(&self, delivery: &mut Delivery, lease: Duration) -> EventResult<()> {
        delivery.receipt = self.shared.unless_closed(self.change_lease(delivery, lease)).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::{RocketMqEventBus, RocketMqOptions};
    use super::*;

    /// How far the broker's clock is ahead of the node's.
    const AHEAD_MS: i64 = 60_000;

    /// Name server and broker in one. It has no messages, and notes of each time that it was asked for some whether it
    /// took the request for one that is not over, and looked for them.
    async fn serve(listener: TcpListener, route: String, looked: Arc<Mutex<Vec<bool>>>) {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut buffer = BytesMut::new();
        while let Ok(1..) = stream.read_buf(&mut buffer).await {
            while let Some(asked) = Command::decode(&mut buffer).expect("a frame") {
                let code = match asked.code {
                    request::POP_MESSAGE => {
                        let number = |name| asked.number(name).expect("a time");
                        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                        let now_ms = now.expect("a clock").as_millis() as i64 + AHEAD_MS;
                        looked.lock().push(now_ms - number("bornTime") - number("pollTime") <= 500);
                        response::POLLING_TIMEOUT
                    }
                    _ => response::SUCCESS,
                };
                let answer = Command { opaque: asked.opaque, is_answer: true, ..Command::new(code) };
                stream.write_all(&answer.body(route.clone()).encode()).await.expect("it is read");
            }
        }
    }

    /// Or its messages would wait for somebody with another clock, and it would be asked as often as it can answer.
    #[tokio::test]
    async fn broker_by_whose_clock_requests_are_over_is_looked_at_now_and_then() {
        const LONG: Duration = Duration::from_secs(60);
        /// Waits of half a second within one of a second, and twice as many on a machine that is slow to answer.
        const POPS_MAX: usize = 16;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let addr = listener.local_addr().expect("an address").to_string();
        let route = format!(
            r#"{{"brokerDatas":[{{"brokerAddrs":{{0:"{addr}"}},"brokerName":"a"}}],
                "queueDatas":[{{"brokerName":"a","perm":6,"readQueueNums":2,"writeQueueNums":2}}]}}"#
        );
        let looked = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(serve(listener, route, looked.clone()));
        let mut options = RocketMqOptions::new(vec![addr]);
        (options.connect_timeout, options.request_timeout) = (LONG, LONG);
        let bus = RocketMqEventBus::new(options);
        let options = SubscribeOptions { group: "tasks".into(), lease: LONG };
        let mut subscription = PopSubscription::new(bus.shared.clone(), Topic::Tasks, options);
        let looks = async {
            loop {
                looked.lock().clear();
                let received = subscription.receive(1, Duration::from_secs(1)).await.expect("an answer");
                assert!(received.is_empty(), "there are no messages");
                let looked = looked.lock();
                assert!(looked.len() <= POPS_MAX, "{} requests in a second", looked.len());
                if looked.contains(&true) {
                    return;
                }
            }
        };
        tokio::time::timeout(LONG, looks).await.expect("it looks for messages");
    }
}
