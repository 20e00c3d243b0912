//! The ZooKeeper adapter against real ZooKeeper: the port's suite, and faults.

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
    pub mod zookeeper;
}

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use holdfast_actors::ports::coordination::conformance::{Harness, Participant, announcement, found, until};
use holdfast_actors::ports::coordination::{
    ClusterIdentity, Coordination, CoordinationError, FORMAT, LeaseName, SessionState,
};
use holdfast_actors::wait::{eventually, until_ok};
use holdfast_node::coordination::{Claim, Digest, ZookeeperConfig, ZookeeperCoordination};
use holdfast_protocol::cluster::{LayoutDocument, ShardState};
use holdfast_protocol::{Epoch, NodeId, ShardId};
use proxy::{Flow, Proxy};
use rustix::process::{Pid, Signal, kill_process};
use services::zookeeper::Ensemble;
use sessions::{connect, connect_as, try_connect};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

/// Of sessions whose end is waited for. A third of it is left when its owner is fenced: a machine that stands still for
/// some seconds ends none.
const SESSION_TIMEOUT: Duration = Duration::from_secs(15);
/// Of a session whose end is waited for by nobody but one who is refused.
const SHORT_SESSION: Duration = Duration::from_secs(8);
/// Longer than a busy machine stands still.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than anything takes; servers allow sessions of a minute.
const PATIENCE: Duration = Duration::from_secs(40);

/// One server for all tests that do not harm it; each has a chroot of its own.
static SERVER: LazyLock<Ensemble> = LazyLock::new(|| Ensemble::start(1));
/// Tests with three servers of their own run one after the other: six of them at once are too slow for their sessions.
static THREE_SERVERS: Mutex<()> = Mutex::const_new(());

fn config(servers: impl Into<String>) -> ZookeeperConfig {
    static TESTS: AtomicU64 = AtomicU64::new(0);
    let chroot = format!("/holdfast/test-{}", TESTS.fetch_add(1, Ordering::Relaxed));
    ZookeeperConfig {
        session_timeout: SESSION_TIMEOUT,
        operation_timeout: OPERATION_TIMEOUT,
        ..ZookeeperConfig::new(servers, chroot)
    }
}

/// Where no session ends and no operation is late because the machine is busy.
fn patient(servers: impl Into<String>) -> ZookeeperConfig {
    ZookeeperConfig { session_timeout: PATIENCE, operation_timeout: PATIENCE, ..config(servers) }
}

async fn server() -> &'static Ensemble {
    spawn_blocking(|| &*SERVER).await.unwrap()
}

struct ZookeeperHarness {
    config: ZookeeperConfig,
}

impl ZookeeperHarness {
    async fn new() -> Self {
        Self { config: config(server().await.connect_string()) }
    }

    async fn patient() -> Self {
        Self { config: patient(server().await.connect_string()) }
    }

    async fn behind_proxy(&self) -> (Participant, Proxy) {
        let proxy = Proxy::start(server().await.servers[0].address()).await;
        let config = ZookeeperConfig { servers: proxy.address.to_string(), ..self.config.clone() };
        let coordination = Arc::new(connect(&config).await);
        (Participant { coordination, connection: Arc::new(proxy.clone()) }, proxy)
    }
}

#[async_trait]
impl Harness for ZookeeperHarness {
    async fn participant(&self) -> Participant {
        self.behind_proxy().await.0
    }
}

mod conformance {
    use super::*;

    holdfast_actors::coordination_conformance!(ZookeeperHarness::new().await);
}

fn shard(nodes: &[u64]) -> ShardState {
    ShardState::founding(nodes.iter().map(|n| NodeId::from(*n)).collect())
}

/// What several writers of the layout did, and when it is enough.
struct Writes {
    acknowledged: AtomicU64,
    /// The outcome is unknown.
    unknown: AtomicU64,
    breaks: AtomicU64,
    /// Acknowledged ones.
    wanted: AtomicU64,
    wanted_breaks: u64,
    deadline: Instant,
}

impl Writes {
    fn new(wanted: u64, wanted_breaks: u64) -> Arc<Self> {
        Arc::new(Self {
            acknowledged: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            breaks: AtomicU64::new(0),
            wanted: AtomicU64::new(wanted),
            wanted_breaks,
            deadline: Instant::now() + PATIENCE * 3,
        })
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// There are as many as are wanted, or there will not be.
    fn enough(&self) -> bool {
        let all = self.acknowledged() >= self.wanted.load(Ordering::SeqCst)
            && self.breaks.load(Ordering::SeqCst) >= self.wanted_breaks;
        all || Instant::now() >= self.deadline
    }

    /// Each write that was acknowledged happened once, the others once or not at all.
    fn check(&self, happened: u64) {
        let (done, unknown) = (self.acknowledged(), self.unknown.load(Ordering::SeqCst));
        println!("{done} acknowledged, {unknown} unknown, {happened} happened");
        assert!((done..=done + unknown).contains(&happened), "{done} acknowledged, {unknown} unknown, {happened}");
    }
}

/// Raises the layout's version by compare-and-set until it was done often enough.
async fn raise_until_enough(participant: Arc<dyn Coordination>, writes: Arc<Writes>) {
    while !writes.enough() {
        let mut layout = match participant.layout().await {
            Ok(layout) => layout,
            Err(error) => {
                if error == CoordinationError::SessionExpired {
                    // A machine so busy that nothing was heard of the session in time. The next round looks again.
                    participant.renew_session().await.ok();
                }
                sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        layout.value.version += 1;
        match participant.store_layout(layout.version, &layout.value).await {
            Ok(_) => {
                writes.acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            Err(CoordinationError::Unknown(_)) => {
                writes.unknown.fetch_add(1, Ordering::SeqCst);
            }
            // Nothing happened.
            Err(
                CoordinationError::Conflict(_) | CoordinationError::Unavailable(_) | CoordinationError::SessionExpired,
            ) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// The version of the layout, of a service that may be away for a moment.
async fn layout_version(participant: &dyn Coordination) -> u64 {
    let read = async || {
        // On a busy machine it may have ended.
        participant.renew_session().await?;
        participant.layout().await
    };
    until_ok("the layout is read", read).await.value.version
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_whose_answer_is_lost_is_found_to_have_happened() {
    let harness = ZookeeperHarness::patient().await;
    let (a, proxy) = harness.behind_proxy().await;
    found(&a).await;
    let mut layout = a.layout().await.unwrap();
    layout.value.version = 7;
    let b = harness.participant().await;
    proxy.set(Flow::AnswersHeld);
    let write = tokio::spawn({
        let (a, layout) = (a.clone(), layout.clone());
        async move { a.store_layout(layout.version, &layout.value).await }
    });
    until(b.watch_layout(), |l| l.as_ref().is_some_and(|l| l.value.version == 7)).await;
    proxy.sever();
    proxy.set(Flow::Open);
    let version = timeout(PATIENCE, write).await.unwrap().unwrap().expect("it happened");
    assert_eq!(b.layout().await.unwrap().version, version);

    // Likewise for a place in a queue: one candidate, not two.
    let name = LeaseName::new("x").unwrap();
    a.acquire(&name, NodeId::from(1)).await.unwrap().release().await;
    until(b.leases(), |l| !l.contains_key("x")).await;
    proxy.set(Flow::AnswersHeld);
    let acquiring = tokio::spawn({
        let (a, name) = (a.clone(), name.clone());
        async move { a.acquire(&name, NodeId::from(1)).await }
    });
    until(b.leases(), |l| l.contains_key("x")).await;
    proxy.sever();
    proxy.set(Flow::Open);
    let lease = timeout(PATIENCE, acquiring).await.unwrap().unwrap().unwrap();
    lease.release().await;
    assert!(b.try_acquire(&name, NodeId::from(2)).await.unwrap().is_some(), "nothing is left in the queue");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_is_lost_or_done_twice_while_connections_break() {
    let harness = ZookeeperHarness::new().await;
    let (first, _) = harness.behind_proxy().await;
    found(&first).await;
    let mut participants = Vec::new();
    for _ in 0..3 {
        participants.push(harness.behind_proxy().await);
    }
    let writes = Writes::new(60, 60);
    let mut writers = tokio::task::JoinSet::new();
    for (i, (participant, proxy)) in (0_u64..).zip(participants.clone()) {
        writers.spawn(raise_until_enough(participant.coordination, writes.clone()));
        let writes = writes.clone();
        tokio::spawn(async move {
            let mut pause = 90 + 40 * i;
            while !writes.enough() {
                let before = writes.acknowledged();
                // Breaks come at any moment of a write.
                sleep(Duration::from_millis(pause)).await;
                // A machine on which nothing is done between two breaks proves nothing.
                let calm = Instant::now() + Duration::from_secs(2);
                while writes.acknowledged() == before && Instant::now() < calm {
                    sleep(Duration::from_millis(10)).await;
                }
                proxy.set(Flow::AnswersHeld);
                // In which something may be done of which nobody hears.
                sleep(Duration::from_millis(10)).await;
                proxy.sever();
                proxy.set(Flow::Open);
                writes.breaks.fetch_add(1, Ordering::SeqCst);
                pause = 50 + (pause * 7) % 300;
            }
        });
    }
    timeout(PATIENCE * 4, writers.join_all()).await.unwrap();
    // Until here: a proxy that nobody holds breaks connections for good.
    drop(participants);
    writes.check(layout_version(&*first).await);
    let (done, breaks) = (writes.acknowledged(), writes.breaks.load(Ordering::SeqCst));
    assert!(done > 20 && breaks > 20, "only {done} writes were acknowledged while connections broke {breaks} times");
}

/// A server forgets what a session watches when its connection breaks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_after_a_connection_broke_is_told() {
    // Within one session, on a busy machine as well.
    let harness = ZookeeperHarness::patient().await;
    let (a, proxy) = harness.behind_proxy().await;
    let cluster = found(&a).await;
    let b = harness.participant().await;
    let mut layout = b.layout().await.unwrap();
    for round in 0..2 {
        proxy.sever();
        // The first ones may be among what is read when it is back; the others have to be told.
        for _ in 0..5 {
            layout.value.version += 1;
            layout.version = b.store_layout(layout.version, &layout.value).await.unwrap();
            until(a.watch_layout(), |l| l.as_ref().is_some_and(|l| l.value == layout.value)).await;
        }
        b.register(cluster, announcement(round)).await.unwrap();
        until(a.membership(), |m| m.nodes.contains_key(&NodeId::from(round))).await;
        let lease = b.acquire(&LeaseName::controller(), NodeId::from(round)).await.unwrap();
        until(a.leases(), |l| l.contains_key(lease.name().as_str())).await;
        lease.release().await;
        until(a.leases(), |l| l.is_empty()).await;
    }
}

/// What happens meanwhile is not told, and is read when the connection is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_shown_is_not_current_while_the_connection_is_away() {
    // Within one session, on a busy machine as well.
    let harness = ZookeeperHarness::patient().await;
    let (a, proxy) = harness.behind_proxy().await;
    eventually("everything was read", || a.is_current()).await;
    proxy.set(Flow::Stalled);
    proxy.sever();
    eventually("it is known that changes are not told", || !a.is_current()).await;
    proxy.set(Flow::Open);
    eventually("everything was read anew", || a.is_current()).await;
}

/// A new leader gives every session its whole time again, that of a process that was killed as well. Whoever waits for
/// its id must not take it for one that lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_is_in_use_is_waited_for_anew_after_the_ensemble_was_away() {
    // Whose session is not over before it closes it, on a busy machine either.
    let own = patient(server().await.connect_string());
    let a = connect(&own).await;
    a.create_cluster(&ClusterIdentity::new(16, 0), &LayoutDocument::new(3)).await.unwrap();
    let cluster = a.cluster().await.unwrap().id;
    a.register(cluster, announcement(1)).await.unwrap();
    let harness = ZookeeperHarness { config: ZookeeperConfig { session_timeout: SHORT_SESSION, ..own } };
    let (b, proxy) = harness.behind_proxy().await;
    let mut waiting = tokio::spawn(async move {
        loop {
            let registered = b.register(cluster, announcement(1)).await;
            match registered {
                // A machine too busy for one operation, or for a session.
                Err(CoordinationError::Unavailable(_) | CoordinationError::SessionExpired) => {
                    b.renew_session().await.ok();
                }
                registered => return registered.map(|_| b),
            }
        }
    });
    // Longer than it waits where nothing happens.
    let end = Instant::now() + SHORT_SESSION * 2;
    while Instant::now() < end {
        proxy.sever();
        if let Ok(ended) = timeout(Duration::from_millis(500), &mut waiting).await {
            panic!("it waits no longer: {:?}", ended.unwrap().err());
        }
    }
    a.close().await;
    timeout(PATIENCE, waiting).await.expect("the id is free").unwrap().unwrap();
}

/// Its session goes on all the time, so whoever waited for its end would be refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_process_registered_is_replaced_while_its_session_goes_on() {
    let own = patient(server().await.connect_string());
    let names = |claim: &Claim| claim.names().map(str::to_owned).collect::<Vec<_>>();
    let dead = Claim::default();
    let a = connect_as(&own, dead.clone()).await;
    let identity = ClusterIdentity::new(16, 0);
    a.create_cluster(&identity, &LayoutDocument::new(3)).await.unwrap();
    let first = a.register(identity.id, announcement(1)).await.unwrap();

    let successor = Claim::replacing(names(&dead));
    let b = connect_as(&own, successor.clone()).await;
    let second = b.register(identity.id, announcement(1)).await.unwrap();
    assert!(second.incarnation > first.incarnation);
    until(b.membership(), |m| m.nodes.values().any(|node| node.incarnation == second.incarnation)).await;
    let replaced = a.announce(announcement(1)).await;
    assert!(matches!(replaced, Err(CoordinationError::NotFound(_))), "{replaced:?}");
    a.close().await;
    b.announce(announcement(1)).await.expect("what is there now is not of the old session");

    // The one after was killed before it registered; one that knows only of that one waits.
    let third = connect_as(&own, Claim::replacing(names(&Claim::replacing(names(&successor))))).await;
    third.register(identity.id, announcement(1)).await.unwrap();
    let short = ZookeeperConfig { session_timeout: SHORT_SESSION, ..own };
    let stranger = connect_as(&short, Claim::replacing(names(&dead))).await;
    let refused = stranger.register(identity.id, announcement(1)).await;
    assert!(matches!(refused, Err(CoordinationError::NodeIdTaken { .. })), "{refused:?}");
}

/// A process exits right after its participant was closed, and may have no time for anything else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_closed_is_gone_though_its_process_ends_at_once() {
    // No session that lapses ends in time to be taken for one that was closed.
    let own = ZookeeperConfig { session_timeout: PATIENCE, ..config(server().await.connect_string()) };
    let a = connect(&own).await;
    let identity = ClusterIdentity::new(16, 0);
    a.create_cluster(&identity, &LayoutDocument::new(3)).await.unwrap();
    let process = own.clone();
    spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let b = connect(&process).await;
            b.register(identity.id, announcement(2)).await.unwrap();
            b.close().await;
        });
    })
    .await
    .unwrap();
    let raw = sessions::raw(&own.servers).await;
    let registered = raw.list_children(&format!("{}/nodes", own.chroot)).await.unwrap();
    assert_eq!(registered, Vec::<String>::new());
}

/// More than are read by one request. While they are waited for, some leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hundreds_of_nodes_say_of_the_cache_is_heard_of_each() {
    let own = patient(server().await.connect_string());
    let a = Arc::new(connect(&own).await);
    a.create_cluster(&ClusterIdentity::new(16, 0), &LayoutDocument::new(3)).await.unwrap();
    let raw = sessions::raw(&own.servers).await;
    let options = zookeeper_client::CreateMode::Persistent.with_acls(zookeeper_client::Acls::anyone_all());
    let path = |id: u64| format!("{}/seen/{}", own.chroot, NodeId::from(id));
    let said = |generation: u64| format!(r#"{{"nonce":"x","value":{{"generation":{generation}}}}}"#);
    for id in 0..150 {
        raw.create(&path(id), said(id).as_bytes(), &options).await.unwrap();
    }
    let heard = a.cache_seen().await.unwrap();
    let heard: Vec<(NodeId, u64)> = heard.iter().map(|(node, seen)| (*node, seen.generation)).collect();
    let mut expected: Vec<(NodeId, u64)> = (0..150_u64).map(|id| (NodeId::from(id), id)).collect();
    expected.sort();
    assert_eq!(heard, expected);

    let mut waiting: Vec<NodeId> = (0..100_u64).map(NodeId::from).collect();
    waiting.sort();
    let not_seen = a.cache_generation_seen(100, Duration::from_millis(300)).await;
    assert_eq!(not_seen, Err(CoordinationError::NotSeen { generation: 100, waiting }));
    let wait = tokio::spawn({
        let a = a.clone();
        async move { a.cache_generation_seen(100, PATIENCE).await }
    });
    for id in 0..50 {
        raw.delete(&path(id), None).await.unwrap();
    }
    for id in 50..100 {
        raw.set_data(&path(id), said(100).as_bytes(), None).await.unwrap();
    }
    wait.await.unwrap().unwrap();
}

/// As when somebody removes one in ZooKeeper by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_registration_is_replaced() {
    let own = patient(server().await.connect_string());
    let a = connect(&own).await;
    let identity = ClusterIdentity::new(16, 0);
    a.create_cluster(&identity, &LayoutDocument::new(3)).await.unwrap();
    a.register(identity.id, announcement(1)).await.unwrap();
    let raw = sessions::raw(&own.servers).await;
    for half in ["nodes", "seen"] {
        raw.delete(&format!("{}/{half}/{}", own.chroot, NodeId::from(1)), None).await.unwrap();
        a.register(identity.id, announcement(1)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_credentials_are_denied() {
    let digest = |password: &str| Some(Digest { user: "holdfast".into(), password: password.into() });
    let own = ZookeeperConfig { digest: digest("right"), ..patient(server().await.connect_string()) };
    let a = connect(&own).await;
    a.create_cluster(&ClusterIdentity::new(16, 0), &LayoutDocument::new(3)).await.unwrap();
    let b = connect(&own).await;
    b.cluster().await.unwrap();
    for other in [digest("wrong"), None] {
        let refused = try_connect(&ZookeeperConfig { digest: other, ..own.clone() }).await;
        assert!(matches!(refused, Err(CoordinationError::Denied(_))), "{:?}", refused.err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_format_and_nonsense_are_refused() {
    let own = patient(server().await.connect_string());
    let a = connect(&own).await;
    a.create_cluster(&ClusterIdentity::new(16, 0), &LayoutDocument::new(3)).await.unwrap();
    let raw = sessions::raw(&own.servers).await;
    let path = format!("{}/cluster", own.chroot);
    let newer = format!(r#"{{"nonce":"x","value":{{"format":{},"other":1}}}}"#, FORMAT + 1);
    raw.set_data(&path, newer.as_bytes(), None).await.unwrap();
    assert_eq!(a.cluster().await, Err(CoordinationError::Format { found: FORMAT + 1, known: FORMAT }));
    raw.set_data(&path, b"nonsense", None).await.unwrap();
    assert!(matches!(a.cluster().await, Err(CoordinationError::Corrupt(_))));
    raw.set_data(&format!("{}/layout", own.chroot), b"{", None).await.unwrap();
    assert!(matches!(a.layout().await, Err(CoordinationError::Corrupt(_))));
    let shown = a.watch_layout().borrow().clone();
    assert_eq!(shown.expect("the last good one stays").value, LayoutDocument::new(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_a_cluster_without_a_cluster_are_said_in_time() {
    // It is said after the time of one operation.
    let own = ZookeeperConfig { session_timeout: PATIENCE, ..config(server().await.connect_string()) };
    let a = connect(&own).await;
    a.create_cluster(&ClusterIdentity::new(16, 0), &LayoutDocument::new(3)).await.unwrap();
    let raw = sessions::raw(&own.servers).await;
    raw.delete(&format!("{}/cluster", own.chroot), None).await.unwrap();
    let (identity, layout) = (ClusterIdentity::new(16, 0), LayoutDocument::new(3));
    let refused = timeout(PATIENCE, a.create_cluster(&identity, &layout)).await.expect("it has an end");
    assert!(matches!(&refused, Err(CoordinationError::Invalid(why)) if why.contains(&own.chroot)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreachable_ensemble_is_said_in_time() {
    let refused =
        timeout(PATIENCE, ZookeeperCoordination::connect(config("127.0.0.1:1"))).await.expect("it has an end");
    assert!(matches!(refused, Err(CoordinationError::Unavailable(_))), "{:?}", refused.err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_leader_and_restarted_ensemble_lose_nothing() {
    let _alone = THREE_SERVERS.lock().await;
    let mut ensemble = spawn_blocking(|| Ensemble::start(3)).await.unwrap();
    // Patient with servers that have just started.
    let own = ZookeeperConfig {
        session_timeout: Duration::from_secs(30),
        operation_timeout: Duration::from_secs(15),
        ..config(ensemble.connect_string())
    };
    let (a, b) = (Arc::new(connect(&own).await), Arc::new(connect(&own).await));
    let identity = ClusterIdentity::new(16, 0);
    a.create_cluster(&identity, &LayoutDocument::new(3)).await.unwrap();
    let registration = a.register(identity.id, announcement(1)).await.unwrap();
    let lease = a.acquire(&LeaseName::controller(), NodeId::from(1)).await.unwrap();
    let version = a.store_shard(ShardId(0), None, &shard(&[1]), &lease).await.unwrap();

    let leader = ensemble.leader();
    let writes = Writes::new(u64::MAX, 0);
    let writers = [&a, &b].map(|writer| tokio::spawn(raise_until_enough(writer.clone(), writes.clone())));
    eventually("some writes are acknowledged", || writes.acknowledged() >= 10 || writes.enough()).await;
    // In the middle of the work.
    ensemble.servers[leader].kill();
    let before = writes.acknowledged();
    // The old leader's last answers may still be on their way to both of them: these are more.
    writes.wanted.store(before + 20, Ordering::SeqCst);
    for writer in writers {
        timeout(PATIENCE * 4, writer).await.unwrap().unwrap();
    }
    assert!(before > 0 && writes.acknowledged() >= before + 20, "writes go on with a new leader");
    let last = layout_version(&*b).await;
    writes.check(last);
    until(a.session(), |s| *s == SessionState::Connected).await;
    assert!(lease.is_held(), "sessions outlive a leader");
    let mut next = shard(&[1]);
    next.epoch = Epoch(2);
    let version = a.store_shard(ShardId(0), Some(version), &next, &lease).await.unwrap();
    let members = until(b.membership(), |m| m.nodes.len() == 1).await;
    assert_eq!(members.nodes[&NodeId::from(1)].incarnation, registration.incarnation);

    // The whole ensemble goes and comes back.
    let ensemble = spawn_blocking(move || {
        ensemble.kill_all();
        ensemble.start_all();
        ensemble
    })
    .await
    .unwrap();
    let states = until(a.session(), |s| matches!(s, SessionState::Connected | SessionState::Expired)).await;
    println!("after the restart: {states:?}");
    // Whether the session outlived it depends on how long it took; both ways must be consistent.
    until_ok("a session for a", async || a.renew_session().await).await;
    until_ok("a session for b", async || b.renew_session().await).await;
    until(a.session(), |s| *s == SessionState::Connected).await;
    until(b.session(), |s| *s == SessionState::Connected).await;
    assert_eq!(b.layout().await.unwrap().value.version, last);
    assert_eq!(b.shard(ShardId(0)).await.unwrap().value, next);
    assert_eq!(b.cluster().await.unwrap(), identity);
    let stored = a.store_shard(ShardId(0), Some(version), &next, &lease).await;
    assert_eq!(stored.is_ok(), lease.is_held(), "{stored:?}");
    drop(ensemble);
}

/// Renews the session if it is over, and says whether ownership is proven in it.
async fn proven(participant: &dyn Coordination) -> Result<(), String> {
    participant.renew_session().await.map_err(|error| error.to_string())?;
    if participant.ownership().is_proven() { Ok(()) } else { Err("it is not proven".to_owned()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_without_a_majority_proves_nothing() {
    let _alone = THREE_SERVERS.lock().await;
    let ensemble = spawn_blocking(|| Ensemble::start(3)).await.unwrap();
    let leader = ensemble.leader();
    let only = ensemble.servers[leader].address().to_string();
    let session_timeout = Duration::from_secs(3);
    let a = connect(&ZookeeperConfig { session_timeout, ..config(only) }).await;
    let identity = ClusterIdentity::new(16, 0);
    let made = async || {
        // On a busy machine it may have ended.
        a.renew_session().await?;
        match a.create_cluster(&identity, &LayoutDocument::new(3)).await {
            Err(CoordinationError::ClusterExists(found)) if found == identity.id => Ok(()),
            made => made,
        }
    };
    until_ok("the cluster is made", made).await;
    until_ok("it is proven", async || proven(&a).await).await;
    // The others are paused, not gone: for five seconds the leader believes that it leads, and answers what needs no
    // majority.
    let followers = || ensemble.servers.iter().enumerate().filter(|(i, _)| *i != leader).map(|(_, s)| s);
    let mut late = Vec::new();
    while late.len() < 5 {
        let start = Instant::now();
        followers().for_each(|s| s.signal(Signal::STOP));
        let state = until(a.session(), |s| s.is_fenced()).await;
        let elapsed = start.elapsed();
        let is_led = ensemble.servers[leader].mode().as_deref() == Some("leader");
        let is_proven = a.ownership().is_proven();
        followers().for_each(|s| s.signal(Signal::CONT));
        assert!(!is_proven, "{state:?}");
        if is_led || elapsed < Duration::from_secs(4) {
            return;
        }
        // A machine that was busy for a while comes to this late, when the session may have ended.
        late.push(elapsed);
        until_ok("it is proven again", async || proven(&a).await).await;
    }
    panic!("fenced after {late:?}: not before the session's end");
}

/// The program of the test below: an owner that writes and says what it believes. Run by itself it does nothing.
#[tokio::test]
async fn paused_owner_program() {
    let Ok(servers) = std::env::var("HOLDFAST_TEST_PAUSED_SERVERS") else { return };
    let chroot = std::env::var("HOLDFAST_TEST_PAUSED_CHROOT").unwrap();
    let own = ZookeeperConfig {
        session_timeout: SESSION_TIMEOUT,
        operation_timeout: PATIENCE,
        ..ZookeeperConfig::new(servers, chroot)
    };
    let a = connect(&own).await;
    let cluster = a.cluster().await.unwrap().id;
    a.register(cluster, announcement(1)).await.unwrap();
    let lease = a.acquire(&LeaseName::controller(), NodeId::from(1)).await.unwrap();
    let mut state = shard(&[1]);
    let mut version = a.store_shard(ShardId(0), None, &state, &lease).await.unwrap();
    loop {
        state.epoch = state.epoch.next();
        // It asks, then is stopped in the middle of its work as likely as not.
        let believed = lease.is_held();
        let result = a.store_shard(ShardId(0), Some(version), &state, &lease).await;
        println!("before={believed} after={} stored={}", lease.is_held(), result.is_ok());
        match result {
            Ok(next) => version = next,
            Err(error) => {
                println!("refused: {error}");
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_process_is_fenced_when_it_continues() {
    // Whose session lasts, on a busy machine as well: the child has a short one.
    let harness = ZookeeperHarness::patient().await;
    let b = harness.participant().await;
    found(&b).await;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["paused_owner_program", "--exact", "--nocapture"])
        .env("HOLDFAST_TEST_PAUSED_SERVERS", &harness.config.servers)
        .env("HOLDFAST_TEST_PAUSED_CHROOT", &harness.config.chroot)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    let output = BufReader::new(child.stdout.take().unwrap());
    until(b.shards(), |s| s.shards.get(&ShardId(0)).is_some_and(|s| s.value.epoch > Epoch(5))).await;

    kill_process(pid, Signal::STOP).unwrap();
    let name = LeaseName::controller();
    let lease = timeout(PATIENCE * 2, b.acquire(&name, NodeId::from(2))).await.expect("its session ends").unwrap();
    until(b.membership(), |m| m.nodes.is_empty()).await;
    let present = b.shard(ShardId(0)).await.unwrap();
    let mut mine = shard(&[2]);
    mine.epoch = present.value.epoch.next();
    b.store_shard(ShardId(0), Some(present.version), &mine, &lease).await.unwrap();
    kill_process(pid, Signal::CONT).unwrap();

    let lines = spawn_blocking(move || {
        let lines: Vec<String> = output.lines().map_while(Result::ok).collect();
        child.wait().unwrap();
        lines
    });
    let lines = timeout(PATIENCE, lines).await.expect("it notices").unwrap();
    let tail: Vec<&String> = lines.iter().rev().take(6).collect();
    assert!(lines.iter().any(|l| l.starts_with("refused: ")), "{tail:?}");
    // Whatever it was doing when it was stopped, it knows afterwards that it was not the owner at the end.
    let refused = lines.iter().find(|l| l.ends_with("stored=false")).expect("the write was refused");
    assert!(refused.contains("after=false"), "{tail:?}");
    assert_eq!(b.shard(ShardId(0)).await.unwrap().value, mine, "nothing of the paused process got through");
    assert!(lease.is_held());
}
