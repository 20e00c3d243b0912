//! Several nodes on a real Redis that is disturbed in every way, against a database that dawdles.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures::FutureExt as _;
use holdfast_actors::ports::coordination::conformance::{announcement, until};
use holdfast_actors::ports::coordination::{CacheMode, CacheState, ClusterIdentity, SessionState, turn_cache_off};
use holdfast_actors::wait::{self, eventually};
use holdfast_protocol::cluster::LayoutDocument;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use super::codec::{Reader, Writer};
use super::*;
use crate::coordination::{InProcessCluster, InProcessCoordination};
use crate::metadata::{SqliteMetadataStore, SqliteOptions};

mod random;
mod script;

#[allow(dead_code, reason = "these tests use a part")]
#[path = "../../../../cluster-tests/src/services"]
pub(super) mod services {
    pub mod directory;
    pub mod process;
    pub mod redis;
    pub mod tcp_proxy;
}

use services::redis::Server;
use services::tcp_proxy::{Flow, TcpProxy};

const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than a busy machine holds up the answer of a server that is well.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a node that is cut off keeps its session.
const SESSION: Duration = Duration::from_secs(2);

#[derive(Debug, PartialEq)]
struct Value(u64);

impl codec::Entry for Value {
    const CACHE: &'static str = "test";
    const KIND: char = 't';

    fn absent() -> MetadataError {
        MetadataError::NoSuchKey
    }

    fn write(&self, out: &mut Writer) {
        out.number(self.0);
    }

    fn read(fields: &mut Reader<'_>) -> Option<Self> {
        fields.number().map(Self)
    }
}

struct Node {
    core: Arc<Core>,
    coordination: InProcessCoordination,
    flights: Arc<Flights<Value>>,
    proxy: TcpProxy,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Nodes {
    cluster: InProcessCluster,
    founder: InProcessCoordination,
    id: ClusterId,
    redis: Server,
}

/// Patient: no stall turns a hit into a read of the database, or has the cache switched off. Tests of what happens when
/// Redis is silent set limits of their own.
fn options(at: std::net::SocketAddr) -> RedisCacheOptions {
    let mut options = RedisCacheOptions::new(RedisAddress::parse(&format!("redis://{at}")).unwrap());
    options.retry = Duration::from_millis(20);
    options.read_timeout = ANSWER_MAX;
    options.write_timeout = ANSWER_MAX;
    options.connect_timeout = ANSWER_MAX;
    options.off_patience = PATIENCE;
    options
}

impl Nodes {
    async fn start() -> Self {
        Self::start_with(SESSION).await
    }

    async fn start_with(session: Duration) -> Self {
        let redis = tokio::task::spawn_blocking(Server::start).await.unwrap();
        let cluster = InProcessCluster::new(session);
        let founder = cluster.participant();
        let identity = ClusterIdentity::new(16, 1);
        founder.create_cluster(&identity, &LayoutDocument::new(3)).await.unwrap();
        let id = identity.id;
        Self { cluster, founder, id, redis }
    }

    async fn node(&self, number: u64) -> Node {
        self.node_with(number, |_| {}).await
    }

    async fn node_with(&self, number: u64, change: impl FnOnce(&mut RedisCacheOptions)) -> Node {
        let proxy = TcpProxy::start(self.redis.address());
        let coordination = self.cluster.participant();
        let mut options = options(proxy.address());
        change(&mut options);
        let ports: Arc<dyn Coordination> = Arc::new(coordination.clone());
        let core = Arc::new(Core::new(self.id, NodeId::from(number), ports, options));
        let seen = watch::Sender::new(CacheSeen::default());
        let mut said = seen.subscribe();
        let tasks = vec![
            tokio::spawn(core.link.clone().keep()),
            tokio::spawn(keeper::follow(core.clone(), seen)),
            tokio::spawn(keeper::lead(core.clone())),
            tokio::spawn({
                let (coordination, core, id) = (coordination.clone(), core.clone(), self.id);
                async move { stay_registered(&coordination, &core, id, number, &mut said).await }
            }),
        ];
        let node = Node { core, coordination, flights: Arc::default(), proxy, tasks };
        node.core.gate.until(|gate| gate.standing().is_some()).await;
        node
    }

    async fn wait_for(&self, mode: CacheMode) -> CacheState {
        until(self.founder.watch_cache_state(), |state| state.mode == mode).await
    }

    /// On, and every one of these nodes reads it.
    async fn wait_until_on(&self, nodes: &[&Node]) -> u64 {
        let ask = async || {
            let state = self.wait_for(CacheMode::On).await;
            let reads = |node: &&Node| node.core.gate.reading().is_ok_and(|(s, _)| s.generation == state.generation);
            (nodes.iter().all(reads), state)
        };
        let (_, state) = wait::until("every node reads the cache", ask, |(all, _)| *all).await;
        state.keyspace
    }
}

/// What the membership loop of a node does.
async fn stay_registered(
    coordination: &InProcessCoordination,
    core: &Core,
    cluster: ClusterId,
    number: u64,
    said: &mut watch::Receiver<CacheSeen>,
) {
    loop {
        if coordination.renew_session().await.is_ok() {
            let term = coordination.ownership().term();
            if let Ok(registration) = coordination.register(cluster, announcement(number)).await {
                core.gate.register(term, registration.cache_generation);
                loop {
                    let seen = said.borrow_and_update().clone();
                    if coordination.acknowledge_cache(&seen).await.is_err() && coordination.ownership().term() != term {
                        break;
                    }
                    drop(tokio::time::timeout(Duration::from_millis(50), said.changed()).await);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Node {
    async fn read(
        &self,
        key: &str,
        load: impl Future<Output = MetadataResult<Arc<Value>>> + Send + 'static,
    ) -> MetadataResult<u64> {
        let name = Name::of::<Value>(key);
        self.core.read(&self.flights, &name, || load.boxed()).await.map(|value| value.0)
    }

    async fn read_of(&self, key: &str, version: u64) -> u64 {
        self.read(key, async move { Ok(Arc::new(Value(version))) }).await.unwrap()
    }

    /// Reads, and fails if the database is asked.
    async fn hit(&self, key: &str) -> MetadataResult<u64> {
        self.read(key, async { panic!("the database is asked") }).await
    }

    /// Waits until the cache has what was loaded here, for which readers do not wait.
    async fn landed(&self) {
        eventually("what was loaded lands", || self.flights.in_flight() == 0).await;
    }

    async fn begin(&self, key: &str) -> coherence::Write {
        self.core.begin(vec![Name::of::<Value>(key)]).await.unwrap()
    }

    async fn write(&self, key: &str, version: u64) {
        let write = self.begin(key).await;
        write.finish(codec::encode(&Value(version))).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_writes_or_reads_another_one_finds() {
    let nodes = Nodes::start().await;
    let (a, b) = (nodes.node(1).await, nodes.node(2).await);
    nodes.wait_until_on(&[&a, &b]).await;
    a.write("written", 7).await;
    assert_eq!(b.hit("written").await.unwrap(), 7);
    assert_eq!(a.read_of("read", 3).await, 3);
    a.landed().await;
    assert_eq!(b.hit("read").await.unwrap(), 3);
    // That there is nothing is known too, until somebody writes.
    let nothing = async { Err(MetadataError::NoSuchKey) };
    assert!(matches!(a.read("nothing", nothing).await, Err(MetadataError::NoSuchKey)));
    a.landed().await;
    assert!(matches!(b.hit("nothing").await, Err(MetadataError::NoSuchKey)));
    b.write("nothing", 1).await;
    assert_eq!(a.hit("nothing").await.unwrap(), 1);
    // Errors are not.
    assert!(a.read("broken", async { Err(MetadataError::Busy) }).await.is_err());
    assert_eq!(b.read_of("broken", 1).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_a_write_of_another_node_overtook_does_not_land() {
    let nodes = Nodes::start().await;
    let (a, b) = (Arc::new(nodes.node(1).await), nodes.node(2).await);
    nodes.wait_until_on(&[&a, &b]).await;
    let (go, loading) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = tokio::spawn({
        let (a, go, loading) = (a.clone(), go.clone(), loading.clone());
        async move {
            let load = async move {
                loading.notify_one();
                go.notified().await;
                Ok(Arc::new(Value(1)))
            };
            a.read("k", load).await.unwrap()
        }
    });
    loading.notified().await;
    let write = b.begin("k").await;
    assert_eq!(a.read_of("k", 1).await, 1, "a reader during the write asks the database itself");
    write.finish(codec::encode(&Value(2))).await.unwrap();
    assert_eq!(a.hit("k").await.unwrap(), 2, "nobody joins the old load");
    go.notify_one();
    assert_eq!(slow.await.unwrap(), 1);
    assert_eq!(b.hit("k").await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_a_missing_key_share_one_load_a_node() {
    const READERS: usize = 50;
    let nodes = Nodes::start().await;
    let node = Arc::new(nodes.node(1).await);
    nodes.wait_until_on(&[&node]).await;
    let (go, loads) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let (node, go, loads) = (node.clone(), go.clone(), loads.clone());
            tokio::spawn(async move {
                let load = async move {
                    loads.fetch_add(1, Ordering::SeqCst);
                    go.acquire().await.unwrap().forget();
                    Ok(Arc::new(Value(1)))
                };
                node.read("hot", load).await.unwrap()
            })
        })
        .collect();
    // The load lasts until all of them wait for it, or for others that there should not be.
    let waiting_and_loads = async || (node.flights.waiting(), loads.load(Ordering::SeqCst));
    wait::until("all readers wait for shared loads", waiting_and_loads, |(waiting, _)| *waiting >= READERS).await;
    go.add_permits(READERS);
    for reader in readers {
        assert_eq!(reader.await.unwrap(), 1);
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_overlap_leave_nothing_behind_and_lost_marks_are_found_out() {
    let nodes = Nodes::start().await;
    let (a, b) = (nodes.node(1).await, nodes.node(2).await);
    nodes.wait_until_on(&[&a, &b]).await;
    let (first, second) = (a.begin("k").await, b.begin("k").await);
    second.finish(codec::encode(&Value(2))).await.unwrap();
    first.finish(codec::encode(&Value(1))).await.unwrap();
    assert_eq!(a.read_of("k", 2).await, 2, "nobody knows which one was last");

    let write = a.begin("k").await;
    nodes.redis.command(&["FLUSHALL"]);
    // A reader that saw the time before the write.
    assert_eq!(b.read_of("k", 2).await, 2);
    b.landed().await;
    assert_eq!(b.hit("k").await.unwrap(), 2);
    write.finish(codec::encode(&Value(3))).await.unwrap();
    assert_eq!(b.read_of("k", 3).await, 3, "what it filled is gone before the write is acknowledged");
    let state = nodes.founder.cache_state().await.unwrap().value;
    assert_eq!(state.mode, CacheMode::On, "losing everything is no reason to switch it off");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_parts_of_which_one_has_an_unknown_outcome_none_is_acknowledged() {
    let nodes = Nodes::start().await;
    let dir = tempfile::tempdir().unwrap();
    let inner = SqliteMetadataStore::open(&dir.path().join("metadata"), SqliteOptions::default()).await.unwrap();
    let ports: Arc<dyn Coordination> = Arc::new(nodes.cluster.participant());
    let address = options(nodes.redis.address());
    let store = RedisCachedStore::start(Arc::new(inner), nodes.id, NodeId::from(1), ports, address);
    let answer = |second: fn() -> MetadataResult<u64>| {
        let names = vec![Name::of::<Value>("first"), Name::of::<Value>("second")];
        let is_open =
            |parts: &Vec<MetadataResult<u64>>| parts.iter().any(|part| matches!(part, Err(MetadataError::Unknown(_))));
        store.write_parts(names, |_| None, is_open, move |_| async move { Ok(vec![Ok(1), second()]) })
    };
    // Nobody has looked yet whether the mark of the first one was lost, and what was filled then.
    let open = answer(|| Err(MetadataError::Unknown("connection lost".into()))).await;
    assert!(matches!(open, Err(MetadataError::Unknown(_))), "{open:?}");
    let refused = answer(|| Err(MetadataError::PreconditionFailed)).await.unwrap();
    assert!(matches!(refused[..], [Ok(1), Err(MetadataError::PreconditionFailed)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_cannot_mark_has_the_cache_switched_off_and_waits_for_everybody() {
    // Longer than a stall of a server that is well, shorter than a node is waited for that hears of nothing.
    const SILENCE: Duration = Duration::from_secs(6);
    let nodes = Nodes::start_with(SILENCE * 3).await;
    let silenced = |options: &mut RedisCacheOptions| {
        options.read_timeout = SILENCE;
        options.write_timeout = SILENCE;
        options.connect_timeout = SILENCE;
    };
    let a = nodes.node_with(1, silenced).await;
    let b = nodes.node(2).await;
    let keyspace = nodes.wait_until_on(&[&a, &b]).await;
    a.write("k", 1).await;
    assert_eq!(b.hit("k").await.unwrap(), 1);
    a.proxy.set(Flow::Stalled);
    // The other node does not hear of anything for a while: its session ends before the write is done.
    b.coordination.cut();
    let begun = Instant::now();
    let write = a.begin("k").await;
    println!("begun after {:?}", begun.elapsed());
    assert!(!b.coordination.ownership().is_proven(), "it may still read what is about to be old");
    assert_eq!(b.read_of("k", 1).await, 1, "it asks the database");
    write.finish(codec::encode(&Value(2))).await.unwrap();
    let off = nodes.wait_for(CacheMode::Off).await;
    assert!(!off.reason.is_empty());
    b.coordination.restore();
    b.core.gate.until(|gate| gate.standing().is_some()).await;
    assert_eq!(b.read_of("k", 2).await, 2);
    // As long as one node is cut off nobody uses it, nor does it come and go.
    let generation = nodes.founder.cache_state().await.unwrap().value.generation;
    for version in 3..20 {
        b.write("k", version).await;
        // For a while, in which it would be tried several times.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(nodes.founder.cache_state().await.unwrap().value.generation, generation);
    let said = nodes.founder.cache_seen().await.unwrap();
    assert!(said[&NodeId::from(1)].problem.is_some() && said[&NodeId::from(2)].server.is_some(), "{said:?}");
    a.proxy.set(Flow::Open);
    assert!(nodes.wait_until_on(&[&a, &b]).await > keyspace);
    assert_eq!(a.read_of("k", 19).await, 19);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_old_data_or_with_none_is_another_one() {
    let mut nodes = Nodes::start().await;
    let node = nodes.node(1).await;
    let first = nodes.wait_until_on(&[&node]).await;
    node.write("k", 1).await;
    nodes.redis.save();
    node.write("k", 2).await;
    nodes.redis.kill();
    assert_eq!(node.read_of("k", 2).await, 2);
    nodes.redis.run();
    assert!(nodes.redis.command(&["DBSIZE"]) != ":0", "it has the snapshot");
    assert_eq!(node.read_of("k", 2).await, 2);
    until(nodes.founder.watch_cache_state(), |state| state.mode == CacheMode::On && state.keyspace > first).await;
    let second = nodes.wait_until_on(&[&node]).await;
    assert_eq!(node.read_of("k", 2).await, 2);
    node.landed().await;
    assert_eq!(node.hit("k").await.unwrap(), 2);
    // What is there may also be handed to somebody else, and back, by the same process.
    nodes.redis.command(&["REPLICAOF", "127.0.0.1", "1"]);
    node.write("k", 3).await;
    nodes.redis.command(&["REPLICAOF", "NO", "ONE"]);
    until(nodes.founder.watch_cache_state(), |state| state.mode == CacheMode::On && state.keyspace > second).await;
    nodes.wait_until_on(&[&node]).await;
    assert_eq!(node.read_of("k", 3).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_and_one_that_refuses_the_user_keep_the_cache_off_and_say_why() {
    let nodes = Nodes::start().await;
    let node = nodes.node(1).await;
    nodes.wait_until_on(&[&node]).await;
    nodes.redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    node.write("k", 1).await;
    let off = nodes.wait_for(CacheMode::Off).await;
    assert!(off.reason.contains("maxmemory"), "{off:?}");
    until(node.core.link.reach(), |reach| reach.problem.as_ref().is_some_and(|why| why.contains("maxmemory"))).await;
    nodes.redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    nodes.wait_until_on(&[&node]).await;
    nodes.redis.command(&["CONFIG", "SET", "requirepass", "secret"]);
    node.proxy.sever();
    node.write("k", 2).await;
    nodes.wait_for(CacheMode::Off).await;
    until(node.core.link.reach(), |reach| reach.problem.as_ref().is_some_and(|why| why.contains("NOAUTH"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_proof_does_not_read_and_its_writes_are_made_known() {
    let nodes = Nodes::start().await;
    let (a, b) = (nodes.node(1).await, nodes.node(2).await);
    let keyspace = nodes.wait_until_on(&[&a, &b]).await;
    a.write("k", 1).await;
    // A write that is begun in one session and ends in another one was not watched over.
    let write = b.begin("k").await;
    b.coordination.cut();
    until(b.coordination.session(), |state| state.is_fenced()).await;
    assert_eq!(b.read_of("other", 5).await, 5);
    until(b.coordination.session(), |state| *state == SessionState::Expired).await;
    b.coordination.restore();
    b.core.gate.until(|gate| gate.standing().is_some()).await;
    write.finish(None).await.unwrap();
    let state = nodes.founder.cache_state().await.unwrap().value;
    assert!(state.mode != CacheMode::On || state.keyspace > keyspace, "{state:?}");
    nodes.wait_until_on(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_or_a_newer_state_is_followed_at_once() {
    let nodes = Nodes::start().await;
    let (a, b) = (nodes.node(1).await, nodes.node(2).await);
    nodes.wait_until_on(&[&a, &b]).await;
    a.write("k", 1).await;
    let off = turn_cache_off(&nodes.founder, None, None, "an operator", |_| 0).await.unwrap();
    nodes.founder.cache_generation_seen(off, PATIENCE).await.unwrap();
    assert_eq!(b.read_of("k", 9).await, 9);
}
