//! kill -9 in the middle of commits. The test runs itself as a child process that commits and says so on its output.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use super::*;

/// Tells the child where the database is.
const CHILD_VARIABLE: &str = "HOLDFAST_TEST_CRASH_DIRECTORY";
/// The child, as the test runner knows it.
const CHILD_NAME: &str = "metadata::sqlite::tests::crash::child_that_commits_until_it_is_killed";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child of killed_in_the_middle_of_commits_loses_nothing_acknowledged"]
async fn child_that_commits_until_it_is_killed() {
    let Ok(directory) = std::env::var(CHILD_VARIABLE) else { return };
    let store = Arc::new(open(Path::new(&directory)).await);
    let id = match store.bucket("b").await {
        Ok(bucket) => bucket.id,
        Err(_) => bucket(&store).await,
    };
    let clients = (0..8).map(|client| {
        let store = store.clone();
        tokio::spawn(async move {
            for i in 0.. {
                // Every other write replaces one, so that all statements are in play.
                let key = format!("{}-{client}-{}", std::process::id(), i / 2);
                let committed = store.commit_object(object(id, &key)).await.unwrap().object;
                // Only after the answer.
                println!("acknowledged {key} {}", committed.sequence);
            }
        })
    });
    futures::future::join_all(clients).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_commits_loses_nothing_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged: std::collections::HashMap<String, u64> = std::collections::HashMap::new();
    for round in 0..3usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([CHILD_NAME, "--exact", "--ignored", "--nocapture", "--test-threads", "1"])
            .env(CHILD_VARIABLE, directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        // Killed after a number of answers; what it said before it died counts too.
        while let Some(Ok(line)) = lines.next() {
            let Some(said) = line.split("acknowledged ").nth(1) else { continue };
            let Some((key, sequence)) = said.split_once(' ') else { continue };
            // The last line may be cut.
            let Ok(sequence) = sequence.parse::<u64>() else { continue };
            let newest = acknowledged.entry(key.to_owned()).or_default();
            *newest = sequence.max(*newest);
            seen += 1;
            if seen == 100 + 57 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen >= 100, "the child committed");

        let store = open(directory.path()).await;
        let verdict: String =
            sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&store.backend.readers.0).await.unwrap();
        assert_eq!(verdict, "ok");
        let id = store.bucket("b").await.unwrap().id;
        for (key, sequence) in &acknowledged {
            let read = store.object(id, key, None).await.unwrap();
            assert!(read.sequence >= *sequence, "{key}: {} after {sequence} was acknowledged", read.sequence);
        }
        // Every object has its content, every content is referred to as often as it says, or is queued.
        let wrong: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM contents c WHERE c.refs <> (SELECT COUNT(*) FROM objects o WHERE o.content = c.id) \
             OR (c.refs = 0) <> EXISTS (SELECT 1 FROM reclaims r WHERE r.content = c.id)",
        )
        .fetch_one(&store.backend.readers.0)
        .await
        .unwrap();
        assert_eq!(wrong, 0);
        store.close().await;
    }
}
