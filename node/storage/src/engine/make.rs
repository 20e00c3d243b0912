//! Making segments.
//!
//! A segment is allocated at its full length, its header written, synced and read back, and its name made durable,
//! before anything is reserved in it. Where space is short, shorter ones are made, and tombstones may make small ones
//! out of the reserve. What a cancelled or failed making leaves is removed, at the latest by the next start.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::RngCore;

use super::Inner;
use super::small_files::write_block;
use super::space::Purpose;
use crate::buf::BufferPool;
use crate::error::{WriteError, is_full};
use crate::format::segment::SegmentHeader;
use crate::format::{BLOCK_BYTES, align_block};
use crate::io::{BlockFile, BlockIo, OpenMode};
use crate::mapping::Mapping;
use crate::segment::{Segment, SegmentState};

/// Segments are not made shorter than this for chunks, unless they are configured to be.
const SHORT_SEGMENT_BYTES: u64 = 64 << 20;

/// Segments that tombstones make when the disk is full.
const TOMBSTONE_SEGMENT_BYTES: u64 = 256 << 10;

impl Inner {
    /// Makes a segment that takes a record of `len` bytes.
    pub(super) async fn make_segment(self: &Arc<Self>, len: u64, purpose: Purpose) -> Result<Arc<Segment>, WriteError> {
        let size = self.segment_size_for(len, purpose).await?;
        let number = self.space.next_segment.fetch_add(1, Ordering::SeqCst);
        let header = SegmentHeader {
            number,
            salt: rand::rng().next_u64(),
            len_bytes: size,
            disk: self.superblock.disk,
            created_ms: crate::unix_ms(),
        };
        let path = segment_path(&self.config.dir, number);
        let (io, dir) = (Arc::clone(&self.io), self.config.dir.clone());
        let files = self.blocking({
            let (io, path, background) = (Arc::clone(&io), path.clone(), self.config.background);
            move || {
                // Made in here: if nobody is left to take the files when they are there at last, it removes them.
                let unfinished = Unfinished { io: Arc::clone(&io), path: Some(path.clone()), background };
                let direct = io.create(&path, OpenMode::Direct)?;
                direct.allocate(size)?;
                Ok((direct, io.open(&path, OpenMode::Buffered)?, unfinished))
            }
        });
        let (direct, file, mut unfinished) =
            files.await.map_err(|error| self.write_failed("allocate segment", error))?;
        write_block(&self.pool, &direct, 0, &header.encode())
            .await
            .map_err(|error| self.write_failed("write segment header", error))?;
        direct.sync_data().await.map_err(|error| self.write_failed("sync segment header", error))?;
        // Without its header a segment cannot be scanned: make sure that the disk did what it said.
        read_header_back(&self.pool, &direct, &header)
            .await
            .map_err(|error| self.write_failed("read segment header back", error))?;
        self.blocking(move || io.sync_dir(&dir))
            .await
            .map_err(|error| self.write_failed("sync data directory", error))?;
        let segment = Segment::new(
            header,
            path,
            index_path(&self.config.dir, number),
            Arc::clone(&file),
            Some(direct),
            map(&*file, size),
            SegmentState { cursor: BLOCK_BYTES as u64, ..SegmentState::default() },
            Arc::clone(&self.jobs),
        );
        segment.set_refresh(&self.pool, &self.watch);
        self.segments.write().insert(number, Arc::clone(&segment));
        unfinished.path = None;
        tracing::debug!(disk = %self.config.dir.display(), segment = number, bytes = size, "segment made");
        Ok(segment)
    }

    /// Whether a file system with so many bytes free takes another segment for chunks.
    pub(super) fn takes_segment(&self, free_bytes: u64) -> bool {
        let least = SHORT_SEGMENT_BYTES.min(self.config.segment_size_bytes);
        free_bytes >= least.saturating_add(self.config.reserve_bytes)
    }

    async fn segment_size_for(&self, len: u64, purpose: Purpose) -> Result<u64, WriteError> {
        let (io, dir) = (Arc::clone(&self.io), self.config.dir.clone());
        let asked = self.blocking(move || io.space(&dir)).await;
        let (_, free) = asked.map_err(|error| self.write_failed("ask for free space", error))?;
        let configured = self.config.segment_size_bytes;
        let mut size = configured;
        while size.saturating_add(self.config.reserve_bytes) > free {
            size = align_block(size / 2);
            let takes = size.saturating_sub(BLOCK_BYTES as u64 + tombstone_share(size));
            if size < SHORT_SEGMENT_BYTES.min(configured) || takes < len {
                if purpose == Purpose::Tombstones {
                    return Ok(TOMBSTONE_SEGMENT_BYTES.min(configured));
                }
                self.set_full(true);
                return Err(WriteError::NoSpace);
            }
        }
        Ok(size)
    }
}

/// Removes the file of a segment whose making was cancelled or failed.
struct Unfinished {
    io: Arc<dyn BlockIo>,
    path: Option<PathBuf>,
    background: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(path) = self.path.take() else { return };
        let io = Arc::clone(&self.io);
        let remove = move || {
            if let Err(error) = io.unlink(&path)
                && error.kind() != io::ErrorKind::NotFound
                && !is_full(&error)
            {
                let path = path.display();
                tracing::warn!(%path, %error, "unfinished segment not removed; the next start removes it");
            }
        };
        // Not on a thread of the data plane: whoever gave up waiting for a disk that hangs would hang with it.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if self.background => drop(runtime.spawn_blocking(remove)),
            _ => remove(),
        }
    }
}

/// The part at a segment's end that only tombstones use.
pub(super) fn tombstone_share(segment_len: u64) -> u64 {
    align_block(segment_len / 256).min(1 << 20)
}

/// Maps a segment where that is possible.
pub(super) fn map(file: &dyn BlockFile, len: u64) -> Option<Arc<Mapping>> {
    match Mapping::new(file.as_fd()?, len) {
        Ok(mapping) => Some(mapping),
        Err(error) => {
            tracing::warn!(%error, "segment not mapped: its chunks are read through buffers");
            None
        }
    }
}

async fn read_header_back(pool: &Arc<BufferPool>, file: &Arc<dyn BlockFile>, header: &SegmentHeader) -> io::Result<()> {
    let (read, buf) = file.read_at(0, pool.acquire(BLOCK_BYTES).await, BLOCK_BYTES).await;
    let count = read?;
    match SegmentHeader::decode(&buf[..count]) {
        Ok(found) if found == *header => Ok(()),
        Ok(_) => Err(io::Error::other("another header is there")),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// File of a segment.
pub(super) fn segment_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("segment-{number:08x}.data"))
}

/// Index file of a segment.
pub(super) fn index_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("segment-{number:08x}.index"))
}
