//! The highest fencing token seen of each lock.
//!
//! A verb that a lock guards checks its token first, in its own transaction and under the lock of the row: of two
//! holders, one of which is over without knowing, the later one's first write shuts the earlier one out. Names are few
//! and known beforehand (a duty, not a thing), so the table does not grow.

use holdfast_actors::ports::coordination::{Fence, FencingToken};
use holdfast_actors::ports::metadata::{MetadataError, MetadataResult};

use super::{Fields as _, Session, values};
use crate::metadata::rows;

/// Refuses a token below the highest seen, else remembers it. Without a fence nothing is asked.
pub(super) async fn check<S: Session>(tx: &mut S, fence: Option<&Fence>) -> MetadataResult<()> {
    let Some(Fence { name, token }) = fence else { return Ok(()) };
    let name = name.as_str().as_bytes();
    let row = tx.fetch_optional("SELECT token FROM lock_fences WHERE name = ?", values![name]).await?;
    let seen = row.map(|row| row.number(0).and_then(rows::unsigned)).transpose()?.map(FencingToken);
    match seen {
        Some(current) if current > *token => {
            metrics::counter!("holdfast_lock_fenced_writes_total").increment(1);
            Err(MetadataError::Fenced { name: String::from_utf8_lossy(name).into_owned(), current })
        }
        Some(current) if current == *token => Ok(()),
        _ => {
            let sql = "REPLACE INTO lock_fences (name, token) VALUES (?, ?)";
            tx.execute(sql, values![name, rows::signed(token.0)]).await.map(drop)
        }
    }
}
