//! Who owns chunks that no commit has made known yet: see [`super::put`].

use std::sync::Arc;

use holdfast_protocol::{ChunkId, ContentId, STUB_INDEX};

use crate::ports::chunks::ContentHold;
use crate::ports::metadata::{MetadataResult, MoveEnd};
use crate::ports::{ChunkStore, MetadataError};

/// Which chunks of a content exist or may come to exist.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Begun {
    /// Chunks of bytes: `0..chunks`.
    pub(super) chunks: u32,
    /// The stub.
    pub(super) stub: bool,
}

/// Deletes a content's chunks when dropped, unless told not to.
pub(super) struct ChunkGuard {
    chunks: Arc<dyn ChunkStore>,
    pub(super) content: ContentId,
    pub(super) begun: Begun,
    /// Until the commit is over.
    _under_way: Option<ContentHold>,
}

impl ChunkGuard {
    /// Says that a content is being written. To be made before its first chunk, and dropped after the sinks: deletion
    /// then finds them ended.
    pub(super) fn begin(chunks: &Arc<dyn ChunkStore>, content: ContentId) -> Self {
        let under_way = chunks.begin_content(content);
        Self { chunks: Arc::clone(chunks), content, begun: Begun::default(), _under_way: under_way }
    }

    /// Runs the commit that makes the content known. If it is known to have failed, or `is_kept` says of its answer
    /// that the content was not taken, the chunks are deleted in the background; if it is of unknown outcome or was cut
    /// off, they stay.
    pub(super) async fn settle<T>(
        mut self,
        commit: impl Future<Output = MetadataResult<T>>,
        is_kept: impl FnOnce(&T) -> bool,
    ) -> MetadataResult<T> {
        let begun = std::mem::take(&mut self.begun);
        let result = commit.await;
        let stays = match &result {
            Ok(answer) => is_kept(answer),
            Err(error) => matches!(error, MetadataError::Unknown(_)),
        };
        if !stays {
            self.begun = begun;
        }
        result
    }

    /// As [`Self::settle`], for the commit of a move: one that was overtaken did not take the content.
    pub(super) async fn settle_move(
        self,
        commit: impl Future<Output = MetadataResult<MoveEnd>>,
    ) -> MetadataResult<MoveEnd> {
        self.settle(commit, |end| *end == MoveEnd::Done).await
    }
}

impl Drop for ChunkGuard {
    fn drop(&mut self) {
        if self.begun == Begun::default() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            tracing::debug!(content = %self.content, "no runtime to delete chunks on, left to cleanup");
            return;
        };
        let (chunks, content) = (Arc::clone(&self.chunks), self.content);
        let stub = self.begun.stub.then_some(STUB_INDEX);
        let ids: Vec<ChunkId> = (0..self.begun.chunks).chain(stub).map(|index| content.chunk(index)).collect();
        metrics::counter!("holdfast_put_abandoned_total").increment(1);
        runtime.spawn(async move {
            if let Err(error) = chunks.delete(&ids).await {
                tracing::warn!(%content, %error, "cannot delete the chunks of an abandoned write, left to cleanup");
            }
        });
    }
}
