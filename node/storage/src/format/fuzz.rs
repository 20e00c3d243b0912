//! Entry points for fuzzing, one a parser of disk bytes: whatever the bytes are, nothing panics, and what is read is
//! written back as it was.
//!
//! Bytes that were changed have a wrong checksum, behind which nothing is looked at. So each body runs twice: on the
//! bytes as they are, and with checksums that fit them, as a bug of a writer or a forgery would have.
//!
//! The crate `fuzz` runs them under libFuzzer; in CI they run on damaged copies of good bytes.

use holdfast_protocol::ChunkId;
use holdfast_protocol::fuzz::Target;

use super::index_file::{self, IndexEntry, IndexFile, IndexFileHeader, pack_extent};
use super::record::{
    self, ChecksumTable, HEADER_BYTES, Kill, RecordHeader, RecordKind, RecordLayout, RecordMeta, RecordPlace,
    encode_head,
};
use super::scrub_mark::ScrubMark;
use super::segment::SegmentHeader;
use super::superblock::Superblock;
use super::{BLOCK_BYTES, PAYLOAD_BYTES_MAX, put};

/// Those of this crate.
pub const TARGETS: &[Target] = &[
    Target { name: "superblock", body: superblock, seeds: superblocks },
    Target { name: "segment_header", body: segment_header, seeds: segment_headers },
    Target { name: "record", body: record, seeds: records },
    Target { name: "index_file", body: index_file, seeds: index_files },
    Target { name: "scrub_mark", body: scrub_mark, seeds: scrub_marks },
];

/// The place that fuzzed records are read at.
pub const PLACE: RecordPlace = RecordPlace { salt: 0x5a17, segment: 1, offset: 4096 };

/// With the CRC32C of all bytes before `at` written there.
fn sealed(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() >= at + 4 {
        let crc = crc32c::crc32c(&bytes[..at]);
        put(&mut bytes, at, &crc.to_le_bytes());
    }
    bytes
}

/// Parses a superblock.
pub fn superblock(bytes: &[u8]) {
    for bytes in [bytes, &sealed(bytes, BLOCK_BYTES - 4)] {
        if let Ok(superblock) = Superblock::decode(bytes) {
            assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
        }
    }
}

/// Parses a segment header.
pub fn segment_header(bytes: &[u8]) {
    for bytes in [bytes, &sealed(bytes, BLOCK_BYTES - 4)] {
        if let Ok(header) = SegmentHeader::decode(bytes) {
            assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        }
    }
}

/// Parses a record's header and table, and a list of tombstones.
pub fn record(bytes: &[u8]) {
    for bytes in [bytes, &record::sealed(bytes, &PLACE)] {
        if let Ok(header) = RecordHeader::decode(bytes, &PLACE) {
            record_of(header, bytes);
        }
    }
    if let Ok(kills) = Kill::decode_list(bytes) {
        let mut again = vec![];
        kills.iter().for_each(|kill| kill.encode_into(&mut again));
        assert_eq!(again, bytes);
    }
}

fn record_of(header: RecordHeader, bytes: &[u8]) {
    assert_eq!(RecordHeader::decode(&header.encode(&PLACE), &PLACE), Ok(header));
    let layout = header.layout;
    // What readers take for granted.
    assert!((1..=PAYLOAD_BYTES_MAX).contains(&(layout.payload_len as usize)));
    assert!(layout.table_range().end <= layout.label_range().start && layout.table_range().end <= BLOCK_BYTES);
    assert!(layout.label_range().end <= layout.payload_offset as usize);
    assert!(layout.payload_offset + layout.payload_len <= layout.record_len);
    assert_eq!(
        index_file::unpack_extent(pack_extent(&layout)),
        Some((layout.payload_len, layout.payload_offset)),
        "the index cannot keep it"
    );
    if let Ok(table) = ChecksumTable::decode(bytes, &header) {
        assert_eq!(table.as_slice().len(), layout.block_count());
        let _ = table.first_mismatch(0, bytes.get(HEADER_BYTES..).unwrap_or_default());
    }
}

/// Parses an index file.
pub fn index_file(bytes: &[u8]) {
    for bytes in [bytes, &index_file::sealed(bytes)] {
        let _ = IndexFileHeader::decode(bytes).map(|header| header.decode_kills(&bytes[index_file::HEADER_BYTES..]));
        if let Ok(file) = IndexFile::decode(bytes) {
            assert_eq!(IndexFile::decode(&file.encode()), Ok(file));
        }
    }
}

/// Parses a scrub mark.
pub fn scrub_mark(bytes: &[u8]) {
    for bytes in [bytes, &sealed(&sealed(bytes, 32), ScrubMark::BYTES - 4)] {
        if let Ok(mark) = ScrubMark::decode(bytes) {
            assert_eq!(ScrubMark::decode(&mark.encode()), Ok(mark));
        }
    }
}

const IDENTITY: [u8; 16] = [1; 16];

fn superblocks() -> Vec<Vec<u8>> {
    let superblock = Superblock { cluster: IDENTITY, node: IDENTITY, disk: IDENTITY, created_ms: 1 };
    vec![superblock.encode().to_vec()]
}

fn segment_headers() -> Vec<Vec<u8>> {
    let segment = SegmentHeader { number: 1, salt: 2, len_bytes: 1 << 20, disk: IDENTITY, created_ms: 1 };
    vec![segment.encode().to_vec()]
}

fn kills() -> Vec<Kill> {
    vec![Kill { id: ChunkId(IDENTITY), sequence: 3 }; 3]
}

fn records() -> Vec<Vec<u8>> {
    let meta = |kind| RecordMeta { kind, flags: 0, id: ChunkId(IDENTITY), sequence: 3, stable_sequence: 2 };
    let mut all: Vec<Vec<u8>> = [(1_000, 5), (200_000, 0), (PAYLOAD_BYTES_MAX, 20_000)]
        .into_iter()
        .filter_map(|(payload, label)| RecordLayout::new(payload, label))
        .map(|layout| {
            // The first block: header, table, and the label as far as it goes.
            let mut bytes = vec![0; (layout.payload_offset as usize).max(BLOCK_BYTES)];
            let table = vec![7; layout.block_count()];
            encode_head(
                &mut bytes,
                &PLACE,
                layout,
                &meta(RecordKind::Chunk),
                &vec![b'l'; layout.label_len as usize],
                &table,
            );
            bytes.truncate(BLOCK_BYTES);
            bytes
        })
        .collect();
    let mut list = vec![];
    kills().iter().for_each(|kill| kill.encode_into(&mut list));
    if let Some(layout) = RecordLayout::new(list.len(), 0) {
        let mut bytes = vec![0; BLOCK_BYTES];
        encode_head(&mut bytes, &PLACE, layout, &meta(RecordKind::Tombstones), b"", &[crc32c::crc32c(&list)]);
        put(&mut bytes, layout.payload_offset as usize, &list);
        all.push(bytes);
    }
    all.push(list);
    all
}

fn index_files() -> Vec<Vec<u8>> {
    let extent = RecordLayout::new(5_000, 0).map_or(0, |layout| pack_extent(&layout));
    let entry = |block| IndexEntry { id: ChunkId(IDENTITY), sequence: 5, block, extent };
    let empty = IndexFile { segment: 1, salt: 2, tail: 4096, sequence_max: 3, entries: vec![], kills: vec![] };
    let full = IndexFile { tail: 65_536, entries: vec![entry(1), entry(4)], kills: kills(), ..empty.clone() };
    vec![empty.encode(), full.encode()]
}

fn scrub_marks() -> Vec<Vec<u8>> {
    vec![ScrubMark { next_segment: 5, next_block: 8, rounds: 6, round_started_ms: 7 }.encode().to_vec()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_bytes_are_errors_and_never_panics() {
        holdfast_protocol::fuzz::damage::run(TARGETS, 2_000);
    }

    #[test]
    fn seeds_are_good_and_stay_so_when_they_are_sealed() {
        for bytes in superblocks() {
            assert!(Superblock::decode(&bytes).is_ok());
            assert_eq!(sealed(&bytes, BLOCK_BYTES - 4), bytes);
        }
        for bytes in &records()[..4] {
            assert!(RecordHeader::decode(bytes, &PLACE).is_ok());
            assert_eq!(record::sealed(bytes, &PLACE), *bytes);
        }
        for bytes in index_files() {
            assert!(IndexFile::decode(&bytes).is_ok());
            assert_eq!(index_file::sealed(&bytes), bytes);
        }
    }
}
