//! Nodes whose time is not that of the others: one that stood still in the middle of uploads while its shards moved on,
//! and clocks that are an hour apart.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io;
use std::time::{Duration, Instant};

use holdfast_cluster_tests::client::{Client, Connection, Payload, Request, Response};
use holdfast_cluster_tests::cluster::{Cluster, HEAL, Options};
use holdfast_cluster_tests::content;
use holdfast_cluster_tests::workload::{BUCKET, Workload};
use holdfast_cluster_tests::{eventually, seed, until_some};
use rustix::process::Signal;
use serde_json::Value;
use time::OffsetDateTime;

/// The bucket of uploads that stop half way.
const HALF: &str = "half";
/// A chunk is full at this size, and durable on its replicas before the object is whole.
const CHUNK: usize = 16 << 20;
/// What of an upload is sent last: it fits into the buffers of a socket that nobody reads.
const REST: usize = 64 << 10;
const HOUR: i64 = 3600;
/// Time for the first chunks of two uploads to be on each replica, before they are begun anew.
const ATTEMPT: Duration = Duration::from_secs(45);

/// An upload that is sent in two parts.
struct Upload {
    key: &'static str,
    body: Vec<u8>,
    connection: Connection,
}

impl Upload {
    fn begin(client: &Client, key: &'static str, size: usize) -> io::Result<Self> {
        let body = content::bytes(size as u64, size);
        let (path, length) = (format!("/{HALF}/{key}"), size.to_string());
        let headers = [("content-length", length.as_str())];
        let request = Request { method: "PUT", path: &path, headers: &headers, ..Request::default() };
        let head = client.head(&request, Payload::Hash(&body), OffsetDateTime::now_utc());
        let mut connection = client.connect()?;
        connection.write(head.as_bytes())?;
        connection.write(&body[..size - REST])?;
        Ok(Self { key, body, connection })
    }

    /// The same by a node that may have lost its session for a moment, as on a busy machine any may.
    fn begin_until_taken(client: &Client, key: &'static str, size: usize) -> Self {
        until_some("an upload is taken", HEAL, || {
            Self::begin(client, key, size).ok().filter(|upload| !upload.is_over())
        })
    }

    /// Whether there is an answer already, or the connection is at its end.
    fn is_over(&self) -> bool {
        let stream = self.connection.stream();
        stream.set_nonblocking(true).unwrap();
        let is_open = stream.peek(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        stream.set_nonblocking(false).unwrap();
        !is_open
    }

    fn send_rest(&mut self) -> io::Result<()> {
        self.connection.write(&self.body[self.body.len() - REST..])
    }

    /// The write may be answered by an error or by the end of the connection, never by success.
    fn is_refused(&mut self) {
        match self.connection.read_response("PUT") {
            Ok(Response { status, body, .. }) => {
                let text = String::from_utf8_lossy(&body);
                assert!(status >= 400, "the write of {} was acknowledged with {status}: {text}", self.key);
                println!("{}: {status} {text}", self.key);
            }
            Err(error) => println!("{}: {error}", self.key),
        }
    }
}

fn shards(cluster: &Cluster) -> Vec<Value> {
    cluster.cli(0, &["shard", "list"]).as_array().unwrap().clone()
}

fn is_member(shard: &Value, node: &str) -> bool {
    shard["replicas"].as_array().unwrap().iter().any(|replica| replica["node"] == node && replica["role"] == "member")
}

fn chunks_written(cluster: &Cluster, at: usize) -> f64 {
    cluster.members[at].node.metric("holdfast_storage_chunks_written_total", &[]).unwrap().unwrap_or(0.0)
}

/// Two uploads through a node whose first chunk is durable on each of these replicas. One that has lost its session for
/// a moment misses it, which no repair makes good before the object is whole: then they are begun anew.
fn first_chunks_everywhere(cluster: &Cluster, through: usize, replicas: [usize; 3]) -> [Upload; 2] {
    let client = cluster.client(through);
    until_some("the first chunks are durable on each replica", HEAL, || {
        let written = replicas.map(|at| chunks_written(cluster, at));
        let begin = |key| Upload::begin(&client, key, CHUNK + REST);
        let (Ok(early), Ok(late)) = (begin("early"), begin("late")) else { return None };
        let since = Instant::now();
        while !replicas.iter().zip(written).all(|(at, before)| chunks_written(cluster, *at) >= before + 2.0) {
            if early.is_over() || late.is_over() || since.elapsed() > ATTEMPT {
                return None;
            }
            // Metrics change a moment later.
            std::thread::sleep(Duration::from_millis(20));
        }
        Some([early, late])
    })
}

/// What every node says about a key.
fn on_every_node(cluster: &Cluster, key: &str, expected: Option<&[u8]>) {
    for at in 0..cluster.members.len() {
        let response = until_some("a definite answer", HEAL, || {
            cluster.client(at).get(HALF, key).ok().filter(|response| response.status < 500)
        });
        match expected {
            Some(bytes) => {
                assert!(response.status == 200 && response.body == bytes, "{key} on node {at} is another one")
            }
            None => assert_eq!(response.code(), "NoSuchKey", "{key} on node {at}: {}", response.status),
        }
        let mut listed = Vec::new();
        eventually("a definite listing", HEAL, || cluster.client(at).list(HALF, key).map(|keys| listed = keys).is_ok());
        assert_eq!(listed.len(), usize::from(expected.is_some()), "{key} in the list of node {at}");
    }
}

/// The coordinator stops in the middle of uploads. All its shards go to other nodes; then it goes on.
fn paused_coordinator(cluster: &mut Cluster) {
    const PAUSED: usize = 2;
    let before = shards(cluster);
    let id = cluster.members[PAUSED].id.clone();
    assert!(before.iter().all(|shard| is_member(shard, &id)), "each shard has the node that is going to stop");
    let spare = cluster.add_node();

    // Whose first chunk is durable everywhere, and those of which nothing is.
    let [mut early, mut late] = first_chunks_everywhere(cluster, PAUSED, [0, 1, PAUSED]);
    let client = cluster.client(PAUSED);
    let mut half = Upload::begin_until_taken(&client, "half", 2 << 20);
    let mut overtaken = Upload::begin_until_taken(&client, "overtaken", 2 << 20);

    cluster.members[PAUSED].node.signal(Signal::STOP);
    cluster.assign_and_apply();
    eventually("every shard left the node that stands still", HEAL, || {
        shards(cluster).iter().zip(&before).all(|(now, before)| {
            !is_member(now, &id) && now["epoch"].as_u64().unwrap() > before["epoch"].as_u64().unwrap()
        })
    });
    let newer = content::bytes(7, 100_000);
    let put = cluster.client(spare).put_until_served(HALF, "overtaken", &newer);
    assert_eq!(put.status, 200, "{}", put.text());
    early.send_rest().unwrap();
    half.send_rest().unwrap();

    cluster.members[PAUSED].node.signal(Signal::CONT);
    early.is_refused();
    half.is_refused();
    // Not even once the node belongs again.
    eventually("the node is back", HEAL, || {
        cluster.status(PAUSED).is_some_and(|status| status["session"] == "connected")
            && cluster.status(0).is_some_and(|status| {
                status["nodes"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|node| node["id"] == id.as_str() && node["state"] == "ready")
            })
    });
    for upload in [&mut late, &mut overtaken] {
        // The node may have closed the connection when it lost its session.
        if upload.send_rest().is_ok() {
            upload.is_refused();
        }
    }
    for key in ["early", "half", "late"] {
        on_every_node(cluster, key, None);
    }
    on_every_node(cluster, "overtaken", Some(&newer));
    cluster.wait_until_healthy("the node that stood still is back", HEAL);
}

/// Two nodes, one of them the controller, have clocks an hour from everybody else's.
fn clocks_apart(cluster: &mut Cluster) {
    const AHEAD: usize = 1;
    const BEHIND: usize = 2;
    for (at, seconds) in [(AHEAD, HOUR), (BEHIND, -HOUR)] {
        cluster.members[at].node.stop();
        cluster.members[at].node.set_clock(seconds);
        cluster.members[at].node.restart();
    }
    // The others stand at the end of the queue then.
    for at in [0, 3] {
        cluster.members[at].node.stop();
        cluster.members[at].node.restart();
    }
    let load = Workload::new(seed("clocks an hour apart"), cluster.addresses());
    for (at, seconds) in [(AHEAD, HOUR), (BEHIND, -HOUR)] {
        load.set_clock(cluster.members[at].node.s3(), time::Duration::seconds(seconds));
    }
    load.run(|| {
        load.make_progress("clocks an hour apart", 100, HEAL);
        // One that lost its session on a busy machine stands at the end of the queue, too.
        eventually("the controller has a wrong clock", HEAL, || {
            let controller = cluster.controller();
            let is_wrong = [AHEAD, BEHIND].contains(&controller);
            if !is_wrong {
                cluster.members[controller].node.stop();
                cluster.members[controller].node.restart();
            }
            is_wrong
        });
        // A token of a node whose clock is ahead, for one whose clock is behind.
        let joined = cluster.add_node_by(AHEAD, |node| node.set_clock(-HOUR));
        load.set_clock(cluster.members[joined].node.s3(), time::Duration::seconds(-HOUR));
        cluster.assign_and_apply();
        load.add_node(cluster.members[joined].node.s3());
        load.make_progress("one more node", 60, HEAL);
        cluster.wait_until_healthy("clocks an hour apart", HEAL);
    });
    load.verify();

    // Each node judges signatures by its own clock, and says what is wrong.
    for at in 0..cluster.members.len() {
        let response = cluster.client(at).get_until_served(HALF, "overtaken");
        let (status, code) = if [0, 3].contains(&at) { (200, "") } else { (403, "RequestTimeTooSkewed") };
        assert_eq!((response.status, response.code().as_str()), (status, code), "{}", response.text());
    }
    let refused = (0..5).map(|at| cluster.members[at].node.metric("holdfast_peer_handshake_failures_total", &[]));
    println!("handshakes refused on each node: {:?}", refused.map(Result::unwrap).collect::<Vec<_>>());
    eventually("nothing is wrong", HEAL, || {
        cluster.status(0).is_some_and(|status| status["reasons"].as_array().unwrap().is_empty())
    });
}

#[test]
fn writes_of_a_node_that_stood_still_are_refused_and_wrong_clocks_break_nothing() {
    // Nothing but the fence refuses: chunks may take long, and what nobody refers to yet is left alone.
    let environment = vec![("HOLDFAST_LIMITS_CHUNK_TIMEOUT", "5 min"), ("HOLDFAST_CLEANUP_ORPHAN_AGE", "10 min")];
    let mut cluster = Cluster::start_with(3, Options { environment, ..Options::default() });
    cluster.client(0).create_bucket(BUCKET);
    cluster.client(0).create_bucket(HALF);
    let begin = Instant::now();
    paused_coordinator(&mut cluster);
    println!("paused coordinator: {:?}", begin.elapsed());
    let begin = Instant::now();
    clocks_apart(&mut cluster);
    println!("clocks: {:?}", begin.elapsed());
}
