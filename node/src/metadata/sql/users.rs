//! Users and access keys.

use std::sync::Arc;

use holdfast_actors::ports::metadata::{AccessKey, MetadataError, MetadataResult, User};

use super::{Fields, Reader, Session, values};
use crate::metadata::rows;

/// A user from `name, admin, enabled, created_ms`, the first at `at`.
fn user_from_row(row: &impl Fields, at: usize) -> MetadataResult<User> {
    Ok(User {
        name: row.text(at)?.to_owned(),
        admin: row.number(at + 1)? != 0,
        enabled: row.number(at + 2)? != 0,
        created_ms: rows::unsigned(row.number(at + 3)?)?,
    })
}

/// A key from `access_key, sealed_secret, enabled, description, created_ms`, then its user.
fn key_from_row(row: &impl Fields) -> MetadataResult<AccessKey> {
    Ok(AccessKey {
        access_key: row.text(0)?.to_owned(),
        sealed_secret: row.bytes(1)?.to_vec(),
        user: user_from_row(row, 5)?,
        enabled: row.number(2)? != 0,
        description: row.text(3)?.to_owned(),
        created_ms: rows::unsigned(row.number(4)?)?,
    })
}

pub(super) async fn user<R: Reader>(reads: &R, name: &str) -> MetadataResult<Arc<User>> {
    let sql = "SELECT name, admin, enabled, created_ms FROM users WHERE name = ?";
    let row = reads.fetch_optional(sql, values![name]).await?.ok_or(MetadataError::NotFound("user"))?;
    user_from_row(&row, 0).map(Arc::new)
}

pub(super) async fn list_users<R: Reader>(
    reads: &R,
    after: Option<&str>,
    limit: u32,
) -> MetadataResult<Vec<Arc<User>>> {
    let sql = "SELECT name, admin, enabled, created_ms FROM users WHERE name > ? ORDER BY name LIMIT ?";
    let found = reads.fetch(sql, values![after.unwrap_or_default(), i64::from(limit)]).await?;
    found.iter().map(|row| user_from_row(row, 0).map(Arc::new)).collect()
}

pub(super) async fn key<R: Reader>(reads: &R, access_key: &str) -> MetadataResult<Arc<AccessKey>> {
    let row = reads
        .fetch_optional(
            "SELECT k.access_key, k.sealed_secret, k.enabled, k.description, k.created_ms, \
             u.name, u.admin, u.enabled, u.created_ms FROM access_keys k JOIN users u ON u.name = k.user \
             WHERE k.access_key = ?",
            values![access_key],
        )
        .await?
        .ok_or(MetadataError::NotFound("access key"))?;
    key_from_row(&row).map(Arc::new)
}

pub(super) async fn list_keys<R: Reader>(
    reads: &R,
    user: Option<&str>,
    after: Option<&str>,
    limit: u32,
) -> MetadataResult<Vec<Arc<AccessKey>>> {
    let after = after.unwrap_or_default();
    let found = match user {
        None => {
            let sql = "SELECT k.access_key, k.sealed_secret, k.enabled, k.description, k.created_ms, \
                 u.name, u.admin, u.enabled, u.created_ms FROM access_keys k JOIN users u ON u.name = k.user \
                 WHERE k.access_key > ? ORDER BY k.access_key LIMIT ?";
            reads.fetch(sql, values![after, i64::from(limit)]).await?
        }
        Some(user) => {
            let sql = "SELECT k.access_key, k.sealed_secret, k.enabled, k.description, k.created_ms, \
                 u.name, u.admin, u.enabled, u.created_ms FROM access_keys k JOIN users u ON u.name = k.user \
                 WHERE k.user = ? AND k.access_key > ? ORDER BY k.access_key LIMIT ?";
            reads.fetch(sql, values![user, after, i64::from(limit)]).await?
        }
    };
    found.iter().map(|row| key_from_row(row).map(Arc::new)).collect()
}

async fn exists<S: Session>(tx: &mut S, statement: &'static str, name: &str) -> MetadataResult<bool> {
    Ok(tx.fetch_optional(statement, values![name]).await?.is_some())
}

/// Finds a row if there is a user of a name.
pub(super) const USER_EXISTS: &str = "SELECT 1 FROM users WHERE name = ?";
const KEY_EXISTS: &str = "SELECT 1 FROM access_keys WHERE access_key = ?";

pub(super) async fn create_user<S: Session>(tx: &mut S, user: &User) -> MetadataResult<()> {
    if exists(tx, USER_EXISTS, &user.name).await? {
        return Err(MetadataError::Exists("user"));
    }
    let (admin, enabled) = (i64::from(user.admin), i64::from(user.enabled));
    tx.execute(
        "INSERT INTO users (name, admin, enabled, created_ms) VALUES (?, ?, ?, ?)",
        values![&*user.name, admin, enabled, rows::signed(user.created_ms)],
    )
    .await?;
    Ok(())
}

pub(super) async fn set_user_enabled<S: Session>(tx: &mut S, name: &str, enabled: bool) -> MetadataResult<()> {
    let sql = "UPDATE users SET enabled = ? WHERE name = ?";
    let done = tx.execute(sql, values![i64::from(enabled), name]).await?;
    if done.rows_affected == 0 { Err(MetadataError::NotFound("user")) } else { Ok(()) }
}

pub(super) async fn delete_user<S: Session>(tx: &mut S, name: &str) -> MetadataResult<()> {
    if exists(tx, "SELECT 1 FROM buckets WHERE owner = ? LIMIT 1", name).await? {
        return Err(MetadataError::BucketNotEmpty);
    }
    let done = tx.execute("DELETE FROM users WHERE name = ?", values![name]).await?;
    if done.rows_affected == 0 {
        return Err(MetadataError::NotFound("user"));
    }
    tx.execute("DELETE FROM access_keys WHERE user = ?", values![name]).await?;
    Ok(())
}

pub(super) async fn create_key<S: Session>(tx: &mut S, key: &AccessKey) -> MetadataResult<()> {
    if !exists(tx, USER_EXISTS, &key.user.name).await? {
        return Err(MetadataError::NotFound("user"));
    }
    if exists(tx, KEY_EXISTS, &key.access_key).await? {
        return Err(MetadataError::Exists("access key"));
    }
    tx.execute(
        "INSERT INTO access_keys (access_key, user, sealed_secret, enabled, description, created_ms) \
         VALUES (?, ?, ?, ?, ?, ?)",
        values![
            &*key.access_key,
            &*key.user.name,
            &*key.sealed_secret,
            i64::from(key.enabled),
            &*key.description,
            rows::signed(key.created_ms),
        ],
    )
    .await?;
    Ok(())
}

pub(super) async fn set_key_enabled<S: Session>(tx: &mut S, access_key: &str, enabled: bool) -> MetadataResult<()> {
    let sql = "UPDATE access_keys SET enabled = ? WHERE access_key = ?";
    let done = tx.execute(sql, values![i64::from(enabled), access_key]).await?;
    if done.rows_affected == 0 { Err(MetadataError::NotFound("access key")) } else { Ok(()) }
}

pub(super) async fn delete_key<S: Session>(tx: &mut S, access_key: &str) -> MetadataResult<()> {
    let done = tx.execute("DELETE FROM access_keys WHERE access_key = ?", values![access_key]).await?;
    if done.rows_affected == 0 { Err(MetadataError::NotFound("access key")) } else { Ok(()) }
}
