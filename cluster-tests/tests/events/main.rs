//! Events on a real Apache RocketMQ, read by its own Java client: every acknowledged change is told, in the order of
//! its object, whatever dies in between.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use holdfast_cluster_tests::client::{Client, Request};
use holdfast_cluster_tests::cluster::{Cluster, Options};
use holdfast_cluster_tests::node::Node;
use holdfast_cluster_tests::services::rocketmq::{JavaConsumer, RocketMq, SECRET_KEY};
use holdfast_cluster_tests::told::{
    BUCKET, PATIENCE, Writers, environment, lag, start_on, try_lag, wait_until_published,
};
use holdfast_cluster_tests::{eventually, parameter, until_some};
use rustix::process::Signal;
use serde_json::Value;

mod apart;

/// One name server and broker for all tests that leave them alone, each with topics of its own. Whoever kills or pauses
/// the broker has one of its own.
static SHARED: LazyLock<RocketMq> = LazyLock::new(RocketMq::start);

/// How many events of objects the broker took from a node.
fn published(node: &Node) -> f64 {
    node.metric("holdfast_events_published_total", &["topic=\"objects\""]).unwrap().unwrap_or(0.0)
}

/// What the broker has of objects. An event is there twice when the broker took it and the node did not hear of that.
fn kept(node: &Node) -> Vec<Value> {
    let tail = node.cli(&["events", "tail", "--oldest", "--idle", "1 s", "--json"]);
    tail.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// All that was told of objects: nothing waits any more, and these are `count` events.
#[track_caller]
fn all_told(node: &Node, count: usize) -> Vec<Value> {
    wait_until_published(node);
    let mut told = Vec::new();
    eventually("all that was published is read", PATIENCE, || {
        let mut seen = HashSet::new();
        told = kept(node);
        told.retain(|event| seen.insert(event["id"].to_string()));
        told.len() >= count
    });
    assert_eq!(told.len(), count, "{told:#?}\n{:#}", lag(node));
    told
}

#[test]
fn every_acknowledged_change_is_told_in_order_whatever_dies() {
    let mut service = RocketMq::start();
    let dir = tempfile::tempdir().unwrap();
    let environment = environment(&service, dir.path(), "cluster", SECRET_KEY);
    // For as long as the process lives.
    let environment = environment.into_iter().map(|(name, value)| (name, &*String::leak(value))).collect();
    let mut cluster = Cluster::start_with(3, Options { environment, direct: true, ..Options::default() });
    cluster.client(0).create_bucket(BUCKET);
    let clients: Vec<Client> = (0..3).map(|at| cluster.client(at)).collect();
    let writers = Writers::default();
    let consumer = writers.run(&clients, || {
        writers.make_progress("before any fault", 100);

        service.kill_broker();
        writers.make_progress("writes go on without a broker", 100);
        let taken = |cluster: &Cluster| cluster.members.iter().map(|member| published(&member.node)).sum::<f64>();
        let before = taken(&cluster);
        service.restart_broker();
        writers.make_progress("the broker is back", 50);
        eventually("it is told again", PATIENCE, || taken(&cluster) > before);
        let consumer = JavaConsumer::start(&service, "cluster-objects", "accounting");

        // In the middle of what it commits and publishes.
        cluster.members[1].node.kill();
        writers.make_progress("a node is killed", 50);
        cluster.members[1].node.restart();
        writers.make_progress("the node is back", 50);

        // Whoever has partitions goes on believing so when it wakes.
        let owner = until_some("some node publishes", PATIENCE, || {
            cluster.members.iter().position(|member| {
                let owned = member.node.metric("holdfast_events_partitions", &[]).unwrap().unwrap_or(0.0);
                owned > 0.0
            })
        });
        let (id, other) = (cluster.members[owner].id.clone(), (owner + 1) % cluster.members.len());
        cluster.members[owner].node.signal(Signal::STOP);
        eventually("its session is over", PATIENCE, || {
            let status = cluster.status(other).unwrap_or_default();
            let is_gone = |node: &Value| node["id"] == id.as_str() && node["state"] == "absent";
            status["nodes"].as_array().is_some_and(|nodes| nodes.iter().any(is_gone))
        });
        eventually("others have its partitions", PATIENCE, || {
            let lag = try_lag(&cluster.members[other].node).unwrap_or_default();
            let is_others = |part: &Value| part["owner"].as_str().is_some_and(|owner| owner != id);
            lag["partitions"].as_array().is_some_and(|parts| parts.iter().all(is_others))
        });
        writers.make_progress("an owner of partitions is paused beyond its session", 50);
        cluster.members[owner].node.signal(Signal::CONT);
        writers.make_progress("it goes on", 50);

        service.signal_broker(Signal::STOP);
        writers.make_progress("the broker is paused", 50);
        service.signal_broker(Signal::CONT);
        writers.make_progress("the broker goes on", 50);
        consumer
    });
    wait_until_published(&cluster.members[0].node);
    writers.wait_until_all_is_told(&consumer);

    eventually("the nodes share the partitions", PATIENCE, || {
        let lag = try_lag(&cluster.members[0].node).unwrap_or_default();
        let owners: HashSet<&str> =
            lag["partitions"].as_array().into_iter().flatten().filter_map(|p| p["owner"].as_str()).collect();
        owners.len() > 1
    });
    // The same by the command line, which reads in nobody's name.
    let tail = cluster.members[1].node.cli(&["events", "tail", "--oldest", "--count", "20", "--json"]);
    assert_eq!(tail.lines().count(), 20, "{tail}");
}

/// The hour of the promise, in seconds: what must not grow with it is the memory, and what must is the outbox.
#[test]
fn broker_that_is_gone_under_load_costs_no_memory_and_no_event() {
    // Caches of metadata fill up in the first minute of writes, with a broker and without; 110 MiB were seen in 100 s,
    // of which the last 40 added nothing.
    const MEMORY_GROWTH_MAX: u64 = 160 << 20;

    // An hour by hand, where that is wanted.
    let load = Duration::from_secs(parameter("HOLDFAST_TEST_OUTAGE_SECONDS", 10));
    let mut service = RocketMq::start();
    let dir = tempfile::tempdir().unwrap();
    let node = start_on(&dir.path().join("data"), &environment(&service, dir.path(), "outage", SECRET_KEY));
    node.client().create_bucket(BUCKET);
    let writers = Writers::default();
    writers.run(&[node.client()], || {
        writers.make_progress("with a broker", 500);
        service.kill_broker();
        // What the first of a kind takes is taken.
        writers.make_progress("without a broker", 1_000);
        let (before, already, begun) = (node.memory().1, writers.acknowledged(), Instant::now());
        let mut peak = before;
        let changes = || writers.acknowledged() - already;
        // However long that takes on a busy machine.
        while begun.elapsed() < load || changes() < 500 {
            assert!(begun.elapsed() < load + PATIENCE, "writes do not go on: {} in {load:?}", changes());
            peak = peak.max(node.memory().1);
            // A sample now and then.
            std::thread::sleep(Duration::from_millis(50));
        }
        let changes = changes();
        println!(
            "{changes} changes without a broker, anonymous memory {} MiB and {} at most",
            before >> 20,
            peak >> 20
        );
        assert!(peak - before <= MEMORY_GROWTH_MAX, "it grew by {} MiB", (peak - before) >> 20);
        // Counted in each partition up to a number that this does not reach.
        assert!(lag(&node)["rows"].as_u64().unwrap() >= changes, "the outbox has less than was acknowledged");
        eventually("the error is shown", PATIENCE, || lag(&node)["bus_error"].is_string());
    });
    service.restart_broker();
    let consumer = JavaConsumer::start(&service, "outage-objects", "outage");
    wait_until_published(&node);
    writers.wait_until_all_is_told(&consumer);
}

#[test]
fn wrong_credentials_are_told_and_writes_go_on_until_they_are_right() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let node = start_on(&data, &environment(&SHARED, dir.path(), "credentials", "wrong"));
    let client = node.client();
    client.create_bucket(BUCKET);
    for n in 0..20 {
        assert_eq!(client.put(BUCKET, &format!("k{}", n % 3), b"x").unwrap().status, 200);
    }
    eventually("the error is shown", PATIENCE, || {
        let lag = lag(&node);
        lag["partitions"].as_array().unwrap().iter().any(|partition| partition["last_error"].is_string())
            && lag["bus_error"].as_str().is_some_and(|error| error.contains("events.secret_key_file"))
    });
    assert_eq!(lag(&node)["rows"], 20);
    eventually("the error is counted", PATIENCE, || {
        node.metric("holdfast_events_publish_failures_total", &["denied"]).unwrap().is_some()
    });
    drop(node);

    let node = start_on(&data, &environment(&SHARED, dir.path(), "credentials", SECRET_KEY));
    wait_until_published(&node);
    eventually("the error is gone", PATIENCE, || lag(&node)["bus_error"].is_null());
    let events = all_told(&node, 20);
    assert_eq!(events[0]["body"]["Records"][0]["s3"]["bucket"]["name"], BUCKET);

    // Published again, with the ids that they had.
    let replayed: Value = serde_json::from_str(
        &node.cli(&["events", "replay", "--last", "1h", "--bucket", BUCKET, "--prefix", "k1", "--json"]),
    )
    .unwrap();
    assert_eq!(replayed["events"], 7);
    wait_until_published(&node);
    eventually("what was published again is there", PATIENCE, || kept(&node).len() >= 27);
    assert_eq!(all_told(&node, 20).len(), 20);
}

#[test]
fn topic_that_is_missing_and_may_not_be_made_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let allowed = environment(&SHARED, dir.path(), "missing", SECRET_KEY);
    let mut forbidden = allowed.clone();
    forbidden.push(("HOLDFAST_EVENTS_CREATE_TOPICS", "false".into()));
    let node = start_on(&data, &forbidden);
    node.client().create_bucket(BUCKET);
    assert_eq!(node.client().put(BUCKET, "k", b"x").unwrap().status, 200);
    eventually("the error is shown", PATIENCE, || {
        let shown = lag(&node);
        let error = shown["bus_error"].as_str().unwrap_or_default();
        error.contains("missing-objects") && error.contains("events.create_topics")
    });
    assert_eq!(lag(&node)["rows"], 1);
    drop(node);
    let node = start_on(&data, &allowed);
    wait_until_published(&node);
}

#[test]
fn bucket_notification_configuration_chooses_what_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let node = start_on(&dir.path().join("data"), &environment(&SHARED, dir.path(), "chosen", SECRET_KEY));
    let client = node.client();
    client.create_bucket(BUCKET);
    let configure = |xml: &str| {
        let path = format!("/{BUCKET}");
        let query = [("notification", "")];
        client
            .send(&Request { method: "PUT", path: &path, query: &query, body: xml.as_bytes(), ..Request::default() })
            .unwrap()
    };
    let rule = |event: &str| {
        format!(
            "<NotificationConfiguration><TopicConfiguration><Id>pictures</Id><Topic>arn:aws:sns:::holdfast</Topic>\
             <Event>{event}</Event><Filter><S3Key><FilterRule><Name>prefix</Name><Value>in/</Value></FilterRule>\
             <FilterRule><Name>suffix</Name><Value>.jpg</Value></FilterRule></S3Key></Filter></TopicConfiguration>\
             </NotificationConfiguration>"
        )
    };
    assert_eq!(configure(&rule("s3:Nothing:*")).code(), "InvalidArgument");
    let answer = configure(&rule("s3:ObjectCreated:*"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let query = [("notification", "")];
    let read =
        client.send(&Request { method: "GET", path: &format!("/{BUCKET}"), query: &query, ..Request::default() });
    let read = read.unwrap().text();
    for part in ["<Id>pictures</Id>", "s3:ObjectCreated:*", "in/", ".jpg", "arn:aws:sns:::holdfast"] {
        assert!(read.contains(part), "{part} in {read}");
    }
    for key in ["in/a.jpg", "in/a.png", "out/a.jpg"] {
        assert_eq!(client.put(BUCKET, key, b"x").unwrap().status, 200);
    }
    client.delete(BUCKET, "in/a.jpg").unwrap();
    // Nothing of this bucket any more, then all of it.
    assert_eq!(configure("<NotificationConfiguration/>").status, 200);
    client.put(BUCKET, "in/b.jpg", b"x").unwrap();
    let everything = "<NotificationConfiguration><EventBridgeConfiguration/></NotificationConfiguration>";
    assert_eq!(configure(everything).status, 200);
    client.put(BUCKET, "last", b"x").unwrap();
    let told = all_told(&node, 2);
    let mut told: Vec<&str> = told.iter().map(|event| event["order_key"].as_str().unwrap()).collect();
    told.sort_unstable();
    assert_eq!(told, [format!("{BUCKET}/in/a.jpg"), format!("{BUCKET}/last")]);
}

#[test]
fn what_lifecycle_rules_delete_is_told_where_a_bucket_wants_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut environment = environment(&SHARED, dir.path(), "lifecycle", SECRET_KEY);
    environment.push(("HOLDFAST_LIFECYCLE_DAY", "3 s".into()));
    environment.push(("HOLDFAST_LIFECYCLE_INTERVAL", "500 ms".into()));
    let node = start_on(&dir.path().join("data"), &environment);
    let client = node.client();
    client.create_bucket(BUCKET);
    let configure = |subject: &str, xml: &str| {
        let (path, query) = (format!("/{BUCKET}"), [(subject, "")]);
        let request = Request { method: "PUT", path: &path, query: &query, body: xml.as_bytes(), ..Request::default() };
        let answer = client.send(&request).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    configure("versioning", "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>");
    configure(
        "notification",
        "<NotificationConfiguration><TopicConfiguration><Id>expired</Id><Topic>arn:aws:sns:::holdfast</Topic>\
         <Event>s3:LifecycleExpiration:*</Event></TopicConfiguration></NotificationConfiguration>",
    );
    for key in ["gone", "stays"] {
        assert_eq!(client.put(BUCKET, key, b"x").unwrap().status, 200);
    }
    configure(
        "lifecycle",
        "<LifecycleConfiguration><Rule><ID>a</ID><Status>Enabled</Status><Filter><Prefix>gone</Prefix></Filter>\
         <Expiration><Days>1</Days></Expiration><NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays>\
         </NoncurrentVersionExpiration></Rule></LifecycleConfiguration>",
    );
    eventually("all versions of the object are gone", PATIENCE, || {
        let (path, query) = (format!("/{BUCKET}"), [("versions", "")]);
        let listed = client.send(&Request { method: "GET", path: &path, query: &query, ..Request::default() });
        listed.is_ok_and(|listed| !listed.text().contains("<Key>gone</Key>"))
    });
    assert_eq!(client.get(BUCKET, "gone").unwrap().status, 404);
    assert_eq!(client.get(BUCKET, "stays").unwrap().status, 200);
    let told: Vec<(String, String)> = all_told(&node, 3)
        .iter()
        .map(|event| {
            let record = &event["body"]["Records"][0];
            assert_eq!(record["userIdentity"]["principalId"], "holdfast", "{record:#}");
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (text(&record["eventName"]), text(&record["s3"]["object"]["key"]))
        })
        .collect();
    let names = ["LifecycleExpiration:DeleteMarkerCreated", "LifecycleExpiration:Delete", "LifecycleExpiration:Delete"];
    assert_eq!(told, names.map(|name| (name.to_owned(), "gone".to_owned())));
    // Counted at the end of its pass.
    eventually("it is counted", PATIENCE, || {
        node.metric("holdfast_lifecycle_actions_total", &["remove_noncurrent", "done"]).unwrap() == Some(1.0)
    });
}
