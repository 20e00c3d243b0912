//! Payload on its way back to a reader: blocks with a checksum each, so that a reader hands out nothing that it has not
//! verified, and yet waits for no more than one block.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | length of the block, big-endian; 0: an answer frame with an error follows instead |
//! | 4 | CRC32C (Castagnoli) of the block, big-endian; 0 in an empty one |
//! | … | the block |
//!
//! The blocks of an answer are as many as make up the range that it announced; what follows them is an error.

use super::FrameError;

/// Bytes before a block.
pub const HEAD_BYTES: usize = 8;
/// The largest block. Large enough that its head and the two wake-ups that it costs do not count, small enough that a
/// reader may buffer one for each stream.
pub const BLOCK_BYTES_MAX: usize = 256 << 10;

/// What stands before a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHead {
    /// Length of the block; 0 where an error follows.
    pub size_bytes: u32,
    /// Its CRC32C.
    pub crc32c: u32,
}

impl BlockHead {
    /// The head that announces an error.
    pub const FAILED: Self = Self { size_bytes: 0, crc32c: 0 };

    /// As it is sent.
    ///
    /// # Errors
    /// When the block is too large.
    pub fn encode(self) -> Result<[u8; HEAD_BYTES], FrameError> {
        self.check()?;
        let mut bytes = [0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&self.size_bytes.to_be_bytes());
        bytes[4..].copy_from_slice(&self.crc32c.to_be_bytes());
        Ok(bytes)
    }

    /// As it was received.
    ///
    /// # Errors
    /// When the block would be too large, or is empty and has a checksum.
    pub fn decode(bytes: [u8; HEAD_BYTES]) -> Result<Self, FrameError> {
        let [a, b, c, d, crc @ ..] = bytes;
        let head = Self { size_bytes: u32::from_be_bytes([a, b, c, d]), crc32c: u32::from_be_bytes(crc) };
        head.check()?;
        Ok(head)
    }

    fn check(self) -> Result<(), FrameError> {
        if self.size_bytes as usize > BLOCK_BYTES_MAX {
            return Err(FrameError::TooLarge { found: self.size_bytes as usize, max: BLOCK_BYTES_MAX });
        }
        if self.size_bytes == 0 && self.crc32c != 0 {
            return Err(super::malformed("an empty block with a checksum"));
        }
        Ok(())
    }
}
