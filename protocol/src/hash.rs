//! Small hashes by which things are spread: over shards, partitions, rows of locks. No secret and no checksum is made
//! with them.
//!
//! They are formats: nodes of all versions must agree on them, so they never change.

/// Where FNV-1a begins.
pub const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// What the state of SplitMix64 moves on by at each step.
pub const SPLITMIX_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// FNV-1a of 64 bits. Its low bits are its weakest, and the last bytes change little: see [`fnv1a_folded`], or mix it.
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    fnv1a_from(FNV_BASIS, bytes)
}

/// [`fnv1a`] that begins elsewhere, for one function a seed.
pub fn fnv1a_from(basis: u64, bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(basis, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// [`fnv1a`], folded to 32 bits that are all good for a remainder.
pub fn fnv1a_folded(bytes: impl IntoIterator<Item = u8>) -> u32 {
    let hash = fnv1a(bytes);
    (hash ^ (hash >> 32)) as u32
}

/// One step of SplitMix64 from the state `value`: a bijection in which each input bit changes half of the output bits.
pub fn mix64(value: u64) -> u64 {
    finish64(value.wrapping_add(SPLITMIX_STEP))
}

/// The finaliser of SplitMix64. Zero stays zero.
pub fn finish64(value: u64) -> u64 {
    let mut z = value;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that the authors of FNV published.
    #[test]
    fn fnv1a_is_the_published_one() {
        for (text, hash) in [("", FNV_BASIS), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)] {
            assert_eq!(fnv1a(text.bytes()), hash, "{text}");
        }
        assert_eq!(fnv1a_folded("foobar".bytes()), 0x8594_4171 ^ 0xf739_67e8);
        assert_eq!(fnv1a_from(fnv1a("foo".bytes()), "bar".bytes()), fnv1a("foobar".bytes()));
    }

    /// The first numbers of SplitMix64 that begins at 1234567, as its authors' code prints them.
    #[test]
    fn mix64_is_a_step_of_splitmix64() {
        let state = 1_234_567_u64;
        assert_eq!(mix64(state), 6_457_827_717_110_365_317);
        assert_eq!(mix64(state.wrapping_add(SPLITMIX_STEP)), 3_203_168_211_198_807_973);
        assert_eq!(finish64(state.wrapping_add(SPLITMIX_STEP)), mix64(state));
    }
}
