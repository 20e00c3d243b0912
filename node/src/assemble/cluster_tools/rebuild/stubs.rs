//! Stubs of cold contents.

use futures::StreamExt;
use holdfast_actors::flow::cold::stub::content_of;
use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::ports::metadata::Content;
use holdfast_protocol::{ColdStub, ContentId, STUB_INDEX};

/// What the stub of a content of `size_bytes` tells; `None`: it is not here, not whole, or cannot be understood.
/// Another node's may be.
pub(super) async fn read(chunks: &dyn ReplicaStore, content: ContentId, size_bytes: u64) -> Option<Content> {
    let id = content.chunk(STUB_INDEX);
    let mut payload = Vec::new();
    let mut body = chunks.read_copied(id, 0..chunks.stat(id)?.size_bytes).ok()?;
    while let Some(piece) = body.next().await {
        payload.extend_from_slice(&piece.ok()?);
    }
    let stub = ColdStub::decode(&payload).ok()?;
    (stub.place.size_bytes == size_bytes).then(|| content_of(content, stub))
}
