//! Connections to the server: a bounded number, made when they are needed, kept when they are good.
//!
//! A connection may be stale: the server was restarted, or something between cut it. One that was not asked for a
//! while, and after any failure every one, is asked first whether it lives. So a restart of the server costs nobody an
//! error who comes after it.
//!
//! Nor does a server stay the primary for ever. One that another has taken the place of lives on as its replica, takes
//! no writes, and answers reads with what was there some time ago. So it is asked whether it takes writes, and left if
//! it does not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_actors::ports::metadata::{MetadataError, MetadataResult};
use parking_lot::Mutex;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlRow};
use sqlx::{ConnectOptions as _, Connection as _, SqlStr};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::{Failure, OpenError, failure, is_denied, refused, timed_out};
use super::kept::Kept;
use super::nodelay;
use super::options::MysqlOptions;
use super::tx::bound;
use crate::metadata::room::{Room, of_read};
use crate::metadata::sql::{Dialect, Reader, Value};

/// A connection that was asked so short a time ago is taken to be alive, and its server to be the primary.
const FRESH: Duration = Duration::from_secs(1);
/// How long after a failure every connection is asked.
const SUSPICION: Duration = Duration::from_secs(10);
/// How long to wait for the answer.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the server keeps a session that says nothing, with the locks of its transaction.
const IDLE_SECONDS_MAX: u32 = 30;
/// Pause after which it is looked again what became of an acknowledged commit.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Attempts of a read whose connection breaks.
const READ_ATTEMPTS: u32 = 3;

/// Whether a server takes no writes. As text: there are versions of MariaDB with more than two values of it.
const IS_READ_ONLY: &str = "SELECT CAST(@@GLOBAL.read_only AS CHAR) NOT IN ('0', 'OFF')";

struct Idle {
    conn: MySqlConnection,
    /// When it was asked last.
    asked: Instant,
}

/// Asks a connection whether it lives and its server takes writes.
async fn ask(conn: &mut MySqlConnection) -> Result<(), sqlx::Error> {
    let found: Result<i64, sqlx::Error> = sqlx::query_scalar(IS_READ_ONLY).fetch_one(conn).await;
    match found {
        Ok(0) => Ok(()),
        Ok(_) => {
            let what = "the metadata server is read-only: it is a replica, or is being replaced as the primary";
            Err(sqlx::Error::Io(std::io::Error::other(what)))
        }
        // It has no such setting.
        Err(error) if failure(&error) == Failure::Statement => Ok(()),
        Err(error) => Err(error),
    }
}

struct Inner {
    connect: MySqlConnectOptions,
    /// Statements that make a session what it must be.
    settings: SqlStr,
    options: MysqlOptions,
    permits: Arc<Semaphore>,
    /// Shows how many of them are lent.
    in_use: metrics::Gauge,
    /// The last one back is the first one taken: it is warm, and the others may go cold.
    idle: Mutex<Vec<Idle>>,
    failed: Mutex<Option<Instant>>,
    kept: Kept,
    room: Room,
}

/// The pool; clones are the same one.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

/// A connection in use. Only [`Lease::give_back`] brings it back: a lease that is dropped closes it, with what was
/// going on.
pub(super) struct Lease {
    conn: Option<MySqlConnection>,
    /// When it was asked last.
    asked: Instant,
    pool: Arc<Inner>,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    pub(super) fn conn(&mut self) -> &mut MySqlConnection {
        self.conn.as_mut().expect("taken only by give_back")
    }

    pub(super) fn give_back(mut self) {
        if let Some(conn) = self.conn.take() {
            self.pool.idle.lock().push(Idle { conn, asked: self.asked });
        }
    }

    pub(super) fn query_timeout(&self) -> Duration {
        self.pool.options.query_timeout
    }

    /// Remembers that connections may be stale.
    pub(super) fn suspect(&self) {
        *self.pool.failed.lock() = Some(Instant::now());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.in_use.decrement(1.0);
    }
}

impl Pool {
    pub(super) fn new(options: MysqlOptions) -> Result<Self, OpenError> {
        let connect = options.connect()?;
        let lock_seconds = options.lock_timeout.as_secs().max(1);
        // The server takes the locks of a node that vanished without a word, and it waits no longer for one that stands
        // still between two statements. Connections that idle here as long are asked before they are used again. READ
        // COMMITTED: each statement sees what was committed before it, and locks no gaps between rows.
        let settings = format!(
            "SET SESSION innodb_lock_wait_timeout = {lock_seconds}, wait_timeout = {IDLE_SECONDS_MAX}, autocommit = 1, \
             sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'; \
             SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"
        );
        let connections = options.connections.max(2);
        metrics::gauge!("holdfast_metadata_connections_max").set(f64::from(connections));
        let permits = Arc::new(Semaphore::new(connections as usize));
        Ok(Self(Arc::new(Inner {
            connect,
            settings: sqlx::SqlSafeStr::into_sql_str(sqlx::AssertSqlSafe(settings)),
            options,
            permits,
            in_use: metrics::gauge!("holdfast_metadata_connections_in_use"),
            idle: Mutex::default(),
            failed: Mutex::default(),
            kept: Kept::default(),
            room: Room::new("make room on the disks of the metadata server".to_owned()),
        })))
    }

    pub(super) fn options(&self) -> &MysqlOptions {
        &self.0.options
    }

    /// Until when a write that is asked for now may begin.
    pub(super) fn write_deadline(&self) -> Instant {
        Instant::now() + self.0.options.write_timeout
    }

    /// What the server has acknowledged.
    pub(super) fn kept(&self) -> &Kept {
        &self.0.kept
    }

    /// Whether the server has room for writes.
    pub(super) fn room(&self) -> &Room {
        &self.0.room
    }

    /// The server gave out a number that is no new one. A connection of its own looks what became of what was
    /// acknowledged; one, however many transactions find that at the same time.
    pub(super) fn doubt(&self) {
        if self.0.kept.doubt() {
            let pool = self.clone();
            tokio::spawn(async move {
                // Whoever doubts later relies on this, and the numbers that follow give nobody reason to.
                loop {
                    drop(pool.connect().await);
                    if !pool.kept().is_doubted() || pool.0.permits.is_closed() {
                        return;
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            });
        }
    }

    /// A new connection, ready for use.
    pub(super) async fn connect(&self) -> Result<MySqlConnection, sqlx::Error> {
        let made = async {
            let mut conn = self.0.connect.connect().await?;
            nodelay::set_towards(self.0.connect.get_port());
            sqlx::raw_sql(self.0.settings.clone()).execute(&mut conn).await?;
            ask(&mut conn).await?;
            // It may be another server than the last one, or the same one after it lost power.
            self.0.kept.look(&mut conn).await?;
            Ok(conn)
        };
        timeout(self.0.options.connect_timeout, made).await.unwrap_or_else(|_| Err(timed_out()))
    }

    /// A connection that lives.
    ///
    /// # Errors
    /// `Busy` when all are in use for too long, `Unavailable` when the server cannot be reached.
    pub(super) async fn acquire(&self) -> MetadataResult<Lease> {
        let permit = timeout(self.0.options.acquire_timeout, Arc::clone(&self.0.permits).acquire_owned()).await;
        let permit = match permit {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(closed()),
            Err(_) => {
                metrics::counter!("holdfast_metadata_refused_total").increment(1);
                return Err(MetadataError::Busy);
            }
        };
        let lease = |conn, asked| {
            self.0.in_use.increment(1.0);
            Lease { conn: Some(conn), asked, pool: Arc::clone(&self.0), _permit: permit }
        };
        loop {
            let idle = self.0.idle.lock().pop();
            let Some(Idle { mut conn, asked }) = idle else { break };
            let suspect = self.0.failed.lock().is_some_and(|failed| failed.elapsed() < SUSPICION);
            if asked.elapsed() < FRESH && !suspect {
                return Ok(lease(conn, asked));
            }
            match timeout(PING_TIMEOUT, ask(&mut conn)).await {
                Ok(Ok(())) => return Ok(lease(conn, Instant::now())),
                // It broke, or is one to a replica; the next one may be good.
                Ok(Err(_)) => {}
                // The server stands still, or what is on the way to it. The others would be waited for as long, one
                // after the other; a new connection shows how it is, and they are asked by who comes next.
                Err(_) => {
                    *self.0.failed.lock() = Some(Instant::now());
                    break;
                }
            }
        }
        match self.connect().await {
            Ok(conn) => Ok(lease(conn, Instant::now())),
            Err(error) if is_denied(&error) => {
                Err(MetadataError::Unavailable("the metadata server refused the user or its password".to_owned()))
            }
            Err(error) => Err(MetadataError::Unavailable(error.to_string())),
        }
    }

    /// Waits until no connection is in use and closes them all.
    pub(super) async fn close(&self) {
        let all = self.0.options.connections.max(2);
        if let Ok(_permits) = self.0.permits.acquire_many(all).await {
            self.0.permits.close();
            let idle = std::mem::take(&mut *self.0.idle.lock());
            for Idle { conn, .. } in idle {
                timeout(PING_TIMEOUT, conn.close()).await.ok();
            }
        }
    }

    async fn read(&self, sql: SqlStr, values: Vec<Value>) -> MetadataResult<Vec<MySqlRow>> {
        metrics::counter!("holdfast_metadata_queries_total").increment(1);
        let mut attempt = 1;
        loop {
            let mut lease = self.acquire().await?;
            let limit = self.0.options.query_timeout;
            let found = timeout(limit, bound(sql.clone(), values.clone()).fetch_all(lease.conn())).await;
            match found.unwrap_or_else(|_| Err(timed_out())) {
                Ok(found) => {
                    lease.give_back();
                    return Ok(found);
                }
                Err(error) if failure(&error) == Failure::Connection => {
                    lease.suspect();
                    if attempt == READ_ATTEMPTS {
                        return Err(refused(&error));
                    }
                    attempt += 1;
                }
                Err(error) => {
                    lease.give_back();
                    return Err(of_read(refused(&error)));
                }
            }
        }
    }
}

pub(super) fn closed() -> MetadataError {
    MetadataError::Unavailable("the metadata store is closed".to_owned())
}

impl Reader for Pool {
    type Row = MySqlRow;
    const DIALECT: Dialect = Dialect::Mysql;

    fn run_fetch(&self, sql: SqlStr, values: Vec<Value>) -> BoxFuture<'_, MetadataResult<Vec<MySqlRow>>> {
        self.read(sql, values).boxed()
    }
}
