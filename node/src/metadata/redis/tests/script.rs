//! The script that Redis runs against the model that was explored.

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::metadata::redis::entry::model::{Got, Model};
use crate::metadata::redis::entry::{Answer, Finish, Step};

/// The script does what the model that was explored does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_script_is_the_model() {
    let nodes = Nodes::start().await;
    let node = nodes.node(1).await;
    let server = until(node.core.link.reach(), |reach| reach.server.is_some()).await.server.unwrap();
    let seed: u64 = std::env::var("HOLDFAST_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("HOLDFAST_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let long = Duration::from_secs(600);
    let mut models: HashMap<u8, Model<String, Vec<u8>>> = HashMap::new();
    for _ in 0..4_000 {
        let at = rng.random_range(b'a'..b'd');
        let (key, name) = ([at], rng.random_range(0..3).to_string());
        let value = vec![rng.random_range(0..9)];
        let model = models.entry(at).or_default();
        let (step, expected) = match rng.random_range(0..100) {
            0..30 => {
                let expected = match model.get(0, name.clone()) {
                    Got::Value(value) => Answer::Value(value),
                    Got::Marked => Answer::Marked,
                    Got::Nothing(nonce) => Answer::Nothing(nonce),
                };
                (Step::Get { nonce: name, ttl: long }, expected)
            }
            30..50 => {
                let landed = model.fill(&name, value.clone());
                (Step::Fill { nonce: name, value, ttl: long }, Answer::Filled(landed))
            }
            50..70 => {
                model.mark(0, name.clone(), 1);
                (Step::Mark { token: name, ttl: long }, Answer::Begun)
            }
            70..99 => {
                let value = rng.random_bool(0.7).then_some(value);
                let finish = model.finish(0, &name, value.clone());
                (Step::Finish { token: name, value: value.map(|value| (value, long)) }, Answer::Finished(finish))
            }
            _ => {
                // A writer that died: its mark counts no more.
                let token = "dead".to_owned();
                model.mark(0, token.clone(), 0);
                let step = Step::Mark { token, ttl: Duration::from_millis(50) };
                let answer = node.core.link.step(&server, &key, &step).await.unwrap();
                assert_eq!(answer, Answer::Begun);
                // Another writer would have made the entry last.
                let entry = (at as char).to_string();
                if nodes.redis.command(&["PEXPIRE", &entry, "600000"]) == ":0" {
                    *model = Model::default();
                }
                // Its time passes, by the clock of the server.
                tokio::time::sleep(Duration::from_millis(60)).await;
                continue;
            }
        };
        let answer = node.core.link.step(&server, &key, &step).await.unwrap();
        assert_eq!(answer, expected, "{step:?}");
        let peeked = node.core.link.peek(&server, &key).await.unwrap();
        assert_eq!(peeked, model.value, "after {step:?}");
    }
    assert!(matches!(
        node.core.link.step(&server, b"new", &Step::Finish { token: "x".into(), value: None }).await,
        Ok(Answer::Finished(Finish::Lost))
    ));
}
