//! A whole node without a broker.

use bytes::Bytes;
use holdfast_actors::domain::cleanup::PassKind;
use holdfast_actors::wait::{eventually, until};
use http::{Method, StatusCode};

use super::{support, support_admin};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_gives_work_to_itself_and_starts_its_worker_again_when_that_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = support::config(dir.path());
    config.cleanup.grace = "0 s".parse().unwrap();
    config.cleanup.interval = "1 h".parse().unwrap();
    let node = support::start(&config).await;
    let s3 = support::S3::of(&node);
    s3.put("/bucket", Bytes::new()).await.unwrap();
    for round in 1..=2 {
        for number in 0..10 {
            let path = format!("/bucket/{number}");
            assert_eq!(s3.put(&path, Bytes::from_static(b"bytes")).await.unwrap().0, StatusCode::OK);
            assert_eq!(s3.get(&path).await.unwrap().0, StatusCode::OK);
            let deleted = s3.send(Method::DELETE, &path, Bytes::new()).await.unwrap();
            assert_eq!(deleted.0, StatusCode::NO_CONTENT);
        }
        // The one of the round before may be about to be started again.
        eventually("it is there to be killed", || node.kill_task_worker()).await;
        let pass = async || {
            node.actors().run_cleanup(support::REQUEST_MAX).await.unwrap();
            node.actors().cleanup_report()[PassKind::Reclaims as usize].1.total.items
        };
        // What was deleted in this very millisecond is due in the next one.
        until("all is reclaimed", pass, |items| *items == 10 * round).await;
    }
    let admin = support_admin::Admin::of(&node, &config);
    let tail: serde_json::Value = admin.get("/v1/events/tail?topic=tasks&oldest=true").await;
    assert_eq!((&tail["events"][0]["tag"], &tail["events"][0]["body"]["version"]), (&"reclaim".into(), &1.into()));
    node.shutdown().await;
}
