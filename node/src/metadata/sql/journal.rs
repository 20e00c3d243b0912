//! The journal: the error log, the audit log, and messages that were given up.
//!
//! Logs are bounded by number through their ids, which the database gives in order: gaps only make them shorter. Rows
//! are removed from the oldest on, a bounded number at a time.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_actors::ports::events::{Message, Topic};
use holdfast_actors::ports::journal::{
    AuditFilter, DEAD_LETTERS_MAX, DETAIL_BYTES_MAX, ErrorFilter, Journal, NewDeadLetter, Retention, TEXT_BYTES_MAX,
    cut,
};
use holdfast_actors::ports::metadata::{MetadataError, MetadataResult};
use holdfast_protocol::journal::{AuditRecord, DeadLetter, Entry, ErrorKind, ErrorRecord};
use sqlx::AssertSqlSafe;

use super::outbox::{topic, topic_code};
use super::store::boxed;
use super::{Backend, Fields, Locks, Reader as _, Session, Shape, SqlMetadataStore, Value, values};
use crate::metadata::rows;

/// The longest id of a report, a message or a request.
const ID_BYTES_MAX: usize = 100;

/// A query over one of the logs, newest first.
struct Look {
    sql: String,
    values: Vec<Value>,
}

impl Look {
    fn new(columns: &str, table: &str, since_ms: u64, before: Option<u64>) -> Self {
        let sql = format!("SELECT {columns} FROM {table} WHERE at_ms >= ? AND id < ?");
        Self { sql, values: values![rows::signed(since_ms), rows::signed(before.unwrap_or(u64::MAX))] }
    }

    fn equal(mut self, column: &str, value: Option<&str>) -> Self {
        if let Some(value) = value {
            self.sql.push_str(&format!(" AND {column} = ?"));
            self.values.push(value.into());
        }
        self
    }

    fn begins(mut self, column: &str, prefix: Option<&str>) -> Self {
        if let Some(prefix) = prefix {
            // Names of operations are ASCII: nothing sorts between a prefix and what follows it with this appended.
            self.sql.push_str(&format!(" AND {column} >= ? AND {column} < ?"));
            self.values.push(prefix.into());
            self.values.push(format!("{prefix}\u{7f}").into());
        }
        self
    }

    fn limited(mut self, limit: u32) -> (AssertSqlSafe<String>, Vec<Value>) {
        self.sql.push_str(" ORDER BY id DESC LIMIT ?");
        self.values.push(i64::from(limit).into());
        (AssertSqlSafe(self.sql), self.values)
    }
}

fn error_from(row: &impl Fields) -> MetadataResult<Entry<ErrorRecord>> {
    let record = ErrorRecord {
        id: row.text(1)?.to_owned(),
        at_ms: rows::unsigned(row.number(2)?)?,
        node: row.text(3)?.to_owned(),
        kind: ErrorKind::named(row.text(4)?),
        subject: row.text(5)?.to_owned(),
        detail: row.text(6)?.to_owned(),
    };
    Ok(Entry { number: rows::unsigned(row.number(0)?)?, record })
}

fn audit_from(row: &impl Fields) -> MetadataResult<Entry<AuditRecord>> {
    let result = row.number(7)?;
    let record = AuditRecord {
        at_ms: rows::unsigned(row.number(1)?)?,
        node: row.text(2)?.to_owned(),
        actor: row.text(3)?.to_owned(),
        source: row.text(4)?.to_owned(),
        action: row.text(5)?.to_owned(),
        target: row.text(6)?.to_owned(),
        result: u16::try_from(result).map_err(|_| MetadataError::Corrupt(format!("result {result}")))?,
        request_id: row.text(8)?.to_owned(),
    };
    Ok(Entry { number: rows::unsigned(row.number(0)?)?, record })
}

/// Columns of a dead letter; its body is read only where it is wanted.
const LETTER_COLUMNS: &str = "id, message, consumers, topic, order_key, tag, words, attempts, error, buried_ms";

fn letter_from(row: &impl Fields, body: Option<&[u8]>) -> MetadataResult<DeadLetter> {
    let attempts = row.number(7)?;
    Ok(DeadLetter {
        number: rows::unsigned(row.number(0)?)?,
        id: row.text(1)?.to_owned(),
        group: row.text(2)?.to_owned(),
        topic: topic(row.number(3)?)?.to_string(),
        order_key: rows::key(row.bytes(4)?.to_vec())?,
        tag: row.text(5)?.to_owned(),
        keys: words(row.text(6)?),
        attempts: u32::try_from(attempts).map_err(|_| MetadataError::Corrupt(format!("{attempts} attempts")))?,
        error: row.text(8)?.to_owned(),
        buried_ms: rows::unsigned(row.number(9)?)?,
        body: body.and_then(|body| String::from_utf8(body.to_vec()).ok()),
    })
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

async fn add_dead_letter<S: Session>(tx: &mut S, letter: &NewDeadLetter) -> MetadataResult<()> {
    let count = tx.fetch_optional("SELECT COUNT(*) FROM dead_letters", values![]).await?;
    if count.map(|row| row.number(0)).transpose()?.is_some_and(|count| count >= rows::signed(DEAD_LETTERS_MAX)) {
        return Err(MetadataError::Busy);
    }
    let message = &letter.message;
    // One that was requeued and failed again takes a new number: whoever forgets the old one does not forget this.
    let sql = "REPLACE INTO dead_letters \
         (message, consumers, topic, order_key, tag, words, body, attempts, error, buried_ms) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let row = values![
        cut(&message.id.to_string(), ID_BYTES_MAX),
        cut(&letter.group, ID_BYTES_MAX),
        topic_code(letter.topic),
        message.order_key.as_bytes(),
        &*message.tag,
        message.keys.join(" "),
        message.body.to_vec(),
        i64::from(letter.attempts),
        cut(&letter.error, DETAIL_BYTES_MAX),
        rows::signed(letter.now_ms),
    ];
    tx.execute(sql, row).await.map(drop)
}

async fn discard<S: Session>(tx: &mut S, number: u64) -> MetadataResult<()> {
    let removed = tx.execute("DELETE FROM dead_letters WHERE id = ?", values![rows::signed(number)]).await?;
    if removed.rows_affected == 0 { Err(MISSING) } else { Ok(()) }
}

const MISSING: MetadataError = MetadataError::NotFound("dead letter");

async fn trim<S: Session>(tx: &mut S, table: &'static str, keep: Retention, limit: u32) -> MetadataResult<u64> {
    // The oldest rows, of which those go that are too old, and those that are too many.
    let sql = format!("SELECT id, at_ms, (SELECT MAX(id) FROM {table}) FROM {table} ORDER BY id LIMIT ?");
    let found = tx.fetch(AssertSqlSafe(sql), values![i64::from(limit)]).await?;
    let mut last = None;
    for row in &found {
        let (id, at_ms, newest) = (row.number(0)?, row.number(1)?, row.number(2)?);
        if at_ms >= rows::signed(keep.from_ms) && id > newest.saturating_sub(rows::signed(keep.entries_max)) {
            break;
        }
        last = Some(id);
    }
    let Some(last) = last else { return Ok(0) };
    let sql = format!("DELETE FROM {table} WHERE id <= ?");
    Ok(tx.execute(AssertSqlSafe(sql), values![last]).await?.rows_affected)
}

#[async_trait]
#[allow(private_bounds, reason = "the backends are this module's own")]
impl<B: Backend> Journal for SqlMetadataStore<B> {
    async fn add_errors(&self, errors: &[ErrorRecord]) -> MetadataResult<()> {
        let errors: Arc<[ErrorRecord]> = errors.into();
        self.backend
            .write(Locks::none(), move |tx| {
                let errors = errors.clone();
                boxed(async move {
                    tx.execute_many(Shape::AddErrors, &[], &errors, |error| {
                        values![
                            cut(&error.id, ID_BYTES_MAX),
                            rows::signed(error.at_ms),
                            cut(&error.node, TEXT_BYTES_MAX),
                            error.kind.as_str(),
                            cut(&error.subject, TEXT_BYTES_MAX),
                            cut(&error.detail, DETAIL_BYTES_MAX),
                        ]
                    })
                    .await
                })
            })
            .await
    }

    async fn errors(
        &self,
        filter: &ErrorFilter,
        before: Option<u64>,
        limit: u32,
    ) -> MetadataResult<Vec<Entry<ErrorRecord>>> {
        let columns = "id, report, at_ms, node, kind, subject, detail";
        let look = Look::new(columns, "error_log", filter.since_ms, before)
            .equal("node", filter.node.as_deref())
            .equal("kind", filter.kind.map(ErrorKind::as_str));
        let (sql, values) = look.limited(limit);
        self.backend.reads().fetch(sql, values).await?.iter().map(error_from).collect()
    }

    async fn add_audit(&self, record: &AuditRecord) -> MetadataResult<()> {
        let record = Arc::new(record.clone());
        self.backend
            .write(Locks::none(), move |tx| {
                let record = record.clone();
                boxed(async move {
                    let sql = "INSERT INTO audit_log (at_ms, node, actor, source, action, target, result, request) \
                         VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
                    let values = values![
                        rows::signed(record.at_ms),
                        cut(&record.node, TEXT_BYTES_MAX),
                        cut(&record.actor, TEXT_BYTES_MAX),
                        cut(&record.source, TEXT_BYTES_MAX),
                        cut(&record.action, TEXT_BYTES_MAX),
                        cut(&record.target, TEXT_BYTES_MAX),
                        i64::from(record.result),
                        cut(&record.request_id, ID_BYTES_MAX),
                    ];
                    tx.execute(sql, values).await.map(drop)
                })
            })
            .await
    }

    async fn audit(
        &self,
        filter: &AuditFilter,
        before: Option<u64>,
        limit: u32,
    ) -> MetadataResult<Vec<Entry<AuditRecord>>> {
        let columns = "id, at_ms, node, actor, source, action, target, result, request";
        let look = Look::new(columns, "audit_log", filter.since_ms, before)
            .equal("node", filter.node.as_deref())
            .begins("action", filter.action_prefix.as_deref());
        let (sql, values) = look.limited(limit);
        self.backend.reads().fetch(sql, values).await?.iter().map(audit_from).collect()
    }

    async fn trim(&self, errors: Retention, audit: Retention, limit: u32) -> MetadataResult<u64> {
        self.backend
            .write(Locks::none(), move |tx| {
                boxed(async move {
                    let errors = trim(tx, "error_log", errors, limit).await?;
                    Ok(errors + trim(tx, "audit_log", audit, limit).await?)
                })
            })
            .await
    }

    async fn add_dead_letter(&self, letter: NewDeadLetter) -> MetadataResult<()> {
        let letter = Arc::new(letter);
        self.backend
            .write(Locks::none(), move |tx| {
                let letter = letter.clone();
                boxed(async move { add_dead_letter(tx, &letter).await })
            })
            .await
    }

    async fn dead_letters(&self, after: u64, limit: u32) -> MetadataResult<Vec<DeadLetter>> {
        let sql = format!("SELECT {LETTER_COLUMNS} FROM dead_letters WHERE id > ? ORDER BY id LIMIT ?");
        let found = self.backend.reads().fetch(AssertSqlSafe(sql), values![rows::signed(after), i64::from(limit)]);
        found.await?.iter().map(|row| letter_from(row, None)).collect()
    }

    async fn dead_letter(&self, number: u64) -> MetadataResult<DeadLetter> {
        let sql = format!("SELECT {LETTER_COLUMNS}, body FROM dead_letters WHERE id = ?");
        let found = self.backend.reads().fetch_optional(AssertSqlSafe(sql), values![rows::signed(number)]).await?;
        let row = found.ok_or(MISSING)?;
        letter_from(&row, Some(row.bytes(10)?))
    }

    async fn dead_message(&self, number: u64) -> MetadataResult<(Topic, Message)> {
        let sql = "SELECT message, topic, order_key, tag, words, body FROM dead_letters WHERE id = ?";
        let row = self.backend.reads().fetch_optional(sql, values![rows::signed(number)]).await?.ok_or(MISSING)?;
        let id = row.text(0)?;
        let message = Message {
            id: id.parse().map_err(|_| MetadataError::Corrupt(format!("message id {id:?}")))?,
            order_key: rows::key(row.bytes(2)?.to_vec())?,
            tag: row.text(3)?.to_owned(),
            keys: words(row.text(4)?),
            body: row.bytes(5)?.to_vec().into(),
        };
        Ok((topic(row.number(1)?)?, message))
    }

    async fn discard(&self, number: u64) -> MetadataResult<()> {
        self.backend.write(Locks::none(), move |tx| boxed(discard(tx, number))).await
    }
}
