//! The superblock: the file `superblock` of a data directory, 4096 bytes, written once when the directory is made.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `HFSUPERB` |
//! | 8 | 4 | format version |
//! | 12 | 4 | zero |
//! | 16 | 16 | cluster uuid |
//! | 32 | 16 | node uuid |
//! | 48 | 16 | disk uuid |
//! | 64 | 8 | creation, milliseconds since 1970 |
//! | 72 | 4020 | zero |
//! | 4092 | 4 | CRC32C of bytes 0 to 4091 |
//!
//! The magic and the version keep their place in every version, so that each build can name what it refuses.

use super::{BLOCK_BYTES, FORMAT_VERSION, FormatError, array_at, put, u32_at, u64_at};

const WHAT: &str = "superblock";
const MAGIC: &[u8; 8] = b"HFSUPERB";
const CRC_AT: usize = BLOCK_BYTES - 4;

/// Whose disk this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// The cluster that the data belongs to.
    pub cluster: [u8; 16],
    /// The node that the directory belongs to.
    pub node: [u8; 16],
    /// The directory's own identity, drawn when it was made.
    pub disk: [u8; 16],
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
}

impl Superblock {
    /// The stored form.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, 16, &self.cluster);
        put(&mut bytes, 32, &self.node);
        put(&mut bytes, 48, &self.disk);
        put(&mut bytes, 64, &self.created_ms.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        put(&mut bytes, CRC_AT, &crc.to_le_bytes());
        bytes
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`FormatError`]; the version is looked at before the checksum, which another version may keep elsewhere.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() < BLOCK_BYTES {
            return Err(FormatError::Short { what: WHAT, len: bytes.len() });
        }
        if &bytes[..8] != MAGIC {
            return Err(FormatError::Magic(WHAT));
        }
        let version = u32_at(bytes, 8);
        if version != FORMAT_VERSION {
            return Err(FormatError::Version { what: WHAT, found: version, supported: FORMAT_VERSION });
        }
        if crc32c::crc32c(&bytes[..CRC_AT]) != u32_at(bytes, CRC_AT) {
            return Err(FormatError::Checksum(WHAT));
        }
        Ok(Self {
            cluster: array_at(bytes, 16),
            node: array_at(bytes, 32),
            disk: array_at(bytes, 48),
            created_ms: u64_at(bytes, 64),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAMPLE: Superblock = Superblock { cluster: [1; 16], node: [2; 16], disk: [3; 16], created_ms: 4 };

    #[test]
    fn golden_superblock() {
        let bytes = SAMPLE.encode();
        assert_eq!(&bytes[..16], b"HFSUPERB\x01\0\0\0\0\0\0\0");
        assert_eq!(
            &bytes[48..80],
            b"\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
        );
        assert_eq!(crate::format::u32_at(&bytes, CRC_AT), 0x78fb_4c3b);
        assert_eq!(Superblock::decode(&bytes), Ok(SAMPLE));
    }

    #[test]
    fn unknown_version_is_refused_naming_both() {
        let mut bytes = SAMPLE.encode();
        bytes[8] = 9;
        let error = Superblock::decode(&bytes).unwrap_err();
        assert_eq!(error.to_string(), "superblock has format version 9, this build reads version 1");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = SAMPLE.encode();
        for bit in 0..BLOCK_BYTES * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let _ = Superblock::decode(&bytes);
        }
    }
}
