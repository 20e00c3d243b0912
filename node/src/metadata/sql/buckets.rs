//! Buckets.

use std::sync::Arc;

use holdfast_actors::ports::metadata::{
    Bucket, BucketConfigKind, BucketEntry, BucketId, CannedAcl, MetadataError, MetadataResult, NewBucket, Versioning,
};
use sqlx::AssertSqlSafe;

use super::users::USER_EXISTS;
use super::{Dialect, Fields, Reader, Session, values};
use crate::metadata::rows;

/// Without its configuration documents.
fn from_row(row: &impl Fields) -> MetadataResult<Bucket> {
    Ok(Bucket {
        id: BucketId(rows::unsigned(row.number(0)?)?),
        name: row.text(1)?.to_owned(),
        owner: row.text(2)?.to_owned(),
        created_ms: rows::unsigned(row.number(3)?)?,
        versioning: rows::versioning(row.number(4)?)?,
        configs: Vec::new(),
        revision: rows::unsigned(row.number(5)?)?,
    })
}

/// Rows of a bucket joined with its documents (`kind` and `value` in columns 6 and 7), grouped by bucket in their
/// order.
fn group(found: &[impl Fields]) -> MetadataResult<Vec<Bucket>> {
    let mut buckets: Vec<Bucket> = Vec::new();
    for row in found {
        let bucket = from_row(row)?;
        if buckets.last().is_none_or(|last| last.id != bucket.id) {
            buckets.push(bucket);
        }
        if let (Some(kind), Some(bucket)) = (row.text_or_null(6)?, buckets.last_mut()) {
            bucket.configs.push((rows::config_kind(kind)?, row.text(7)?.to_owned()));
        }
    }
    for bucket in &mut buckets {
        bucket.configs.sort_by_key(|(kind, _)| *kind);
    }
    Ok(buckets)
}

pub(super) async fn bucket<R: Reader>(reads: &R, name: &str) -> MetadataResult<Arc<Bucket>> {
    let found = reads
        .fetch(
            "SELECT b.id, b.name, b.owner, b.created_ms, b.versioning, b.revision, c.kind, c.value FROM buckets b \
             LEFT JOIN bucket_configs c ON c.bucket = b.id WHERE b.name = ?",
            values![name],
        )
        .await?;
    group(&found)?.pop().map(Arc::new).ok_or(MetadataError::NoSuchBucket)
}

pub(super) async fn list<R: Reader>(
    reads: &R,
    owner: Option<&str>,
    after: Option<&str>,
    limit: u32,
) -> MetadataResult<Vec<Arc<Bucket>>> {
    let after = after.unwrap_or_default();
    let found = match owner {
        None => {
            let sql = "SELECT b.*, c.kind, c.value FROM (SELECT id, name, owner, created_ms, versioning, revision \
                 FROM buckets WHERE name > ? ORDER BY name LIMIT ?) b \
                 LEFT JOIN bucket_configs c ON c.bucket = b.id ORDER BY b.name";
            reads.fetch(sql, values![after, i64::from(limit)]).await?
        }
        Some(owner) => {
            let sql = "SELECT b.*, c.kind, c.value FROM (SELECT id, name, owner, created_ms, versioning, revision \
                 FROM buckets WHERE owner = ? AND name > ? ORDER BY name LIMIT ?) b \
                 LEFT JOIN bucket_configs c ON c.bucket = b.id ORDER BY b.name";
            reads.fetch(sql, values![owner, after, i64::from(limit)]).await?
        }
    };
    Ok(group(&found)?.into_iter().map(Arc::new).collect())
}

pub(super) async fn list_entries<R: Reader>(
    reads: &R,
    owner: Option<&str>,
    after: Option<&str>,
    limit: u32,
) -> MetadataResult<Vec<BucketEntry>> {
    let after = after.unwrap_or_default();
    let found = match owner {
        None => {
            let sql = "SELECT name, created_ms FROM buckets WHERE name > ? ORDER BY name LIMIT ?";
            reads.fetch(sql, values![after, i64::from(limit)]).await?
        }
        Some(owner) => {
            let sql = "SELECT name, created_ms FROM buckets WHERE owner = ? AND name > ? ORDER BY name LIMIT ?";
            reads.fetch(sql, values![owner, after, i64::from(limit)]).await?
        }
    };
    let entry = |row: &R::Row| -> MetadataResult<BucketEntry> {
        Ok(BucketEntry { name: row.text(0)?.to_owned(), created_ms: rows::unsigned(row.number(1)?)? })
    };
    found.iter().map(entry).collect()
}

pub(super) async fn create<S: Session>(tx: &mut S, new: &NewBucket) -> MetadataResult<Arc<Bucket>> {
    let taken = tx.fetch_optional("SELECT owner FROM buckets WHERE name = ?", values![&*new.name]).await?;
    if let Some(row) = taken {
        return Err(MetadataError::BucketExists { owned_by_caller: row.text(0)? == new.owner });
    }
    // Whoever asks was let in before, and may have been removed since.
    if tx.fetch_optional(USER_EXISTS, values![&*new.owner]).await?.is_none() {
        return Err(MetadataError::NotFound("user"));
    }
    let done = tx
        .execute(
            "INSERT INTO buckets (name, owner, created_ms, versioning, revision) VALUES (?, ?, ?, ?, 1)",
            values![&*new.name, &*new.owner, rows::signed(new.now_ms), rows::versioning_code(Versioning::Unversioned),],
        )
        .await?;
    let id = BucketId(rows::unsigned(done.last_id)?);
    let mut configs = Vec::new();
    if new.acl != CannedAcl::default() {
        let value = serde_json::to_string(&new.acl).expect("a canned acl serialises");
        write_config(tx, id, BucketConfigKind::Acl, Some(&value)).await?;
        configs.push((BucketConfigKind::Acl, value));
    }
    Ok(Arc::new(Bucket {
        id,
        name: new.name.clone(),
        owner: new.owner.clone(),
        created_ms: new.now_ms,
        versioning: Versioning::Unversioned,
        configs,
        revision: 1,
    }))
}

/// Checks that the bucket of a name is this one, not one that was made since; from then on no commit into it is under
/// way, and it stays.
async fn hold<S: Session>(tx: &mut S, name: &str, id: BucketId) -> MetadataResult<()> {
    let sql = format!("SELECT id FROM buckets WHERE name = ?{}", S::DIALECT.for_update());
    let row = tx.fetch_optional(AssertSqlSafe(sql), values![name]).await?.ok_or(MetadataError::NoSuchBucket)?;
    if rows::unsigned(row.number(0)?)? == id.0 { Ok(()) } else { Err(MetadataError::NoSuchBucket) }
}

async fn write_config<S: Session>(
    tx: &mut S,
    bucket: BucketId,
    kind: BucketConfigKind,
    value: Option<&str>,
) -> MetadataResult<()> {
    let (bucket, kind) = (rows::signed(bucket.0), kind.as_str());
    match value {
        Some(value) => {
            let sql = "REPLACE INTO bucket_configs (bucket, kind, value) VALUES (?, ?, ?)";
            tx.execute(sql, values![bucket, kind, value]).await?;
        }
        None => {
            tx.execute("DELETE FROM bucket_configs WHERE bucket = ? AND kind = ?", values![bucket, kind]).await?;
        }
    }
    Ok(())
}

/// Of the notes only as many as a transaction can remove at once: rules must be removable however much waits. What is
/// left is judged by later rules, or by none.
async fn forget_lifecycle<S: Session>(tx: &mut S, bucket: BucketId) -> MetadataResult<()> {
    let rechecks = match S::DIALECT {
        Dialect::Sqlite => {
            "DELETE FROM lifecycle_rechecks WHERE id IN \
             (SELECT id FROM lifecycle_rechecks WHERE bucket = ? ORDER BY id LIMIT 10000)"
        }
        // By a subquery MariaDB would look at, and lock, the notes of all buckets.
        Dialect::Mysql => "DELETE FROM lifecycle_rechecks WHERE bucket = ? ORDER BY id LIMIT 10000",
    };
    for statement in ["DELETE FROM lifecycle_cursors WHERE bucket = ?", rechecks] {
        tx.execute(statement, values![rows::signed(bucket.0)]).await?;
    }
    Ok(())
}

pub(super) async fn set_config<S: Session>(
    tx: &mut S,
    name: &str,
    id: BucketId,
    kind: BucketConfigKind,
    value: Option<&str>,
) -> MetadataResult<()> {
    hold(tx, name, id).await?;
    write_config(tx, id, kind, value).await?;
    if kind == BucketConfigKind::Lifecycle {
        // Everything is looked at anew.
        forget_lifecycle(tx, id).await?;
    }
    let sql = "UPDATE buckets SET revision = revision + 1 WHERE id = ?";
    tx.execute(sql, values![rows::signed(id.0)]).await?;
    Ok(())
}

pub(super) async fn set_versioning<S: Session>(
    tx: &mut S,
    name: &str,
    id: BucketId,
    versioning: Versioning,
) -> MetadataResult<()> {
    hold(tx, name, id).await?;
    let id = rows::signed(id.0);
    // A bucket that had versioning on is suspended at most: asking for none at all keeps what it is.
    match versioning {
        Versioning::Unversioned => {
            tx.execute("UPDATE buckets SET revision = revision + 1 WHERE id = ?", values![id]).await?;
        }
        Versioning::Enabled | Versioning::Suspended => {
            let sql = "UPDATE buckets SET versioning = ?, revision = revision + 1 WHERE id = ?";
            tx.execute(sql, values![rows::versioning_code(versioning), id]).await?;
        }
    }
    Ok(())
}

pub(super) async fn delete<S: Session>(tx: &mut S, name: &str, bucket: BucketId) -> MetadataResult<()> {
    hold(tx, name, bucket).await?;
    let id = rows::signed(bucket.0);
    let used = tx
        .fetch_optional(
            "SELECT EXISTS (SELECT 1 FROM objects WHERE bucket = ?) OR EXISTS (SELECT 1 FROM history WHERE bucket = ?) \
             OR EXISTS (SELECT 1 FROM uploads WHERE bucket = ?)",
            values![id, id, id],
        )
        .await?;
    if used.is_some_and(|row| !matches!(row.number(0), Ok(0))) {
        return Err(MetadataError::BucketNotEmpty);
    }
    for statement in ["DELETE FROM bucket_configs WHERE bucket = ?", "DELETE FROM buckets WHERE id = ?"] {
        tx.execute(statement, values![id]).await?;
    }
    forget_lifecycle(tx, bucket).await
}
