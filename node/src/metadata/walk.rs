//! Drives a listing: seeks where [`Walk`] says, fetches rows in chunks, and offers them. The same for every store; a
//! [`Source`] says how its rows are fetched.

use std::future::Future;

use holdfast_actors::domain::objects::listing::{Offer, Walk};
use holdfast_actors::ports::metadata::{ListAfter, MetadataResult};

/// Rows of a first fetch when keys are grouped: most of them may lie under one common prefix, in vain.
const GROUPED_ROWS_MIN: usize = 4;
/// Rows of one fetch at most. Bounds what a listing holds in memory beside its page.
const FETCH_ROWS_MAX: usize = 256;
/// A page ends early when its rows weigh as much: versions carry manifests, up to 200 KiB each, and headers, up to 32.
const PAGE_BYTES_MAX: usize = 8 << 20;

/// A range of rows ordered by key, and by something else within a key.
pub(super) trait Source: Sync {
    /// A row.
    type Row: Send;
    /// Orders the rows of a key.
    type Place: Clone + Send + Sync;
    /// Whether a key has one row at most.
    const ONE_ROW_A_KEY: bool;

    /// Rows with `from <= key < until`, from the first on.
    fn range(
        &self,
        from: &[u8],
        until: &[u8],
        rows_max: usize,
    ) -> impl Future<Output = MetadataResult<Vec<Self::Row>>> + Send;

    /// Rows of one key after a place.
    fn rest_of_key(
        &self,
        key: &str,
        after: &Self::Place,
        rows_max: usize,
    ) -> impl Future<Output = MetadataResult<Vec<Self::Row>>> + Send;

    /// The key of a row.
    fn key(row: &Self::Row) -> &str;
    /// The place of a row in its key.
    fn place(row: &Self::Row) -> Self::Place;
    /// About how much memory a row takes.
    fn weight_bytes(row: &Self::Row) -> usize;
}

/// A page: rows, common prefixes, and where the next page starts.
pub(super) struct Page<R> {
    pub(super) rows: Vec<R>,
    pub(super) common_prefixes: Vec<String>,
    pub(super) next: Option<ListAfter>,
}

/// Collects one page. `inside` goes on within a key, after a place.
pub(super) async fn collect<S: Source>(
    source: &S,
    mut walk: Walk,
    mut inside: Option<(String, S::Place)>,
) -> MetadataResult<Page<S::Row>> {
    let mut page = Vec::new();
    let mut weight_bytes = 0;
    let mut fetch_rows = if walk.groups() { GROUPED_ROWS_MIN } else { FETCH_ROWS_MAX };
    'page: while let Some((from, until)) = walk.seek() {
        let rows_max = walk.wanted().min(fetch_rows);
        let fetched = match &inside {
            Some((key, place)) => source.rest_of_key(key, place, rows_max).await?,
            // No key starts with 0xFF: it is not UTF-8.
            None => source.range(from, until.unwrap_or(&[u8::MAX]), rows_max).await?,
        };
        let short = fetched.len() < rows_max;
        let mut last_entry = None;
        let mut in_vain = 0;
        for row in fetched {
            last_entry = None;
            match walk.offer(S::key(&row)) {
                Offer::Entry => {
                    last_entry = Some((S::key(&row).to_owned(), S::place(&row)));
                    weight_bytes += S::weight_bytes(&row);
                    page.push(row);
                    if weight_bytes > PAGE_BYTES_MAX {
                        walk.stop();
                        break 'page;
                    }
                }
                Offer::Prefix => {}
                Offer::Behind => in_vain += 1,
                Offer::Full => break 'page,
            }
        }
        // Rows in vain mean that prefixes are long: seek more, fetch less.
        fetch_rows = if in_vain > 0 { GROUPED_ROWS_MIN } else { (fetch_rows * 2).min(FETCH_ROWS_MAX) };
        inside = match (inside.take(), last_entry) {
            (Some((key, _)), _) if short => {
                walk.key_done(&key);
                None
            }
            (None, _) if short => {
                walk.exhausted();
                None
            }
            (_, Some((key, _))) if S::ONE_ROW_A_KEY => {
                walk.key_done(&key);
                None
            }
            (_, last_entry) => last_entry,
        };
    }
    let (common_prefixes, next) = walk.finish();
    Ok(Page { rows: page, common_prefixes, next })
}
