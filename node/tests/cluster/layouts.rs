//! Nodes that leave, and layouts that change: what is wanted is told before, and nothing is lost.

use bytes::Bytes;
use holdfast_actors::wait::{until, until_ok};
use holdfast_protocol::admin::{
    ClusterStatus, DrainStatus, ErrorBody, ErrorCode, LayoutCost, LayoutView, NodeInfo, RepairInfo, ShardInfo,
};
use http::{Method, StatusCode};
use serde_json::json;

use super::support_admin::Admin;
use super::{Cluster, content};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_drained_only_when_it_holds_nothing() {
    let cluster = Cluster::start(4).await;
    assert_eq!(cluster.s3(0).put("/bucket", Bytes::new()).await.unwrap().0, StatusCode::OK);
    for at in 0..20 {
        let (status, _) = cluster.s3(at % 4).put(&format!("/bucket/{at}"), content(at, 40_000)).await.unwrap();
        assert_eq!(status, StatusCode::OK);
    }
    let admin = cluster.admin(0);
    until("healthy", || admin.get::<ClusterStatus>("/v1/cluster"), |status| status.health == "healthy").await;
    let leaver = cluster.id(3);
    let path = format!("/v1/nodes/{leaver}");
    let (code, answer) = admin.call(Method::DELETE, &path, &serde_json::Value::Null).await;
    let refused: ErrorBody = serde_json::from_slice(&answer).unwrap();
    assert_eq!((code, refused.error.code), (StatusCode::CONFLICT, ErrorCode::InUse), "{answer:?}");
    let drain: DrainStatus = admin.post(&format!("{path}/drain"), json!({})).await;
    assert!(!drain.done && drain.shards_left > 0, "{drain:?}");
    let drain_path = format!("{path}/drain");
    let drained = until(
        "drained",
        || admin.get::<DrainStatus>(&drain_path),
        |status| {
            assert!(!status.done || status.shards_left == 0 && status.chunks_left == Some(0), "{status:?}");
            status.done
        },
    )
    .await;
    assert_eq!(drained.bytes_left, Some(0));
    let shards: Vec<ShardInfo> = admin.get("/v1/shards").await;
    assert!(shards.iter().all(|shard| shard.replicas.iter().all(|replica| replica.node != leaver)));
    for at in 0..20 {
        let (status, body) = cluster.s3(3).get(&format!("/bucket/{at}")).await.unwrap();
        assert!(status == StatusCode::OK && body == content(at, 40_000), "object {at} through the drained node");
    }
    // Three nodes are left for three replicas.
    let other = format!("/v1/nodes/{}/drain", cluster.id(1));
    let (code, answer) = admin.call(Method::POST, &other, &json!({})).await;
    let refused: ErrorBody = serde_json::from_slice(&answer).unwrap();
    assert_eq!((code, refused.error.code), (StatusCode::CONFLICT, ErrorCode::NotPossible), "{answer:?}");
    assert_eq!(admin.call(Method::DELETE, &path, &serde_json::Value::Null).await.0, StatusCode::NO_CONTENT);
    let nodes: Vec<NodeInfo> = admin.get("/v1/nodes").await;
    assert!(nodes.iter().any(|node| node.id == leaver && !node.in_layout), "{nodes:?}");
    cluster.cluster.shutdown().await;
}

/// Whether the registered nodes show this one as gone.
async fn is_absent(admin: &Admin, id: &str) -> Result<(), String> {
    let nodes: Vec<NodeInfo> = admin.get("/v1/nodes").await;
    let gone = nodes.iter().any(|node| node.id == id && node.state == "absent");
    if gone { Ok(()) } else { Err(format!("{nodes:?}")) }
}

/// What a write missed on another node may lie on the disks of the one that is to go, and nowhere else that answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_is_not_removed_while_repairs_of_others_may_need_its_disks() {
    let mut cluster = Cluster::start(4).await;
    assert_eq!(cluster.s3(0).put("/bucket", Bytes::new()).await.unwrap().0, StatusCode::OK);
    let admin = cluster.admin(0);
    until("healthy", || admin.get::<ClusterStatus>("/v1/cluster"), |status| status.health == "healthy").await;
    let (late, leaver) = (cluster.id(1), cluster.id(3));
    let path = format!("/v1/nodes/{leaver}");
    let refusal = async || {
        let (code, answer) = admin.call(Method::DELETE, &path, &serde_json::Value::Null).await;
        let refused: ErrorBody = serde_json::from_slice(&answer).expect("an error");
        assert_eq!((code, refused.error.code), (StatusCode::CONFLICT, ErrorCode::InUse), "{answer:?}");
        refused.error.message
    };
    let message = refusal().await;
    assert!(message.contains("it takes data"), "{message}");

    let _: RepairInfo = admin.post("/v1/repair/pause", json!({})).await;
    cluster.cluster.crash(1);
    until_ok("a node is away", async || is_absent(&admin, &late).await).await;
    for at in 0..30 {
        let (status, body) = cluster.s3(0).put(&format!("/bucket/{at}"), content(at, 40_000)).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{body:?}");
    }
    until_ok("it starts again", async || cluster.cluster.restart(1).await).await;
    until(
        "it is to be told what it missed",
        || admin.get::<RepairInfo>("/v1/repair"),
        |info| info.paused && info.backlog.as_ref().is_some_and(|backlog| !backlog.is_empty()),
    )
    .await;

    let drain_path = format!("{path}/drain");
    let _: DrainStatus = admin.post(&drain_path, json!({})).await;
    let moved = |status: &DrainStatus| status.shards_left == 0;
    until("everything moved", || admin.get::<DrainStatus>(&drain_path), moved).await;
    cluster.cluster.crash(3);
    until_ok("the drained node is switched off", async || is_absent(&admin, &leaver).await).await;
    let message = refusal().await;
    assert!(message.contains("repairs of other nodes wait"), "{message}");

    let _: RepairInfo = admin.post("/v1/repair/resume", json!({})).await;
    let removed = async || {
        let (code, answer) = admin.call(Method::DELETE, &path, &serde_json::Value::Null).await;
        if code == StatusCode::NO_CONTENT { Ok(()) } else { Err(format!("{code} {answer:?}")) }
    };
    until_ok("it is removed once nobody needs it", removed).await;
    for at in 0..30 {
        let (status, body) = cluster.s3(1).get(&format!("/bucket/{at}")).await.unwrap();
        assert!(status == StatusCode::OK && body == content(at, 40_000), "object {at}");
    }
    cluster.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn staged_changes_show_their_cost_and_are_applied_as_shown_or_not_at_all() {
    let cluster = Cluster::start(3).await;
    let admin = cluster.admin(2);
    let before: LayoutView = admin.get("/v1/layout").await;
    assert_eq!((before.applied.nodes.len(), before.applied.replication_factor), (3, 3));
    let change = json!({ "change": "set_replication_factor", "replicas": 2 });
    let staged: LayoutView = admin.post("/v1/layout/changes", change).await;
    assert_eq!((staged.version, staged.staged.len(), staged.preview.replication_factor), (before.version, 1, 2));
    let cost: LayoutCost = admin.get("/v1/layout/diff").await;
    assert_eq!((cost.next_version, cost.replicas_moved), (before.version + 1, 0), "{cost:?}");
    assert!(cost.shards_changed > 0 && cost.impossible.is_none(), "{cost:?}");
    let old = json!({ "version": before.version });
    let (code, answer) = admin.call(Method::POST, "/v1/layout/apply", &old).await;
    assert_eq!(code, StatusCode::CONFLICT, "{answer:?}");
    let applied: LayoutView = admin.post("/v1/layout/apply", json!({ "version": cost.next_version })).await;
    assert_eq!((applied.version, applied.applied.replication_factor), (cost.next_version, 2));
    let settled =
        until("healthy", || admin.get::<ClusterStatus>("/v1/cluster"), |status| status.health == "healthy").await;
    let shards: Vec<ShardInfo> = admin.get("/v1/shards").await;
    let moved = shards.iter().all(|shard| shard.target.len() == 2 && shard.replicas.len() == 2);
    assert!(moved, "healthy was said before the new layout was taken up: {settled:#?}");
    let change = json!({ "change": "set_replication_factor", "replicas": 4 });
    let _: LayoutView = admin.post("/v1/layout/changes", change).await;
    let cost: LayoutCost = admin.get("/v1/layout/diff").await;
    assert!(cost.impossible.is_some(), "{cost:?}");
    let (code, _) = admin.call(Method::POST, "/v1/layout/apply", &json!({ "version": cost.next_version })).await;
    assert_eq!(code, StatusCode::CONFLICT, "four replicas on three nodes");
    let reverted: LayoutView = admin.post("/v1/layout/revert", json!({})).await;
    assert!(reverted.staged.is_empty());
    cluster.cluster.shutdown().await;
}
