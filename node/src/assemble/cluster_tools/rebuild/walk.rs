//! The labels on the disks of this node.

use std::collections::BTreeSet;

use holdfast_actors::ports::chunks::{ChunkInfo, ReplicaStore};
use holdfast_protocol::label::ChunkLabel;
use holdfast_protocol::{CHUNK_SIZE_MAX, ChunkId, ContentId, STUB_INDEX};

use super::found::{Begun, Contents, Found, Of};
use super::{RebuildOptions, RebuildReport, stubs};

/// Chunks a page of the walk.
const PAGE: usize = 4_096;

/// Reads every label that can be the first of a content, or of its stub; and in a cluster the last of one whose first
/// is elsewhere.
pub(super) async fn walk(chunks: &dyn ReplicaStore, options: RebuildOptions, report: &mut RebuildReport) -> Contents {
    // Also on top of a backup: what a recall that broke off has left is not to take the place of what lies in a tier.
    let by_end = !options.alone;
    let mut walk = Walk { chunks, options, by_end, contents: Contents::default(), headless: BTreeSet::new() };
    for page in pages(chunks) {
        report.chunks += page.len() as u64;
        for info in &page {
            // What begins here is told of by its first chunk.
            if has_head(info) || (by_end && chunks.stat(info.id.content().chunk(0)).is_none()) {
                walk.see(info, report).await;
            }
        }
    }
    if by_end && !walk.headless.is_empty() {
        // Another node may have a first chunk that can be read.
        for info in pages(chunks).flatten() {
            if !has_head(&info) && walk.headless.contains(&info.id.content()) {
                walk.see(&info, report).await;
            }
        }
    }
    walk.contents
}

/// All chunks that are here. Also what lies on a disk only that takes no writes, as one that could not be read whole:
/// without metadata it would be deleted when that disk is back.
fn pages(chunks: &dyn ReplicaStore) -> impl Iterator<Item = Vec<ChunkInfo>> {
    // In this order: a disk that fails meanwhile is walked once more.
    pages_of(move |after| chunks.list(after, PAGE)).chain(pages_of(move |after| chunks.list_stranded(after, PAGE)))
}

/// What `list` gives, page by page.
fn pages_of(list: impl Fn(Option<ChunkId>) -> Vec<ChunkInfo>) -> impl Iterator<Item = Vec<ChunkInfo>> {
    let (mut after, mut is_last) = (None, false);
    std::iter::from_fn(move || {
        if is_last {
            return None;
        }
        let page = list(after);
        is_last = page.len() < PAGE;
        after = page.last().map(|info| info.id);
        Some(page)
    })
}

/// Whether the label of a chunk tells more than whose it is.
fn has_head(info: &ChunkInfo) -> bool {
    matches!(info.id.index(), 0 | STUB_INDEX)
}

struct Walk<'a> {
    chunks: &'a dyn ReplicaStore,
    options: RebuildOptions,
    by_end: bool,
    contents: Contents,
    /// Contents whose first chunk is here, and cannot be read.
    headless: BTreeSet<ContentId>,
}

impl Walk<'_> {
    /// Takes in what the label of a chunk tells, if it is one that counts.
    async fn see(&mut self, info: &ChunkInfo, report: &mut RebuildReport) {
        let (chunks, content) = (self.chunks, info.id.content());
        let is_stub = info.id.index() == STUB_INDEX;
        let has_head = has_head(info);
        let label = match chunks.label(info.id).await.ok().map(|bytes| ChunkLabel::decode(&bytes)) {
            Some(Ok(label)) if label.is_stub == is_stub => label,
            _ => {
                report.unreadable += 1;
                if has_head && !is_stub {
                    self.headless.insert(content);
                }
                return;
            }
        };
        let size_bytes = label.content_size_bytes;
        let end = content.chunk((size_bytes.saturating_sub(1) / CHUNK_SIZE_MAX) as u32);
        if !has_head && info.id != end {
            return;
        }
        let tier = if is_stub {
            // Read once more when its turn comes: all of them are too much to keep.
            let cold = stubs::read(chunks, content, size_bytes).await;
            let Some(tier) = cold.and_then(|content| Some(content.cold()?.tier.clone())) else {
                report.unreadable += 1;
                return;
            };
            Some(tier)
        } else {
            None
        };
        // What cannot be understood of it is no reason to lose the object.
        let head = label.attributes.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
        let is_ended = is_stub || chunks.stat(end).is_some();
        let created_ms = label.created_ms;
        let found = Found { content, created_ms, size_bytes, is_ended, has_head, tier, moved_from: None, head };
        let of = label.part.map_or(Of::Version(label.version), Of::Part);
        if self.by_end && !is_ended && !self.options.unended {
            self.contents.begun.push(Begun { bucket: label.bucket, key: label.key, of, found });
        } else {
            self.contents.add((label.bucket, label.key), of, found, report);
        }
    }
}
