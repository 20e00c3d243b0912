//! Which queues a topic has, and at which brokers.
//!
//! **Order.** A key's queue is its hash over the list of queues, so the order of a key's messages holds as long as that
//! list stays, and is the same on all nodes.
//! * Where the configuration names the brokers ([`RocketMqOptions::brokers`]), the list is theirs, whatever the name
//!   servers know at the moment: keys of a broker that is missing wait for it, and a node that starts meanwhile knows
//!   the same list.
//! * Elsewhere it is what the name servers say. A broker that they no longer know keeps its queues in the list for
//!   [`MISSING_GRACE`], where this process knew it. After that its keys move to others' queues, with a warning, since
//!   nothing else would ever deliver them. For that long a topic is not made anew elsewhere, either.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast_actors::ports::events::{EventError, EventResult};
use holdfast_protocol::events::{PARTITIONS, partition_of};
use holdfast_protocol::hash::fnv1a;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;

use super::connection::Connections;
use super::error::{refused, unexpected};
use super::options::RocketMqOptions;
use super::wire::{Command, quote_numeric_names, request, response};
use crate::telemetry::seldom::Seldom;

mod create;
#[cfg(test)]
mod tests;

pub(super) use create::masters;
use create::{complete, create};

/// How long a route is used before it is asked for again.
const ROUTE_AGE_MAX: Duration = Duration::from_secs(30);
/// How long who knows a route waits for a newer one, and the pause after it came in vain: brokers work without name
/// servers.
const REFRESH_MAX: Duration = Duration::from_secs(2);
/// How long a broker may be missing before its queues are given up.
const MISSING_GRACE: Duration = Duration::from_secs(10 * 60);
/// How often it is told that a topic cannot be made at all of its brokers.
const INCOMPLETE_TOLD_EVERY: Duration = Duration::from_secs(60);
/// Permissions of a queue.
const READABLE: i32 = 4;
const WRITABLE: i32 = 2;

/// The queues of one topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Route {
    /// Queues to write to: broker and number, in the order of both.
    pub(super) write: Vec<(Arc<str>, i32)>,
    /// Queues to read from.
    pub(super) read: Vec<(Arc<str>, i32)>,
    /// Address of the master of each broker that is there.
    pub(super) masters: BTreeMap<Arc<str>, String>,
}

impl Route {
    /// Which of the queues to write to is a key's, whether or not its broker is there.
    ///
    /// The partition of the outbox decides first, and the rest of the key then: what the owner of a partition has to
    /// send at once goes to one queue, or where there are more queues than partitions, to few. So it fits into few
    /// requests.
    pub(super) fn place_of(&self, key: &str) -> Option<usize> {
        let hash = fnv1a(key.bytes());
        // Not the low bits alone: the outbox's partitions are made of those.
        let within = (hash.rotate_left(29) ^ hash).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        // A place between 0 and PARTITIONS, with 32 bits behind the point.
        let place = (u128::from(partition_of(key.as_bytes())) << 32) | u128::from(within);
        let at = (place * self.write.len() as u128 / u128::from(PARTITIONS)) >> 32;
        (!self.write.is_empty()).then_some(at as usize)
    }

    /// The queue of a key, and where it is.
    pub(super) fn queue_of(&self, key: &str) -> EventResult<(&str, &Arc<str>, i32)> {
        let nobody = || {
            let why = match self.read.is_empty() {
                true => "no broker takes messages of the topic",
                false => "the topic can only be read (brokerPermission of its brokers, or perm of the topic)",
            };
            EventError::Unavailable(why.into())
        };
        let (broker, queue) = &self.write[self.place_of(key).ok_or_else(nobody)?];
        Ok((self.master(broker)?, broker, *queue))
    }

    /// A queue for a message that is in no order with others: its key's, or the next one whose broker is there.
    pub(super) fn queue_of_any(&self, key: &str) -> EventResult<(&str, &Arc<str>, i32)> {
        self.queue_of(key).or_else(|missing| {
            let (before, from) = self.write.split_at(self.place_of(key).unwrap_or(0));
            let mut others = from.iter().chain(before);
            let there = others.find_map(|(broker, queue)| Some((self.masters.get(broker)?.as_str(), broker, *queue)));
            there.ok_or(missing)
        })
    }

    pub(super) fn master(&self, broker: &Arc<str>) -> EventResult<&str> {
        let missing = || EventError::Unavailable(format!("the broker {broker} is not there, or lacks the topic"));
        self.masters.get(broker).map(String::as_str).ok_or_else(missing)
    }

    /// Whether the topic is at a broker, as far as the name servers know. It may be neither written nor read there.
    fn is_at(&self, broker: &str) -> bool {
        self.masters.contains_key(broker) || self.write.iter().chain(&self.read).any(|(at, _)| &**at == broker)
    }

    /// Makes the list of queues to write to that of the brokers that the configuration names, if it names any.
    fn fix(&mut self, topic: &str, options: &RocketMqOptions) -> EventResult<()> {
        if options.brokers.is_empty() {
            return Ok(());
        }
        let queues = options.topic_queues as i32;
        for broker in &options.brokers {
            let there = self.write.iter().filter(|(at, _)| &**at == broker).count();
            // None: it is missing or can only be read, and is waited for.
            if there > 0 && there < options.topic_queues as usize {
                return Err(EventError::NoTopic(format!(
                    "the topic {topic} has {there} queues at the broker {broker}, and events.topic_queues is {queues}: \
                     make them the same"
                )));
            }
        }
        let of_broker = |broker: &String| {
            let broker: Arc<str> = broker.as_str().into();
            (0..queues).map(move |queue| (broker.clone(), queue))
        };
        self.write = options.brokers.iter().flat_map(of_broker).take(QUEUES_IN_ROUTE_MAX).collect();
        self.write.sort();
        self.write.dedup();
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RouteData {
    broker_datas: Vec<BrokerData>,
    queue_datas: Vec<QueueData>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BrokerData {
    broker_name: String,
    broker_addrs: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct QueueData {
    broker_name: String,
    perm: i32,
    read_queue_nums: i32,
    write_queue_nums: i32,
}

/// Queues of a topic on one broker that are used.
const QUEUES_MAX: i32 = 1_024;
/// Queues of a topic that are used. Brokers may be many, but an answer of 32 MiB could name half a million.
pub(super) const QUEUES_IN_ROUTE_MAX: usize = 16_384;
/// The number that a broker's master has.
const MASTER: &str = "0";

impl From<RouteData> for Route {
    fn from(data: RouteData) -> Self {
        let mut route = Self::default();
        for broker in data.broker_datas {
            if let Some(master) = broker.broker_addrs.get(MASTER) {
                route.masters.insert(broker.broker_name.as_str().into(), master.clone());
            }
        }
        for queues in data.queue_datas {
            let broker: Arc<str> = queues.broker_name.as_str().into();
            // More than RocketMQ's own tools make; an answer must not decide how much memory this takes.
            let add = |list: &mut Vec<(Arc<str>, i32)>, count: i32| {
                let left = QUEUES_IN_ROUTE_MAX - list.len();
                list.extend((0..count.min(QUEUES_MAX)).take(left).map(|number| (broker.clone(), number)));
            };
            if queues.perm & WRITABLE != 0 {
                add(&mut route.write, queues.write_queue_nums);
            }
            if queues.perm & READABLE != 0 {
                add(&mut route.read, queues.read_queue_nums);
            }
        }
        route.write.sort();
        route.read.sort();
        route
    }
}

/// The route of an answer of a name server.
pub(super) fn route_from(bytes: &[u8]) -> serde_json::Result<Route> {
    serde_json::from_slice::<RouteData>(&quote_numeric_names(bytes)).map(Route::from)
}

struct Known {
    route: Arc<Route>,
    asked: Instant,
    /// The name servers did not answer: until then nobody asks them.
    unasked_until: Option<Instant>,
    /// Since when brokers of the list are missing.
    missing_since: BTreeMap<Arc<str>, Instant>,
}

/// All routes that were asked for.
pub(super) struct Routes {
    known: Mutex<HashMap<String, Known>>,
    /// One question at a time.
    asking: tokio::sync::Mutex<()>,
    /// Whether it was said that brokers should be named.
    said: AtomicBool,
    /// That a topic is not at all of its brokers would be told at each question.
    incomplete: Seldom,
}

impl Routes {
    pub(super) fn new() -> Self {
        Self {
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            said: AtomicBool::new(false),
            incomplete: Seldom::new(INCOMPLETE_TOLD_EVERY),
        }
    }

    fn fresh(&self, topic: &str) -> Option<Arc<Route>> {
        let known = self.known.lock();
        let is_fresh = |known: &&Known| {
            known.asked.elapsed() < ROUTE_AGE_MAX || known.unasked_until.is_some_and(|until| Instant::now() < until)
        };
        known.get(topic).filter(is_fresh).map(|known| known.route.clone())
    }

    /// What is known of a topic, however old.
    pub(super) fn known(&self, topic: &str) -> Option<Arc<Route>> {
        self.known.lock().get(topic).map(|known| known.route.clone())
    }

    /// Makes the next caller ask anew.
    pub(super) fn doubt(&self, topic: &str) {
        if let Some(known) = self.known.lock().get_mut(topic) {
            known.asked = known.asked.checked_sub(ROUTE_AGE_MAX).unwrap_or(known.asked);
        }
    }

    /// The route of a topic. A topic that is missing is made, if that is allowed.
    pub(super) async fn of(
        &self,
        connections: &Connections,
        topic: &str,
        deadline: Instant,
    ) -> EventResult<Arc<Route>> {
        if let Some(route) = self.fresh(topic) {
            return Ok(route);
        }
        let known = self.known(topic);
        let limit = if known.is_some() { deadline.min(Instant::now() + REFRESH_MAX) } else { deadline };
        let Ok(_asking) = tokio::time::timeout_at(limit, self.asking.lock()).await else {
            return known.ok_or_else(|| EventError::TimedOut("the name servers do not answer".into()));
        };
        if let Some(route) = self.fresh(topic) {
            return Ok(route);
        }
        match self.ask(connections, topic, limit).await {
            Ok(route) => Ok(self.learn(topic, route)),
            // What is known already is better than nothing: brokers work without name servers, and keys wait for those
            // that are missing.
            Err(error @ (EventError::Unavailable(_) | EventError::TimedOut(_))) => {
                let mut all = self.known.lock();
                let Some(known) = all.get_mut(topic) else { return Err(error) };
                known.unasked_until = Some(Instant::now() + REFRESH_MAX);
                Ok(known.route.clone())
            }
            Err(error) => Err(error),
        }
    }

    fn learn(&self, topic: &str, mut route: Route) -> Arc<Route> {
        let mut all = self.known.lock();
        let now = Instant::now();
        let mut missing_since = BTreeMap::new();
        if let Some(known) = all.get(topic) {
            let (mut kept, mut given_up) = (Vec::new(), 0);
            // Both are sorted.
            for queue in known.route.write.iter().filter(|queue| route.write.binary_search(queue).is_err()) {
                let since = known.missing_since.get(&queue.0).copied().unwrap_or(now);
                if now.duration_since(since) < MISSING_GRACE {
                    missing_since.insert(queue.0.clone(), since);
                    kept.push(queue.clone());
                } else {
                    given_up += 1;
                }
            }
            if given_up > 0 {
                tracing::warn!(topic, queues = given_up, "queues of a missing broker are given up: keys move");
            }
            route.write.extend(kept);
            route.write.sort();
        }
        let route = Arc::new(route);
        all.insert(topic.to_owned(), Known { route: route.clone(), asked: now, unasked_until: None, missing_since });
        route
    }

    /// A broker that had the topic, is not among those `there`, and is still waited for.
    fn waits_for(&self, topic: &str, there: &BTreeMap<String, String>) -> Option<Arc<str>> {
        let mut all = self.known.lock();
        let Known { route, missing_since, .. } = all.get_mut(topic)?;
        let mut missing: Vec<Arc<str>> = route.write.iter().map(|(broker, _)| broker.clone()).collect();
        missing.dedup();
        missing.retain(|broker| !there.contains_key(&**broker));
        let now = Instant::now();
        missing.retain(|broker| {
            let since = *missing_since.entry(broker.clone()).or_insert(now);
            now.duration_since(since) < MISSING_GRACE
        });
        missing.into_iter().next()
    }

    async fn ask(&self, connections: &Connections, topic: &str, deadline: Instant) -> EventResult<Route> {
        let options = connections.options();
        let route = || {
            let command = Command::new(request::GET_ROUTE_OF_TOPIC).field("topic", topic);
            // Name servers write JSON of their own otherwise.
            ask_any(connections, command.field("acceptStandardJsonOnly", true), deadline)
        };
        let mut answer = route().await?;
        if answer.code == response::TOPIC_NOT_EXIST {
            // Nor do name servers know a topic whose brokers are all missing.
            let mut there = masters(connections, deadline).await?;
            if !options.brokers.is_empty() {
                there.retain(|broker, _| options.brokers.contains(broker));
                if there.is_empty() {
                    return Err(EventError::Unavailable("none of the brokers in events.brokers is there".into()));
                }
            } else if let Some(missing) = self.waits_for(topic, &there) {
                // Made elsewhere, it would have other queues when that broker is back.
                return Err(EventError::Unavailable(format!("the broker {missing}, which has {topic}, is not there")));
            }
            if !options.create_topics {
                return Err(EventError::NoTopic(format!(
                    "RocketMQ has no topic {topic}: create it there, or set events.create_topics = true"
                )));
            }
            create(connections, topic, &there, deadline).await?;
            // Brokers tell the name servers at once, and those take a moment.
            for _ in 0..20 {
                answer = route().await?;
                if answer.code != response::TOPIC_NOT_EXIST {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        if answer.code != response::SUCCESS {
            return Err(refused(topic, &answer));
        }
        let mut route = route_from(&answer.body).map_err(|error| unexpected("a route", &error))?;
        if options.create_topics
            && options.brokers.iter().any(|broker| !route.is_at(broker))
            && let Err(error) = complete(connections, topic, &mut route, deadline).await
            && let Some(untold) = self.incomplete.untold()
        {
            tracing::warn!(topic, %error, untold, "a topic cannot be made at all of its brokers, trying again");
        }
        // Sorted by brokers.
        let is_at_several =
            route.write.first().map(|(broker, _)| broker) != route.write.last().map(|(broker, _)| broker);
        if is_at_several && options.brokers.is_empty() && !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                topic,
                "topics lie at several brokers, and events.brokers does not name them: keys move when one is gone, out of order"
            );
        }
        route.fix(topic, options)?;
        Ok(route)
    }
}

/// Asks the name servers, one after the other, until one answers.
async fn ask_any(connections: &Connections, command: Command, deadline: Instant) -> EventResult<Command> {
    let mut last = EventError::Unavailable("no name server is configured".into());
    let RocketMqOptions { name_servers, request_timeout, .. } = connections.options();
    for (at, addr) in name_servers.iter().enumerate() {
        // One that hangs must not use up the time of those behind it.
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / (name_servers.len() - at) as u32;
        let limit = now + share.min(*request_timeout);
        match connections.call(addr, command.clone(), limit).await {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
    }
    Err(last)
}
