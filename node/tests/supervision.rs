//! Actors are killed under load: the node recovers, nothing acknowledged is lost, no request hangs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use holdfast_actors::ports::MetadataStore as _;
use holdfast_actors::ports::metadata::MetadataDirect as _;
use holdfast_actors::wait::until_ok;
use holdfast_node::assemble::cluster_tools::{RebuildOptions, rebuild};
use holdfast_node::config::Config;
use holdfast_node::metadata::{SqliteMetadataStore, SqliteOptions};
use http::StatusCode;
use tokio::task::JoinSet;

mod support;

use support::{S3, eventually};

/// What the object of a key holds: its name, over and over, up to a size that follows from it.
fn content(writer: usize, number: usize) -> Bytes {
    let name = format!("object {number} of writer {writer};");
    let size = 1 + (writer * 7919 + number * 104_729) % 300_000;
    name.bytes().cycle().take(size).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_actors_come_back_and_nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = support::config(dir.path());
    let node = support::start(&config).await;
    let s3 = S3::of(&node);
    assert_eq!(s3.put("/bucket", Bytes::new()).await.expect("an answer").0, StatusCode::OK);

    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let (s3, stop, written) = (s3.clone(), stop.clone(), written.clone());
        writers.spawn(async move {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let path = format!("/bucket/{writer}-{number}");
                let (status, body) = s3.put(&path, content(writer, number)).await.expect("an answer");
                match status {
                    StatusCode::OK => {
                        acknowledged.push((writer, number));
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                    StatusCode::SERVICE_UNAVAILABLE => {}
                    other => panic!("PUT {path}: {other} {body:?}"),
                }
                if let Some((writer, number)) = acknowledged.get(number / 2) {
                    let path = format!("/bucket/{writer}-{number}");
                    let (status, body) = s3.get(&path).await.expect("an answer");
                    assert!(status == StatusCode::OK || status == StatusCode::SERVICE_UNAVAILABLE, "{path}: {status}");
                    assert!(status != StatusCode::OK || body == content(*writer, *number), "{path} differs");
                }
            }
            acknowledged
        });
    }

    for round in 0..2 {
        for kind in node.actor_kinds() {
            let before = node.actors().actor_id(kind);
            assert!(node.actors().kill_actor(kind), "{kind:?} is there to be killed");
            eventually(&format!("round {round}: {kind:?} is started again"), || node.actors().actor_id(kind) != before)
                .await;
            eventually("the node is ready", || node.actors().health().is_ready()).await;
        }
    }
    // Actors do their work again: both need more than being there.
    until_ok("cleanup runs", async || node.actors().run_cleanup(support::REQUEST_MAX).await).await;
    until_ok("scrub starts", async || node.actors().start_scrub().await).await;
    eventually("scrub ends", || node.actors().scrub_report().iter().all(|disk| !disk.running && disk.passes > 0)).await;
    assert!(node.actors().scrub_report().iter().all(|disk| disk.corrupt == 0));

    eventually("some objects are written", || written.load(Ordering::Relaxed) > 20).await;
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = BTreeMap::new();
    while let Some(written) = writers.join_next().await {
        for (writer, number) in written.expect("no writer fails") {
            acknowledged.insert(format!("/bucket/{writer}-{number}"), content(writer, number));
        }
    }
    assert!(acknowledged.len() > 20, "only {} objects were written", acknowledged.len());
    check(&s3, &acknowledged).await;
    node.shutdown().await;

    let node = support::start(&config).await;
    check(&S3::of(&node), &acknowledged).await;
    node.shutdown().await;
}

async fn check(s3: &S3, acknowledged: &BTreeMap<String, Bytes>) {
    for (path, expected) in acknowledged {
        let (status, body) = s3.get(path).await.expect("an answer");
        assert_eq!(status, StatusCode::OK, "{path}");
        assert!(body == *expected, "{path} differs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_actor_that_keeps_failing_makes_the_node_give_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = support::start(&support::config(dir.path())).await;
    let actors = node.actors().clone();
    let killer = tokio::spawn(async move {
        loop {
            actors.kill_actor(holdfast_actors::service::ChildKind::Cleanup);
            // Faster than it is started again, and not a loop that takes the processor.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    });
    let reason = tokio::time::timeout(support::REQUEST_MAX, node.failed()).await.expect("the node gives up");
    assert!(reason.contains("cleanup"), "{reason}");
    killer.abort();
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_node_ends_what_it_began_and_takes_nothing_new() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = support::config(dir.path());
    // So long that no busy machine takes as long for nothing.
    config.node.shutdown_timeout = "60 s".parse().expect("a duration");
    let node = support::start(&config).await;
    let s3 = S3::of(&node);
    assert_eq!(s3.put("/bucket", Bytes::new()).await.expect("an answer").0, StatusCode::OK);
    node.actors().drain();
    let (status, body) = s3.put("/bucket/late", Bytes::from_static(b"x")).await.expect("an answer");
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(String::from_utf8_lossy(&body).contains("SlowDown"));
    assert!(!node.actors().health().is_ready());
    let begun = std::time::Instant::now();
    node.shutdown().await;
    assert!(begun.elapsed() < config.node.shutdown_timeout.duration(), "nothing was at hand, so the stop is quick");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_in_one_process_do_not_meet() {
    let (one, two) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (one, two) =
        (support::start(&support::config(one.path())).await, support::start(&support::config(two.path())).await);
    let (s3_one, s3_two) = (S3::of(&one), S3::of(&two));
    assert_eq!(s3_one.put("/bucket", Bytes::new()).await.expect("an answer").0, StatusCode::OK);
    assert_eq!(s3_two.get("/bucket").await.expect("an answer").0, StatusCode::NOT_FOUND);
    one.shutdown().await;
    assert_eq!(s3_two.put("/bucket", Bytes::new()).await.expect("an answer").0, StatusCode::OK);
    two.shutdown().await;
}

/// Starts a node, puts `/bucket/key`, and ends the node.
async fn store_one_object(config: &Config) {
    let node = support::start(config).await;
    let s3 = S3::of(&node);
    assert_eq!(s3.put("/bucket", Bytes::new()).await.expect("an answer").0, StatusCode::OK);
    assert_eq!(s3.put("/bucket/key", content(0, 1)).await.expect("an answer").0, StatusCode::OK);
    node.shutdown().await;
}

/// Chunks that metadata does not know are deleted as orphans. A node that started with an empty database instead of its
/// own would delete everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_whose_metadata_is_gone_are_refused_and_keep_their_chunks() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = support::config(dir.path());
    store_one_object(&config).await;
    let (database, kept) = (config.node.data_dir.join("metadata.sqlite"), dir.path().join("kept"));
    std::fs::rename(&database, &kept).expect("metadata goes");
    // The second start finds the empty database that the first one made.
    for _ in 0..2 {
        let started = holdfast_node::assemble::start(config.clone(), holdfast_node::assemble::Root::Generate).await;
        let error = started.map(drop).expect_err("the start is refused");
        assert!(error.to_string().contains("never had a bucket"), "{error:#}");
    }
    for suffix in ["-wal", "-shm"] {
        drop(std::fs::remove_file(config.node.data_dir.join(format!("metadata.sqlite{suffix}"))));
    }
    std::fs::rename(&kept, &database).expect("metadata comes back");
    let node = support::start(&config).await;
    let answer = S3::of(&node).get("/bucket/key").await.expect("an answer");
    assert_eq!(answer, (StatusCode::OK, content(0, 1)));
    node.shutdown().await;
}

/// The labels of its chunks are enough. Half of it must never be what a node starts on, so it is made beside its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_that_are_gone_are_rebuilt_from_the_disks_over_what_a_broken_run_left() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = support::config(dir.path());
    store_one_object(&config).await;
    let database = config.node.data_dir.join("metadata.sqlite");
    for suffix in ["", "-wal", "-shm"] {
        drop(std::fs::remove_file(config.node.data_dir.join(format!("metadata.sqlite{suffix}"))));
    }
    let partial = config.node.data_dir.join("metadata.sqlite.partial");
    std::fs::write(&partial, "half of a database").expect("written");

    let counted = RebuildOptions { dry_run: true, ..RebuildOptions::default() };
    for (options, found) in [(counted, 0), (RebuildOptions::default(), 1)] {
        let report = rebuild(&config, "root", options).await.expect("rebuilt");
        assert_eq!((report.objects, report.dry_run), (1, options.dry_run));
        let metadata = SqliteMetadataStore::open(&database, SqliteOptions::default()).await.expect("it opens");
        assert_eq!(metadata.list_buckets(None, None, 10).await.expect("buckets").len(), found);
        metadata.close().await;
    }
    assert!(!partial.exists());
    let again = rebuild(&config, "root", RebuildOptions::default()).await.expect_err("there are buckets");
    assert!(again.to_string().contains("holds buckets"), "{again:#}");
    let node = support::start(&config).await;
    assert_eq!(S3::of(&node).get("/bucket/key").await.expect("an answer"), (StatusCode::OK, content(0, 1)));
    node.shutdown().await;
}
