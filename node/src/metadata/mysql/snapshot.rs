//! All of metadata as it was at one moment, to be read at leisure while others write.
//!
//! One connection with one transaction, `START TRANSACTION WITH CONSISTENT SNAPSHOT`: every statement in it sees what
//! was committed before it began, and nothing later. The server keeps old versions of changed rows for as long as it
//! lasts.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_actors::ports::metadata::{
    BucketId, Committed, DeleteRequest, Deleted, MetadataError, MetadataResult, NewObject,
};
use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{Connection as _, SqlStr};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::Mysql;
use super::error::{refused, timed_out};
use super::pool::closed;
use super::tx::{Tx, bound};
use crate::metadata::room::of_read;
use crate::metadata::sql::{Backend, Dialect, Locks, Reader, SqlMetadataStore, Value};

/// A transaction that only reads, on a connection of its own. Writes are refused. Closing or dropping it ends it.
pub struct MysqlSnapshot {
    session: Session,
}

/// The connection; `None` once it failed or was closed, since what came after would be of another moment.
pub struct Session {
    conn: Mutex<Option<MySqlConnection>>,
    query_timeout: std::time::Duration,
}

impl SqlMetadataStore<Mysql> {
    /// Metadata as of now, whatever is written from here on. It reads on one connection beside the pool, so one verb
    /// after the other; when that breaks, every further verb fails.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn snapshot(&self) -> MetadataResult<SqlMetadataStore<MysqlSnapshot>> {
        let pool = &self.backend.pool;
        let begin = async {
            let mut conn = pool.connect().await?;
            // The server ends sessions that say nothing for long; whoever reads may have to wait for a slow disk.
            sqlx::raw_sql(
                "SET SESSION wait_timeout = 3600; SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ; \
                 START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
            )
            .execute(&mut conn)
            .await?;
            Ok::<_, sqlx::Error>(conn)
        };
        let limit = pool.options().query_timeout;
        let begun = timeout(limit, begin).await.unwrap_or_else(|_| Err(timed_out()));
        let conn = begun.map_err(|error| refused(&error))?;
        let session = Session { conn: Mutex::new(Some(conn)), query_timeout: limit };
        Ok(SqlMetadataStore::on(MysqlSnapshot { session }))
    }
}

impl Reader for Session {
    type Row = MySqlRow;
    const DIALECT: Dialect = Dialect::Mysql;

    fn run_fetch(&self, sql: SqlStr, values: Vec<Value>) -> BoxFuture<'_, MetadataResult<Vec<MySqlRow>>> {
        async move {
            let mut held = self.conn.lock().await;
            // Taken out: a verb that is dropped half way leaves none.
            let mut conn = held.take().ok_or_else(closed)?;
            let found = timeout(self.query_timeout, bound(sql, values).fetch_all(&mut conn)).await;
            match found.unwrap_or_else(|_| Err(timed_out())) {
                Ok(found) => {
                    *held = Some(conn);
                    Ok(found)
                }
                Err(error) => Err(of_read(refused(&error))),
            }
        }
        .boxed()
    }
}

fn read_only<T>() -> MetadataResult<T> {
    Err(MetadataError::Unavailable("a snapshot takes no writes".to_owned()))
}

impl Backend for MysqlSnapshot {
    type Reads = Session;
    type Tx = Tx;

    fn reads(&self) -> &Session {
        &self.session
    }

    async fn write<T, F>(&self, _locks: Locks, _run: F) -> MetadataResult<T>
    where
        T: Send + 'static,
        F: for<'a> Fn(&'a mut Tx) -> BoxFuture<'a, MetadataResult<T>> + Send + Sync + 'static,
    {
        read_only()
    }

    async fn put(&self, _object: NewObject) -> MetadataResult<Committed> {
        read_only()
    }

    async fn delete(
        &self,
        _bucket: BucketId,
        _requests: Vec<DeleteRequest>,
        _now_ms: u64,
    ) -> MetadataResult<Vec<MetadataResult<Deleted>>> {
        read_only()
    }

    async fn ping(&self) -> MetadataResult<()> {
        self.session.fetch("SELECT 1", Vec::new()).await.map(drop)
    }

    async fn close(&self) {
        if let Some(conn) = self.session.conn.lock().await.take() {
            // The server ends the transaction with the connection, whichever way that goes.
            timeout(self.session.query_timeout, conn.close()).await.ok();
        }
    }
}
