//! The MySQL adapter on a real MariaDB: the port's suite, several nodes, and a server that dies. `HOLDFAST_TEST_MYSQL`
//! names another server for what does not harm it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod failures;
#[path = "../support/mariadb.rs"]
mod mariadb;
mod nodes;
mod opening;
// Shared by path: nothing depends on the crate of the black-box tests.
#[allow(dead_code, reason = "this test uses a part")]
#[path = "../../../cluster-tests/src/services"]
mod services {
    pub mod directory;
    pub mod mariadb;
    pub mod process;
    pub mod tcp_proxy;
    pub mod tls;
}
mod snapshot;

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use futures::future::join_all;
use holdfast_actors::ports::metadata::samples::{self, object};
use holdfast_actors::ports::metadata::{BucketId, ContentSource, NewObject};
use holdfast_actors::ports::{AccessLog, Journal, MetadataStore, Outbox, TierLedger};
use holdfast_node::metadata::{MysqlMetadataStore, MysqlOptions, SqliteMetadataStore, SqliteOptions};
use holdfast_protocol::ContentId;
use mariadb::{Scratch, Server};

/// One server for all tests that do not harm it; each has a database of its own.
static SERVER: LazyLock<Server> = LazyLock::new(Server::shared);

async fn server() -> &'static Server {
    tokio::task::spawn_blocking(|| &*SERVER).await.unwrap()
}

async fn open(options: MysqlOptions) -> Arc<MysqlMetadataStore> {
    Arc::new(MysqlMetadataStore::open(options).await.unwrap())
}

async fn empty_store() -> (Arc<dyn MetadataStore>, Scratch) {
    let (options, scratch) = server().await.scratch().await;
    (open(options).await, scratch)
}

async fn empty_outbox() -> (Arc<dyn MetadataStore>, Arc<dyn Outbox>, Scratch) {
    let (options, scratch) = server().await.scratch().await;
    let store = open(options).await;
    (store.clone(), store, scratch)
}

mod conformance {
    holdfast_actors::metadata_conformance!(super::empty_store);
    holdfast_actors::outbox_conformance!(super::empty_outbox);
}

async fn empty_accesses() -> (Arc<dyn MetadataStore>, Arc<dyn AccessLog>, Scratch) {
    let (options, scratch) = server().await.scratch().await;
    let store = open(options).await;
    (store.clone(), store, scratch)
}

mod accesses {
    holdfast_actors::accesses_conformance!(super::empty_accesses);
}

async fn empty_journal() -> (Arc<dyn Journal>, Scratch) {
    let (options, scratch) = server().await.scratch().await;
    (open(options).await, scratch)
}

mod journal {
    holdfast_actors::journal_conformance!(super::empty_journal);
}

async fn empty_ledger() -> (Arc<dyn MetadataStore>, Arc<dyn TierLedger>, Arc<dyn Outbox>, Scratch) {
    let (options, scratch) = server().await.scratch().await;
    let store = open(options).await;
    (store.clone(), store.clone(), store, scratch)
}

mod tiering {
    holdfast_actors::tiering_conformance!(super::empty_ledger);
}

async fn bucket(store: &dyn MetadataStore) -> BucketId {
    samples::bucket(store, "b").await.id
}

fn content_of(object: &NewObject) -> ContentId {
    match &object.content {
        ContentSource::New(content) => content.id,
        ContentSource::Shared(id) => *id,
    }
}

/// Every object has its content, every content is referred to as often as it says, or is queued.
async fn check(server: &Server, database: &str) {
    let wrong: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM contents c WHERE c.refs <> (SELECT COUNT(*) FROM objects o WHERE o.content = c.id) \
         OR (c.refs = 0) <> EXISTS (SELECT 1 FROM reclaims r WHERE r.content = c.id)",
    )
    .fetch_one(&mut server.connect(database).await)
    .await
    .unwrap();
    assert_eq!(wrong, 0);
}

/// Also for who opens the database after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequence_numbers_are_raised_and_never_lowered() {
    let server = server().await;
    let database = server.database().await;
    let store = open(server.options(&database)).await;
    let id = bucket(&*store).await;
    let put_back_ms = 1_800_000_000_000;
    for ms in [put_back_ms, 1] {
        store.raise_sequences(ms).await.unwrap();
    }
    store.close().await;
    let store = open(server.options(&database)).await;
    let first = store.commit_object(object(id, "a")).await.unwrap().object.sequence;
    let second = store.commit_object(object(id, "a")).await.unwrap().object.sequence;
    assert!(first > put_back_ms << 15 && second > first, "{first}, {second}");
    store.close().await;
}

/// `cargo test -p holdfast-node --test metadata_mysql measure -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_commits_of_64_clients() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let sqlite = SqliteMetadataStore::open(&directory.path().join("metadata.db"), SqliteOptions::default()).await;
    let stores: [(&str, Arc<dyn MetadataStore>); 2] =
        [("SQLite", Arc::new(sqlite.unwrap())), ("MariaDB", empty_store().await.0)];
    for (name, store) in stores {
        let id = bucket(&*store).await;
        for clients in [1u32, 64] {
            let per_client = 6_400 / clients / if clients == 1 { 10 } else { 1 };
            let started = Instant::now();
            let running = (0..clients).map(|client| {
                let store = store.clone();
                tokio::spawn(async move {
                    for i in 0..per_client {
                        store.commit_object(object(id, &format!("{clients}/{client}/{i:08}.bin"))).await.unwrap();
                    }
                })
            });
            for client in join_all(running).await {
                client.unwrap();
            }
            let commits = f64::from(clients * per_client);
            println!("{name}, {clients} at once: {:.0} commits/s", commits / started.elapsed().as_secs_f64());
        }
        store.close().await;
    }
}
