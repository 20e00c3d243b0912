//! Clients of cold objects: PUT, overwrite, copy, restore, read and delete objects of every storage class.
//!
//! As in [`stories`](super::stories) each key belongs to one client, which goes on with it only while every answer was
//! certain. Unlike there it goes on with the same few keys, so that what is overwritten, copied or deleted is on its
//! way to a tier, lies there, or is on its way back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::crowd::{Answer, Crowd, client};
use super::tiers::{FASTDFS, OSS};
use crate::client::{Request, Response};
use crate::content::Random;
use crate::model::{Model, Version};
pub use crate::tiers::BUCKET;

/// Clients at work at the same time.
const CLIENTS: u64 = 2;
/// Keys that a client goes on with.
const KEYS: usize = 8;
/// What S3 wants of every part but the last.
const PART: usize = 5 << 20;
/// Pause after each step: moves need their time, too.
const PAUSE_MS: u64 = 120;
/// The class of objects that lie in no tier.
const STANDARD: &str = "STANDARD";

/// What one client knows.
#[derive(Debug, Default)]
struct Known {
    model: Model,
    /// Keys that exist for certain, and their classes.
    live: BTreeMap<String, &'static str>,
}

/// See the module's page.
#[derive(Debug)]
pub struct Cold {
    seed: u64,
    crowd: Crowd,
    known: Vec<Mutex<Known>>,
    ends: Mutex<BTreeMap<String, u64>>,
}

impl Cold {
    /// On nodes that serve S3 at these addresses; bucket and tiers exist already.
    pub fn new(seed: u64, nodes: Vec<SocketAddr>) -> Self {
        let known = (0..CLIENTS).map(|_| Mutex::default()).collect();
        Self { seed, crowd: Crowd::new(nodes), known, ends: Mutex::default() }
    }

    /// Clients go to these nodes from now on.
    pub fn set_nodes(&self, addresses: Vec<SocketAddr>) {
        self.crowd.set_nodes(addresses);
    }

    /// Lets clients rest after what each is at, or go on.
    pub fn rest(&self, rest: bool) {
        self.crowd.rest(rest);
    }

    /// Runs the clients until `stop`.
    pub fn run(&self, stop: &AtomicBool) {
        std::thread::scope(|scope| {
            for (id, known) in self.known.iter().enumerate() {
                let random = Random::new(self.seed ^ 0xc01d ^ ((id as u64) << 40));
                let mut keeper = Keeper { all: self, id, random, known };
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        if !self.crowd.is_resting() {
                            keeper.step();
                        }
                        std::thread::sleep(Duration::from_millis(20 + keeper.random.below(PAUSE_MS)));
                    }
                });
            }
        });
    }

    /// Reads everything on every node; says how many objects there are of each class.
    ///
    /// # Panics
    /// When something is not as it has to be.
    pub fn verify(&self) {
        println!("cold objects: {:?}", self.ends.lock().unwrap());
        let nodes = self.crowd.nodes();
        let mut classes = BTreeMap::<String, u64>::new();
        for (id, known) in self.known.iter().enumerate() {
            let known = &mut *known.lock().unwrap();
            for (at, node) in nodes.iter().enumerate() {
                let keys: Vec<String> = known.model.keys().map(str::to_owned).collect();
                for key in keys {
                    let response = self.read(*node, &key);
                    if let Err(what) = known.model.observe(&key, content(&response)) {
                        self.crowd.is_wrong(format!("at {node}, at the end: {what}"));
                    }
                    if let Some(class) = known.live.get(&key).filter(|class| **class != class_of(&response)) {
                        self.crowd
                            .is_wrong(format!("at {node}, at the end: {key} of {class} is {}", class_of(&response)));
                    }
                    if at == 0 && response.status == 200 {
                        *classes.entry(class_of(&response).to_owned()).or_default() += 1;
                    }
                }
                let (listed, existing) =
                    (client(*node).list(BUCKET, &format!("c{id}/")).unwrap(), known.model.existing());
                if listed != existing {
                    self.crowd.is_wrong(format!("{BUCKET}/c{id}/ at {node} lists {listed:?}, there are {existing:?}"));
                }
            }
        }
        println!("cold objects by class: {classes:?}");
        self.crowd.nothing_is_wrong("cold objects");
    }

    /// A key at a node, asked until there is an answer that is certain.
    fn read(&self, node: SocketAddr, key: &str) -> Response {
        let path = format!("/{BUCKET}/{key}");
        self.crowd.look(node, &Request { method: "GET", path: &path, ..Request::default() })
    }
}

fn content(response: &Response) -> Option<&[u8]> {
    (response.status == 200).then_some(&response.body[..])
}

fn class_of(response: &Response) -> &str {
    response.header("x-amz-storage-class").unwrap_or(STANDARD)
}

struct Keeper<'a> {
    all: &'a Cold,
    id: usize,
    random: Random,
    known: &'a Mutex<Known>,
}

impl Keeper<'_> {
    fn step(&mut self) {
        let live: Vec<String> = self.known.lock().unwrap().live.keys().cloned().collect();
        let turn = if live.is_empty() { 0 } else { self.random.below(100) };
        let key = match turn {
            // Something new, or over what is there.
            0..=49 if live.len() < KEYS => {
                format!("c{}/{}", self.id, self.all.crowd.number())
            }
            _ => live[self.random.below(live.len() as u64) as usize].clone(),
        };
        let (name, done) = match turn {
            0..=32 => ("put", self.put(&key)),
            33..=35 => ("multipart", self.multipart(&key)),
            36..=49 => ("copy", self.copy(&key, &live)),
            50..=53 => ("restore", self.restore(&key)),
            54..=64 => ("delete", self.delete(&key)),
            65..=77 => ("range", self.range(&key)),
            _ => ("get", self.get(&key)),
        };
        let end = format!("{name} {}", if done { "done" } else { "unknown" });
        *self.all.ends.lock().unwrap().entry(end).or_default() += 1;
    }

    fn ask(&mut self, request: &Request<'_>) -> Answer {
        self.all.crowd.ask(&mut self.random, request)
    }

    fn version(&mut self) -> Version {
        let len = match self.random.below(20) {
            0 => 0,
            1..=11 => self.random.below(20_000),
            12..=18 => self.random.below(1 << 20),
            _ => (3 << 20) + self.random.below(3 << 20),
        };
        Version { seed: self.random.next_u64(), len: len as usize }
    }

    fn class(&mut self) -> &'static str {
        [OSS, OSS, FASTDFS, FASTDFS, STANDARD][self.random.below(5) as usize]
    }

    /// Takes the end of a change down; true where it was certain.
    fn took(
        &self,
        what: &str,
        key: &str,
        version: Option<(Version, &'static str)>,
        answer: Answer,
        done: impl Fn(&Response) -> bool,
    ) -> bool {
        let known = &mut *self.known.lock().unwrap();
        let content = version.map(|(version, _)| version);
        match answer {
            Answer::Is(response) if response.status / 100 == 2 && done(&response) => {
                known.model.acknowledged(key, content);
                match version {
                    Some((_, class)) => known.live.insert(key.to_owned(), class),
                    None => known.live.remove(key),
                };
                return true;
            }
            Answer::NotSent => return false,
            // A long answer whose head went out before its end was known may tell of a failure, as S3's do.
            Answer::Is(response) if response.status != 200 || !response.text().contains("<Error>") => {
                self.all.crowd.is_wrong(format!("{what} {key}: {} {}", response.status, response.text()));
            }
            _ => {}
        }
        known.model.unknown(key, content);
        known.live.remove(key);
        false
    }

    fn put(&mut self, key: &str) -> bool {
        let (version, class) = (self.version(), self.class());
        let (path, body) = (format!("/{BUCKET}/{key}"), version.bytes());
        let headers = [("x-amz-storage-class", class)];
        let request = Request { method: "PUT", path: &path, headers: &headers, body: &body, ..Request::default() };
        let answer = self.ask(&request);
        self.took("put", key, Some((version, class)), answer, |_| true)
    }

    fn multipart(&mut self, key: &str) -> bool {
        let (path, class) = (format!("/{BUCKET}/{key}"), self.class());
        let len = PART + 1 + self.random.below(100_000) as usize;
        let version = Version { seed: self.random.next_u64(), len };
        let headers = [("x-amz-storage-class", class)];
        let query = [("uploads", "")];
        let begin = Request { method: "POST", path: &path, query: &query, headers: &headers, ..Request::default() };
        let Answer::Is(begun) = self.ask(&begin) else { return false };
        let Some(upload) = begun.element("UploadId") else { return false };
        let mut xml = String::from("<CompleteMultipartUpload>");
        for (at, part) in version.bytes().chunks(PART).enumerate() {
            let number = (at + 1).to_string();
            let query = [("partNumber", number.as_str()), ("uploadId", upload.as_str())];
            let request = Request { method: "PUT", path: &path, query: &query, body: part, ..Request::default() };
            // A part may be sent again.
            let response = (0..3).find_map(|_| match self.ask(&request) {
                Answer::Is(response) => Some(response),
                _ => None,
            });
            let Some(response) = response else { return false };
            let etag = response.header("etag").unwrap_or_default().to_owned();
            xml.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"));
        }
        xml.push_str("</CompleteMultipartUpload>");
        let (query, body) = ([("uploadId", upload.as_str())], xml.as_bytes());
        let answer = self.ask(&Request { method: "POST", path: &path, query: &query, body, ..Request::default() });
        self.took("complete", key, Some((version, class)), answer, |response| {
            response.text().contains("CompleteMultipartUploadResult")
        })
    }

    /// A copy shares the bytes of its source, and may want them elsewhere; onto itself it changes the class.
    fn copy(&mut self, key: &str, live: &[String]) -> bool {
        let from = &live[self.random.below(live.len() as u64) as usize];
        let (path, source, class) = (format!("/{BUCKET}/{key}"), format!("/{BUCKET}/{from}"), self.class());
        let current = {
            let known = self.known.lock().unwrap();
            if key == from && known.live.get(from) == Some(&class) {
                // S3 refuses what changes nothing.
                return true;
            }
            known.model.current(from)
        };
        let Some(version) = current else { return true };
        let headers = [("x-amz-copy-source", source.as_str()), ("x-amz-storage-class", class)];
        let answer = self.ask(&Request { method: "PUT", path: &path, headers: &headers, ..Request::default() });
        self.took("copy", key, Some((version, class)), answer, |response| response.text().contains("CopyObjectResult"))
    }

    fn delete(&mut self, key: &str) -> bool {
        let path = format!("/{BUCKET}/{key}");
        let answer = self.ask(&Request { method: "DELETE", path: &path, ..Request::default() });
        self.took("delete", key, None, answer, |response| response.status == 204)
    }

    /// Brings the object here for some days; what it is does not change.
    fn restore(&mut self, key: &str) -> bool {
        let body = format!("<RestoreRequest><Days>{}</Days></RestoreRequest>", 1 + self.random.below(3));
        let (path, query, body) = (format!("/{BUCKET}/{key}"), [("restore", "")], body.as_bytes());
        match self.ask(&Request { method: "POST", path: &path, query: &query, body, ..Request::default() }) {
            Answer::Is(response) => {
                let cold = self.known.lock().unwrap().live.get(key) != Some(&STANDARD);
                // 409: it is on its way already.
                let fits = if cold { matches!(response.status, 200 | 202 | 409) } else { response.status == 403 };
                if !fits {
                    let (status, text) = (response.status, response.text());
                    self.all.crowd.is_wrong(format!("restore {key} (cold: {cold}): {status} {text}"));
                }
                true
            }
            _ => false,
        }
    }

    fn get(&mut self, key: &str) -> bool {
        let path = format!("/{BUCKET}/{key}");
        let Answer::Is(response) = self.ask(&Request { method: "GET", path: &path, ..Request::default() }) else {
            return false;
        };
        let known = &mut *self.known.lock().unwrap();
        if !matches!(response.status, 200 | 404) {
            self.all.crowd.is_wrong(format!("get {key}: {} {}", response.status, response.text()));
        } else if let Err(what) = known.model.observe(key, content(&response)) {
            self.all.crowd.is_wrong(what);
        } else if known.live[key] != class_of(&response) {
            self.all.crowd.is_wrong(format!("{key} of {} is {}", known.live[key], class_of(&response)));
        }
        true
    }

    fn range(&mut self, key: &str) -> bool {
        let version = self.known.lock().unwrap().model.current(key);
        let Some(version) = version.filter(|version| version.len > 0) else { return true };
        let from = self.random.below(version.len as u64) as usize;
        let to = from + self.random.below((version.len - from) as u64) as usize;
        let (path, range) = (format!("/{BUCKET}/{key}"), format!("bytes={from}-{to}"));
        let request = Request { method: "GET", path: &path, headers: &[("range", &range)], ..Request::default() };
        let Answer::Is(response) = self.ask(&request) else { return false };
        if response.status != 206 || response.body != version.bytes()[from..=to] {
            let (status, len) = (response.status, response.body.len());
            self.all.crowd.is_wrong(format!("{key} {range} of {}: {status}, {len} bytes", version.len));
        }
        true
    }
}
