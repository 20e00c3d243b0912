//! Reading one segment: its header, its index file or, without a good one, its records.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::super::make::{index_path, map, segment_path};
use super::super::scan::{only_zeros, scan};
use super::super::small_files::{read_prefix, write_block};
use super::{Found, Opener, failed, finding};
use crate::error::{OpenError, is_unreadable};
use crate::format::index_file::{HEADER_BYTES as INDEX_HEADER_BYTES, IndexFileHeader};
use crate::format::record::Kill;
use crate::format::segment::{SEGMENT_BYTES_MAX, SegmentHeader};
use crate::format::superblock::Superblock;
use crate::format::{BLOCK_BYTES, FormatError};
use crate::io::{BlockFile, OpenMode};
use crate::segment::{Segment, SegmentState};

/// Why a segment's header tells nothing.
enum Unusable {
    Format(FormatError),
    Unreadable(io::Error),
}

impl Opener {
    /// Opens one segment and reads its tombstones, by scanning it if need be.
    pub(super) async fn load(&mut self, number: u32, superblock: &Superblock) -> Result<Option<Found>, OpenError> {
        let path = segment_path(&self.config.dir, number);
        let index_path = index_path(&self.config.dir, number);
        let file = self.io.open(&path, OpenMode::Buffered).map_err(failed("open segment", &path))?;
        let index = self.read_index_head(&index_path, number).await.map_err(failed("read index file", &index_path))?;
        let header = match self.segment_header(&file, &path, number, superblock, index.as_ref()).await? {
            Some(header) => header,
            None => return Ok(None),
        };
        let len = file.len().map_err(failed("ask for the length of", &path))?;
        if len < header.len_bytes {
            // A crash between making the file and allocating it; also never read behind the end of a mapping.
            return self.discard_or_leave(&file, &path, number, len).await.map(|()| None);
        }
        let mut state = SegmentState { sealed: true, ..SegmentState::default() };
        // One of another life of the segment, or one that would have readers look behind the end of the mapping.
        let index = index
            .filter(|(head, _)| (head.segment, head.salt) == (number, header.salt) && head.tail <= header.len_bytes);
        let (scan, kills) = match index {
            Some((head, kills)) => {
                state.indexed = true;
                state.cursor = head.tail;
                state.sequence_max = head.sequence_max;
                self.report.segments_indexed += 1;
                (None, kills)
            }
            None => {
                let scan = scan(&self.pool, &file, &header).await.map_err(failed("scan segment", &path))?;
                state.cursor = scan.tail;
                state.sequence_max = scan.sequence_max;
                self.report.segments_scanned += 1;
                self.note_unread(number, &scan.unread);
                let kills = scan.kills.clone();
                (Some(scan), kills)
            }
        };
        self.sequence_max = self.sequence_max.max(state.sequence_max);
        state.tombstone_bytes = (kills.len() * Kill::BYTES) as u64;
        state.kill_count = kills.len();
        let mapping = map(&*file, header.len_bytes);
        let segment = Segment::new(header, path, index_path, file, None, mapping, state, Arc::clone(&self.jobs));
        segment.set_refresh(&self.pool, &self.watch);
        Ok(Some(Found { segment, scan, kills }))
    }

    /// The header of an index file and its tombstones; `None` when the file is missing, damaged or cannot be read.
    async fn read_index_head(&self, path: &Path, number: u32) -> io::Result<Option<(IndexFileHeader, Vec<Kill>)>> {
        let bytes = match read_prefix(&self.io, &self.pool, path, |bytes| {
            IndexFileHeader::decode(bytes).map_or(0, |head| INDEX_HEADER_BYTES + head.kills_len)
        })
        .await
        {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if is_unreadable(&error) => {
                tracing::warn!(segment = number, %error, "index file unreadable: scanning the segment");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let parsed = IndexFileHeader::decode(&bytes)
            .and_then(|head| Ok((head, head.decode_kills(bytes.get(INDEX_HEADER_BYTES..).unwrap_or_default())?)));
        if let Err(error) = &parsed {
            tracing::warn!(segment = number, %error, "index file unusable: scanning the segment");
        }
        Ok(parsed.ok())
    }

    /// The segment's header. If it is damaged, the index file knows what it said.
    async fn segment_header(
        &mut self,
        file: &Arc<dyn BlockFile>,
        path: &Path,
        number: u32,
        superblock: &Superblock,
        index: Option<&(IndexFileHeader, Vec<Kill>)>,
    ) -> Result<Option<SegmentHeader>, OpenError> {
        let buf = self.pool.acquire(BLOCK_BYTES).await;
        let (read, buf) = file.read_at(0, buf, BLOCK_BYTES).await;
        let index = index.filter(|(index, _)| index.segment == number);
        let found = match read {
            Ok(count) => SegmentHeader::decode(&buf[..count]).map_err(Unusable::Format),
            Err(error) if is_unreadable(&error) => Err(Unusable::Unreadable(error)),
            Err(error) => return Err(failed("read segment header", path)(error)),
        };
        drop(buf);
        let unreadable = matches!(found, Err(Unusable::Unreadable(_)));
        let detail = match found {
            Ok(header) if header.number == number && header.disk == superblock.disk => return Ok(Some(header)),
            Ok(_) => "the header belongs to another segment or disk".to_owned(),
            Err(Unusable::Format(source @ FormatError::Version { .. })) => {
                return Err(OpenError::Superblock { dir: path.display().to_string(), source });
            }
            Err(Unusable::Format(error)) => error.to_string(),
            Err(Unusable::Unreadable(error)) => error.to_string(),
        };
        let len = file.len().map_err(failed("ask for the length of", path))?;
        if let Some((index, _)) = index.filter(|(index, _)| index.tail <= len) {
            self.findings.push(finding(number, 0, format!("segment header: {detail}; taken from the index file")));
            let len_bytes = (len / BLOCK_BYTES as u64 * BLOCK_BYTES as u64).min(SEGMENT_BYTES_MAX);
            let (disk, created_ms) = (superblock.disk, 0);
            return Ok(Some(SegmentHeader { number, salt: index.salt, len_bytes, disk, created_ms }));
        }
        if unreadable {
            // There is no knowing what else is in it.
            self.note_unread(number, std::slice::from_ref(&(0..len)));
            if self.gives_up {
                let given_up = write_block(&self.pool, file, 0, &[0; BLOCK_BYTES]).await;
                given_up.map_err(failed("give up the header of", path))?;
                file.sync_data().await.map_err(failed("sync", path))?;
            }
            self.report.segments_unreadable.push(number);
            return Ok(None);
        }
        self.discard_or_leave(file, path, number, len).await?;
        Ok(None)
    }

    /// A segment without a header. If nothing else is in it either, a crash interrupted its making; else it is left
    /// alone.
    async fn discard_or_leave(
        &mut self,
        file: &Arc<dyn BlockFile>,
        path: &Path,
        number: u32,
        len: u64,
    ) -> Result<(), OpenError> {
        if only_zeros(&self.pool, file, BLOCK_BYTES as u64, len).await.map_err(failed("read segment", path))? {
            return self.io.unlink(path).map_err(failed("remove unfinished segment", path));
        }
        self.findings.push(finding(number, 0, "segment header and index file are unusable".to_owned()));
        self.report.segments_unreadable.push(number);
        Ok(())
    }
}
