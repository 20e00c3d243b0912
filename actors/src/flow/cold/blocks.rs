//! Checksums of the blocks of a content in a tier ([`ColdPlace`]): made while its bytes go out, compared while they
//! come back.

use std::collections::VecDeque;
use std::ops::Deref;

use bytes::{Bytes, BytesMut};
use crc_fast::CrcAlgorithm;
use holdfast_protocol::ColdPlace;

/// CRC32C of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, data) as u32
}

/// Makes the checksums of a content's blocks from its bytes, in order.
#[derive(Debug)]
pub struct BlockSums {
    block_bytes: u64,
    filled: u64,
    running: crc_fast::Digest,
    sums: Vec<u32>,
}

impl BlockSums {
    /// Of blocks of `block_bytes`.
    pub fn new(block_bytes: u32) -> Self {
        let running = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
        Self { block_bytes: u64::from(block_bytes), filled: 0, running, sums: Vec::new() }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let take = (self.block_bytes - self.filled).min(data.len() as u64) as usize;
            self.running.update(&data[..take]);
            self.filled += take as u64;
            data = &data[take..];
            if self.filled == self.block_bytes {
                self.end_block();
            }
        }
    }

    fn end_block(&mut self) {
        self.sums.push(self.running.finalize() as u32);
        self.running = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
        self.filled = 0;
    }

    /// The checksums, when all bytes have come.
    pub fn finish(mut self) -> Vec<u32> {
        if self.filled > 0 {
            self.end_block();
        }
        self.sums
    }
}

/// A block that is not what was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("block {block} has checksum {found:08x}, stored was {expected:08x}")]
pub struct BlockMismatch {
    /// Which block of the content, from 0.
    pub block: usize,
    /// As stored.
    pub expected: u32,
    /// Of what came.
    pub found: u32,
}

/// Holds bytes that come from a tier, from the beginning of a block on and in order, against their checksums, and gives
/// out only what matched. Holds at most one block and what is pushed at once. `P` is a reference to the place, or an
/// `Arc` of it.
#[derive(Debug)]
pub struct BlockCheck<P> {
    place: P,
    block: usize,
    held: BytesMut,
    ready: VecDeque<Bytes>,
}

impl<P: Deref<Target = ColdPlace>> BlockCheck<P> {
    /// Begins at `block`.
    pub fn new(place: P, block: usize) -> Self {
        Self { place, block, held: BytesMut::new(), ready: VecDeque::new() }
    }

    /// Takes the next bytes. Bytes beyond the content's end are [`BlockMismatch`] of a block that does not exist.
    ///
    /// # Errors
    /// [`BlockMismatch`]; what was given out before is good.
    pub fn push(&mut self, mut data: Bytes) -> Result<(), BlockMismatch> {
        while !data.is_empty() {
            let range = self.place.block(self.block);
            let want = (range.end - range.start) as usize;
            if want == 0 {
                return Err(BlockMismatch { block: self.block, expected: 0, found: 0 });
            }
            // A block that comes in one piece is not copied.
            if self.held.is_empty() && data.len() >= want {
                let block = data.split_to(want);
                self.end_block(block)?;
                continue;
            }
            if self.held.is_empty() {
                self.held.reserve(want);
            }
            let take = (want - self.held.len()).min(data.len());
            self.held.extend_from_slice(&data.split_to(take));
            if self.held.len() == want {
                let block = self.held.split().freeze();
                self.end_block(block)?;
            }
        }
        Ok(())
    }

    fn end_block(&mut self, block: Bytes) -> Result<(), BlockMismatch> {
        let found = crc32c(&block);
        let expected = self.place.sums.get(self.block).copied();
        if expected != Some(found) {
            return Err(BlockMismatch { block: self.block, expected: expected.unwrap_or(0), found });
        }
        self.block += 1;
        self.ready.push_back(block);
        Ok(())
    }

    /// The next whole block that matched.
    pub fn next_block(&mut self) -> Option<Bytes> {
        self.ready.pop_front()
    }

    /// The block that is being received, or comes next.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Whether nothing of a block is held that has not come whole.
    #[cfg(test)]
    fn is_at_boundary(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::tiers::BLOCK_BYTES_MIN;
    use proptest::prelude::*;

    use super::*;

    fn place(data: &[u8]) -> ColdPlace {
        let mut sums = BlockSums::new(BLOCK_BYTES_MIN);
        for piece in data.chunks(10_007) {
            sums.update(piece);
        }
        ColdPlace {
            tier: "OSS".parse().unwrap(),
            size_bytes: data.len() as u64,
            piece_bytes: u64::from(BLOCK_BYTES_MIN),
            block_bytes: BLOCK_BYTES_MIN,
            names: Vec::new(),
            sums: sums.finish(),
        }
    }

    fn data(len: usize) -> Bytes {
        (0..len).map(|i| (i % 251) as u8 ^ (i >> 11) as u8).collect()
    }

    #[test]
    fn checksum_is_crc32c() {
        // The check value of CRC-32C (Castagnoli) in the catalogue of CRC algorithms.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn what_was_stored_comes_back_however_it_is_cut(len in 1usize..600_000, step in 1usize..400_000) {
            let data = data(len);
            let place = place(&data);
            let mut check = BlockCheck::new(&place, 0);
            let mut out = Vec::new();
            for piece in data.chunks(step) {
                check.push(data.slice_ref(piece)).unwrap();
                while let Some(block) = check.next_block() {
                    out.extend_from_slice(&block);
                }
            }
            prop_assert!(out == data);
            prop_assert!(check.is_at_boundary());
        }

        #[test]
        fn one_wrong_bit_is_found_and_nothing_of_its_block_given_out(len in 1usize..600_000, at in any::<prop::sample::Index>()) {
            let data = data(len);
            let place = place(&data);
            let mut wrong = data.to_vec();
            let at = at.index(len);
            wrong[at] ^= 1;
            let mut check = BlockCheck::new(&place, 0);
            let error = check.push(wrong.into()).unwrap_err();
            prop_assert_eq!(error.block, at / BLOCK_BYTES_MIN as usize);
            let mut good = 0;
            while let Some(block) = check.next_block() {
                good += block.len();
            }
            prop_assert_eq!(good, error.block * BLOCK_BYTES_MIN as usize);
        }
    }

    #[test]
    fn bytes_beyond_the_end_are_refused() {
        let data = data(10);
        let place = place(&data);
        let mut check = BlockCheck::new(&place, 0);
        check.push(data).unwrap();
        assert!(check.push(Bytes::from_static(b"x")).is_err());
    }
}
