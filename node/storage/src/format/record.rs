//! Records: what a segment holds after its header. Each starts and ends on a block boundary.
//!
//! ```text
//! 0                128          128+4n→16      →16            payload_offset           record_len
//! ├─ header ────────┼─ table ────┼─ label ──────┼─ zeros ───────┼─ payload ─── zeros ────┤
//! ```
//!
//! The table holds a CRC32C for each 64 KiB of payload; it and the label start on multiples of 16. The payload is one
//! run: in the same block as the header if everything fits there, else from the next block boundary on, so that it can
//! be mapped, spliced and written with `O_DIRECT`.
//!
//! | offset | bytes | header field |
//! |---|---|---|
//! | 0 | 8 | magic `HFRECORD` |
//! | 8 | 2 | format version |
//! | 10 | 1 | kind: 1 chunk, 2 tombstones |
//! | 11 | 1 | flags: 1 = moved by compaction |
//! | 12 | 4 | payload length in bytes |
//! | 16 | 16 | chunk id (zero for tombstones) |
//! | 32 | 8 | sequence number |
//! | 40 | 8 | stable sequence number |
//! | 48 | 4 | label length in bytes |
//! | 52 | 4 | CRC32C of the label |
//! | 56 | 4 | CRC32C of the table |
//! | 60 | 4 | payload offset from the record's start |
//! | 64 | 4 | record length in bytes |
//! | 68 | 56 | zero |
//! | 124 | 4 | CRC32C of bytes 0 to 123, then the segment's salt (8), its number (4), the record's offset in it (8) |
//!
//! The salt makes it impossible to forge a record by uploading one (a scan walks over payloads of records whose header
//! is lost); number and offset make a write that went astray, or a stale block, worthless where it landed.
//!
//! The **stable sequence number** says: all records of this disk up to it were durable or given up when this header was
//! built. A damaged payload at or below it is damage and is reported; above, it is a torn write that nobody was told
//! of.

use holdfast_protocol::ChunkId;

use super::{CHECKSUM_BLOCK_BYTES, FORMAT_VERSION, FormatError, SEQUENCE_MAX, array_at, put, u16_at, u32_at, u64_at};

mod kill;
mod layout;

pub use kill::Kill;
pub use layout::RecordLayout;

const WHAT: &str = "record header";
const MAGIC: &[u8; 8] = b"HFRECORD";

/// Bytes of a record's header; the table follows.
pub const HEADER_BYTES: usize = 128;
const CRC_AT: usize = HEADER_BYTES - 4;

/// Flag: a copy made by compaction. It keeps the sequence number of its original, which exists until the copy was read
/// back; so a damaged copy is dropped where there is the original, whatever the stable sequence number says, and is
/// damage where there is none.
pub const FLAG_MOVED: u8 = 1;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// A chunk.
    Chunk,
    /// A list of deleted chunks, see [`Kill`].
    Tombstones,
}

/// Which place a record header is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordPlace {
    /// Salt of the segment.
    pub salt: u64,
    /// Number of the segment.
    pub segment: u32,
    /// Offset of the record in the segment, in bytes.
    pub offset: u64,
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it is.
    pub kind: RecordKind,
    /// [`FLAG_MOVED`] or 0.
    pub flags: u8,
    /// The chunk; zero for tombstones.
    pub id: ChunkId,
    /// Later records have higher numbers (but for copies made by compaction).
    pub sequence: u64,
    /// See the module's text.
    pub stable_sequence: u64,
    /// CRC32C of the label.
    pub label_crc: u32,
    /// CRC32C of the table.
    pub table_crc: u32,
    /// Where the parts lie.
    pub layout: RecordLayout,
}

impl RecordHeader {
    /// The stored form at `place`.
    pub fn encode(&self, place: &RecordPlace) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 8, &(FORMAT_VERSION as u16).to_le_bytes());
        bytes[10] = match self.kind {
            RecordKind::Chunk => 1,
            RecordKind::Tombstones => 2,
        };
        bytes[11] = self.flags;
        put(&mut bytes, 12, &self.layout.payload_len.to_le_bytes());
        put(&mut bytes, 16, self.id.as_bytes());
        put(&mut bytes, 32, &self.sequence.to_le_bytes());
        put(&mut bytes, 40, &self.stable_sequence.to_le_bytes());
        put(&mut bytes, 48, &self.layout.label_len.to_le_bytes());
        put(&mut bytes, 52, &self.label_crc.to_le_bytes());
        put(&mut bytes, 56, &self.table_crc.to_le_bytes());
        put(&mut bytes, 60, &self.layout.payload_offset.to_le_bytes());
        put(&mut bytes, 64, &self.layout.record_len.to_le_bytes());
        let crc = header_crc(&bytes, place);
        put(&mut bytes, CRC_AT, &crc.to_le_bytes());
        bytes
    }

    /// Reads the stored form found at `place`.
    ///
    /// # Errors
    /// [`FormatError`]; [`FormatError::Magic`] is what a scan meets between records.
    pub fn decode(bytes: &[u8], place: &RecordPlace) -> Result<Self, FormatError> {
        if bytes.len() < HEADER_BYTES {
            return Err(FormatError::Short { what: WHAT, len: bytes.len() });
        }
        if &bytes[..8] != MAGIC {
            return Err(FormatError::Magic(WHAT));
        }
        if header_crc(bytes, place) != u32_at(bytes, CRC_AT) {
            return Err(FormatError::Checksum(WHAT));
        }
        let version = u32::from(u16_at(bytes, 8));
        if version != FORMAT_VERSION {
            return Err(FormatError::Version { what: WHAT, found: version, supported: FORMAT_VERSION });
        }
        let kind = match bytes[10] {
            1 => RecordKind::Chunk,
            2 => RecordKind::Tombstones,
            _ => return Err(FormatError::Invalid { what: WHAT, detail: "unknown kind" }),
        };
        let layout = RecordLayout::new(u32_at(bytes, 12) as usize, u32_at(bytes, 48) as usize)
            .filter(|layout| layout.payload_offset == u32_at(bytes, 60) && layout.record_len == u32_at(bytes, 64))
            .ok_or(FormatError::Invalid { what: WHAT, detail: "impossible lengths" })?;
        if u64_at(bytes, 32).max(u64_at(bytes, 40)) > SEQUENCE_MAX {
            return Err(FormatError::Invalid { what: WHAT, detail: "impossible sequence number" });
        }
        Ok(Self {
            kind,
            flags: bytes[11],
            id: ChunkId(array_at(bytes, 16)),
            sequence: u64_at(bytes, 32),
            stable_sequence: u64_at(bytes, 40),
            label_crc: u32_at(bytes, 52),
            table_crc: u32_at(bytes, 56),
            layout,
        })
    }

    /// Whether this is a copy made by compaction.
    pub fn is_moved(&self) -> bool {
        self.flags & FLAG_MOVED != 0
    }
}

fn header_crc(bytes: &[u8], place: &RecordPlace) -> u32 {
    let crc = crc32c::crc32c(&bytes[..CRC_AT]);
    let crc = crc32c::crc32c_append(crc, &place.salt.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &place.segment.to_le_bytes());
    crc32c::crc32c_append(crc, &place.offset.to_le_bytes())
}

/// A record whose checksums of header and table fit what they are over, whatever that is.
pub(super) fn sealed(bytes: &[u8], place: &RecordPlace) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() < HEADER_BYTES {
        return bytes;
    }
    let layout = RecordLayout::new(u32_at(&bytes, 12) as usize, u32_at(&bytes, 48) as usize);
    if let Some(crc) = layout.and_then(|layout| bytes.get(layout.table_range()).map(crc32c::crc32c)) {
        put(&mut bytes, 56, &crc.to_le_bytes());
    }
    let crc = header_crc(&bytes, place);
    put(&mut bytes, CRC_AT, &crc.to_le_bytes());
    bytes
}

/// The checksum table of a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChecksumTable(Box<[u32]>);

impl ChecksumTable {
    /// Reads and checks the table of a record whose header was checked. `record` starts where the record does.
    ///
    /// # Errors
    /// [`FormatError::Short`], [`FormatError::Checksum`].
    pub fn decode(record: &[u8], header: &RecordHeader) -> Result<Self, FormatError> {
        let what = "checksum table";
        let bytes = record.get(header.layout.table_range()).ok_or(FormatError::Short { what, len: record.len() })?;
        if crc32c::crc32c(bytes) != header.table_crc {
            return Err(FormatError::Checksum(what));
        }
        Ok(Self(bytes.chunks_exact(4).map(|crc| u32::from_le_bytes(array_at(crc, 0))).collect()))
    }

    /// The checksums.
    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }

    /// Compares one block of payload, the last of which may be short.
    pub fn matches(&self, block: usize, bytes: &[u8]) -> bool {
        self.0.get(block) == Some(&crc32c::crc32c(bytes))
    }

    /// The first block of `payload` (which starts with block `first`) that does not match.
    pub fn first_mismatch(&self, first: usize, payload: &[u8]) -> Option<usize> {
        let blocks = payload.chunks(CHECKSUM_BLOCK_BYTES).enumerate();
        blocks.map(|(n, bytes)| (first + n, bytes)).find(|(n, bytes)| !self.matches(*n, bytes)).map(|(n, _)| n)
    }
}

/// Fills the head (header, table, label) of a record into the start of `record`, which is zero or will be overwritten
/// there. `table` holds the checksums of the payload's blocks.
pub(crate) fn encode_head(
    record: &mut [u8],
    place: &RecordPlace,
    layout: RecordLayout,
    meta: &RecordMeta,
    label: &[u8],
    table: &[u32],
) {
    debug_assert_eq!(table.len(), layout.block_count());
    debug_assert_eq!(label.len(), layout.label_len as usize);
    let head_end = (layout.payload_offset as usize).min(record.len());
    record[..head_end].fill(0);
    for (n, crc) in table.iter().enumerate() {
        put(record, HEADER_BYTES + 4 * n, &crc.to_le_bytes());
    }
    put(record, layout.label_offset as usize, label);
    let header = RecordHeader {
        kind: meta.kind,
        flags: meta.flags,
        id: meta.id,
        sequence: meta.sequence,
        stable_sequence: meta.stable_sequence,
        label_crc: crc32c::crc32c(label),
        table_crc: crc32c::crc32c(&record[layout.table_range()]),
        layout,
    };
    put(record, 0, &header.encode(place));
}

/// What [`encode_head`] needs beside the bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordMeta {
    pub(crate) kind: RecordKind,
    pub(crate) flags: u8,
    pub(crate) id: ChunkId,
    pub(crate) sequence: u64,
    pub(crate) stable_sequence: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::{BLOCK_BYTES, LABEL_BYTES_MAX, PAYLOAD_BYTES_MAX};

    const PLACE: RecordPlace = RecordPlace { salt: 11, segment: 2, offset: 8192 };

    fn sample() -> RecordHeader {
        RecordHeader {
            kind: RecordKind::Chunk,
            flags: 0,
            id: ChunkId([0xab; 16]),
            sequence: 9,
            stable_sequence: 8,
            label_crc: 0x1111_1111,
            table_crc: 0x2222_2222,
            layout: RecordLayout::new(70_000, 100).unwrap(),
        }
    }

    #[test]
    fn golden_record_header() {
        let bytes = sample().encode(&PLACE);
        assert_eq!(&bytes[..16], b"HFRECORD\x01\0\x01\0\x70\x11\x01\0");
        assert_eq!(&bytes[32..72], b"\x09\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x64\0\0\0\x11\x11\x11\x11\x22\x22\x22\x22\0\x10\0\0\0\x30\x01\0\0\0\0\0");
        assert_eq!(u32_at(&bytes, CRC_AT), 0xa802_016a);
        assert_eq!(RecordHeader::decode(&bytes, &PLACE), Ok(sample()));
    }

    #[test]
    fn header_is_worthless_elsewhere() {
        let bytes = sample().encode(&PLACE);
        for place in [
            RecordPlace { salt: 12, ..PLACE },
            RecordPlace { segment: 3, ..PLACE },
            RecordPlace { offset: 4096, ..PLACE },
        ] {
            assert_eq!(RecordHeader::decode(&bytes, &place), Err(FormatError::Checksum(WHAT)));
        }
    }

    #[test]
    fn sequence_numbers_after_which_there_is_none_are_refused() {
        let decode = |header: RecordHeader| RecordHeader::decode(&header.encode(&PLACE), &PLACE);
        assert!(decode(RecordHeader { sequence: SEQUENCE_MAX, ..sample() }).is_ok());
        for sequence in [SEQUENCE_MAX + 1, u64::MAX] {
            assert!(matches!(decode(RecordHeader { sequence, ..sample() }), Err(FormatError::Invalid { .. })));
            let stable = RecordHeader { stable_sequence: sequence, ..sample() };
            assert!(matches!(decode(stable), Err(FormatError::Invalid { .. })));
            let mut kill = vec![];
            Kill { id: ChunkId([1; 16]), sequence }.encode_into(&mut kill);
            assert!(matches!(Kill::decode_list(&kill), Err(FormatError::Invalid { .. })));
        }
    }

    #[test]
    fn small_payload_shares_the_block_of_its_header() {
        let layout = RecordLayout::new(3000, 200).unwrap();
        assert_eq!((layout.payload_offset, layout.record_len), (352, 4096));
        let layout = RecordLayout::new(4096, 200).unwrap();
        assert_eq!((layout.payload_offset, layout.record_len), (4096, 8192));
        let layout = RecordLayout::new(PAYLOAD_BYTES_MAX, LABEL_BYTES_MAX).unwrap();
        assert_eq!(layout.payload_offset, 7 * 4096);
    }

    #[test]
    fn impossible_lengths_have_no_layout() {
        assert_eq!(RecordLayout::new(0, 0), None);
        assert_eq!(RecordLayout::new(PAYLOAD_BYTES_MAX + 1, 0), None);
        assert_eq!(RecordLayout::new(1, LABEL_BYTES_MAX + 1), None);
    }

    proptest! {
        #[test]
        fn layout_keeps_its_rules(payload in 1..=PAYLOAD_BYTES_MAX, label in 0..=LABEL_BYTES_MAX) {
            let layout = RecordLayout::new(payload, label).unwrap();
            prop_assert_eq!(layout.record_len as usize % BLOCK_BYTES, 0);
            prop_assert!(layout.table_range().end <= BLOCK_BYTES);
            prop_assert!(layout.table_range().end <= layout.label_offset as usize);
            prop_assert!(layout.label_range().end <= layout.payload_offset as usize);
            prop_assert!(layout.payload_offset as usize + payload <= layout.record_len as usize);
            let aligned = (layout.payload_offset as usize).is_multiple_of(BLOCK_BYTES);
            prop_assert!(aligned || layout.record_len as usize == BLOCK_BYTES);
            prop_assert_eq!(RecordLayout::payload_offset_of(layout.place_code()), Some(layout.payload_offset));
        }

        #[test]
        fn small_layout_round_trips_its_place(payload in 1..5000usize, label in 0..5000usize) {
            let layout = RecordLayout::new(payload, label).unwrap();
            prop_assert_eq!(RecordLayout::payload_offset_of(layout.place_code()), Some(layout.payload_offset));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = RecordHeader::decode(&bytes, &PLACE);
            let _ = Kill::decode_list(&bytes);
        }

        #[test]
        fn a_damaged_header_never_decodes(at in 0..HEADER_BYTES, flip in 1..=255u8) {
            let mut bytes = sample().encode(&PLACE);
            bytes[at] ^= flip;
            prop_assert!(RecordHeader::decode(&bytes, &PLACE).is_err());
        }

        #[test]
        fn kills_round_trip(ids in proptest::collection::vec((any::<[u8; 16]>(), 0..=SEQUENCE_MAX), 0..20)) {
            let kills: Vec<_> = ids.into_iter().map(|(id, sequence)| Kill { id: ChunkId(id), sequence }).collect();
            let mut bytes = vec![];
            kills.iter().for_each(|kill| kill.encode_into(&mut bytes));
            prop_assert_eq!(Kill::decode_list(&bytes), Ok(kills));
        }
    }
}
