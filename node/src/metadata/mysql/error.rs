//! What errors of the server and of the way there mean.

use holdfast_actors::ports::metadata::MetadataError;
use sqlx::mysql::MySqlDatabaseError;

/// Why the metadata server could not be used at the start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL names no server.
    #[error("the URL of the metadata server: {0}")]
    Url(String),
    /// The server does not let this user in.
    #[error("the metadata server refused the user or its password: {0}")]
    Denied(String),
    /// The server cannot be reached in the way that `metadata.tls` asks for.
    #[error("{0}")]
    Tls(String),
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
    /// A migration was cut off by a crash, and what it left cannot be taken back without a person who looks at it.
    #[error(
        "migration {version} of the metadata database was cut off, and cannot be run again by itself: {detail}. Stop all nodes; \
         either restore the database from before the upgrade, or undo by hand what migration {version} did and run `DELETE FROM \
         _sqlx_migrations WHERE version = {version}`; then start one node"
    )]
    HalfMigrated {
        /// Which.
        version: i64,
        /// Why not.
        detail: String,
    },
    /// A migration failed or was changed after it was applied.
    #[error("migrate the metadata database")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The server cannot be reached or refused.
    #[error("connect to the metadata server")]
    Database(#[from] sqlx::Error),
    /// The server did not answer.
    #[error("the metadata server did not answer in time")]
    TimedOut,
}

// Error numbers of MySQL and MariaDB, the same in both unless said.
const DUPLICATE: u16 = 1062;
const LOCK_WAIT: u16 = 1205;
const DEADLOCK: u16 = 1213;
/// Of MariaDB with `innodb_snapshot_isolation`, which is on by default since 11.6.
const CHANGED_SINCE_READ: u16 = 1020;
/// Of MySQL only.
const LOCK_NOT_AVAILABLE: u16 = 3572;
const ACCESS_DENIED: [u16; 3] = [1044, 1045, 1698];
/// The server ends, or this connection does: too many connections, shutdown, killed, idle for too long, too many
/// prepared statements; or the server takes no writes (any more), and another one does, or it has left its Galera
/// cluster (1047).
const GOING: [u16; 11] = [1040, 1047, 1053, 1077, 1079, 1290, 1461, 1836, 1927, 3169, 4031];

/// A disk or a table is full, or writing a file failed for that: with these the server says by itself what it is.
const FULL: [u16; 3] = [20, 1021, 1114];
/// Of the server's files and engines: what is wrong is in the text only, as an error number of the system.
const OF_A_FILE: [u16; 5] = [3, 1005, 1026, 1030, 1598];
/// How the texts of both servers name `ENOSPC`: `Got error 28 from storage engine`, `(errno: 28 - No space left on
/// device)`, `(Errcode: 28 "No space left on device")`.
const NO_SPACE: [&str; 3] = ["error 28", "errno: 28", "errcode: 28"];

pub(super) fn number(error: &sqlx::Error) -> Option<u16> {
    let sqlx::Error::Database(error) = error else { return None };
    error.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

/// The server takes connections over TLS only. The same number in MySQL and MariaDB.
const TLS_REQUIRED: u16 = 3159;

/// What is wrong with the protection of connections, if that is what an attempt to connect failed by: no further
/// attempt helps before somebody changes the configuration or the server's certificate.
pub(super) fn tls_fault(error: &sqlx::Error) -> Option<String> {
    if number(error) == Some(TLS_REQUIRED) {
        return Some("the metadata server takes connections over TLS only: set metadata.tls".to_owned());
    }
    let of_tls = |error: &(dyn std::error::Error + 'static)| error.downcast_ref::<rustls::Error>().cloned();
    let fault = match error {
        sqlx::Error::Io(error) => of_tls(error.get_ref()?)?,
        sqlx::Error::Tls(error) => match of_tls(error.as_ref()) {
            Some(fault) => fault,
            None => {
                return Some(format!(
                    "no TLS with the metadata server: {error}; look at metadata.tls and metadata.tls_ca"
                ));
            }
        },
        _ => return None,
    };
    Some(match fault {
        rustls::Error::InvalidCertificate(why) => format!(
            "the certificate of the metadata server is not accepted: {why}; metadata.tls_ca must name the CA that signed it, and \
             with verify-identity it must be made out to the host in metadata.url"
        ),
        other => format!("no TLS with the metadata server: {other}"),
    })
}

/// What failed, as far as it matters for going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Another transaction was in the way: this one is rolled back and can be run again.
    Contention,
    /// The connection is lost, or of no more use.
    Connection,
    /// The statement.
    Statement,
}

pub(super) fn failure(error: &sqlx::Error) -> Failure {
    match number(error) {
        Some(LOCK_WAIT | DEADLOCK | LOCK_NOT_AVAILABLE | CHANGED_SINCE_READ) => Failure::Contention,
        Some(number) if GOING.contains(&number) => Failure::Connection,
        Some(_) => Failure::Statement,
        None => match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnIndexOutOfBounds { .. } => {
                Failure::Statement
            }
            _ => Failure::Connection,
        },
    }
}

pub(super) fn is_duplicate(error: &sqlx::Error) -> bool {
    number(error) == Some(DUPLICATE)
}

/// Whether the server had no room for what was to be written. That it has no memory (1041) is another thing.
fn is_full(number: u16, text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let says = |words: &&str| {
        let mut rests = text.match_indices(*words).map(|(at, found)| &text[at + found.len()..]);
        rests.any(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
    };
    FULL.contains(&number) || (OF_A_FILE.contains(&number) && NO_SPACE.iter().any(says))
}

pub(super) fn is_denied(error: &sqlx::Error) -> bool {
    number(error).is_some_and(|number| ACCESS_DENIED.contains(&number))
}

/// An error of a statement that had no effect.
pub(super) fn refused(error: &sqlx::Error) -> MetadataError {
    match (failure(error), error) {
        (Failure::Contention, _) => MetadataError::Busy,
        (Failure::Statement, sqlx::Error::Database(said))
            if number(error).is_some_and(|number| is_full(number, said.message())) =>
        {
            MetadataError::NoSpace(error.to_string())
        }
        (Failure::Statement, sqlx::Error::Database(_)) | (Failure::Connection, _) => {
            MetadataError::Unavailable(error.to_string())
        }
        (Failure::Statement, _) => MetadataError::Corrupt(error.to_string()),
    }
}

pub(super) fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the metadata server did not answer in time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disks_are_told_from_other_errors_of_files() {
        for (number, text) in [
            (1114, "The table 'objects' is full"),
            (1021, "Disk full (/tmp/#sql); waiting for someone to free some space..."),
            (1030, "Got error 28 from storage engine"),
            (1030, "Got error 28 \"No space left on device\" from storage engine InnoDB"),
            (1026, "Error writing file './binlog.000007' (errno: 28 - No space left on device)"),
            (3, "Error writing file '/tmp/MYfd=12' (Errcode: 28 \"No space left on device\")"),
        ] {
            assert!(is_full(number, text), "{number} {text}");
        }
        for (number, text) in [
            (1030, "Got error 168 - 'Unknown (generic) error from engine' from storage engine"),
            (1030, "Got error 280 from storage engine"),
            (1026, "Error writing file './binlog.000028' (errno: 5 - Input/output error)"),
            (1041, "Out of memory; check if mysqld or some other process uses all available memory"),
            (1062, "Duplicate entry 'no space left on device' for key 'PRIMARY'"),
        ] {
            assert!(!is_full(number, text), "{number} {text}");
        }
    }
}
