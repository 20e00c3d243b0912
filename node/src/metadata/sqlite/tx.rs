//! The writer's connection: transactions, savepoints and sequence numbers; and the pool of those that read.

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_actors::ports::metadata::{MetadataError, MetadataResult};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteQueryResult, SqliteRow};
use sqlx::{Row as _, SqlStr, SqliteConnection, SqlitePool};

use super::error::{is_full, refused};
use crate::metadata::room::of_read;
use crate::metadata::sql::{Dialect, Done, Fields, Reader, Session, Value};

/// Sequence numbers that one batch can use at most; the writer makes sure of so many before it starts.
const SEQUENCES_PER_BATCH_MAX: i64 = 1 << 20;
/// How many sequence numbers are taken from the database at once. Those left over at the end of the process are
/// skipped.
const SEQUENCES_TAKEN: i64 = 1 << 24;

/// How long a read may take: its disk may hang without a word. The connection is of use again when the disk answers
/// after all.
const READ_MAX: Duration = Duration::from_secs(120);

/// The one connection that writes. Its transaction spans a batch of verbs, each under the savepoint `verb`.
pub struct Tx {
    conn: SqliteConnection,
    next_sequence: i64,
    sequences_end: i64,
    /// The end of the range taken in the open transaction; counts once that is committed.
    sequences_end_pending: Option<i64>,
    /// What was said where there was no room, in the open transaction or at its end.
    no_space: Option<String>,
}

impl Tx {
    pub(super) fn new(conn: SqliteConnection) -> Self {
        Self { conn, next_sequence: 0, sequences_end: 0, sequences_end_pending: None, no_space: None }
    }

    /// What was said where there was no room since the transaction was begun. SQLite may have rolled all of it back by
    /// itself then, so that the next statement fails for another reason.
    pub(super) fn no_space(&self) -> Option<&str> {
        self.no_space.as_deref()
    }

    fn note<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        if let Err(error) = &result
            && is_full(error)
        {
            self.no_space.get_or_insert_with(|| error.to_string());
        }
        result
    }

    /// The connection, for what is particular to SQLite.
    #[cfg(test)]
    pub(super) fn conn(&mut self) -> &mut SqliteConnection {
        &mut self.conn
    }

    /// Opens a transaction and the savepoint of its first verb.
    pub(super) async fn begin(&mut self) -> Result<(), sqlx::Error> {
        self.no_space = None;
        self.run("BEGIN IMMEDIATE; SAVEPOINT verb").await?;
        self.sequences_end_pending = None;
        if self.next_sequence + SEQUENCES_PER_BATCH_MAX > self.sequences_end {
            let end: Result<i64, sqlx::Error> =
                sqlx::query_scalar("UPDATE counters SET value = value + ? WHERE name = 'sequence' RETURNING value")
                    .bind(SEQUENCES_TAKEN)
                    .fetch_one(&mut self.conn)
                    .await;
            let end = self.note(end)?;
            // A range that follows the last one extends it; the first, or one after a rollback, starts anew.
            self.next_sequence = self.next_sequence.max(end - SEQUENCES_TAKEN);
            self.sequences_end_pending = Some(end);
            // Rolling back the first verb must not undo this.
            self.next_verb().await?;
        }
        Ok(())
    }

    /// Keeps the effects of the verb that just ran and opens the savepoint of the next one.
    pub(super) async fn next_verb(&mut self) -> Result<(), sqlx::Error> {
        self.run("RELEASE verb; SAVEPOINT verb").await
    }

    /// Undoes the verb that just failed. On an error the whole transaction is lost.
    pub(super) async fn undo_verb(&mut self) -> Result<(), sqlx::Error> {
        self.run("ROLLBACK TO verb").await
    }

    /// Commits; the effects are durable when this returns.
    pub(super) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.run("COMMIT").await?;
        if let Some(end) = self.sequences_end_pending.take() {
            self.sequences_end = end;
        }
        Ok(())
    }

    /// Gives the transaction up, if SQLite has not done so itself.
    pub(super) async fn abandon(&mut self) {
        self.sequences_end_pending = None;
        // "No transaction is active" is the only answer other than success, and as good.
        self.run("ROLLBACK").await.ok();
    }

    async fn run(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        let done = sqlx::query(sql).execute(&mut self.conn).await.map(drop);
        self.note(done)
    }
}

impl Tx {
    /// The connection, to close it.
    pub(super) fn into_conn(self) -> SqliteConnection {
        self.conn
    }
}

fn bound(sql: SqlStr, values: Vec<Value>) -> Query<'static, sqlx::Sqlite, SqliteArguments> {
    values.into_iter().fold(sqlx::query(sql), |query, value| match value {
        Value::Null => query.bind(None::<Vec<u8>>),
        Value::Number(number) => query.bind(number),
        Value::Bytes(bytes) => query.bind(bytes),
        Value::Text(text) => query.bind(text),
    })
}

impl Fields for SqliteRow {
    fn number_or_null(&self, at: usize) -> MetadataResult<Option<i64>> {
        self.try_get(at).map_err(refused)
    }

    fn bytes_or_null(&self, at: usize) -> MetadataResult<Option<&[u8]>> {
        self.try_get(at).map_err(refused)
    }

    fn text_or_null(&self, at: usize) -> MetadataResult<Option<&str>> {
        self.try_get(at).map_err(refused)
    }
}

impl Session for Tx {
    type Row = SqliteRow;
    const DIALECT: Dialect = Dialect::Sqlite;

    fn run_fetch(&mut self, sql: SqlStr, values: Vec<Value>) -> BoxFuture<'_, MetadataResult<Vec<SqliteRow>>> {
        async move {
            let found = bound(sql, values).fetch_all(&mut self.conn).await;
            self.note(found).map_err(refused)
        }
        .boxed()
    }

    fn run_execute(&mut self, sql: SqlStr, values: Vec<Value>) -> BoxFuture<'_, MetadataResult<Done>> {
        async move {
            let done = bound(sql, values).execute(&mut self.conn).await;
            let done: SqliteQueryResult = self.note(done).map_err(refused)?;
            Ok(Done { rows_affected: done.rows_affected(), last_id: done.last_insert_rowid() })
        }
        .boxed()
    }

    fn take_sequence(&mut self) -> i64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        sequence
    }
}

/// The connections that read.
pub struct Readers(pub(super) SqlitePool);

impl Reader for Readers {
    type Row = SqliteRow;
    const DIALECT: Dialect = Dialect::Sqlite;

    fn run_fetch(&self, sql: SqlStr, values: Vec<Value>) -> BoxFuture<'_, MetadataResult<Vec<SqliteRow>>> {
        async move {
            let found = tokio::time::timeout(READ_MAX, bound(sql, values).fetch_all(&self.0)).await;
            let late = |_| MetadataError::Unavailable("the metadata database did not answer in time".to_owned());
            found.map_err(late)?.map_err(|error| of_read(refused(error)))
        }
        .boxed()
    }
}
