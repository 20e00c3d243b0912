//! The mirror: what the ensemble holds, as channels.
//!
//! Persistent recursive watches on what the channels show ([`WATCHED`]) tell which paths changed; those are read again.
//! Locks are not among them: there may be thousands a second, and each would wake every node. Events carry no values,
//! so several changes of a path cost one read.
//!
//! What happens while the connection is lost is not told, and the watches end with it: servers forget them, and the
//! client library gives only those that fire once to the next one. So they are set anew when it returns, and in a new
//! session; after that everything is read, after `sync`. What changes in between is told and read twice, and never
//! missed. One task writes the channels, and reads of a session never go back in time, so neither do the channels.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::{join_all, select_all};
use futures::{FutureExt, StreamExt, stream};
use holdfast_actors::ports::coordination::{
    CONTROLLER, CacheState, CoordinationError, FencingToken, LeaseHolder, LeaseName, LeaseTable, LiveNode, Membership,
    Pauses, ShardMap, Version, Versioned,
};
use holdfast_protocol::cluster::LayoutDocument;
use holdfast_protocol::{NodeId, ShardId};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use zookeeper_client as zk;

use super::calls::{READS_TOGETHER, Stored, read_together};
use super::session::{Shared, connected};
use super::stored::{
    CandidateRecord, GENERATION, LAYOUT, LEASES, NODES, NodeRecord, PAUSES, ROOT, SHARDS, StoredCache, StoredShard,
    Topic, WATCHED, decode, lease_path, node_path, sequence, shard_path,
};

/// Requests in flight while everything is read.
const READS_MAX: usize = 64;
/// The pause after the first of some failures; it doubles with each. All nodes may fail at the same time, and each reads
/// everything anew.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause: for so long more nobody sees what changed, once it can be read again.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// After how long it is told that nothing can be read.
const FAILING_LONG: Duration = Duration::from_secs(10);

/// The channels.
#[derive(Default)]
pub(super) struct Views {
    pub(super) membership: watch::Sender<Arc<Membership>>,
    pub(super) layout: watch::Sender<Option<Arc<Versioned<LayoutDocument>>>>,
    pub(super) shards: watch::Sender<Arc<ShardMap>>,
    pub(super) leases: watch::Sender<Arc<LeaseTable>>,
    pub(super) pauses: watch::Sender<Pauses>,
    pub(super) cache: watch::Sender<CacheState>,
    /// Woken when a node said something of the shared cache, or left.
    pub(super) seen: watch::Sender<()>,
    /// The last session in which everything was read at least once.
    pub(super) complete_in: watch::Sender<Option<i64>>,
    /// Whether everything was read since the connection was last made.
    pub(super) is_current: AtomicBool,
}

/// Keeps the channels current until the participant is gone.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut current = shared.current.subscribe();
    let closed = shared.closed.clone();
    let mut failing = Failing::default();
    let work = async {
        loop {
            let client = current.borrow_and_update().clone();
            let Some(client) = client else {
                if current.changed().await.is_err() {
                    return;
                }
                continue;
            };
            // The client library panics in whoever waits for an event when its own task is gone. A node that went on
            // without this one would prove its ownership and hear of no change.
            let followed = AssertUnwindSafe(follow(&shared, client, &mut failing)).catch_unwind().await;
            shared.views.is_current.store(false, Ordering::Release);
            let pause = match followed {
                // The session is over, which others tell.
                Ok(Ok(())) => {
                    failing.since = None;
                    RETRY_PAUSE
                }
                Ok(Err(error)) => {
                    let (pause, is_news) = failing.again(Instant::now());
                    if is_news {
                        tracing::warn!(%error, "this node does not see what changes in the cluster, it tries again");
                    } else {
                        tracing::debug!(%error, "coordination mirror");
                    }
                    pause
                }
                Err(_) => {
                    tracing::error!("the coordination mirror panicked, it begins anew");
                    failing.again(Instant::now()).0
                }
            };
            tokio::select! {
                () = sleep(pause.mul_f64(rand::random_range(0.75..1.25))) => {}
                // Whoever renewed the session waits until it is read.
                _ = current.changed() => failing.pause = Duration::ZERO,
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = closed.cancelled() => {}
    }
}

/// Failures since everything was read.
#[derive(Default)]
struct Failing {
    /// When the first of them was.
    since: Option<Instant>,
    /// The pause after the last one.
    pause: Duration,
    is_told: bool,
}

impl Failing {
    /// Notes one. Returns the pause after it, and whether it is to be told, once, that they last.
    fn again(&mut self, now: Instant) -> (Duration, bool) {
        self.pause = (self.pause * 2).clamp(RETRY_PAUSE, RETRY_PAUSE_MAX);
        let lasts = now.duration_since(*self.since.get_or_insert(now)) >= FAILING_LONG;
        let is_news = lasts && !self.is_told;
        self.is_told |= lasts;
        (self.pause, is_news)
    }

    /// Everything was read.
    fn end(&mut self) {
        if self.is_told {
            tracing::info!("this node sees again what changes in the cluster");
        }
        *self = Self::default();
    }
}

/// What events said.
#[derive(Default)]
struct News {
    topics: BTreeSet<Topic>,
    deleted: BTreeSet<String>,
    /// The connection was lost or came back: events are missing.
    gap: bool,
    over: bool,
}

impl News {
    fn note(&mut self, event: zk::WatchedEvent, leases: &watch::Sender<Arc<LeaseTable>>) {
        if event.event_type == zk::EventType::Session {
            self.gap = true;
            self.over |= event.session_state.is_terminated();
            return;
        }
        let topic = Topic::of(&event.path);
        match (event.event_type, &topic) {
            (zk::EventType::NodeDeleted, _) => {
                self.deleted.insert(event.path);
            }
            // Who comes last in a queue is not its holder, and that of a holder who leaves is told as well. Otherwise
            // each node would read the list of all candidates for each of them, when all register anew.
            (zk::EventType::NodeCreated, Some(Topic::Lease(name))) if leases.borrow().contains_key(name) => return,
            _ => {}
        }
        self.topics.extend(topic);
    }
}

/// Watches of one connection. Asked for all at once, and waited for all: one whose answer nobody waits for would be
/// taken back.
struct Watches(Vec<zk::PersistentWatcher>);

impl Watches {
    async fn set(client: &zk::Client) -> Result<Self, zk::Error> {
        let asked = WATCHED.map(|path| client.watch(path, zk::AddWatchMode::PersistentRecursive));
        join_all(asked).await.into_iter().collect::<Result<Vec<_>, _>>().map(Self)
    }

    /// The next event of any. Not to be asked again after one that says that the session is over. Cancel safe.
    async fn changed(&mut self) -> zk::WatchedEvent {
        select_all(self.0.iter_mut().map(|watcher| watcher.changed().boxed())).await.0
    }
}

/// Follows one session until it is over or something fails.
async fn follow(shared: &Shared, client: zk::Client, failing: &mut Failing) -> Result<(), zk::Error> {
    if !connected(&client).await {
        return Ok(());
    }
    let mut watches = Watches::set(&client).await?;
    let mut mirror = Mirror { shared, client: client.clone() };
    mirror.read_everything().await?;
    failing.end();
    loop {
        let mut news = News::default();
        let leases = &shared.views.leases;
        news.note(watches.changed().await, leases);
        while !news.over
            && let Some(event) = watches.changed().now_or_never()
        {
            news.note(event, leases);
        }
        if news.over {
            return Ok(());
        }
        news.deleted.iter().for_each(|path| shared.lose_lease(path));
        if news.gap {
            shared.views.is_current.store(false, Ordering::Release);
            if !connected(&client).await {
                return Ok(());
            }
            // The old ones go when the new ones are there, so that the server is not told to take these back.
            watches = Watches::set(&client).await?;
            mirror.read_everything().await?;
            failing.end();
        } else {
            mirror.read_again(news.topics).await?;
        }
    }
}

struct Mirror<'a> {
    shared: &'a Shared,
    client: zk::Client,
}

fn log_corrupt(error: &CoordinationError) {
    metrics::counter!("holdfast_coordination_corrupt_total").increment(1);
    tracing::error!(%error, "skipping coordination data");
}

fn present<T>(result: Result<T, zk::Error>) -> Result<Option<T>, zk::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(zk::Error::NoNode) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Mirror<'_> {
    async fn read_everything(&mut self) -> Result<(), zk::Error> {
        metrics::counter!("holdfast_coordination_resyncs_total").increment(1);
        self.client.sync(ROOT).await?;
        let mut topics = BTreeSet::from([Topic::Layout, Topic::Generation, Topic::Pauses, Topic::Seen]);
        topics.insert(Topic::Lease(CONTROLLER.to_owned()));
        for parent in [NODES, SHARDS, LEASES] {
            let children = present(self.client.list_children(parent).await)?.unwrap_or_default();
            topics.extend(children.iter().filter_map(|name| Topic::of(&format!("{parent}/{name}"))));
        }
        // What is gone is found by asking for what was there.
        let views = &self.shared.views;
        topics.extend(views.membership.borrow().nodes.keys().map(|n| Topic::Node(*n)));
        topics.extend(views.shards.borrow().shards.keys().map(|s| Topic::Shard(*s)));
        topics.extend(views.leases.borrow().keys().map(|l| Topic::Lease(l.clone())));
        let held: Vec<String> = self.shared.held.lock().keys().cloned().collect();
        for path in held {
            if self.client.check_stat(&path).await?.is_none() {
                self.shared.lose_lease(&path);
            }
        }
        self.read_again(topics).await?;
        views.is_current.store(true, Ordering::Release);
        views.complete_in.send_replace(Some(self.client.session_id().0));
        Ok(())
    }

    /// Reads what may have changed, then shows it.
    async fn read_again(&mut self, topics: BTreeSet<Topic>) -> Result<(), zk::Error> {
        let client = &self.client;
        let mut reads = stream::iter(grouped(topics)).map(|group| read_group(client, group)).buffered(READS_MAX);
        let mut nodes = Vec::new();
        let mut shards = Vec::new();
        let mut leases = Vec::new();
        let views = &self.shared.views;
        while let Some(values) = reads.next().await {
            for value in values? {
                match value {
                    Value::Nothing => {}
                    Value::Layout(layout) => {
                        views.layout.send_if_modified(|present| replace(present, layout.map(Arc::new)));
                    }
                    Value::Cache(state) => {
                        let newer =
                            |present: &mut CacheState| state.generation > present.generation && replace(present, state);
                        views.cache.send_if_modified(newer);
                    }
                    Value::Pauses(pauses) => {
                        views.pauses.send_if_modified(|present| replace(present, pauses));
                    }
                    Value::Seen => views.seen.send_modify(|()| {}),
                    Value::Node(id, node) => nodes.push((id, node)),
                    Value::Shard(id, shard) => shards.push((id, shard)),
                    Value::Lease(name, holder) => leases.push((name, holder)),
                }
            }
        }
        // First: whoever sees a node here sees the leases that were there before it.
        update(&views.leases, leases, |m| m);
        update(&views.membership, nodes, |m| &mut m.nodes);
        update(&views.shards, shards.into_iter().map(|(id, s)| (id, s.map(Arc::new))).collect(), |m| &mut m.shards);
        Ok(())
    }
}

fn replace<T: PartialEq>(present: &mut T, new: T) -> bool {
    let changed = *present != new;
    *present = new;
    changed
}

/// Puts in what is there, takes out what is not, and tells the channel only if something changed.
fn update<T, K, V>(
    channel: &watch::Sender<Arc<T>>,
    news: Vec<(K, Option<V>)>,
    map: impl Fn(&mut T) -> &mut BTreeMap<K, V>,
) where
    T: Clone,
    K: Ord,
    V: PartialEq,
{
    if news.is_empty() {
        return;
    }
    channel.send_if_modified(|shown| {
        let map = map(Arc::make_mut(shown));
        let mut changed = false;
        for (key, value) in news {
            changed |= match value {
                Some(value) => map.get(&key) != Some(&value) && (map.insert(key, value), true).1,
                None => map.remove(&key).is_some(),
            };
        }
        changed
    });
}

enum Value {
    Nothing,
    Layout(Option<Versioned<LayoutDocument>>),
    Cache(CacheState),
    Pauses(Pauses),
    Seen,
    Node(NodeId, Option<LiveNode>),
    Shard(ShardId, Option<Versioned<holdfast_protocol::cluster::ShardState>>),
    Lease(String, Option<LeaseHolder>),
}

/// [`Stored`], or an error if it cannot be understood.
type Found<T> = Option<Result<(T, zk::Stat), ()>>;

fn understood<T: DeserializeOwned>(path: &str, found: Stored) -> Found<T> {
    let (bytes, stat) = found?;
    Some(decode(path, &bytes).map(|value| (value, stat)).map_err(|error| log_corrupt(&error)))
}

async fn get<T: DeserializeOwned>(client: &zk::Client, path: &str) -> Result<Found<T>, zk::Error> {
    Ok(understood(path, present(client.get_data(path).await)?))
}

/// Requests for topics, in their order: those of which there are many are read together.
fn grouped(topics: BTreeSet<Topic>) -> Vec<Vec<Topic>> {
    let mut groups: Vec<Vec<Topic>> = Vec::new();
    for topic in topics {
        let is_one_of_many = topic.one_of_many().is_some();
        match groups.last_mut() {
            Some(group) if is_one_of_many && group.len() < READS_TOGETHER && group[0].one_of_many().is_some() => {
                group.push(topic);
            }
            _ => groups.push(vec![topic]),
        }
    }
    groups
}

async fn read_group(client: &zk::Client, mut group: Vec<Topic>) -> Result<Vec<Value>, zk::Error> {
    if group.len() == 1 {
        let topic = group.remove(0);
        return Ok(vec![read(client, topic).await?]);
    }
    let path = |topic: &Topic| topic.one_of_many().expect("only those are grouped");
    let paths: Vec<String> = group.iter().map(path).collect();
    let found = read_together(client, &paths).await?;
    Ok(group.iter().zip(found).map(|(topic, found)| value_of(topic, found)).collect())
}

/// The value of one of those of which there are many. What cannot be understood is not shown as gone: the last good
/// value stays.
fn value_of(topic: &Topic, found: Stored) -> Value {
    match topic {
        Topic::Node(id) => match understood::<NodeRecord>(&node_path(*id), found) {
            Some(Ok((record, stat))) => {
                let incarnation = stat.czxid as u64;
                Value::Node(*id, Some(LiveNode { announcement: record.announcement, incarnation }))
            }
            Some(Err(())) => Value::Nothing,
            None => Value::Node(*id, None),
        },
        Topic::Shard(id) => match understood::<StoredShard>(&shard_path(*id), found) {
            Some(Ok((value, stat))) => {
                Value::Shard(*id, Some(Versioned { version: Version(stat.version), value: value.into() }))
            }
            Some(Err(())) => Value::Nothing,
            None => Value::Shard(*id, None),
        },
        _ => Value::Nothing,
    }
}

async fn read(client: &zk::Client, topic: Topic) -> Result<Value, zk::Error> {
    if let Some(path) = topic.one_of_many() {
        return Ok(value_of(&topic, present(client.get_data(&path).await)?));
    }
    Ok(match topic {
        // What cannot be understood is not shown as gone: the last good value stays.
        Topic::Layout => match get(client, LAYOUT).await? {
            Some(Ok((value, stat))) => Value::Layout(Some(Versioned { version: Version(stat.version), value })),
            Some(Err(())) => Value::Nothing,
            None => Value::Layout(None),
        },
        Topic::Generation => match get::<StoredCache>(client, GENERATION).await? {
            Some(Ok((state, _))) => Value::Cache(state.into()),
            _ => Value::Nothing,
        },
        Topic::Pauses => match get(client, PAUSES).await? {
            Some(Ok((pauses, _))) => Value::Pauses(pauses),
            Some(Err(())) => Value::Nothing,
            None => Value::Pauses(Pauses::default()),
        },
        Topic::Seen => Value::Seen,
        Topic::Node(_) | Topic::Shard(_) => Value::Nothing,
        Topic::Lease(name) => match LeaseName::new(name) {
            Ok(lease) => Value::Lease(lease.to_string(), holder(client, &lease).await?),
            Err(_) => Value::Nothing,
        },
    })
}

async fn holder(client: &zk::Client, lease: &LeaseName) -> Result<Option<LeaseHolder>, zk::Error> {
    let parent = lease_path(lease);
    loop {
        let candidates = present(client.list_children(&parent).await)?.unwrap_or_default();
        let first = candidates.iter().filter_map(|name| sequence(name).map(|s| (s, name))).min();
        let Some((_, first)) = first else { return Ok(None) };
        match get::<CandidateRecord>(client, &format!("{parent}/{first}")).await? {
            Some(Ok((record, stat))) => {
                return Ok(Some(LeaseHolder { node: record.node, token: FencingToken(stat.czxid as u64) }));
            }
            Some(Err(())) => return Ok(None),
            // It left in between: somebody else is first now.
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(events: &[(zk::EventType, &str)], shown: LeaseTable) -> BTreeSet<Topic> {
        let (mut news, leases) = (News::default(), watch::Sender::new(Arc::new(shown)));
        for (event, path) in events {
            news.note(zk::WatchedEvent::new(*event, *path), &leases);
        }
        news.topics
    }

    #[test]
    fn failures_are_seldom_tried_again_and_told_once_where_they_last() {
        let (mut failing, begin) = (Failing::default(), Instant::now());
        for round in 0..2 {
            let mut at = begin;
            let mut pauses = Vec::new();
            let mut told = 0;
            while at < begin + FAILING_LONG * 10 {
                let (pause, is_news) = failing.again(at);
                assert!(!is_news || at >= begin + FAILING_LONG, "what passes soon is not told");
                told += usize::from(is_news);
                pauses.push(pause);
                at += pause;
            }
            assert_eq!(pauses[..3], [RETRY_PAUSE, RETRY_PAUSE * 2, RETRY_PAUSE * 4], "{round}");
            assert_eq!((pauses.last(), told), (Some(&RETRY_PAUSE_MAX), 1), "{round}");
            failing.end();
        }
    }

    #[test]
    fn many_are_read_together_and_leases_after_the_nodes() {
        let node = |n: u64| Topic::Node(NodeId::from(n));
        let shards = (0..200).map(|n| Topic::Shard(ShardId(n)));
        let lease = || Topic::Lease("x".into());
        let all: BTreeSet<Topic> = shards.chain([Topic::Layout, node(1), node(2), lease()]).collect();
        let groups = grouped(all.clone());
        assert_eq!(groups.concat(), Vec::from_iter(all), "in their order, each once");
        assert_eq!((&groups[0], groups[1][0].clone()), (&vec![Topic::Layout], node(1)));
        assert_eq!(groups.last(), Some(&vec![lease()]));
        assert_eq!(groups.len(), 2 + 202_usize.div_ceil(READS_TOGETHER));
        assert_eq!(grouped(BTreeSet::from([node(1)])), [[node(1)]]);
    }

    #[test]
    fn who_comes_last_in_a_queue_is_no_reason_to_read_it() {
        use zk::EventType::{NodeCreated, NodeDeleted};
        let (first, second) = ("/controller/a-0000000001", "/controller/b-0000000002");
        let holder = LeaseHolder { node: NodeId::from(1), token: FencingToken(5) };
        let held = LeaseTable::from([(CONTROLLER.to_owned(), holder)]);
        let read = BTreeSet::from([Topic::Lease(CONTROLLER.to_owned())]);
        assert_eq!(topics(&[(NodeCreated, second)], held.clone()), BTreeSet::new());
        assert_eq!(topics(&[(NodeCreated, first)], LeaseTable::new()), read, "nobody had it");
        assert_eq!(topics(&[(NodeDeleted, first), (NodeCreated, second)], held.clone()), read, "who had it left");
        assert_eq!(topics(&[(NodeCreated, second), (NodeDeleted, first)], held.clone()), read);
        let other = BTreeSet::from([Topic::Lease("outbox-1".into())]);
        assert_eq!(topics(&[(NodeCreated, "/leases/outbox-1/a-0000000001")], held), other);
    }
}
