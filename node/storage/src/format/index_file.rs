//! The index file of a segment: what the segment holds, so that a start need not read it. A cache: a missing or damaged
//! one costs a scan of its segment.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `HFINDEXF` |
//! | 8 | 4 | format version |
//! | 12 | 4 | segment number |
//! | 16 | 8 | salt of the segment |
//! | 24 | 8 | tail: where the segment's last record ends |
//! | 32 | 8 | highest sequence number in the segment |
//! | 40 | 8 | number of records |
//! | 48 | 8 | number of kills |
//! | 56 | 4 | CRC32C of the kills |
//! | 60 | 4 | CRC32C of the records |
//! | 64 | 4 | zero |
//! | 68 | 4 | CRC32C of bytes 0 to 67 |
//! | 72 | 24 × kills | as in a tombstone record |
//! | … | 32 × records | id (16), sequence (8), block number (4), payload length − 1 in the low 24 bits and place code in the high 8 (4) |
//!
//! A start reads the kills of all segments first, then the records of one segment after another.
//!
//! It lists chunks that are alive and those that are dead and whose header may still be on the disk: a tombstone can be
//! forgotten only when no record that it kills could be found again.

use holdfast_protocol::ChunkId;

use super::record::{Kill, RecordLayout};
use super::segment::SEGMENT_BYTES_MAX;
use super::{BLOCK_BYTES, FORMAT_VERSION, FormatError, SEQUENCE_MAX, array_at, put, u32_at, u64_at};

const WHAT: &str = "index file";
const MAGIC: &[u8; 8] = b"HFINDEXF";
/// Bytes before the kills.
pub const HEADER_BYTES: usize = 72;
const CRC_AT: usize = HEADER_BYTES - 4;

/// A chunk's place inside a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// The chunk.
    pub id: ChunkId,
    /// Its record's sequence number.
    pub sequence: u64,
    /// Where the record starts, in blocks.
    pub block: u32,
    /// Payload length − 1 and place code, see [`pack_extent`].
    pub extent: u32,
}

impl IndexEntry {
    /// Bytes of the stored form.
    pub const BYTES: usize = 32;
}

/// Packs a payload's length and its place in the record into 32 bits, never 0.
pub fn pack_extent(layout: &RecordLayout) -> u32 {
    (layout.payload_len - 1) | (u32::from(layout.place_code()) << 24)
}

/// Payload length and payload offset, from [`pack_extent`]; `None` for what it never gives.
pub fn unpack_extent(extent: u32) -> Option<(u32, u32)> {
    let offset = RecordLayout::payload_offset_of((extent >> 24) as u8)?;
    Some(((extent & 0x00ff_ffff) + 1, offset))
}

/// The contents of an index file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexFile {
    /// The segment.
    pub segment: u32,
    /// Its salt: an index file of another segment's life is refused by it.
    pub salt: u64,
    /// Where the last record ends, in bytes.
    pub tail: u64,
    /// Highest sequence number in the segment.
    pub sequence_max: u64,
    /// Chunks, by place.
    pub entries: Vec<IndexEntry>,
    /// Tombstones.
    pub kills: Vec<Kill>,
}

impl IndexFile {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let kills_len = self.kills.len() * Kill::BYTES;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + kills_len + self.entries.len() * IndexEntry::BYTES);
        bytes.resize(HEADER_BYTES, 0);
        for kill in &self.kills {
            kill.encode_into(&mut bytes);
        }
        for entry in &self.entries {
            bytes.extend_from_slice(entry.id.as_bytes());
            bytes.extend_from_slice(&entry.sequence.to_le_bytes());
            bytes.extend_from_slice(&entry.block.to_le_bytes());
            bytes.extend_from_slice(&entry.extent.to_le_bytes());
        }
        let kills_crc = crc32c::crc32c(&bytes[HEADER_BYTES..HEADER_BYTES + kills_len]);
        let entries_crc = crc32c::crc32c(&bytes[HEADER_BYTES + kills_len..]);
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, 12, &self.segment.to_le_bytes());
        put(&mut bytes, 16, &self.salt.to_le_bytes());
        put(&mut bytes, 24, &self.tail.to_le_bytes());
        put(&mut bytes, 32, &self.sequence_max.to_le_bytes());
        put(&mut bytes, 40, &(self.entries.len() as u64).to_le_bytes());
        put(&mut bytes, 48, &(self.kills.len() as u64).to_le_bytes());
        put(&mut bytes, 56, &kills_crc.to_le_bytes());
        put(&mut bytes, 60, &entries_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        put(&mut bytes, CRC_AT, &crc.to_le_bytes());
        bytes
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`FormatError`]: the caller scans the segment instead.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let header = IndexFileHeader::decode(bytes)?;
        let kills = header.decode_kills(&bytes[HEADER_BYTES..])?;
        let body = &bytes[HEADER_BYTES + header.kills_len..];
        if body.len() != header.entries_len {
            return Err(FormatError::Short { what: WHAT, len: bytes.len() });
        }
        if crc32c::crc32c(body) != header.entries_crc {
            return Err(FormatError::Checksum(WHAT));
        }
        let entries: Vec<_> = body
            .chunks_exact(IndexEntry::BYTES)
            .map(|entry| IndexEntry {
                id: ChunkId(array_at(entry, 0)),
                sequence: u64_at(entry, 16),
                block: u32_at(entry, 24),
                extent: u32_at(entry, 28),
            })
            .collect();
        let IndexFileHeader { segment, salt, tail, sequence_max, .. } = header;
        if entries.iter().any(|entry| entry.sequence > SEQUENCE_MAX) {
            return Err(FormatError::Invalid { what: WHAT, detail: "impossible sequence number" });
        }
        if !entries.iter().all(|entry| lies_before(entry, tail)) {
            return Err(FormatError::Invalid { what: WHAT, detail: "a record lies outside its segment" });
        }
        Ok(Self { segment, salt, tail, sequence_max, entries, kills })
    }
}

/// What an index file says before its lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexFileHeader {
    /// The segment.
    pub segment: u32,
    /// Its salt.
    pub salt: u64,
    /// Where the last record ends, in bytes.
    pub tail: u64,
    /// Highest sequence number in the segment.
    pub sequence_max: u64,
    /// Number of chunks listed.
    pub entry_count: u64,
    /// Bytes of the list of kills, which follows the header.
    pub kills_len: usize,
    entries_len: usize,
    kills_crc: u32,
    entries_crc: u32,
}

impl IndexFileHeader {
    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() < HEADER_BYTES {
            return Err(FormatError::Short { what: WHAT, len: bytes.len() });
        }
        if &bytes[..8] != MAGIC {
            return Err(FormatError::Magic(WHAT));
        }
        if crc32c::crc32c(&bytes[..CRC_AT]) != u32_at(bytes, CRC_AT) {
            return Err(FormatError::Checksum(WHAT));
        }
        let version = u32_at(bytes, 8);
        if version != FORMAT_VERSION {
            return Err(FormatError::Version { what: WHAT, found: version, supported: FORMAT_VERSION });
        }
        let (entry_count, kill_count, tail) = (u64_at(bytes, 40), u64_at(bytes, 48), u64_at(bytes, 24));
        let blocks_max = SEGMENT_BYTES_MAX / BLOCK_BYTES as u64;
        // A block holds one chunk record, or part of a tombstone record.
        let kills_max = SEGMENT_BYTES_MAX / Kill::BYTES as u64;
        if u64_at(bytes, 32) > SEQUENCE_MAX {
            return Err(FormatError::Invalid { what: WHAT, detail: "impossible sequence number" });
        }
        if tail > SEGMENT_BYTES_MAX || entry_count > blocks_max || kill_count > kills_max {
            return Err(FormatError::Invalid { what: WHAT, detail: "more than a segment holds" });
        }
        Ok(Self {
            segment: u32_at(bytes, 12),
            salt: u64_at(bytes, 16),
            tail,
            sequence_max: u64_at(bytes, 32),
            entry_count,
            kills_len: kill_count as usize * Kill::BYTES,
            entries_len: entry_count as usize * IndexEntry::BYTES,
            kills_crc: u32_at(bytes, 56),
            entries_crc: u32_at(bytes, 60),
        })
    }

    /// Reads the kills at the start of `bytes`, which follow the header.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode_kills(&self, bytes: &[u8]) -> Result<Vec<Kill>, FormatError> {
        let kills = bytes.get(..self.kills_len).ok_or(FormatError::Short { what: WHAT, len: bytes.len() })?;
        if crc32c::crc32c(kills) != self.kills_crc {
            return Err(FormatError::Checksum(WHAT));
        }
        Kill::decode_list(kills)
    }
}

/// A file whose checksums fit what they are over, whatever that is.
pub(super) fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() < HEADER_BYTES {
        return bytes;
    }
    let kills_len = u64_at(&bytes, 48).saturating_mul(Kill::BYTES as u64);
    let kills_len = usize::try_from(kills_len).unwrap_or(usize::MAX).min(bytes.len() - HEADER_BYTES);
    let (kills, entries) = bytes[HEADER_BYTES..].split_at(kills_len);
    let (kills_crc, entries_crc) = (crc32c::crc32c(kills), crc32c::crc32c(entries));
    put(&mut bytes, 56, &kills_crc.to_le_bytes());
    put(&mut bytes, 60, &entries_crc.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..CRC_AT]);
    put(&mut bytes, CRC_AT, &crc.to_le_bytes());
    bytes
}

fn lies_before(entry: &IndexEntry, tail: u64) -> bool {
    let Some((len, offset)) = unpack_extent(entry.extent) else { return false };
    let start = u64::from(entry.block) * BLOCK_BYTES as u64;
    start >= BLOCK_BYTES as u64 && start + u64::from(offset) + u64::from(len) <= tail
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> IndexFile {
        let layout = RecordLayout::new(5000, 0).unwrap();
        IndexFile {
            segment: 3,
            salt: 4,
            tail: 65536,
            sequence_max: 6,
            entries: vec![IndexEntry { id: ChunkId([7; 16]), sequence: 5, block: 1, extent: pack_extent(&layout) }],
            kills: vec![Kill { id: ChunkId([8; 16]), sequence: 6 }],
        }
    }

    #[test]
    fn golden_index_file() {
        let bytes = sample().encode();
        assert_eq!(bytes.len(), 72 + 24 + 32);
        assert_eq!(&bytes[..24], b"HFINDEXF\x01\0\0\0\x03\0\0\0\x04\0\0\0\0\0\0\0");
        assert_eq!(&bytes[120..128], b"\x01\0\0\0\x87\x13\0\x01");
        assert_eq!((u32_at(&bytes, 56), u32_at(&bytes, 60)), (0x703c_5a34, 0x9f93_fed4));
        assert_eq!(IndexFile::decode(&bytes), Ok(sample()));
    }

    #[test]
    fn entry_outside_the_segment_is_refused() {
        let mut file = sample();
        file.entries[0].block = 16;
        assert!(matches!(IndexFile::decode(&file.encode()), Err(FormatError::Invalid { .. })));
        file.entries[0].block = 0;
        assert!(matches!(IndexFile::decode(&file.encode()), Err(FormatError::Invalid { .. })));
    }

    #[test]
    fn sequence_numbers_after_which_there_is_none_are_refused() {
        let file = IndexFile { sequence_max: u64::MAX, ..sample() };
        assert!(matches!(IndexFile::decode(&file.encode()), Err(FormatError::Invalid { .. })));
        let mut file = sample();
        file.entries[0].sequence = u64::MAX;
        assert!(matches!(IndexFile::decode(&file.encode()), Err(FormatError::Invalid { .. })));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = IndexFile::decode(&bytes);
        }

        #[test]
        fn a_damaged_file_never_decodes(at in 0..128usize, flip in 1..=255u8) {
            let mut bytes = sample().encode();
            bytes[at] ^= flip;
            prop_assert!(IndexFile::decode(&bytes).is_err());
        }

        #[test]
        fn extents_round_trip(payload in 1..=crate::format::PAYLOAD_BYTES_MAX, label in 0..20_000usize) {
            let layout = RecordLayout::new(payload, label).unwrap();
            prop_assert_eq!(unpack_extent(pack_extent(&layout)), Some((layout.payload_len, layout.payload_offset)));
        }
    }
}
