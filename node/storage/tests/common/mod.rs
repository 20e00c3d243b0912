//! What the tests of the engine share.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_protocol::{ChunkId, ContentId};
use holdfast_storage::buf::{BufferPool, BufferPoolConfig};
use holdfast_storage::io::BlockIo;
use holdfast_storage::io::std::StdIo;
use holdfast_storage::{Engine, EngineConfig, ReadError, RecoveryReport, WriteError};

pub const CLUSTER: [u8; 16] = [1; 16];
pub const NODE: [u8; 16] = [2; 16];

/// A chunk of 16 MiB fits into what uploads may have: [`put`] keeps all of its pieces.
pub fn pool() -> Arc<BufferPool> {
    BufferPool::new(BufferPoolConfig { large_count: 20, small_count: 96 }).unwrap()
}

/// Settings for tests: short segments, little reserve, jobs run by hand.
pub fn config(dir: &Path) -> EngineConfig {
    let mut config = EngineConfig::new(dir, CLUSTER, NODE);
    config.segment_size_bytes = 64 << 20;
    config.reserve_bytes = 1 << 20;
    config.background = false;
    config
}

pub fn std_io() -> Arc<dyn BlockIo> {
    Arc::new(StdIo::new().unwrap())
}

pub async fn open(dir: &Path) -> (Engine, RecoveryReport) {
    open_with(config(dir), std_io()).await
}

pub async fn open_with(config: EngineConfig, io: Arc<dyn BlockIo>) -> (Engine, RecoveryReport) {
    Engine::open(config, io, pool()).await.unwrap()
}

pub fn id(n: u32) -> ChunkId {
    ContentId([7; 12]).chunk(n)
}

/// Bytes that differ from chunk to chunk and from block to block.
pub fn payload(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub async fn put(engine: &Engine, id: ChunkId, bytes: &[u8]) -> Result<(), WriteError> {
    let mut writer = engine.create(id, bytes.len() as u32, b"label").await?;
    let mut out = vec![];
    for part in bytes.chunks(100_000) {
        out.extend(writer.write(part).await?);
    }
    out.extend(writer.finish_input()?);
    assert!(concat(&out) == bytes, "the pieces handed out are the payload");
    drop(out);
    writer.finish().await
}

pub fn concat(pieces: &[Bytes]) -> Vec<u8> {
    pieces.iter().flat_map(|piece| piece.iter().copied()).collect()
}

pub async fn get_pieces(engine: &Engine, id: ChunkId, range: Range<u32>) -> Result<Vec<Bytes>, ReadError> {
    let mut reader = engine.read(id, range)?;
    let mut pieces = vec![];
    while let Some(piece) = reader.next().await {
        pieces.push(piece?);
    }
    Ok(pieces)
}

pub async fn get_range(engine: &Engine, id: ChunkId, range: Range<u32>) -> Result<Vec<u8>, ReadError> {
    Ok(concat(&get_pieces(engine, id, range).await?))
}

pub async fn get(engine: &Engine, id: ChunkId) -> Result<Vec<u8>, ReadError> {
    let len = engine.stat(&id).ok_or(ReadError::NotFound(id))?.size_bytes;
    get_range(engine, id, 0..len).await
}
