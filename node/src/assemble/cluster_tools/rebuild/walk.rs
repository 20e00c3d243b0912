//! The labels on the disks of this node.

use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_protocol::label::ChunkLabel;
use holdfast_protocol::{CHUNK_SIZE_MAX, STUB_INDEX};

use super::found::{Begun, Contents, Found, Of};
use super::{RebuildOptions, RebuildReport, stubs};

/// Chunks a page of the walk.
const PAGE: usize = 4_096;

/// Reads every label that can be the first of a content, or of its stub; and in a cluster the last of one that begins elsewhere.
pub(super) async fn walk(chunks: &dyn ReplicaStore, options: RebuildOptions, report: &mut RebuildReport) -> Contents {
    // On top of a backup the versions that are there say what is whole, and what they are called.
    let by_end = !options.alone && !options.moved_only;
    let mut contents = Contents::default();
    let mut after = None;
    loop {
        let page = chunks.list(after, PAGE);
        report.chunks += page.len() as u64;
        for info in &page {
            let content = info.id.content();
            let is_stub = info.id.index() == STUB_INDEX;
            let has_head = is_stub || info.id.index() == 0;
            // What begins here is told of by its first chunk.
            if !has_head && (!by_end || chunks.stat(content.chunk(0)).is_some()) {
                continue;
            }
            let label = match chunks.label(info.id).await.ok().map(|bytes| ChunkLabel::decode(&bytes)) {
                Some(Ok(label)) if label.is_stub == is_stub => label,
                _ => {
                    report.unreadable += 1;
                    continue;
                }
            };
            let size_bytes = label.content_size_bytes;
            let end = content.chunk((size_bytes.saturating_sub(1) / CHUNK_SIZE_MAX) as u32);
            if !has_head && info.id != end {
                continue;
            }
            let tier = if is_stub {
                // Read once more when its turn comes: all of them are too much to keep.
                let cold = stubs::read(chunks, content, size_bytes).await;
                let Some(tier) = cold.and_then(|content| Some(content.cold()?.tier.clone())) else {
                    report.unreadable += 1;
                    continue;
                };
                Some(tier)
            } else {
                None
            };
            // What cannot be understood of it is no reason to lose the object.
            let head = label.attributes.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
            let is_asked = options.alone || by_end;
            let is_ended = is_stub || !is_asked || chunks.stat(end).is_some();
            let created_ms = label.created_ms;
            let found = Found { content, created_ms, size_bytes, is_ended, has_head, tier, moved_from: None, head };
            let of = label.part.map_or(Of::Version(label.version), Of::Part);
            if by_end && !is_ended && !options.unended {
                contents.begun.push(Begun { bucket: label.bucket, key: label.key, of, found });
            } else {
                contents.add((label.bucket, label.key), of, found, report);
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.id),
            _ => return contents,
        }
    }
}
