//! [`SqliteMetadataStore`]: metadata in one SQLite database in WAL mode.
//!
//! # Who does what
//! * One [`writer`](self) task owns the connection that writes. Verbs wait in a bounded queue and share commits; a verb
//!   is answered when its commit is durable (`synchronous = FULL` flushes the log on every commit).
//! * A few connections read. A read that starts after a commit was answered sees it.
//!
//! SQLite runs on a thread per connection; each statement is a trip there and back. That is why writes go in statements
//! over many rows.
//!
//! # Failure
//! Verbs that cannot be kept are rolled back and reported, as where there is no room for them; another error out of
//! COMMIT is `Unknown`, and all but a foreign lock stop writes for good, of which health checks are told. Dropping a
//! caller's future does not stop its write.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use holdfast_actors::ports::metadata::{
    BucketId, Committed, DeleteRequest, Deleted, MetadataError, MetadataResult, NewObject,
};
use parking_lot::Mutex;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

mod error;
mod tx;
mod writer;

#[cfg(test)]
mod tests;

pub use error::OpenError;
use tx::{Readers, Tx};
use writer::{Job, QUEUE_JOBS_MAX};

use super::room::{Room, TRY_MAX};
use super::sql::store::boxed;
use super::sql::{Backend, Locks, Reader as _, Session as _, SqlMetadataStore};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/sqlite");

/// How long a reader waits for a connection, and a writer for a foreign lock on the file.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Pages of the log at which a commit copies them into the database: 16 MiB, a pause of some milliseconds each.
const CHECKPOINT_PAGES: u32 = 4096;
/// The log is cut back to this after it had to grow beyond (64 MiB).
const LOG_BYTES_KEPT: u32 = 64 << 20;
/// Statements over many rows that the writer keeps prepared: every shape at every number of rows.
const WRITER_STATEMENTS: usize = 1024;

/// Settings of a [`SqliteMetadataStore`].
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// Connections that read.
    pub readers: u32,
    /// Page cache of the writer and of each reader, in KiB.
    pub cache_kib: u32,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { readers: 4, cache_kib: 8 << 10 }
    }
}

/// Metadata in one SQLite database. Open it on the runtime that is to run its writer.
pub type SqliteMetadataStore = SqlMetadataStore<Sqlite>;

/// The connections to one database, and its writer.
pub struct Sqlite {
    readers: Readers,
    /// `None` once closed.
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    writer: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    /// Why the writer takes nothing any more, once it does not.
    stopped: Arc<OnceLock<String>>,
    room: Arc<Room>,
}

impl SqlMetadataStore<Sqlite> {
    /// Opens the database at `path`, makes it if there is none, and brings its schema up to date. Spawns the writer on
    /// the current runtime.
    ///
    /// # Errors
    /// See [`OpenError`]; a schema newer than this binary's is refused and left alone.
    pub async fn open(path: &Path, options: SqliteOptions) -> Result<Self, OpenError> {
        let connect = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(WAIT_MAX)
            .foreign_keys(false)
            .pragma("cache_size", format!("-{}", options.cache_kib))
            .disable_statement_logging();
        let mut conn = connect
            .clone()
            .create_if_missing(true)
            .statement_cache_capacity(WRITER_STATEMENTS)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES.to_string())
            .pragma("journal_size_limit", LOG_BYTES_KEPT.to_string())
            .connect()
            .await?;
        migrate(&mut conn).await?;
        sync_directory(path).await?;
        let readers = SqlitePoolOptions::new()
            .min_connections(1)
            .max_connections(options.readers.max(1))
            .acquire_timeout(WAIT_MAX)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_with(connect.pragma("query_only", "ON"))
            .await?;
        let (queue, jobs) = mpsc::channel(QUEUE_JOBS_MAX);
        let stopped = Arc::<OnceLock<String>>::default();
        let room = Arc::new(Room::new(format!("make room on the file system of {}", path.display())));
        let writer = tokio::spawn(writer::run(Tx::new(conn), jobs, stopped.clone(), room.clone()));
        let writer = tokio::sync::Mutex::new(Some(writer));
        Ok(Self::on(Sqlite { readers: Readers(readers), queue: Mutex::new(Some(queue)), writer, stopped, room }))
    }

    /// Whether a bucket was ever made here. If not, no chunk on any disk can be of this database.
    ///
    /// # Errors
    /// Those of a read.
    pub async fn had_buckets(&self) -> MetadataResult<bool> {
        let sql = "SELECT 1 FROM sqlite_sequence WHERE name = 'buckets'";
        Ok(self.backend.readers.fetch_optional(sql, Vec::new()).await?.is_some())
    }
}

impl Sqlite {
    /// Queues a job and waits for its answer.
    async fn submit<T>(&self, job: Job, answer: oneshot::Receiver<MetadataResult<T>>) -> MetadataResult<T> {
        let sent = match self.queue.lock().as_ref() {
            Some(queue) => queue.try_send(job),
            None => return Err(closed()),
        };
        match sent {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                metrics::counter!("holdfast_metadata_refused_total").increment(1);
                return Err(MetadataError::Busy);
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(closed()),
        }
        // The writer answers everything that it took; if it is gone nobody knows how far it came.
        answer.await.unwrap_or_else(|_| Err(MetadataError::Unknown("the metadata writer stopped".to_owned())))
    }
}

impl Backend for Sqlite {
    type Reads = Readers;
    type Tx = Tx;

    fn reads(&self) -> &Readers {
        &self.readers
    }

    async fn write<T, F>(&self, _: Locks, run: F) -> MetadataResult<T>
    where
        T: Send + 'static,
        F: for<'a> Fn(&'a mut Tx) -> BoxFuture<'a, MetadataResult<T>> + Send + Sync + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.submit(writer::verb(run, reply), answer).await
    }

    async fn put(&self, object: NewObject) -> MetadataResult<Committed> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Put(Box::new(object), reply), answer).await
    }

    async fn delete(
        &self,
        bucket: BucketId,
        requests: Vec<DeleteRequest>,
        now_ms: u64,
    ) -> MetadataResult<Vec<MetadataResult<Deleted>>> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Delete(bucket, requests, now_ms, reply), answer).await
    }

    async fn ping(&self) -> MetadataResult<()> {
        self.readers.fetch("SELECT 1", Vec::new()).await?;
        if let Some(trial) = self.room.to_be_tried() {
            // One number is lost. A row that stays what it is would change no page, and COMMIT would write nothing.
            let sql = "UPDATE counters SET value = value + 1 WHERE name = 'sequence'";
            let held = trial.clone();
            let write = self.write(Locks::none(), move |tx| {
                let held = held.clone();
                boxed(async move {
                    let _held = held;
                    tx.execute(sql, Vec::new()).await
                })
            });
            if let Ok(Ok(_)) = tokio::time::timeout(TRY_MAX, write).await {
                self.room.was_found(&trial);
            }
        }
        Ok(())
    }

    fn writes_stopped(&self) -> Option<String> {
        let has_ended = || self.queue.lock().as_ref().is_some_and(mpsc::Sender::is_closed);
        let ended = || has_ended().then(|| "the metadata writer has ended: restart the node".to_owned());
        self.stopped.get().cloned().or_else(ended)
    }

    fn no_space(&self) -> Option<String> {
        self.room.full()
    }

    async fn close(&self) {
        self.queue.lock().take();
        if let Some(writer) = self.writer.lock().await.take()
            && let Err(error) = writer.await
        {
            tracing::error!(%error, "the metadata writer ended abnormally");
        }
        self.readers.0.close().await;
    }
}

fn closed() -> MetadataError {
    MetadataError::Unavailable("the metadata store is closed".to_owned())
}

/// Applies what is missing, after a look whether the database is not from the future.
async fn migrate(conn: &mut SqliteConnection) -> Result<(), OpenError> {
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    let has_migrations: i64 =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = '_sqlx_migrations')")
            .fetch_one(&mut *conn)
            .await?;
    if has_migrations != 0 {
        let found: Option<i64> =
            sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations").fetch_one(&mut *conn).await?;
        if let Some(found) = found.filter(|found| *found > known) {
            return Err(OpenError::NewerSchema { found, known });
        }
    }
    MIGRATIONS.run_direct(None, conn, false).await?;
    Ok(())
}

/// Makes the database's directory entry durable: SQLite does that for its log only.
async fn sync_directory(path: &Path) -> std::io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => Path::new(".").to_owned(),
    };
    tokio::task::spawn_blocking(move || std::fs::File::open(directory)?.sync_all())
        .await
        .map_err(std::io::Error::other)?
}
