//! A restore that breaks off on a node that runs alone leaves no half of a database: the node would delete the chunks
//! of the rest.

use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use holdfast_actors::ports::metadata::{MetadataDirect as _, User};
use holdfast_node::assemble::cluster_tools::{dump, from_chunks, restore};
use holdfast_node::config::Config;

use super::*;

/// Longer than what is read of it at a time, so that much of it is restored before the rest is read.
const OBJECTS: u64 = 120;

/// A backup, and `look` is called with how many bytes were read, each time that more is asked for after the first look
/// through.
struct Watched<F: FnMut(u64)> {
    bytes: Cursor<Vec<u8>>,
    is_checked: bool,
    look: F,
}

impl<F: FnMut(u64)> Read for Watched<F> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.is_checked {
            (self.look)(self.bytes.position());
        }
        self.bytes.read(into)
    }
}

impl<F: FnMut(u64)> Seek for Watched<F> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.is_checked = true;
        self.bytes.seek(to)
    }
}

async fn backup_of_many(dir: &tempfile::TempDir) -> Vec<u8> {
    let (source, chunks) = (store(dir, "source").await, MemoryChunkStore::default());
    for n in 0..OBJECTS {
        let content = ContentId([n as u8 + 1; 12]);
        write(&chunks, content, &label(&format!("key-{n}"), VersionId::NULL, 10, None), b"bytes").await;
    }
    from_chunks(&chunks, &*source, "root", WRITE).await.expect("objects");
    let mut file = Vec::new();
    dump(&*source, &*source, &mut file).await.expect("a backup");
    source.close().await;
    file
}

fn alone(dir: &Path) -> Config {
    let mut config = Config::default();
    config.node.data_dir = dir.to_owned();
    config
}

async fn metadata_of(config: &Config) -> SqliteMetadataStore {
    let path = config.node.data_dir.join("metadata.sqlite");
    SqliteMetadataStore::open(&path, SqliteOptions::default()).await.expect("metadata opens")
}

fn databases_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a directory").flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().expect("a name")).collect();
    names.retain(|name| name.starts_with("metadata."));
    names.sort();
    names
}

#[tokio::test]
async fn what_a_killed_restore_leaves_is_no_database_of_the_node_and_the_next_restore_is_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let backup = backup_of_many(&dir).await;
    let (config, killed) = (alone(&dir.path().join("node")), alone(&dir.path().join("killed")));
    let half = backup.len() as u64 / 2;
    let (from, to) = (config.node.data_dir.clone(), killed.node.data_dir.clone());
    // What lies on the disk in the middle is what `kill -9` would leave there.
    let look = |read: u64| {
        assert!(!from.join("metadata.sqlite").exists(), "a node could start on what {read} bytes gave");
        if read < half || to.exists() {
            return;
        }
        std::fs::create_dir(&to).expect("a directory");
        for entry in std::fs::read_dir(&from).expect("a directory").flatten() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
    };
    let mut watched = Watched { bytes: Cursor::new(backup.clone()), is_checked: false, look };
    let counts = restore(&config, &mut watched).await.expect("restored");
    assert_eq!((counts.versions, counts.buckets), (OBJECTS, 1));
    assert_eq!(databases_in(&config.node.data_dir), ["metadata.sqlite"]);

    let left = databases_in(&killed.node.data_dir);
    assert!(left.iter().any(|name| name == "metadata.sqlite.partial"), "{left:?}");
    let partial = killed.node.data_dir.join("metadata.sqlite.partial");
    let partial = SqliteMetadataStore::open(&partial, SqliteOptions::default()).await.expect("it opens");
    let restored = versions(&partial).await.len() as u64;
    assert!((1..OBJECTS).contains(&restored), "half of it is there: {restored}");
    partial.close().await;

    assert_eq!(restore(&killed, &mut Cursor::new(backup)).await.expect("restored"), counts);
    assert_eq!(databases_in(&killed.node.data_dir), ["metadata.sqlite"]);
    for config in [config, killed] {
        let metadata = metadata_of(&config).await;
        assert_eq!(versions(&metadata).await.len() as u64, OBJECTS);
        metadata.close().await;
    }
}

#[tokio::test]
async fn a_restore_that_fails_leaves_the_metadata_that_were_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let backup = String::from_utf8(backup_of_many(&dir).await).expect("lines");
    let config = alone(&dir.path().join("node"));
    std::fs::create_dir(&config.node.data_dir).expect("a directory");
    let metadata = metadata_of(&config).await;
    let user = User { name: "other".into(), admin: false, enabled: true, created_ms: 1 };
    metadata.create_user(user).await.expect("a user");
    metadata.close().await;

    // It is whole by all that can be told before it is restored.
    let last = backup.rfind(r#""kind":"version""#).expect("a version");
    let (before, after) = backup.split_at(last);
    let wrong = format!("{before}{}", after.replacen(r#""bucket":"bucket""#, r#""bucket":"elsewhere""#, 1));
    assert_ne!(wrong, backup);
    let refused = restore(&config, &mut Cursor::new(wrong.into_bytes())).await.expect_err("no such bucket");
    let text = format!("{refused:#}");
    assert!(text.contains("nothing was restored") && text.contains("no such bucket"), "{text}");
    assert_eq!(databases_in(&config.node.data_dir), ["metadata.sqlite"]);
    let metadata = metadata_of(&config).await;
    assert!(metadata.list_buckets(None, None, 1).await.expect("buckets").is_empty());
    assert!(metadata.user("other").await.is_ok());
    metadata.close().await;

    restore(&config, &mut Cursor::new(backup.into_bytes())).await.expect("restored");
    let metadata = metadata_of(&config).await;
    assert!(metadata.user("other").await.is_ok());
    assert_eq!(versions(&metadata).await.len() as u64, OBJECTS);
    metadata.close().await;
}
