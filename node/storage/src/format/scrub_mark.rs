//! The scrub's mark: the file `scrub` of a data directory, rewritten by rename as the scrub goes on. A cache: without
//! it the scrub starts from the beginning.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `HFSCRUBM` |
//! | 8 | 4 | format version |
//! | 12 | 4 | segment that is next |
//! | 16 | 8 | completed rounds |
//! | 24 | 8 | start of this round, milliseconds since 1970 |
//! | 32 | 4 | CRC32C of bytes 0 to 31 |
//! | 36 | 4 | block of that segment that is next |
//! | 40 | 4 | CRC32C of bytes 0 to 39 |
//!
//! A mark that ends after 36 bytes, as earlier versions write it, or whose end is damaged, is one of the segment's
//! beginning.

use super::{FORMAT_VERSION, FormatError, put, u32_at, u64_at};

const WHAT: &str = "scrub mark";
const MAGIC: &[u8; 8] = b"HFSCRUBM";

/// How far the scrub has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubMark {
    /// Segments below are done in this round.
    pub next_segment: u32,
    /// Of that segment, the records that begin in blocks below.
    pub next_block: u32,
    /// Completed rounds.
    pub rounds: u64,
    /// When this round began, in milliseconds since 1970.
    pub round_started_ms: u64,
}

impl ScrubMark {
    /// Bytes of the stored form.
    pub const BYTES: usize = 44;
    /// Bytes without the place inside the segment.
    const BYTES_MIN: usize = 36;

    /// The stored form.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, 12, &self.next_segment.to_le_bytes());
        put(&mut bytes, 16, &self.rounds.to_le_bytes());
        put(&mut bytes, 24, &self.round_started_ms.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..32]);
        put(&mut bytes, 32, &crc.to_le_bytes());
        put(&mut bytes, 36, &self.next_block.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..40]);
        put(&mut bytes, 40, &crc.to_le_bytes());
        bytes
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`FormatError`]: the scrub starts anew.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() < Self::BYTES_MIN {
            return Err(FormatError::Short { what: WHAT, len: bytes.len() });
        }
        if &bytes[..8] != MAGIC {
            return Err(FormatError::Magic(WHAT));
        }
        if crc32c::crc32c(&bytes[..32]) != u32_at(bytes, 32) {
            return Err(FormatError::Checksum(WHAT));
        }
        let version = u32_at(bytes, 8);
        if version != FORMAT_VERSION {
            return Err(FormatError::Version { what: WHAT, found: version, supported: FORMAT_VERSION });
        }
        let is_whole = bytes.len() >= Self::BYTES && crc32c::crc32c(&bytes[..40]) == u32_at(bytes, 40);
        let next_block = if is_whole { u32_at(bytes, 36) } else { 0 };
        let (rounds, round_started_ms) = (u64_at(bytes, 16), u64_at(bytes, 24));
        Ok(Self { next_segment: u32_at(bytes, 12), next_block, rounds, round_started_ms })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_scrub_mark() {
        let mark = ScrubMark { next_segment: 5, next_block: 8, rounds: 6, round_started_ms: 7 };
        let bytes = mark.encode();
        assert_eq!(&bytes[..32], b"HFSCRUBM\x01\0\0\0\x05\0\0\0\x06\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0");
        assert_eq!(u32_at(&bytes, 32), 0xdd36_7792);
        assert_eq!(&bytes[36..40], b"\x08\0\0\0");
        assert_eq!(u32_at(&bytes, 40), 0x7a6c_d16c);
        assert_eq!(ScrubMark::decode(&bytes), Ok(mark));
    }

    #[test]
    fn a_mark_without_a_place_in_its_segment_is_one_of_its_beginning() {
        let mark = ScrubMark { next_segment: 5, next_block: 8, rounds: 6, round_started_ms: 7 };
        let beginning = ScrubMark { next_block: 0, ..mark };
        let bytes = mark.encode();
        assert_eq!(ScrubMark::decode(&bytes[..36]), Ok(beginning));
        let mut damaged = bytes;
        damaged[37] ^= 1;
        assert_eq!(ScrubMark::decode(&damaged), Ok(beginning));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = ScrubMark::decode(&bytes);
        }
    }
}
