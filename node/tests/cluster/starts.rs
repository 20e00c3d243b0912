//! Starts: after a stop, beside a tool that fills the metadata, and such as fail.

use bytes::Bytes;
use holdfast_actors::ports::coordination::conformance::announcement;
use holdfast_actors::ports::coordination::{Coordination, LeaseName};
use holdfast_actors::wait::{until, until_ok};
use holdfast_node::admin::Pair;
use holdfast_node::assemble::Root;
use holdfast_node::assemble::dev;
use holdfast_protocol::NodeId;
use holdfast_protocol::admin::NodeInfo;
use http::StatusCode;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;

use super::support::S3;
use super::support_admin::Admin;
use super::{config, content};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_was_stopped_goes_on_where_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(dir.path());
    let first = dev::start(&config, 3, Root::Generate).await.expect("the cluster starts");
    let pair = first.root().expect("a root credential").clone();
    let s3 = S3::with(first.node(0).expect("a node"), &pair);
    assert_eq!(s3.put("/bucket", Bytes::new()).await.unwrap().0, StatusCode::OK);
    assert_eq!(s3.put("/bucket/key", content(1, 300_000)).await.unwrap().0, StatusCode::OK);
    first.shutdown().await;
    let second = dev::start(&config, 3, Root::Generate).await.expect("the cluster starts again");
    let s3 = S3::with(second.node(1).expect("a node"), &pair);
    let (status, body) = s3.get("/bucket/key").await.unwrap();
    assert!(status == StatusCode::OK && body == content(1, 300_000), "{status}");
    // Under epochs that the metadata accepts.
    assert_eq!(s3.put("/bucket/key", content(2, 300_000)).await.unwrap().0, StatusCode::OK);
    second.shutdown().await;
}

/// It would delete the chunks of what is not in them yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_node_starts_while_a_tool_fills_the_metadata() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut cluster = dev::start(&config(dir.path()), 3, Root::Generate).await.expect("the cluster starts");
    cluster.crash(2);
    let tool = cluster.participant();
    let name = LeaseName::new("filling").expect("a name");
    let lease = tool.acquire(&name, NodeId::from(9)).await.expect("a lease");
    let start = async || {
        let started = cluster.restart(2).await;
        started.map_or_else(|error| format!("{error:#}"), |()| "it started".to_owned())
    };
    // What the crash left may be in its way at first.
    until("it is refused", start, |why| why.contains("fills the metadata on node 0000000000000009")).await;
    lease.release().await;
    until_ok("the node starts", async || cluster.restart(2).await).await;
    cluster.shutdown().await;
}

fn alive(participant: &dyn Coordination) -> Vec<NodeId> {
    participant.membership().borrow().nodes.keys().copied().collect()
}

/// The tool looked for nodes before this one could be seen, which had looked for tools before that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_long_in_being_registered_finds_a_tool_that_began_meanwhile() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut cluster = dev::start(&config(dir.path()), 3, Root::Generate).await.expect("the cluster starts");
    let id = cluster.node(2).expect("a node").id();
    cluster.crash(2);
    let (silent, tool) = (cluster.participant(), cluster.participant());
    until("its session is over", async || alive(&tool), |nodes| !nodes.contains(&id)).await;
    // Whoever registers waits until all others have said that they know that there is no cache. This one never does.
    let of = tool.cluster().await.expect("the cluster").id;
    silent.register(of, announcement(8)).await.expect("a registration");
    let state = tool.cache_state().await.expect("a state");
    tool.store_cache_state(state.version, &state.value.warming(None, "a server")).await.expect("it is stored");

    let name = LeaseName::new("filling").expect("a name");
    let tool_begins = async {
        until("the node is seen", async || alive(&tool), |nodes| nodes.contains(&id)).await;
        let lease = tool.acquire(&name, NodeId::from(9)).await.expect("a lease");
        silent.close().await;
        lease
    };
    let start = async || {
        let started = cluster.restart(2).await;
        started.map_or_else(|error| format!("{error:#}"), |()| "it started".to_owned())
    };
    // What the crash left may be in its way at first.
    let ended = |why: &String| why == "it started" || why.contains("fills the metadata");
    let (lease, why) = tokio::join!(tool_begins, until("the start ends", start, ended));
    assert!(why.contains("fills the metadata"), "{why}");
    until("it is taken out again", async || alive(&tool), |nodes| !nodes.contains(&id)).await;
    lease.release().await;
    cluster.shutdown().await;
}

/// A root credential is stored when the others know of the node already: they must not go on sending it what it never
/// answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_start_fails_when_it_is_registered_is_taken_out_again_and_can_be_started() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(dir.path());
    let mut cluster = dev::start(&config, 3, Root::Generate).await.expect("the cluster starts");
    let id = cluster.node(2).expect("a node").id().to_string();
    let admin = Admin::of(cluster.node(0).expect("a node"), cluster.config(0));
    let state = async || {
        let nodes: Vec<NodeInfo> = admin.get("/v1/nodes").await;
        nodes.into_iter().find(|node| node.id == id).map(|node| node.state)
    };
    cluster.crash(2);
    let path = config.node.data_dir.join("dev-cluster/metadata.sqlite");
    let mut database = SqliteConnectOptions::new().filename(&path).connect().await.expect("the database");
    let refusing = "CREATE TRIGGER refusing BEFORE UPDATE ON users BEGIN SELECT RAISE(ABORT, 'not now'); END";
    sqlx::query(refusing).execute(&mut database).await.expect("a trigger");
    let start = async || {
        let pair = Pair::given("another-key", "another-secret").expect("a pair");
        let started = cluster.restart_with(2, Root::Given(pair)).await;
        started.map_or_else(|error| format!("{error:#}"), |()| "it started".to_owned())
    };
    // What the crash left may be in its way at first.
    until("it fails at its last step", start, |why| why.contains("enable the root user")).await;
    assert_eq!(state().await.as_deref(), Some("absent"), "nobody is told to send it anything");
    sqlx::query("DROP TRIGGER refusing").execute(&mut database).await.expect("no trigger");
    until_ok("the node starts", async || cluster.restart(2).await).await;
    until("it takes part again", state, |state| state.as_deref() == Some("ready")).await;
    cluster.shutdown().await;
}
