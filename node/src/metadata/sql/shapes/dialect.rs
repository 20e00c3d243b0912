//! What the databases write differently, and lists of rows.

/// Whose SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::metadata) enum Dialect {
    Sqlite,
    /// MySQL 8 and MariaDB 10.11.
    Mysql,
}

impl Dialect {
    /// Names the index that a table of a SELECT is read by, where the order of the rows depends on it.
    pub(in crate::metadata) fn by_index(self, index: &str) -> String {
        match self {
            Self::Sqlite => format!("INDEXED BY {index}"),
            Self::Mysql => format!("FORCE INDEX ({index})"),
        }
    }

    /// Ends a SELECT whose rows must stay as they are until the commit. SQLite's writer is alone anyway.
    pub(in crate::metadata) const fn for_update(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Mysql => " FOR UPDATE",
        }
    }
}

/// The condition that a row has one of `rows` keys. MySQL looks up the index for OR, SQLite for IN.
pub(super) fn has_key(dialect: Dialect, rows: usize) -> String {
    match dialect {
        Dialect::Sqlite => format!("(bucket, key) IN (VALUES {})", list("(?,?)", rows)),
        Dialect::Mysql => vec!["(bucket = ? AND `key` = ?)"; rows].join(" OR "),
    }
}

/// The condition that a row of the outbox is one of `rows`, in the same two ways.
pub(super) fn is_row(dialect: Dialect, rows: usize) -> String {
    match dialect {
        Dialect::Sqlite => format!("(part, id) IN (VALUES {})", list("(?,?)", rows)),
        Dialect::Mysql => vec!["(part = ? AND id = ?)"; rows].join(" OR "),
    }
}

/// A table `w(id)` of `rows` ids, to be named first.
pub(super) fn wanted(dialect: Dialect, rows: usize) -> String {
    match dialect {
        Dialect::Sqlite => format!("(SELECT column1 AS id FROM (VALUES {}))", list("(?)", rows)),
        Dialect::Mysql => format!("({})", vec!["SELECT CAST(? AS BINARY) AS id"; rows].join(" UNION ALL ")),
    }
}

/// Inserts a row unless there is one of its key.
pub(super) fn insert_new(dialect: Dialect, table: &str, columns: &str, rows: &str) -> String {
    match dialect {
        Dialect::Sqlite => format!("INSERT OR IGNORE INTO {table} ({columns}) {rows}"),
        Dialect::Mysql => format!("INSERT IGNORE INTO {table} ({columns}) {rows}"),
    }
}

/// `row` written `rows` times, with commas.
pub(super) fn list(row: &str, rows: usize) -> String {
    let mut out = String::with_capacity((row.len() + 1) * rows);
    for i in 0..rows {
        if i > 0 {
            out.push(',');
        }
        out.push_str(row);
    }
    out
}
