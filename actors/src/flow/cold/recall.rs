//! To the cluster's disks: bytes of a tier become chunks again, as a PUT would have written them. They are read back
//! before they take the place of what is in the tier (promise D5).

use std::sync::Arc;

use futures::StreamExt as _;
use holdfast_protocol::ContentId;

use super::mover::Mover;
use super::offload::spend;
use super::source::{Source, SourceError};
use super::work::{MoveError, Ready, Subject};
use crate::domain::objects::checksums::DigestMismatch;
use crate::flow::put::{BodyError, StoreError, StoreRequest, store};
use crate::ports::metadata::{Content, ContentPlace};
use crate::ports::tiering::Move;

impl Mover {
    /// Stores what is to be moved as a new content on the cluster. What comes was compared block by block, and where
    /// the ETag is the MD5 of all bytes, it is compared, too.
    pub(super) async fn recall(&self, job: &Move, subject: &Subject) -> Result<Ready, MoveError> {
        let size_bytes = subject.content.size_bytes();
        let request = StoreRequest {
            content: ContentId::generate(self.parts.clock.now_seconds()),
            label: subject.label(job)?,
            algorithms: Vec::new(),
        };
        let budget = self.budget.clone();
        let body = subject.source.read(0..size_bytes).then(move |step| {
            let budget: Option<Arc<_>> = budget.clone();
            async move {
                let bytes = step.map_err(BodyError::from)?;
                spend(budget.as_deref(), bytes.len()).await;
                Ok(bytes)
            }
        });
        let etag = subject.content.etag;
        let stored = store(&self.parts.chunks, request, body, |digests| {
            let differs = etag.parts.is_none() && digests.md5 != etag.md5;
            if differs { Err(DigestMismatch::Md5) } else { Ok(()) }
        });
        let stored = stored.await.map_err(of_store)?;
        let content = Content {
            id: stored.id(),
            manifest: stored.manifest(),
            place: ContentPlace::Cluster,
            ..Content::clone(&subject.content)
        };
        self.read_back_chunks(&content).await?;
        Ok(Ready::Cluster(content, stored))
    }

    /// Reads all of a content that was just written; the store compares each block with what it was given.
    async fn read_back_chunks(&self, content: &Content) -> Result<(), MoveError> {
        let source = Source::Cluster { chunks: self.parts.chunks.clone(), content: Arc::new(content.clone()) };
        let mut body = source.read(0..content.size_bytes());
        while let Some(step) = body.next().await {
            spend(self.budget.as_deref(), step.map_err(MoveError::ReadBack)?.len()).await;
        }
        Ok(())
    }
}

/// Whether the cluster failed or the source of the bytes.
fn of_store(error: StoreError) -> MoveError {
    match error {
        StoreError::Body(error) => match error.downcast::<SourceError>() {
            Ok(error) => MoveError::Source(*error),
            Err(error) => MoveError::Store(StoreError::Body(error)),
        },
        other => MoveError::Store(other),
    }
}
