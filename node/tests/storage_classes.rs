//! Storage classes as a client meets them: a node in this process with a cold tier in a directory, whose movers take
//! objects there and bring them back by themselves.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use holdfast_actors::wait::until;
use holdfast_node::assemble::RunningNode;
use holdfast_protocol::admin::{Bucket, TierStatus, TierView};
use http::{Method, StatusCode};
use serde_json::json;

#[allow(dead_code, reason = "presigned requests are for other tests")]
mod support;
#[path = "support/admin.rs"]
mod support_admin;
#[path = "support/signed.rs"]
mod support_signed;

use support_admin::Admin;
use support_signed::{Answer, Signed};

const CLASS: &str = "x-amz-storage-class";

struct World {
    dir: tempfile::TempDir,
    node: RunningNode,
    admin: Admin,
    s3: Signed,
}

impl World {
    /// With a bucket `bucket` and a tier `COLD`.
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = support::config(dir.path());
        config.tiering.poll = "100 ms".parse().expect("a duration");
        let node = support::start(&config).await;
        let admin = Admin::of(&node, &config);
        let s3 = Signed::of(&node);
        let world = Self { dir, node, admin, s3 };
        std::fs::create_dir_all(world.root()).expect("a directory");
        let settings = json!({ "kind": "directory", "root": world.root() });
        let tier: TierView = world.admin.post("/v1/tiers", json!({ "name": "COLD", "settings": settings })).await;
        assert_eq!(tier.name, "COLD");
        assert_eq!(world.s3.send(Method::PUT, "/bucket", &[], b"").await.status, StatusCode::OK);
        world
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("cold")
    }

    async fn put(&self, path: &str, class: Option<&str>, body: &[u8]) -> Answer {
        let headers: Vec<_> = class.map(|class| (CLASS, class)).into_iter().collect();
        self.s3.send(Method::PUT, path, &headers, body).await
    }

    async fn get(&self, path: &str) -> Bytes {
        let answer = self.s3.send(Method::GET, path, &[], b"").await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        answer.body
    }

    /// A header of HEAD; empty if there is none.
    async fn head(&self, path: &str, name: &str) -> String {
        let answer = self.s3.send(Method::HEAD, path, &[], b"").await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        answer.header(name)
    }

    /// Waits until the tier holds as many bytes of objects, and no move waits: the bytes are there before the move is
    /// made, and a restore would meet it.
    async fn tier_holds(&self, bytes: u64) {
        let what = format!("the tier holds {bytes} bytes");
        let moved = async || {
            let status: TierStatus = self.admin.get("/v1/tiers/COLD/status").await;
            (bytes_below(&self.root()), status.moves_seen)
        };
        until(&what, moved, |(held, moves)| *held == bytes && *moves == 0).await;
    }

    /// Waits until HEAD tells that a restore is there.
    async fn restored(&self, path: &str) -> String {
        let is_there = |told: &String| {
            let is_there = told.starts_with("ongoing-request=\"false\", expiry-date=\"");
            assert!(is_there || told == "ongoing-request=\"true\"", "{told}");
            is_there
        };
        until(&format!("{path} is restored"), async || self.head(path, "x-amz-restore").await, is_there).await
    }

    async fn restore(&self, path: &str, days: u32) -> StatusCode {
        let body = format!("<RestoreRequest><Days>{days}</Days></RestoreRequest>");
        self.s3.send(Method::POST, &format!("{path}?restore="), &[], body.as_bytes()).await.status
    }
}

/// Bytes of the pieces in a directory tier, whose own files begin with a dot.
fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let path = entry.path();
            let is_own = entry.file_name().to_string_lossy().starts_with('.');
            match entry.metadata() {
                Ok(data) if data.is_dir() => bytes_below(&path),
                Ok(data) if !is_own => data.len(),
                _ => 0,
            }
        })
        .sum()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ (at >> 9) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn object_goes_to_its_tier_and_comes_back_for_the_days_of_a_restore() {
    let world = World::new().await;
    let data = pattern(700_001);
    let put = world.put("/bucket/k", Some("COLD"), &data).await;
    assert_eq!(put.status, StatusCode::OK, "{put:?}");
    assert_eq!(world.head("/bucket/k", CLASS).await, "COLD", "the class shows at once");
    world.tier_holds(data.len() as u64).await;

    assert_eq!(world.get("/bucket/k").await, data);
    let range = world.s3.send(Method::GET, "/bucket/k", &[("range", "bytes=262143-262145")], b"").await;
    assert_eq!((range.status, &range.body[..]), (StatusCode::PARTIAL_CONTENT, &data[262_143..262_146]));
    assert_eq!((range.header(CLASS), range.header("etag")), ("COLD".into(), put.header("etag")));
    assert_eq!(world.head("/bucket/k", "x-amz-restore").await, "");

    assert_eq!(world.restore("/bucket/k", 1).await, StatusCode::ACCEPTED);
    let first = world.restored("/bucket/k").await;
    assert_eq!(world.get("/bucket/k").await, data);
    assert_eq!(world.restore("/bucket/k", 30).await, StatusCode::OK);
    assert_ne!(world.restored("/bucket/k").await, first);
    assert_eq!(world.head("/bucket/k", CLASS).await, "COLD", "a restore changes no class");
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn default_of_the_bucket_holds_and_a_copy_onto_itself_brings_back() {
    let world = World::new().await;
    let path = "/v1/buckets/bucket/storage-class";
    let (status, answer) = world.admin.call(Method::PUT, path, &json!({ "class": "COLD" })).await;
    assert_eq!(status, StatusCode::OK, "{answer:?}");
    assert_eq!(world.admin.get::<Bucket>("/v1/buckets/bucket").await.storage_class, "COLD");
    let data = pattern(300_000);
    assert_eq!(world.put("/bucket/k", None, &data).await.status, StatusCode::OK);
    world.tier_holds(data.len() as u64).await;
    assert_eq!(world.put("/bucket/hot", Some("STANDARD"), b"hot").await.status, StatusCode::OK);
    assert_eq!(world.head("/bucket/hot", CLASS).await, "");

    let refused = world.put("/bucket/other", Some("GLACIER"), b"x").await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(String::from_utf8_lossy(&refused.body).contains("STANDARD, COLD"), "{refused:?}");

    let back = [("x-amz-copy-source", "bucket/k"), (CLASS, "STANDARD")];
    assert_eq!(world.s3.send(Method::PUT, "/bucket/k", &back, b"").await.status, StatusCode::OK);
    assert_eq!(world.head("/bucket/k", CLASS).await, "");
    assert_eq!(world.restore("/bucket/k", 1).await, StatusCode::FORBIDDEN, "STANDARD cannot be restored");
    assert_eq!(world.get("/bucket/k").await, data);
    let listed = world.s3.send(Method::GET, "/bucket?list-type=2", &[], b"").await;
    assert_eq!(String::from_utf8_lossy(&listed.body).matches("<StorageClass>STANDARD</StorageClass>").count(), 2);
    world.node.shutdown().await;
}
