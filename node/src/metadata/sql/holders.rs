//! What metadata knows a run of bytes by.

use holdfast_actors::ports::metadata::{ContentHolder, MetadataError, MetadataResult};
use holdfast_protocol::ContentId;

use super::shapes::statements;
use super::{Fields, Reader, Shape, values};
use crate::metadata::rows;

/// What knows `extent`. One statement, so that what a completion or a claim takes from one table to another in between
/// is found in one of them.
pub(super) async fn of<R: Reader>(reads: &R, extent: ContentId) -> MetadataResult<Option<ContentHolder>> {
    let mut found = Vec::new();
    for (sql, values) in statements(R::DIALECT, Shape::Holders, &[], &[extent], |id| values![id.as_bytes()]) {
        found.extend(reads.run_fetch(sql, values).await?);
    }
    found.first().map_or(Ok(None), |row| from_row(row, extent))
}

/// From a row of [`Shape::Holders`]: the content that `extent` is a part of; references and tier of the content of its
/// own id, and of that one; its part, with the upload; when each of the two was queued; when it was condemned.
fn from_row(row: &impl Fields, extent: ContentId) -> MetadataResult<Option<ContentHolder>> {
    let unsigned = |at: usize| row.number_or_null(at)?.map(rows::unsigned).transpose();
    let queued_ms = match unsigned(9)? {
        None => unsigned(10)?,
        queued_ms => queued_ms,
    };
    for (id, at) in [(Some(extent.as_bytes().as_slice()), 1), (row.bytes_or_null(0)?, 3)] {
        if let (Some(id), Some(references)) = (id, unsigned(at)?) {
            return Ok(Some(ContentHolder::Content {
                content: rows::content_id(id)?,
                references,
                tier: rows::class(row.text_or_null(at + 1)?)?,
                queued_ms,
            }));
        }
    }
    if let Some(upload) = row.bytes_or_null(5)? {
        let number = row.number(6)?;
        return Ok(Some(ContentHolder::Part {
            bucket: row.text(8)?.to_owned(),
            key: rows::key(row.bytes(7)?.to_vec())?,
            upload: rows::upload_id(upload)?,
            number: u16::try_from(number).map_err(|_| MetadataError::Corrupt(format!("part number {number}")))?,
        }));
    }
    if let Some(queued_ms) = queued_ms {
        return Ok(Some(ContentHolder::Reclaim { queued_ms }));
    }
    Ok(unsigned(11)?.map(|condemned_ms| ContentHolder::Condemned { condemned_ms }))
}
