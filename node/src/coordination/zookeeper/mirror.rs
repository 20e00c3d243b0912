//! The mirror: what the ensemble holds, as channels.
//!
//! One persistent recursive watch on the root tells which paths changed; those are read again. Events carry no values,
//! so several changes of a path cost one read. What happens while the connection is lost is not told: everything is
//! read anew when it returns, and in a new session, after `sync`. The watch is set anew before: a server that a session
//! comes to knows only the watches that the client library names to it, and that forgets the persistent ones. One task
//! writes the channels, and reads of a session never go back in time, so neither do the channels.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt, stream};
use holdfast_actors::ports::coordination::{
    CONTROLLER, CacheState, CoordinationError, FencingToken, LeaseHolder, LeaseName, LeaseTable, LiveNode, Membership,
    Pauses, ShardMap, Version, Versioned,
};
use holdfast_protocol::cluster::LayoutDocument;
use holdfast_protocol::{NodeId, ShardId};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::sleep;
use zookeeper_client as zk;

use super::session::{Shared, connected};
use super::stored::{
    CandidateRecord, GENERATION, LAYOUT, LEASES, NODES, NodeRecord, PAUSES, ROOT, SHARDS, StoredCache, StoredShard,
    Topic, decode, lease_path, node_path, sequence, shard_path,
};

/// Reads in flight while everything is read.
const READS_MAX: usize = 64;
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

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
}

/// Keeps the channels current until the participant is gone.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut current = shared.current.subscribe();
    let closed = shared.closed.clone();
    let work = async {
        loop {
            let client = current.borrow_and_update().clone();
            let Some(client) = client else {
                if current.changed().await.is_err() {
                    return;
                }
                continue;
            };
            if let Err(error) = follow(&shared, client).await {
                tracing::debug!(%error, "coordination mirror");
            }
            sleep(RETRY_PAUSE).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = closed.cancelled() => {}
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
    fn note(&mut self, event: zk::WatchedEvent) {
        if event.event_type == zk::EventType::Session {
            self.gap = true;
            self.over |= event.session_state.is_terminated();
            return;
        }
        if event.event_type == zk::EventType::NodeDeleted {
            self.deleted.insert(event.path.clone());
        }
        self.topics.extend(Topic::of(&event.path));
    }
}

/// Follows one session until it is over or something fails.
async fn follow(shared: &Shared, client: zk::Client) -> Result<(), zk::Error> {
    if !connected(&client).await {
        return Ok(());
    }
    let mut watcher = client.watch(ROOT, zk::AddWatchMode::PersistentRecursive).await?;
    let mut mirror = Mirror { shared, client: client.clone() };
    mirror.read_everything().await?;
    loop {
        let mut news = News::default();
        news.note(watcher.changed().await);
        // The watcher must not be asked again once it told that the session is over.
        while !news.over
            && let Some(event) = watcher.changed().now_or_never()
        {
            news.note(event);
        }
        if news.over {
            return Ok(());
        }
        news.deleted.iter().for_each(|path| shared.lose_lease(path));
        if news.gap {
            if !connected(&client).await {
                return Ok(());
            }
            // Set while the old one is there, whose end would take the server's watch of this path with it.
            watcher = client.watch(ROOT, zk::AddWatchMode::PersistentRecursive).await?;
            mirror.read_everything().await?;
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
        views.complete_in.send_replace(Some(self.client.session_id().0));
        Ok(())
    }

    /// Reads what may have changed, then shows it.
    async fn read_again(&mut self, topics: BTreeSet<Topic>) -> Result<(), zk::Error> {
        let client = &self.client;
        let mut reads = stream::iter(topics).map(|topic| read(client, topic)).buffered(READS_MAX);
        let mut nodes = Vec::new();
        let mut shards = Vec::new();
        let mut leases = Vec::new();
        let views = &self.shared.views;
        while let Some(value) = reads.next().await {
            match value? {
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

async fn get<T: DeserializeOwned>(
    client: &zk::Client,
    path: &str,
) -> Result<Option<Result<(T, zk::Stat), ()>>, zk::Error> {
    let Some((bytes, stat)) = present(client.get_data(path).await)? else { return Ok(None) };
    Ok(Some(decode(path, &bytes).map(|value| (value, stat)).map_err(|error| log_corrupt(&error))))
}

async fn read(client: &zk::Client, topic: Topic) -> Result<Value, zk::Error> {
    let version = |stat: &zk::Stat| Version(stat.version);
    Ok(match topic {
        // What cannot be understood is not shown as gone: the last good value stays.
        Topic::Layout => match get(client, LAYOUT).await? {
            Some(Ok((value, stat))) => Value::Layout(Some(Versioned { version: version(&stat), value })),
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
        Topic::Node(id) => match get::<NodeRecord>(client, &node_path(id)).await? {
            Some(Ok((record, stat))) => {
                let incarnation = stat.czxid as u64;
                Value::Node(id, Some(LiveNode { announcement: record.announcement, incarnation }))
            }
            Some(Err(())) => Value::Nothing,
            None => Value::Node(id, None),
        },
        Topic::Shard(id) => match get::<StoredShard>(client, &shard_path(id)).await? {
            Some(Ok((value, stat))) => {
                Value::Shard(id, Some(Versioned { version: version(&stat), value: value.into() }))
            }
            Some(Err(())) => Value::Nothing,
            None => Value::Shard(id, None),
        },
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
