//! Changes of a version that is there: tags and ACL.
//!
//! A change of the latest version gives it a new sequence number, as caches order a key's latest version by it. One of
//! an older version does not: its number is its place in the history.

use holdfast_actors::domain::events::EventOutcome;
use holdfast_actors::ports::metadata::{
    BucketId, CannedAcl, ChangeRequest, MetadataError, MetadataResult, Tag, Versioning,
};
use holdfast_protocol::VersionId;

use super::key_ops::check_judged;
use super::{Fields as _, Session, Value, lifecycle, outbox, values};
use crate::metadata::rows;

/// What is changed.
pub(super) enum What {
    Tags(Vec<Tag>),
    Acl(CannedAcl),
}

/// Which table holds the version, its version id, and whether it is a delete marker.
struct Found {
    current: bool,
    version: VersionId,
    delete_marker: bool,
}

pub(super) async fn change<S: Session>(tx: &mut S, request: &ChangeRequest, what: &What) -> MetadataResult<VersionId> {
    let (bucket, key, version) = (request.bucket, request.key.as_str(), request.version);
    let found = find(tx, bucket, key, version).await?;
    if found.delete_marker {
        // S3 knows no tags or ACL of delete markers.
        return Err(if version.is_some() { MetadataError::NoSuchVersion } else { MetadataError::NoSuchKey });
    }
    if let Some(only_if) = &request.only_if {
        check_judged(tx, (bucket, key), version, only_if).await?;
    }
    let value = match what {
        What::Tags(tags) => Value::from(rows::tags_text(tags)),
        What::Acl(acl) => Value::from(rows::acl_code(*acl)),
    };
    let place = values![rows::signed(bucket.0), key.as_bytes(), found.version.as_bytes()];
    let (statement, mut values) = match (what, found.current) {
        (What::Tags(_), true) => (
            "UPDATE objects SET tags = ?, sequence = ? WHERE bucket = ? AND `key` = ? AND version = ?",
            vec![value, tx.take_sequence().into()],
        ),
        (What::Acl(_), true) => (
            "UPDATE objects SET acl = ?, sequence = ? WHERE bucket = ? AND `key` = ? AND version = ?",
            vec![value, tx.take_sequence().into()],
        ),
        (What::Tags(_), false) => {
            ("UPDATE history SET tags = ? WHERE bucket = ? AND `key` = ? AND version = ?", vec![value])
        }
        (What::Acl(_), false) => {
            ("UPDATE history SET acl = ? WHERE bucket = ? AND `key` = ? AND version = ?", vec![value])
        }
    };
    values.extend(place);
    tx.execute(statement, values).await?;
    if matches!(what, What::Tags(_)) {
        lifecycle::queue_recheck(tx, bucket, key, (!found.current).then_some(found.version)).await?;
    }
    if request.event.is_some() {
        let version_text = found.version.to_string();
        let outcome = EventOutcome {
            key,
            version: (versioning_of(tx, bucket).await? != Versioning::Unversioned).then_some(&*version_text),
            content: None,
            made_marker: false,
            now_ms: request.now_ms,
        };
        let row = outbox::row_of(tx, request.event.as_ref(), &outcome)?;
        outbox::insert(tx, row.as_slice()).await?;
    }
    Ok(found.version)
}

pub(super) async fn versioning_of<S: Session>(tx: &mut S, bucket: BucketId) -> MetadataResult<Versioning> {
    let sql = "SELECT versioning FROM buckets WHERE id = ?";
    let row = tx.fetch_optional(sql, values![rows::signed(bucket.0)]).await?.ok_or(MetadataError::NoSuchBucket)?;
    rows::versioning(row.number(0)?)
}

async fn find<S: Session>(
    tx: &mut S,
    bucket: BucketId,
    key: &str,
    version: Option<VersionId>,
) -> MetadataResult<Found> {
    let place = values![rows::signed(bucket.0), key.as_bytes()];
    let row = match version {
        None => {
            let sql = "SELECT version, 1, 0 FROM objects WHERE bucket = ? AND `key` = ?";
            tx.fetch_optional(sql, place).await?.ok_or(MetadataError::NoSuchKey)?
        }
        Some(version) => {
            let sql = "SELECT version, 1, 0 FROM objects WHERE bucket = ? AND `key` = ? AND version = ? UNION ALL \
                 SELECT version, 0, content IS NULL FROM history WHERE bucket = ? AND `key` = ? AND version = ?";
            let mut values = place;
            values.push(version.as_bytes().into());
            values.extend(values.clone());
            tx.fetch_optional(sql, values).await?.ok_or(MetadataError::NoSuchVersion)?
        }
    };
    Ok(Found {
        version: rows::version_id(row.bytes(0)?)?,
        current: row.number(1)? != 0,
        delete_marker: row.number(2)? != 0,
    })
}
