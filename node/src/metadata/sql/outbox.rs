//! The outbox: messages that are committed with what they tell of.
//!
//! A row's `id` is a sequence number of its transaction, taken under the locks that the transaction holds: of two
//! changes of one key the later one has the higher id. Rows of different keys may become visible in another order than
//! that of their ids, so nothing here goes on from an id: the lowest rows are read, and taken out by name.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use holdfast_actors::domain::events::{EventDraft, EventOutcome};
use holdfast_actors::ports::events::{Message, Topic};
use holdfast_actors::ports::metadata::{MetadataError, MetadataResult};
use holdfast_actors::ports::outbox::{COUNTED_MAX, Look, Outbox, OutboxBacklog, OutboxRow, ReplayFilter};
use holdfast_protocol::EventId;
use holdfast_protocol::events::partition_of;
use parking_lot::Mutex;
use sqlx::AssertSqlSafe;
use tokio::sync::watch;

use super::store::boxed;
use super::{Backend, Dialect, Fields, Locks, Reader, Session, Shape, SqlMetadataStore, Value, shapes, values};
use crate::metadata::rows;

/// Columns of both tables, in the order of all statements; `published` has one more.
pub(in crate::metadata) const OUTBOX_COLUMNS: &str = "part, id, nonce, topic, queued_ms, order_key, tag, words, body";

/// Rows that were complained of: they are looked at many times a second.
static COMPLAINED: Mutex<Complaints> = Mutex::new(Complaints::none());
/// Rows that are complained of in so long a time; then anew, as long as they are there.
const COMPLAINTS_MAX: usize = 256;
const COMPLAINED_ANEW: Duration = Duration::from_secs(3_600);

struct Complaints {
    since: Option<Instant>,
    rows: BTreeSet<i64>,
}

impl Complaints {
    const fn none() -> Self {
        Self { since: None, rows: BTreeSet::new() }
    }

    /// Whether a row is to be complained of now.
    fn is_news(&mut self, id: i64, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= COMPLAINED_ANEW) {
            *self = Self { since: Some(now), ..Self::none() };
        }
        self.rows.len() < COMPLAINTS_MAX && self.rows.insert(id)
    }
}

/// A row to be inserted.
pub(in crate::metadata) struct NewRow {
    topic: Topic,
    message: Message,
    queued_ms: u64,
}

pub(super) fn topic_code(topic: Topic) -> i64 {
    match topic {
        Topic::Objects => 0,
        Topic::Tasks => 1,
        Topic::Errors => 2,
    }
}

pub(super) fn topic(code: i64) -> MetadataResult<Topic> {
    let found = Topic::ALL.into_iter().find(|topic| topic_code(*topic) == code);
    found.ok_or_else(|| MetadataError::Corrupt(format!("topic {code}")))
}

/// The row that tells of a change, if the bucket's rules want it told.
pub(super) fn row_of<S: Session>(
    tx: &mut S,
    draft: Option<&EventDraft>,
    outcome: &EventOutcome<'_>,
) -> MetadataResult<Option<NewRow>> {
    let Some(draft) = draft else { return Ok(None) };
    let id = EventId::generate(rows::unsigned(tx.take_sequence())?);
    let message = draft.message(id, outcome);
    Ok(message.map(|message| NewRow { topic: Topic::Objects, message, queued_ms: outcome.now_ms }))
}

pub(super) async fn insert<S: Session>(tx: &mut S, new: &[NewRow]) -> MetadataResult<()> {
    tx.execute_many(Shape::InsertOutbox, &[], new, |row| {
        let message = &row.message;
        values![
            i64::from(partition_of(message.order_key.as_bytes())),
            rows::signed(message.id.sequence),
            i64::from(message.id.nonce),
            topic_code(row.topic),
            rows::signed(row.queued_ms),
            message.order_key.as_bytes(),
            &*message.tag,
            message.keys.join(" "),
            message.body.to_vec(),
        ]
    })
    .await
}

fn row_from(row: &impl Fields) -> MetadataResult<OutboxRow> {
    let nonce = u32::try_from(row.number(1)?).map_err(|_| MetadataError::Corrupt("nonce of an event".into()))?;
    let words = row.text(6)?.split(' ').filter(|word| !word.is_empty());
    Ok(OutboxRow {
        topic: topic(row.number(2)?)?,
        queued_ms: rows::unsigned(row.number(3)?)?,
        message: Message {
            id: EventId { sequence: rows::unsigned(row.number(0)?)?, nonce },
            order_key: rows::key(row.bytes(4)?.to_vec())?,
            tag: row.text(5)?.to_owned(),
            keys: words.map(str::to_owned).collect(),
            body: row.bytes(7)?.to_vec().into(),
        },
    })
}

/// The end of all keys that begin with `prefix`, if there is one.
fn end_of(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

async fn finish<S: Session>(tx: &mut S, finished: &[(u16, u64)], keep_at_ms: Option<u64>) -> MetadataResult<()> {
    let row = |(partition, sequence): &(u16, u64)| values![i64::from(*partition), rows::signed(*sequence)];
    if let Some(now_ms) = keep_at_ms {
        tx.execute_many(Shape::KeepPublished, &[rows::signed(now_ms).into()], finished, row).await?;
    }
    tx.execute_many(Shape::RemoveOutbox, &[], finished, row).await
}

/// How many values one look may bind: SQLite takes 32,766, MySQL twice as many.
const LOOK_VALUES_MAX: usize = 16_000;

/// To what the number of ids that a look leaves out is rounded up.
const EXCEPT_STEPS: [usize; 5] = [0, 32, 128, 512, 2_048];
/// Keys that wait for a row that cannot be read and are looked past; where there are more, those behind them wait too.
const PAST_KEYS_MAX: usize = 512;
/// How often a look that finds more of them is taken again.
const LOOKS_PAST_MAX: usize = 8;

fn rounded(count: usize, steps: &[usize]) -> usize {
    steps.iter().copied().find(|step| *step >= count).unwrap_or(count)
}

/// The ids that a look leaves out, made up to `count`: no row has a negative one.
fn left_out(look: &Look, count: usize) -> impl Iterator<Item = Value> {
    let known = look.except.iter().map(|sequence| rows::signed(*sequence));
    known.chain(std::iter::repeat(-1_i64)).take(count).map(Value::from)
}

/// Looks that go into one statement, and its text and values. Texts stay prepared, and a connection keeps few of them:
/// so the number of looks and of what they leave out are rounded up, by partitions that there are not, and ids that
/// stand twice.
fn look_statement(dialect: Dialect, looks: &[Look]) -> (usize, String, Vec<Value>) {
    let most = looks.iter().map(|look| look.except.len()).max().unwrap_or(0);
    let except = rounded(most, &EXCEPT_STEPS);
    let count = looks.len().min((LOOK_VALUES_MAX / (except + 2)).max(1));
    let padded = rounded(count, &[1, 2, 4, 8, 16]);
    let mut values = Vec::with_capacity(padded * (except + 2));
    for look in &looks[..count] {
        values.push(i64::from(look.partition).into());
        values.extend(left_out(look, except));
        values.push(i64::from(look.limit).into());
    }
    for _ in count..padded {
        values.extend(std::iter::repeat_n(-1_i64, except + 1).chain([0]).map(Value::from));
    }
    (count, shapes::look(dialect, padded, except), values)
}

/// The rows of a look, and the keys that wait: of a key with a row that this program cannot read (a newer one wrote it,
/// or it is damaged) nothing later goes either.
fn rows_from<'a>(partition: u16, found: &[&'a impl Fields]) -> MetadataResult<(Vec<OutboxRow>, Vec<&'a [u8]>)> {
    let mut read = Vec::with_capacity(found.len());
    let mut held: Vec<&[u8]> = Vec::new();
    for &row in found {
        let order_key = row.bytes(4)?;
        match row_from(row) {
            _ if held.contains(&order_key) => {}
            Ok(row) => read.push(row),
            Err(error) => {
                let id = row.number(0)?;
                if COMPLAINED.lock().is_news(id, Instant::now()) {
                    tracing::error!(partition, id, %error, "a row of the outbox cannot be read, it and its key wait");
                }
                held.push(order_key);
            }
        }
    }
    Ok((read, held))
}

/// A look past keys that wait, as all that it found before may be theirs: nobody else is to wait for whoever mends one
/// row. That reads over all their rows. Of those that it found before, in `rows`, it gives what stands before the row
/// that cannot be read: nothing of that waits.
async fn look_past<R: Reader>(
    reads: &R,
    look: &Look,
    mut rows: Vec<OutboxRow>,
    mut keys: Vec<Vec<u8>>,
) -> MetadataResult<Vec<OutboxRow>> {
    let mut again = 1;
    loop {
        keys.truncate(PAST_KEYS_MAX);
        // All the others are found again.
        rows.retain(|row| keys.iter().any(|key| key.as_slice() == row.message.order_key.as_bytes()));
        let except = rounded(look.except.len(), &EXCEPT_STEPS);
        let count = rounded(keys.len(), &[1, 8, 64, PAST_KEYS_MAX]);
        let mut values = values![i64::from(look.partition)];
        values.extend(left_out(look, except));
        values.extend(keys.iter().cycle().take(count).map(|key| Value::from(key.as_slice())));
        values.push(i64::from(look.limit).into());
        let found = reads.fetch(AssertSqlSafe(shapes::look_past(except, count)), values).await?;
        let is_full = found.len() >= look.limit as usize;
        let all: Vec<&R::Row> = found.iter().collect();
        let (read, more) = rows_from(look.partition, &all)?;
        rows.extend(read);
        if !is_full || more.is_empty() || keys.len() >= PAST_KEYS_MAX || again >= LOOKS_PAST_MAX {
            rows.sort_unstable_by_key(|row| row.message.id.sequence);
            rows.truncate(look.limit as usize);
            return Ok(rows);
        }
        keys.extend(more.into_iter().map(<[u8]>::to_vec));
        again += 1;
    }
}

/// Removes the lowest rows up to `last`.
async fn forget_up_to<S: Session>(tx: &mut S, partition: u16, last: i64) -> MetadataResult<u64> {
    let sql = "DELETE FROM published WHERE part = ? AND id <= ?";
    Ok(tx.execute(sql, values![i64::from(partition), last]).await?.rows_affected)
}

async fn forget<S: Session>(
    tx: &mut S,
    partition: u16,
    before_ms: u64,
    rows_max: u64,
    limit: u32,
) -> MetadataResult<u64> {
    let part = i64::from(partition);
    let lowest = "SELECT id, published_ms FROM published WHERE part = ? ORDER BY id LIMIT ?";
    let found = tx.fetch(lowest, values![part, i64::from(limit)]).await?;
    let mut last = None;
    for row in &found {
        // What was published again stands among older rows: it ends the run, for a while.
        if rows::unsigned(row.number(1)?)? >= before_ms {
            break;
        }
        last = Some(row.number(0)?);
    }
    let mut gone = match last {
        Some(last) => forget_up_to(tx, partition, last).await?,
        None => 0,
    };
    let sql = "SELECT id FROM published WHERE part = ? ORDER BY id DESC LIMIT 1 OFFSET ?";
    let over = tx.fetch_optional(sql, values![part, rows::signed(rows_max)]).await?;
    if let Some(over) = over {
        let newest_over = over.number(0)?;
        let sql = "SELECT id FROM published WHERE part = ? AND id <= ? ORDER BY id LIMIT ?";
        let found = tx.fetch(sql, values![part, newest_over, i64::from(limit)]).await?;
        if let Some(last) = found.last() {
            gone += forget_up_to(tx, partition, last.number(0)?).await?;
        }
    }
    Ok(gone)
}

async fn replay<S: Session>(
    tx: &mut S,
    partition: u16,
    filter: &ReplayFilter,
    after: u64,
    limit: u32,
) -> MetadataResult<(u64, Option<u64>)> {
    let part = i64::from(partition);
    let prefix = filter.order_key_prefix.as_bytes();
    let mut sql =
        "SELECT id FROM published WHERE part = ? AND id > ? AND topic = ? AND queued_ms >= ? AND queued_ms < ? \
         AND order_key >= ?"
            .to_owned();
    let to_ms = rows::signed(filter.to_ms.min(i64::MAX as u64));
    let mut values =
        values![part, rows::signed(after), topic_code(filter.topic), rows::signed(filter.from_ms), to_ms, prefix];
    if let Some(end) = end_of(prefix) {
        sql.push_str(" AND order_key < ?");
        values.push(end.into());
    }
    sql.push_str(" ORDER BY id LIMIT ?");
    values.push(i64::from(limit).into());
    let found = tx.fetch(AssertSqlSafe(sql), values).await?;
    let mut ids = Vec::with_capacity(found.len());
    for row in &found {
        ids.push(row.number(0)?);
    }
    let head = [Value::from(part)];
    tx.execute_many(Shape::ReplayPublished, &head, &ids, |id| values![*id]).await?;
    tx.execute_many(Shape::RemovePublished, &head, &ids, |id| values![*id]).await?;
    let last = ids.last().map(|last| rows::unsigned(*last)).transpose()?;
    Ok((ids.len() as u64, last))
}

/// Rows of a partition in one of the two tables, up to [`COUNTED_MAX`].
async fn count<R: Reader>(reads: &R, table: &str, part: i64) -> MetadataResult<u64> {
    let sql = format!("SELECT COUNT(*) FROM (SELECT 1 FROM {table} WHERE part = ? LIMIT ?) AS counted");
    let counted = reads.fetch_optional(AssertSqlSafe(sql), values![part, rows::signed(COUNTED_MAX)]).await?;
    let counted = counted.ok_or_else(|| MetadataError::Corrupt("a count without a row".into()))?;
    rows::unsigned(counted.number(0)?)
}

#[async_trait]
#[allow(private_bounds, reason = "the backends are this module's own")]
impl<B: Backend> Outbox for SqlMetadataStore<B> {
    fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    async fn look(&self, looks: &[Look]) -> MetadataResult<Vec<Vec<OutboxRow>>> {
        let mut read = Vec::with_capacity(looks.len());
        while read.len() < looks.len() {
            let (count, sql, values) = look_statement(B::Reads::DIALECT, &looks[read.len()..]);
            let found = self.backend.reads().fetch(AssertSqlSafe(sql), values).await?;
            let mut of_partition: HashMap<i64, Vec<&_>> = HashMap::new();
            for row in &found {
                of_partition.entry(row.number(8)?).or_default().push(row);
            }
            for look in &looks[read.len()..][..count] {
                let found = of_partition.remove(&i64::from(look.partition)).unwrap_or_default();
                let (rows, waiting) = rows_from(look.partition, &found)?;
                let is_full = found.len() >= look.limit as usize;
                read.push(if is_full && !waiting.is_empty() {
                    let keys = waiting.into_iter().map(<[u8]>::to_vec).collect();
                    look_past(self.backend.reads(), look, rows, keys).await?
                } else {
                    rows
                });
            }
        }
        Ok(read)
    }

    async fn finish(&self, finished: &[(u16, u64)], keep_at_ms: Option<u64>) -> MetadataResult<()> {
        let finished: Arc<[(u16, u64)]> = finished.into();
        self.backend
            .write(Locks::none(), move |tx| {
                let finished = finished.clone();
                boxed(async move { finish(tx, &finished, keep_at_ms).await })
            })
            .await
    }

    async fn waiting(&self, partition: u16) -> MetadataResult<OutboxBacklog> {
        let part = i64::from(partition);
        let rows = count(self.backend.reads(), "outbox", part).await?;
        let sql = "SELECT queued_ms FROM outbox WHERE part = ? ORDER BY id LIMIT 1";
        let oldest = self.backend.reads().fetch_optional(sql, values![part]).await?;
        let oldest_ms = oldest.map(|row| rows::unsigned(row.number(0)?)).transpose()?;
        Ok(OutboxBacklog { rows, oldest_ms, published: 0 })
    }

    async fn backlog(&self, partition: u16) -> MetadataResult<OutboxBacklog> {
        let published = count(self.backend.reads(), "published", i64::from(partition)).await?;
        Ok(OutboxBacklog { published, ..self.waiting(partition).await? })
    }

    async fn forget_published(&self, partition: u16, before_ms: u64, rows_max: u64, limit: u32) -> MetadataResult<u64> {
        self.backend.write(Locks::none(), move |tx| boxed(forget(tx, partition, before_ms, rows_max, limit))).await
    }

    async fn replay(
        &self,
        partition: u16,
        filter: &ReplayFilter,
        after: u64,
        limit: u32,
    ) -> MetadataResult<(u64, Option<u64>)> {
        let filter = Arc::new(filter.clone());
        let replayed = self.backend.write(Locks::none(), move |tx| {
            let filter = filter.clone();
            boxed(async move { replay(tx, partition, &filter, after, limit).await })
        });
        let replayed = replayed.await?;
        self.tell_written();
        Ok(replayed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_that_cannot_be_read_is_told_once_an_hour_however_many_they_are() {
        let (mut complaints, begin) = (Complaints::none(), Instant::now());
        for hour in 0..3 {
            let now = begin + COMPLAINED_ANEW * hour;
            assert!(complaints.is_news(7, now) && !complaints.is_news(7, now) && complaints.is_news(8, now), "{hour}");
            let told: usize = (0..3).map(|_| (0..1_000).filter(|id| complaints.is_news(*id, now)).count()).sum();
            assert_eq!((told, complaints.rows.len()), (COMPLAINTS_MAX - 2, COMPLAINTS_MAX), "{hour}");
        }
    }
}
