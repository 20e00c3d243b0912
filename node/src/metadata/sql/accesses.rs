//! Last reads, for lifecycle rules that go by them.
//!
//! Notes are written by themselves, without locks: they only rise, and nothing else hangs on them.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_actors::ports::accesses::{AccessLog, ReadKey, ReadNote};
use holdfast_actors::ports::metadata::{AgePosition, BucketId, MetadataResult};
use sqlx::AssertSqlSafe;

use super::lifecycle::{AGED_COLUMNS, aged_version, current_columns};
use super::store::boxed;
use super::{Backend, Dialect, Fields as _, Locks, Reader, Session, Shape, SqlMetadataStore, Value, values};
use crate::metadata::rows;

/// Keys of one statement.
const KEYS_MAX: usize = 64;

#[async_trait]
#[allow(private_bounds, reason = "the backends are this module's own")]
impl<B: Backend> AccessLog for SqlMetadataStore<B> {
    async fn note_reads(&self, notes: &[ReadNote]) -> MetadataResult<()> {
        // In one order, so that nodes that note the same keys wait for each other rather than for ever.
        let mut notes = notes.to_vec();
        notes.sort_unstable_by(|a, b| (a.bucket.0, &a.key).cmp(&(b.bucket.0, &b.key)));
        let notes: Arc<[ReadNote]> = notes.into();
        self.backend
            .write(Locks::none(), move |tx| {
                let notes = notes.clone();
                boxed(async move { tx.execute_many(Shape::NoteReads, &[], &notes, bind).await })
            })
            .await
    }

    async fn last_reads(&self, bucket: BucketId, keys: &[&str]) -> MetadataResult<Vec<(String, u64)>> {
        let mut reads = Vec::new();
        for keys in keys.chunks(KEYS_MAX) {
            let places = vec!["?"; keys.len()].join(",");
            let sql = format!("SELECT `key`, day_ms FROM accesses WHERE bucket = ? AND `key` IN ({places})");
            let mut values = values![rows::signed(bucket.0)];
            values.extend(keys.iter().map(|key| key.as_bytes().into()));
            for row in &self.backend.reads().fetch(AssertSqlSafe(sql), values).await? {
                reads.push((rows::key(row.bytes(0)?.to_vec())?, rows::unsigned(row.number(1)?)?));
            }
        }
        Ok(reads)
    }

    async fn read_keys(
        &self,
        bucket: BucketId,
        after: &AgePosition,
        until_ms: u64,
        limit: u32,
    ) -> MetadataResult<Vec<ReadKey>> {
        let dialect = <B::Reads as Reader>::DIALECT;
        let (bucket, until_ms, at_ms) = (rows::signed(bucket.0), rows::signed(until_ms), rows::signed(after.at_ms));
        let mut values = values![bucket, until_ms, at_ms];
        if dialect == Dialect::Mysql {
            values.push(at_ms.into());
        }
        values.extend(values![after.name.as_bytes(), i64::from(limit)]);
        let sql = read_keys_statement(dialect);
        let found = self.backend.reads().fetch(AssertSqlSafe(sql), values).await?;
        let key = |row: &<B::Reads as Reader>::Row| {
            let version = row.bytes_or_null(0)?.map(|_| aged_version(row)).transpose()?;
            Ok(ReadKey {
                key: rows::key(row.bytes(AGED_COLUMNS + 1)?.to_vec())?,
                day_ms: rows::unsigned(row.number(AGED_COLUMNS)?)?,
                version,
            })
        };
        found.iter().map(key).collect()
    }

    async fn forget_reads(&self, notes: &[ReadNote]) -> MetadataResult<()> {
        let notes: Arc<[ReadNote]> = notes.into();
        self.backend
            .write(Locks::none(), move |tx| {
                let notes = notes.clone();
                boxed(async move { tx.execute_many(Shape::ForgetReads, &[], &notes, bind).await })
            })
            .await
    }

    async fn next_read_bucket(&self, after: Option<BucketId>) -> MetadataResult<Option<BucketId>> {
        let sql = "SELECT bucket FROM accesses WHERE bucket > ? ORDER BY bucket LIMIT 1";
        let after = after.map_or(-1, |bucket| rows::signed(bucket.0));
        let row = self.backend.reads().fetch_optional(sql, values![after]).await?;
        row.map(|row| Ok(BucketId(rows::unsigned(row.number(0)?)?))).transpose()
    }

    async fn forget_bucket_reads(&self, bucket: BucketId, limit: u32) -> MetadataResult<u64> {
        self.backend.write(Locks::none(), move |tx| boxed(forget_bucket(tx, bucket, limit))).await
    }
}

/// Finds what was read up to a day, from a place on: bucket, until when, the place, how many. One day has as many keys
/// as were read: so the index has to lead to the key, too, and each database does that for its own way to say it. For
/// MySQL the place has its time twice.
pub(in crate::metadata) fn read_keys_statement(dialect: Dialect) -> String {
    let behind = match dialect {
        Dialect::Sqlite => "(a.day_ms, a.key) > (?, ?)",
        Dialect::Mysql => "(a.day_ms > ? OR a.day_ms = ? AND a.key > ?)",
    };
    format!(
        "SELECT {}, a.day_ms, a.key FROM accesses a {} \
         LEFT JOIN objects o ON o.bucket = a.bucket AND o.key = a.key LEFT JOIN contents c ON c.id = o.content \
         WHERE a.bucket = ? AND a.day_ms <= ? AND {behind} ORDER BY a.day_ms, a.key LIMIT ?",
        current_columns(),
        dialect.by_index("accesses_by_day")
    )
}

async fn forget_bucket<S: Session>(tx: &mut S, bucket: BucketId, limit: u32) -> MetadataResult<u64> {
    let (bucket, limit) = (rows::signed(bucket.0), i64::from(limit));
    // SQLite has no LIMIT here. MariaDB would look through all that a subquery found, for each note of the bucket.
    let (sql, values) = match S::DIALECT {
        Dialect::Sqlite => (
            "DELETE FROM accesses WHERE bucket = ? AND `key` IN \
             (SELECT `key` FROM accesses WHERE bucket = ? ORDER BY `key` LIMIT ?)",
            values![bucket, bucket, limit],
        ),
        Dialect::Mysql => ("DELETE FROM accesses WHERE bucket = ? ORDER BY `key` LIMIT ?", values![bucket, limit]),
    };
    Ok(tx.execute(sql, values).await?.rows_affected)
}

fn bind(note: &ReadNote) -> Vec<Value> {
    values![rows::signed(note.bucket.0), note.key.as_bytes(), rows::signed(note.day_ms)]
}
