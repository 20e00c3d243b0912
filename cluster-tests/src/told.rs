//! Writers whose acknowledged changes are accounted for in the events that consumers got, and nodes that tell them.

use std::collections::{BTreeMap, HashSet};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::client::Client;
use crate::node::Node;
use crate::services::rocketmq::{ACCESS_KEY, JavaConsumer, Received, RocketMq};
use crate::{eventually, until_ok};

/// Where [`Writers`] write.
pub const BUCKET: &str = "told";
/// Longer than anything takes to arrive on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

fn secret_file(dir: &Path, secret: &str) -> PathBuf {
    let file = dir.join(format!("secret-{secret}"));
    std::fs::write(&file, secret).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    file
}

/// Variables of a node that publishes with `prefix`.
///
/// # Panics
/// When a file cannot be written.
pub fn environment(service: &RocketMq, dir: &Path, prefix: &str, secret: &str) -> Vec<(&'static str, String)> {
    vec![
        ("HOLDFAST_EVENTS_ROCKETMQ", service.name_servers()),
        ("HOLDFAST_EVENTS_ACCESS_KEY", ACCESS_KEY.into()),
        ("HOLDFAST_EVENTS_SECRET_KEY_FILE", secret_file(dir, secret).display().to_string()),
        ("HOLDFAST_EVENTS_TOPIC_PREFIX", prefix.into()),
        ("HOLDFAST_EVENTS_TOPIC_QUEUES", "4".into()),
    ]
}

/// Starts a node with them.
///
/// # Panics
/// When it does not start.
pub fn start_on(data: &Path, environment: &[(&'static str, String)]) -> Node {
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Node::start_on(data, &environment)
}

/// What `holdfast events lag` says.
///
/// # Panics
/// When it fails.
pub fn lag(node: &Node) -> Value {
    serde_json::from_str(&node.cli(&["events", "lag", "--json"])).unwrap()
}

/// The same, if it answers.
///
/// # Panics
/// When it cannot be asked.
pub fn try_lag(node: &Node) -> Option<Value> {
    let output = node.try_cli(&["events", "lag", "--json"]);
    output.status.success().then(|| serde_json::from_slice(&output.stdout).ok()).flatten()
}

/// Waits until the outbox is empty.
///
/// # Panics
/// When it is not after [`PATIENCE`].
#[track_caller]
pub fn wait_until_published(node: &Node) {
    eventually("nothing waits to be published", PATIENCE, || try_lag(node).is_some_and(|lag| lag["rows"] == 0));
}

fn record(event: &Received) -> Value {
    let mut body: Value = serde_json::from_str(&event.body).unwrap();
    body["Records"][0].take()
}

/// An acknowledged change of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Put(String),
    Delete,
}

/// Writers, each with keys of its own, which take down what was acknowledged. A key whose outcome is not known is left.
#[derive(Debug, Default)]
pub struct Writers {
    acknowledged: Mutex<BTreeMap<String, Vec<Change>>>,
    count: AtomicU64,
    stop: AtomicBool,
}

impl Writers {
    /// Writes on all of `clients` until `faults` is done.
    ///
    /// # Panics
    /// When `faults` does.
    pub fn run<R>(&self, clients: &[Client], faults: impl FnOnce() -> R) -> R {
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        std::thread::scope(|scope| {
            let _stop = Stop(&self.stop);
            for writer in 0..6 {
                scope.spawn(move || self.write(writer, clients));
            }
            faults()
        })
    }

    fn write(&self, writer: usize, clients: &[Client]) {
        let (mut key_number, mut turn, mut at) = (0, 0_u64, writer);
        while !self.stop.load(Ordering::Relaxed) {
            let key = format!("w{writer}/key {key_number}");
            let client = &clients[at % clients.len()];
            turn += 1;
            let delete = turn % 4 == 0 && self.acknowledged.lock().unwrap().contains_key(&key);
            let change = if delete {
                client.delete(BUCKET, &key).map(|answer| (answer.status == 204).then_some(Change::Delete))
            } else {
                let body = format!("{writer} {key_number} {turn}");
                let put = client.put(BUCKET, &key, body.as_bytes());
                let etag = |text: &str| text.trim_matches('"').to_owned();
                put.map(|answer| {
                    (answer.status == 200).then(|| Change::Put(answer.header("etag").map(etag).unwrap_or_default()))
                })
            };
            match change {
                Ok(Some(change)) => {
                    let mut acknowledged = self.acknowledged.lock().unwrap();
                    let last_was_delete = change == Change::Delete;
                    acknowledged.entry(key).or_default().push(change);
                    self.count.fetch_add(1, Ordering::Relaxed);
                    // A deletion of what is not there tells nothing: after one, the key begins anew or is left.
                    if last_was_delete || turn % 13 == 0 {
                        key_number += 1;
                    }
                }
                Ok(None) | Err(_) => {
                    key_number += 1;
                    at += 1;
                    // A node that refuses at once must not be asked a thousand times a second.
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    /// How many changes were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until so many more changes were acknowledged.
    ///
    /// # Panics
    /// When they are not after [`PATIENCE`].
    #[track_caller]
    pub fn make_progress(&self, name: &str, changes: u64) {
        let until = self.count.load(Ordering::Relaxed) + changes;
        eventually(name, PATIENCE, || self.count.load(Ordering::Relaxed) >= until);
    }

    /// Accounts for every acknowledged change. Gives back what is wrong.
    fn missing(&self, received: &[Received], repeated: &[String]) -> Result<(), String> {
        let mut seen = HashSet::new();
        let mut told: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        // Each queue in the order of its offsets; a key is in one queue.
        let mut ordered = received.to_vec();
        ordered.sort_by_key(|event| (event.queue, event.offset));
        for event in &ordered {
            if seen.insert(event.id.clone()) {
                let record = record(event);
                assert_eq!(record["holdfast"]["eventId"], event.id);
                assert_eq!(record["eventName"], event.tag);
                told.entry(record["s3"]["object"]["key"].as_str().unwrap().to_owned()).or_default().push(record);
            }
        }
        if let Some(late) = repeated.iter().find(|id| !seen.contains(*id)) {
            return Err(format!("event {late} came after a later one of its object, and never before"));
        }
        for (key, changes) in &*self.acknowledged.lock().unwrap() {
            let encoded = key.replace(' ', "+");
            let events = told.get(&encoded).map_or(&[][..], Vec::as_slice);
            let sequencer = |event: &Value| event["s3"]["object"]["sequencer"].as_str().unwrap().to_owned();
            for pair in events.windows(2) {
                assert!(sequencer(&pair[0]) < sequencer(&pair[1]), "{key}: out of order: {pair:#?}");
            }
            let mut rest = events.iter();
            for change in changes {
                let found = rest.any(|event| match change {
                    Change::Put(etag) => {
                        event["eventName"] == "ObjectCreated:Put" && event["s3"]["object"]["eTag"] == *etag
                    }
                    Change::Delete => event["eventName"] == "ObjectRemoved:Delete",
                });
                if !found {
                    return Err(format!("{key}: {change:?} of {changes:?} is not in {events:#?}"));
                }
            }
        }
        Ok(())
    }

    /// Waits until a consumer got every acknowledged change, in the order of its key.
    ///
    /// # Panics
    /// When it did not after [`PATIENCE`].
    pub fn wait_until_all_is_told(&self, consumer: &JavaConsumer) {
        until_ok("all that was acknowledged is told", PATIENCE, || {
            // What it repeats it has told before.
            let repeated = consumer.repeated();
            let received = consumer.received();
            self.missing(&received, &repeated)?;
            println!(
                "{} acknowledged changes are among {} events; {} came again",
                self.count.load(Ordering::Relaxed),
                received.len(),
                repeated.len()
            );
            Ok::<_, String>(())
        });
    }
}
