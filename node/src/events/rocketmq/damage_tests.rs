//! What brokers and name servers send, damaged.

use bytes::BytesMut;
use holdfast_protocol::fuzz::{Target, damage};

use super::message::{Stored, properties_of, stored_samples};
use super::wire::{Command, quote_numeric_names};
use super::{pop, pull, routes};

/// Rounds a target: a second in all.
const ROUNDS: usize = 3_000;

fn frame(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    // As a connection does, until nothing whole is left.
    while let Ok(Some(command)) = Command::decode(&mut buffer) {
        let mut again = BytesMut::from(&command.encode()[..]);
        assert_eq!(Command::decode(&mut again).unwrap().unwrap(), command);
        assert!(again.is_empty());
    }
}

fn frames() -> Vec<Vec<u8>> {
    let answer = Command { opaque: 3, is_answer: true, remark: "why".into(), ..Command::new(0) };
    let answer = answer.field("popTime", 5).field("startOffsetInfo", "0 1 5;1 0 7").body(&b"body"[..]).encode();
    let java = br#"{"code":0,"extFields":{"queueId":"1"},"flag":1,"language":"JAVA","opaque":3,"serializeTypeCurrentRPC":"JSON","version":475}"#;
    let length = |plus: usize| ((java.len() + plus) as u32).to_be_bytes();
    vec![answer.to_vec(), [&length(4)[..], &length(0), java].concat(), [&answer[..], &answer].concat()]
}

fn messages(bytes: &[u8]) {
    for stored in Stored::all(bytes.to_vec().into()).unwrap_or_default() {
        if let Some(message) = stored.to_message() {
            properties_of(&message);
        }
    }
}

fn route(bytes: &[u8]) {
    let quoted = quote_numeric_names(bytes);
    assert!(quoted.len() >= bytes.len());
    if let Ok(route) = routes::route_from(bytes) {
        assert!(route.write.len() <= routes::QUEUES_IN_ROUTE_MAX && route.read.len() <= routes::QUEUES_IN_ROUTE_MAX);
        let _ = route.queue_of("key").map(|(address, ..)| address.len());
    }
}

fn routes() -> Vec<Vec<u8>> {
    let text = r#"{"brokerDatas":[{"brokerAddrs":{0:"10.0.0.1:10911",1:"10.0.0.2:10911"},"brokerName":"a","cluster":"c"}],
        "filterServerTable":{},"queueDatas":[{"brokerName":"a","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":3}]}"#;
    vec![text.into()]
}

fn texts(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    pop::read_texts(text);
    pull::read_texts(text);
}

#[test]
fn damaged_answers_are_refused_and_no_harm() {
    let texts_of = || ["0 1 5;1 0 7;2 3 4", "a/0=5,b/1=7", "broker|topic|1|42|0 1 2"].map(Vec::from).to_vec();
    damage::run(
        &[
            Target { name: "rocketmq_frame", body: frame, seeds: frames },
            Target { name: "rocketmq_messages", body: messages, seeds: stored_samples },
            Target { name: "rocketmq_route", body: route, seeds: routes },
            Target { name: "rocketmq_texts", body: texts, seeds: texts_of },
        ],
        ROUNDS,
    );
}
