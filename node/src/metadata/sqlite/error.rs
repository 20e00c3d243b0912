//! What SQLite's errors mean to callers of the port.

use holdfast_actors::ports::metadata::MetadataError;
use sqlx::error::DatabaseError as _;
use sqlx::sqlite::SqliteError;

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another version of Holdfast changed the schema in a way that this one does not know.
    #[error(
        "the metadata database has schema version {found}, newer than version {known}, the newest that this binary knows: \
         start a newer holdfast, or restore a backup"
    )]
    NewerSchema {
        /// The version in the database.
        found: i64,
        /// The newest version that this binary knows.
        known: i64,
    },
    /// A migration failed or was changed after it was applied.
    #[error("migrate the metadata database")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// SQLite refused.
    #[error("open the metadata database")]
    Database(#[from] sqlx::Error),
    /// The directory could not be synced.
    #[error("sync the directory of the metadata database")]
    Directory(#[from] std::io::Error),
}

// Primary result codes of SQLite, https://sqlite.org/rescode.html.
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const NOT_A_DATABASE: i32 = 26;

fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let sqlx::Error::Database(error) = error else { return None };
    let error = error.try_downcast_ref::<SqliteError>()?;
    let extended: i32 = error.code()?.parse().ok()?;
    Some(extended & 0xff)
}

/// Whether there was no room for what a statement or COMMIT was to write. Nothing of the transaction was kept then: the
/// frame of the log that would commit it is the last one written, and every frame is written before the log is flushed.
/// That the flush or the file of the log's index finds no room is an I/O error: the log may have all frames by then.
pub(super) fn is_full(error: &sqlx::Error) -> bool {
    primary_code(error) == Some(FULL)
}

/// An error of a statement whose effect, if it had one, is rolled back.
pub(super) fn refused(error: sqlx::Error) -> MetadataError {
    match (&error, primary_code(&error)) {
        (_, Some(BUSY | LOCKED)) | (sqlx::Error::PoolTimedOut, _) => MetadataError::Busy,
        (_, Some(FULL)) => MetadataError::NoSpace(error.to_string()),
        (_, Some(CORRUPT | NOT_A_DATABASE))
        | (sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnIndexOutOfBounds { .. }, _) => {
            MetadataError::Corrupt(error.to_string())
        }
        _ => MetadataError::Unavailable(error.to_string()),
    }
}

/// Whether a failed COMMIT that [is not for want of room](is_full) leaves the store usable: a foreign lock does; after
/// an I/O error nobody knows what reached the disk, and a later flush that succeeds would say nothing about it.
pub(super) fn commit_can_be_tried_again(error: &sqlx::Error) -> bool {
    matches!(primary_code(error), Some(BUSY | LOCKED))
}
