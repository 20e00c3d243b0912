//! kill -9 in a loop under mixed load: nothing acknowledged is lost, nothing unfinished is seen.
//!
//! Each writer owns its keys, so its model of them is exact: puts of one block to several chunks, overwrites, deletes,
//! copies, multipart uploads, uploads that stop in the middle. When the node is killed, each writer has at most one
//! request whose outcome it does not know. After the restart everything is read back byte for byte and listed.
//!
//! `HOLDFAST_TEST_CRASH_ROUNDS` (default 4) and `HOLDFAST_TEST_SEED` may be set.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use holdfast_cluster_tests::client::{Client, Connection, Payload, Request, Response, elements};
use holdfast_cluster_tests::content::Random;
use holdfast_cluster_tests::model::{Model, Version};
use holdfast_cluster_tests::node::Node;
use holdfast_cluster_tests::{parameter, seed};
use time::OffsetDateTime;

const WRITERS: u64 = 8;
/// Few keys, so that overwrites and deletes meet what is there.
const KEYS: u64 = 12;
const BUCKET: &str = "crash";
const PART_BYTES: usize = 5 << 20;

struct Writer {
    id: u64,
    client: Client,
    connection: Option<Connection>,
    random: Random,
    model: Model,
    acknowledged: Arc<AtomicU64>,
}

impl Writer {
    /// Works until the node is gone or `stop` is set.
    fn run(&mut self, stop: &AtomicBool) {
        self.connection = None;
        while !stop.load(Ordering::Relaxed) {
            if self.step().is_err() {
                return;
            }
        }
    }

    fn send(&mut self, request: &Request<'_>) -> io::Result<Response> {
        if self.connection.is_none() {
            self.connection = Some(self.client.connect()?);
        }
        let response = self.client.send_on(self.connection.as_mut().unwrap(), request);
        if response.as_ref().map_or(true, |response| response.header("connection") == Some("close")) {
            self.connection = None;
        }
        response
    }

    fn version(&mut self) -> Version {
        let len = match self.random.below(20) {
            0 => 0,
            1..=11 => self.random.below(10_000),
            12..=16 => self.random.below(600_000),
            17 | 18 => self.random.below(5 << 20),
            // Beyond one chunk.
            _ => (16 << 20) + self.random.below(3 << 20),
        };
        Version { seed: self.random.next_u64(), len: len as usize }
    }

    fn key(&mut self) -> String {
        format!("w{}/{}", self.id, self.random.below(KEYS))
    }

    /// One action. An error means that the node is gone.
    fn step(&mut self) -> io::Result<()> {
        let key = self.key();
        match self.random.below(100) {
            0..=54 => self.put(&key),
            55..=69 => self.delete(&key),
            70..=79 => self.read(&key),
            80..=87 => self.copy(&key),
            88..=91 => self.multipart(&key),
            92..=95 => self.stop_in_the_middle(&key),
            _ => self.unfinished_multipart(&key),
        }
    }

    /// Sends a change and tells the model what is known of it.
    fn change(&mut self, key: &str, version: Option<Version>, request: &Request<'_>) -> io::Result<()> {
        let response = self.send(request);
        if self.model.told(key, version, &response) {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        let response = response?;
        assert!(matches!(response.status, 200 | 204 | 503), "{} {key}: {}", request.method, response.text());
        Ok(())
    }

    fn put(&mut self, key: &str) -> io::Result<()> {
        let version = self.version();
        let (path, body) = (format!("/{BUCKET}/{key}"), version.bytes());
        let request = Request { method: "PUT", path: &path, body: &body, ..Request::default() };
        self.change(key, Some(version), &request)
    }

    fn delete(&mut self, key: &str) -> io::Result<()> {
        let path = format!("/{BUCKET}/{key}");
        self.change(key, None, &Request { method: "DELETE", path: &path, ..Request::default() })
    }

    fn read(&mut self, key: &str) -> io::Result<()> {
        let path = format!("/{BUCKET}/{key}");
        let response = self.send(&Request { method: "GET", path: &path, ..Request::default() })?;
        let got = match response.status {
            200 => Some(response.body.as_slice()),
            404 => None,
            503 => return Ok(()),
            other => panic!("GET {key}: {other} {}", response.text()),
        };
        self.model.observe(key, got).unwrap();
        Ok(())
    }

    /// A server-side copy of a new object onto `key`.
    fn copy(&mut self, key: &str) -> io::Result<()> {
        let source = format!("w{}/source", self.id);
        self.put(&source)?;
        let path = format!("/{BUCKET}/{source}");
        let got = self.send(&Request { method: "GET", path: &path, ..Request::default() })?;
        let Some(version) = self.settled(&source, &got) else { return Ok(()) };
        let (path, from) = (format!("/{BUCKET}/{key}"), format!("/{BUCKET}/{source}"));
        let headers = [("x-amz-copy-source", from.as_str())];
        let request = Request { method: "PUT", path: &path, headers: &headers, ..Request::default() };
        self.change(key, Some(version), &request)
    }

    /// What `key` holds now, told by an answer to GET.
    fn settled(&mut self, key: &str, response: &Response) -> Option<Version> {
        if response.status != 200 {
            return None;
        }
        self.model.observe(key, Some(&response.body)).unwrap();
        self.model.current(key)
    }

    fn begin_multipart(&mut self, key: &str) -> io::Result<Option<String>> {
        let path = format!("/{BUCKET}/{key}");
        let request = Request { method: "POST", path: &path, query: &[("uploads", "")], ..Request::default() };
        Ok(self.send(&request)?.element("UploadId"))
    }

    fn part(&mut self, key: &str, upload: &str, number: &str, body: &[u8]) -> io::Result<Option<String>> {
        let path = format!("/{BUCKET}/{key}");
        let query = [("partNumber", number), ("uploadId", upload)];
        let response = self.send(&Request { method: "PUT", path: &path, query: &query, body, ..Request::default() })?;
        Ok(response.header("etag").filter(|_| response.status == 200).map(str::to_owned))
    }

    fn multipart(&mut self, key: &str) -> io::Result<()> {
        let version = Version { seed: self.random.next_u64(), len: PART_BYTES + self.random.below(300_000) as usize };
        let bytes = version.bytes();
        let Some(upload) = self.begin_multipart(key)? else { return Ok(()) };
        let Some(first) = self.part(key, &upload, "1", &bytes[..PART_BYTES])? else { return Ok(()) };
        let Some(second) = self.part(key, &upload, "2", &bytes[PART_BYTES..])? else { return Ok(()) };
        let body = format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{first}</ETag></Part>\
             <Part><PartNumber>2</PartNumber><ETag>{second}</ETag></Part></CompleteMultipartUpload>"
        );
        let path = format!("/{BUCKET}/{key}");
        let query = [("uploadId", upload.as_str())];
        let request =
            Request { method: "POST", path: &path, query: &query, body: body.as_bytes(), ..Request::default() };
        self.change(key, Some(version), &request)
    }

    /// A client that goes away half way through its body: the key keeps what it had.
    fn stop_in_the_middle(&mut self, key: &str) -> io::Result<()> {
        let body = self.version().bytes();
        let path = format!("/{BUCKET}/{key}");
        let length = (body.len() + 1).to_string();
        let headers = [("content-length", length.as_str())];
        let request = Request { method: "PUT", path: &path, headers: &headers, ..Request::default() };
        let head = self.client.head(&request, Payload::Literal("UNSIGNED-PAYLOAD"), OffsetDateTime::now_utc());
        let mut connection = self.client.connect()?;
        connection.write(head.as_bytes())?;
        // The server may close first, when it is being killed.
        let _ = connection.write(&body);
        drop(connection);
        self.read(key)
    }

    /// Parts that are never completed show in no listing of objects.
    fn unfinished_multipart(&mut self, key: &str) -> io::Result<()> {
        let Some(upload) = self.begin_multipart(key)? else { return Ok(()) };
        let body = self.version().bytes();
        self.part(key, &upload, "7", &body)?;
        self.read(key)
    }

    /// After a restart: every key reads as the model allows, and the listing names exactly those that exist.
    fn verify(&mut self) {
        self.connection = None;
        self.model.observe_all(&self.client, BUCKET);
        let listed = self.client.list_until_served(BUCKET, &format!("w{}/", self.id));
        assert_eq!(listed, self.model.existing(), "the listing and the objects differ");
    }
}

#[test]
fn kill_9_under_mixed_load_loses_nothing_acknowledged_and_shows_nothing_unfinished() {
    let seed = seed("crash");
    let mut random = Random::new(seed);
    let rounds = parameter("HOLDFAST_TEST_CRASH_ROUNDS", 4);
    let mut node = Node::start();
    node.client().create_bucket(BUCKET);
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|id| Writer {
            id,
            client: node.client(),
            connection: None,
            random: Random::new(seed ^ (id << 40)),
            model: Model::default(),
            acknowledged: acknowledged.clone(),
        })
        .collect();
    for round in 0..rounds {
        let before = acknowledged.load(Ordering::Relaxed);
        let stop = AtomicBool::new(false);
        let kill_at = before + 30 + random.below(400);
        std::thread::scope(|scope| {
            let running: Vec<_> = writers.iter_mut().map(|writer| scope.spawn(|| writer.run(&stop))).collect();
            // The moment of the kill follows from progress, so that slow machines kill as late as fast ones.
            let begin = std::time::Instant::now();
            while acknowledged.load(Ordering::Relaxed) < kill_at
                && begin.elapsed() < Duration::from_secs(60)
                && !running.iter().all(std::thread::ScopedJoinHandle::is_finished)
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            node.kill();
            stop.store(true, Ordering::Relaxed);
        });
        node.restart();
        for writer in &mut writers {
            // The port is kept where it is free; if it was taken meanwhile, the node has another.
            writer.client = node.client();
        }
        std::thread::scope(|scope| {
            for writer in &mut writers {
                scope.spawn(|| writer.verify());
            }
        });
        let done = acknowledged.load(Ordering::Relaxed) - before;
        println!("round {round}: {done} changes acknowledged before the kill, all of them found");
        assert!(done > 0, "the node acknowledged nothing");
    }
    abort_everything_and_see_it_gone(&node);
}

/// Uploads that crashes left are listed and can be aborted; afterwards none is left.
fn abort_everything_and_see_it_gone(node: &Node) {
    let client = node.client();
    let path = format!("/{BUCKET}");
    let list = || {
        let page = client
            .send(&Request { method: "GET", path: &path, query: &[("uploads", "")], ..Request::default() })
            .unwrap();
        assert_eq!(page.status, 200, "{}", page.text());
        let text = page.text();
        let (keys, ids) = (elements(&text, "Key"), elements(&text, "UploadId"));
        assert_eq!(keys.len(), ids.len());
        keys.into_iter().zip(ids).collect::<Vec<_>>()
    };
    loop {
        let page = list();
        if page.is_empty() {
            return;
        }
        for (key, id) in page {
            let path = format!("/{BUCKET}/{key}");
            let query = [("uploadId", id.as_str())];
            let response =
                client.send(&Request { method: "DELETE", path: &path, query: &query, ..Request::default() }).unwrap();
            assert_eq!(response.status, 204, "{}", response.text());
        }
    }
}
