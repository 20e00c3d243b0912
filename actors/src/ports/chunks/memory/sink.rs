//! A chunk on its way into the store in memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use super::{Fault, Shared, Stored, key};
use crate::ports::chunks::{ChunkError, ChunkReceipt, ChunkSink, ChunkSpec};

/// Size of the buffers that bytes are copied into and handed back in.
const BUFFER_SIZE_BYTES: usize = 1 << 20;

pub(super) struct MemorySink {
    pub(super) shared: Arc<Shared>,
    pub(super) spec: ChunkSpec,
    pub(super) buffer: BytesMut,
    pub(super) pieces: Vec<Bytes>,
    pub(super) received: usize,
}

#[async_trait]
impl ChunkSink for MemorySink {
    async fn write(&mut self, mut data: &[u8]) -> Result<Vec<Bytes>, ChunkError> {
        self.shared.begin().await;
        if self.shared.check(Fault::Write) {
            return Err(injected("write a chunk"));
        }
        if self.received + data.len() > self.spec.size_bytes as usize {
            return Err(ChunkError::Invalid("more bytes than announced".into()));
        }
        self.received += data.len();
        let mut filled = Vec::new();
        while !data.is_empty() {
            let take = data.len().min(BUFFER_SIZE_BYTES - self.buffer.len());
            self.buffer.extend_from_slice(&data[..take]);
            data = &data[take..];
            if self.buffer.len() == BUFFER_SIZE_BYTES {
                filled.push(self.buffer.split().freeze());
            }
        }
        self.pieces.extend(filled.iter().cloned());
        Ok(filled)
    }

    fn finish_input(&mut self) -> Result<Option<Bytes>, ChunkError> {
        if self.received < self.spec.size_bytes as usize {
            return Err(ChunkError::Invalid("fewer bytes than announced".into()));
        }
        let last = self.buffer.split().freeze();
        if last.is_empty() {
            return Ok(None);
        }
        self.pieces.push(last.clone());
        Ok(Some(last))
    }

    async fn finish(self: Box<Self>) -> Result<ChunkReceipt, ChunkError> {
        self.shared.begin().await;
        if self.shared.check(Fault::Finish) {
            return Err(injected("flush a chunk"));
        }
        let payload: Bytes = self.pieces.concat().into();
        if payload.len() != self.spec.size_bytes as usize {
            return Err(ChunkError::Invalid("fewer bytes than announced".into()));
        }
        let mut stored = Stored::new(self.spec.label.clone(), payload);
        let is_damaged = self.shared.check(Fault::Keep);
        let mut chunks = self.shared.chunks.lock();
        let before = chunks.get(&key(self.spec.id));
        if before.is_some_and(|stored| !stored.stranded) {
            return Err(ChunkError::Exists(self.spec.id));
        }
        (stored.corrupt, stored.spare) = (is_damaged, is_damaged && before.is_some());
        chunks.insert(key(self.spec.id), stored);
        Ok(ChunkReceipt::default())
    }
}

impl Drop for MemorySink {
    fn drop(&mut self) {
        self.shared.sinks_open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The error of an operation that was made to fail.
fn injected(context: &str) -> ChunkError {
    ChunkError::Io { context: context.into(), source: std::io::Error::other("injected") }
}
