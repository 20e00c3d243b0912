//! The digests of a stream of bytes, computed as it passes.

use holdfast_protocol::ChecksumAlgorithm;
use md5::Digest as _;

/// One running checksum.
enum Running {
    Crc(ChecksumAlgorithm, Box<crc_fast::Digest>),
    Sha1(Box<sha1::Sha1>),
    Sha256(Box<sha2::Sha256>),
}

/// MD5, for the ETag, and the checksums that were asked for.
pub struct Digester {
    md5: md5::Md5,
    checksums: Vec<Running>,
    size_bytes: u64,
}

/// What a [`Digester`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// MD5 of the bytes.
    pub md5: [u8; 16],
    /// Values of the algorithms asked for, in that order.
    pub checksums: Vec<(ChecksumAlgorithm, Vec<u8>)>,
    /// How many bytes passed.
    pub size_bytes: u64,
}

impl Digests {
    /// The value of one algorithm, if it was computed.
    pub fn checksum(&self, algorithm: ChecksumAlgorithm) -> Option<&[u8]> {
        self.checksums.iter().find(|(a, _)| *a == algorithm).map(|(_, value)| value.as_slice())
    }
}

impl Digester {
    /// A digester of MD5 and `algorithms` (each once).
    pub fn new(algorithms: &[ChecksumAlgorithm]) -> Self {
        let checksums = algorithms
            .iter()
            .map(|algorithm| match algorithm {
                ChecksumAlgorithm::Sha1 => Running::Sha1(Box::default()),
                ChecksumAlgorithm::Sha256 => Running::Sha256(Box::default()),
                crc => {
                    let (parameters, _) = super::checksums::crc_parameters(*crc);
                    Running::Crc(*crc, Box::new(crc_fast::Digest::new(parameters)))
                }
            })
            .collect();
        Self { md5: md5::Md5::new(), checksums, size_bytes: 0 }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.md5.update(data);
        for running in &mut self.checksums {
            match running {
                Running::Crc(_, digest) => digest.update(data),
                Running::Sha1(digest) => digest.update(data),
                Running::Sha256(digest) => digest.update(data),
            }
        }
        self.size_bytes += data.len() as u64;
    }

    /// The digests of all bytes taken.
    pub fn finish(self) -> Digests {
        let checksums = self
            .checksums
            .into_iter()
            .map(|running| match running {
                Running::Crc(algorithm, digest) => {
                    (algorithm, super::checksums::crc_bytes(algorithm, digest.finalize()))
                }
                Running::Sha1(digest) => (ChecksumAlgorithm::Sha1, digest.finalize().to_vec()),
                Running::Sha256(digest) => (ChecksumAlgorithm::Sha256, digest.finalize().to_vec()),
            })
            .collect();
        Digests { md5: self.md5.finalize().into(), checksums, size_bytes: self.size_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of the algorithms' definitions, over "123456789".
    #[test]
    fn known_answers() {
        let mut digester = Digester::new(&ChecksumAlgorithm::ALL);
        digester.update(b"12345");
        digester.update(b"6789");
        let digests = digester.finish();
        assert_eq!(digests.size_bytes, 9);
        assert_eq!(digests.md5[..4], [0x25, 0xf9, 0xe7, 0x94]);
        assert_eq!(digests.checksum(ChecksumAlgorithm::Crc32).unwrap(), 0xcbf4_3926_u32.to_be_bytes());
        assert_eq!(digests.checksum(ChecksumAlgorithm::Crc32c).unwrap(), 0xe306_9283_u32.to_be_bytes());
        assert_eq!(digests.checksum(ChecksumAlgorithm::Crc64Nvme).unwrap(), 0xae8b_1486_0a79_9888_u64.to_be_bytes());
        assert_eq!(digests.checksum(ChecksumAlgorithm::Sha1).unwrap()[..4], [0xf7, 0xc3, 0xbc, 0x1d]);
        assert_eq!(digests.checksum(ChecksumAlgorithm::Sha256).unwrap()[..4], [0x15, 0xe2, 0xb0, 0xd3]);
    }
}
