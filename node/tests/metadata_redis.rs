//! The cache in Redis before a real MariaDB: the suite of the `MetadataStore` port, on two nodes in turn, and what only
//! the decorator can get wrong.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/mariadb.rs"]
mod mariadb;
// Shared by path: nothing depends on the crate of the black-box tests.
#[allow(dead_code, reason = "this test uses a part")]
#[path = "../../cluster-tests/src/services"]
mod services {
    pub mod directory;
    pub mod mariadb;
    pub mod process;
    pub mod redis;
    pub mod tls;
}

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use holdfast_actors::ports::coordination::conformance::{announcement, until};
use holdfast_actors::ports::coordination::{CacheMode, ClusterIdentity, Coordination};
use holdfast_actors::ports::metadata::{AccessKey, CannedAcl, NewBucket, User};
use holdfast_actors::ports::{MetadataError, MetadataStore};
use holdfast_actors::wait::until_ok;
use holdfast_node::coordination::{InProcessCluster, InProcessCoordination};
use holdfast_node::metadata::{MysqlMetadataStore, MysqlOptions, RedisAddress, RedisCacheOptions, RedisCachedStore};
use holdfast_protocol::cluster::LayoutDocument;
use holdfast_protocol::{ClusterId, NodeId};
use mariadb::{Scratch, Server};
use services::redis::Server as Redis;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(120);

/// One server of each kind for all tests: each test has a database and a cluster of its own.
static MARIADB: LazyLock<Server> = LazyLock::new(Server::start);
static REDIS: LazyLock<Redis> = LazyLock::new(Redis::start);

type Cached = RedisCachedStore<MysqlMetadataStore>;

struct Node {
    store: Arc<Cached>,
    database: Arc<MysqlMetadataStore>,
    registration: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.registration.abort();
    }
}

struct Nodes {
    cluster: InProcessCluster,
    founder: InProcessCoordination,
    id: ClusterId,
    options: MysqlOptions,
    _scratch: Scratch,
}

impl Nodes {
    async fn new() -> Self {
        let server = tokio::task::spawn_blocking(|| &*MARIADB).await.unwrap();
        let (options, scratch) = server.scratch().await;
        let cluster = InProcessCluster::default();
        let founder = cluster.participant();
        let identity = ClusterIdentity::new(16, 1);
        founder.create_cluster(&identity, &LayoutDocument::new(3)).await.unwrap();
        Self { cluster, founder, id: identity.id, options, _scratch: scratch }
    }

    async fn node(&self, number: u64) -> Node {
        let address = tokio::task::spawn_blocking(|| REDIS.address()).await.unwrap();
        let mut options = RedisCacheOptions::new(RedisAddress::parse(&format!("redis://{address}")).unwrap());
        options.retry = Duration::from_millis(10);
        // A machine that stands still for a while is not to look like a slow Redis.
        options.read_timeout = Duration::from_secs(20);
        options.write_timeout = Duration::from_secs(20);
        options.connect_timeout = Duration::from_secs(20);
        let database = Arc::new(MysqlMetadataStore::open(self.options.clone()).await.unwrap());
        let coordination = Arc::new(self.cluster.participant());
        let me = NodeId::from(number);
        let store = Arc::new(Cached::start(database.clone(), self.id, me, coordination.clone(), options));
        let follower = store.follower();
        let term = coordination.ownership().term();
        let registration = coordination.register(self.id, announcement(number)).await.unwrap();
        follower.registered(term, registration.cache_generation);
        let mut seen = follower.seen();
        let acknowledging = tokio::spawn(async move {
            loop {
                let now = seen.borrow_and_update().clone();
                coordination.acknowledge_cache(&now).await.unwrap();
                if seen.changed().await.is_err() {
                    return;
                }
            }
        });
        assert!(follower.stands(PATIENCE).await);
        Node { store, database, registration: acknowledging }
    }

    async fn wait_until_on(&self, nodes: &[&Node]) {
        let on = until(self.founder.watch_cache_state(), |state| state.mode == CacheMode::On).await;
        for node in nodes {
            until(node.store.follower().seen(), |seen| seen.generation >= on.generation).await;
        }
    }
}

async fn empty_store() -> (Arc<dyn MetadataStore>, (Nodes, Node)) {
    let nodes = Nodes::new().await;
    let node = nodes.node(1).await;
    nodes.wait_until_on(&[&node]).await;
    (node.store.clone(), (nodes, node))
}

mod conformance {
    holdfast_actors::metadata_conformance!(super::empty_store);
}

fn user(name: &str) -> User {
    User { name: name.into(), admin: false, enabled: true, created_ms: 1 }
}

fn key(access_key: &str, user: User) -> AccessKey {
    AccessKey {
        access_key: access_key.into(),
        sealed_secret: vec![1, 2, 3],
        user,
        enabled: true,
        description: String::new(),
        created_ms: 1,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_once_is_found_without_the_database_on_every_node() {
    let nodes = Nodes::new().await;
    let (a, b) = (nodes.node(1).await, nodes.node(2).await);
    nodes.wait_until_on(&[&a, &b]).await;
    a.store.create_user(user("alice")).await.unwrap();
    let new = NewBucket { name: "b".into(), owner: "alice".into(), acl: CannedAcl::Private, now_ms: 1 };
    let bucket = a.store.create_bucket(new).await.unwrap();
    a.store.create_key(key("A", user("alice"))).await.unwrap();
    for node in [&a, &b] {
        // Once to learn whose key it is.
        assert_eq!(node.store.key("A").await.unwrap().user.name, "alice");
        assert_eq!(node.store.key("A").await.unwrap().sealed_secret, [1, 2, 3]);
    }
    assert!(matches!(a.store.object(bucket.id, "k", None).await, Err(MetadataError::NoSuchKey)));
    assert!(matches!(a.store.key("B").await, Err(MetadataError::NotFound("access key"))));
    b.database.close().await;
    assert_eq!(b.store.bucket("b").await.unwrap(), bucket);
    assert_eq!(b.store.key("A").await.unwrap().user, user("alice"));
    assert_eq!(*b.store.user("alice").await.unwrap(), user("alice"));
    // Nobody waits until the cache has taken what was read, and that there is none is kept for seconds only.
    until_ok("it is known that there is no object", async || {
        drop(a.store.object(bucket.id, "k", None).await);
        match b.store.object(bucket.id, "k", None).await {
            Err(MetadataError::NoSuchKey) => Ok(()),
            found => Err(format!("{:?}", found.map(drop))),
        }
    })
    .await;
    until_ok("it is known that there is no key", async || {
        drop(a.store.key("B").await);
        match b.store.key("B").await {
            Err(MetadataError::NotFound("access key")) => Ok(()),
            found => Err(format!("{:?}", found.map(drop))),
        }
    })
    .await;
    assert!(matches!(b.store.object(bucket.id, "other", None).await, Err(MetadataError::Unavailable(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_a_user_changes_its_keys_on_every_node() {
    let nodes = Nodes::new().await;
    let (a, b) = (nodes.node(1).await, nodes.node(2).await);
    nodes.wait_until_on(&[&a, &b]).await;
    a.store.create_user(user("alice")).await.unwrap();
    for name in ["A", "B"] {
        a.store.create_key(key(name, user("alice"))).await.unwrap();
        for _ in 0..3 {
            assert!(b.store.key(name).await.unwrap().user.enabled);
        }
    }
    a.store.set_user_enabled("alice", false).await.unwrap();
    for name in ["A", "B"] {
        assert!(!b.store.key(name).await.unwrap().user.enabled);
    }
    a.store.set_key_enabled("A", false).await.unwrap();
    assert!(!b.store.key("A").await.unwrap().enabled && b.store.key("B").await.unwrap().enabled);
    // The keys go with the user, and do not come back with another one of that name.
    a.store.delete_user("alice").await.unwrap();
    assert!(matches!(b.store.key("B").await, Err(MetadataError::NotFound("access key"))));
    a.store.create_user(user("alice")).await.unwrap();
    assert!(matches!(b.store.key("B").await, Err(MetadataError::NotFound("access key"))));
    // A key of this name may belong to another user now.
    a.store.create_user(user("bob")).await.unwrap();
    a.store.create_key(key("B", user("bob"))).await.unwrap();
    for _ in 0..3 {
        assert_eq!(b.store.key("B").await.unwrap().user.name, "bob");
    }
    a.store.delete_key("B").await.unwrap();
    assert!(b.store.key("B").await.is_err());
}
