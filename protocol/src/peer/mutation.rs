//! The fuzz targets' entry points in CI: arbitrary bytes, and good frames with a few bytes changed. Prints its seed;
//! `HOLDFAST_TEST_SEED` replays it.

use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use super::enrol::{EnrolAnswer, EnrolRequest, Enrolled};
use super::*;
use crate::cluster::{ClusterId, Epoch, NodeId, ShardId};
use crate::ids::ChunkId;

const ROUNDS: usize = 20_000;

fn good_frames(rng: &mut StdRng) -> Vec<Vec<u8>> {
    let (shard, epoch, chunk) = (ShardId(rng.random()), Epoch(rng.random()), ChunkId(rng.random()));
    let text = |rng: &mut StdRng| -> String { (0..rng.random_range(0..40)).map(|_| rng.random::<char>()).collect() };
    let reason = text(rng);
    let detail = text(rng);
    let requests = [
        Request::Write { shard, epoch, chunk, size_bytes: rng.random_range(1..=16 << 20), label_bytes: 3 },
        Request::Read { chunk, start: 0, end: rng.random_range(0..=16 << 20) },
        Request::Probe { chunks: vec![chunk; rng.random_range(0..5)] },
        Request::List { shard, epoch, after: rng.random::<bool>().then_some(chunk), limit: 7 },
        Request::Report { report: WireReport::JoinFailed { shard, since: epoch, reason } },
    ];
    let answers = [
        Answer::Listed { chunks: vec![WireInfo(chunk, rng.random()); rng.random_range(0..5)] },
        Answer::Probed { sizes_bytes: vec![Some(rng.random()), None] },
        Answer::Digest(WireDigest { chunks: rng.random(), bytes: rng.random(), parts: vec![rng.random(); 256] }),
        Answer::Error(WireError::Corrupt { chunk, detail }),
    ];
    let enrolled = Enrolled {
        cluster: ClusterId(rng.random()),
        certificate_pem: "pem".into(),
        ca_certificate_pem: String::new(),
        ca_key_pem: String::new(),
        secret_hex: "0".repeat(64),
    };
    let mut frames: Vec<_> = requests.iter().map(encode).chain(answers.iter().map(encode)).collect();
    frames.push(encode(&EnrolRequest { node: NodeId(rng.random()), csr_pem: "csr".into() }));
    frames.push(encode(&EnrolAnswer::Enrolled(enrolled)));
    frames.into_iter().collect::<Result<_, _>>().unwrap()
}

fn try_all(bytes: &[u8]) {
    fuzz::request(bytes);
    fuzz::answer(bytes);
    fuzz::enrol(bytes);
    fuzz::block(bytes);
}

#[test]
fn damaged_frames_are_errors_and_never_panics() {
    let seed: u64 = std::env::var("HOLDFAST_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("HOLDFAST_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rounds = 0;
    while rounds < ROUNDS {
        for mut frame in good_frames(&mut rng) {
            try_all(&frame);
            match rng.random_range(0..4) {
                0 => {
                    let at = rng.random_range(0..frame.len());
                    frame[at] = rng.random();
                }
                1 => {
                    let at = rng.random_range(PREFIX_BYTES..frame.len());
                    frame[at] = *b"{}[]\",:0-9e\\u".get(rng.random_range(0..13)).unwrap();
                }
                2 => {
                    // A body cut or prolonged, with a length that says so.
                    let length = rng.random_range(PREFIX_BYTES..frame.len() + 20);
                    frame.resize(length, b' ');
                    frame[4..PREFIX_BYTES].copy_from_slice(&((length - PREFIX_BYTES) as u32).to_be_bytes());
                }
                _ => rng.fill_bytes(&mut frame),
            }
            try_all(&frame);
            rounds += 1;
        }
    }
}
