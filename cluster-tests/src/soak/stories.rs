//! Clients that tell short stories: multipart uploads, copies, versions, ranges, deletions.
//!
//! Each key belongs to one client, which goes on with it only while every answer was certain; so what it may hold is in
//! a [`Model`], and each read, on any node, has to be that. What keys several clients fight for go through is the
//! business of the [`workload`](crate::workload).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::crowd::{Answer, Crowd, client};
use crate::client::{Request, Response};
use crate::content::Random;
use crate::model::{Model, Version};

/// The bucket of the stories.
pub const BUCKET: &str = "stories";
/// The one that keeps versions.
pub const VERSIONED: &str = "versions";
/// Clients at work at the same time.
const CLIENTS: u64 = 3;
/// What S3 wants of every part but the last.
const PART: usize = 5 << 20;

/// What one client knows.
#[derive(Debug, Default)]
struct Known {
    plain: Model,
    versioned: Model,
    /// Keys of the first bucket that exist for certain.
    stable: Vec<String>,
    /// Versions by key and id: their content, or nothing where they were deleted.
    versions: BTreeMap<(String, String), Option<Version>>,
}

/// See the module's page.
#[derive(Debug)]
pub struct Stories {
    seed: u64,
    crowd: Crowd,
    known: Vec<Mutex<Known>>,
    ends: Mutex<BTreeMap<&'static str, u64>>,
}

impl Stories {
    /// On nodes that serve S3 at these addresses; the buckets exist already.
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

    /// Tells stories until `stop`.
    pub fn run(&self, stop: &AtomicBool) {
        let run = self.crowd.next_number();
        std::thread::scope(|scope| {
            for (id, known) in self.known.iter().enumerate() {
                let random = Random::new(self.seed ^ 0x5707 ^ ((id as u64) << 40) ^ (run << 8));
                let mut teller = Teller { all: self, id, random, known };
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        if self.crowd.is_resting() {
                            std::thread::sleep(Duration::from_millis(20));
                        } else {
                            teller.story();
                        }
                    }
                });
            }
        });
    }

    /// Reads everything on every node.
    ///
    /// # Panics
    /// When something is not as it has to be.
    pub fn verify(&self) {
        println!("stories: {:?}", self.ends.lock().unwrap());
        let nodes = self.crowd.nodes();
        for (id, known) in self.known.iter().enumerate() {
            let known = &mut *known.lock().unwrap();
            let prefix = format!("c{id}/");
            for node in &nodes {
                for (bucket, model) in [(BUCKET, &mut known.plain), (VERSIONED, &mut known.versioned)] {
                    let keys: Vec<String> = model.keys().map(str::to_owned).collect();
                    for key in keys {
                        let got = self.read(*node, bucket, &key, None);
                        if let Err(what) = model.observe(&key, got.as_deref()) {
                            self.crowd.is_wrong(format!("{bucket} at {node}, at the end: {what}"));
                        }
                    }
                    let listed = client(*node).list(bucket, &prefix).unwrap();
                    if listed != model.existing() {
                        let existing = model.existing();
                        self.crowd
                            .is_wrong(format!("{bucket}/{prefix} at {node} lists {listed:?}, there are {existing:?}"));
                    }
                }
                for ((key, id), version) in &known.versions {
                    let got = self.read(*node, VERSIONED, key, Some(id));
                    if got != version.map(Version::bytes) {
                        let got = got.map(|got| got.len());
                        self.crowd.is_wrong(format!("version {id} of {key} at {node}: {got:?} bytes, not {version:?}"));
                    }
                }
            }
        }
        self.crowd.nothing_is_wrong("stories");
    }

    /// The content of a key or version at a node, asked until it answers.
    fn read(&self, node: SocketAddr, bucket: &str, key: &str, version: Option<&str>) -> Option<Vec<u8>> {
        let path = format!("/{bucket}/{key}");
        let query: Vec<_> = version.map(|id| ("versionId", id)).into_iter().collect();
        let request = Request { method: "GET", path: &path, query: &query, ..Request::default() };
        let response = self.crowd.look(node, &request);
        (response.status == 200).then_some(response.body)
    }
}

struct Teller<'a> {
    all: &'a Stories,
    id: usize,
    random: Random,
    known: &'a Mutex<Known>,
}

impl Teller<'_> {
    fn story(&mut self) {
        let key = format!("c{}/{}", self.id, self.all.crowd.number());
        let (name, told) = match self.random.below(100) {
            0..=19 => ("put", self.put(&key)),
            20..=34 => ("multipart", self.multipart(&key)),
            35..=49 => ("copy", self.copy(&key)),
            50..=64 => ("versions", self.versions(&key)),
            65..=87 => ("range", self.range()),
            _ => ("delete", self.delete()),
        };
        *self.all.ends.lock().unwrap().entry(if told.is_some() { name } else { "broken off" }).or_default() += 1;
        if told.is_none() {
            std::thread::sleep(Duration::from_millis(50 + self.random.below(150)));
        }
    }

    fn ask(&mut self, request: &Request<'_>) -> Answer {
        self.all.crowd.ask(&mut self.random, request)
    }

    /// The same for what may be asked again: the answer that is certain, if one is in a few attempts.
    fn ask_again(&mut self, request: &Request<'_>) -> Option<Response> {
        for _ in 0..4 {
            if let Answer::Is(response) = self.ask(request) {
                return Some(response);
            }
            std::thread::sleep(Duration::from_millis(self.random.below(400)));
        }
        None
    }

    fn version(&mut self, len: usize) -> Version {
        Version { seed: self.random.next_u64(), len }
    }

    fn stable(&mut self) -> Option<(usize, String, Version)> {
        let known = self.known.lock().unwrap();
        let count = known.stable.len() as u64;
        let at = (count > 0).then(|| self.random.below(count) as usize)?;
        let key = known.stable[at].clone();
        let version = known.plain.current(&key)?;
        Some((at, key, version))
    }

    /// Takes the end of a write to a new key of the first bucket down. True where it was certain.
    fn took(
        &mut self,
        what: &str,
        key: &str,
        version: Version,
        answer: Answer,
        done: impl Fn(&Response) -> bool,
    ) -> Option<()> {
        let mut known = self.known.lock().unwrap();
        match answer {
            Answer::Is(response) if response.status == 200 && done(&response) => {
                known.plain.acknowledged(key, Some(version));
                known.stable.push(key.to_owned());
                Some(())
            }
            Answer::Is(response) => {
                known.plain.unknown(key, Some(version));
                // A long answer whose head went out before its end was known may tell of a failure, as S3's do.
                if response.status != 200 || !response.text().contains("<Error>") {
                    self.all.crowd.is_wrong(format!("{what} {key}: {} {}", response.status, response.text()));
                }
                None
            }
            Answer::Unknown => {
                known.plain.unknown(key, Some(version));
                None
            }
            Answer::NotSent => None,
        }
    }

    fn put(&mut self, key: &str) -> Option<()> {
        let len = self.random.below(200_000) as usize;
        let version = self.version(len);
        let (path, body) = (format!("/{BUCKET}/{key}"), version.bytes());
        let answer = self.ask(&Request { method: "PUT", path: &path, body: &body, ..Request::default() });
        self.took("put", key, version, answer, |_| true)
    }

    fn multipart(&mut self, key: &str) -> Option<()> {
        let path = format!("/{BUCKET}/{key}");
        let parts = 1 + self.random.below(3) as usize;
        let len = (parts - 1) * PART + 1 + self.random.below(300_000) as usize;
        let version = self.version(len);
        let begin = Request { method: "POST", path: &path, query: &[("uploads", "")], ..Request::default() };
        // Nothing that is seen, whatever becomes of it.
        self.known.lock().unwrap().plain.acknowledged(key, None);
        let Answer::Is(begun) = self.ask(&begin) else { return None };
        let upload = begun.element("UploadId")?;
        let mut xml = String::from("<CompleteMultipartUpload>");
        for (at, part) in version.bytes().chunks(PART).enumerate() {
            let number = (at + 1).to_string();
            let query = [("partNumber", number.as_str()), ("uploadId", upload.as_str())];
            let request = Request { method: "PUT", path: &path, query: &query, body: part, ..Request::default() };
            let response = self.ask_again(&request)?;
            let etag = response.header("etag").unwrap_or_default().to_owned();
            if response.status != 200 {
                self.all.crowd.is_wrong(format!("part {number} of {key}: {} {}", response.status, response.text()));
                return None;
            }
            xml.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"));
        }
        xml.push_str("</CompleteMultipartUpload>");
        let query = [("uploadId", upload.as_str())];
        if self.random.chance(15) {
            let response =
                self.ask_again(&Request { method: "DELETE", path: &path, query: &query, ..Request::default() })?;
            // An attempt whose answer was lost may have done it.
            if !matches!(response.status, 204 | 404) {
                self.all.crowd.is_wrong(format!("abort of {key}: {} {}", response.status, response.text()));
            }
            return Some(());
        }
        let body = xml.as_bytes();
        let answer = self.ask(&Request { method: "POST", path: &path, query: &query, body, ..Request::default() });
        self.took("complete", key, version, answer, |response| {
            response.text().contains("CompleteMultipartUploadResult")
        })
    }

    fn copy(&mut self, key: &str) -> Option<()> {
        let (_, from, version) = self.stable()?;
        let (path, source) = (format!("/{BUCKET}/{key}"), format!("/{BUCKET}/{from}"));
        let headers = [("x-amz-copy-source", source.as_str())];
        let answer = self.ask(&Request { method: "PUT", path: &path, headers: &headers, ..Request::default() });
        self.took("copy", key, version, answer, |response| response.text().contains("CopyObjectResult"))
    }

    fn range(&mut self) -> Option<()> {
        let (_, key, version) = self.stable()?;
        if version.len == 0 {
            return Some(());
        }
        let from = self.random.below(version.len as u64) as usize;
        let to = from + self.random.below((version.len - from) as u64) as usize;
        let (path, range) = (format!("/{BUCKET}/{key}"), format!("bytes={from}-{to}"));
        let request = Request { method: "GET", path: &path, headers: &[("range", &range)], ..Request::default() };
        let Answer::Is(response) = self.ask(&request) else { return None };
        if response.status != 206 || response.body != version.bytes()[from..=to] {
            let (status, len) = (response.status, response.body.len());
            self.all.crowd.is_wrong(format!("{key} {range} of {}: {status}, {len} bytes", version.len));
        }
        Some(())
    }

    fn delete(&mut self) -> Option<()> {
        let (at, key, version) = self.stable()?;
        let path = format!("/{BUCKET}/{key}");
        let answer = self.ask(&Request { method: "DELETE", path: &path, ..Request::default() });
        if matches!(answer, Answer::NotSent) {
            return None;
        }
        {
            let known = &mut *self.known.lock().unwrap();
            known.stable.swap_remove(at);
            match answer {
                Answer::Is(response) if response.status == 204 => known.plain.acknowledged(&key, None),
                Answer::Is(response) => {
                    known.plain.unknown(&key, None);
                    self.all.crowd.is_wrong(format!("delete {key}: {} {}", response.status, response.text()));
                }
                _ => {
                    known.plain.unknown(&key, None);
                    return None;
                }
            }
        }
        let response = self.ask_again(&Request { method: "GET", path: &path, ..Request::default() })?;
        if response.status != 404 {
            self.all.crowd.is_wrong(format!("{key} ({version:?}) was deleted, and is {}", response.status));
        }
        Some(())
    }

    /// One version more of a key of the second bucket; gives back its id.
    fn put_version(&mut self, key: &str) -> Option<(String, Version)> {
        let len = self.random.below(100_000) as usize;
        let version = self.version(len);
        let (path, body) = (format!("/{VERSIONED}/{key}"), version.bytes());
        let answer = self.ask(&Request { method: "PUT", path: &path, body: &body, ..Request::default() });
        let known = &mut *self.known.lock().unwrap();
        match answer {
            Answer::Is(response) if response.status == 200 => {
                let id = response.header("x-amz-version-id")?.to_owned();
                known.versioned.acknowledged(key, Some(version));
                known.versions.insert((key.to_owned(), id.clone()), Some(version));
                Some((id, version))
            }
            Answer::Is(response) => {
                known.versioned.unknown(key, Some(version));
                self.all.crowd.is_wrong(format!("put a version of {key}: {} {}", response.status, response.text()));
                None
            }
            Answer::Unknown => {
                known.versioned.unknown(key, Some(version));
                None
            }
            Answer::NotSent => None,
        }
    }

    fn versions(&mut self, key: &str) -> Option<()> {
        let path = format!("/{VERSIONED}/{key}");
        let (first, content) = self.put_version(key)?;
        self.put_version(key)?;
        let marked = self.random.chance(40);
        if marked {
            let answer = self.ask(&Request { method: "DELETE", path: &path, ..Request::default() });
            let known = &mut *self.known.lock().unwrap();
            match answer {
                Answer::Is(response) if response.status == 204 => known.versioned.acknowledged(key, None),
                Answer::NotSent => return None,
                _ => {
                    known.versioned.unknown(key, None);
                    return None;
                }
            }
        }
        let query = [("versionId", first.as_str())];
        let get = Request { method: "GET", path: &path, query: &query, ..Request::default() };
        let response = self.ask_again(&get)?;
        if response.status != 200 || response.body != content.bytes() {
            self.all.crowd.is_wrong(format!("version {first} of {key}: {} {content:?}", response.status));
        }
        if self.random.chance(50) {
            // For good; the one before it stays the latest.
            let of_key = (key.to_owned(), first.clone());
            let answer = self.ask(&Request { method: "DELETE", path: &path, query: &query, ..Request::default() });
            let mut known = self.known.lock().unwrap();
            match answer {
                Answer::Is(response) if response.status == 204 => drop(known.versions.insert(of_key, None)),
                // Either way from now on.
                _ => drop(known.versions.remove(&of_key)),
            }
        }
        Some(())
    }
}
