//! The order in which every node lists its chunks, and what chunks add to the digest of their shard.
//!
//! Both are formats: nodes of different versions page through each other's lists and compare digests, and cursors of
//! walks outlive the process. They depend on a chunk's id and size alone, never on where it lies.

use crate::hash::{SPLITMIX_STEP, finish64, mix64};
use crate::ids::ChunkId;

/// A chunk's place in the list order: chunks are listed by `(place, id)`. Spreads time-ordered ids evenly.
pub fn place(id: &ChunkId) -> u64 {
    let (low, high) = id.0.split_at(8);
    let low = u64::from_le_bytes(low.try_into().expect("8 of 16 bytes"));
    let high = u64::from_le_bytes(high.try_into().expect("8 of 16 bytes"));
    finish64(low ^ high.wrapping_mul(SPLITMIX_STEP).rotate_left(31))
}

/// What a chunk adds, wrapping, to the sum of its part of the shard's digest: the id's halves and the size, mixed one
/// after another.
pub fn fingerprint(id: &ChunkId, size_bytes: u32) -> u64 {
    let id = u128::from_be_bytes(id.0);
    mix64(mix64(mix64((id >> 64) as u64) ^ id as u64) ^ u64::from(size_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failure here means that nodes of two versions see differences in every shard.
    #[test]
    fn place_and_fingerprint_never_change() {
        let id = ChunkId([0x65, 0x53, 0xf1, 0x00, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 9]);
        assert_eq!(format!("{:016x} {:016x}", place(&id), fingerprint(&id, 4096)), KNOWN);
        assert_ne!(fingerprint(&id, 4096), fingerprint(&id, 4097));
    }

    const KNOWN: &str = "cc8c7c7e09c3d28f 256357a4102caac8";
}
