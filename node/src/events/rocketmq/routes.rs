//! Which queues a topic has, and at which brokers.
//!
//! **Order.** A key's queue is its hash over the list of queues, so the order of a key's messages holds as long as that list
//! stays. A broker that the name servers no longer know keeps its queues in the list for [`MISSING_GRACE`]: its keys wait for
//! it. After that they move to others' queues, with a warning, since nothing else would ever deliver them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use holdfast_actors::ports::events::{EventError, EventResult};
use holdfast_protocol::events::{PARTITIONS, partition_of};
use holdfast_protocol::hash::fnv1a;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;

use super::connection::Connections;
use super::error::{refused, unexpected};
use super::wire::{Command, quote_numeric_names, request, response};

/// How long a route is used before it is asked for again.
const ROUTE_AGE_MAX: Duration = Duration::from_secs(30);
/// How long a broker may be missing before its queues are given up.
const MISSING_GRACE: Duration = Duration::from_secs(10 * 60);
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
    /// Which of the queues to write to is a key's.
    ///
    /// The partition of the outbox decides first, and the rest of the key then: what the owner of a partition has to send at once
    /// goes to one queue, or where there are more queues than partitions, to few. So it fits into few requests.
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
        let nobody = || EventError::Unavailable("no broker takes messages of the topic".into());
        let (broker, queue) = &self.write[self.place_of(key).ok_or_else(nobody)?];
        Ok((self.master(broker)?, broker, *queue))
    }

    pub(super) fn master(&self, broker: &Arc<str>) -> EventResult<&str> {
        let missing = || EventError::Unavailable(format!("the broker {broker} is not there"));
        self.masters.get(broker).map(String::as_str).ok_or_else(missing)
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

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClusterData {
    broker_addr_table: BTreeMap<String, BrokerData>,
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

/// The route of an answer, for tests.
#[cfg(test)]
pub(super) fn route_of(bytes: &[u8]) -> Option<Route> {
    serde_json::from_slice::<RouteData>(&quote_numeric_names(bytes)).ok().map(Route::from)
}

struct Known {
    route: Arc<Route>,
    asked: Instant,
    /// Since when a broker of the list is missing.
    missing_since: Option<Instant>,
}

/// All routes that were asked for.
pub(super) struct Routes {
    known: Mutex<HashMap<String, Known>>,
    /// One question at a time.
    asking: tokio::sync::Mutex<()>,
}

impl Routes {
    pub(super) fn new() -> Self {
        Self { known: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    fn fresh(&self, topic: &str) -> Option<Arc<Route>> {
        let known = self.known.lock();
        known.get(topic).filter(|known| known.asked.elapsed() < ROUTE_AGE_MAX).map(|known| known.route.clone())
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
        let Ok(_asking) = tokio::time::timeout_at(deadline, self.asking.lock()).await else {
            return Err(EventError::TimedOut("the name servers do not answer".into()));
        };
        if let Some(route) = self.fresh(topic) {
            return Ok(route);
        }
        match self.ask(connections, topic, deadline).await {
            Ok(route) => Ok(self.learn(topic, route)),
            // What is known already is better than nothing: brokers work without name servers.
            Err(error @ (EventError::Unavailable(_) | EventError::TimedOut(_))) => {
                let known = self.known.lock().get(topic).map(|known| known.route.clone());
                known.ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    fn learn(&self, topic: &str, mut route: Route) -> Arc<Route> {
        let mut all = self.known.lock();
        let now = Instant::now();
        let mut missing_since = None;
        if let Some(known) = all.get(topic) {
            let is_missing = |queue: &&(Arc<str>, i32)| !route.write.contains(queue);
            let missing: Vec<_> = known.route.write.iter().filter(is_missing).cloned().collect();
            if !missing.is_empty() {
                let since = known.missing_since.unwrap_or(now);
                if now.duration_since(since) < MISSING_GRACE {
                    route.write.extend(missing);
                    route.write.sort();
                    missing_since = Some(since);
                } else {
                    tracing::warn!(topic, queues = missing.len(), "queues of a missing broker are given up: keys move");
                }
            }
        }
        let route = Arc::new(route);
        all.insert(topic.to_owned(), Known { route: route.clone(), asked: now, missing_since });
        route
    }

    async fn ask(&self, connections: &Connections, topic: &str, deadline: Instant) -> EventResult<Route> {
        let route = || {
            let command = Command::new(request::GET_ROUTE_OF_TOPIC).field("topic", topic);
            // Name servers write JSON of their own otherwise.
            ask_any(connections, command.field("acceptStandardJsonOnly", true), deadline)
        };
        let mut answer = route().await?;
        if answer.code == response::TOPIC_NOT_EXIST {
            if !connections.options().create_topics {
                return Err(EventError::NoTopic(format!(
                    "RocketMQ has no topic {topic}: create it there, or set events.create_topics = true"
                )));
            }
            create(connections, topic, deadline).await?;
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
        let data: RouteData = serde_json::from_slice(&quote_numeric_names(&answer.body))
            .map_err(|error| unexpected("a route", &error))?;
        Ok(data.into())
    }
}

/// Asks the name servers, one after the other, until one answers.
async fn ask_any(connections: &Connections, command: Command, deadline: Instant) -> EventResult<Command> {
    let mut last = EventError::Unavailable("no name server is configured".into());
    for addr in &connections.options().name_servers {
        let limit = deadline.min(Instant::now() + connections.options().request_timeout);
        match connections.call(addr, command.clone(), limit).await {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The masters of all brokers.
pub(super) async fn masters(connections: &Connections, deadline: Instant) -> EventResult<Vec<String>> {
    let answer = ask_any(connections, Command::new(request::GET_CLUSTER), deadline).await?;
    if answer.code != response::SUCCESS {
        return Err(refused("the cluster", &answer));
    }
    let data: ClusterData = serde_json::from_slice(&quote_numeric_names(&answer.body))
        .map_err(|error| unexpected("the cluster's brokers", &error))?;
    let mut brokers = data.broker_addr_table.into_values();
    let masters: Vec<String> = brokers.by_ref().filter_map(|mut b| b.broker_addrs.remove(MASTER)).collect();
    if masters.is_empty() {
        return Err(EventError::Unavailable("the name servers know no broker".into()));
    }
    Ok(masters)
}

/// Makes a topic at every broker. Two nodes may do so at once: they make the same.
async fn create(connections: &Connections, topic: &str, deadline: Instant) -> EventResult<()> {
    let queues = connections.options().topic_queues;
    for master in masters(connections, deadline).await? {
        let command = Command::new(request::UPDATE_AND_CREATE_TOPIC)
            .field("topic", topic)
            .field("defaultTopic", "TBW102")
            .field("readQueueNums", queues)
            .field("writeQueueNums", queues)
            .field("perm", READABLE | WRITABLE)
            .field("topicFilterType", "SINGLE_TAG")
            .field("topicSysFlag", 0)
            .field("order", false);
        let answer = connections.call(&master, command, deadline).await?;
        if answer.code != response::SUCCESS {
            return Err(refused(topic, &answer));
        }
        tracing::info!(topic, broker = master, queues, "topic created");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(text: &str) -> Route {
        let data: RouteData = serde_json::from_slice(&quote_numeric_names(text.as_bytes())).expect("a route");
        data.into()
    }

    const TWO: &str = r#"{"brokerDatas":[{"brokerAddrs":{0:"10.0.0.1:10911",1:"10.0.0.2:10911"},"brokerName":"a","cluster":"c"},
        {"brokerAddrs":{0:"10.0.0.3:10911"},"brokerName":"b","cluster":"c"}],"filterServerTable":{},
        "queueDatas":[{"brokerName":"b","perm":6,"readQueueNums":2,"topicSysFlag":0,"writeQueueNums":2},
        {"brokerName":"a","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":3}]}"#;
    const ONE: &str = r#"{"brokerDatas":[{"brokerAddrs":{0:"10.0.0.1:10911"},"brokerName":"a"}],
        "queueDatas":[{"brokerName":"a","perm":6,"readQueueNums":4,"writeQueueNums":3}]}"#;

    #[test]
    fn routes_of_name_servers_are_read() {
        let route = route(TWO);
        assert_eq!((route.write.len(), route.read.len()), (5, 6));
        assert_eq!(route.masters[&Arc::from("a")], "10.0.0.1:10911");
        let mut used: Vec<_> = (0..200).map(|n| route.queue_of(&format!("key-{n}")).expect("a queue")).collect();
        used.sort();
        used.dedup();
        assert_eq!(used.len(), 5, "every queue is used");
    }

    #[test]
    fn partitions_of_the_outbox_have_few_queues_and_all_queues_as_many_keys() {
        for count in [1, 3, 8, 16, 40, 64] {
            let route = Route { write: (0..count).map(|queue| (Arc::from("a"), queue)).collect(), ..Route::default() };
            let mut queues = vec![std::collections::BTreeSet::new(); usize::from(PARTITIONS)];
            let mut keys = vec![0; count as usize];
            for n in 0..32_000 {
                let key = format!("bucket/some/key-{n}");
                let place = route.place_of(&key).expect("there are queues");
                queues[usize::from(partition_of(key.as_bytes()))].insert(place);
                keys[place] += 1;
            }
            let most = queues.iter().map(|queues| queues.len()).max().expect("partitions");
            assert!(most <= count as usize / usize::from(PARTITIONS) + 2, "{most} of {count} for one partition");
            let (least, most) = (keys.iter().min().expect("queues"), keys.iter().max().expect("queues"));
            assert!(most < &(least * 2), "{count} queues: {least} to {most} keys");
        }
    }

    #[test]
    fn an_answer_does_not_decide_how_much_memory_a_route_takes() {
        let queue = r#"{"brokerName":"a","perm":6,"readQueueNums":2147483647,"writeQueueNums":2147483647}"#;
        let text = format!(r#"{{"brokerDatas":[],"queueDatas":[{}]}}"#, vec![queue; 20_000].join(","));
        let route = route(&text);
        assert_eq!((route.write.len(), route.read.len()), (QUEUES_IN_ROUTE_MAX, QUEUES_IN_ROUTE_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn keys_of_a_missing_broker_wait_for_it_and_then_move() {
        let routes = Routes::new();
        let before = routes.learn("topic", route(TWO));
        let key =
            (0..).map(|n| format!("key-{n}")).find(|key| before.queue_of(key).expect("a queue").1 == &Arc::from("b"));
        let key = key.expect("a key of that broker");
        let without = routes.learn("topic", route(ONE));
        assert!(matches!(without.queue_of(&key), Err(EventError::Unavailable(_))), "it waits");
        tokio::time::advance(MISSING_GRACE / 2).await;
        let back = routes.learn("topic", route(TWO));
        assert_eq!(back.queue_of(&key), before.queue_of(&key));
        routes.learn("topic", route(ONE));
        tokio::time::advance(MISSING_GRACE).await;
        let moved = routes.learn("topic", route(ONE));
        assert_eq!(moved.queue_of(&key).expect("a queue").1, &Arc::from("a"));
    }
}
