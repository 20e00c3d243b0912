//! A server that is killed, starts again, or has no connection left.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use holdfast_actors::ports::metadata::{CannedAcl, ChangeRequest, MetadataUpkeep as _, Versioning};
use holdfast_actors::ports::{MetadataError, MetadataStore};
use holdfast_actors::wait::{eventually, until, until_ok};
use holdfast_node::metadata::{MysqlMetadataStore, MysqlOptions};
use holdfast_protocol::NodeId;

use super::mariadb::Server;
use super::services::tcp_proxy::{Flow, TcpProxy};
use super::{bucket, check, content_of, object, open, server};

/// kill -9 under load: what was acknowledged is there, and what was refused with a definite error is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_acknowledged_and_no_error_lies() {
    let mut server = tokio::task::spawn_blocking(Server::start).await.unwrap();
    let database = server.database().await;
    let options = MysqlOptions { settle_timeout: Duration::from_secs(120), ..server.options(&database) };
    let store = open(options).await;
    let id = bucket(&*store).await;
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (store, stop, acknowledged) = (store.clone(), stop.clone(), acknowledged.clone());
            tokio::spawn(async move {
                let mut results = Vec::new();
                for i in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let object = object(id, &format!("{client}-{i}"));
                    let (key, content) = (object.key.clone(), content_of(&object));
                    let result = store.commit_object(object).await.map(drop);
                    if result.is_ok() {
                        acknowledged.fetch_add(1, Ordering::SeqCst);
                    }
                    results.push((key, content, result));
                }
                results
            })
        })
        .collect();
    let until = async |count: usize| {
        eventually("commits go on", || acknowledged.load(Ordering::SeqCst) >= count).await;
    };
    for round in 0..3 {
        until(acknowledged.load(Ordering::SeqCst) + 50 + 37 * round).await;
        server = tokio::task::spawn_blocking(move || {
            server.kill();
            server.run();
            server
        })
        .await
        .unwrap();
    }
    until(acknowledged.load(Ordering::SeqCst) + 50).await;
    stop.store(true, Ordering::SeqCst);
    let mut outcomes: HashMap<&str, usize> = HashMap::new();
    for results in join_all(clients).await {
        for (key, content, result) in results.unwrap() {
            let read = store.object(id, &key, None).await;
            match result {
                Ok(()) => {
                    assert_eq!(read.unwrap().content.as_ref().unwrap().id, content, "{key} was acknowledged");
                    *outcomes.entry("acknowledged").or_default() += 1;
                }
                Err(MetadataError::Unknown(_)) => *outcomes.entry("unknown").or_default() += 1,
                Err(error) => {
                    assert!(matches!(read, Err(MetadataError::NoSuchKey)), "{key}: {error:?}, but it is there");
                    *outcomes.entry("refused").or_default() += 1;
                }
            }
        }
    }
    println!("{outcomes:?}");
    assert_eq!(outcomes.get("unknown"), None, "the server came back in time to be asked");
    check(&server, &database).await;
}

/// Connections that a restart made stale cost the next verbs nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_between_verbs_is_not_noticed() {
    let mut server = tokio::task::spawn_blocking(Server::start).await.unwrap();
    let store = open(server.options(&server.database().await)).await;
    let id = bucket(&*store).await;
    let before = join_all((0..16).map(|i| store.commit_object(object(id, &format!("k{i}"))))).await;
    assert!(before.iter().all(Result::is_ok));
    join_all((0..16).map(|_| store.bucket("b"))).await;
    server = tokio::task::spawn_blocking(move || {
        server.kill();
        server.run();
        server
    })
    .await
    .unwrap();
    for read in join_all((0..16).map(|i| store.object(id, Box::leak(format!("k{i}").into_boxed_str()), None))).await {
        read.unwrap();
    }
    store.commit_object(object(id, "after")).await.unwrap();
    store.set_versioning("b", id, Versioning::Enabled).await.unwrap();
    store.close().await;
    drop(server);
}

/// What a failover to a replica that lags, or a server that does not flush, looks like from here: the database is back
/// without the last commit. Chunks that it does not know may be those of the write that was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_given_up_as_an_orphan_after_the_database_lost_a_commit() {
    let mut server = tokio::task::spawn_blocking(Server::start).await.unwrap();
    let database = server.database().await;
    let [store, other] = [open(server.options(&database)).await, open(server.options(&database)).await];
    assert!(!store.acknowledges_early().await.unwrap());
    let id = bucket(&*store).await;
    let orphan = || content_of(&object(id, "never committed"));
    // A restart loses nothing, and is no reason to keep orphans.
    let mut last = 0;
    for loses in [false, true] {
        last = store.commit_object(object(id, "k")).await.unwrap().object.sequence;
        if loses {
            let lose = "SET GLOBAL innodb_flush_log_at_trx_commit = 2; DELETE FROM objects; \
                        DELETE FROM commits ORDER BY id DESC LIMIT 1";
            sqlx::raw_sql(lose).execute(&mut server.connect(&database).await).await.unwrap();
            assert!(store.acknowledges_early().await.unwrap());
        }
        server = tokio::task::spawn_blocking(move || {
            server.kill();
            server.run();
            server
        })
        .await
        .unwrap();
        // Whoever was told of the commit looks for it before anything else.
        store.bucket("b").await.unwrap();
        for node in [&store, &other] {
            let content = orphan();
            assert_eq!(node.lost_commits().await.unwrap(), loses);
            match node.condemn(&[content], 1).await {
                Ok(condemned) => assert!(!loses && condemned == [content], "{condemned:?}"),
                Err(error) => assert!(loses && matches!(error, MetadataError::Unavailable(_)), "{error:?}"),
            }
        }
    }
    let later = store.commit_object(object(id, "later")).await.unwrap().object.sequence;
    assert!(later - last > 1 << 32, "no number that others were given comes a second time");
    store.raise_sequences(1).await.unwrap();
    assert!(store.condemn(&[orphan()], 1).await.is_err(), "until somebody looks");
    let nodes = [NodeId::from(1), NodeId::from(2)];
    assert_eq!(store.note_walked(nodes[0], false, &nodes).await.unwrap(), [nodes[1]]);
    assert!(other.condemn(&[orphan()], 1).await.is_err(), "what was lost may be on the other node");
    assert_eq!(other.note_walked(nodes[1], false, &nodes).await.unwrap(), []);
    assert!(!store.lost_commits().await.unwrap());
    let content = orphan();
    assert_eq!(other.condemn(&[content], 1).await.unwrap(), [content]);
    for store in [store, other] {
        store.close().await;
    }
    drop(server);
}

/// Behind a proxy connections live on while the server behind it is another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_comes_a_second_time_tells_that_commits_were_lost() {
    let server = server().await;
    let database = server.database().await;
    let store = open(server.options(&database)).await;
    let id = bucket(&*store).await;
    store.commit_object(object(id, "k")).await.unwrap();
    // Two: the store may have swept at the same time.
    let lose = "DELETE FROM commits ORDER BY id DESC LIMIT 2; ALTER TABLE commits AUTO_INCREMENT = 1";
    sqlx::raw_sql(lose).execute(&mut server.connect(&database).await).await.unwrap();
    store.commit_object(object(id, "k")).await.unwrap();
    let give_up = async || store.condemn(&[content_of(&object(id, "never committed"))], 1).await;
    let is_refused = |done: &Result<Vec<_>, MetadataError>| matches!(done, Err(MetadataError::Unavailable(_)));
    let _refused = until("nothing is given up", give_up, is_refused).await;
}

/// A primary that another server has taken the place of lives on, as a replica that lags: what it has is old. Whoever
/// reads all the time notices, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_no_writes_any_more_is_not_read_from() {
    let server = tokio::task::spawn_blocking(Server::start).await.unwrap();
    let database = server.database().await;
    let store = open(server.options(&database)).await;
    let id = bucket(&*store).await;
    store.commit_object(object(id, "k")).await.unwrap();
    let mut conn = server.connect(&database).await;
    for read_only in [true, false] {
        let sql = if read_only { "SET GLOBAL read_only = 1" } else { "SET GLOBAL read_only = 0" };
        sqlx::raw_sql(sql).execute(&mut conn).await.unwrap();
        let is_left = |found: &Result<_, MetadataError>| match found {
            Ok(_) => !read_only,
            Err(error) => read_only && error.to_string().contains("read-only"),
        };
        let _found =
            until("who reads goes by what the server is", async || store.object(id, "k", None).await, is_left).await;
    }
    store.commit_object(object(id, "k")).await.unwrap();
    store.close().await;
    drop(server);
}

/// A server that takes connections and never answers: the many that wait in the pool are not asked one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_is_not_asked_once_for_each_connection() {
    let server = tokio::task::spawn_blocking(Server::start).await.unwrap();
    let proxy = TcpProxy::start(server.address());
    let database = server.database().await;
    // What is made here may take its time.
    let patient = open(server.options(&database)).await;
    let id = bucket(&*patient).await;
    patient.close().await;
    let options = MysqlOptions {
        url: format!("mysql://root@{}/{database}", proxy.address()),
        acquire_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(5),
        query_timeout: Duration::from_secs(5),
        ..server.options(&database)
    };
    let store = until_ok("it opens", async || MysqlMetadataStore::open(options.clone()).await).await;
    join_all((0..32).map(|i| store.commit_object(object(id, &format!("k{i}"))))).await;
    join_all((0..32).map(|_| store.bucket("b"))).await;
    proxy.set(Flow::Stalled);
    // One answer that does not come, one ping and one connection: with a ping of two seconds for each of 32 it were a
    // minute.
    let refused = tokio::time::timeout(Duration::from_secs(40), store.bucket("b")).await;
    assert!(matches!(refused, Ok(Err(MetadataError::Unavailable(_)))), "{refused:?}");
    proxy.set(Flow::Open);
    until_ok("it answers again", async || store.bucket("b").await).await;
    store.close().await;
    drop((proxy, server));
}

/// All connections wait for a lock that somebody else holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_without_a_free_connection_answers_busy_in_time() {
    let server = server().await;
    let database = server.database().await;
    let options = MysqlOptions {
        connections: 2,
        acquire_timeout: Duration::from_secs(3),
        lock_timeout: Duration::from_secs(30),
        query_timeout: Duration::from_secs(60),
        ..server.options(&database)
    };
    let store = open(options).await;
    let id = bucket(&*store).await;
    let mut holder = server.connect(&database).await;
    sqlx::raw_sql("BEGIN; SELECT slot FROM lock_slots FOR UPDATE").execute(&mut holder).await.unwrap();
    let waiting = ["a", "b"].map(|key| {
        let store = store.clone();
        let request =
            ChangeRequest { bucket: id, key: key.into(), version: None, only_if: None, event: None, now_ms: 5 };
        tokio::spawn(async move { store.set_object_acl(request, CannedAcl::Private).await })
    });
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let started = Instant::now();
        match store.bucket("b").await {
            Err(MetadataError::Busy) => {
                assert!(started.elapsed() < Duration::from_secs(15));
                break;
            }
            Ok(_) => assert!(Instant::now() < deadline, "the connections are taken"),
            Err(error) => panic!("{error:?}"),
        }
    }
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
    for verb in waiting {
        assert!(matches!(verb.await.unwrap(), Err(MetadataError::NoSuchKey)));
    }
    store.bucket("b").await.unwrap();
}

/// Its client gave up, and may have written again since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_waited_for_too_long_takes_no_effect() {
    let server = server().await;
    let database = server.database().await;
    let patient = open(server.options(&database)).await;
    let options = MysqlOptions {
        write_timeout: Duration::from_secs(1),
        lock_timeout: Duration::from_secs(60),
        query_timeout: Duration::from_secs(90),
        ..server.options(&database)
    };
    let waits = Duration::from_millis(1_500);
    let store = open(options).await;
    let id = bucket(&*patient).await;
    let mut holder = server.connect(&database).await;
    sqlx::raw_sql("BEGIN; SELECT slot FROM lock_slots FOR UPDATE").execute(&mut holder).await.unwrap();
    let release = async {
        // As long as it may wait, and longer.
        tokio::time::sleep(waits).await;
        sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
    };
    let (late, ()) = tokio::join!(store.commit_object(object(id, "k")), release);
    assert!(matches!(late, Err(MetadataError::Busy)), "{late:?}");
    assert!(matches!(patient.object(id, "k", None).await, Err(MetadataError::NoSuchKey)));
    patient.commit_object(object(id, "k")).await.unwrap();
}
