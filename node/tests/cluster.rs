//! A cluster in one process, as `holdfast dev --nodes` starts it: any node takes any request, the loss of one loses
//! nothing, and the admin API tells and moves what it says.

use bytes::Bytes;
use holdfast_actors::ports::coordination::NodeState;
use holdfast_actors::wait::{until, until_ok};
use holdfast_node::assemble::Root;
use holdfast_node::assemble::dev::{self, DevCluster};
use holdfast_node::config::Config;
use holdfast_protocol::admin::{
    ChunkOwner, ClusterStatus, ErrorBody, ErrorCode, ObjectStat, Readiness, RepairInfo, ShardInfo, Status,
};
use holdfast_protocol::{ChunkId, NodeId, ShardId};
use http::{Method, StatusCode};
use serde_json::json;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;

#[path = "cluster/layouts.rs"]
mod layouts;
#[path = "cluster/starts.rs"]
mod starts;
mod support;
#[path = "support/admin.rs"]
mod support_admin;

use support::S3;
use support_admin::Admin;

struct Cluster {
    cluster: DevCluster,
    _dir: tempfile::TempDir,
}

fn config(dir: &std::path::Path) -> Config {
    let mut config = support::config(dir);
    // A node that crashed is gone after it, and pauses are in proportion to it. Sessions in this process need no
    // heartbeats.
    config.cluster.session_timeout = "2 s".parse().expect("a duration");
    // Set, so that nothing is chosen for people who watch.
    config.cluster.rebuild_delay = "60 s".parse().expect("a duration");
    config.cluster.leave_grace = "1 s".parse().expect("a duration");
    config
}

impl Cluster {
    async fn start(nodes: u8) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let cluster = dev::start(&config(dir.path()), nodes, Root::Generate).await.expect("the cluster starts");
        Self { cluster, _dir: dir }
    }

    fn s3(&self, at: usize) -> S3 {
        S3::with(self.cluster.node(at).expect("a node"), self.cluster.root().expect("a root credential"))
    }

    fn admin(&self, at: usize) -> Admin {
        Admin::of(self.cluster.node(at).expect("a node"), self.cluster.config(at))
    }

    fn id(&self, at: usize) -> String {
        self.cluster.node(at).expect("a node").id().to_string()
    }
}

fn content(seed: usize, size: usize) -> Bytes {
    (0..size).map(|at| (at.wrapping_mul(31) ^ seed.wrapping_mul(131) ^ (at >> 8)) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_took_every_node_gives_and_the_loss_of_one_loses_nothing() {
    let mut cluster = Cluster::start(3).await;
    assert_eq!(cluster.s3(0).put("/bucket", Bytes::new()).await.unwrap().0, StatusCode::OK);
    let sizes = [1, 1_000, 70_000, 3_000_000, 20_000_000];
    for (at, size) in sizes.into_iter().enumerate() {
        let path = format!("/bucket/{at}");
        let (status, body) = cluster.s3(at % 3).put(&path, content(at, size)).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{body:?}");
        for reader in 0..3 {
            let (status, body) = cluster.s3(reader).get(&path).await.unwrap();
            assert_eq!(status, StatusCode::OK, "{body:?}");
            assert!(body == content(at, size), "{path} through node {reader}");
        }
    }
    let stat: ObjectStat = cluster.admin(1).get("/v1/objects/bucket/4").await;
    assert_eq!((stat.chunks.len(), stat.chunks_total, stat.size_bytes), (2, 2, 20_000_000));
    for chunk in &stat.chunks {
        assert_eq!(chunk.replicas.len(), 3, "{chunk:?}");
        assert!(chunk.replicas.iter().filter(|replica| replica.state == "present").count() >= 2, "{chunk:?}");
        // From any of them the way goes back, through a node that has it.
        for asked in 0..3 {
            let path = format!("/v1/chunks/{}", chunk.chunk);
            let owner: ChunkOwner = cluster.admin(asked).get(&path).await;
            assert_eq!((owner.state.as_str(), owner.replicas.len()), ("object", 3), "{owner:?}");
            assert_eq!((owner.references[0].bucket.as_str(), owner.references[0].key.as_str()), ("bucket", "4"));
            assert_eq!(owner.header.as_ref().map(|header| header.chunk.as_str()), Some(chunk.chunk.as_str()));
        }
    }
    let admin = cluster.admin(0);
    let status =
        until("healthy", || admin.get::<ClusterStatus>("/v1/cluster"), |status| status.health == "healthy").await;
    assert_eq!(status.nodes.len(), 3);
    assert!(status.nodes.iter().all(|node| node.state == "ready" && node.shards.member > 0), "{status:#?}");
    let ready: Readiness = admin.get("/health/ready").await;
    assert!(ready.ready, "{ready:?}");
    // Two of three acknowledge, so one may go.
    until("one may be stopped", || maintenance(&admin), |(code, _)| *code == StatusCode::OK).await;
    let third = cluster.cluster.node(2).and_then(|node| node.cluster()).expect("a node of a cluster");
    third.set_state(NodeState::Stopping);
    let answer = async || {
        let (code, body) = admin.call(Method::GET, "/health/maintenance", &serde_json::Value::Null).await;
        if code == StatusCode::PRECONDITION_FAILED { Ok(()) } else { Err(format!("{code} {body:?}")) }
    };
    until_ok("one that is about to stop is not counted on", answer).await;
    third.set_state(NodeState::Ready);

    let lost = cluster.id(2);
    cluster.cluster.crash(2);
    for (at, size) in sizes.into_iter().enumerate() {
        let (status, body) = cluster.s3(at % 2).get(&format!("/bucket/{at}")).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{body:?}");
        assert!(body == content(at, size), "object {at} without node 3");
    }
    let (status, body) = cluster.s3(0).put("/bucket/after", content(9, 500_000)).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{body:?}");
    let status = until(
        "degraded",
        || admin.get::<ClusterStatus>("/v1/cluster"),
        |status| status.health == "degraded" && status.nodes.iter().any(|n| n.id == lost && n.state == "absent"),
    )
    .await;
    assert!(status.reasons.iter().any(|reason| reason.message.contains(&lost)), "{status:#?}");
    let (code, _) = admin.call(Method::GET, "/health/maintenance", &serde_json::Value::Null).await;
    assert_eq!(code, StatusCode::PRECONDITION_FAILED, "the second of three must not go too");

    // The last task of the node that was cut off may still have a disk.
    until_ok("the node starts again", async || cluster.cluster.restart(2).await).await;
    let (status, body) = cluster.s3(2).get("/bucket/after").await.unwrap();
    assert_eq!(status, StatusCode::OK, "{body:?}");
    assert!(body == content(9, 500_000));
    until("healed", || admin.get::<ClusterStatus>("/v1/cluster"), |status| status.health == "healthy").await;
    let stat: ObjectStat = admin.get("/v1/objects/bucket/after").await;
    let whole = |stat: &ObjectStat| stat.chunks.iter().all(|c| c.replicas.iter().all(|r| r.state == "present"));
    assert!(whole(&stat), "healthy was said before the repair: {stat:#?}");
    cluster.cluster.shutdown().await;
}

/// An ext4 in a file, mounted for one test: its bytes can be changed beneath its own page cache.
struct Mounted {
    image: std::path::PathBuf,
    at: std::path::PathBuf,
}

impl Mounted {
    fn new(image: std::path::PathBuf, at: std::path::PathBuf, mib: u64) -> Self {
        std::fs::create_dir_all(&at).expect("a directory");
        std::fs::File::create(&image).and_then(|file| file.set_len(mib << 20)).expect("an image");
        let run = |program: &str, arguments: &[&std::path::Path]| {
            std::process::Command::new(program).args(arguments).status().is_ok_and(|status| status.success())
        };
        let done = run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), &image])
            && run("mount", &["-o".as_ref(), "loop".as_ref(), &image, &at]);
        assert!(done, "this test mounts a file system of its own: it needs root, mkfs.ext4 and a loop device");
        Self { image, at }
    }

    /// Flips a bit of a content that lies in it.
    fn rot(&self, content: &[u8]) {
        use std::os::unix::fs::FileExt as _;

        let image = std::fs::read(&self.image).expect("the image");
        let start = image.windows(64).position(|window| window == &content[..64]).expect("it lies on the disk");
        assert!(image[start..].starts_with(content), "in one piece");
        let file = std::fs::File::options().write(true).open(&self.image).expect("the image");
        file.write_all_at(&[image[start + 1_000] ^ 1], start as u64 + 1_000).expect("written");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("-l").arg(&self.at).status());
    }
}

/// On a real disk: the pages of a replica are in memory and good, the bytes beneath them are not any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_beneath_resident_pages_is_found_by_scrub_and_healed_by_repair() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(dir.path());
    let at = config.node.data_dir.join("dev-cluster").join("node-1");
    let disk = Mounted::new(dir.path().join("image"), at, 300);
    let cluster = dev::start(&config, 3, Root::Generate).await.expect("the cluster starts");
    let s3 = S3::with(cluster.node(0).expect("a node"), cluster.root().expect("a root credential"));
    let admin = Admin::of(cluster.node(0).expect("a node"), cluster.config(0));
    assert_eq!(s3.put("/bucket", Bytes::new()).await.unwrap().0, StatusCode::OK);
    let body: Bytes = rand::random_iter::<u8>().take(300_000).collect();
    assert_eq!(s3.put("/bucket/key", body.clone()).await.unwrap().0, StatusCode::OK);
    until("healthy", || admin.get::<ClusterStatus>("/v1/cluster"), |status| status.health == "healthy").await;
    // A write that was late here has been repaired by now.
    let before: RepairInfo = admin.get("/v1/repair").await;
    // Read here, so that its pages are in memory.
    assert!(s3.get("/bucket/key").await.unwrap().1 == body);
    disk.rot(&body);
    assert!(s3.get("/bucket/key").await.unwrap().1 == body);
    // Damage found so far. A scrub starts wherever the one in the background is, so one of them may pass the chunk
    // twice.
    let scrub = async || {
        let _: serde_json::Value = admin.post("/v1/scrub", json!({})).await;
        let done = |status: &Status| !status.disks[0].scrub.running;
        until("the scrub ends", || admin.get::<Status>("/v1/status"), done).await.disks[0].scrub.corrupt
    };
    assert!(scrub().await > 0, "it read what is in memory");
    let quiet = |info: &RepairInfo| info.done > before.done && info.backlog.as_ref().is_some_and(Vec::is_empty);
    let info = until("healed", || admin.get::<RepairInfo>("/v1/repair"), quiet).await;
    assert!(info.bytes >= before.bytes + 300_000, "the repair went by what is in memory: {info:?}");
    let found = scrub().await;
    assert_eq!(scrub().await, found, "it is still damaged");
    assert!(s3.get("/bucket/key").await.unwrap().1 == body);
    cluster.shutdown().await;
    drop(disk);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repairs_are_paused_for_all_nodes_until_that_is_taken_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(dir.path());
    let mut cluster = dev::start(&config, 3, Root::Generate).await.expect("the cluster starts");
    let admin = |cluster: &DevCluster, at: usize| Admin::of(cluster.node(at).expect("a node"), cluster.config(at));
    let asked = cluster.node(0).expect("a node").id().to_string();
    let paused: RepairInfo = admin(&cluster, 0).post("/v1/repair/pause", json!({})).await;
    let pause = paused.pause.clone().expect("it is told since when");
    assert!(paused.paused && pause.node == asked && pause.by.starts_with("admin token"), "{pause:?}");

    let holds = async |cluster: &DevCluster, at: usize| {
        let admin = admin(cluster, at);
        let is_told = |info: &RepairInfo| info.paused && info.pause.as_ref() == Some(&pause);
        until("the node follows", || admin.get::<RepairInfo>("/v1/repair"), is_told).await;
        let status: ClusterStatus = admin.get("/v1/cluster").await;
        assert_eq!(status.repair_pause.as_ref(), Some(&pause));
        assert!(status.reasons.iter().any(|reason| reason.code == "repairs_paused"), "{:?}", status.reasons);
    };
    for at in 0..3 {
        holds(&cluster, at).await;
    }
    // Neither the node that was asked has to stay, nor any other.
    cluster.crash(0);
    until_ok("the node starts again", async || cluster.restart(0).await).await;
    holds(&cluster, 0).await;
    let kept = config.node.data_dir.join("dev-cluster").join("cluster.json");
    let read = async || std::fs::read_to_string(&kept).unwrap_or_default();
    until("it is written down", read, |text: &String| text.contains("admin token")).await;
    cluster.shutdown().await;
    let cluster = dev::start(&config, 3, Root::Require).await.expect("the cluster starts");
    holds(&cluster, 2).await;

    let info: RepairInfo = admin(&cluster, 1).post("/v1/repair/resume", json!({})).await;
    assert!(!info.paused && info.pause.is_none(), "{info:?}");
    for at in 0..3 {
        let admin = admin(&cluster, at);
        until("it goes on", || admin.get::<RepairInfo>("/v1/repair"), |info| !info.paused && info.pause.is_none())
            .await;
        let status: ClusterStatus = admin.get("/v1/cluster").await;
        assert!(status.reasons.iter().all(|reason| reason.code != "repairs_paused"), "{:?}", status.reasons);
    }
    cluster.shutdown().await;
}

async fn maintenance(admin: &Admin) -> (StatusCode, String) {
    let (code, body) = admin.call(Method::GET, "/health/maintenance", &serde_json::Value::Null).await;
    (code, String::from_utf8_lossy(&body).into_owned())
}

/// Among many nodes some repair waits always.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_may_be_stopped_while_repairs_wait_that_it_has_no_part_in() {
    let cluster = Cluster::start(4).await;
    let admin = cluster.admin(0);
    until("healthy", || admin.get::<ClusterStatus>("/v1/cluster"), |status| status.health == "healthy").await;
    let _: RepairInfo = admin.post("/v1/repair/pause", json!({})).await;
    for at in 0..4 {
        let admin = cluster.admin(at);
        until("it is paused", || admin.get::<RepairInfo>("/v1/repair"), |info| info.paused).await;
    }
    let (me, late) = (cluster.id(0), cluster.id(1));
    let shards: Vec<ShardInfo> = admin.get("/v1/shards").await;
    let chunk = |with_me: bool| {
        let has = |shard: &ShardInfo, node: &str| shard.replicas.iter().any(|replica| replica.node == node);
        let fits = |chunk: &ChunkId| {
            let shard = ShardId::of_chunk(chunk, shards.len() as u32).index();
            has(&shards[shard], &late) && has(&shards[shard], &me) == with_me
        };
        (0..u128::MAX).map(|n| ChunkId(n.to_be_bytes())).find(fits).expect("one of many")
    };
    let path = cluster.cluster.config(0).node.data_dir.join("../metadata.sqlite");
    let mut database = SqliteConnectOptions::new().filename(&path).connect().await.expect("the database");
    let mut queue = async |chunk: ChunkId| {
        let late: NodeId = late.parse().expect("an id");
        let row = sqlx::query("INSERT INTO repairs (node, chunk, queued_ms) VALUES (?, ?, ?)");
        let row = row.bind(late.as_bytes().to_vec()).bind(chunk.0.to_vec()).bind(1_i64);
        row.execute(&mut database).await.expect("it is queued");
    };
    queue(chunk(false)).await;
    // Metadata that is late is told as none.
    let waiting = Some(vec![(late.clone(), 1)]);
    until("a repair waits", || admin.get::<RepairInfo>("/v1/repair"), |info| info.backlog == waiting).await;
    until("it needs others", || maintenance(&admin), |(code, _)| *code == StatusCode::OK).await;
    queue(chunk(true)).await;
    let needed = |answer: &(StatusCode, String)| answer.1.contains("1 repairs of other nodes");
    until("it may need this node", || maintenance(&admin), needed).await;
    cluster.cluster.shutdown().await;
}

/// What it does not know may be what it lost, so orphans are kept, and somebody has to look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_database_lost_commits_says_so() {
    let cluster = Cluster::start(3).await;
    let admin = cluster.admin(0);
    until("healthy", || admin.get::<ClusterStatus>("/v1/cluster"), |status| status.health == "healthy").await;
    let path = cluster.cluster.config(0).node.data_dir.join("../metadata.sqlite");
    let mut database = SqliteConnectOptions::new().filename(&path).connect().await.expect("the database");
    let lost = "INSERT INTO lock_fences (name, token) VALUES (CAST('SET-BACK' AS BLOB), 1)";
    sqlx::query(lost).execute(&mut database).await.expect("it is marked");
    let is_told = |status: &ClusterStatus| status.reasons.iter().any(|reason| reason.code == "commits_lost");
    let status = until("it is told", || admin.get::<ClusterStatus>("/v1/cluster"), is_told).await;
    assert_ne!(status.health, "healthy");
    cluster.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_runs_alone_says_what_to_set() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = support::config(dir.path());
    let node = support::start(&config).await;
    let admin = Admin::of(&node, &config);
    for path in ["/v1/cluster", "/v1/nodes", "/v1/layout", "/v1/shards", "/v1/repair"] {
        let (code, answer) = admin.call(Method::GET, path, &serde_json::Value::Null).await;
        let refused: ErrorBody = serde_json::from_slice(&answer).unwrap();
        assert_eq!((code, refused.error.code), (StatusCode::CONFLICT, ErrorCode::NotPossible), "{path}");
        assert!(refused.error.message.contains("cluster.zookeeper"), "{}", refused.error.message);
    }
    let s3 = S3::of(&node);
    assert_eq!(s3.put("/bucket", Bytes::new()).await.unwrap().0, StatusCode::OK);
    assert_eq!(s3.put("/bucket/a/b", content(1, 1_000)).await.unwrap().0, StatusCode::OK);
    let stat: ObjectStat = admin.get("/v1/objects/bucket/a%2Fb").await;
    assert_eq!((stat.key.as_str(), stat.chunks.len()), ("a/b", 1));
    assert_eq!(
        (stat.chunks[0].replicas[0].role.as_str(), stat.chunks[0].replicas[0].state.as_str()),
        ("alone", "present")
    );
    let (code, _) = admin.call(Method::GET, "/v1/objects/bucket/none", &serde_json::Value::Null).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    node.shutdown().await;
}

/// The description is made from the handlers, the routes are not: every path that it names must be one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_described_path_is_served() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = support::config(dir.path());
    let node = support::start(&config).await;
    let admin = Admin::of(&node, &config);
    let served: serde_json::Value = admin.get("/v1/openapi.json").await;
    assert_eq!(served, serde_json::to_value(holdfast_node::admin::openapi::document()).unwrap());
    for (path, methods) in served["paths"].as_object().unwrap() {
        let mut path = path.clone();
        while let (Some(open), Some(close)) = (path.find('{'), path.find('}')) {
            path.replace_range(open..=close, "x");
        }
        for method in methods.as_object().unwrap().keys() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let (code, answer) = admin.call(method.clone(), &path, &json!({})).await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(!answer.contains("no such path in the admin API"), "{method} {path}: {code}");
            assert!(!answer.contains("does not take this method"), "{method} {path}: {code}");
        }
    }
    node.shutdown().await;
}
