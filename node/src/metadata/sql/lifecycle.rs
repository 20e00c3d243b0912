//! What lifecycle rules ask for: versions in order of age, how far walks over them have come, and keys to be looked at
//! again.
//!
//! Each page is one range scan of an index that is named in the statement: without it a database may find it cheaper to
//! sort a whole bucket.

use holdfast_actors::ports::metadata::{
    AgePosition, AgedKind, AgedVersion, BucketConfigKind, BucketId, MetadataError, MetadataResult, OnlyNoncurrent,
    Recheck, Standing,
};
use holdfast_protocol::VersionId;
use sqlx::AssertSqlSafe;

use super::{Fields, Reader, Session, Shape, values};
use crate::metadata::rows;

/// What an [`AgedVersion`] is read from, but for the time since when it is what it is, and the two numbers of
/// [`standing`].
const COLUMNS: &str = "o.key, o.sequence, o.version, o.modified_ms, o.tags, c.size_bytes, o.content, o.class";

/// Whether a row of history has others beside it. A marker that is said to be the latest may have a current row beside
/// it, where a program put that one which knows nothing of `latest`.
const HAS_OTHERS: &str = "(EXISTS (SELECT 1 FROM history n WHERE n.bucket = o.bucket AND n.key = o.key \
     AND n.sequence <> o.sequence) \
     OR EXISTS (SELECT 1 FROM objects n WHERE n.bucket = o.bucket AND n.key = o.key))";

/// Of rows of history `n` those that count as noncurrent. Markers of such a program may be the latest version: better
/// one version too many is kept.
const COUNTS: &str = "n.latest + 0 = 0 AND (n.content IS NOT NULL OR n.since_ms < 9223372036854775807)";

/// How many columns an [`AgedVersion`] is read from in all.
pub(super) const AGED_COLUMNS: usize = 11;

/// All columns of a latest version that is an object.
pub(super) fn current_columns() -> String {
    format!("{COLUMNS}, o.modified_ms, {CURRENT}, 0")
}

const CURRENT: i64 = 0;
const NONCURRENT: i64 = 1;
const MARKER: i64 = 2;

fn standing(code: i64, has_others: i64) -> MetadataResult<Standing> {
    match code {
        CURRENT => Ok(Standing::Current),
        NONCURRENT => Ok(Standing::Noncurrent),
        MARKER => Ok(Standing::Marker { is_alone: has_others == 0 }),
        other => Err(MetadataError::Corrupt(format!("standing {other} of a version"))),
    }
}

/// A version from [`COLUMNS`], the time, the standing, and whether there are others.
pub(super) fn aged_version(row: &impl Fields) -> MetadataResult<AgedVersion> {
    let size_bytes = row.number_or_null(5)?.map(rows::unsigned).transpose()?;
    // A current one without a size is never due: it is passed, and reported by whoever reads it.
    if row.bytes_or_null(6)?.is_some() && size_bytes.is_none() && row.number(9)? != CURRENT {
        return Err(MetadataError::Corrupt("content of an object is missing".into()));
    }
    Ok(AgedVersion {
        key: rows::key(row.bytes(0)?.to_vec())?,
        version: rows::version_id(row.bytes(2)?)?,
        sequence: rows::unsigned(row.number(1)?)?,
        standing: standing(row.number(9)?, row.number(10)?)?,
        last_modified_ms: rows::unsigned(row.number(3)?)?,
        since_ms: rows::unsigned(row.number(8)?)?,
        size_bytes,
        tags: rows::tags(row.text_or_null(4)?)?,
        class: rows::class(row.text_or_null(7)?)?,
    })
}

pub(super) async fn versions<R: Reader>(
    reads: &R,
    bucket: BucketId,
    kind: AgedKind,
    after: &AgePosition,
    until_ms: u64,
    limit: u32,
) -> MetadataResult<Vec<AgedVersion>> {
    let (bucket, key) = (rows::signed(bucket.0), after.name.as_bytes());
    let (at_ms, until_ms, limit) = (rows::signed(after.at_ms), rows::signed(until_ms), i64::from(limit));
    let (sql, values) = match kind {
        AgedKind::Current => (
            format!(
                "SELECT {} FROM objects o {} \
                 LEFT JOIN contents c ON c.id = o.content \
                 WHERE o.bucket = ? AND o.modified_ms >= ? AND o.modified_ms <= ? AND (o.modified_ms > ? OR o.key > ?) \
                 ORDER BY o.modified_ms, o.key LIMIT ?",
                current_columns(),
                R::DIALECT.by_index("objects_by_age")
            ),
            values![bucket, at_ms, until_ms, at_ms, key, limit],
        ),
        AgedKind::Noncurrent | AgedKind::Markers => {
            let (latest, code, others) = match kind {
                AgedKind::Markers => (1, MARKER, HAS_OTHERS),
                AgedKind::Current | AgedKind::Noncurrent => (0, NONCURRENT, "1"),
            };
            (
                format!(
                    "SELECT {COLUMNS}, o.since_ms, {code}, {others} FROM history o {} \
                     LEFT JOIN contents c ON c.id = o.content \
                     WHERE o.bucket = ? AND o.latest = {latest} AND o.since_ms >= ? AND o.since_ms <= ? \
                     AND (o.since_ms > ? OR o.key > ? OR (o.key = ? AND o.sequence > ?)) \
                     ORDER BY o.since_ms, o.key, o.sequence LIMIT ?",
                    R::DIALECT.by_index("history_by_age")
                ),
                values![bucket, at_ms, until_ms, at_ms, key, key, rows::signed(after.sequence), limit],
            )
        }
    };
    let found = reads.fetch(AssertSqlSafe(sql), values).await?;
    found.iter().map(aged_version).collect()
}

pub(super) async fn surplus<R: Reader>(
    reads: &R,
    bucket: BucketId,
    key: &str,
    keep: u32,
    after: u64,
    limit: u32,
) -> MetadataResult<Vec<AgedVersion>> {
    // The sums keep the database at the primary key.
    let sql = format!(
        "SELECT {COLUMNS}, o.since_ms, {NONCURRENT}, 1 FROM history o LEFT JOIN contents c ON c.id = o.content \
         WHERE o.bucket = ? AND o.key = ? AND o.latest + 0 = 0 AND o.sequence > ? \
         AND o.sequence <= (SELECT n.sequence FROM history n WHERE n.bucket = ? AND n.key = ? AND {COUNTS} \
         ORDER BY n.sequence DESC LIMIT 1 OFFSET ?) ORDER BY o.sequence LIMIT ?"
    );
    let (bucket, key) = (rows::signed(bucket.0), key.as_bytes());
    let values = values![bucket, key, rows::signed(after), bucket, key, i64::from(keep), i64::from(limit)];
    let found = reads.fetch(AssertSqlSafe(sql), values).await?;
    found.iter().map(aged_version).collect()
}

/// Holds a deletion of a noncurrent version against what was judged and its sequence number does not show.
///
/// # Errors
/// `PreconditionFailed`.
pub(super) async fn check_noncurrent<S: Session>(
    tx: &mut S,
    (bucket, key): (BucketId, &str),
    version: VersionId,
    sequence: u64,
    judged: &OnlyNoncurrent,
) -> MetadataResult<()> {
    let (bucket, key) = (rows::signed(bucket.0), key.as_bytes());
    let sql = "SELECT tags FROM history WHERE bucket = ? AND `key` = ? AND version = ?";
    let row = tx.fetch_optional(sql, values![bucket, key, version.as_bytes()]).await?;
    let tags = row.map(|row| row.text_or_null(0).and_then(rows::tags)).transpose()?;
    if tags.as_ref() != Some(&judged.tags) {
        return Err(MetadataError::PreconditionFailed);
    }
    if judged.newer > 0 {
        let sql = format!(
            "SELECT n.sequence FROM history n WHERE n.bucket = ? AND n.key = ? AND {COUNTS} AND n.sequence > ? \
             ORDER BY n.sequence LIMIT ?"
        );
        let values = values![bucket, key, rows::signed(sequence), i64::from(judged.newer)];
        let newer = tx.fetch(AssertSqlSafe(sql), values).await?;
        if newer.len() < judged.newer as usize {
            return Err(MetadataError::PreconditionFailed);
        }
    }
    Ok(())
}

pub(super) async fn cursors<R: Reader>(
    reads: &R,
    bucket: BucketId,
    generation: u64,
) -> MetadataResult<Vec<(String, AgePosition)>> {
    let sql = "SELECT stream, at_ms, name, sequence FROM lifecycle_cursors WHERE bucket = ? AND generation = ?";
    let found = reads.fetch(sql, values![rows::signed(bucket.0), rows::signed(generation)]).await?;
    let cursor = |row: &R::Row| {
        let at = AgePosition {
            at_ms: rows::unsigned(row.number(1)?)?,
            name: rows::key(row.bytes(2)?.to_vec())?,
            sequence: rows::unsigned(row.number(3)?)?,
        };
        Ok((row.text(0)?.to_owned(), at))
    };
    found.iter().map(cursor).collect()
}

pub(super) async fn save_cursor<S: Session>(
    tx: &mut S,
    bucket: BucketId,
    generation: u64,
    stream: &str,
    at: &AgePosition,
) -> MetadataResult<()> {
    let (bucket, generation) = (rows::signed(bucket.0), rows::signed(generation));
    let sql = "DELETE FROM lifecycle_cursors WHERE bucket = ? AND generation <> ?";
    tx.execute(sql, values![bucket, generation]).await?;
    let values =
        values![bucket, stream, generation, rows::signed(at.at_ms), at.name.as_bytes(), rows::signed(at.sequence)];
    let sql = "REPLACE INTO lifecycle_cursors (bucket, stream, generation, at_ms, name, sequence) \
         VALUES (?, ?, ?, ?, ?, ?)";
    tx.execute(sql, values).await.map(drop)
}

/// Notes a key, if its bucket has rules: the latest version is to be looked at again, and the older one named.
pub(super) async fn queue_recheck<S: Session>(
    tx: &mut S,
    bucket: BucketId,
    key: &str,
    version: Option<VersionId>,
) -> MetadataResult<()> {
    let bucket = rows::signed(bucket.0);
    let rules = "SELECT 1 FROM bucket_configs WHERE bucket = ? AND kind = ?";
    if tx.fetch_optional(rules, values![bucket, BucketConfigKind::Lifecycle.as_str()]).await?.is_none() {
        return Ok(());
    }
    let version = version.map(|version| version.as_bytes().to_vec());
    let sql = "INSERT INTO lifecycle_rechecks (bucket, `key`, version) VALUES (?, ?, ?)";
    tx.execute(sql, values![bucket, key.as_bytes(), version]).await.map(drop)
}

pub(super) async fn rechecks<R: Reader>(reads: &R, bucket: BucketId, limit: u32) -> MetadataResult<Vec<Recheck>> {
    let sql = "SELECT id, `key`, version FROM lifecycle_rechecks WHERE bucket = ? ORDER BY id LIMIT ?";
    let found = reads.fetch(sql, values![rows::signed(bucket.0), i64::from(limit)]).await?;
    let mut rechecks = Vec::with_capacity(found.len());
    for row in &found {
        let version = row.bytes_or_null(2)?.map(rows::version_id).transpose()?;
        let versions = of_key(reads, bucket, row.bytes(1)?, version).await?;
        rechecks.push(Recheck { id: rows::unsigned(row.number(0)?)?, versions });
    }
    Ok(rechecks)
}

/// The latest version of a key, and an older one.
async fn of_key<R: Reader>(
    reads: &R,
    bucket: BucketId,
    key: &[u8],
    older: Option<VersionId>,
) -> MetadataResult<Vec<AgedVersion>> {
    let bucket = rows::signed(bucket.0);
    let history = format!(
        "SELECT {COLUMNS}, o.since_ms, CASE o.latest WHEN 1 THEN {MARKER} ELSE {NONCURRENT} END, {HAS_OTHERS} \
         FROM history o LEFT JOIN contents c ON c.id = o.content WHERE o.bucket = ? AND o.key = ?"
    );
    let mut sql = format!(
        "SELECT {COLUMNS}, o.modified_ms, {CURRENT}, 0 FROM objects o LEFT JOIN contents c ON c.id = o.content \
         WHERE o.bucket = ? AND o.key = ? UNION ALL {history} AND o.latest + 0 = 1"
    );
    let mut values = values![bucket, key, bucket, key];
    if let Some(older) = older {
        sql.push_str(&format!(" UNION ALL {history} AND o.version = ? AND o.latest + 0 = 0"));
        values.extend(values![bucket, key, older.as_bytes()]);
    }
    let found = reads.fetch(AssertSqlSafe(sql), values).await?;
    found.iter().map(aged_version).collect()
}

pub(super) async fn finish_rechecks<S: Session>(tx: &mut S, ids: &[u64]) -> MetadataResult<()> {
    tx.execute_many(Shape::RemoveRechecks, &[], ids, |id| values![rows::signed(*id)]).await
}
