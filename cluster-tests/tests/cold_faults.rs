//! What goes wrong at a cold tier, seen through a node: its key is disabled, its bucket or its group is gone, it is
//! slow or gives too few bytes, clocks leap; and what is unusual, thousands of tiny objects and empty ones. Whatever it
//! is, an object that was not moved yet stays on the cluster, one that lies in the tier is served whole or not at all,
//! an operator sees why, and everything goes on when it is put right.
//!
//! `HOLDFAST_TEST_TINY_OBJECTS` (default 4,400: more than a pass of deletions takes) may be set.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use holdfast_cluster_tests::client::{Client, Request, Response, is_broken};
use holdfast_cluster_tests::cluster::private_file;
use holdfast_cluster_tests::content;
use holdfast_cluster_tests::node::Node;
use holdfast_cluster_tests::tiers::{
    BUCKET, FAST, PATIENCE, STORE_BUCKET, add_directory, add_oss, add_oss_with, contents, fastdfs_arguments, files,
    head, put, restore, settle, status, store, whole_status,
};
use holdfast_cluster_tests::{eventually, parameter, until_some};
use holdfast_tiers::fastdfs::double::{Double, DoubleConfig};
use time::OffsetDateTime;

const SITE_KEY: &str = "HFSITEKEY00000000001";
const OTHER_KEY: &str = "HFSITEKEY00000000002";
const SITE_SECRET: &str = "holdfast-site-secret-key-of-40-characters";
const YEAR_SECONDS: i64 = 365 * 24 * 3600;

/// Stores an object that goes to a tier.
fn store_object(client: &Client, key: &str, class: &str, body: &[u8]) {
    let response = put(client, key, class, body).unwrap();
    assert_eq!(response.status, 200, "{key}: {}", response.text());
}

/// An object is there, whole.
fn assert_whole(client: &Client, key: &str, body: &[u8]) {
    let got = client.get_until_served(BUCKET, key);
    assert!(got.status == 200 && got.body == body, "{key}: {} {}", got.status, got.code());
}

/// A reader is told to come again.
fn assert_refused(response: &Response) {
    assert_eq!(response.status, 503, "{}", response.text());
    assert!(response.header("retry-after").is_some(), "{:?}", response.headers);
}

/// Waits until moves of a tier fail for a reason that `tier status` tells.
fn fails_with(node: &Node, tier: &str, reason: &str) {
    eventually(&format!("moves to {tier} fail: {reason}"), PATIENCE, || {
        whole_status(node, tier)["errors"].to_string().contains(reason)
    });
}

/// A node with the bucket of the tests.
fn node_with_bucket() -> (Node, Client) {
    let node = Node::start_with(&FAST);
    let client = node.client();
    client.create_bucket(BUCKET);
    (node, client)
}

#[test]
fn credentials_that_a_tier_refuses_cost_no_object_and_can_be_replaced() {
    let store = Node::start();
    let secret = store.scratch().join("site.secret");
    private_file(&secret, SITE_SECRET);
    let secret = secret.to_str().unwrap();
    store.cli(&["user", "create", "site"]);
    store.cli(&["bucket", "create", STORE_BUCKET, "--owner", "site"]);
    store.cli(&["key", "import", "site", "--access-key", SITE_KEY, "--secret-key-file", secret]);
    let (node, client) = node_with_bucket();
    add_oss_with(&node, "OSS", &store, SITE_KEY, SITE_SECRET);
    let body = content::bytes(1, 700_000);
    store_object(&client, "cold", "OSS", &body);
    settle(&node, "OSS");
    assert_eq!(contents(&node, "OSS"), 1);

    store.cli(&["key", "disable", SITE_KEY]);
    store_object(&client, "waits", "OSS", &body);
    fails_with(&node, "OSS", "refuses");
    assert_whole(&client, "waits", &body);
    assert_refused(&client.get(BUCKET, "cold").unwrap());
    assert_eq!(head(&client, "cold").status, 200);
    let check = node.try_cli(&["tier", "check", "OSS"]);
    assert_eq!(check.status.code(), Some(1), "{}", String::from_utf8_lossy(&check.stdout));
    eventually("it is among the errors", PATIENCE, || {
        let errors = node.cli(&["errors", "list", "--kind", "tier-failed"]);
        errors.contains("tier OSS") && errors.contains("refuses")
    });

    store.cli(&["key", "enable", SITE_KEY]);
    assert_whole(&client, "cold", &body);
    node.cli(&["tier", "retry", "OSS"]);
    eventually("what waited is moved", PATIENCE, || contents(&node, "OSS") == 2);
    assert_whole(&client, "waits", &body);

    // The old key goes for good.
    store.cli(&["key", "disable", SITE_KEY]);
    store.cli(&["key", "import", "site", "--access-key", OTHER_KEY, "--secret-key-file", secret]);
    store_object(&client, "later", "OSS", &body);
    fails_with(&node, "OSS", "refuses");
    let said = node.cli(&["tier", "set", "OSS", "--oss-access-key", OTHER_KEY, "--secret-key-file", secret]);
    assert!(said.contains("2 pieces in it were looked up, all are there"), "{said}");
    node.cli(&["tier", "retry", "OSS"]);
    eventually("what waited is moved", PATIENCE, || contents(&node, "OSS") == 3);
    for key in ["cold", "waits", "later"] {
        assert_whole(&client, key, &body);
    }
    settle(&node, "OSS");
    let at_store = Client { access_key: OTHER_KEY.into(), secret_key: SITE_SECRET.into(), ..store.client() };
    // What a mover began again whose claim ended on a busy machine goes a moment later.
    eventually("the store holds a piece each, and nothing else", PATIENCE, || {
        at_store.list_until_served(STORE_BUCKET, "").len() == 3
    });
}

#[test]
fn bucket_of_a_tier_that_is_removed_keeps_what_waits_and_says_so() {
    let store = store();
    let (node, client) = node_with_bucket();
    add_oss(&node, "OSS", &store);
    let body = content::bytes(2, 300_000);
    store_object(&client, "lost", "OSS", &body);
    settle(&node, "OSS");

    // With all that lies in it, as an operator of the store may do.
    let at_store = store.client();
    let removed = Request { method: "DELETE", path: &format!("/{STORE_BUCKET}"), ..Request::default() };
    eventually("the bucket is empty, and removed", PATIENCE, || {
        for key in at_store.list(STORE_BUCKET, "").unwrap() {
            assert_eq!(at_store.delete(STORE_BUCKET, &key).unwrap().status, 204);
        }
        let answer = at_store.send(&removed).unwrap();
        // A mover whose claim ended on a busy machine may have put a piece there meanwhile.
        assert!(answer.status == 204 || answer.code() == "BucketNotEmpty", "{}", answer.text());
        answer.status == 204
    });
    store_object(&client, "waits", "OSS", &body);
    fails_with(&node, "OSS", "the bucket does not exist");
    assert_whole(&client, "waits", &body);
    assert_refused(&client.get(BUCKET, "lost").unwrap());
    assert_eq!(head(&client, "lost").status, 200);
    eventually("the tier is told to be down", PATIENCE, || status(&node, "OSS")["state"] == "down");

    at_store.create_bucket(STORE_BUCKET);
    node.cli(&["tier", "retry", "OSS"]);
    eventually("what waited is moved", PATIENCE, || contents(&node, "OSS") == 2);
    assert_whole(&client, "waits", &body);
    // What was deleted in the store is lost, is found to be, and takes nothing else with it.
    assert_eq!(client.get_until_served(BUCKET, "lost").status, 500);
    let verified = node.try_cli(&["tier", "verify", "OSS", "--all"]);
    let said = String::from_utf8_lossy(&verified.stdout);
    assert!(verified.status.code() == Some(1) && said.contains("missing"), "{said}");
    assert_eq!(client.delete(BUCKET, "lost").unwrap().status, 204);
    eventually("what is left is what lies there", PATIENCE, || {
        contents(&node, "OSS") == 1 && at_store.list_until_served(STORE_BUCKET, "").len() == 1
    });
    node.cli(&["tier", "verify", "OSS", "--all"]);
}

/// A FastDFS in this process, and what keeps it going.
struct Fastdfs {
    double: Double,
    _runtime: tokio::runtime::Runtime,
}

impl Fastdfs {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let double = runtime.block_on(Double::start(DoubleConfig::default()));
        Self { double, _runtime: runtime }
    }

    fn add_to(&self, node: &Node) {
        let config = self.double.config();
        let arguments = fastdfs_arguments("FASTDFS", &config.trackers, &config.address_map);
        node.cli(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Whether it has so many pieces, each with its bytes in one file and its name in an empty one, and nothing else.
    /// But FastDFS gives names and cannot be listed: a mover whose claim ends while it is given one, as on a busy
    /// machine it may, leaves that there.
    fn has_pieces(&self, node: &Node, count: usize) -> bool {
        let labels = ["direction=\"out\"", "outcome=\"lost\""];
        let moves_lost = node.metric("holdfast_tier_moves_total", &labels).unwrap().unwrap_or(0.0);
        let (names, pieces): (Vec<_>, Vec<_>) = self.double.files(0).into_iter().partition(|(_, bytes)| *bytes == 0);
        pieces.len() == count && names.len() >= count && (names.len() - count) as f64 <= moves_lost
    }
}

#[test]
fn fastdfs_whose_group_vanishes_is_slow_or_loses_ends_keeps_every_object() {
    let fastdfs = Fastdfs::start();
    let double = &fastdfs.double;
    let (node, client) = node_with_bucket();
    fastdfs.add_to(&node);
    let body = content::bytes(3, 400_000);
    store_object(&client, "first", "FASTDFS", &body);
    eventually("the first is moved", PATIENCE, || contents(&node, "FASTDFS") == 1);

    double.set_groups_vanished(true);
    store_object(&client, "vanished", "FASTDFS", &body);
    fails_with(&node, "FASTDFS", "tier FASTDFS");
    assert_whole(&client, "vanished", &body);
    double.set_groups_vanished(false);
    node.cli(&["tier", "retry", "FASTDFS"]);
    eventually("what waited is moved", PATIENCE, || contents(&node, "FASTDFS") == 2);

    // Each answer takes most of a claim's time: claims are renewed, and no other attempt begins.
    double.storage_faults(0, |faults| faults.delay = Some(Duration::from_millis(1_500)));
    store_object(&client, "slow", "FASTDFS", &body);
    assert_whole(&client, "slow", &body);
    eventually("the tier is slow, and takes it", PATIENCE, || contents(&node, "FASTDFS") == 3);
    assert_whole(&client, "slow", &body);
    double.storage_faults(0, |faults| faults.delay = None);

    // It loses the end of what it takes, and says nothing.
    double.storage_faults(0, |faults| faults.truncate_uploads = true);
    store_object(&client, "short", "FASTDFS", &body);
    fails_with(&node, "FASTDFS", "FASTDFS");
    assert_eq!(contents(&node, "FASTDFS"), 3);
    assert_whole(&client, "short", &body);
    double.storage_faults(0, |faults| faults.truncate_uploads = false);
    node.cli(&["tier", "retry", "FASTDFS"]);
    eventually("what waited is moved", PATIENCE, || contents(&node, "FASTDFS") == 4);

    // And of what it has: not a byte of that block is served, and when it is back, all is. What was cut short is gone
    // by then, or the ends would come back to other files.
    settle(&node, "FASTDFS");
    let mut ends = Vec::new();
    double.damage(0, |bytes| ends.extend(bytes.pop()));
    match client.get(BUCKET, "first") {
        Ok(response) => assert_ne!(response.status, 200),
        Err(error) => assert!(is_broken(&error), "the connection is cut short, and not: {error}"),
    }
    assert!(node.corruption_found() > 0.0);
    let mut ends = ends.into_iter();
    double.damage(0, |bytes| bytes.extend(ends.next()));
    node.cli(&["tier", "verify", "FASTDFS", "--all"]);
    for key in ["first", "vanished", "slow", "short"] {
        assert_whole(&client, key, &body);
        assert_eq!(client.delete(BUCKET, key).unwrap().status, 204);
    }
    eventually("nothing is left in FastDFS", PATIENCE, || fastdfs.has_pieces(&node, 0));
    assert!(!double.saw_pipelining());
}

#[test]
fn node_whose_clock_leaps_between_its_starts_loses_nothing_and_leaves_nothing() {
    let (mut node, mut client) = node_with_bucket();
    let shelf = add_directory(&node, "SHELF");
    let body = content::bytes(4, 300_000);
    store_object(&client, "restored", "SHELF", &body);
    settle(&node, "SHELF");
    assert_eq!(restore(&client, "restored", 1), 202);
    let is_restored = |client: &Client, now: OffsetDateTime| {
        let request = Request { method: "HEAD", path: &format!("/{BUCKET}/restored"), ..Request::default() };
        let answer = client.send_on_at(&mut client.connect().unwrap(), &request, now).unwrap();
        answer.header("x-amz-restore").is_some_and(|text| text.contains("ongoing-request=\"false\""))
    };
    eventually("it is restored", PATIENCE, || is_restored(&client, OffsetDateTime::now_utc()));
    let mut keys = Vec::new();
    for ahead in [0, YEAR_SECONDS, 0, -YEAR_SECONDS, 0] {
        let now = || OffsetDateTime::now_utc() + time::Duration::seconds(ahead);
        for n in 0..8 {
            let key = format!("{}-{n}", keys.len());
            let path = format!("/{BUCKET}/{key}");
            let headers = [("x-amz-storage-class", "SHELF")];
            let request = Request { method: "PUT", path: &path, headers: &headers, body: &body, ..Request::default() };
            let response = client.send_on_at(&mut client.connect().unwrap(), &request, now()).unwrap();
            assert_eq!(response.status, 200, "{}", response.text());
            keys.push(key);
        }
        // Some of them are on their way.
        node.kill();
        let next = [YEAR_SECONDS, 0, -YEAR_SECONDS, 0, 0][keys.len() / 8 - 1];
        node.set_clock(next);
        node.restart();
        client = node.client();
        let later = OffsetDateTime::now_utc() + time::Duration::seconds(next);
        for key in keys.iter().map(String::as_str).chain(["restored"]) {
            let path = format!("/{BUCKET}/{key}");
            let request = Request { method: "GET", path: &path, ..Request::default() };
            // A reader is cut off whom a busy machine holds up while its object moves.
            let got = until_some("there is an answer", PATIENCE, || {
                let answer = client.send_on_at(&mut client.connect().unwrap(), &request, later);
                answer.ok().filter(|answer| answer.status != 503)
            });
            assert!(got.status == 200 && got.body == body, "{key}: {} {}", got.status, got.text());
        }
        if next == YEAR_SECONDS {
            // Its time is over by this clock, and yet it stays.
            eventually("moves go on", PATIENCE, || contents(&node, "SHELF") >= 8);
            assert_eq!(whole_status(&node, "SHELF")["restored"], 1);
        }
    }
    node.cli(&["tier", "retry", "SHELF"]);
    eventually("all are moved but the one that is restored", PATIENCE, || {
        contents(&node, "SHELF") == keys.len() as u64 && files(&shelf).len() == keys.len()
    });
    node.cli(&["tier", "verify", "SHELF", "--all"]);
    for key in keys.iter().map(String::as_str).chain(["restored"]) {
        assert_whole(&client, key, &body);
        assert_eq!(client.delete(BUCKET, key).unwrap().status, 204);
    }
    eventually("nothing is left in the tier", PATIENCE, || {
        node.cli(&["tier", "retry", "SHELF"]);
        files(&shelf).is_empty() && status(&node, "SHELF")["usage"]["pieces_to_delete"] == 0
    });
}

#[test]
fn empty_objects_take_a_class_and_nothing_in_the_tier() {
    let (node, client) = node_with_bucket();
    let shelf = add_directory(&node, "SHELF");
    for key in ["empty", "copied"] {
        store_object(&client, key, "SHELF", b"");
    }
    let path = format!("/{BUCKET}/copy");
    let headers = [("x-amz-copy-source", "/cold/copied"), ("x-amz-storage-class", "SHELF")];
    let copy = Request { method: "PUT", path: &path, headers: &headers, ..Request::default() };
    assert_eq!(client.send(&copy).unwrap().status, 200);
    settle(&node, "SHELF");
    assert_eq!((contents(&node, "SHELF"), files(&shelf).len()), (0, 0));
    for key in ["empty", "copied", "copy"] {
        assert_whole(&client, key, b"");
        let head = head(&client, key);
        assert_eq!((head.header("x-amz-storage-class"), head.header("content-length")), (Some("SHELF"), Some("0")));
    }
    assert!(matches!(restore(&client, "empty", 1), 200 | 202));
    node.cli(&["tier", "recall", &format!("{BUCKET}/copied"), "--wait"]);
    assert_eq!(head(&client, "copied").header("x-amz-storage-class"), None);
    node.cli(&["tier", "verify", "SHELF", "--all"]);
    for key in ["empty", "copied", "copy"] {
        assert_whole(&client, key, b"");
        assert_eq!(client.delete(BUCKET, key).unwrap().status, 204);
    }
    assert_eq!(files(&shelf).len(), 0);
}

/// Clients that work at once, each on a connection of its own.
const CLIENTS: usize = 4;

/// Does something for each number, by several clients, which ask again where they are told to.
fn by_all(client: &Client, count: usize, work: impl Fn(&mut dyn FnMut(&Request<'_>) -> Response, usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let (next, work) = (&next, &work);
            scope.spawn(move || {
                let mut connection = client.connect().unwrap();
                let mut send = |request: &Request<'_>| match client.send_on(&mut connection, request) {
                    Ok(response) if response.status != 503 => response,
                    Err(error) if !is_broken(&error) => panic!("{} {}: {error}", request.method, request.path),
                    _ => {
                        connection = client.connect().unwrap();
                        client.send_until_served(request)
                    }
                };
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    work(&mut send, number);
                }
            });
        }
    });
}

/// 0 to 499 bytes that tell their number.
fn tiny(number: usize) -> Vec<u8> {
    content::bytes(number as u64, number % 500)
}

#[test]
fn thousands_of_tiny_objects_go_to_fastdfs_and_come_back() {
    let count = parameter("HOLDFAST_TEST_TINY_OBJECTS", 4_400) as usize;
    let fastdfs = Fastdfs::start();
    let double = &fastdfs.double;
    let (node, client) = node_with_bucket();
    fastdfs.add_to(&node);
    let chunks = || node.metric("holdfast_storage_chunks", &[]).unwrap().unwrap_or_default();
    let path = |number: usize| format!("/{BUCKET}/{number:05}");
    let cold = (0..count).filter(|number| !tiny(*number).is_empty()).count();
    let begun = Instant::now();
    let told = |what: &str| println!("{what} after {:.1} s", begun.elapsed().as_secs_f64());

    by_all(&client, count, |send, number| {
        let (path, body) = (path(number), tiny(number));
        let headers = [("x-amz-storage-class", "FASTDFS")];
        let request = Request { method: "PUT", path: &path, headers: &headers, body: &body, ..Request::default() };
        assert_eq!(send(&request).status, 200, "{path}");
    });
    told("stored");
    let read_all = || {
        by_all(&client, count, |send, number| {
            let path = path(number);
            let got = send(&Request { method: "GET", path: &path, ..Request::default() });
            assert!(got.status == 200 && got.body == tiny(number), "{path}: {}", got.status);
        });
    };
    let quiet = || status(&node, "FASTDFS")["backlog"]["due"] == 0;
    eventually("all are moved", PATIENCE, || contents(&node, "FASTDFS") == cold as u64 && quiet());
    told("moved");
    // What a mover began again whose claim ended on a busy machine goes a moment later.
    eventually("the name and its bytes, and nothing else", PATIENCE, || fastdfs.has_pieces(&node, cold));
    read_all();
    told("read");
    eventually("the cluster has a stub each", PATIENCE, || chunks() == cold as f64);

    node.cli(&["tier", "recall", BUCKET, "--all", "--wait"]);
    told("back");
    eventually("FastDFS is empty", PATIENCE, || fastdfs.has_pieces(&node, 0));
    told("empty");
    assert_eq!(contents(&node, "FASTDFS"), 0);
    read_all();
    eventually("the cluster has a chunk each", PATIENCE, || chunks() == cold as f64);

    by_all(&client, count, |send, number| {
        let path = path(number);
        assert_eq!(send(&Request { method: "DELETE", path: &path, ..Request::default() }).status, 204);
    });
    eventually("nothing is left on the cluster", PATIENCE, || chunks() == 0.0);
    told("deleted");
    assert!(!double.saw_pipelining());
}
