//! Transactions that wait together, and what befalls one of them.

use super::*;

/// The writer takes what waits together into one transaction: 64 commits in flight take far fewer flushes.
#[tokio::test]
async fn commits_that_wait_together_share_a_flush() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(directory.path()).await);
    let id = bucket(&store).await;
    // While this verb runs the others pile up.
    let (go, gate) = oneshot::channel::<()>();
    let holding = write(&store, |_| boxed(async move { gate.await.map_err(|_| closed()) }));
    let commits = (0..200).map(|i| store.commit_object(object(id, &format!("k{i}"))));
    let piled = futures::future::join_all(commits);
    let before = log_pages(&directory.path().join("metadata.db-wal"));
    let ((), results) = futures::join!(
        async {
            // Both futures below are queued when first polled; then the gate opens.
            tokio::task::yield_now().await;
            go.send(()).unwrap();
        },
        async { futures::join!(holding, piled).1 }
    );
    assert!(results.iter().all(Result::is_ok));
    let frames = log_pages(&directory.path().join("metadata.db-wal")) - before;
    // A commit of its own for each would write three pages or more each.
    assert!(frames < 200, "{frames} pages logged for 200 commits");
}

#[tokio::test]
async fn a_full_queue_answers_busy_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    let (go, gate) = oneshot::channel::<()>();
    let mut holding = Box::pin(write(&store, |_| boxed(async move { gate.await.map_err(|_| closed()) })));
    assert!(futures::poll!(&mut holding).is_pending());
    let mut waiting = Vec::new();
    let mut refused = 0;
    // The queue, and what the writer may have taken from it.
    for i in 0..QUEUE_JOBS_MAX + 300 {
        let mut commit = store.commit_object(object(id, &format!("k{i}")));
        match futures::poll!(&mut commit) {
            std::task::Poll::Pending => waiting.push(commit),
            std::task::Poll::Ready(Err(MetadataError::Busy)) => refused += 1,
            std::task::Poll::Ready(other) => panic!("{other:?}"),
        }
    }
    // The verb that holds the writer has a place too.
    assert!(refused > 0 && waiting.len() >= QUEUE_JOBS_MAX - 1, "{refused} refused");
    go.send(()).unwrap();
    holding.await.unwrap();
    for commit in waiting {
        commit.await.unwrap();
    }
}

/// A content id that exists already is refused; the rest of the batch goes through.
#[tokio::test]
async fn one_failing_commit_does_not_undo_its_neighbours() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    let taken = ContentId::generate(9);
    let with = |key: &str| NewObject { content: ContentSource::New(samples::content(taken, 4096)), ..object(id, key) };
    store.commit_object(with("first")).await.unwrap();
    let (go, gate) = oneshot::channel::<()>();
    let mut holding = Box::pin(write(&store, |_| boxed(async move { gate.await.map_err(|_| closed()) })));
    assert!(futures::poll!(&mut holding).is_pending());
    let commits = [object(id, "a"), with("collides"), object(id, "b")].map(|object| store.commit_object(object));
    let mut commits = Box::pin(futures::future::join_all(commits));
    assert!(futures::poll!(&mut commits).is_pending());
    go.send(()).unwrap();
    holding.await.unwrap();
    let results = commits.await;
    assert!(results[0].is_ok() && results[2].is_ok());
    assert!(matches!(results[1], Err(MetadataError::Unavailable(_))), "{:?}", results[1]);
    assert!(store.object(id, "a", None).await.is_ok() && store.object(id, "b", None).await.is_ok());
    assert!(matches!(store.object(id, "collides", None).await, Err(MetadataError::NoSuchKey)));
}

#[tokio::test]
async fn a_verb_that_panics_does_not_end_the_writer() {
    fn falls() -> MetadataResult<()> {
        panic!("a bug")
    }
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let fell = write(&store, |_| boxed(async { falls() })).await;
    assert!(matches!(fell, Err(MetadataError::Unknown(_))), "{fell:?}");
    bucket(&store).await;
}

#[tokio::test]
async fn a_dropped_caller_loses_the_answer_not_the_write() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    let mut abandoned = store.commit_object(object(id, "k"));
    assert!(futures::poll!(&mut abandoned).is_pending());
    drop(abandoned);
    // Verbs are done in order, so that this one's answer comes after.
    store.commit_object(object(id, "other")).await.unwrap();
    assert!(store.object(id, "k", None).await.is_ok());
}

/// A database that may not grow: writes are refused, nothing is lost, reads go on, and room makes writes work again.
#[tokio::test]
async fn a_full_database_refuses_writes_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    store.commit_object(object(id, "kept")).await.unwrap();
    let limit = |pages: &'static str| {
        write(&store, move |tx| {
            boxed(async move { sqlx::query(pages).execute(tx.conn()).await.map(drop).map_err(refused) })
        })
    };
    limit("PRAGMA max_page_count = 1").await.unwrap();
    assert_eq!(store.no_space(), None);
    let mut refused = None;
    for i in 0..2000 {
        if let Err(error) = store.commit_object(object(id, &format!("{i:01000}"))).await {
            refused = Some((i, error));
            break;
        }
    }
    let (i, error) = refused.expect("the limit was reached");
    assert!(matches!(error, MetadataError::NoSpace(_)), "{error:?}");
    let why = store.no_space().expect("it is told");
    assert!(why.contains("make room on the file system of") && why.contains("metadata.db"), "{why}");
    assert_eq!(store.writes_stopped(), None);
    assert!(store.object(id, "kept", None).await.is_ok());
    assert!(matches!(store.object(id, &format!("{i:01000}"), None).await, Err(MetadataError::NoSuchKey)));
    limit("PRAGMA max_page_count = 1000000").await.unwrap();
    assert!(store.no_space().is_some(), "nobody has tried");
    let log = || std::fs::read(directory.path().join("metadata.db-wal")).unwrap();
    let before = log();
    store.ping().await.unwrap();
    assert_eq!(store.no_space(), None, "a health check has tried");
    assert!(log() != before, "it has written nothing, and so found room where there is none");
    store.commit_object(object(id, "again")).await.unwrap();
    assert!(store.object(id, "again", None).await.is_ok());
}

/// SQLite may roll back the whole transaction then. Nobody in it is told that anything was written.
#[tokio::test]
async fn a_batch_for_which_there_is_no_room_is_rolled_back_whole_or_but_for_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    write(&store, |tx| {
        boxed(
            async move { sqlx::query("PRAGMA max_page_count = 1").execute(tx.conn()).await.map(drop).map_err(refused) },
        )
    })
    .await
    .unwrap();
    let (go, gate) = oneshot::channel::<()>();
    let mut holding = Box::pin(write(&store, |_| boxed(async move { gate.await.map_err(|_| closed()) })));
    assert!(futures::poll!(&mut holding).is_pending());
    let keys: Vec<String> = (0..200).map(|i| format!("{i:01000}")).collect();
    let mut commits = Box::pin(futures::future::join_all(keys.iter().map(|k| store.commit_object(object(id, k)))));
    assert!(futures::poll!(&mut commits).is_pending());
    go.send(()).unwrap();
    // It is of the same batch.
    let held = holding.await;
    assert!(matches!(held, Ok(()) | Err(MetadataError::NoSpace(_))), "{held:?}");
    let results = commits.await;
    assert!(results.iter().any(|result| matches!(result, Err(MetadataError::NoSpace(_)))), "there was room");
    for (key, result) in keys.iter().zip(results) {
        let found = store.object(id, key, None).await;
        match result {
            Ok(_) => assert!(found.is_ok(), "{found:?}"),
            Err(MetadataError::NoSpace(_)) => assert!(matches!(found, Err(MetadataError::NoSuchKey)), "{found:?}"),
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// After a COMMIT that failed nobody knows what is on the disk until the log has been read anew. Above all the reaper
/// must not take the contents of that commit for orphans: the next start may find it done.
#[tokio::test]
async fn a_commit_of_unknown_outcome_stops_writes_and_the_search_for_orphans_until_the_next_start() {
    use std::sync::atomic::{AtomicBool, Ordering};

    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    let before = store.commit_object(object(id, "before")).await.unwrap().object.content.clone().unwrap().id;
    let failing = Arc::new(AtomicBool::new(false));
    let hook = failing.clone();
    write(&store, move |tx| {
        boxed(async move {
            let mut handle = tx.conn().lock_handle().await.unwrap();
            handle.set_commit_hook(move || !hook.load(Ordering::SeqCst));
            Ok(())
        })
    })
    .await
    .unwrap();
    failing.store(true, Ordering::SeqCst);
    let unknown = object(id, "unknown");
    let ContentSource::New(content) = unknown.content.clone() else { unreachable!("object() makes a new content") };
    assert!(matches!(store.commit_object(unknown).await, Err(MetadataError::Unknown(_))));
    failing.store(false, Ordering::SeqCst);
    assert!(matches!(store.commit_object(object(id, "after")).await, Err(MetadataError::Unavailable(_))));
    assert!(matches!(store.due_reclaims(u64::MAX >> 1, 10, None).await, Err(MetadataError::Unavailable(_))));
    assert!(matches!(store.known_contents(&[content.id]).await, Err(MetadataError::Unavailable(_))));
    assert_eq!(store.known_contents(&[before]).await.unwrap(), [before]);
    assert!(store.object(id, "before", None).await.is_ok(), "reads go on");
    store.close().await;
    let store = open(directory.path()).await;
    store.commit_object(object(id, "after")).await.unwrap();
    assert_eq!(store.known_contents(&[before, content.id]).await.unwrap(), [before]);
}
