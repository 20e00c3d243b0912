//! What clients did and what they were told, with times: the material of the [`checker`](crate::checker).
//!
//! Times are of one clock, since all clients live in one process. An operation whose answer was lost, or that was
//! answered with an error after which nothing is certain, has no end: it may take effect at any later time, or never.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use md5::{Digest, Md5};

use crate::content;

/// A write, known by its number: no two writes of a history have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// Its number, which clients also store in the object's metadata.
    pub number: u64,
    /// Length of its content.
    pub len: usize,
    /// The first bytes of the content's MD5, which is what conditions compare. Short contents may share one.
    pub tag: u64,
}

impl Write {
    /// The content of a write to `key`, and what identifies it. Each byte follows from the key and the number.
    pub fn make(key: &str, number: u64, len: usize) -> (Self, Vec<u8>) {
        let bytes = content::bytes(tag_of(&md5(key.as_bytes())) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15), len);
        let tag = tag_of(&md5(&bytes));
        (Self { number, len, tag }, bytes)
    }
}

fn md5(bytes: &[u8]) -> [u8; 16] {
    Md5::digest(bytes).into()
}

fn tag_of(digest: &[u8; 16]) -> u64 {
    u64::from_be_bytes(digest[..8].try_into().unwrap())
}

/// The tag in an ETag header, if it is one of a whole object.
pub fn tag_of_etag(etag: &str) -> Option<u64> {
    u64::from_str_radix(etag.trim_matches('"').get(..16)?, 16).ok()
}

/// A condition on a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// None.
    Always,
    /// `If-None-Match: *`.
    Absent,
    /// `If-Match` with this tag.
    Tag(u64),
}

/// An operation on one key, with its answer where that tells something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A write that was acknowledged, or whose outcome is not known.
    Put(Write, Condition),
    /// A write whose condition did not hold.
    Refused(Condition),
    /// A deletion.
    Delete,
    /// A read, and which write it saw.
    Get(Option<u64>),
    /// A listing, and the tag it had for the key if it had the key.
    Listed(Option<u64>),
}

/// An operation with its times.
#[derive(Clone, Debug)]
pub struct Event {
    /// What was done.
    pub op: Op,
    /// Which client did it, on which node.
    pub client: String,
    /// When it began.
    pub begin: Duration,
    /// When it was answered; `None` for one whose outcome is not known.
    pub end: Option<Duration>,
    /// What the answer said, for those who read a history.
    pub note: String,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.end.map_or_else(|| "       ?".into(), |end| format!("{:8.3}", end.as_secs_f64()));
        let (begin, client) = (self.begin.as_secs_f64(), &self.client);
        write!(f, "{begin:8.3} {end} {client:>10} ")?;
        match self.op {
            Op::Put(write, condition) => write!(f, "put #{} ({} B, {condition:?})", write.number, write.len),
            Op::Refused(condition) => write!(f, "refused by {condition:?}"),
            Op::Delete => write!(f, "delete"),
            Op::Get(Some(number)) => write!(f, "get -> #{number}"),
            Op::Get(None) => write!(f, "get -> nothing"),
            Op::Listed(tag) => write!(f, "listed -> {tag:x?}"),
        }?;
        write!(f, " {}", self.note)
    }
}

/// Everything that happened, by key.
#[derive(Debug)]
pub struct History {
    started: Instant,
    events: Mutex<BTreeMap<String, Vec<Event>>>,
}

impl Default for History {
    fn default() -> Self {
        Self { started: Instant::now(), events: Mutex::default() }
    }
}

impl History {
    /// Time since the history began.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Adds an event.
    pub fn record(&self, key: &str, event: Event) {
        self.events.lock().unwrap().entry(key.to_owned()).or_default().push(event);
    }

    /// Takes a listing down for all keys below `prefix` that the history knows or the listing names.
    pub fn record_listing(&self, prefix: &str, listed: &BTreeMap<String, u64>, event: &Event) {
        let mut events = self.events.lock().unwrap();
        for key in listed.keys().filter(|key| !events.contains_key(*key)).cloned().collect::<Vec<_>>() {
            events.insert(key, Vec::new());
        }
        for (key, events) in events.range_mut(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix)) {
            events.push(Event { op: Op::Listed(listed.get(key).copied()), ..event.clone() });
        }
    }

    /// The keys that were touched, with their events in the order of their beginning.
    pub fn by_key(&self) -> BTreeMap<String, Vec<Event>> {
        let mut keys = self.events.lock().unwrap().clone();
        keys.values_mut().for_each(|events| events.sort_by_key(|event| event.begin));
        keys
    }
}
