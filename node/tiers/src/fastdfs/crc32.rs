//! The checksum of FastDFS: CRC-32 of zlib (ISO-HDLC), computed with the processor's carry-less multiplication.

use crc_fast::{CrcAlgorithm, Digest};

/// A checksum of bytes that come in parts.
#[derive(Debug)]
pub struct Crc32(Digest);

impl Default for Crc32 {
    fn default() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32IsoHdlc))
    }
}

impl Crc32 {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> u32 {
        let mut crc = Self::default();
        crc.update(bytes);
        crc.value()
    }

    /// Adds bytes at the end.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of what was added.
    pub fn value(&self) -> u32 {
        (self.0.finalize() & 0xffff_ffff) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_checksum_of_zlib() {
        assert_eq!(Crc32::of(b""), 0);
        assert_eq!(Crc32::of(b"123456789"), 0xcbf4_3926);
        // As a storage V6.16.1 told it.
        assert_eq!(Crc32::of("hello".repeat(1000).as_bytes()), 0x92c5_aad6);
    }

    #[test]
    fn parts_make_the_same_as_the_whole() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| ((n * 31) >> 3) as u8).collect();
        let mut crc = Crc32::default();
        for part in bytes.chunks(777) {
            crc.update(part);
        }
        assert_eq!(crc.value(), Crc32::of(&bytes));
    }
}
