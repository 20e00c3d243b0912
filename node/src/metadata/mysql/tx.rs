//! One transaction of a verb: locks, statements, commit, and what became of a commit whose connection broke.
//!
//! BEGIN, all locks, and the transaction's row in `commits` go to the server in one trip. The row's number, given after
//! the locks were granted, orders all transactions that shared a lock: sequence numbers are made from it.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_actors::ports::metadata::{MetadataError, MetadataResult};
use sqlx::mysql::{MySqlArguments, MySqlQueryResult, MySqlRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, MySql, MySqlConnection, Row as _, SqlStr};
use tokio::time::timeout;

use super::error::{Failure, failure, is_duplicate, refused, timed_out};
use super::pool::{Lease, Pool};
use crate::metadata::sql::locks::{Epochs, SLOTS};
use crate::metadata::sql::{Dialect, Done, Fields, Locks, Session, Value};

/// Sequence numbers of one transaction: more than a group of operations can use.
const SEQUENCES: i64 = 1 << 12;
/// Times that a verb is run before it is given up.
const ATTEMPTS: u32 = 8;
/// A verb that met another one waits up to this, times the attempt, before it is run again.
const PAUSE: Duration = Duration::from_millis(15);

/// Text is bound as bytes: nothing has a character set.
pub(super) fn bound(sql: SqlStr, values: Vec<Value>) -> Query<'static, MySql, MySqlArguments> {
    values.into_iter().fold(sqlx::query(sql), |query, value| match value {
        Value::Null => query.bind(None::<Vec<u8>>),
        Value::Number(number) => query.bind(number),
        Value::Bytes(bytes) => query.bind(bytes),
        Value::Text(text) => query.bind(text.into_bytes()),
    })
}

impl Fields for MySqlRow {
    fn number_or_null(&self, at: usize) -> MetadataResult<Option<i64>> {
        self.try_get(at).map_err(|error| refused(&error))
    }

    fn bytes_or_null(&self, at: usize) -> MetadataResult<Option<&[u8]>> {
        self.try_get(at).map_err(|error| refused(&error))
    }

    fn text_or_null(&self, at: usize) -> MetadataResult<Option<&str>> {
        let text = self.bytes_or_null(at)?.map(std::str::from_utf8).transpose();
        text.map_err(|_| MetadataError::Corrupt("text that is not UTF-8".to_owned()))
    }
}

/// An open transaction.
pub struct Tx {
    lease: Lease,
    token: [u8; 16],
    /// Of its row in `commits`.
    number: i64,
    next_sequence: i64,
    /// The worst that happened in it.
    failed: Option<Failure>,
}

impl Tx {
    async fn begin(pool: &Pool, locks: &Locks) -> Result<Self, Ended> {
        let lease = pool.acquire().await.map_err(Ended::Refused)?;
        let token: [u8; 16] = rand::random();
        let mut tx = Self { lease, token, number: 0, next_sequence: 0, failed: None };
        // Numbers and hexadecimal digits: nothing in it needs quoting.
        let mut sql = "BEGIN".to_owned();
        let mut slots: Vec<String> = locks.slots.iter().map(u32::to_string).collect();
        if locks.epochs == Epochs::Raised {
            slots.push(SLOTS.to_string());
        }
        if !slots.is_empty() {
            let slots = slots.join(",");
            write!(sql, "; SELECT slot FROM lock_slots WHERE slot IN ({slots}) ORDER BY slot FOR UPDATE").ok();
        }
        if locks.epochs == Epochs::Held {
            write!(sql, "; SELECT slot FROM lock_slots WHERE slot = {SLOTS} LOCK IN SHARE MODE").ok();
        }
        if !locks.buckets.is_empty() {
            let buckets: Vec<String> = locks.buckets.iter().map(|bucket| bucket.0.to_string()).collect();
            let buckets = buckets.join(",");
            // The row itself: a shared lock by way of an index that holds all that is read would stay with that index.
            let of = "buckets FORCE INDEX (PRIMARY)";
            write!(sql, "; SELECT id FROM {of} WHERE id IN ({buckets}) ORDER BY id LOCK IN SHARE MODE").ok();
        }
        write!(sql, "; INSERT INTO commits (token) VALUES (x'{}')", hex::encode(token)).ok();
        let before = pool.kept().number();
        let limit = tx.lease.query_timeout();
        let begun = timeout(limit, sqlx::raw_sql(AssertSqlSafe(sql)).execute(tx.lease.conn())).await;
        match begun.unwrap_or_else(|_| Err(timed_out())) {
            Ok(done) => {
                let number = i64::try_from(done.last_insert_id()).unwrap_or(i64::MAX / SEQUENCES);
                if number <= before {
                    pool.doubt();
                }
                tx.number = number;
                tx.next_sequence = number * SEQUENCES;
                Ok(tx)
            }
            Err(error) => {
                tx.note(&error);
                tx.end(refused(&error)).await
            }
        }
    }

    fn note(&mut self, error: &sqlx::Error) {
        let failure = failure(error);
        if failure == Failure::Connection {
            self.lease.suspect();
        }
        if self.failed != Some(Failure::Connection) {
            self.failed = Some(failure);
        }
    }

    /// Gives the transaction up. A connection that is lost is left to the server, which rolls back.
    async fn end<T>(mut self, error: MetadataError) -> Result<T, Ended> {
        if self.failed != Some(Failure::Connection) {
            let limit = self.lease.query_timeout();
            match timeout(limit, sqlx::raw_sql("ROLLBACK").execute(self.lease.conn())).await {
                Ok(Ok(_)) => self.lease.give_back(),
                Ok(Err(_)) | Err(_) => self.lease.suspect(),
            }
        }
        Err(match self.failed {
            Some(Failure::Contention | Failure::Connection) => Ended::Again(error),
            Some(Failure::Statement) | None => Ended::Refused(error),
        })
    }

    async fn commit(mut self, pool: &Pool) -> Result<(), Ended> {
        let started = Instant::now();
        let limit = self.lease.query_timeout();
        let done = timeout(limit, sqlx::raw_sql("COMMIT").execute(self.lease.conn())).await;
        let error = match done.unwrap_or_else(|_| Err(timed_out())) {
            Ok(_) => {
                pool.kept().acknowledged(self.number, self.token);
                self.lease.give_back();
                metrics::histogram!("holdfast_metadata_commit_seconds").record(started.elapsed().as_secs_f64());
                metrics::counter!("holdfast_metadata_commits_total").increment(1);
                return Ok(());
            }
            Err(error) => error,
        };
        metrics::counter!("holdfast_metadata_commits_failed_total").increment(1);
        self.lease.suspect();
        let (token, number) = (self.token, self.number);
        // The connection first: as long as it is open, the server may keep the transaction open too.
        drop(self);
        match settle(pool, &token, number).await {
            Some(true) => {
                pool.kept().acknowledged(number, token);
                Ok(())
            }
            Some(false) => Err(Ended::Again(refused(&error))),
            None => Err(Ended::Refused(MetadataError::Unknown(error.to_string()))),
        }
    }
}

/// Whether a transaction was committed; `None` if that could not be learned in time.
///
/// The token is inserted again. That waits for a transaction that is still open, and fails if it was committed. If it
/// succeeds the transaction can no longer be committed, not even if its last words are still on their way: its own
/// insert stands before its COMMIT. An insert of this very function may have happened without an answer, so a row that
/// is there counts only under the transaction's own `number`. And where rows as old as the transaction's were removed
/// already, that nothing is there says nothing.
async fn settle(pool: &Pool, token: &[u8; 16], number: i64) -> Option<bool> {
    let deadline = Instant::now() + pool.options().settle_timeout;
    while Instant::now() < deadline {
        if let Ok(mut conn) = pool.connect().await {
            let look = timeout(pool.options().query_timeout, look_for(&mut conn, token, number));
            if let Ok(Ok(found)) = look.await {
                return found;
            }
        }
        tokio::time::sleep(Duration::from_millis(rand::random_range(50..150))).await;
    }
    None
}

/// One look of [`settle`]; an error says nothing.
async fn look_for(conn: &mut MySqlConnection, token: &[u8; 16], number: i64) -> Result<Option<bool>, sqlx::Error> {
    let token = hex::encode(token);
    let insert = format!("INSERT INTO commits (token) VALUES (x'{token}')");
    if let Err(error) = sqlx::raw_sql(AssertSqlSafe(insert)).execute(&mut *conn).await {
        if !is_duplicate(&error) {
            return Err(error);
        }
        let select = format!("SELECT id FROM commits WHERE token = x'{token}'");
        let found: i64 = sqlx::query_scalar(AssertSqlSafe(select)).fetch_one(&mut *conn).await?;
        if found == number {
            return Ok(Some(true));
        }
    }
    let oldest: i64 = sqlx::query_scalar("SELECT MIN(id) FROM commits").fetch_one(conn).await?;
    Ok((oldest <= number).then_some(false))
}

/// How an attempt ended without success.
enum Ended {
    /// Nothing happened, and another attempt may succeed.
    Again(MetadataError),
    /// This is the answer.
    Refused(MetadataError),
}

/// [`transaction_until`], of a verb that is asked for now.
pub(super) async fn transaction<T, F>(pool: &Pool, locks: &Locks, run: F) -> MetadataResult<T>
where
    F: for<'a> Fn(&'a mut Tx) -> BoxFuture<'a, MetadataResult<T>>,
{
    transaction_until(pool, locks, pool.write_deadline(), run).await
}

/// Runs a verb until it is committed, refused or given up. Must be driven to its end.
///
/// It takes effect only if it has its locks by `until`: no write that is begun and acknowledged after that is undone by
/// it. Nothing else is committed to its keys between that look and its COMMIT: it has the locks, and the server takes
/// them, with all that was done, from a session that says nothing.
pub(super) async fn transaction_until<T, F>(pool: &Pool, locks: &Locks, until: Instant, run: F) -> MetadataResult<T>
where
    F: for<'a> Fn(&'a mut Tx) -> BoxFuture<'a, MetadataResult<T>>,
{
    let is_late = || Instant::now() >= until;
    let mut attempt = 1;
    loop {
        let result = async {
            let mut tx = Tx::begin(pool, locks).await?;
            if is_late() {
                metrics::counter!("holdfast_metadata_refused_total").increment(1);
                return tx.end(MetadataError::Busy).await;
            }
            match run(&mut tx).await {
                Ok(value) => tx.commit(pool).await.map(|()| value),
                Err(error) => tx.end(error).await,
            }
        };
        let result = result.await;
        if let Err(Ended::Again(MetadataError::NoSpace(detail)) | Ended::Refused(MetadataError::NoSpace(detail))) =
            &result
        {
            pool.room().is_missing(detail);
        }
        match result {
            Ok(value) => return Ok(value),
            Err(Ended::Refused(error)) => return Err(error),
            Err(Ended::Again(error)) if attempt == ATTEMPTS || is_late() => return Err(error),
            Err(Ended::Again(_)) => metrics::counter!("holdfast_metadata_retries_total").increment(1),
        }
        let pause = PAUSE * attempt;
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.2..1.0))).await;
        attempt += 1;
    }
}

impl Session for Tx {
    type Row = MySqlRow;
    const DIALECT: Dialect = Dialect::Mysql;

    fn run_fetch(&mut self, sql: SqlStr, values: Vec<Value>) -> BoxFuture<'_, MetadataResult<Vec<MySqlRow>>> {
        async move {
            let limit = self.lease.query_timeout();
            let found = timeout(limit, bound(sql, values).fetch_all(self.lease.conn())).await;
            found.unwrap_or_else(|_| Err(timed_out())).map_err(|error| {
                self.note(&error);
                refused(&error)
            })
        }
        .boxed()
    }

    fn run_execute(&mut self, sql: SqlStr, values: Vec<Value>) -> BoxFuture<'_, MetadataResult<Done>> {
        async move {
            let limit = self.lease.query_timeout();
            let done = timeout(limit, bound(sql, values).execute(self.lease.conn())).await;
            let done: MySqlQueryResult = done.unwrap_or_else(|_| Err(timed_out())).map_err(|error| {
                self.note(&error);
                refused(&error)
            })?;
            let last_id = i64::try_from(done.last_insert_id()).unwrap_or(-1);
            Ok(Done { rows_affected: done.rows_affected(), last_id })
        }
        .boxed()
    }

    fn take_sequence(&mut self) -> i64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        sequence
    }
}
