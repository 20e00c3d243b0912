//! What the objects hold, and how what was read is checked.
//!
//! The content of an object follows from its key and the seed alone, so nothing has to be remembered in order to check
//! a GET: it is one pseudo-random pattern read in a circle from a place that the key decides. Sending it copies nothing
//! (bodies are slices of the pattern), and checking it is a `memcmp`, so a client that checks costs hardly more than
//! one that discards. The period is a prime: a block that a server put at another block's place never happens to match.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use holdfast_protocol::hash::{FNV_BASIS, SPLITMIX_STEP, fnv1a_from, mix64};
use http_body::{Body, Frame, SizeHint};

/// The largest prime below 1 MiB: large slices, in the processor's cache, and no multiple of any block size.
const PERIOD_BYTES: usize = 1_048_573;

/// A small generator of pseudo-random numbers (splitmix64), the same on every machine.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        let drawn = mix64(self.0);
        self.0 = self.0.wrapping_add(SPLITMIX_STEP);
        drawn
    }

    /// A number below `bound`, which must not be zero.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        // The bias is below 2^-32 for the bounds used here.
        self.next() % bound
    }
}

/// The pattern that all objects of a run are cut from. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    bytes: Bytes,
    seed: u64,
}

impl Pattern {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut bytes = Vec::with_capacity(PERIOD_BYTES + 8);
        while bytes.len() < PERIOD_BYTES {
            bytes.extend_from_slice(&random.next().to_le_bytes());
        }
        bytes.truncate(PERIOD_BYTES);
        Self { bytes: bytes.into(), seed }
    }

    /// Where in the circle the object `key` begins.
    fn start(&self, key: &str) -> usize {
        // Mixed after it is hashed: keys that differ in the last digit must not begin at neighbouring places.
        let hash = fnv1a_from(FNV_BASIS ^ self.seed, key.bytes());
        usize::try_from(Random::new(hash).below(PERIOD_BYTES as u64)).expect("below the period")
    }

    /// The content of `key`, as a request body of `size` bytes.
    pub(super) fn body(&self, key: &str, size: u64) -> BenchBody {
        BenchBody { circle: self.bytes.clone(), at: self.start(key), left: size }
    }

    /// A check of `key`'s content as it arrives.
    pub(super) fn check(&self, key: &str, size: u64) -> Check {
        Check { body: self.body(key, size) }
    }
}

/// A request body of known length that is read in a circle from one buffer.
#[derive(Clone, Debug)]
pub(super) struct BenchBody {
    circle: Bytes,
    at: usize,
    left: u64,
}

impl BenchBody {
    /// A body that is exactly `bytes`.
    pub(super) fn whole(bytes: Bytes) -> Self {
        let left = bytes.len() as u64;
        Self { circle: bytes, at: 0, left }
    }

    /// No body.
    pub(super) fn empty() -> Self {
        Self::whole(Bytes::new())
    }

    /// Bytes not yet taken.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// The next contiguous slice, at most `max` bytes; none at the end.
    fn take(&mut self, max: usize) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        let len = (self.circle.len() - self.at).min(max).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let slice = self.circle.slice(self.at..self.at + len);
        self.left -= len as u64;
        self.at = (self.at + len) % self.circle.len();
        Some(slice)
    }

    /// Writes what is left.
    pub(super) fn write_to(mut self, to: &mut impl io::Write) -> io::Result<()> {
        while let Some(slice) = self.take(usize::MAX) {
            to.write_all(&slice)?;
        }
        Ok(())
    }

    /// SHA-256 of what is left, in hex.
    pub(super) fn sha256_hex(&self) -> String {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        let mut rest = self.clone();
        while let Some(slice) = rest.take(usize::MAX) {
            context.update(&slice);
        }
        hex::encode(context.finish())
    }
}

impl Body for BenchBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.take(usize::MAX).map(|slice| Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Compares a response with what it has to be, slice by slice.
#[derive(Debug)]
pub(super) struct Check {
    body: BenchBody,
}

impl Check {
    /// Takes the next bytes of the response. False when they are not the object's, or more than it has.
    #[must_use]
    pub(super) fn matches(&mut self, mut got: &[u8]) -> bool {
        while !got.is_empty() {
            let Some(want) = self.body.take(got.len()) else { return false };
            if got[..want.len()] != want[..] {
                return false;
            }
            got = &got[want.len()..];
        }
        true
    }

    /// Whether the whole object has been seen.
    #[must_use]
    pub(super) fn is_complete(&self) -> bool {
        self.body.left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(mut body: BenchBody) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(slice) = body.take(usize::MAX) {
            all.extend_from_slice(&slice);
        }
        all
    }

    #[test]
    fn a_check_accepts_the_content_in_any_slicing() {
        let pattern = Pattern::new(7);
        let size = 3 * PERIOD_BYTES as u64 + 11;
        let content = collect(pattern.body("k", size));
        assert_eq!(content.len() as u64, size);
        for step in [1_000_003, 65_536, 4_097] {
            let mut check = pattern.check("k", size);
            assert!(content.chunks(step).all(|slice| check.matches(slice)));
            assert!(check.is_complete());
        }
    }

    #[test]
    fn a_check_refuses_a_flipped_bit_a_swapped_block_a_short_and_a_long_body() {
        let pattern = Pattern::new(7);
        let size = 4 << 20;
        let content = collect(pattern.body("k", size));

        let mut flipped = content.clone();
        flipped[3_000_000] ^= 1;
        assert!(!pattern.check("k", size).matches(&flipped));

        let mut swapped = content.clone();
        swapped[..2 << 20].rotate_left(1 << 20);
        assert!(!pattern.check("k", size).matches(&swapped));

        let mut short = pattern.check("k", size);
        assert!(short.matches(&content[..content.len() - 1]));
        assert!(!short.is_complete());

        let mut long = content;
        long.push(0);
        assert!(!pattern.check("k", size).matches(&long));
    }

    #[test]
    fn keys_and_seeds_change_the_content() {
        let one = collect(Pattern::new(1).body("a/1", 64));
        assert_ne!(one, collect(Pattern::new(1).body("a/2", 64)));
        assert_ne!(one, collect(Pattern::new(2).body("a/1", 64)));
        assert_eq!(one, collect(Pattern::new(1).body("a/1", 64)));
    }
}
