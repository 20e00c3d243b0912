//! The segment header: the first block of a segment file. Records follow it, each on a block boundary.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `HFSEGMNT` |
//! | 8 | 4 | format version |
//! | 12 | 4 | segment number |
//! | 16 | 8 | salt: random, mixed into the checksum of every record header of this segment |
//! | 24 | 8 | length of the segment in bytes |
//! | 32 | 16 | disk uuid |
//! | 48 | 8 | creation, milliseconds since 1970 |
//! | 56 | 4036 | zero |
//! | 4092 | 4 | CRC32C of bytes 0 to 4091 |

use super::{BLOCK_BYTES, FORMAT_VERSION, FormatError, array_at, put, u32_at, u64_at};

const WHAT: &str = "segment header";
const MAGIC: &[u8; 8] = b"HFSEGMNT";
const CRC_AT: usize = BLOCK_BYTES - 4;

/// The longest segment: a record's place is kept as a 20-bit block number.
pub const SEGMENT_BYTES_MAX: u64 = (1 << 20) * BLOCK_BYTES as u64;

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The segment's number: later segments have higher numbers, and none is used twice.
    pub number: u32,
    /// Random bits that payloads cannot know, so that no payload can hold a record of this segment.
    pub salt: u64,
    /// Length in bytes, this header included.
    pub len_bytes: u64,
    /// The disk that the segment was written for.
    pub disk: [u8; 16],
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
}

impl SegmentHeader {
    /// The stored form.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, 12, &self.number.to_le_bytes());
        put(&mut bytes, 16, &self.salt.to_le_bytes());
        put(&mut bytes, 24, &self.len_bytes.to_le_bytes());
        put(&mut bytes, 32, &self.disk);
        put(&mut bytes, 48, &self.created_ms.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        put(&mut bytes, CRC_AT, &crc.to_le_bytes());
        bytes
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() < BLOCK_BYTES {
            return Err(FormatError::Short { what: WHAT, len: bytes.len() });
        }
        if &bytes[..8] != MAGIC {
            return Err(FormatError::Magic(WHAT));
        }
        let version = u32_at(bytes, 8);
        if crc32c::crc32c(&bytes[..CRC_AT]) != u32_at(bytes, CRC_AT) {
            return Err(FormatError::Checksum(WHAT));
        }
        if version != FORMAT_VERSION {
            return Err(FormatError::Version { what: WHAT, found: version, supported: FORMAT_VERSION });
        }
        let header = Self {
            number: u32_at(bytes, 12),
            salt: u64_at(bytes, 16),
            len_bytes: u64_at(bytes, 24),
            disk: array_at(bytes, 32),
            created_ms: u64_at(bytes, 48),
        };
        let len = header.len_bytes;
        if len > SEGMENT_BYTES_MAX || len < 2 * BLOCK_BYTES as u64 || !len.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(FormatError::Invalid { what: WHAT, detail: "impossible length" });
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAMPLE: SegmentHeader =
        SegmentHeader { number: 7, salt: 0x0123_4567_89ab_cdef, len_bytes: 1 << 30, disk: [3; 16], created_ms: 5 };

    #[test]
    fn golden_segment_header() {
        let bytes = SAMPLE.encode();
        assert_eq!(&bytes[..32], b"HFSEGMNT\x01\0\0\0\x07\0\0\0\xef\xcd\xab\x89\x67\x45\x23\x01\0\0\0\x40\0\0\0\0");
        assert_eq!(u32_at(&bytes, CRC_AT), 0x81cf_951b);
        assert_eq!(SegmentHeader::decode(&bytes), Ok(SAMPLE));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for len_bytes in [0, 4096, 8193, SEGMENT_BYTES_MAX + 4096] {
            let bytes = SegmentHeader { len_bytes, ..SAMPLE }.encode();
            assert!(matches!(SegmentHeader::decode(&bytes), Err(FormatError::Invalid { .. })), "{len_bytes}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = SegmentHeader::decode(&bytes);
        }
    }
}
