//! All SQL whose text depends on the number of rows.
//!
//! Statements over many rows keep the trips to the database few: a batch of sixty-four PUTs takes as many statements as
//! one. Their texts are built once for each number of rows and stay prepared.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

use super::Value;
use super::outbox::OUTBOX_COLUMNS;

mod dialect;

pub(in crate::metadata) use dialect::Dialect;
use dialect::{has_key, insert_new, is_row, list, wanted};

/// The most rows of one statement. Bounds the prepared statements that are kept: one for each shape and number of rows.
pub(in crate::metadata) const ROWS_MAX: usize = 64;

/// Columns of `objects` and `history`, in the order of all statements.
pub(in crate::metadata) const OBJECT_COLUMNS: &str =
    "bucket, `key`, sequence, version, content, modified_ms, owner, attributes, tags, acl, class, restore_ms";

/// What a row of a listed version is read from: the columns of `objects` or `history` (as `o`), then those of its
/// content (as `c`). Where in a tier the content is may be long, and no listing asks for it.
pub(in crate::metadata) const LISTED_COLUMNS: &str = "o.key, o.sequence, o.version, o.content, o.modified_ms, o.owner, o.attributes, \
     o.tags, o.acl, o.class, o.restore_ms, c.manifest, c.etag_md5, c.etag_parts, c.checksum, c.parts, c.tier";

/// How many [`LISTED_COLUMNS`] are. A version that is read whole has one more: `c.cold`.
pub(in crate::metadata) const LISTED_COLUMNS_LEN: usize = 17;

/// Whether anything knows the content `w.id`.
const IS_KNOWN: &str = "EXISTS (SELECT 1 FROM contents WHERE contents.id = w.id) \
     OR EXISTS (SELECT 1 FROM extents WHERE extent = w.id) \
     OR EXISTS (SELECT 1 FROM parts WHERE content = w.id) \
     OR EXISTS (SELECT 1 FROM reclaims WHERE content = w.id)";

/// The condition that a piece is one of `rows`: numbers are given out again by a database that was set back.
fn is_piece(rows: usize) -> String {
    vec!["(id = ? AND name = ?)"; rows].join(" OR ")
}

/// A look at the outbox: `(partition, ids that are left out × except, limit)` × looks → the columns of a row, then its
/// partition.
pub(in crate::metadata) fn look(dialect: Dialect, looks: usize, except: usize) -> String {
    let one = look_past(except, 0);
    let one = match dialect {
        Dialect::Sqlite => format!("SELECT * FROM ({one})"),
        // Read as they come: a derived table would be written out first.
        Dialect::Mysql => format!("({one})"),
    };
    vec![one; looks].join(" UNION ALL ")
}

/// One look, past some keys: partition, then ids that are left out × except, keys that are left out × keys, limit → the
/// same.
pub(in crate::metadata) fn look_past(except: usize, keys: usize) -> String {
    let columns = "id, nonce, topic, queued_ms, order_key, tag, words, body, part";
    let without = |column: &str, count: usize| match count {
        0 => String::new(),
        _ => format!(" AND {column} NOT IN ({})", list("?", count)),
    };
    let (except, keys) = (without("id", except), without("order_key", keys));
    format!("SELECT {columns} FROM outbox WHERE part = ?{except}{keys} ORDER BY id LIMIT ?")
}

/// A statement over many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::metadata) enum Shape {
    /// `(bucket, key, new content or NULL)` × n → place, versioning, of the current row version, content, etag, whether
    /// the new content was condemned, of the current row sequence, of the bucket revision, whether the current row is
    /// restored.
    LoadKeys,
    /// Content rows × n.
    InsertContents,
    /// Object rows × n, over what is there.
    PutObjects,
    /// Time, then `(bucket, key)` × n: current rows to history.
    Archive,
    /// `(bucket, key)` × n → bucket, key and sequence of the newest row of history, and whether it is a delete marker
    /// that is the latest version.
    NewestPast,
    /// Time, then `(bucket, key, sequence)` × n: delete markers that are the latest version are that no more.
    SupersedeMarkers,
    /// `(bucket, key)` × n.
    RemoveObjects,
    /// Delete marker rows × n.
    InsertMarkers,
    /// Content ids × n lose one reference.
    Dereference,
    /// Time, then content ids × n: those without references are queued.
    QueueUnreferenced,
    /// Reclaim rows × n.
    QueueReclaims,
    /// Content ids × n.
    RemoveContents,
    /// Time, then reclaim ids × n.
    PostponeReclaims,
    /// Reclaim ids × n → id, content, manifest, tier, whether pieces are to be listed, time, references of the content.
    NamedReclaims,
    /// Reclaim ids × n → id, content, manifest.
    LoadReclaims,
    /// Reclaim ids × n.
    RemoveReclaims,
    /// `(extent, content)` × n.
    InsertExtents,
    /// Extent ids × n.
    RemoveExtents,
    /// Content ids × n → those that something knows.
    Known,
    /// Content ids × n → what knows each of them; see [`super::holders`].
    Holders,
    /// Time, then content ids × n: those that nothing knows are condemned.
    Condemn,
    /// Content ids × n → those that are condemned.
    Condemned,
    /// `(content id, time)` × n: those condemned at just this time are condemned no more.
    ForgetCondemned,
    /// Shards × n → shard, epoch.
    LoadEpochs,
    /// `(shard, epoch)` × n.
    RaiseEpochs,
    /// Repair rows × n: new ones, and a later time for those that are there.
    QueueRepairs,
    /// `(repair id, time)` × n: those of just this time.
    RemoveRepairs,
    /// Content ids × n → id, references; they stay so.
    LockContents,
    /// Reclaim ids × n → id, time; they stay so.
    LockReclaims,
    /// Rows of the error log × n: those that are new.
    AddErrors,
    /// Outbox rows × n.
    InsertOutbox,
    /// `(partition, id)` × n.
    RemoveOutbox,
    /// Time, then `(partition, id)` × n: outbox rows are published.
    KeepPublished,
    /// Partition, then ids × n: published rows are outbox rows again.
    ReplayPublished,
    /// Partition, then ids × n.
    RemovePublished,
    /// Recheck ids × n.
    RemoveRechecks,
    /// `(bucket, key, day)` × n: new ones, and a later day for those that are there.
    NoteReads,
    /// `(bucket, key, day)` × n: those of just this day.
    ForgetReads,
    /// Rows of moves × n, over those of the same versions.
    QueueMoves,
    /// Rows of pieces × n that tiers are to delete.
    InsertPieces,
    /// Time, then piece ids × n: they are given out, until then.
    ClaimPieces,
    /// Time, then `(piece id, name)` × n: they were deleted for the first time of two, and come again then.
    NotePieces,
    /// `(piece id, name)` × n.
    RemovePieces,
    /// Tier, then names × n.
    KeepPieces,
}

impl Shape {
    /// The statement for `rows` rows.
    pub(in crate::metadata) fn text(self, dialect: Dialect, rows: usize) -> String {
        let ids = || list("?", rows);
        let keys = || list("(?,?)", rows);
        match self {
            Self::LoadKeys => {
                let places = match dialect {
                    Dialect::Sqlite => {
                        let numbered: Vec<String> = (0..rows).map(|i| format!("({i},?,?,?)")).collect();
                        let columns = "column1 AS i, column2 AS b, column3 AS k, column4 AS n";
                        format!("(SELECT {columns} FROM (VALUES {}))", numbered.join(","))
                    }
                    Dialect::Mysql => {
                        let row = "CAST(? AS SIGNED) AS b, CAST(? AS BINARY) AS k, CAST(? AS BINARY) AS n";
                        let numbered: Vec<String> = (0..rows).map(|i| format!("SELECT {i} AS i, {row}")).collect();
                        format!("({})", numbered.join(" UNION ALL "))
                    }
                };
                format!(
                    "SELECT k.i, b.versioning, o.version, o.content, c.etag_md5, c.etag_parts, \
                     d.content IS NOT NULL, o.sequence, b.revision, o.restore_ms IS NOT NULL FROM {places} k \
                     LEFT JOIN buckets b ON b.id = k.b \
                     LEFT JOIN objects o ON o.bucket = k.b AND o.key = k.k \
                     LEFT JOIN contents c ON c.id = o.content \
                     LEFT JOIN condemned d ON d.content = k.n"
                )
            }
            Self::InsertContents => format!(
                "INSERT INTO contents (id, refs, size_bytes, manifest, etag_md5, etag_parts, checksum, parts, tier, cold) \
                 VALUES {}",
                list("(?,1,?,?,?,?,?,?,?,?)", rows)
            ),
            Self::PutObjects => {
                format!("REPLACE INTO objects ({OBJECT_COLUMNS}) VALUES {}", list("(?,?,?,?,?,?,?,?,?,?,?,NULL)", rows))
            }
            Self::Archive => format!(
                "INSERT INTO history ({OBJECT_COLUMNS}, latest, since_ms) SELECT {OBJECT_COLUMNS}, 0, ? FROM objects \
                 WHERE {}",
                has_key(dialect, rows)
            ),
            Self::NewestPast => {
                let newest = "SELECT bucket, `key`, sequence, latest FROM history WHERE bucket = ? AND `key` = ? \
                     ORDER BY sequence DESC LIMIT 1";
                let newest = match dialect {
                    Dialect::Sqlite => format!("SELECT * FROM ({newest})"),
                    Dialect::Mysql => format!("({newest})"),
                };
                vec![newest; rows].join(" UNION ALL ")
            }
            Self::SupersedeMarkers => format!(
                "UPDATE history SET latest = 0, since_ms = ? WHERE {}",
                vec!["(bucket = ? AND `key` = ? AND sequence = ?)"; rows].join(" OR ")
            ),
            Self::RemoveObjects => format!("DELETE FROM objects WHERE {}", has_key(dialect, rows)),
            Self::InsertMarkers => format!(
                "INSERT INTO history ({OBJECT_COLUMNS}, latest, since_ms) VALUES {}",
                list("(?,?,?,?,NULL,?,?,NULL,NULL,0,NULL,NULL,1,?)", rows)
            ),
            Self::Dereference => format!("UPDATE contents SET refs = refs - 1 WHERE id IN ({})", ids()),
            Self::QueueUnreferenced => format!(
                "INSERT INTO reclaims (content, manifest, queued_ms, tier, cold) SELECT id, manifest, ?, tier, cold \
                 FROM contents WHERE id IN ({}) AND refs = 0",
                ids()
            ),
            Self::QueueReclaims => {
                format!("INSERT INTO reclaims (content, manifest, queued_ms) VALUES {}", list("(?,?,?)", rows))
            }
            Self::RemoveContents => format!("DELETE FROM contents WHERE id IN ({})", ids()),
            Self::PostponeReclaims => format!("UPDATE reclaims SET queued_ms = ? WHERE id IN ({})", ids()),
            Self::NamedReclaims => format!(
                "SELECT r.id, r.content, r.manifest, r.tier, r.cold IS NOT NULL, r.queued_ms, c.refs FROM reclaims r \
                 LEFT JOIN contents c ON c.id = r.content WHERE r.id IN ({})",
                ids()
            ),
            Self::LoadReclaims => format!("SELECT id, content, manifest FROM reclaims WHERE id IN ({})", ids()),
            Self::RemoveReclaims => format!("DELETE FROM reclaims WHERE id IN ({})", ids()),
            Self::InsertExtents => format!("INSERT INTO extents (extent, content) VALUES {}", keys()),
            Self::RemoveExtents => format!("DELETE FROM extents WHERE extent IN ({})", ids()),
            Self::Known => {
                format!("SELECT id FROM {} w WHERE {IS_KNOWN}", wanted(dialect, rows))
            }
            Self::Holders => format!(
                "SELECT e.content, c.refs, c.tier, h.refs, h.tier, p.upload, p.number, u.`key`, b.name, r.queued_ms, \
                 q.queued_ms, d.condemned_ms FROM {} w \
                 LEFT JOIN contents c ON c.id = w.id \
                 LEFT JOIN reclaims r ON r.content = w.id \
                 LEFT JOIN extents e ON e.extent = w.id \
                 LEFT JOIN contents h ON h.id = e.content \
                 LEFT JOIN reclaims q ON q.content = e.content \
                 LEFT JOIN parts p ON p.content = w.id \
                 LEFT JOIN uploads u ON u.id = p.upload \
                 LEFT JOIN buckets b ON b.id = u.bucket \
                 LEFT JOIN condemned d ON d.content = w.id",
                wanted(dialect, rows)
            ),
            Self::Condemn => {
                let condemned = format!("SELECT w.id, ? FROM {} w WHERE NOT ({IS_KNOWN})", wanted(dialect, rows));
                insert_new(dialect, "condemned", "content, condemned_ms", &condemned)
            }
            Self::Condemned => format!("SELECT content FROM condemned WHERE content IN ({})", ids()),
            Self::LoadEpochs => format!("SELECT shard, epoch FROM shard_epochs WHERE shard IN ({})", ids()),
            Self::RaiseEpochs => {
                let insert = format!("INSERT INTO shard_epochs (shard, epoch) VALUES {}", keys());
                match dialect {
                    Dialect::Sqlite => {
                        format!("{insert} ON CONFLICT (shard) DO UPDATE SET epoch = MAX(epoch, excluded.epoch)")
                    }
                    Dialect::Mysql => {
                        format!("{insert} ON DUPLICATE KEY UPDATE epoch = GREATEST(epoch, VALUES(epoch))")
                    }
                }
            }
            Self::QueueRepairs => {
                let insert = format!("INSERT INTO repairs (node, chunk, queued_ms) VALUES {}", list("(?,?,?)", rows));
                match dialect {
                    Dialect::Sqlite => format!(
                        "{insert} ON CONFLICT (chunk, node) \
                         DO UPDATE SET queued_ms = MAX(queued_ms + 1, excluded.queued_ms)"
                    ),
                    Dialect::Mysql => format!(
                        "{insert} ON DUPLICATE KEY UPDATE queued_ms = GREATEST(queued_ms + 1, VALUES(queued_ms))"
                    ),
                }
            }
            Self::LockContents => {
                format!("SELECT id, refs FROM contents WHERE id IN ({}){}", ids(), dialect.for_update())
            }
            Self::LockReclaims => {
                format!("SELECT id, queued_ms FROM reclaims WHERE id IN ({}){}", ids(), dialect.for_update())
            }
            Self::ForgetCondemned => {
                format!("DELETE FROM condemned WHERE {}", vec!["(content = ? AND condemned_ms = ?)"; rows].join(" OR "))
            }
            Self::RemoveRepairs => {
                format!("DELETE FROM repairs WHERE {}", vec!["(id = ? AND queued_ms = ?)"; rows].join(" OR "))
            }
            Self::AddErrors => {
                let rows = format!("VALUES {}", list("(?,?,?,?,?,?)", rows));
                insert_new(dialect, "error_log", "report, at_ms, node, kind, subject, detail", &rows)
            }
            Self::InsertOutbox => {
                format!("INSERT INTO outbox ({OUTBOX_COLUMNS}) VALUES {}", list("(?,?,?,?,?,?,?,?,?)", rows))
            }
            Self::RemoveOutbox => format!("DELETE FROM outbox WHERE {}", is_row(dialect, rows)),
            Self::KeepPublished => format!(
                "REPLACE INTO published ({OUTBOX_COLUMNS}, published_ms) SELECT {OUTBOX_COLUMNS}, ? FROM outbox WHERE {}",
                is_row(dialect, rows)
            ),
            Self::ReplayPublished => format!(
                "REPLACE INTO outbox ({OUTBOX_COLUMNS}) SELECT {OUTBOX_COLUMNS} FROM published \
                 WHERE part = ? AND id IN ({})",
                ids()
            ),
            Self::NoteReads => {
                let insert = format!("INSERT INTO accesses (bucket, `key`, day_ms) VALUES {}", list("(?,?,?)", rows));
                match dialect {
                    Dialect::Sqlite => format!(
                        "{insert} ON CONFLICT (bucket, key) DO UPDATE SET day_ms = MAX(day_ms, excluded.day_ms)"
                    ),
                    Dialect::Mysql => {
                        format!("{insert} ON DUPLICATE KEY UPDATE day_ms = GREATEST(day_ms, VALUES(day_ms))")
                    }
                }
            }
            Self::ForgetReads => format!(
                "DELETE FROM accesses WHERE {}",
                vec!["(bucket = ? AND `key` = ? AND day_ms = ?)"; rows].join(" OR ")
            ),
            Self::RemoveRechecks => format!("DELETE FROM lifecycle_rechecks WHERE id IN ({})", ids()),
            Self::QueueMoves => format!(
                "REPLACE INTO moves (bucket, `key`, version, content, lane, target, reason, keep_ms, queued_ms, due_ms, \
                 attempt, owner, failures, error) VALUES {}",
                list("(?,?,?,?,?,?,?,?,?,?,0,NULL,0,NULL)", rows)
            ),
            Self::InsertPieces => format!(
                "INSERT INTO tier_pieces (tier, name, attempt, due_ms, unsure, claimed) VALUES {}",
                list("(?,?,?,?,?,0)", rows)
            ),
            Self::ClaimPieces => format!("UPDATE tier_pieces SET claimed = 1, due_ms = ? WHERE id IN ({})", ids()),
            Self::NotePieces => {
                format!("UPDATE tier_pieces SET unsure = 0, due_ms = ? WHERE unsure = 1 AND ({})", is_piece(rows))
            }
            Self::RemovePieces => format!("DELETE FROM tier_pieces WHERE {}", is_piece(rows)),
            Self::KeepPieces => format!("DELETE FROM tier_pieces WHERE tier = ? AND name IN ({})", ids()),
            Self::RemovePublished => format!("DELETE FROM published WHERE part = ? AND id IN ({})", ids()),
        }
    }
}

/// The texts built so far, by shape and number of rows.
type Texts = HashMap<(Dialect, Shape, usize), Arc<str>>;

/// The statements for all `rows`, each with its values: `head`, then those of its rows.
pub(super) fn statements<T>(
    dialect: Dialect,
    shape: Shape,
    head: &[Value],
    rows: &[T],
    bind: impl Fn(&T) -> Vec<Value>,
) -> Vec<(SqlStr, Vec<Value>)> {
    static TEXTS: LazyLock<Mutex<Texts>> = LazyLock::new(Mutex::default);
    let statement = |rows: &[T]| {
        let mut values = head.to_vec();
        for row in rows {
            values.extend(bind(row));
        }
        let key = (dialect, shape, rows.len());
        let text = TEXTS.lock().entry(key).or_insert_with(|| shape.text(dialect, rows.len()).into()).clone();
        (AssertSqlSafe(text).into_sql_str(), values)
    };
    rows.chunks(ROWS_MAX).map(statement).collect()
}
