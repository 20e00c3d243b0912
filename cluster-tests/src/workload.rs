//! Concurrent clients on all nodes of a cluster, whose every step goes into a history.
//!
//! Clients write, replace, create, delete, read and list a few keys at a time, which they share; when these have been
//! through enough, they go on to new ones, so that each key's history stays small enough to be searched. What is read
//! is compared byte by byte with what the write that it claims to be must have written.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Client, Connection, Request, Response, elements};
use crate::content::Random;
use crate::history::{Condition, Event, History, Op, Write, tag_of_etag};
use crate::node::{ACCESS_KEY, SECRET_KEY};

/// The bucket of the workload.
pub const BUCKET: &str = "history";
/// Clients at work at the same time.
const CLIENTS: u64 = 6;
/// Keys in use at the same time.
const KEYS: u64 = 5;
/// Operations on each of them before the next ones.
const OPERATIONS_A_KEY: u64 = 24;
/// A node that says nothing for so long is left; what was asked of it is unknown.
const PATIENCE: Duration = Duration::from_secs(12);
/// Time for a node to give a definite answer when all is well again.
const SETTLE: Duration = Duration::from_secs(120);

/// See the module's page.
#[derive(Debug)]
pub struct Workload {
    seed: u64,
    /// What happened.
    pub history: History,
    nodes: Mutex<Vec<SocketAddr>>,
    /// By how much the clocks of nodes are ahead, where they are.
    clocks: Mutex<BTreeMap<SocketAddr, time::Duration>>,
    operations: AtomicU64,
    writes: AtomicU64,
    acknowledged: AtomicU64,
    /// Answers by node, operation and status, for the report.
    answers: Mutex<BTreeMap<String, u64>>,
    /// What can have no excuse: wrong bytes, answers that no fault explains.
    wrong: Mutex<Vec<String>>,
    stop: AtomicBool,
    resting: AtomicBool,
}

/// Ends the clients also when what runs beside them panics.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Workload {
    /// A workload on nodes that serve S3 at these addresses; the bucket exists already.
    pub fn new(seed: u64, nodes: Vec<SocketAddr>) -> Self {
        Self {
            seed,
            history: History::default(),
            nodes: Mutex::new(nodes),
            clocks: Mutex::default(),
            operations: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            answers: Mutex::default(),
            wrong: Mutex::default(),
            stop: AtomicBool::new(false),
            resting: AtomicBool::new(false),
        }
    }

    /// Clients go to these nodes from now on.
    pub fn set_nodes(&self, addresses: Vec<SocketAddr>) {
        *self.nodes.lock().unwrap() = addresses;
    }

    /// Clients go to this node too from now on.
    pub fn add_node(&self, address: SocketAddr) {
        self.nodes.lock().unwrap().push(address);
    }

    /// Clients do not go to this node any more.
    pub fn remove_node(&self, address: SocketAddr) {
        self.nodes.lock().unwrap().retain(|have| *have != address);
    }

    /// Requests to this node are signed by a clock that is so much ahead from now on.
    pub fn set_clock(&self, address: SocketAddr, ahead: time::Duration) {
        self.clocks.lock().unwrap().insert(address, ahead);
    }

    /// Runs the clients while `faults` runs.
    pub fn run<R>(&self, faults: impl FnOnce() -> R) -> R {
        self.stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&self.stop);
            let run = self.operations.load(Ordering::Relaxed);
            for id in 0..CLIENTS {
                scope.spawn(move || {
                    let random = Random::new(self.seed ^ (id << 40) ^ (run << 8));
                    let mut client = Worker { load: self, id, random, node: None, tags: BTreeMap::new() };
                    while !self.stop.load(Ordering::Relaxed) {
                        if self.resting.load(Ordering::Relaxed) {
                            std::thread::sleep(Duration::from_millis(20));
                        } else {
                            client.step();
                        }
                    }
                });
            }
            faults()
        })
    }

    /// Lets clients rest after what each is at, or go on.
    pub fn rest(&self, rest: bool) {
        self.resting.store(rest, Ordering::Relaxed);
    }

    /// Changes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more changes were acknowledged.
    ///
    /// # Panics
    /// When they are not within `limit`; `name` says what goes on meanwhile.
    pub fn make_progress(&self, name: &str, changes: u64, limit: Duration) {
        let until = self.acknowledged() + changes;
        let begin = Instant::now();
        while self.acknowledged() < until {
            let missing = until - self.acknowledged();
            assert!(
                begin.elapsed() < limit,
                "{name}: {missing} of {changes} changes were not acknowledged within {limit:?}\n{}",
                self.report()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Reads every key and lists the bucket on every node, into the history, and checks all of it.
    ///
    /// # Panics
    /// When something was lost, changed or came back, or a node does not answer.
    pub fn verify(&self) {
        println!("{}", self.report());
        let nodes = self.nodes.lock().unwrap().clone();
        let keys: Vec<String> = self.history.by_key().into_keys().collect();
        std::thread::scope(|scope| {
            for (id, node) in nodes.iter().enumerate() {
                let keys = &keys;
                scope.spawn(move || {
                    let random = Random::new(0);
                    let mut reader =
                        Worker { load: self, id: 100 + id as u64, random, node: None, tags: BTreeMap::new() };
                    for key in keys {
                        reader.until_definite(*node, |reader| reader.get(key));
                    }
                    reader.until_definite(*node, |reader| reader.list(""));
                });
            }
        });
        let wrong = self.wrong.lock().unwrap();
        wrong.iter().take(20).for_each(|what| println!("wrong: {what}"));
        crate::checker::check(&self.history);
        assert!(wrong.is_empty(), "{} answers without excuse; they are above", wrong.len());
    }

    /// Answers counted by node, operation and status.
    pub fn report(&self) -> String {
        let answers = self.answers.lock().unwrap();
        let lines: Vec<String> = answers.iter().map(|(what, count)| format!("  {what}: {count}")).collect();
        format!("answers so far:\n{}", lines.join("\n"))
    }

    fn count(&self, node: SocketAddr, operation: &str, answer: &str) {
        *self.answers.lock().unwrap().entry(format!("{node} {operation} {answer}")).or_default() += 1;
    }

    fn is_wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }
}

struct Worker<'a> {
    load: &'a Workload,
    id: u64,
    random: Random,
    node: Option<(SocketAddr, Connection)>,
    /// What this client last knew of keys, for `If-Match`.
    tags: BTreeMap<String, String>,
}

/// What an answer says about an operation.
enum Answer {
    /// This, for certain.
    Is(Response),
    /// It may have happened, or may yet.
    Unknown(String),
    /// It never reached a node.
    NotSent,
}

impl Worker<'_> {
    fn step(&mut self) {
        let turn = self.load.operations.fetch_add(1, Ordering::Relaxed);
        let generation = turn / (KEYS * OPERATIONS_A_KEY);
        let prefix = format!("g{generation}/");
        let key = format!("{prefix}k{}", self.random.below(KEYS));
        if self.node.is_none() || self.random.chance(10) {
            self.choose_node();
        }
        let definite = match self.random.below(100) {
            0..=34 => self.put(&key, Condition::Always),
            35..=44 => self.put(&key, Condition::Absent),
            45..=54 => match self.tags.get(&key).and_then(|tag| tag_of_etag(tag)) {
                Some(tag) => self.put(&key, Condition::Tag(tag)),
                None => self.get(&key),
            },
            55..=64 => self.delete(&key),
            65..=95 => self.get(&key),
            _ => self.list(&prefix),
        };
        if !definite {
            self.node = None;
            // A node that refuses at once must not be asked a thousand times a second.
            std::thread::sleep(Duration::from_millis(20 + self.random.below(60)));
        }
    }

    /// Connects to a node at random; there may be none for now.
    fn choose_node(&mut self) {
        let nodes = self.load.nodes.lock().unwrap().clone();
        let node = nodes[self.random.below(nodes.len() as u64) as usize];
        self.connect(node);
    }

    fn connect(&mut self, node: SocketAddr) {
        let opened = Connection::open(node).and_then(|connection| {
            connection.stream().set_read_timeout(Some(PATIENCE))?;
            connection.stream().set_write_timeout(Some(PATIENCE))?;
            Ok(connection)
        });
        self.node = opened.ok().map(|connection| (node, connection));
    }

    fn until_definite(&mut self, node: SocketAddr, operation: impl Fn(&mut Self) -> bool) {
        let begin = Instant::now();
        loop {
            if self.node.is_none() {
                self.connect(node);
            }
            if operation(self) {
                return;
            }
            self.node = None;
            if begin.elapsed() > SETTLE {
                self.load.is_wrong(format!("{node} gives no definite answer within {SETTLE:?}"));
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn send(&mut self, name: &str, request: &Request<'_>) -> Answer {
        let Some((node, connection)) = &mut self.node else { return Answer::NotSent };
        let node = *node;
        let client = Client { addr: node, access_key: ACCESS_KEY.into(), secret_key: SECRET_KEY.into() };
        let ahead = self.load.clocks.lock().unwrap().get(&node).copied().unwrap_or_default();
        match client.send_on_at(connection, request, time::OffsetDateTime::now_utc() + ahead) {
            Ok(response) => {
                let what = format!("{} {}", response.status, response.code());
                self.load.count(node, name, what.trim_end());
                if response.header("connection") == Some("close") {
                    self.node = None;
                }
                if response.status >= 500 { Answer::Unknown(what) } else { Answer::Is(response) }
            }
            Err(error) => {
                let what = if is_timeout(&error) { "no answer in time".to_owned() } else { "broken".to_owned() };
                self.load.count(node, name, &what);
                self.node = None;
                Answer::Unknown(format!("{what}: {error}"))
            }
        }
    }

    fn event(&self, node: Option<SocketAddr>, op: Op, begin: Duration, known: bool, note: String) -> Event {
        let port = node.map_or(0, |node| node.port());
        let end = known.then(|| self.load.history.now());
        Event { op, client: format!("{}@{port}", self.id), begin, end, note }
    }

    fn at(&self) -> Option<SocketAddr> {
        self.node.as_ref().map(|(node, _)| *node)
    }

    /// Each returns whether the answer was definite.
    fn put(&mut self, key: &str, condition: Condition) -> bool {
        let number = self.load.writes.fetch_add(1, Ordering::Relaxed) + 1;
        let (write, body) = Write::make(key, number, size(&mut self.random));
        let (path, text) = (format!("/{BUCKET}/{key}"), number.to_string());
        let mut headers = vec![("x-amz-meta-write", text.as_str())];
        let tag;
        match condition {
            Condition::Always => {}
            Condition::Absent => headers.push(("if-none-match", "*")),
            Condition::Tag(_) => {
                tag = self.tags[key].clone();
                headers.push(("if-match", &tag));
            }
        }
        let (node, begin) = (self.at(), self.load.history.now());
        let request = Request { method: "PUT", path: &path, headers: &headers, body: &body, ..Request::default() };
        let (op, known, note) = match self.send("put", &request) {
            Answer::NotSent => return false,
            Answer::Unknown(what) => (Op::Put(write, condition), false, what),
            Answer::Is(response) => match response.status {
                200 => {
                    let etag = response.header("etag").unwrap_or_default();
                    if tag_of_etag(etag) != Some(write.tag) {
                        self.load.is_wrong(format!("put {key} #{number}: the ETag {etag} is not its MD5"));
                    }
                    self.tags.insert(key.to_owned(), etag.to_owned());
                    self.load.acknowledged.fetch_add(1, Ordering::Relaxed);
                    (Op::Put(write, condition), true, String::new())
                }
                // If-Match on a key that does not exist is 404.
                412 | 404 if condition != Condition::Always => {
                    (Op::Refused(condition), true, response.status.to_string())
                }
                409 if response.code() == "ConditionalRequestConflict" => return true,
                status => {
                    self.load.is_wrong(format!("put {key} #{number}: {status} {}", response.text()));
                    (Op::Put(write, condition), false, status.to_string())
                }
            },
        };
        self.load.history.record(key, self.event(node, op, begin, known, note));
        known
    }

    fn delete(&mut self, key: &str) -> bool {
        let path = format!("/{BUCKET}/{key}");
        let (node, begin) = (self.at(), self.load.history.now());
        let (known, note) = match self.send("delete", &Request { method: "DELETE", path: &path, ..Request::default() })
        {
            Answer::NotSent => return false,
            Answer::Unknown(what) => (false, what),
            Answer::Is(response) if response.status == 204 => {
                self.load.acknowledged.fetch_add(1, Ordering::Relaxed);
                (true, String::new())
            }
            Answer::Is(response) => {
                self.load.is_wrong(format!("delete {key}: {} {}", response.status, response.text()));
                (false, response.status.to_string())
            }
        };
        self.load.history.record(key, self.event(node, Op::Delete, begin, known, note));
        known
    }

    fn get(&mut self, key: &str) -> bool {
        let path = format!("/{BUCKET}/{key}");
        let (node, begin) = (self.at(), self.load.history.now());
        let Answer::Is(response) = self.send("get", &Request { method: "GET", path: &path, ..Request::default() })
        else {
            return false;
        };
        let seen = match response.status {
            404 if response.code() == "NoSuchKey" => None,
            200 => {
                let number = response.header("x-amz-meta-write").and_then(|number| number.parse().ok()).unwrap_or(0);
                let (write, bytes) = Write::make(key, number, response.body.len());
                if bytes != response.body {
                    let (at, len) = (first_difference(&bytes, &response.body), response.body.len());
                    self.load.is_wrong(format!("get {key} at {node:?}: #{number} differs at {at} of {len} bytes"));
                }
                let etag = response.header("etag").unwrap_or_default();
                if tag_of_etag(etag) != Some(write.tag) {
                    self.load.is_wrong(format!("get {key}: the ETag {etag} is not the content's"));
                }
                self.tags.insert(key.to_owned(), etag.to_owned());
                Some(number)
            }
            status => {
                self.load.is_wrong(format!("get {key}: {status} {}", response.text()));
                return false;
            }
        };
        self.load.history.record(key, self.event(node, Op::Get(seen), begin, true, String::new()));
        true
    }

    /// One page of the keys below `prefix`.
    fn list(&mut self, prefix: &str) -> bool {
        let (node, path, begin) = (self.at(), format!("/{BUCKET}"), self.load.history.now());
        let mut listed = BTreeMap::new();
        let mut token: Option<String> = None;
        loop {
            let mut query = vec![("list-type", "2"), ("prefix", prefix)];
            if let Some(token) = &token {
                query.push(("continuation-token", token));
            }
            let request = Request { method: "GET", path: &path, query: &query, ..Request::default() };
            let Answer::Is(page) = self.send("list", &request) else { return false };
            if page.status != 200 {
                self.load.is_wrong(format!("list {prefix}: {} {}", page.status, page.text()));
                return false;
            }
            let text = page.text().replace("&quot;", "\"");
            let tags = elements(&text, "ETag").into_iter().map(|etag| tag_of_etag(&etag).unwrap_or(0));
            listed.extend(elements(&text, "Key").into_iter().zip(tags));
            token = page.element("NextContinuationToken");
            if token.is_none() {
                break;
            }
        }
        let event = self.event(node, Op::Listed(None), begin, true, format!("of {}", listed.len()));
        self.load.history.record_listing(prefix, &listed, &event);
        true
    }
}

/// One byte to several chunks, mostly small.
fn size(random: &mut Random) -> usize {
    let size = match random.below(200) {
        0..=9 => 1,
        10..=129 => 1 + random.below(10_000),
        130..=169 => random.below(300_000),
        170..=197 => (1 << 20) + random.below(1 << 20),
        _ => (16 << 20) + random.below(2 << 20),
    };
    size as usize
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn first_difference(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()))
}
