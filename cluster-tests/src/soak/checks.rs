//! What has to be true when the faults have ended, beside what clients see.

use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::cold;
use super::stories::{BUCKET, VERSIONED};
use crate::client::{Client, Request, elements};
use crate::cluster::Cluster;
use crate::{until_ok, workload};

/// Time for a scrub to find nothing any more: what it found is repaired in between.
const MEND: Duration = Duration::from_secs(120);
/// Time for the chunks of deleted objects, and of what was never finished, to go from all disks.
const EMPTY: Duration = Duration::from_secs(180);
/// Time for what happened to be published.
const TOLD: Duration = Duration::from_secs(120);
/// Anonymous memory of a node with the tests' small buffers.
const MEMORY_MAX: u64 = 512 << 20;
const FILES_MAX: usize = 1_024;
const THREADS_MAX: usize = 256;
/// Clients that remove everything at the end.
const REMOVERS: usize = 6;

fn running(cluster: &Cluster) -> impl Iterator<Item = usize> {
    (0..cluster.members.len()).filter(|at| cluster.members[*at].node.is_running())
}

/// Every node reads its disks whole, until all of them find nothing.
///
/// # Panics
/// When rot stays.
pub fn no_rot_is_left(cluster: &Cluster) {
    let begin = Instant::now();
    for at in running(cluster) {
        until_ok(&format!("node {at} has no rot"), MEND.saturating_sub(begin.elapsed()), || {
            let output = cluster.members[at].node.try_cli(&["scrub", "run"]);
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() { Ok(()) } else { Err(told) }
        });
    }
}

/// What nodes use stays within bounds; printed, to be compared from round to round.
///
/// # Panics
/// When it does not.
pub fn nodes_are_bounded(cluster: &Cluster) {
    for at in running(cluster) {
        let node = &cluster.members[at].node;
        let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", node.pid())).map_or(0, Iterator::count);
        let (memory, files, threads) = (node.memory().1, count("fd"), count("task"));
        println!("node {at}: {} MiB of anonymous memory, {files} files, {threads} threads", memory >> 20);
        assert!(memory < MEMORY_MAX && files < FILES_MAX && threads < THREADS_MAX, "node {at} grows without bound");
    }
}

/// No node has panicked in any of its lives.
///
/// # Panics
/// When one did.
pub fn nobody_panicked(cluster: &Cluster) {
    for (at, member) in cluster.members.iter().enumerate() {
        let log = member.node.log();
        let panics: Vec<&str> = log.lines().filter(|line| line.contains("panicked")).collect();
        assert!(panics.is_empty(), "node {at} panicked:\n{}", panics.join("\n"));
    }
}

/// The outbox is empty.
///
/// # Panics
/// When it is not in time.
pub fn everything_is_told(cluster: &Cluster) {
    let begin = Instant::now();
    for at in running(cluster) {
        until_ok(&format!("node {at} knows of no event that waits"), TOLD.saturating_sub(begin.elapsed()), || {
            let lag = cluster.cli(at, &["events", "lag"]);
            if lag["rows"] == 0 { Ok(()) } else { Err(lag) }
        });
    }
}

/// Removes everything that clients see, and waits until every disk is empty: no chunk belongs to nobody.
///
/// # Panics
/// When something stays.
pub fn all_space_comes_back(cluster: &Cluster) {
    let nodes: Vec<usize> = running(cluster).collect();
    let client = cluster.client(nodes[0]);
    for bucket in [workload::BUCKET, BUCKET, cold::BUCKET] {
        let keys = client.list(bucket, "").unwrap();
        remove(&client, keys.into_iter().map(|key| (format!("/{bucket}/{key}"), None)).collect());
    }
    remove(&client, pages(&client, VERSIONED, ("versions", ""), "Key", "VersionId", "versionId"));
    for bucket in [BUCKET, cold::BUCKET] {
        remove(&client, pages(&client, bucket, ("uploads", ""), "Key", "UploadId", "uploadId"));
    }
    let begin = Instant::now();
    for at in nodes {
        loop {
            let status = cluster.cli(at, &["status"]);
            let disks = status["disks"].as_array().unwrap();
            let chunks: u64 = disks.iter().map(|disk| disk["chunks"].as_u64().unwrap()).sum();
            if chunks == 0 {
                break;
            }
            if begin.elapsed() > EMPTY {
                let waits = cluster.mariadb.sql(
                    "SELECT TABLE_NAME, TABLE_ROWS FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'holdfast'",
                );
                panic!(
                    "{chunks} chunks stay on node {at} although everything was deleted; tables:\n{waits}\n{status:#}"
                );
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    println!("all disks are empty after {:?}", begin.elapsed());
}

type Named = (String, Option<(&'static str, String)>);

/// Everything that a bucket lists with an id, as what deletes it.
fn pages(
    client: &Client,
    bucket: &str,
    of: (&'static str, &'static str),
    key: &str,
    id: &str,
    parameter: &'static str,
) -> Vec<Named> {
    let path = format!("/{bucket}");
    let (mut named, mut marks) = (Vec::new(), Vec::<(&str, String)>::new());
    loop {
        let mut query = vec![of];
        query.extend(marks.iter().map(|(name, value)| (*name, value.as_str())));
        let request = Request { method: "GET", path: &path, query: &query, ..Request::default() };
        let page = client.send_until_served(&request);
        assert_eq!(page.status, 200, "{}", page.text());
        let text = page.text();
        let found = elements(&text, key).into_iter().zip(elements(&text, id));
        named.extend(found.map(|(key, id)| (format!("{path}/{key}"), Some((parameter, id)))));
        if page.element("IsTruncated").as_deref() != Some("true") {
            return named;
        }
        let next = [
            ("key-marker", "NextKeyMarker"),
            ("version-id-marker", "NextVersionIdMarker"),
            ("upload-id-marker", "NextUploadIdMarker"),
        ];
        marks = next.into_iter().filter_map(|(name, element)| Some((name, page.element(element)?))).collect();
    }
}

fn remove(client: &Client, named: Vec<Named>) {
    println!("removing {} of {:?}", named.len(), named.first());
    let named = Mutex::new(named);
    std::thread::scope(|scope| {
        for _ in 0..REMOVERS {
            scope.spawn(|| {
                loop {
                    let next = named.lock().unwrap().pop();
                    let Some((path, id)) = next else { return };
                    let query: Vec<_> = id.iter().map(|(name, value)| (*name, value.as_str())).collect();
                    let request = Request { method: "DELETE", path: &path, query: &query, ..Request::default() };
                    let response = client.send_until_served(&request);
                    assert!(matches!(response.status, 204 | 404), "delete {path}: {}", response.text());
                }
            });
        }
    });
}
