//! Damaged copies of good bytes: what the fuzz targets' bodies are run on where there is no libFuzzer.
//!
//! Good bytes with a few places changed get further into a parser than random ones. The runs are the same each time;
//! with `HOLDFAST_TEST_SEED` they are others, and with `HOLDFAST_TEST_FUZZ_ROUNDS` there are more of them.

use std::str::FromStr;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use super::Target;

/// Changes that are made to one copy, at most.
const CHANGES_MAX: usize = 5;
/// How much longer a copy may become than the longest good bytes.
const LENGTHENED_BYTES_MAX: usize = 4096;

/// Numbers at which parsers go wrong.
const NUMBERS: [u64; 14] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// Words that mean something in texts.
const WORDS: [&[u8]; 22] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b"\\u0000",
    b":",
    b",",
    b"<",
    b">",
    b"</",
    b"&",
    b"%",
    b"=",
    b"\r\n",
    b"\0",
    b"null",
    b"-1",
    b"1e999",
    b"\xc3\xa9",
    b"\xff",
];

fn variable<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Says which bytes did it, should the body of a target panic.
struct Culprit<'a>(&'static str, &'a [u8]);

impl Drop for Culprit<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("fuzz target {} fails on b\"{}\"", self.0, self.1.escape_ascii());
        }
    }
}

fn call(target: &Target, bytes: &[u8]) {
    let _culprit = Culprit(target.name, bytes);
    (target.body)(bytes);
}

/// Runs each target on its seeds, and on `rounds` damaged copies of them.
///
/// # Panics
/// When a target fails, or has no seeds.
pub fn run(targets: &[Target], rounds: usize) {
    let seed = variable("HOLDFAST_TEST_SEED", 1_u64);
    let rounds = variable("HOLDFAST_TEST_FUZZ_ROUNDS", rounds);
    println!("HOLDFAST_TEST_SEED={seed}");
    for target in targets {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        let bytes_max = seeds.iter().map(Vec::len).max().unwrap_or(0) + LENGTHENED_BYTES_MAX;
        call(target, &[]);
        seeds.iter().for_each(|bytes| call(target, bytes));
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..rounds {
            let mut bytes = seeds.choose(&mut rng).cloned().unwrap_or_default();
            for _ in 0..rng.random_range(1..=CHANGES_MAX) {
                change(&mut bytes, &seeds, &mut rng);
            }
            bytes.truncate(bytes_max);
            call(target, &bytes);
        }
    }
}

/// A run of bytes somewhere, short more often than long.
fn run_of(bytes: &[u8], rng: &mut StdRng) -> std::ops::Range<usize> {
    let at = rng.random_range(0..=bytes.len());
    let left = bytes.len() - at;
    let longest = if rng.random() { left.min(8) } else { left };
    at..at + rng.random_range(0..=longest)
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut StdRng) {
    let at = rng.random_range(0..=bytes.len());
    match rng.random_range(0..11) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << rng.random_range(0..8);
            }
        }
        1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = rng.random();
            }
        }
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(run_of(bytes, rng))),
        4 => {
            let copied = bytes[run_of(bytes, rng)].to_vec();
            drop(bytes.splice(at..at, copied));
        }
        5 => {
            let other = seeds.choose(rng).map(Vec::as_slice).unwrap_or_default();
            drop(bytes.splice(run_of(bytes, rng), other[run_of(other, rng)].iter().copied()));
        }
        6 => {
            let word = WORDS.choose(rng).copied().unwrap_or_default();
            drop(bytes.splice(at..at, word.iter().copied()));
        }
        7 => binary_number(bytes, at, rng),
        8 => decimal_number(bytes, at, rng),
        9 => {
            let range = run_of(bytes, rng);
            rng.fill_bytes(&mut bytes[range]);
        }
        // Longer than it says, or a repetition without an end in sight.
        _ => {
            let run = bytes[run_of(bytes, rng)].to_vec();
            for _ in 0..rng.random_range(0..64) {
                if bytes.len() + run.len() <= LENGTHENED_BYTES_MAX {
                    drop(bytes.splice(at.min(bytes.len())..at.min(bytes.len()), run.iter().copied()));
                }
            }
        }
    }
}

/// Overwrites a number of 1 to 8 bytes, of either order.
fn binary_number(bytes: &mut [u8], at: usize, rng: &mut StdRng) {
    let number = NUMBERS.choose(rng).copied().unwrap_or(0);
    let width = [1, 2, 4, 8].choose(rng).copied().unwrap_or(1);
    let Some(place) = bytes.get_mut(at..at + width) else { return };
    if rng.random() {
        place.copy_from_slice(&number.to_le_bytes()[..width]);
    } else {
        place.copy_from_slice(&number.to_be_bytes()[8 - width..]);
    }
}

/// Puts another number where the next digits are.
fn decimal_number(bytes: &mut Vec<u8>, at: usize, rng: &mut StdRng) {
    let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit).map(|found| at + found) else { return };
    let digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = NUMBERS.choose(rng).copied().unwrap_or(0);
    let text = if rng.random_range(0..8) == 0 { format!("{number}{number}") } else { number.to_string() };
    drop(bytes.splice(start..start + digits, text.into_bytes()));
}
