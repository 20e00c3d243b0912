//! Sequence numbers after metadata were lost and put back.
//!
//! They are counted by the database, so one that is new counts from the beginning. What was told to the outside before
//! must stay behind: who compares the `sequencer` of two events of an object would take the newer one for the older.

use holdfast_actors::ports::metadata::MetadataResult;

use super::store::boxed;
use super::{Backend, Dialect, Fields as _, Locks, Session, SqlMetadataStore, values};
use crate::metadata::rows;

/// Transactions a millisecond that sequence numbers stay ahead of, on the average of all time: far more than one server
/// commits.
const COMMITS_PER_MS: u64 = 8;

/// Sequence numbers of one transaction on a server.
const SEQUENCES_PER_COMMIT: u64 = 1 << 12;

#[allow(private_bounds, reason = "the backends are this module's own")]
impl<B: Backend> SqlMetadataStore<B> {
    /// Lets the sequence numbers that are given from the next start on begin beyond all that any database can have
    /// given before `now_ms`. To be called before metadata that were lost are put back, while no node runs.
    ///
    /// # Errors
    /// Those of a write.
    pub async fn raise_sequences(&self, now_ms: u64) -> MetadataResult<()> {
        let commits = now_ms.saturating_mul(COMMITS_PER_MS);
        self.backend.write(Locks::none(), move |tx| boxed(raise(tx, commits))).await
    }
}

async fn raise<S: Session>(tx: &mut S, commits: u64) -> MetadataResult<()> {
    match S::DIALECT {
        Dialect::Sqlite => {
            let sequences = rows::signed(commits.saturating_mul(SEQUENCES_PER_COMMIT));
            let sql = "UPDATE counters SET value = MAX(value, ?) WHERE name = 'sequence'";
            tx.execute(sql, values![sequences]).await.map(drop)
        }
        Dialect::Mysql => {
            // This transaction has a row.
            let newest = tx.fetch_optional("SELECT MAX(id) FROM commits", Vec::new()).await?;
            if newest.map_or(Ok(0), |row| row.number(0))? >= rows::signed(commits) {
                return Ok(());
            }
            let token: [u8; 16] = rand::random();
            let sql = "INSERT INTO commits (id, token) VALUES (?, ?)";
            tx.execute(sql, values![rows::signed(commits), &token]).await.map(drop)
        }
    }
}
