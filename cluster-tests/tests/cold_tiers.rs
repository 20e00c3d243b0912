//! Cold tiers from outside: objects move to a store that checks signatures (another Holdfast node), to FastDFS (the
//! double, with its traps) and back, while nodes are killed and tiers fail. After every run each object is there byte
//! for byte, nothing that is referred to is missing in a tier, and nothing else is left in it.
//!
//! `HOLDFAST_TEST_TIER_ROUNDS` (default 3), `HOLDFAST_TEST_COLD_MIB` (default 48) and `HOLDFAST_TEST_SEED` may be set.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use holdfast_cluster_tests::client::{Client, Request, Response, is_broken};
use holdfast_cluster_tests::cluster::{Cluster, Options};
use holdfast_cluster_tests::content::{self, Random};
use holdfast_cluster_tests::model::{Model, Version};
use holdfast_cluster_tests::node::Node;
use holdfast_cluster_tests::tiers::{
    BUCKET, FAST, PATIENCE, STORE_BUCKET, add_directory, add_oss, contents, fastdfs_arguments, files, head, put,
    put_until_served, range, restore, settle, status, store,
};
use holdfast_cluster_tests::{eventually, parameter, seed};
use holdfast_tiers::fastdfs::double::{Double, DoubleConfig};

struct Writer {
    id: u64,
    client: Client,
    random: Random,
    model: Model,
}

impl Writer {
    fn key(&mut self) -> String {
        format!("w{}/{}", self.id, self.random.below(6))
    }

    fn version(&mut self) -> Version {
        let len = match self.random.below(10) {
            0 => 0,
            1..=5 => self.random.below(20_000),
            6..=8 => self.random.below(1 << 20),
            _ => (3 << 20) + self.random.below(3 << 20),
        };
        Version { seed: self.random.next_u64(), len: len as usize }
    }

    fn class(&mut self) -> &'static str {
        ["OSS", "OSS", "SHELF", "SHELF", "STANDARD"][self.random.below(5) as usize]
    }

    /// Sends a change and tells the model what is known of it. An error means that the node is gone.
    fn change(&mut self, key: &str, version: Option<Version>, response: io::Result<Response>) -> io::Result<()> {
        self.model.told(key, version, &response);
        let response = response?;
        assert!(matches!(response.status, 200 | 204 | 503), "{key}: {} {}", response.status, response.text());
        Ok(())
    }

    fn step(&mut self, done: &AtomicU64) -> io::Result<()> {
        let key = self.key();
        match self.random.below(10) {
            0..=5 => {
                let (version, class) = (self.version(), self.class());
                let response = put(&self.client, &key, class, &version.bytes());
                self.change(&key, Some(version), response)?;
            }
            6 => {
                let response = self.client.delete(BUCKET, &key);
                self.change(&key, None, response)?;
            }
            7 => {
                // A copy shares the bytes, and may want them elsewhere.
                let (from, class) = (self.key(), self.class());
                let Some(version) = self.model.current(&from).filter(|_| from != key) else { return Ok(()) };
                let (path, source) = (format!("/{BUCKET}/{key}"), format!("/{BUCKET}/{from}"));
                let headers = [("x-amz-copy-source", source.as_str()), ("x-amz-storage-class", class)];
                let request = Request { method: "PUT", path: &path, headers: &headers, ..Request::default() };
                let response = self.client.send(&request);
                self.change(&key, Some(version), response)?;
            }
            _ => {
                let response = self.client.get(BUCKET, &key)?;
                let got = match response.status {
                    200 => Some(response.body.as_slice()),
                    404 => None,
                    503 => return Ok(()),
                    other => panic!("GET {key}: {other} {}", response.text()),
                };
                self.model.observe(&key, got).unwrap();
            }
        }
        done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Every key reads as the model allows.
    fn verify(&mut self) {
        self.model.observe_all(&self.client, BUCKET);
    }
}

#[test]
fn kill_9_of_movers_loses_no_object_and_leaves_nothing_in_any_tier() {
    let seed = seed("cold tiers");
    let mut random = Random::new(seed);
    let store = store();
    let mut node = Node::start_with(&FAST);
    node.client().create_bucket(BUCKET);
    add_oss(&node, "OSS", &store);
    let shelf = add_directory(&node, "SHELF");
    let mut writers: Vec<Writer> = (0..4)
        .map(|id| Writer { id, client: node.client(), random: Random::new(seed ^ (id << 40)), model: Model::default() })
        .collect();
    for round in 0..parameter("HOLDFAST_TEST_TIER_ROUNDS", 3) {
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let kill_at = 20 + random.below(60);
        std::thread::scope(|scope| {
            for writer in &mut writers {
                let (stop, done) = (&stop, &done);
                scope.spawn(move || while !stop.load(Ordering::Relaxed) && writer.step(done).is_ok() {});
            }
            let begin = std::time::Instant::now();
            while done.load(Ordering::Relaxed) < kill_at && begin.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(1));
            }
            node.kill();
            stop.store(true, Ordering::Relaxed);
        });
        node.restart();
        println!("round {round}: killed after {} changes", done.load(Ordering::Relaxed));
        for writer in &mut writers {
            writer.client = node.client();
        }
        // While movers are at work again.
        writers.iter_mut().for_each(Writer::verify);
    }
    for tier in ["OSS", "SHELF"] {
        settle(&node, tier);
    }
    let mut classes = BTreeMap::<String, u64>::new();
    for writer in &mut writers {
        writer.verify();
        for key in writer.model.existing() {
            let class = head(&writer.client, &key).header("x-amz-storage-class").unwrap_or("STANDARD").to_owned();
            *classes.entry(class).or_default() += 1;
        }
    }
    println!("objects by class: {classes:?}");
    // All that tiers hold is what metadata knows, and all of that is whole.
    eventually("the store holds what metadata knows, and nothing else", PATIENCE, || {
        store.client().list_until_served(STORE_BUCKET, "").len() as u64 == contents(&node, "OSS")
    });
    eventually("the shelf holds what metadata knows, and nothing else", PATIENCE, || {
        files(&shelf).len() as u64 == contents(&node, "SHELF")
    });
    for tier in ["OSS", "SHELF"] {
        node.cli(&["tier", "verify", tier, "--all"]);
    }
    // Without the objects nothing is left.
    for writer in &writers {
        for key in writer.model.existing() {
            assert_eq!(writer.client.delete_until_served(BUCKET, &key).status, 204);
        }
    }
    eventually("both tiers are empty", PATIENCE, || {
        store.client().list_until_served(STORE_BUCKET, "").is_empty() && files(&shelf).is_empty()
    });
    assert_eq!(node.corruption_found(), 0.0);
}

#[test]
fn tier_that_is_down_is_503_for_cold_objects_and_nothing_for_others() {
    let mut store = store();
    let node = Node::start_with(&FAST);
    let client = node.client();
    client.create_bucket(BUCKET);
    add_oss(&node, "OSS", &store);
    let body = content::bytes(1, 3 << 20);
    assert_eq!(put(&client, "cold", "OSS", &body).unwrap().status, 200);
    settle(&node, "OSS");
    assert_eq!(contents(&node, "OSS"), 1);
    // The class was visible before the move, and is after it.
    assert_eq!(head(&client, "cold").header("x-amz-storage-class"), Some("OSS"));

    store.kill();
    assert_eq!(put(&client, "waits", "OSS", &body).unwrap().status, 200, "a write needs no tier");
    assert_eq!(client.get(BUCKET, "waits").unwrap().body, body, "what was not moved yet is here");
    let refused = client.get(BUCKET, "cold").unwrap();
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    assert_eq!(head(&client, "cold").status, 200, "the head needs no tier");
    eventually("the tier is told to be down", PATIENCE, || status(&node, "OSS")["state"] != "up");

    store.restart();
    let back = client.get_until_served(BUCKET, "cold");
    assert_eq!((back.status, back.body == body), (200, true));
    eventually("the move that waited is done", PATIENCE, || contents(&node, "OSS") == 2);
    assert_eq!(client.get(BUCKET, "waits").unwrap().body, body);
}

#[test]
fn damage_in_a_tier_is_found_reported_and_never_served() {
    let node = Node::start_with(&FAST);
    let client = node.client();
    client.create_bucket(BUCKET);
    let shelf = add_directory(&node, "SHELF");
    let body = content::bytes(2, 2 << 20);
    assert_eq!(put(&client, "k", "SHELF", &body).unwrap().status, 200);
    settle(&node, "SHELF");
    let (path, _) = files(&shelf).pop_first().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1_500_000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    // What is whole is served, what is not is not, not even in part.
    assert_eq!(range(&client, "k", "bytes=0-999").body, body[..1000]);
    assert_eq!(range(&client, "k", "bytes=1500000-1500000").status, 500);
    match client.get(BUCKET, "k") {
        Ok(response) => assert_ne!(response.status, 200),
        Err(error) => assert!(is_broken(&error), "the connection is cut short, and not: {error}"),
    }
    assert!(node.corruption_found() > 0.0);
    let verified = node.try_cli(&["tier", "verify", "SHELF", "--all"]);
    assert_eq!(verified.status.code(), Some(1), "{}", String::from_utf8_lossy(&verified.stdout));
    bytes[1_500_000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    node.cli(&["tier", "verify", "SHELF", "--all"]);
    assert_eq!(client.get(BUCKET, "k").unwrap().body, body);
}

#[test]
fn large_object_goes_out_and_comes_back_with_bounded_memory() {
    let store = store();
    let node = Node::start_with(&FAST);
    let client = node.client();
    client.create_bucket(BUCKET);
    add_oss(&node, "OSS", &store);
    let size = (parameter("HOLDFAST_TEST_COLD_MIB", 48) as usize) << 20;
    let body = content::bytes(5, size);
    assert_eq!(put(&client, "large", "OSS", &body).unwrap().status, 200);
    eventually("the object is in the tier", PATIENCE, || contents(&node, "OSS") == 1);
    settle(&node, "OSS");
    let got = client.get(BUCKET, "large").unwrap();
    assert!(got.status == 200 && got.body == body, "{}", got.status);
    for (from, to) in [(0, 0), (1 << 20, (9 << 20) + 17), (size - 1, size - 1), (131_071, 131_072)] {
        let part = range(&client, "large", &format!("bytes={from}-{to}"));
        assert_eq!(part.status, 206);
        assert!(part.body == body[from..=to], "{from}-{to}");
    }
    // Back, for a day, and back for good.
    assert_eq!(restore(&client, "large", 1), 202);
    eventually("the object is restored", PATIENCE, || {
        head(&client, "large").header("x-amz-restore").is_some_and(|text| text.contains("ongoing-request=\"false\""))
    });
    assert_eq!(restore(&client, "large", 2), 200);
    assert_eq!(head(&client, "large").header("x-amz-storage-class"), Some("OSS"));
    eventually("the tier is empty while the object is here", PATIENCE, || {
        store.client().list_until_served(STORE_BUCKET, "").is_empty()
    });
    node.cli(&["tier", "recall", &format!("{BUCKET}/large")]);
    eventually("the object is STANDARD", PATIENCE, || head(&client, "large").header("x-amz-storage-class").is_none());
    let got = client.get(BUCKET, "large").unwrap();
    assert!(got.status == 200 && got.body == body, "{}", got.status);
}

#[test]
fn cluster_moves_objects_to_fastdfs_and_reads_them_through_any_node_while_movers_die() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let storages = DoubleConfig { trackers: 2, storages_a_group: 2, ..DoubleConfig::default() };
    let double = runtime.block_on(Double::start(storages));
    let mut cluster = Cluster::start_with(3, Options { environment: FAST.to_vec(), ..Options::default() });
    let config = double.config();
    let arguments = fastdfs_arguments("FASTDFS", &config.trackers, &config.address_map);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    cluster.cli(0, &arguments);
    cluster.client(0).create_bucket(BUCKET);
    // Through another node than the one that was told of the tier.
    let mut bodies = BTreeMap::new();
    for n in 0..24_u64 {
        let (key, body) = (format!("k{n}"), content::bytes(n, (n as usize + 1) * 40_000));
        put_until_served(&cluster.client(n as usize % 3), &key, "FASTDFS", &body);
        bodies.insert(key, body);
        if n == 12 {
            cluster.members[2].node.kill();
            cluster.members[2].node.restart();
        }
    }
    cluster.members[1].node.kill();
    eventually("all objects are in FastDFS though a node is gone", PATIENCE, || {
        contents(&cluster.members[0].node, "FASTDFS") == 24
    });
    cluster.members[1].node.restart();
    for at in 0..3 {
        for (key, body) in &bodies {
            let got = cluster.client(at).get_until_served(BUCKET, key);
            assert!(got.status == 200 && &got.body == body, "{key} through node {at}: {} {}", got.status, got.code());
        }
    }
    // What the movers that died had begun goes, too: a piece has its bytes in one file, and its name in an empty one.
    let files = |empty: bool| {
        [0, 1].map(|storage| double.files(storage).iter().filter(|(_, bytes)| (*bytes == 0) == empty).count())
    };
    eventually("no other bytes are on the storages than the objects", PATIENCE, || files(false) == [24, 24]);
    settle(&cluster.members[0].node, "FASTDFS");
    // FastDFS gives names and cannot be listed: one that a mover got and took to its grave stays, without any bytes. So
    // does what a mover had begun that lost its session on a busy machine.
    eventually("both storages have the same names", PATIENCE, || files(true)[0] == files(true)[1]);
    let names_lost = files(true)[0] - 24;
    assert!(names_lost <= bodies.len(), "{:?}", double.files(0));
    println!("{names_lost} names lost");
    // Half of them go, and their files with them, on both storages.
    let (gone, kept): (Vec<_>, Vec<_>) = bodies.iter().enumerate().partition(|(n, _)| n % 2 == 0);
    for (_, (key, _)) in gone {
        assert_eq!(cluster.client(1).delete_until_served(BUCKET, key).status, 204);
    }
    eventually("the files of what was deleted are gone", PATIENCE, || {
        let names = files(true);
        files(false) == [12, 12] && names[0] == names[1] && (12..=12 + names_lost).contains(&names[0])
    });
    // One storage loses its disk: the other has the rest.
    double.wipe(0);
    for (_, (key, body)) in kept {
        let got = cluster.client(0).get_until_served(BUCKET, key);
        assert!(got.status == 200 && &got.body == body, "{key}: {} {}", got.status, got.code());
    }
    assert!(!double.saw_pipelining());
}
