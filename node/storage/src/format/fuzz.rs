//! Entry points for fuzzing, one a parser of disk bytes: whatever the bytes are, nothing panics, and what is read is written
//! back as it was.
//!
//! `fuzz/` runs them under libFuzzer; the property tests below run them in CI, also on damaged copies of good bytes,
//! which get further than random ones.

use super::index_file::{IndexFile, IndexFileHeader};
use super::record::{ChecksumTable, HEADER_BYTES, Kill, RecordHeader, RecordPlace};
use super::scrub_mark::ScrubMark;
use super::segment::SegmentHeader;
use super::superblock::Superblock;

/// The place that fuzzed records are read at.
pub const PLACE: RecordPlace = RecordPlace { salt: 0x5a17, segment: 1, offset: 4096 };

/// Parses a superblock.
pub fn superblock(bytes: &[u8]) {
    if let Ok(superblock) = Superblock::decode(bytes) {
        assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
    }
}

/// Parses a segment header.
pub fn segment_header(bytes: &[u8]) {
    if let Ok(header) = SegmentHeader::decode(bytes) {
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    }
}

/// Parses a record's header and table, and a list of tombstones.
pub fn record(bytes: &[u8]) {
    if let Ok(header) = RecordHeader::decode(bytes, &PLACE) {
        assert_eq!(RecordHeader::decode(&header.encode(&PLACE), &PLACE), Ok(header));
        if let Ok(table) = ChecksumTable::decode(bytes, &header) {
            assert_eq!(table.as_slice().len(), header.layout.block_count());
            let _ = table.first_mismatch(0, bytes.get(HEADER_BYTES..).unwrap_or_default());
        }
    }
    if let Ok(kills) = Kill::decode_list(bytes) {
        let mut again = vec![];
        kills.iter().for_each(|kill| kill.encode_into(&mut again));
        assert_eq!(again, bytes);
    }
}

/// Parses an index file.
pub fn index_file(bytes: &[u8]) {
    let _ = IndexFileHeader::decode(bytes).map(|header| header.decode_kills(bytes));
    if let Ok(file) = IndexFile::decode(bytes) {
        assert_eq!(IndexFile::decode(&file.encode()), Ok(file));
    }
}

/// Parses a scrub mark.
pub fn scrub_mark(bytes: &[u8]) {
    if let Ok(mark) = ScrubMark::decode(bytes) {
        assert_eq!(ScrubMark::decode(&mark.encode()), Ok(mark));
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::ChunkId;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::format::record::{RecordKind, RecordLayout, RecordMeta, encode_head};

    fn all(bytes: &[u8]) {
        superblock(bytes);
        segment_header(bytes);
        record(bytes);
        index_file(bytes);
        scrub_mark(bytes);
    }

    fn good() -> Vec<Vec<u8>> {
        let identity = [1; 16];
        let superblock = Superblock { cluster: identity, node: identity, disk: identity, created_ms: 1 };
        let segment = SegmentHeader { number: 1, salt: 2, len_bytes: 1 << 20, disk: identity, created_ms: 1 };
        let kills = vec![Kill { id: ChunkId(identity), sequence: 3 }; 3];
        let file = IndexFile { segment: 1, salt: 2, tail: 4096, sequence_max: 3, entries: vec![], kills };
        let mut record = vec![0; 4096];
        let (kind, id) = (RecordKind::Chunk, ChunkId(identity));
        let meta = RecordMeta { kind, flags: 0, id, sequence: 3, stable_sequence: 2 };
        let layout = RecordLayout::new(1000, 5).unwrap();
        encode_head(&mut record, &PLACE, layout, &meta, b"label", &[7]);
        let mark = ScrubMark::default().encode().to_vec();
        vec![superblock.encode().to_vec(), segment.encode().to_vec(), file.encode(), record, mark]
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(bytes in vec(any::<u8>(), 0..5000)) {
            all(&bytes);
        }

        #[test]
        fn no_damage_makes_a_parser_panic(
            which in 0..5usize, flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), cut in 0..5000usize,
        ) {
            let mut bytes = good().swap_remove(which);
            for (at, flip) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
            }
            bytes.truncate(cut);
            all(&bytes);
        }
    }
}
