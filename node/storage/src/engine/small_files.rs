//! Small files of a data directory, and small pieces of large ones, through buffers of the pool.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::maintain::create_anew;
use crate::buf::{BufferPool, LARGE_BYTES};
use crate::format::BLOCK_BYTES;
use crate::io::{BlockFile, BlockIo, OpenMode};

/// No index file of a segment is longer: each block has one entry, and tombstones fill the rest.
const INDEX_FILE_BYTES_MAX: u64 = 256 << 20;

/// Reads a small file whole.
pub(super) async fn read_file(io: &Arc<dyn BlockIo>, pool: &Arc<BufferPool>, path: &Path) -> io::Result<Vec<u8>> {
    read_prefix(io, pool, path, |_| INDEX_FILE_BYTES_MAX as usize).await
}

/// Reads the start of a file: what `wanted` asks for after it saw the first buffer.
pub(super) async fn read_prefix(
    io: &Arc<dyn BlockIo>,
    pool: &Arc<BufferPool>,
    path: &Path,
    wanted: impl Fn(&[u8]) -> usize + Send,
) -> io::Result<Vec<u8>> {
    let file = io.open(path, OpenMode::Buffered)?;
    let len = file.len()?.min(INDEX_FILE_BYTES_MAX) as usize;
    let mut bytes = vec![];
    let mut target = len.min(BLOCK_BYTES);
    let mut asked = false;
    loop {
        while bytes.len() < target {
            let part = (target - bytes.len()).min(LARGE_BYTES);
            let buf = pool.acquire(part).await;
            let (read, buf) = file.read_at(bytes.len() as u64, buf, part).await;
            let count = read?;
            if count == 0 {
                return Ok(bytes);
            }
            bytes.extend_from_slice(&buf[..count]);
        }
        if asked {
            return Ok(bytes);
        }
        asked = true;
        target = wanted(&bytes).min(len);
        bytes.reserve_exact(target.saturating_sub(bytes.len()));
    }
}

/// Writes a small file whole and puts it in the place of an old one, durably.
pub(super) async fn replace_file(
    io: &Arc<dyn BlockIo>,
    pool: &Arc<BufferPool>,
    dir: &Path,
    path: &Path,
    bytes: &[u8],
) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let file = create_anew(io, &new)?;
    let mut offset = 0;
    for part in bytes.chunks(LARGE_BYTES) {
        let mut buf = pool.acquire(part.len()).await;
        buf[..part.len()].copy_from_slice(part);
        file.write_at(offset, buf.freeze(), 0..part.len()).await?;
        offset += part.len() as u64;
    }
    file.sync_data().await?;
    io.rename(&new, path)?;
    io.sync_dir(dir)
}

/// Writes a few bytes from a buffer of the pool.
pub(super) async fn write_block(
    pool: &Arc<BufferPool>,
    file: &Arc<dyn BlockFile>,
    offset: u64,
    bytes: &[u8],
) -> io::Result<()> {
    let mut buf = pool.acquire(bytes.len()).await;
    buf[..bytes.len()].copy_from_slice(bytes);
    file.write_at(offset, buf.freeze(), 0..bytes.len()).await
}
