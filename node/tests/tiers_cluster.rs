//! Cold tiers of a cluster in one process: what is set up through one node is used through all at once, movers bring
//! objects there, every node reads them, and a tier that goes takes nothing else with it.

use bytes::Bytes;
use holdfast_actors::wait::until;
use holdfast_node::assemble::dev::{self, DevCluster};
use holdfast_node::assemble::{ROOT_USER, Root};
use holdfast_node::config::Config;
use holdfast_protocol::admin::{Bucket, Readiness, TierStatus, TierView};
use http::{Method, StatusCode};
use serde_json::json;

#[allow(dead_code, reason = "this test uses a part")]
mod support;
#[path = "support/admin.rs"]
mod support_admin;

use support::S3;
use support_admin::Admin;

struct World {
    cluster: DevCluster,
    dir: tempfile::TempDir,
}

fn config(dir: &std::path::Path) -> Config {
    let mut config = support::config(dir);
    config.cluster.rebuild_delay = "60 s".parse().expect("a duration");
    config.cluster.leave_grace = "1 s".parse().expect("a duration");
    config.tiering.poll = "100 ms".parse().expect("a duration");
    config.tiering.refresh = "200 ms".parse().expect("a duration");
    config
}

impl World {
    /// Three nodes, a tier that was added through the first, and a bucket whose objects go there.
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let cluster = dev::start(&config(dir.path()), 3, Root::Generate).await.expect("the cluster starts");
        let world = Self { cluster, dir };
        std::fs::create_dir(world.root()).expect("a directory");
        let settings = json!({ "kind": "directory", "root": world.root() });
        world.admin(0).post::<TierView>("/v1/tiers", json!({ "name": "COLD", "settings": settings })).await;
        for bucket in ["cold", "hot"] {
            world.admin(0).post::<Bucket>("/v1/buckets", json!({ "name": bucket, "owner": ROOT_USER })).await;
        }
        // The next node may not have looked yet.
        let class = json!({ "class": "COLD" });
        let (status, answer) = world.admin(1).call(Method::PUT, "/v1/buckets/cold/storage-class", &class).await;
        assert_eq!(status, StatusCode::OK, "{answer:?}");
        world
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("tier")
    }

    fn s3(&self, at: usize) -> S3 {
        S3::with(self.cluster.node(at).expect("a node"), self.cluster.root().expect("a root credential"))
    }

    fn admin(&self, at: usize) -> Admin {
        Admin::of(self.cluster.node(at).expect("a node"), self.cluster.config(at))
    }

    async fn put(&self, at: usize, path: &str, body: &Bytes) {
        let (status, answer) = self.s3(at).put(path, body.clone()).await.expect("an answer");
        assert_eq!(status, StatusCode::OK, "{path}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn objects_go_to_the_tier_and_every_node_reads_them_there() {
    let world = World::new().await;
    let body = Bytes::from((0..3_000_000u32).map(|at| (at / 7) as u8).collect::<Vec<_>>());
    for at in 0..3 {
        world.put(at, &format!("/cold/object-{at}"), &body).await;
    }
    world.put(2, "/hot/object", &body).await;
    let status = async || world.admin(1).get::<TierStatus>("/v1/tiers/COLD/status").await;
    until("all is moved", status, |status| {
        status.tier.usage.as_ref().is_some_and(|usage| usage.contents == 3) && status.moves_seen == 0
    })
    .await;
    for at in 0..3 {
        for object in 0..3 {
            let (status, read) = world.s3(at).get(&format!("/cold/object-{object}")).await.expect("an answer");
            assert!(status == StatusCode::OK && read == body, "object {object} through node {at}: {status}");
        }
    }

    // The tier goes: what lies there cannot be read, all else can, and the nodes say so and stay ready.
    std::fs::rename(world.root(), world.dir.path().join("away")).expect("it goes");
    for at in 0..3 {
        world.admin(at).call(Method::POST, "/v1/tiers/COLD/check", &json!({})).await;
        let readiness = async || world.admin(at).get::<Readiness>("/health/ready").await;
        let told = until("it is told", readiness, |readiness| !readiness.degraded.is_empty()).await;
        assert!(told.ready && told.reasons.is_empty(), "{told:?}");
        assert!(told.degraded[0].code == "tier_down" && told.degraded[0].message.contains("COLD"), "{told:?}");
        let (status, _) = world.s3(at).get("/hot/object").await.expect("an answer");
        assert_eq!(status, StatusCode::OK);
    }
    // It is taken on, and waits on the cluster.
    world.put(0, "/cold/later", &body).await;
    let (status, read) = world.s3(1).get("/cold/later").await.expect("an answer");
    assert!(status == StatusCode::OK && read == body, "{status}");

    std::fs::rename(world.dir.path().join("away"), world.root()).expect("it comes back");
    let read = async || world.s3(2).get("/cold/object-0").await.expect("an answer");
    until("it can be read again", read, |(status, read)| *status == StatusCode::OK && *read == body).await;
    world.cluster.shutdown().await;
}
