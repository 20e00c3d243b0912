//! Whether the server still has what it acknowledged.
//!
//! A replica that takes the place of its primary without the last commits, or a server that lost power and does not
//! flush each one, has lost writes that clients were told of. Their chunks are still on the disks and known to nobody:
//! the walk for orphans would delete all that can bring them back. So each new connection is asked for the last commit
//! that this node was told of, and so is one after a transaction that was given a number that is no new one. Where that
//! commit is gone, a row says so to all nodes, and nothing is condemned until a tool that fills the metadata, or an
//! operator, has taken it away ([`SET_BACK`]).
//!
//! Numbers of transactions go on beyond those that were lost, too: else they would be given a second time, and whoever
//! compares two events of an object would take the newer one for the older.
//!
//! Each node notices what is lost of its own commits only, but all heed it. What is lost of a node that stopped in the
//! same moment is not noticed.

use std::time::Duration;

use parking_lot::Mutex;
use sqlx::AssertSqlSafe;
use sqlx::mysql::MySqlConnection;

use super::error::{Failure, failure};
use crate::metadata::sql::replicas::SET_BACK;

/// How long a server that was just promoted may take for commits that it has received and not carried out yet.
const LAG: Duration = Duration::from_secs(1);
/// By how much numbers go on beyond the last one that this node was told of: others may have been told of later ones.
const AHEAD: i64 = 1 << 20;

/// A commit that was acknowledged, by its row in `commits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Acknowledged {
    number: i64,
    token: [u8; 16],
}

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The last one.
    last: Mutex<Option<Acknowledged>>,
    /// One that may be gone, until that is refuted or written down.
    doubted: Mutex<Option<Acknowledged>>,
}

impl Kept {
    /// A commit is durable, as far as the server knows.
    pub(super) fn acknowledged(&self, number: i64, token: [u8; 16]) {
        *self.last.lock() = Some(Acknowledged { number, token });
    }

    /// What every transaction that begins after this question has a higher number than.
    pub(super) fn number(&self) -> i64 {
        self.last.lock().map_or(0, |last| last.number)
    }

    /// A transaction has none: the next look is for what was acknowledged before it, whatever is acknowledged since.
    /// Whether that is news.
    pub(super) fn doubt(&self) -> bool {
        let last = *self.last.lock();
        let mut doubted = self.doubted.lock();
        let is_news = doubted.is_none() && last.is_some();
        *doubted = doubted.or(last);
        is_news
    }

    /// Whether a commit may be gone, and nobody knows yet.
    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.lock().is_some()
    }

    /// Looks for the last commit, and writes down if it is gone.
    ///
    /// # Errors
    /// When the connection is of no use.
    pub(super) async fn look(&self, conn: &mut MySqlConnection) -> Result<(), sqlx::Error> {
        let doubted = *self.doubted.lock();
        let last = *self.last.lock();
        let Some(commit) = doubted.or(last) else { return Ok(()) };
        let mut gone = is_gone(conn, commit).await?;
        if gone {
            // Before the wait: whatever is acknowledged meanwhile, and should this connection be given up.
            self.doubted.lock().get_or_insert(commit);
            tokio::time::sleep(LAG).await;
            gone = is_gone(conn, commit).await?;
        }
        if gone {
            if *self.doubted.lock() != Some(commit) {
                // All connections are made anew at once: another one was faster, and has told of it.
                return Ok(());
            }
            let (number, ahead) = (commit.number, commit.number.saturating_add(AHEAD));
            let token = hex::encode(rand::random::<[u8; 16]>());
            // Whatever disks were walked before, they were not for this.
            let sql = format!(
                "DELETE FROM lock_fences WHERE name > '{SET_BACK}' AND name < '{SET_BACK}.'; \
                 INSERT IGNORE INTO lock_fences (name, token) VALUES ('{SET_BACK}', {number}); \
                 INSERT IGNORE INTO commits (id, token) VALUES ({ahead}, x'{token}')"
            );
            match sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *conn).await {
                Ok(_) => {}
                Err(error) if failure(&error) == Failure::Connection => return Err(error),
                Err(error) => {
                    // One that takes no writes loses nothing by it. The next connection is asked again.
                    tracing::warn!(%error, "the metadata database has lost commits; that cannot be written down yet");
                    return Ok(());
                }
            }
            self.last.lock().take_if(|last| *last == commit);
        }
        let was_doubted = self.doubted.lock().take_if(|doubted| *doubted == commit).is_some();
        if gone && was_doubted {
            metrics::counter!("holdfast_metadata_commits_lost_total").increment(1);
            tracing::error!(
                commit = commit.number,
                "the metadata database has lost commits that it acknowledged: chunks that it does not know are kept. See \"A \
                 dump of the database's own\" in docs/operations.md"
            );
        }
        Ok(())
    }
}

/// Whether a commit is not there, though rows as old as its own are. The newest rows are never removed, so an empty
/// table has lost it too.
async fn is_gone(conn: &mut MySqlConnection, commit: Acknowledged) -> Result<bool, sqlx::Error> {
    let sql = "SELECT COUNT(*), COALESCE((SELECT MIN(id) FROM commits), 0) FROM commits WHERE token = ? AND id = ?";
    let query = sqlx::query_as(sql).bind(commit.token.to_vec()).bind(commit.number);
    let (found, oldest): (i64, i64) = query.fetch_one(conn).await?;
    Ok(found == 0 && oldest <= commit.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_doubt_is_looked_into_and_those_that_come_with_it_are_not() {
        let kept = Kept::default();
        assert!(!kept.doubt() && !kept.is_doubted(), "nothing was acknowledged");
        kept.acknowledged(7, [1; 16]);
        assert_eq!((kept.number(), kept.doubt(), kept.doubt()), (7, true, false));
        kept.acknowledged(3, [2; 16]);
        assert!(!kept.doubt() && kept.is_doubted());
        assert_eq!(kept.doubted.lock().map(|commit| commit.number), Some(7), "what came after it says nothing");
    }
}
