//! Cold tiers as an operator sets them up and looks at them, and objects in them as a client does.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use serde_json::Value;

use crate::client::{Client, Request, Response};
use crate::cluster::private_file;
use crate::eventually;
use crate::node::{ACCESS_KEY, Node, SECRET_KEY};

/// The bucket of cold objects.
pub const BUCKET: &str = "cold";
/// The bucket of a store that is a tier.
pub const STORE_BUCKET: &str = "tier";
/// How long moves and deletions may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Times short enough for a test: a claim of a mover that was killed ends after two seconds.
pub const FAST: [(&str, &str); 7] = [
    ("HOLDFAST_TIERING_POLL", "200 ms"),
    ("HOLDFAST_TIERING_CLAIM", "2 s"),
    ("HOLDFAST_TIERING_PIECE_GRACE", "2 s"),
    ("HOLDFAST_TIERING_REFRESH", "500 ms"),
    ("HOLDFAST_CLEANUP_GRACE", "1 s"),
    ("HOLDFAST_CLEANUP_INTERVAL", "1 s"),
    ("HOLDFAST_LIMITS_CHUNK_TIMEOUT", "10 s"),
];

/// A store with a bucket for a tier.
///
/// # Panics
/// When it does not start.
pub fn store() -> Node {
    let store = Node::start();
    store.client().create_bucket(STORE_BUCKET);
    store
}

/// Sets a tier in `store` up, as an operator does, with the key pair of all test nodes.
///
/// # Panics
/// When that fails.
pub fn add_oss(node: &Node, name: &str, store: &Node) {
    add_oss_with(node, name, store, ACCESS_KEY, SECRET_KEY);
}

/// The same with another key pair.
///
/// # Panics
/// When that fails.
pub fn add_oss_with(node: &Node, name: &str, store: &Node, access_key: &str, secret_key: &str) {
    add_oss_at(node, name, &store.endpoint(), access_key, secret_key);
}

/// The same at another endpoint than the store's own.
///
/// # Panics
/// When that fails.
pub fn add_oss_at(node: &Node, name: &str, endpoint: &str, access_key: &str, secret_key: &str) {
    let secret = node.scratch().join(format!("{name}.secret"));
    private_file(&secret, secret_key);
    node.cli(&[
        "tier",
        "add",
        name,
        "--oss-endpoint",
        endpoint,
        "--oss-bucket",
        STORE_BUCKET,
        "--oss-prefix",
        "pieces",
        "--oss-path-style",
        "--oss-access-key",
        access_key,
        "--secret-key-file",
        secret.to_str().unwrap(),
    ]);
}

/// What `holdfast` is to be told to set up a tier in FastDFS.
pub fn fastdfs_arguments(name: &str, trackers: &[String], map: &BTreeMap<String, String>) -> Vec<String> {
    let mut arguments = vec!["tier".to_owned(), "add".into(), name.into()];
    for tracker in trackers {
        arguments.extend(["--fastdfs-tracker".into(), tracker.clone()]);
    }
    for (from, to) in map {
        arguments.extend(["--fastdfs-map".into(), format!("{from}={to}")]);
    }
    arguments
}

/// Sets up a tier in a directory of its own.
///
/// # Panics
/// When that fails.
pub fn add_directory(node: &Node, name: &str) -> std::path::PathBuf {
    let root = node.scratch().join(name);
    std::fs::create_dir_all(&root).unwrap();
    node.cli(&["tier", "add", name, "--directory", root.to_str().unwrap()]);
    root
}

/// What the node says of a tier.
///
/// # Panics
/// When it says nothing.
pub fn status(node: &Node, tier: &str) -> Value {
    whole_status(node, tier)["tier"].clone()
}

/// The same, with the moves of the tier.
///
/// # Panics
/// When it says nothing.
pub fn whole_status(node: &Node, tier: &str) -> Value {
    let told: Value = serde_json::from_str(&node.cli(&["tier", "status", tier, "--json"])).unwrap();
    told[0].clone()
}

/// A number in an answer.
///
/// # Panics
/// When there is none.
pub fn number(value: &Value, name: &str) -> u64 {
    let found = value.pointer(name).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("no number `{name}` in {value}"))
}

/// Contents that lie in the tier.
///
/// # Panics
/// When the node does not tell.
pub fn contents(node: &Node, tier: &str) -> u64 {
    number(&status(node, tier), "/usage/contents")
}

/// Waits until nothing is to be moved to or from the tier any more, and nothing to be deleted in it.
///
/// # Panics
/// When that takes too long.
pub fn settle(node: &Node, tier: &str) {
    // A move that failed is not due before its next turn.
    let quiet = |status: &Value| {
        ["/backlog/due", "/backlog/failing", "/usage/pieces_to_delete"].iter().all(|name| number(status, name) == 0)
    };
    // Twice: what was overtaken leaves pieces a moment later.
    eventually(&format!("{tier} has settled: {}", status(node, tier)), PATIENCE, || {
        quiet(&status(node, tier)) && {
            // Nothing tells that no more is to come; movers look five times a second.
            std::thread::sleep(Duration::from_millis(1_500));
            quiet(&status(node, tier))
        }
    });
}

/// PUT of an object of a class.
///
/// # Errors
/// When there is no answer.
pub fn put(client: &Client, key: &str, class: &str, body: &[u8]) -> io::Result<Response> {
    let (path, headers) = (format!("/{BUCKET}/{key}"), [("x-amz-storage-class", class)]);
    client.send(&Request { method: "PUT", path: &path, headers: &headers, body, ..Request::default() })
}

/// The same, again and again while it is refused ([`Client::send_until_served`]).
///
/// # Panics
/// When it is not stored.
pub fn put_until_served(client: &Client, key: &str, class: &str, body: &[u8]) {
    let (path, headers) = (format!("/{BUCKET}/{key}"), [("x-amz-storage-class", class)]);
    let request = Request { method: "PUT", path: &path, headers: &headers, body, ..Request::default() };
    let response = client.send_until_served(&request);
    assert_eq!(response.status, 200, "{key}: {}", response.text());
}

/// HEAD of an object.
///
/// # Panics
/// When there is no answer.
pub fn head(client: &Client, key: &str) -> Response {
    client.send(&Request { method: "HEAD", path: &format!("/{BUCKET}/{key}"), ..Request::default() }).unwrap()
}

/// GET of a range of an object.
///
/// # Panics
/// When there is no answer.
pub fn range(client: &Client, key: &str, range: &str) -> Response {
    let (path, headers) = (format!("/{BUCKET}/{key}"), [("range", range)]);
    client.send(&Request { method: "GET", path: &path, headers: &headers, ..Request::default() }).unwrap()
}

/// Asks for an object to be restored for some days; the status.
///
/// # Panics
/// When there is no answer.
pub fn restore(client: &Client, key: &str, days: u32) -> u16 {
    let body = format!("<RestoreRequest><Days>{days}</Days></RestoreRequest>");
    let path = format!("/{BUCKET}/{key}");
    let query = [("restore", "")];
    let request = Request { method: "POST", path: &path, query: &query, body: body.as_bytes(), ..Request::default() };
    client.send(&request).unwrap().status
}

/// Every file of a directory tier that holds a piece, with its size.
///
/// # Panics
/// When the directory is not there, or a name is not in UTF-8.
pub fn files(root: &std::path::Path) -> BTreeMap<String, u64> {
    assert!(root.is_dir(), "{} is no directory", root.display());
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        // What a mover has just removed is no file any more.
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(data) = entry.metadata() else { continue };
            let path = entry.path();
            if data.is_dir() {
                open.push(path);
            } else if !path.file_name().unwrap().to_str().unwrap().starts_with(['.', 'H']) {
                found.insert(path.to_str().unwrap().to_owned(), data.len());
            }
        }
    }
    found
}
