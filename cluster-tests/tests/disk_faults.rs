//! Disks that are full, that rot, that belong to another process or to another format.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_cluster_tests::client::Request;
use holdfast_cluster_tests::disk::{SmallDisk, allocated, flip_bytes, locate};
use holdfast_cluster_tests::node::Node;
use holdfast_cluster_tests::{content, eventually};

#[test]
fn flipped_bytes_on_disk_are_never_served_and_are_counted() {
    let mut node = Node::start();
    let client = node.client();
    client.create_bucket("rot");
    let (bad, good) = (content::bytes(1, 3 << 20), content::bytes(2, 3 << 20));
    assert_eq!(client.put("rot", "bad", &bad).unwrap().status, 200);
    assert_eq!(client.put("rot", "good", &good).unwrap().status, 200);
    node.stop();
    // 64 bytes from the middle are unique enough to be found.
    let middle = bad.len() / 2 + 12_345;
    let (file, at) = locate(node.data_dir(), &bad[middle..middle + 64]);
    flip_bytes(&file, at, 16);
    node.restart();
    let client = node.client();

    assert_eq!(client.get("rot", "good").unwrap().body, good);
    for _ in 0..3 {
        // Either an error status, or a body that stops before the bad block. Never the bad bytes as a whole answer.
        if let Ok(response) = client.get("rot", "bad") {
            assert!(response.status >= 500, "{} with {} bytes", response.status, response.body.len());
        }
    }
    // Ranges that touch only sound blocks are still read.
    let head =
        Request { method: "GET", path: "/rot/bad", headers: &[("range", "bytes=0-99999")], ..Request::default() };
    let response = client.send(&head).unwrap();
    assert_eq!(response.status, 206);
    assert_eq!(response.body, bad[..100_000]);
    let corrupt = node.corruption_found();
    assert!(corrupt > 0.0, "the corruption was not counted");
}

#[test]
fn scrub_finds_flipped_bytes_that_nobody_reads() {
    let mut node = Node::start();
    let client = node.client();
    client.create_bucket("scrub");
    let bytes = content::bytes(5, 2 << 20);
    assert_eq!(client.put("scrub", "k", &bytes).unwrap().status, 200);
    node.cli(&["scrub", "run"]);
    assert_eq!(node.corruption_found(), 0.0);
    node.stop();
    let (file, at) = locate(node.data_dir(), &bytes[1_000_000..1_000_064]);
    flip_bytes(&file, at, 1);
    node.restart();
    let output = node.try_cli(&["scrub", "run"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(node.corruption_found() > 0.0, "scrub told of corruption and did not count it");
}

#[test]
fn scrub_runs_by_itself_within_its_period() {
    let mut node = Node::start_with(&[("HOLDFAST_STORAGE_SCRUB_PERIOD", "2s")]);
    let client = node.client();
    client.create_bucket("scrub");
    let bytes = content::bytes(6, 2 << 20);
    assert_eq!(client.put("scrub", "k", &bytes).unwrap().status, 200);
    node.stop();
    let (file, at) = locate(node.data_dir(), &bytes[1_000_000..1_000_064]);
    flip_bytes(&file, at, 1);
    node.restart();
    eventually("scrub to report the flipped byte", Duration::from_secs(120), || node.corruption_found() > 0.0);
}

#[test]
fn a_full_disk_refuses_writes_keeps_reads_and_recovers_when_there_is_room() {
    let scratch = tempfile::tempdir_in(node_dir()).unwrap();
    let disk = SmallDisk::new(scratch.path(), 600);
    let small = [
        ("HOLDFAST_STORAGE_SEGMENT_SIZE", "64MiB"),
        ("HOLDFAST_STORAGE_RESERVE", "32MiB"),
        ("HOLDFAST_CLEANUP_GRACE", "1s"),
        ("HOLDFAST_CLEANUP_INTERVAL", "1s"),
    ];
    let mut node = Node::start_on(&disk.path().join("data"), &small);
    let client = node.client();
    client.create_bucket("full");
    let body = content::bytes(9, 8 << 20);
    let mut stored = 0;
    let refused = loop {
        let response = client.put("full", &format!("k{stored}"), &body).unwrap();
        if response.status != 200 {
            break response;
        }
        stored += 1;
        assert!(stored < 100, "600 MiB took {stored} objects of 8 MiB");
    };
    assert!(matches!(refused.status, 503 | 507), "{} {}", refused.status, refused.text());
    assert!(stored >= 40, "only {stored} objects of 8 MiB fitted into 600 MiB");
    for n in [0, stored / 2, stored - 1] {
        assert_eq!(client.get("full", &format!("k{n}")).unwrap().body, body);
    }
    assert_eq!(client.get("full", &format!("k{stored}")).unwrap().status, 404, "half an object is visible");

    // Once the node knows, it refuses writes at once, and still takes the deletion that makes room.
    eventually("the node tells that it is full", Duration::from_secs(60), || {
        node.admin_get("/health/ready").is_ok_and(|answer| answer.status == 503 && answer.text().contains("no_space"))
    });
    assert_eq!(client.put("full", "more", &body[..1_000]).unwrap().status, 507);
    stored -= 1;
    assert_eq!(client.delete("full", &format!("k{stored}")).unwrap().status, 204);

    // A restart on the full disk comes up and reads.
    node.kill();
    node.restart();
    let client = node.client();
    assert_eq!(client.get("full", "k0").unwrap().body, body);

    for n in 0..stored {
        assert_eq!(client.delete("full", &format!("k{n}")).unwrap().status, 204);
    }
    eventually("room after the deletes", Duration::from_secs(180), || {
        client.put("full", "again", &body).is_ok_and(|response| response.status == 200)
    });
    assert_eq!(client.get("full", "again").unwrap().body, body);
    node.stop();
}

/// The disk of the objects has room; the file system of the metadata is filled by somebody else.
#[test]
fn metadata_without_room_refuse_writes_keep_reads_and_recover_when_there_is_room() {
    let scratch = tempfile::tempdir_in(node_dir()).unwrap();
    let small = SmallDisk::new(scratch.path(), 64);
    let objects = scratch.path().join("objects");
    let disks = [("HOLDFAST_NODE_DISKS", objects.to_str().unwrap())];
    let mut node = Node::start_on(&small.path().join("data"), &disks);
    let client = node.client();
    client.create_bucket("meta");
    let body = content::bytes(10, 100_000);
    assert_eq!(client.put("meta", "before", &body).unwrap().status, 200);

    let ballast = small.path().join("ballast");
    fill(&ballast);
    // What the database's files have in their last blocks takes a little more.
    let mut stored = 0;
    let refused = loop {
        let response = client.put("meta", &format!("k{stored}"), &body).unwrap();
        if response.status != 200 {
            break response;
        }
        stored += 1;
        assert!(stored < 1_000, "a file system without room took the metadata of {stored} objects");
    };
    assert_eq!(refused.status, 507, "{}", refused.text());
    assert!(refused.text().contains("InsufficientStorage"), "{}", refused.text());
    eventually("the node tells that there is no room", Duration::from_secs(60), || {
        node.admin_get("/health/ready").is_ok_and(|answer| {
            let text = answer.text();
            answer.status == 503 && text.contains("no_space") && text.contains("make room on the file system of")
        })
    });
    assert_eq!(client.get("meta", "before").unwrap().body, body);
    assert_eq!(client.get("meta", &format!("k{stored}")).unwrap().status, 404, "half an object is visible");

    fs::remove_file(&ballast).unwrap();
    eventually("the node is ready without a restart", Duration::from_secs(60), || {
        node.admin_get("/health/ready").is_ok_and(|answer| answer.status == 200)
    });
    assert_eq!(client.put("meta", "after", &body).unwrap().status, 200);
    assert_eq!(client.get("meta", "after").unwrap().body, body);
    node.stop();
}

#[test]
fn two_processes_cannot_use_one_directory() {
    let node = Node::start();
    let output = node
        .command(&["dev", "--data-dir", node.data_dir().to_str().unwrap()])
        .args(["--s3-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(text.contains("lock") || text.contains("in use"), "{text}");
    assert_eq!(node.client().get("none", "k").unwrap().status, 404, "the first node was disturbed");
}

#[test]
fn space_comes_back_after_deletes_and_aborted_uploads() {
    let node = Node::start_with(&[
        ("HOLDFAST_CLEANUP_GRACE", "1s"),
        ("HOLDFAST_CLEANUP_INTERVAL", "1s"),
        ("HOLDFAST_STORAGE_SEGMENT_SIZE", "64MiB"),
    ]);
    let client = node.client();
    client.create_bucket("space");
    let body = content::bytes(4, 16 << 20);
    for n in 0..8 {
        assert_eq!(client.put("space", &format!("k{n}"), &body).unwrap().status, 200);
    }
    let full = allocated(node.data_dir());
    assert!(full >= 128 << 20, "{full} bytes allocated for 128 MiB of objects");
    for n in 0..8 {
        assert_eq!(client.delete("space", &format!("k{n}")).unwrap().status, 204);
    }
    eventually("the space of deleted objects", Duration::from_secs(180), || {
        allocated(node.data_dir()) < full - (100 << 20)
    });
}

/// Takes the last byte of a file system.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    for piece in [1 << 20, 4_096, 512] {
        while file.write_all(&vec![7; piece]).is_ok() {}
    }
    // The end of what was written is allocated late: only now is it known to have a place.
    file.sync_all().ok();
    while file.write_all(&[7; 512]).is_ok() {}
}

fn node_dir() -> PathBuf {
    let dir = holdfast_cluster_tests::node::binary().parent().unwrap().join("cluster-tests-data");
    fs::create_dir_all(&dir).unwrap();
    dir
}
