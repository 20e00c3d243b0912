//! Identifiers. All are fixed-size values that any node can make without asking another one.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use rand::RngCore;
use serde::{Deserialize, Serialize};

/// An identifier that could not be parsed from its text form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {kind}: expected {expected_hex_digits} hexadecimal digits")]
pub struct ParseIdError {
    kind: &'static str,
    expected_hex_digits: usize,
}

/// Seconds, then what part of the present second has passed (16 bits, each 15 µs), then 48 random bits: sorted by time,
/// so that inserts into a B-tree stay at its right edge, also those of one second. The part of the second is a hint for
/// that order and says nothing else. A collision needs the same 15 µs and the same 48 bits, which is as likely as the
/// same second and the same 64; the metadata's primary key and the engine's refusal to write an existing chunk turn one
/// into an error, never into an overwrite.
fn time_ordered(unix_seconds: u32) -> [u8; 12] {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| u64::from(now.subsec_nanos()));
    let fraction = (passed * (1 << 16) / 1_000_000_000) as u16;
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&unix_seconds.to_be_bytes());
    bytes[4..6].copy_from_slice(&fraction.to_be_bytes());
    rand::rng().fill_bytes(&mut bytes[6..]);
    bytes
}

/// What all identifiers have: their bytes, and a text of hexadecimal digits. Reading that text is their own.
macro_rules! hex_bytes {
    ($name:ident, $len:literal) => {
        impl $name {
            /// The identifier as it is stored.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Takes stored bytes back; `None` when their number is wrong.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

pub(crate) use hex_bytes;

macro_rules! hex_id {
    ($name:ident, $len:literal, $kind:literal) => {
        hex_bytes!($name, $len);

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(s, &mut bytes)
                    .map_err(|_| ParseIdError { kind: $kind, expected_hex_digits: 2 * $len })?;
                Ok(Self(bytes))
            }
        }
    };
}

/// Names one stored run of bytes: what one PUT or one uploaded part brought. The chunks that hold it are
/// `ChunkId { content, index 0.. }`, so whoever knows the content knows its chunks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContentId(pub [u8; 12]);

hex_id!(ContentId, 12, "content id");

impl ContentId {
    /// A fresh identifier, sorted by `unix_seconds`.
    pub fn generate(unix_seconds: u64) -> Self {
        Self(time_ordered(unix_seconds as u32))
    }

    /// When the content was begun, in seconds since 1970 (wraps in 2106). The reaper of orphans spares the young.
    pub fn unix_seconds(&self) -> u64 {
        u64::from(u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]]))
    }

    /// The chunk that holds the `index`th run of [`crate::CHUNK_SIZE_MAX`] bytes.
    pub fn chunk(&self, index: u32) -> ChunkId {
        let mut bytes = [0; 16];
        bytes[..12].copy_from_slice(&self.0);
        bytes[12..].copy_from_slice(&index.to_be_bytes());
        ChunkId(bytes)
    }
}

/// Names one chunk: 12 bytes of [`ContentId`] and a big-endian `u32` index.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkId(pub [u8; 16]);

hex_id!(ChunkId, 16, "chunk id");

impl ChunkId {
    /// The content that the chunk belongs to.
    pub fn content(&self) -> ContentId {
        let mut bytes = [0; 12];
        bytes.copy_from_slice(&self.0[..12]);
        ContentId(bytes)
    }

    /// The chunk's place in its content.
    pub fn index(&self) -> u32 {
        u32::from_be_bytes([self.0[12], self.0[13], self.0[14], self.0[15]])
    }
}

/// One version of an object. The version of an object in a bucket that never had versioning on is [`VersionId::NULL`],
/// which S3 spells `null`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VersionId(pub [u8; 12]);

impl VersionId {
    /// The version that S3 calls `null`.
    pub const NULL: Self = Self([0; 12]);

    /// A fresh identifier.
    pub fn generate(unix_seconds: u64) -> Self {
        Self(time_ordered(unix_seconds as u32))
    }

    /// Whether this is the `null` version.
    pub fn is_null(&self) -> bool {
        *self == Self::NULL
    }

    /// The identifier as it is stored.
    pub const fn as_bytes(&self) -> &[u8; 12] {
        &self.0
    }

    /// Takes stored bytes back; `None` when their number is wrong.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_null() { f.write_str("null") } else { f.write_str(&hex::encode(self.0)) }
    }
}

impl fmt::Debug for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VersionId({self})")
    }
}

impl FromStr for VersionId {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s == "null" {
            return Ok(Self::NULL);
        }
        let mut bytes = [0; 12];
        hex::decode_to_slice(s, &mut bytes)
            .map_err(|_| ParseIdError { kind: "version id", expected_hex_digits: 24 })?;
        if bytes == [0; 12] {
            return Err(ParseIdError { kind: "version id", expected_hex_digits: 24 });
        }
        Ok(Self(bytes))
    }
}

/// One multipart upload.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UploadId(pub [u8; 16]);

hex_id!(UploadId, 16, "upload id");

impl UploadId {
    /// A fresh identifier; nobody can guess it.
    pub fn generate() -> Self {
        let mut bytes = [0; 16];
        rand::rng().fill_bytes(&mut bytes);
        Self(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_id_carries_content_and_index() {
        let content = ContentId::generate(1_700_000_000);
        let chunk = content.chunk(77);
        assert_eq!(chunk.content(), content);
        assert_eq!(chunk.index(), 77);
        assert_eq!(content.unix_seconds(), 1_700_000_000);
        assert_eq!(chunk.to_string().parse::<ChunkId>().unwrap(), chunk);
    }

    #[test]
    fn ids_sort_by_time() {
        assert!(ContentId::generate(1) < ContentId::generate(2));
        assert!(VersionId::generate(1) < VersionId::generate(2));
    }

    #[test]
    fn ids_of_one_second_sort_by_time() {
        let second = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let later = || {
            let began = SystemTime::now();
            while began.elapsed().is_ok_and(|passed| passed.as_micros() < 50) {}
        };
        let mut pairs = 0;
        while pairs < 10 {
            let began = second();
            let (first, (), next) = (ContentId::generate(7), later(), ContentId::generate(7));
            // A pair between which the second ends says nothing.
            if second() == began {
                assert!(first < next, "{first} before {next}");
                pairs += 1;
            }
        }
    }

    #[test]
    fn null_version_has_one_spelling() {
        assert_eq!("null".parse::<VersionId>().unwrap(), VersionId::NULL);
        assert_eq!(VersionId::NULL.to_string(), "null");
        assert!("000000000000000000000000".parse::<VersionId>().is_err());
        assert!("xyz".parse::<VersionId>().is_err());
    }
}
