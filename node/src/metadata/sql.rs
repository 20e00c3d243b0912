//! What the SQL adapters share: the verbs of the port as statements, over two small traits.
//!
//! * [`Reader`]: one statement outside of any transaction.
//! * [`Session`]: the open transaction of a verb. Verbs read before they write; that what they read stays true until
//!   the commit is the adapter's part. SQLite has one writer. A server takes [`Locks`] first, and every statement of
//!   the verb sees what was committed before the locks were granted.
//! * [`SqlMetadataStore`]: the port on top of a [`Backend`] that runs verbs.
//!
//! Text is bound and read as bytes where the database has a notion of characters, so that everything compares byte by
//! byte.

use futures::future::BoxFuture;
use futures::{FutureExt as _, TryFutureExt as _};
use holdfast_actors::ports::metadata::MetadataResult;
use sqlx::{SqlSafeStr, SqlStr};

pub(super) mod accesses;
pub(super) mod buckets;
pub(super) mod fences;
pub(super) mod holders;
pub(super) mod journal;
pub(super) mod key_ops;
pub(super) mod lifecycle;
pub(super) mod listing;
pub(super) mod locks;
pub(super) mod moves;
pub(super) mod outbox;
pub(super) mod reads;
pub(super) mod reclaims;
pub(super) mod replicas;
mod sequences;
pub(super) mod shapes;
pub(super) mod store;
pub(super) mod tiering;
pub(super) mod uploads;
pub(super) mod users;
pub(super) mod versions;

pub(super) use locks::Locks;
pub(super) use shapes::{Dialect, Shape};
pub(super) use store::Backend;
pub use store::SqlMetadataStore;

/// A bound value.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Number(i64),
    Bytes(Vec<u8>),
    Text(String),
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

impl<const N: usize> From<&[u8; N]> for Value {
    fn from(bytes: &[u8; N]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// The values of a statement, each turned into a [`Value`].
macro_rules! values {
    ($($value:expr),* $(,)?) => { vec![$($crate::metadata::sql::Value::from($value)),*] };
}
pub(super) use values;

/// A row that was read. What has another type than it should is `Corrupt`.
pub(super) trait Fields: Send + Sync + 'static {
    fn number_or_null(&self, at: usize) -> MetadataResult<Option<i64>>;
    fn bytes_or_null(&self, at: usize) -> MetadataResult<Option<&[u8]>>;
    fn text_or_null(&self, at: usize) -> MetadataResult<Option<&str>>;

    fn number(&self, at: usize) -> MetadataResult<i64> {
        self.number_or_null(at)?.ok_or_else(unexpected_null)
    }

    fn bytes(&self, at: usize) -> MetadataResult<&[u8]> {
        self.bytes_or_null(at)?.ok_or_else(unexpected_null)
    }

    fn text(&self, at: usize) -> MetadataResult<&str> {
        self.text_or_null(at)?.ok_or_else(unexpected_null)
    }
}

fn unexpected_null() -> holdfast_actors::ports::MetadataError {
    holdfast_actors::ports::MetadataError::Corrupt("a value is missing".to_owned())
}

/// What a statement that writes did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) rows_affected: u64,
    /// The number that the database gave to the row inserted.
    pub(super) last_id: i64,
}

/// Reads outside of transactions: one statement, one state of the database, with everything that was committed before.
pub(super) trait Reader: Send + Sync + 'static {
    type Row: Fields;
    const DIALECT: Dialect;

    fn run_fetch(&self, sql: SqlStr, values: Vec<Value>) -> BoxFuture<'_, MetadataResult<Vec<Self::Row>>>;

    fn fetch(&self, sql: impl SqlSafeStr, values: Vec<Value>) -> BoxFuture<'_, MetadataResult<Vec<Self::Row>>> {
        self.run_fetch(sql.into_sql_str(), values)
    }

    /// The one row, or none.
    fn fetch_optional(
        &self,
        sql: impl SqlSafeStr,
        values: Vec<Value>,
    ) -> BoxFuture<'_, MetadataResult<Option<Self::Row>>> {
        self.fetch(sql, values).map_ok(|found| found.into_iter().next()).boxed()
    }
}

/// The open transaction of a verb.
pub(super) trait Session: Send + 'static {
    type Row: Fields;
    const DIALECT: Dialect;

    fn run_fetch(&mut self, sql: SqlStr, values: Vec<Value>) -> BoxFuture<'_, MetadataResult<Vec<Self::Row>>>;

    fn run_execute(&mut self, sql: SqlStr, values: Vec<Value>) -> BoxFuture<'_, MetadataResult<Done>>;

    /// A sequence number above all that were given out to transactions that held a lock of this one before.
    fn take_sequence(&mut self) -> i64;

    fn fetch(&mut self, sql: impl SqlSafeStr, values: Vec<Value>) -> BoxFuture<'_, MetadataResult<Vec<Self::Row>>> {
        self.run_fetch(sql.into_sql_str(), values)
    }

    /// The one row, or none.
    fn fetch_optional(
        &mut self,
        sql: impl SqlSafeStr,
        values: Vec<Value>,
    ) -> BoxFuture<'_, MetadataResult<Option<Self::Row>>> {
        self.fetch(sql, values).map_ok(|found| found.into_iter().next()).boxed()
    }

    fn execute(&mut self, sql: impl SqlSafeStr, values: Vec<Value>) -> BoxFuture<'_, MetadataResult<Done>> {
        self.run_execute(sql.into_sql_str(), values)
    }

    /// Runs a statement for all `rows`, many at a time. `head` stands before the rows; `bind` gives the values of a
    /// row.
    fn execute_many<T>(
        &mut self,
        shape: Shape,
        head: &[Value],
        rows: &[T],
        bind: impl Fn(&T) -> Vec<Value>,
    ) -> BoxFuture<'_, MetadataResult<()>> {
        let statements = shapes::statements(Self::DIALECT, shape, head, rows, bind);
        async move {
            for (sql, values) in statements {
                self.run_execute(sql, values).await?;
            }
            Ok(())
        }
        .boxed()
    }

    /// As [`Self::execute_many`], collecting what the statements return.
    fn fetch_many<T>(
        &mut self,
        shape: Shape,
        rows: &[T],
        bind: impl Fn(&T) -> Vec<Value>,
    ) -> BoxFuture<'_, MetadataResult<Vec<Self::Row>>> {
        let statements = shapes::statements(Self::DIALECT, shape, &[], rows, bind);
        async move {
            let mut found = Vec::new();
            for (sql, values) in statements {
                found.extend(self.run_fetch(sql, values).await?);
            }
            Ok(found)
        }
        .boxed()
    }
}
