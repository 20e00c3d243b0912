//! Several nodes on one database get in each other's way, and none is told what is not true.

use std::time::{Duration, Instant};

use futures::future::join_all;
use holdfast_actors::ports::accesses::ReadNote;
use holdfast_actors::ports::metadata::samples::{self, object};
use holdfast_actors::ports::metadata::{BucketConfigKind, MetadataUpkeep as _};
use holdfast_actors::ports::tiering::Claim;
use holdfast_actors::ports::{AccessLog as _, MetadataError, MetadataStore, TierLedger as _};
use holdfast_actors::wait::PATIENCE;
use holdfast_protocol::{NodeId, TierName};
use sqlx::Connection as _;
use sqlx::mysql::MySqlConnection;

use super::mariadb::is_mariadb;
use super::{bucket, check, content_of, open, server};

/// Held by who looks at the server's transactions.
static LOOKS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Waits until a transaction of the watcher's database waits for a row that is locked by the test. Whoever is past it
/// has not waited.
async fn until_one_waits(mut watcher: MySqlConnection, is_past: impl Fn() -> bool) {
    let waiting = if is_mariadb(&mut watcher).await {
        "SELECT COUNT(*) FROM information_schema.innodb_trx t \
         JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id \
         WHERE t.trx_state = 'LOCK WAIT' AND p.db = DATABASE()"
    } else {
        "SELECT COUNT(*) FROM performance_schema.data_lock_waits w \
         JOIN performance_schema.threads p ON p.thread_id = w.requesting_thread_id WHERE p.processlist_db = DATABASE()"
    };
    let begun = Instant::now();
    loop {
        // The table is made anew only after nobody looked at it for a tenth of a second: two tests must not take turns.
        let turn = LOOKS.lock().await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        if sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut watcher).await.unwrap() > 0 {
            return;
        }
        drop(turn);
        assert!(!is_past(), "it went past the row that is locked here");
        assert!(begun.elapsed() < PATIENCE, "nobody comes to the lock");
    }
}

/// Two nodes write the same keys: numbers are unique, rise for each key, and the highest is the latest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_write_the_same_keys() {
    let server = server().await;
    let database = server.database().await;
    let stores = [open(server.options(&database)).await, open(server.options(&database)).await];
    let id = bucket(&*stores[0]).await;
    let clients = (0..16usize).map(|client| {
        let store = stores[client % 2].clone();
        tokio::spawn(async move {
            let mut made = Vec::new();
            for i in 0..20 {
                let key = format!("k{}", (client + i) % 5);
                let committed = store.commit_object(object(id, &key)).await.unwrap().object;
                // Seen by its own node at once; what another wrote since is later.
                let read = store.object(id, &key, None).await.unwrap();
                assert!(read.sequence >= committed.sequence);
                made.push((key, committed.sequence));
            }
            made
        })
    });
    let mut all: Vec<(String, u64)> = Vec::new();
    for made in join_all(clients).await {
        all.extend(made.unwrap());
    }
    let mut numbers: Vec<u64> = all.iter().map(|(_, sequence)| *sequence).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), all.len(), "each number was given once");
    for store in &stores {
        for key in 0..5 {
            let key = format!("k{key}");
            let highest = all.iter().filter(|(k, _)| *k == key).map(|(_, sequence)| *sequence).max().unwrap();
            assert_eq!(store.object(id, &key, None).await.unwrap().sequence, highest);
        }
    }
    check(server, &database).await;
}

/// Whoever is about to delete one of them, or to change it, comes by its row, whatever else the group writes into.
#[tokio::test]
async fn a_group_of_several_buckets_waits_for_the_row_of_each() {
    let server = server().await;
    let database = server.database().await;
    let store = open(server.options(&database)).await;
    let mut ids = Vec::new();
    for name in ["x", "y", "z"] {
        ids.push(samples::bucket(&*store, name).await.id);
    }
    let mut other = server.connect(&database).await;
    let mut holder = other.begin().await.unwrap();
    let (hold, held) = ("SELECT id FROM buckets WHERE id = ? FOR UPDATE", i64::try_from(ids[1].0).unwrap());
    let found: i64 = sqlx::query_scalar(hold).bind(held).fetch_one(&mut *holder).await.unwrap();
    assert_eq!(found, held);
    // All are queued before one is taken, so they become one group.
    let writes = ids.into_iter().map(|id| {
        let store = store.clone();
        async move { store.commit_object(object(id, "k")).await }
    });
    let writes = tokio::spawn(join_all(writes.collect::<Vec<_>>()));
    until_one_waits(server.connect(&database).await, || writes.is_finished()).await;
    holder.rollback().await.unwrap();
    for written in writes.await.unwrap() {
        written.unwrap();
    }
    check(server, &database).await;
}

/// On two nodes one condemns what the other commits: exactly one wins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_condemns_what_another_commits() {
    let server = server().await;
    let database = server.database().await;
    let stores = [open(server.options(&database)).await, open(server.options(&database)).await];
    let id = bucket(&*stores[0]).await;
    let (mut won, mut lost) = (0, 0);
    for round in 0..40 {
        let object = object(id, &format!("k{round}"));
        let content = content_of(&object);
        let (committed, condemned) =
            tokio::join!(stores[0].commit_object(object), stores[1].condemn(std::slice::from_ref(&content), 1));
        match committed {
            Ok(_) => {
                assert!(condemned.unwrap().is_empty());
                won += 1;
            }
            Err(MetadataError::Condemned) => {
                assert_eq!(condemned.unwrap(), [content]);
                lost += 1;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    println!("{won} commits, {lost} condemned");
}

/// A claim that found a content due waits for its lock; whoever has that lock takes the content and drops it again. The
/// claim must not go by what it read before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_looks_again_at_the_time_under_the_lock() {
    const NOW: i64 = 1_000_000;
    let server = server().await;
    let database = server.database().await;
    let store = open(server.options(&database)).await;
    let id = bucket(&*store).await;
    let first = object(id, "k");
    let content = content_of(&first);
    store.commit_object(first).await.unwrap();
    store.commit_object(object(id, "k")).await.unwrap();
    let mut other = server.connect(&database).await;
    let mut copy = other.begin().await.unwrap();
    let lock = "SELECT refs FROM contents WHERE id = ? FOR UPDATE";
    let refs: i64 = sqlx::query_scalar(lock).bind(&content.0[..]).fetch_one(&mut *copy).await.unwrap();
    assert_eq!(refs, 0);
    let claim = {
        let store = store.clone();
        tokio::spawn(async move { store.due_reclaims(100, 10, None).await.unwrap() })
    };
    until_one_waits(server.connect(&database).await, || claim.is_finished()).await;
    // Taken, and dropped again: the row in the queue is another one.
    sqlx::query("DELETE FROM reclaims WHERE content = ?").bind(&content.0[..]).execute(&mut *copy).await.unwrap();
    let queue = "INSERT INTO reclaims (content, manifest, queued_ms) SELECT id, manifest, ? FROM contents WHERE id = ?";
    sqlx::query(queue).bind(NOW).bind(&content.0[..]).execute(&mut *copy).await.unwrap();
    copy.commit().await.unwrap();
    assert_eq!(claim.await.unwrap(), [], "its grace began just now");
    check(server, &database).await;
    assert_eq!(store.due_reclaims(NOW as u64 + 1, 10, None).await.unwrap().len(), 1);
}

/// Every node looks every few seconds for what is due in each tier. That is not to wait for others, nor they for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_for_moves_and_pieces_that_finds_none_waits_for_no_lock() {
    let server = server().await;
    let database = server.database().await;
    let store = open(server.options(&database)).await;
    let mut conn = server.connect(&database).await;
    let mut holding = conn.begin().await.unwrap();
    sqlx::query("SELECT slot FROM lock_slots FOR UPDATE").fetch_all(&mut *holding).await.unwrap();
    let lane: TierName = "OSS".parse().unwrap();
    let claim = Claim {
        owner: NodeId::from(1),
        now_ms: 1_000,
        until_ms: 2_000,
        spares_restored: false,
        to_cluster_only: false,
    };
    assert_eq!(store.claim_moves(&lane, claim, 10).await.unwrap(), []);
    assert_eq!(store.due_pieces(&lane, 1_000, 2_000, 10).await.unwrap(), []);
    holding.rollback().await.unwrap();
}

/// Rows of others that a transaction under way has are no reason to wait, nor to look at: where many are removed or
/// changed a few at a time, each time is about those few.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_in_steps_leaves_other_rows_alone() {
    let server = server().await;
    let database = server.database().await;
    let store = open(server.options(&database)).await;
    let id = bucket(&*store).await;
    let note = |key: &str| ReadNote { bucket: id, key: key.into(), day_ms: 1 };
    store.note_reads(&[note("a"), note("b"), note("c"), note("z")]).await.unwrap();
    let other = "INSERT INTO lifecycle_rechecks (bucket, `key`) VALUES (1000000, x'61')";
    sqlx::raw_sql(other).execute(&mut server.connect(&database).await).await.unwrap();
    // As a transaction of another node has them, for longer than anybody waits.
    let mut busy = server.connect(&database).await;
    let held = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; BEGIN; \
                SELECT 1 FROM accesses WHERE `key` = x'7a' FOR UPDATE; \
                SELECT 1 FROM lifecycle_rechecks WHERE bucket = 1000000 FOR UPDATE";
    sqlx::raw_sql(held).execute(&mut busy).await.unwrap();
    assert_eq!(store.forget_bucket_reads(id, 2).await.unwrap(), 2);
    store.set_bucket_config("b", id, BucketConfigKind::Lifecycle, None).await.unwrap();
    sqlx::raw_sql("ROLLBACK").execute(&mut busy).await.unwrap();
    assert_eq!(store.forget_bucket_reads(id, 10).await.unwrap(), 2);
    store.close().await;
}
