//! Brings the schema up to date, one node at a time.
//!
//! DDL commits by itself on MySQL, so a node that dies in the middle of a migration leaves half of it, and a row in
//! sqlx's table that says so. No node opens such a database, so nothing that the migration made is in use: where it
//! only makes tables, columns and keys (and fills those), they are dropped and it is run again. A table that holds rows
//! which the migration did not put there is somebody else's, and is left alone. A migration that changes what was there
//! before is for a person to look at: [`OpenError::HalfMigrated`] says what to do.
//!
//! A migration has no time limit. An index over a large table takes as long as it takes, and what is cut off has to
//! begin anew: with a limit it might never come to its end.

use std::time::Duration;

use md5::{Digest as _, Md5};
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::{MIGRATIONS, OpenError};

/// How long the server waits for the lock in one statement. Nodes ask again after that.
const TURN: Duration = Duration::from_secs(5);
/// Turns between two lines in the log: a minute.
const TURNS_SAID: u32 = 12;
/// How long the server may take for an answer, beyond what it waits for the lock.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// What a migration of which nothing else is needed makes.
#[derive(Debug, PartialEq, Eq)]
enum Made {
    Table {
        table: String,
        /// The migration puts rows into it itself.
        filled: bool,
    },
    Column {
        table: String,
        column: String,
    },
    Key {
        table: String,
        key: String,
    },
}

/// Applies what is missing, after a look whether the database is not from the future. One node at a time; the others
/// wait.
pub(super) async fn migrate(conn: &mut MySqlConnection) -> Result<(), OpenError> {
    take_turn(conn).await?;
    let Found { newest, half } = in_time(look(conn)).await?;
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    if let Some(found) = newest.filter(|found| *found > known) {
        return Err(OpenError::NewerSchema { found, known });
    }
    if newest.is_some_and(|newest| newest < known) || !half.is_empty() {
        tracing::warn!(
            from = newest,
            to = known,
            "the schema of the metadata database is brought up to date: on a large database this may take hours; do not stop \
             this node, other nodes wait for it"
        );
    }
    for version in &half {
        take_back(conn, *version).await?;
    }
    MIGRATIONS.run_direct(None, conn, false).await?;
    Ok(())
}

/// Waits until it is this node's turn to look at the schema, for as long as another one is at it. sqlx's own lock asks
/// MariaDB to wait forever in a way that it takes for not at all. The lock ends with the connection.
async fn take_turn(conn: &mut MySqlConnection) -> Result<(), OpenError> {
    let database = sqlx::query_scalar::<_, Option<String>>("SELECT DATABASE()");
    let database = in_time(async { Ok(database.fetch_one(&mut *conn).await?) }).await?;
    let name = lock_name(&database.unwrap_or_default());
    let mut turns = 0_u32;
    loop {
        let lock =
            sqlx::query_scalar::<_, Option<i64>>("SELECT GET_LOCK(?, ?)").bind(&name).bind(TURN.as_secs() as i64);
        let locked = in_time(async { Ok(lock.fetch_one(&mut *conn).await?) }).await?;
        match locked {
            Some(1) => return Ok(()),
            Some(_) => {}
            None => return Err(sqlx::Error::Protocol("the server refused the lock of migrations".to_owned()).into()),
        }
        if turns.is_multiple_of(TURNS_SAID) {
            tracing::info!(
                "another node brings the schema of the metadata database up to date: waiting for it to be done"
            );
        }
        turns = turns.wrapping_add(1);
    }
}

/// Locks are the server's, and their names have 64 characters at most, as many as that of a database may have. Not by the
/// server's own `MD5()`, which MySQL has no more since 9.6; nodes of versions that asked for that have to meet these here.
fn lock_name(database: &str) -> String {
    format!("holdfast.{}", hex::encode(Md5::digest(database)))
}

async fn in_time<T>(answer: impl Future<Output = Result<T, OpenError>>) -> Result<T, OpenError> {
    tokio::time::timeout(TURN + ANSWER_TIMEOUT, answer).await.unwrap_or(Err(OpenError::TimedOut))
}

/// What migrations left.
#[derive(Default)]
struct Found {
    /// The newest one that was begun.
    newest: Option<i64>,
    /// Those that were cut off.
    half: Vec<i64>,
}

async fn look(conn: &mut MySqlConnection) -> Result<Found, OpenError> {
    if !exists(conn, "_sqlx_migrations").await? {
        return Ok(Found::default());
    }
    let row = sqlx::query("SELECT MAX(version) FROM _sqlx_migrations").fetch_one(&mut *conn).await?;
    let half = "SELECT version FROM _sqlx_migrations WHERE success = FALSE ORDER BY version";
    Ok(Found { newest: row.try_get(0)?, half: sqlx::query_scalar(half).fetch_all(&mut *conn).await? })
}

async fn exists(conn: &mut MySqlConnection, table: &str) -> Result<bool, sqlx::Error> {
    let sql = "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?";
    Ok(sqlx::query(sql).bind(table).fetch_optional(conn).await?.is_some())
}

/// Removes what a migration left that was cut off, so that it can be run again. May itself be cut off anywhere.
async fn take_back(conn: &mut MySqlConnection, version: i64) -> Result<(), OpenError> {
    let half = |detail: String| OpenError::HalfMigrated { version, detail };
    let migration = MIGRATIONS.iter().find(|migration| migration.version == version);
    let Some(made) = migration.and_then(|migration| only_makes(migration.sql.as_str())) else {
        return Err(half("it changes what was there before".to_owned()));
    };
    let mut left = Vec::new();
    // The last first: a key goes before its columns.
    for made in made.into_iter().rev() {
        match made {
            Made::Table { table, filled } => {
                if !exists(conn, &table).await? {
                    continue;
                }
                let any = AssertSqlSafe(format!("SELECT 1 FROM `{table}` LIMIT 1"));
                if !filled && sqlx::query(any).fetch_optional(&mut *conn).await?.is_some() {
                    return Err(half(format!("table {table} holds rows that are not the migration's")));
                }
                left.push(format!("DROP TABLE `{table}`"));
            }
            Made::Column { table, column } => {
                if has(conn, "columns", "column_name", &table, &column).await? {
                    left.push(format!("ALTER TABLE `{table}` DROP COLUMN `{column}`"));
                }
            }
            Made::Key { table, key } => {
                if has(conn, "statistics", "index_name", &table, &key).await? {
                    left.push(format!("ALTER TABLE `{table}` DROP KEY `{key}`"));
                }
            }
        }
    }
    tracing::warn!(version, steps = ?left, "a migration of the metadata database was cut off: it is taken back and run again");
    for statement in left {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *conn).await?;
    }
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = ? AND success = FALSE")
        .bind(version)
        .execute(conn)
        .await?;
    Ok(())
}

/// Whether a table has a column or a key of this name.
async fn has(
    conn: &mut MySqlConnection,
    view: &str,
    column: &str,
    table: &str,
    name: &str,
) -> Result<bool, sqlx::Error> {
    let sql = format!(
        "SELECT 1 FROM information_schema.{view} WHERE table_schema = DATABASE() AND table_name = ? AND {column} = ? LIMIT 1"
    );
    Ok(sqlx::query(AssertSqlSafe(sql)).bind(table).bind(name).fetch_optional(conn).await?.is_some())
}

/// What a migration makes, if it does nothing else but fill it.
fn only_makes(sql: &str) -> Option<Vec<Made>> {
    // Comments may hold anything.
    let code: Vec<&str> = sql.lines().map(|line| line.split_once("--").map_or(line, |(code, _)| code)).collect();
    let mut made: Vec<Made> = Vec::new();
    for statement in code.join("\n").split(';') {
        let words: Vec<&str> = statement.split_whitespace().collect();
        match words[..] {
            [] => {}
            ["CREATE", "TABLE", table, ..] if table != "IF" => {
                made.push(Made::Table { table: name_of(table)?, filled: false });
            }
            ["INSERT", "INTO", table, ..] => {
                let wanted = name_of(table)?;
                let place = made.iter_mut().find_map(|made| match made {
                    Made::Table { table, filled } if *table == wanted => Some(filled),
                    _ => None,
                });
                *place? = true;
            }
            ["ALTER", "TABLE", table, "ADD", kind @ ("COLUMN" | "KEY"), name, ..] => {
                // One change a statement, so that each is there or not.
                if changes(statement)? != 1 {
                    return None;
                }
                let (table, name) = (name_of(table)?, name_of(name)?);
                made.push(match kind {
                    "COLUMN" => Made::Column { table, column: name },
                    _ => Made::Key { table, key: name },
                });
            }
            ["UPDATE", table, ..] => {
                let wanted = name_of(table)?;
                let (_, assignments) = statement.rsplit_once(" SET ")?;
                for assignment in at_commas(assignments)? {
                    let set = assignment.split_once('=')?.0.trim();
                    let set = set.rsplit('.').next().unwrap_or(set);
                    let is_new = |made: &Made| matches!(made, Made::Column { table, column } if *table == wanted && column == set);
                    if !made.iter().any(is_new) {
                        return None;
                    }
                }
            }
            _ => return None,
        }
    }
    Some(made)
}

/// A name without its quotes, if it is a plain one.
fn name_of(word: &str) -> Option<String> {
    let name = word.trim_matches('`');
    let is_plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_plain.then(|| name.to_owned())
}

/// How many changes an ALTER TABLE makes.
fn changes(statement: &str) -> Option<usize> {
    at_commas(statement).map(|parts| parts.len())
}

/// Cuts at the commas that stand in no parentheses; `None`: those do not match.
fn at_commas(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut depth, mut begin) = (Vec::new(), 0_u32, 0);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    (depth == 0).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_that_of_the_versions_before() {
        // `SELECT CONCAT('holdfast.', MD5('holdfast'))`
        assert_eq!(lock_name("holdfast"), "holdfast.dce38a1a984bc9108fccfe5a32fda9f7");
    }

    #[test]
    fn every_migration_so_far_can_be_taken_back() {
        for migration in MIGRATIONS.iter() {
            assert!(only_makes(migration.sql.as_str()).is_some(), "{}", migration.version);
        }
    }

    #[test]
    fn what_a_migration_makes_is_known() {
        let first = MIGRATIONS.iter().next().expect("there is one");
        let made = only_makes(first.sql.as_str()).expect("it only makes tables");
        assert!(made.contains(&Made::Table { table: "objects".into(), filled: false }), "{made:?}");
        assert!(made.contains(&Made::Table { table: "lock_slots".into(), filled: true }), "{made:?}");
        let made = only_makes(
            "ALTER TABLE a ADD COLUMN y INT NOT NULL DEFAULT 0; UPDATE a b JOIN c ON c.x = b.x SET b.y = IF(c.x, 1, 2);\n\
             ALTER TABLE a ADD KEY k (x, `y`);",
        );
        let (table, column, key) = ("a".to_owned(), "y".to_owned(), "k".to_owned());
        assert_eq!(made, Some(vec![Made::Column { table: table.clone(), column }, Made::Key { table, key }]));
    }

    #[test]
    fn a_migration_that_touches_what_was_there_is_left_to_people() {
        assert!(only_makes("CREATE TABLE a (x INT);\n-- b\nINSERT INTO a (x) VALUES (1);\n").is_some());
        for other in [
            "ALTER TABLE a DROP COLUMN y;",
            "ALTER TABLE a ADD COLUMN y INT, DROP COLUMN x;",
            "ALTER TABLE a ADD COLUMN y INT; UPDATE a SET x = 1;",
            "ALTER TABLE a ADD COLUMN y INT; UPDATE a SET y = 1, x = 1;",
            "ALTER TABLE a ADD COLUMN y INT; UPDATE b SET y = 1;",
            "ALTER TABLE a ADD UNIQUE KEY k (x);",
            "CREATE TABLE a (x INT); DROP TABLE b;",
            "INSERT INTO b (x) VALUES (1);",
            "CREATE INDEX i ON a (x);",
            "CREATE TABLE IF NOT EXISTS a (x INT);x",
        ] {
            assert_eq!(only_makes(other), None, "{other}");
        }
    }
}
