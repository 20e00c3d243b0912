//! Brings the schema up to date, one node at a time.
//!
//! DDL commits by itself on MySQL, so a node that dies in the middle of a migration leaves half of it, and a row in sqlx's
//! table that says so. No node opens such a database, so nothing that the migration made is in use: where it only makes
//! tables (and fills those), they are dropped and it is run again. A table that holds rows which the migration did not put
//! there is somebody else's, and is left alone. A migration that changes tables which were there before is for a person to
//! look at: [`OpenError::HalfMigrated`] says what to do.

use std::time::Duration;

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::{MIGRATIONS, OpenError};

/// How long the first node may take to make the schema, with others waiting.
pub(super) const MIGRATION_TIMEOUT: Duration = Duration::from_secs(120);

/// What a migration of which nothing else is needed makes.
#[derive(Debug, PartialEq, Eq)]
struct Made {
    table: String,
    /// The migration puts rows into it itself.
    filled: bool,
}

/// Applies what is missing, after a look whether the database is not from the future. One node at a time: sqlx's own lock
/// asks MariaDB to wait forever in a way that it takes for not at all. The lock ends with the connection.
pub(super) async fn migrate(conn: &mut MySqlConnection) -> Result<(), OpenError> {
    let lock = "SELECT GET_LOCK(CONCAT('holdfast.', MD5(DATABASE())), ?)";
    let locked: Option<i64> =
        sqlx::query_scalar(lock).bind(MIGRATION_TIMEOUT.as_secs() as i64).fetch_one(&mut *conn).await?;
    if locked != Some(1) {
        return Err(OpenError::TimedOut);
    }
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    if exists(conn, "_sqlx_migrations").await? {
        let row = sqlx::query("SELECT MAX(version) FROM _sqlx_migrations").fetch_one(&mut *conn).await?;
        let found: Option<i64> = row.try_get(0)?;
        if let Some(found) = found.filter(|found| *found > known) {
            return Err(OpenError::NewerSchema { found, known });
        }
        let half = "SELECT version FROM _sqlx_migrations WHERE success = FALSE ORDER BY version";
        let half: Vec<i64> = sqlx::query_scalar(half).fetch_all(&mut *conn).await?;
        for version in half {
            take_back(conn, version).await?;
        }
    }
    MIGRATIONS.run_direct(None, conn, false).await?;
    Ok(())
}

async fn exists(conn: &mut MySqlConnection, table: &str) -> Result<bool, sqlx::Error> {
    let sql = "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?";
    Ok(sqlx::query(sql).bind(table).fetch_optional(conn).await?.is_some())
}

/// Removes what a migration left that was cut off, so that it can be run again. May itself be cut off anywhere.
async fn take_back(conn: &mut MySqlConnection, version: i64) -> Result<(), OpenError> {
    let half = |detail: String| OpenError::HalfMigrated { version, detail };
    let migration = MIGRATIONS.iter().find(|migration| migration.version == version);
    let Some(made) = migration.and_then(|migration| only_makes_tables(migration.sql.as_str())) else {
        return Err(half("it changes tables that were there before".to_owned()));
    };
    let mut left = Vec::new();
    for Made { table, filled } in made {
        if !exists(conn, &table).await? {
            continue;
        }
        let any = AssertSqlSafe(format!("SELECT 1 FROM `{table}` LIMIT 1"));
        if !filled && sqlx::query(any).fetch_optional(&mut *conn).await?.is_some() {
            return Err(half(format!("table {table} holds rows that are not the migration's")));
        }
        left.push(table);
    }
    tracing::warn!(version, tables = ?left, "a migration of the metadata database was cut off: it is taken back and run again");
    for table in left {
        sqlx::query(AssertSqlSafe(format!("DROP TABLE `{table}`"))).execute(&mut *conn).await?;
    }
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = ? AND success = FALSE")
        .bind(version)
        .execute(conn)
        .await?;
    Ok(())
}

/// The tables that a migration makes, if it does nothing else but fill them.
fn only_makes_tables(sql: &str) -> Option<Vec<Made>> {
    // Comments may hold anything.
    let code: Vec<&str> = sql.lines().map(|line| line.split_once("--").map_or(line, |(code, _)| code)).collect();
    let mut made: Vec<Made> = Vec::new();
    for statement in code.join("\n").split(';') {
        let mut words = statement.split_whitespace();
        let Some(verb) = words.next() else { continue };
        let (object, table) = (words.next()?, words.next()?.trim_matches('`'));
        if !table.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return None;
        }
        match (verb, object) {
            ("CREATE", "TABLE") if table != "IF" => made.push(Made { table: table.to_owned(), filled: false }),
            ("INSERT", "INTO") => made.iter_mut().find(|made| made.table == table)?.filled = true,
            _ => return None,
        }
    }
    Some(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_migration_can_be_taken_back() {
        let first = MIGRATIONS.iter().next().expect("there is one");
        let made = only_makes_tables(first.sql.as_str()).expect("it only makes tables");
        assert!(made.contains(&Made { table: "objects".into(), filled: false }), "{made:?}");
        assert!(made.contains(&Made { table: "lock_slots".into(), filled: true }), "{made:?}");
    }

    #[test]
    fn a_migration_that_touches_what_was_there_is_left_to_people() {
        assert!(only_makes_tables("CREATE TABLE a (x INT);\n-- b\nINSERT INTO a (x) VALUES (1);\n").is_some());
        for other in [
            "ALTER TABLE a ADD COLUMN y INT;",
            "CREATE TABLE a (x INT); DROP TABLE b;",
            "INSERT INTO b (x) VALUES (1);",
            "CREATE INDEX i ON a (x);",
            "CREATE TABLE IF NOT EXISTS a (x INT);x",
        ] {
            assert_eq!(only_makes_tables(other), None, "{other}");
        }
    }
}
