//! Checksums of objects: what a client announced against what was computed, and the checksum of a multipart object from
//! those of its parts.

use crc_fast::CrcAlgorithm;
use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::{ChecksumAlgorithm, ChecksumType};
use md5::Digest as _;

use super::digests::Digests;
use crate::ports::metadata::ETag;

/// What S3 adds to an object when the client names no checksum.
pub const DEFAULT_ALGORITHM: ChecksumAlgorithm = ChecksumAlgorithm::Crc64Nvme;

/// The CRC behind an algorithm and its width in bytes.
///
/// # Panics
/// For the SHAs, which are no CRCs.
pub(super) fn crc_parameters(algorithm: ChecksumAlgorithm) -> (CrcAlgorithm, usize) {
    match algorithm {
        ChecksumAlgorithm::Crc32 => (CrcAlgorithm::Crc32IsoHdlc, 4),
        ChecksumAlgorithm::Crc32c => (CrcAlgorithm::Crc32Iscsi, 4),
        ChecksumAlgorithm::Crc64Nvme => (CrcAlgorithm::Crc64Nvme, 8),
        ChecksumAlgorithm::Sha1 | ChecksumAlgorithm::Sha256 => unreachable!("{algorithm} is no CRC"),
    }
}

/// A CRC as S3 writes it: big-endian in its own width.
pub(super) fn crc_bytes(algorithm: ChecksumAlgorithm, value: u64) -> Vec<u8> {
    let (_, width) = crc_parameters(algorithm);
    value.to_be_bytes()[8 - width..].to_vec()
}

/// A digest that the client announced and that the bytes do not have, or that cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestMismatch {
    /// `Content-MD5`. S3: `BadDigest`.
    #[error("the Content-MD5 you specified did not match what we received")]
    Md5,
    /// `x-amz-checksum-…`, as header, trailer or in a completion. S3: `BadDigest`.
    #[error("the {0} you specified did not match what we received")]
    Checksum(ChecksumAlgorithm),
    /// A trailer was announced and did not come. S3: `MalformedTrailerError`.
    #[error("the announced trailer with the {0} checksum did not come")]
    MissingTrailer(ChecksumAlgorithm),
}

/// Digests that the client announced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Announced {
    /// `Content-MD5`
    pub md5: Option<[u8; 16]>,
    /// A checksum and its value.
    pub checksum: Option<(ChecksumAlgorithm, Vec<u8>)>,
}

impl Announced {
    /// Compares to what was computed. A checksum announced must have been computed.
    ///
    /// # Errors
    /// [`DigestMismatch`].
    pub fn verify(&self, digests: &Digests) -> Result<(), DigestMismatch> {
        if self.md5.is_some_and(|md5| md5 != digests.md5) {
            return Err(DigestMismatch::Md5);
        }
        if let Some((algorithm, value)) = &self.checksum
            && digests.checksum(*algorithm) != Some(value.as_slice())
        {
            return Err(DigestMismatch::Checksum(*algorithm));
        }
        Ok(())
    }
}

/// The ETag of a multipart object: MD5 over the MD5s of its parts, and their number.
pub fn multipart_etag<'a>(part_md5s: impl IntoIterator<Item = &'a [u8; 16]>) -> ETag {
    let mut md5 = md5::Md5::new();
    let mut parts = 0;
    for part in part_md5s {
        md5.update(part);
        parts += 1;
    }
    ETag { md5: md5.finalize().into(), parts: Some(parts) }
}

/// The checksum of a multipart object from the checksums and sizes of its parts, all by `algorithm`. `None` when the
/// type does not exist for the algorithm.
///
/// A full-object CRC is combined from the parts' CRCs without reading a byte; a composite checksum is the algorithm
/// over the concatenated values.
pub fn combine(algorithm: ChecksumAlgorithm, checksum_type: ChecksumType, parts: &[(&[u8], u64)]) -> Option<Checksum> {
    if !algorithm.supports(checksum_type) {
        return None;
    }
    match checksum_type {
        ChecksumType::FullObject => {
            let (crc, _) = crc_parameters(algorithm);
            let mut combined: Option<u64> = None;
            for (value, size_bytes) in parts {
                let value = crc_value(value)?;
                combined = Some(match combined {
                    None => value,
                    Some(before) => crc_fast::checksum_combine(crc, before, value, *size_bytes),
                });
            }
            let value = crc_bytes(algorithm, combined?);
            Some(Checksum { algorithm, checksum_type, value, parts: None })
        }
        ChecksumType::Composite => {
            let mut digester = super::digests::Digester::new(&[algorithm]);
            for (value, _) in parts {
                digester.update(value);
            }
            let (_, value) = digester.finish().checksums.pop()?;
            Some(Checksum { algorithm, checksum_type, value, parts: Some(parts.len() as u32) })
        }
    }
}

/// A big-endian CRC of at most eight bytes as a number.
fn crc_value(bytes: &[u8]) -> Option<u64> {
    let mut wide = [0; 8];
    wide.get_mut(8usize.checked_sub(bytes.len())?..)?.copy_from_slice(bytes);
    Some(u64::from_be_bytes(wide))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::digests::Digester;
    use super::*;

    fn checksum_of(algorithm: ChecksumAlgorithm, data: &[u8]) -> Vec<u8> {
        let mut digester = Digester::new(&[algorithm]);
        digester.update(data);
        digester.finish().checksums.remove(0).1
    }

    proptest! {
        #[test]
        fn combined_crc_is_that_of_the_whole(data in prop::collection::vec(any::<u8>(), 0..5000), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(data.len() + 1)).collect();
            cuts.sort_unstable();
            cuts.insert(0, 0);
            cuts.push(data.len());
            for algorithm in [ChecksumAlgorithm::Crc32, ChecksumAlgorithm::Crc32c, ChecksumAlgorithm::Crc64Nvme] {
                let parts: Vec<_> = cuts.windows(2).map(|w| &data[w[0]..w[1]]).map(|p| (checksum_of(algorithm, p), p.len() as u64)).collect();
                let parts: Vec<_> = parts.iter().map(|(v, n)| (v.as_slice(), *n)).collect();
                let combined = combine(algorithm, ChecksumType::FullObject, &parts).unwrap();
                prop_assert_eq!(combined.value, checksum_of(algorithm, &data));
            }
        }
    }

    #[test]
    fn composite_is_the_checksum_of_checksums() {
        let (a, b) = (checksum_of(ChecksumAlgorithm::Sha256, b"a"), checksum_of(ChecksumAlgorithm::Sha256, b"b"));
        let combined = combine(ChecksumAlgorithm::Sha256, ChecksumType::Composite, &[(&a, 1), (&b, 1)]).unwrap();
        assert_eq!(combined.value, checksum_of(ChecksumAlgorithm::Sha256, &[a, b].concat()));
        assert!(combined.to_s3_string().ends_with("-2"));
    }

    #[test]
    fn impossible_types_are_refused() {
        assert_eq!(combine(ChecksumAlgorithm::Sha256, ChecksumType::FullObject, &[(&[0; 32], 1)]), None);
        assert_eq!(combine(ChecksumAlgorithm::Crc64Nvme, ChecksumType::Composite, &[(&[0; 8], 1)]), None);
        assert_eq!(combine(ChecksumAlgorithm::Crc32, ChecksumType::FullObject, &[(&[0; 9], 1)]), None);
    }

    #[test]
    fn announced_digests_are_compared() {
        let mut digester = Digester::new(&[ChecksumAlgorithm::Crc32]);
        digester.update(b"x");
        let digests = digester.finish();
        let good = Announced {
            md5: Some(digests.md5),
            checksum: Some((ChecksumAlgorithm::Crc32, checksum_of(ChecksumAlgorithm::Crc32, b"x"))),
        };
        assert_eq!(good.verify(&digests), Ok(()));
        let bad_md5 = Announced { md5: Some([0; 16]), ..good.clone() };
        assert_eq!(bad_md5.verify(&digests), Err(DigestMismatch::Md5));
        let bad_crc = Announced { checksum: Some((ChecksumAlgorithm::Crc32, vec![0; 4])), ..good.clone() };
        assert_eq!(bad_crc.verify(&digests), Err(DigestMismatch::Checksum(ChecksumAlgorithm::Crc32)));
        let not_computed = Announced { checksum: Some((ChecksumAlgorithm::Sha1, vec![0; 20])), ..good };
        assert_eq!(not_computed.verify(&digests), Err(DigestMismatch::Checksum(ChecksumAlgorithm::Sha1)));
    }

    #[test]
    fn etag_of_parts() {
        // md5(md5("a") || md5("b")) by hand: printf a|md5sum etc.
        let a: [u8; 16] = md5::Md5::digest(b"a").into();
        let b: [u8; 16] = md5::Md5::digest(b"b").into();
        let expected: [u8; 16] = md5::Md5::digest([a, b].concat()).into();
        assert_eq!(multipart_etag([&a, &b]), ETag { md5: expected, parts: Some(2) });
    }
}
