//! What goes by an index, and how much is read.

use super::*;
use crate::metadata::sql::accesses::read_keys_statement;

/// No hot statement scans a table or sorts.
#[tokio::test]
async fn hot_statements_go_by_index() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let statements = [
        shapes::Shape::LoadKeys.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::Archive.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::RemoveObjects.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::Dereference.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::QueueUnreferenced.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::Known.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::Holders.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::Condemn.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::LoadEpochs.text(shapes::Dialect::Sqlite, 3),
        "SELECT id, chunk, queued_ms FROM repairs WHERE node = ? AND id > ? ORDER BY id LIMIT ?".to_owned(),
        shapes::Shape::ClaimPieces.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::ForgetReads.text(shapes::Dialect::Sqlite, 3),
        read_keys_statement(shapes::Dialect::Sqlite),
        "SELECT bucket FROM accesses WHERE bucket > ? ORDER BY bucket LIMIT 1".to_owned(),
        shapes::Shape::NotePieces.text(shapes::Dialect::Sqlite, 3),
        shapes::Shape::RemovePieces.text(shapes::Dialect::Sqlite, 3),
        "SELECT id FROM moves INDEXED BY moves_by_due WHERE lane = ? AND due_ms <= ? ORDER BY due_ms, id LIMIT ?".to_owned(),
        "SELECT id FROM moves WHERE bucket = ? AND key = ? AND version = ?".to_owned(),
        "SELECT id FROM tier_pieces INDEXED BY tier_pieces_by_due WHERE tier = ? AND due_ms <= ? ORDER BY due_ms, id LIMIT ?"
            .to_owned(),
        "SELECT name FROM tier_pieces WHERE attempt = ?".to_owned(),
        "SELECT cold FROM contents INDEXED BY contents_by_tier WHERE tier = ? AND id > ? ORDER BY id LIMIT ?".to_owned(),
        listing::LIST_OBJECTS.to_owned(),
        "SELECT sequence FROM history WHERE bucket = ? AND key = ? AND version = ?".to_owned(),
        "SELECT sequence FROM history WHERE bucket = ? AND key >= ? AND key < ? ORDER BY key, sequence DESC LIMIT ?"
            .to_owned(),
    ];
    for statement in statements {
        let parameters = statement.matches('?').count();
        let mut query = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}")));
        for _ in 0..parameters {
            query = query.bind(1_i64);
        }
        for row in query.fetch_all(&store.backend.readers.0).await.unwrap() {
            let step: String = row.get(3);
            // The rows that the statement itself brings may be scanned.
            let brought = matches!(&*step, "SCAN k" | "SCAN t" | "SCAN w")
                || step.contains("CONSTANT ROW")
                || step.contains("VALUES");
            let scans_rows = step.starts_with("SCAN") && !brought;
            assert!(!scans_rows && !step.contains("TEMP B-TREE"), "{statement}: {step}");
        }
    }
}

/// Rows fetched for a page follow what the page returns, not what lies under its common prefixes.
#[tokio::test]
async fn listing_with_a_delimiter_seeks_past_prefixes() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    measure::fill(&store, id, 5, 2_000).await;
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let query = ListQuery { delimiter: Some("/".into()), after: ListAfter::Start, limit: 1000, ..Default::default() };
    let page = {
        // Everything below runs on this thread.
        let _guard = metrics::set_default_local_recorder(&recorder);
        store.list_objects(id, query).await.unwrap()
    };
    assert_eq!(page.common_prefixes.len(), 5);
    let fetches = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .find(|(key, ..)| key.key().name() == "holdfast_metadata_list_fetches_total")
        .map(|(.., value)| value);
    // One for each prefix, and one that finds the end.
    assert_eq!(fetches, Some(metrics_util::debugging::DebugValue::Counter(6)));
}

/// What is due is found by the index alone, however much is stored.
#[tokio::test]
async fn pages_in_order_of_age_are_scans_of_an_index() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    measure::fill(&store, id, 1, 10).await;
    let bucket = rows_signed(id);
    let plans = write(&store, move |tx| {
        boxed(async move {
            let mut plans = Vec::new();
            let read_keys = read_keys_statement(shapes::Dialect::Sqlite);
            // However many versions a key has, one is looked at.
            let supersede = shapes::Shape::SupersedeMarkers.text(shapes::Dialect::Sqlite, 2);
            let newest = shapes::Shape::NewestPast.text(shapes::Dialect::Sqlite, 2);
            for sql in [
                "SELECT o.key FROM objects o INDEXED BY objects_by_age WHERE o.bucket = ?1 AND o.modified_ms >= 1 \
                 AND o.modified_ms <= 9 AND (o.modified_ms > 1 OR o.key > x'') ORDER BY o.modified_ms, o.key LIMIT 5",
                "SELECT o.key FROM history o INDEXED BY history_by_age WHERE o.bucket = ?1 AND o.latest = 0 \
                 AND o.since_ms >= 1 AND o.since_ms <= 9 AND (o.since_ms > 1 OR o.key > x'' OR (o.key = x'' AND \
                 o.sequence > 1)) ORDER BY o.since_ms, o.key, o.sequence LIMIT 5",
                supersede.as_str(),
                read_keys.as_str(),
                newest.as_str(),
            ] {
                let mut plan = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}")));
                let parameters = if sql.contains("?1") { 1 } else { sql.matches('?').count() };
                for _ in 0..parameters {
                    plan = plan.bind(bucket);
                }
                let steps = plan.fetch_all(tx.conn()).await.map_err(refused)?;
                let text: Vec<String> = steps.iter().map(|row| row.get::<String, _>("detail")).collect();
                plans.push(text.join("; "));
            }
            Ok(plans)
        })
    });
    let plans = plans.await.unwrap();
    assert!(plans[3].contains("accesses_by_day (bucket=? AND (day_ms,key)>(?,?) AND day_ms<?)"), "{}", plans[3]);
    assert!(plans[0].contains("objects_by_age (bucket=? AND modified_ms>? AND modified_ms<?)"), "{}", plans[0]);
    assert!(plans[1].contains("history_by_age (bucket=? AND latest=? AND since_ms>? AND since_ms<?)"), "{}", plans[1]);
    assert!(plans[2].contains("(bucket=? AND key=? AND sequence=?)"), "{}", plans[2]);
    assert!(!plans[2].contains("SCAN"), "{}", plans[2]);
    assert!(plans[4].contains("SEARCH history USING PRIMARY KEY (bucket=? AND key=?)"), "{}", plans[4]);
    for plan in [&plans[0], &plans[1], &plans[3], &plans[4]] {
        assert!(!plan.contains("TEMP B-TREE"), "{plan}");
    }
}

fn rows_signed(id: BucketId) -> i64 {
    i64::try_from(id.0).unwrap()
}
