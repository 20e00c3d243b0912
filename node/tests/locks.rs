//! The lock adapters against real Redis and ZooKeeper: the port's suite, and faults.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/sessions.rs"]
mod sessions;
// Shared by path: nothing depends on the crate of the black-box tests.
#[allow(dead_code, reason = "this test uses a part")]
#[path = "../../cluster-tests/src/services"]
mod services {
    pub mod directory;
    pub mod process;
    pub mod redis;
    pub mod zookeeper;
}

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use holdfast_actors::flow::duty::Duty;
use holdfast_actors::ports::coordination::conformance::until;
use holdfast_actors::ports::coordination::{ClusterIdentity, Coordination, SessionState};
use holdfast_actors::ports::locks::conformance::{Harness, Participant};
use holdfast_actors::ports::locks::{Fence, FencingToken, Lease, LockError, LockName, Locks};
use holdfast_actors::ports::metadata::{MetadataError, MetadataUpkeep as _};
use holdfast_actors::wait::{PATIENCE, until_ok};
use holdfast_node::coordination::{ZookeeperConfig, ZookeeperCoordination};
use holdfast_node::locks::{RedisLocks, ZookeeperLocks};
use holdfast_node::metadata::sqlite::{SqliteMetadataStore, SqliteOptions};
use holdfast_node::redis::{Redis, RedisOptions};
use holdfast_protocol::NodeId;
use holdfast_protocol::cluster::LayoutDocument;
use proxy::{Flow, Proxy};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

/// Of Redis, in these tests: five times the time limit of a command. Between a renewal and the end of what the one
/// before it proves are seven seconds: a machine that stands still for some of them loses no lock.
const TIME_LIMIT: Duration = Duration::from_secs(15);
const COMMAND: Duration = Duration::from_secs(3);
/// Of ZooKeeper, likewise.
const SESSION: Duration = Duration::from_secs(15);
const OPERATION: Duration = Duration::from_secs(10);

/// One server of each kind for all tests that do not harm it.
static REDIS: LazyLock<services::redis::Server> = LazyLock::new(services::redis::Server::start);
static ZOOKEEPER: LazyLock<services::zookeeper::Ensemble> = LazyLock::new(|| services::zookeeper::Ensemble::start(1));

fn number() -> u64 {
    static TESTS: AtomicU64 = AtomicU64::new(0);
    TESTS.fetch_add(1, Ordering::Relaxed)
}

fn redis_at(address: impl std::fmt::Display) -> Redis {
    let url = format!("redis://{address}/0");
    Redis::open(&RedisOptions { url, timeout: COMMAND, ..RedisOptions::default() }).unwrap()
}

fn name(text: &str) -> LockName {
    LockName::new(text).unwrap()
}

struct RedisHarness {
    prefix: String,
}

impl RedisHarness {
    async fn new() -> Self {
        spawn_blocking(|| LazyLock::force(&REDIS)).await.unwrap();
        Self { prefix: format!("test-{}:", number()) }
    }
}

#[async_trait]
impl Harness for RedisHarness {
    async fn participant(&self) -> Participant {
        let proxy = Proxy::start(REDIS.address()).await;
        let locks = RedisLocks::new(redis_at(proxy.address), &self.prefix, TIME_LIMIT);
        Participant { locks: Arc::new(locks), connection: Some(Arc::new(proxy)) }
    }

    async fn take_away(&self, lease: &Lease) {
        let key = format!("{}lock:{{{}}}:holder", self.prefix, lease.name());
        assert_eq!(spawn_blocking(move || REDIS.command(&["DEL", &key])).await.unwrap(), ":1");
    }

    async fn waiting(&self, lock: &LockName) -> Option<usize> {
        let key = format!("{}lock:{{{lock}}}:queue", self.prefix);
        let answer = spawn_blocking(move || REDIS.command(&["ZCARD", &key])).await.unwrap();
        Some(answer.strip_prefix(':').unwrap().parse().unwrap())
    }

    fn time_limit(&self) -> Duration {
        TIME_LIMIT
    }
}

struct ZookeeperHarness {
    chroot: String,
}

impl ZookeeperHarness {
    async fn new() -> Self {
        spawn_blocking(|| LazyLock::force(&ZOOKEEPER)).await.unwrap();
        Self { chroot: format!("/holdfast/locks-{}", number()) }
    }

    async fn behind_proxy(&self) -> (Arc<ZookeeperCoordination>, Proxy) {
        let proxy = Proxy::start(ZOOKEEPER.servers[0].address()).await;
        let config = ZookeeperConfig {
            session_timeout: SESSION,
            operation_timeout: OPERATION,
            ..ZookeeperConfig::new(proxy.address.to_string(), self.chroot.clone())
        };
        (Arc::new(sessions::connect(&config).await), proxy)
    }
}

#[async_trait]
impl Harness for ZookeeperHarness {
    async fn participant(&self) -> Participant {
        let (coordination, proxy) = self.behind_proxy().await;
        let locks = ZookeeperLocks::new(coordination, NodeId::from(number()));
        Participant { locks: Arc::new(locks), connection: Some(Arc::new(proxy)) }
    }

    async fn take_away(&self, lease: &Lease) {
        let raw = sessions::raw(&ZOOKEEPER.connect_string()).await;
        raw.delete(&format!("{}{}", self.chroot, lease.key()), None).await.unwrap();
    }

    async fn waiting(&self, lock: &LockName) -> Option<usize> {
        // The holder's place is one of them.
        let raw = sessions::raw(&ZOOKEEPER.connect_string()).await;
        match raw.list_children(&format!("{}/locks/{lock}", self.chroot)).await {
            Ok(places) => Some(places.len()),
            Err(zookeeper_client::Error::NoNode) => Some(0),
            // A session that ended at once, on a busy machine.
            Err(_) => None,
        }
    }

    fn time_limit(&self) -> Duration {
        SESSION
    }
}

mod redis_conformance {
    use super::*;

    holdfast_actors::locks_conformance!(RedisHarness::new().await);
}

mod zookeeper_conformance {
    use super::*;

    holdfast_actors::locks_conformance!(ZookeeperHarness::new().await);
}

async fn redis_locks(server: &services::redis::Server) -> RedisLocks {
    RedisLocks::new(redis_at(server.address()), "holdfast:test:", TIME_LIMIT)
}

async fn own_redis() -> services::redis::Server {
    spawn_blocking(services::redis::Server::start).await.unwrap()
}

async fn metadata(dir: &tempfile::TempDir) -> SqliteMetadataStore {
    SqliteMetadataStore::open(&dir.path().join("metadata.sqlite"), SqliteOptions::default()).await.unwrap()
}

async fn write(store: &SqliteMetadataStore, fence: &Fence) -> Result<(), MetadataError> {
    store.finish_reclaims(&[], Some(fence)).await
}

/// Asks again for as long as the service is away.
async fn insist(locks: &dyn Locks, name: &LockName) -> Lease {
    until_ok("the service is back", async || locks.acquire(name, PATIENCE).await).await
}

/// There may be thousands a second, and every node of a cluster is connected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zookeeper_tells_of_a_lock_nobody_who_does_not_wait_for_it() {
    const LOCKS: u64 = 100;
    let harness = ZookeeperHarness::new().await;
    let (_idle, proxy) = harness.behind_proxy().await;
    let (busy, _way) = harness.behind_proxy().await;
    let locks = ZookeeperLocks::new(busy, NodeId::from(number()));
    let (before, begun) = (proxy.answered_bytes(), Instant::now());
    for _ in 0..LOCKS {
        insist(&locks, &name("busy")).await.release().await;
    }
    let told = proxy.answered_bytes() - before;
    // What a session costs anyway depends on how long this took. A lock would be told by two events of more than 100
    // bytes.
    let heartbeats = 1_000 * (begun.elapsed().as_secs() + 1);
    assert!(told < LOCKS * 100 + heartbeats, "{told} bytes for {LOCKS} locks of others");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_that_is_killed_loses_the_locks_and_its_holders_know() {
    let mut server = own_redis().await;
    let locks = redis_locks(&server).await;
    let lock = name("killed");
    let lease = locks.acquire(&lock, PATIENCE).await.unwrap();
    server.kill();
    let begun = Instant::now();
    let refused = locks.acquire(&name("other"), PATIENCE).await;
    assert!(matches!(refused, Err(LockError::Unavailable(_))), "{refused:?}");
    assert!(begun.elapsed() < PATIENCE, "whoever waits for a lock is told early that there is no service");
    timeout(PATIENCE, lease.lost()).await.expect("the clock says so");
    assert!(!lease.is_held());
    let server = spawn_blocking(move || {
        server.run();
        server
    });
    let server = server.await.unwrap();
    let next = insist(&locks, &lock).await;
    assert!(next.token() > lease.token(), "though the server has forgotten everything");
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_with_old_data_is_told_how_far_it_was_and_grants_fail_closed_until_then() {
    let server = own_redis().await;
    let locks = redis_locks(&server).await;
    let dir = tempfile::tempdir().unwrap();
    let store = metadata(&dir).await;
    let lock = name("cleanup");
    // Tokens far ahead of the clock stand for a clock that was set back.
    let ahead = FencingToken(9_000_000_000_000);
    until_ok("tokens are raised", async || locks.raise(&lock, ahead).await).await;
    locks.acquire(&lock, PATIENCE).await.unwrap().release().await;
    let key = "holdfast:test:lock:{cleanup}:token".to_owned();
    let server = spawn_blocking(move || {
        server.command(&["SET", &key, "1"]);
        server.save();
        server.command(&["SET", &key, "9000000000005"]);
        server
    });
    server_round(server.await.unwrap(), &locks, &lock, &store).await;
}

/// Two grants, and between them the server goes back to what it saved.
async fn server_round(
    mut server: services::redis::Server,
    locks: &RedisLocks,
    lock: &LockName,
    store: &SqliteMetadataStore,
) {
    let before = locks.acquire(lock, PATIENCE).await.unwrap();
    write(store, &before.fence()).await.unwrap();
    let server = spawn_blocking(move || {
        server.kill();
        server.run();
        server
    });
    let server = server.await.unwrap();
    timeout(PATIENCE, before.lost()).await.expect("the server does not know it any more");

    // A duty meets it: refused while it holds the lock, it tells the server, and goes on.
    let duty = Duty::new(Arc::new(locks.clone()), lock.clone());
    let standing = tokio::spawn({
        let duty = duty.clone();
        async move { duty.stand().await }
    });
    let (mut refusals, deadline) = (0, Instant::now() + PATIENCE);
    let passed = loop {
        assert!(Instant::now() < deadline, "{refusals} refusals");
        if let Some(fence) = duty.fence() {
            match write(store, &fence).await {
                Ok(()) => break fence,
                Err(MetadataError::Fenced { current, .. }) => {
                    assert_eq!(current, before.token());
                    refusals += 1;
                    duty.on_fenced(current);
                }
                Err(error) => panic!("{error}"),
            }
        }
        sleep(Duration::from_millis(20)).await;
    };
    assert!(refusals > 0, "the server had gone back, so its first grant was refused");
    assert!(passed.token > before.token());
    assert!(matches!(write(store, &before.fence()).await, Err(MetadataError::Fenced { .. })));
    standing.abort();
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_that_stands_still_costs_a_bounded_time() {
    let server = own_redis().await;
    let locks = redis_locks(&server).await;
    let lease = locks.acquire(&name("slow"), PATIENCE).await.unwrap();
    server.signal(Signal::STOP);
    let begun = Instant::now();
    let refused = locks.acquire(&name("other"), PATIENCE).await;
    assert!(matches!(refused, Err(LockError::Unavailable(_))), "{refused:?}");
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    timeout(PATIENCE, lease.lost()).await.expect("the clock says so");
    server.signal(Signal::CONT);
    let next = insist(&locks, &name("slow")).await;
    assert!(next.token() > lease.token() && next.is_held() && !lease.is_held());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_password_is_denied() {
    let server = spawn_blocking(|| services::redis::Server::start_with(Some("right"))).await.unwrap();
    for (password, fits) in [(None, false), (Some("wrong"), false), (Some("right"), true)] {
        let options = RedisOptions {
            url: server.url(),
            password: password.map(str::to_owned),
            timeout: COMMAND,
            ..RedisOptions::default()
        };
        let locks = RedisLocks::new(Redis::open(&options).unwrap(), "x:", TIME_LIMIT);
        let result = locks.acquire(&name("denied"), PATIENCE).await;
        assert_eq!(result.is_ok(), fits, "{password:?}: {result:?}");
        assert!(fits || matches!(result, Err(LockError::Denied(_))), "{password:?}: {result:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_lock_that_nobody_uses() {
    let server = own_redis().await;
    let locks = redis_locks(&server).await;
    for i in 0..20 {
        let lock = name(&format!("upload-{i}"));
        let lease = locks.acquire(&lock, PATIENCE).await.unwrap();
        assert!(locks.acquire(&lock, Duration::from_millis(50)).await.is_err());
        lease.release().await;
    }
    // The last tokens stay for a while, each with a time limit.
    let (keys, limited) = spawn_blocking(move || {
        let keys = server.command(&["DBSIZE"]);
        (keys, server.command(&["INFO", "keyspace"]))
    })
    .await
    .unwrap();
    assert_eq!(keys, ":20");
    assert!(limited.contains("keys=20,expires=20"), "{limited}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_zookeeper_session_loses_its_locks() {
    let harness = ZookeeperHarness::new().await;
    let (coordination, proxy) = harness.behind_proxy().await;
    coordination.create_cluster(&ClusterIdentity::new(16, 0), &LayoutDocument::new(3)).await.unwrap();
    let locks = ZookeeperLocks::new(coordination.clone(), NodeId::from(1));
    let other = harness.participant().await;
    let lock = name("session");
    let lease = locks.acquire(&lock, PATIENCE).await.unwrap();
    proxy.set(Flow::Stalled);
    let next = other.acquire(&lock, PATIENCE).await.unwrap();
    assert!(!lease.is_held() && next.is_held());
    proxy.set(Flow::Open);
    until(coordination.session(), |s| *s == SessionState::Expired).await;
    timeout(PATIENCE, lease.lost()).await.expect("the holder is told");
    let refused = locks.acquire(&lock, Duration::from_secs(5)).await;
    assert!(matches!(refused, Err(LockError::Unavailable(_))), "{refused:?}");
    until_ok("a session", async || coordination.renew_session().await).await;
    let waiter = tokio::spawn({
        let lock = lock.clone();
        async move { locks.acquire(&lock, PATIENCE).await }
    });
    next.release().await;
    assert!(timeout(PATIENCE, waiter).await.unwrap().unwrap().unwrap().is_held());
    // Locks are no leases: nobody's table shows them.
    assert!(coordination.leases().borrow().is_empty());
}

/// The program of the test below: takes a lock, says so, and writes under it whenever a line comes in. Run by itself it
/// does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_holder_program() {
    let Ok(address) = std::env::var("HOLDFAST_TEST_LOCK_REDIS") else { return };
    let file = std::env::var("HOLDFAST_TEST_LOCK_METADATA").unwrap();
    let locks = RedisLocks::new(redis_at(address), "holdfast:test:", TIME_LIMIT);
    let store = SqliteMetadataStore::open(std::path::Path::new(&file), SqliteOptions::default()).await.unwrap();
    let lease = locks.acquire(&name("paused"), PATIENCE).await.unwrap();
    println!("holds {}", lease.token());
    // What it believes is asked before it waits for its next write, as a holder would: it may be stopped in between. In
    // a write it is never stopped, with the database's lock in its hands.
    let mut believed = lease.is_held();
    while let Some(Ok(_)) = spawn_blocking(|| std::io::stdin().lines().next()).await.unwrap() {
        let result = write(&store, &lease.fence()).await;
        let held = lease.is_held();
        println!("believed={believed} written={} held={held}", result.is_ok());
        if result.is_err() {
            return;
        }
        believed = held;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_of_a_holder_paused_past_its_time_limit_is_refused() {
    let server = own_redis().await;
    let dir = tempfile::tempdir().unwrap();
    let store = metadata(&dir).await;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["paused_holder_program", "--exact", "--nocapture"])
        .env("HOLDFAST_TEST_LOCK_REDIS", server.address().to_string())
        .env("HOLDFAST_TEST_LOCK_METADATA", dir.path().join("metadata.sqlite"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "write").unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let output = spawn_blocking(move || {
        let mut line = String::new();
        while !line.contains("written=true") {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "the holder writes");
        }
        output
    });
    let output = timeout(PATIENCE, output).await.expect("the holder writes").unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let locks = redis_locks(&server).await;
    let next = locks.acquire(&name("paused"), PATIENCE).await.unwrap();
    write(&store, &next.fence()).await.unwrap();
    kill_process(pid, Signal::CONT).unwrap();
    writeln!(input, "write").unwrap();
    // There is no third: a holder whose second write gets through ends too.
    drop(input);
    let lines = spawn_blocking(move || {
        let lines: Vec<String> = output.lines().map_while(Result::ok).collect();
        child.wait().unwrap();
        lines
    });
    let lines = timeout(PATIENCE, lines).await.expect("it ends").unwrap();
    let refused = lines.iter().find(|line| line.contains("written=false")).expect("the write was refused");
    assert!(refused.ends_with("held=false"), "{refused}: it knows afterwards");
    write(&store, &next.fence()).await.unwrap();
    assert!(next.is_held());
}
