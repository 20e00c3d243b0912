//! The on-disk format: encoders and parsers without I/O. `FORMAT.md` of this crate is the map.
//!
//! All integers are little endian. No parser trusts a length before the checksum over it was compared, none panics
//! whatever the bytes are, and all refuse a version that they do not know by naming both versions.
//!
//! | module | what |
//! |---|---|
//! | [`superblock`] | one a data directory: identity and format version |
//! | [`segment`] | the first 4 KiB of a segment file |
//! | [`record`] | chunks and tombstones inside a segment |
//! | [`index_file`] | what a sealed segment holds, a cache for the start |
//! | [`scrub_mark`] | how far the scrub has come |

pub mod fuzz;
pub mod index_file;
pub mod record;
pub mod scrub_mark;
pub mod segment;
pub mod superblock;

/// The format that this build writes, and the only one that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Records start and end on multiples of this: no disk has larger logical blocks, and it is the page of the mapping.
pub const BLOCK_BYTES: usize = 4096;

/// Payload bytes under one checksum.
pub const CHECKSUM_BLOCK_BYTES: usize = 64 << 10;

/// The highest sequence number. No disk gets near it; one above it is refused, since there has to be a next one.
pub const SEQUENCE_MAX: u64 = u64::MAX >> 1;

/// The most payload of one chunk.
pub const PAYLOAD_BYTES_MAX: usize = holdfast_protocol::CHUNK_SIZE_MAX as usize;

/// The most label of one chunk.
pub const LABEL_BYTES_MAX: usize = holdfast_protocol::label::LABEL_SIZE_MAX;

/// Bytes from a disk that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Too few bytes.
    #[error("{what}: {len} bytes are too few")]
    Short {
        /// What was parsed.
        what: &'static str,
        /// How many bytes there were.
        len: usize,
    },
    /// The magic number is missing: something else, or nothing, is stored there.
    #[error("{0}: no such structure here")]
    Magic(&'static str),
    /// The checksum over the structure does not match.
    #[error("{0}: checksum mismatch")]
    Checksum(&'static str),
    /// Written by another format version.
    #[error("{what} has format version {found}, this build reads version {supported}")]
    Version {
        /// What was parsed.
        what: &'static str,
        /// The version on disk.
        found: u32,
        /// The version of this build.
        supported: u32,
    },
    /// The checksum matches and the contents contradict each other: a bug of the writer or a forgery.
    #[error("{what}: {detail}")]
    Invalid {
        /// What was parsed.
        what: &'static str,
        /// The contradiction.
        detail: &'static str,
    },
}

/// Rounds up to whole blocks.
pub const fn align_block(len: u64) -> u64 {
    len.next_multiple_of(BLOCK_BYTES as u64)
}

/// Little-endian fields at fixed offsets of a slice whose length was checked.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a range of N bytes is N bytes")
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}
