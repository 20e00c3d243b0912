//! [`MysqlMetadataStore`]: metadata of a cluster on a MySQL or MariaDB server, which all nodes write to.
//!
//! # How verbs keep out of each other's way
//! A verb is one transaction at READ COMMITTED. Its first trip to the server takes all its [locks](super::sql::locks),
//! in one order; what it reads after that was committed before. A verb that meets another one all the same is rolled
//! back and run again, a bounded number of times. One primary server takes all writes: a group of servers that each
//! take some would break the order of sequence numbers.
//!
//! # Failure
//! * A connection that breaks before COMMIT was sent: nothing happened, and the verb is run again.
//! * One that breaks at COMMIT: the outcome is looked up, by the token that every transaction leaves in `commits`. Only
//!   if the server cannot be asked in time it is `Unknown`.
//! * A server without room for a write: the verb is rolled back and is `NoSpace`, of which health checks are told.
//! * A server that comes back without what it acknowledged is noticed, and orphans are kept then (`kept`).
//! * Dropping a caller's future does not stop its write. It begins within [`MysqlOptions::write_timeout`] of being
//!   asked for, or never: so what was written and acknowledged later than that stays.

use std::collections::HashSet;
use std::time::Duration;

use futures::future::BoxFuture;
use holdfast_actors::ports::metadata::{
    BucketId, Committed, DeleteRequest, Deleted, MetadataError, MetadataResult, NewObject,
};
use parking_lot::Mutex;
use sqlx::migrate::Migrator;
use sqlx::{Connection as _, MySqlConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

mod error;
mod groups;
mod kept;
mod migrate;
mod nodelay;
mod options;
mod pool;
mod snapshot;
mod tx;

pub use error::OpenError;
pub use options::{MysqlOptions, MysqlTls, exposure};
pub use snapshot::MysqlSnapshot;

use groups::{QUEUE_OPS_MAX, Waiting};
use migrate::migrate;
use pool::{Pool, closed};
use tx::{Tx, transaction};

use super::room::TRY_MAX;
use super::sql::key_ops::{KeyDone, KeyOp};
use super::sql::shapes::ROWS_MAX;
use super::sql::store::boxed;
use super::sql::{Backend, Fields as _, Locks, Reader as _, SqlMetadataStore};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/mysql");

/// Rows of `commits` are removed that were there so long before, or longer: far longer than anybody asks for one.
const COMMITS_KEPT: Duration = Duration::from_secs(600);
/// Rows of `commits` removed at once.
const COMMITS_REMOVED: u32 = 5_000;
/// Metadata on a MySQL or MariaDB server.
pub type MysqlMetadataStore = SqlMetadataStore<Mysql>;

/// The connections to one server.
pub struct Mysql {
    pool: Pool,
    /// `None` once closed.
    queue: Mutex<Option<mpsc::Sender<Waiting>>>,
    groups: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    sweep: JoinHandle<()>,
}

impl SqlMetadataStore<Mysql> {
    /// Connects and brings the schema up to date. Several nodes may do so at once: one migrates, the others wait, for
    /// as long as that takes: an index over a large table may take hours.
    ///
    /// # Errors
    /// See [`OpenError`]; a schema newer than this binary's is refused and left alone.
    pub async fn open(options: MysqlOptions) -> Result<Self, OpenError> {
        let pool = Pool::new(options)?;
        let mut conn = connect(&pool).await?;
        migrate(&mut conn).await?;
        conn.close().await?;
        let (queue, waiting) = mpsc::channel(QUEUE_OPS_MAX);
        let groups = tokio::spawn(groups::run(pool.clone(), waiting));
        let sweep = tokio::spawn(sweep_commits(pool.clone()));
        let groups = tokio::sync::Mutex::new(Some(groups));
        Ok(Self::on(Mysql { pool, queue: Mutex::new(Some(queue)), groups, sweep }))
    }

    /// Who else is connected to the database, as `USER@HOST:PORT`, some of them: as far as this user may see, which is
    /// its own connections at least. To be asked before this process opens the store.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn others_connected(options: MysqlOptions) -> Result<Vec<String>, OpenError> {
        let pool = Pool::new(options)?;
        let mut conn = connect(&pool).await?;
        // The server's own threads, as those of its replication, have a database and no host.
        let sql = "SELECT CAST(CONCAT_WS('@', user, host) AS CHAR) FROM information_schema.processlist \
             WHERE db = DATABASE() AND id <> CONNECTION_ID() AND user <> 'system user' LIMIT 8";
        let others = sqlx::query_scalar(sql).fetch_all(&mut conn).await?;
        conn.close().await?;
        Ok(others)
    }

    /// Whether the server acknowledges commits that are not on stable storage yet: it loses the last ones with its
    /// power.
    ///
    /// # Errors
    /// Those of a read; also when the server has no such setting.
    pub async fn acknowledges_early(&self) -> MetadataResult<bool> {
        let sql = "SELECT CAST(@@GLOBAL.innodb_flush_log_at_trx_commit AS SIGNED)";
        let row = self.backend.pool.fetch_optional(sql, Vec::new()).await?;
        // 3 is what MariaDB has beside 1.
        Ok(row.map_or(Ok(1), |row| row.number(0)).is_ok_and(|flush| !matches!(flush, 1 | 3)))
    }
}

/// The first connection, or why there is none.
async fn connect(pool: &Pool) -> Result<MySqlConnection, OpenError> {
    let error = match pool.connect().await {
        Ok(conn) => return Ok(conn),
        Err(error) => error,
    };
    if error::is_denied(&error) {
        // MariaDB says the same to whoever comes without TLS where it is required.
        let plain = pool.options().tls == MysqlTls::Off;
        let hint = if plain { "; metadata.tls is off: does the server require TLS?" } else { "" };
        return Err(OpenError::Denied(format!("{error}{hint}")));
    }
    Err(match error::tls_fault(&error) {
        Some(fault) => OpenError::Tls(fault),
        None => OpenError::Database(error),
    })
}

/// Removes what nobody will ask for any more. Every node does so; that two meet does no harm, but hundreds that were
/// started together would all wait for each other's locks.
async fn sweep_commits(pool: Pool) {
    let mut seen = 0;
    loop {
        if let Err(error) = sweep_once(&pool, &mut seen).await {
            tracing::warn!(%error, "remove old rows of commits");
        }
        // After the look at what there is, however long that took.
        tokio::time::sleep(COMMITS_KEPT.mul_f64(rand::random_range(1.0..1.5))).await;
    }
}

async fn sweep_once(pool: &Pool, seen: &mut i64) -> MetadataResult<()> {
    use super::sql::{Session as _, values};

    let (before, locks) = (*seen, Locks::none());
    loop {
        let sql = "DELETE FROM commits WHERE id < ? ORDER BY id LIMIT ?";
        let removed = transaction(pool, &locks, |tx| tx.execute(sql, values![before, i64::from(COMMITS_REMOVED)]));
        if removed.await?.rows_affected < u64::from(COMMITS_REMOVED) {
            break;
        }
    }
    let newest = pool.fetch_optional("SELECT COALESCE(MAX(id), 0) FROM commits", Vec::new()).await?;
    *seen = newest.map_or(Ok(0), |row| row.number(0))?;
    Ok(())
}

/// Runs something to its end, whatever becomes of the caller.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = MetadataResult<T>> + Send + 'static,
) -> MetadataResult<T> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(MetadataError::Unknown(error.to_string())))
}

impl Mysql {
    fn sender(&self) -> MetadataResult<mpsc::Sender<Waiting>> {
        self.queue.lock().clone().ok_or_else(closed)
    }

    async fn submit(&self, op: KeyOp) -> MetadataResult<KeyDone> {
        let (reply, answer) = oneshot::channel();
        match self.sender()?.try_send(Waiting { op, until: self.pool.write_deadline(), reply }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                metrics::counter!("holdfast_metadata_refused_total").increment(1);
                return Err(MetadataError::Busy);
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(closed()),
        }
        // Everything that was taken is answered; if the group is gone nobody knows how far it came.
        answer.await.unwrap_or_else(|_| Err(MetadataError::Unknown("the group of the commit ended".to_owned())))
    }
}

fn deleted(done: KeyDone) -> Deleted {
    match done {
        KeyDone::Deleted(deleted) => deleted,
        KeyDone::Put(_) => unreachable!("an operation answers in its own kind"),
    }
}

impl Backend for Mysql {
    type Reads = Pool;
    type Tx = Tx;

    fn reads(&self) -> &Pool {
        &self.pool
    }

    async fn write<T, F>(&self, locks: Locks, run: F) -> MetadataResult<T>
    where
        T: Send + 'static,
        F: for<'a> Fn(&'a mut Tx) -> BoxFuture<'a, MetadataResult<T>> + Send + Sync + 'static,
    {
        self.sender()?;
        let pool = self.pool.clone();
        to_the_end(async move { transaction(&pool, &locks, run).await }).await
    }

    async fn put(&self, object: NewObject) -> MetadataResult<Committed> {
        match self.submit(KeyOp::put(object)).await? {
            KeyDone::Put(committed) => Ok(committed),
            KeyDone::Deleted(_) => unreachable!("an operation answers in its own kind"),
        }
    }

    async fn delete(
        &self,
        bucket: BucketId,
        mut requests: Vec<DeleteRequest>,
        now_ms: u64,
    ) -> MetadataResult<Vec<MetadataResult<Deleted>>> {
        if requests.len() == 1
            && let Some(request) = requests.pop()
        {
            return Ok(vec![self.submit(KeyOp::delete(bucket, request, now_ms)).await.map(deleted)]);
        }
        self.sender()?;
        let (pool, until) = (self.pool.clone(), self.pool.write_deadline());
        to_the_end(async move {
            let mut results = Vec::with_capacity(requests.len());
            let (mut group, mut keys) = (Vec::new(), HashSet::new());
            for request in requests {
                if group.len() == ROWS_MAX || !keys.insert(request.key.clone()) {
                    keys = HashSet::from([request.key.clone()]);
                    results.extend(groups::run_ops(&pool, std::mem::take(&mut group), until).await);
                }
                group.push(KeyOp::delete(bucket, request, now_ms));
            }
            results.extend(groups::run_ops(&pool, group, until).await);
            Ok(results.into_iter().map(|result| result.map(deleted)).collect())
        })
        .await
    }

    async fn ping(&self) -> MetadataResult<()> {
        self.pool.fetch("SELECT 1", Vec::new()).await?;
        if let Some(trial) = self.pool.room().to_be_tried() {
            // Its row in `commits` is what is written.
            let (pool, held) = (self.pool.clone(), trial.clone());
            let write = to_the_end(async move {
                let _held = held;
                transaction(&pool, &Locks::none(), |_| boxed(async { Ok(()) })).await
            });
            if let Ok(Ok(())) = tokio::time::timeout(TRY_MAX, write).await {
                self.pool.room().was_found(&trial);
            }
        }
        Ok(())
    }

    fn writes_stopped(&self) -> Option<String> {
        let has_ended = self.queue.lock().as_ref().is_some_and(mpsc::Sender::is_closed);
        has_ended.then(|| "the task that commits has ended: restart the node".to_owned())
    }

    fn no_space(&self) -> Option<String> {
        self.pool.room().full()
    }

    async fn close(&self) {
        self.queue.lock().take();
        self.sweep.abort();
        if let Some(groups) = self.groups.lock().await.take()
            && let Err(error) = groups.await
        {
            tracing::error!(%error, "the groups of commits ended abnormally");
        }
        self.pool.close().await;
    }
}

impl Drop for Mysql {
    fn drop(&mut self) {
        self.sweep.abort();
    }
}
