//! The checksums that S3 clients may ask for, and how the checksum of a multipart object follows from its parts'.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A checksum of the S3 API (`x-amz-checksum-…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ChecksumAlgorithm {
    /// CRC-32 of ISO 3309 (the one of zip).
    Crc32,
    /// CRC-32C (Castagnoli).
    Crc32c,
    /// CRC-64/NVME.
    Crc64Nvme,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
}

impl ChecksumAlgorithm {
    /// All of them, in the order of the S3 documentation.
    pub const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    /// The name in `x-amz-checksum-algorithm` and XML.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    /// The header or trailer that carries the value.
    pub const fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        }
    }

    /// Length of the value in bytes (big-endian for the CRCs).
    pub const fn len_bytes(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// The number by which stored forms name it. It never changes; 0 is none's.
    pub const fn code(self) -> u8 {
        match self {
            Self::Crc32 => 1,
            Self::Crc32c => 2,
            Self::Crc64Nvme => 3,
            Self::Sha1 => 4,
            Self::Sha256 => 5,
        }
    }

    /// The one that stored forms name by `code`.
    pub fn of_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.code() == code)
    }

    /// What S3 takes when the client names no type: CRC64NVME exists only for full objects, the others default to
    /// composite.
    pub const fn default_type(self) -> ChecksumType {
        match self {
            Self::Crc64Nvme => ChecksumType::FullObject,
            _ => ChecksumType::Composite,
        }
    }

    /// Whether the checksum of a multipart object can be had in this form. Full-object needs a CRC, which can be
    /// combined from the parts'; CRC64NVME has no composite form.
    pub const fn supports(self, checksum_type: ChecksumType) -> bool {
        match checksum_type {
            ChecksumType::FullObject => {
                matches!(self, Self::Crc32 | Self::Crc32c | Self::Crc64Nvme)
            }
            ChecksumType::Composite => !matches!(self, Self::Crc64Nvme),
        }
    }
}

impl fmt::Display for ChecksumAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is not a checksum algorithm of S3.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown checksum algorithm {0:?}: expected CRC32, CRC32C, CRC64NVME, SHA1 or SHA256")]
pub struct UnknownAlgorithm(String);

impl FromStr for ChecksumAlgorithm {
    type Err = UnknownAlgorithm;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|a| a.as_str().eq_ignore_ascii_case(s))
            .ok_or_else(|| UnknownAlgorithm(s.chars().take(32).collect()))
    }
}

/// What the checksum of a multipart object covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ChecksumType {
    /// The object's bytes, as if it had been uploaded in one piece.
    FullObject,
    /// The concatenated checksums of the parts; written `value-N`.
    Composite,
}

impl ChecksumType {
    /// The number by which stored forms name it. It never changes.
    pub const fn code(self) -> u8 {
        match self {
            Self::FullObject => 1,
            Self::Composite => 2,
        }
    }

    /// The one that stored forms name by `code`.
    pub fn of_code(code: u8) -> Option<Self> {
        [Self::FullObject, Self::Composite].into_iter().find(|known| known.code() == code)
    }
}

/// A checksum value with its algorithm, and with the number of parts when it is composite.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Checksum {
    /// The algorithm.
    pub algorithm: ChecksumAlgorithm,
    /// What it covers.
    pub checksum_type: ChecksumType,
    /// The raw value, `algorithm.len_bytes()` long.
    pub value: Vec<u8>,
    /// Number of parts of a composite checksum.
    pub parts: Option<u32>,
}

impl Checksum {
    /// As S3 writes it: base64, followed by `-N` when composite.
    pub fn to_s3_string(&self) -> String {
        use base64::Engine as _;
        let value = base64::engine::general_purpose::STANDARD.encode(&self.value);
        match (self.checksum_type, self.parts) {
            (ChecksumType::Composite, Some(parts)) => format!("{value}-{parts}"),
            _ => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_stored_forms_stay_as_they_are() {
        assert_eq!(ChecksumAlgorithm::ALL.map(ChecksumAlgorithm::code), [1, 2, 3, 4, 5]);
        assert_eq!([ChecksumType::FullObject, ChecksumType::Composite].map(ChecksumType::code), [1, 2]);
        for algorithm in ChecksumAlgorithm::ALL {
            assert_eq!(ChecksumAlgorithm::of_code(algorithm.code()), Some(algorithm));
        }
        assert_eq!([0, 6].map(ChecksumAlgorithm::of_code), [None, None]);
        assert_eq!([0, 1, 2, 3].map(ChecksumType::of_code).map(|found| found.is_some()), [false, true, true, false]);
    }

    #[test]
    fn names_round_trip() {
        for algorithm in ChecksumAlgorithm::ALL {
            assert_eq!(algorithm.as_str().to_lowercase().parse::<ChecksumAlgorithm>().unwrap(), algorithm);
            assert!(algorithm.supports(algorithm.default_type()));
        }
        assert!("MD5".parse::<ChecksumAlgorithm>().is_err());
    }

    #[test]
    fn composite_is_written_with_its_part_count() {
        let checksum = Checksum {
            algorithm: ChecksumAlgorithm::Crc32,
            checksum_type: ChecksumType::Composite,
            value: vec![0, 0, 0, 1],
            parts: Some(3),
        };
        assert_eq!(checksum.to_s3_string(), "AAAAAQ==-3");
    }
}
