//! Routes: how they are read, and where keys go while brokers are missing.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

fn route(text: &str) -> Route {
    let data: RouteData = serde_json::from_slice(&quote_numeric_names(text.as_bytes())).expect("a route");
    data.into()
}

const TWO: &str = r#"{"brokerDatas":[{"brokerAddrs":{0:"10.0.0.1:10911",1:"10.0.0.2:10911"},"brokerName":"a","cluster":"c"},
    {"brokerAddrs":{0:"10.0.0.3:10911"},"brokerName":"b","cluster":"c"}],"filterServerTable":{},
    "queueDatas":[{"brokerName":"b","perm":6,"readQueueNums":2,"topicSysFlag":0,"writeQueueNums":2},
    {"brokerName":"a","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":3}]}"#;
const ONE: &str = r#"{"brokerDatas":[{"brokerAddrs":{0:"10.0.0.1:10911"},"brokerName":"a"}],
    "queueDatas":[{"brokerName":"a","perm":6,"readQueueNums":4,"writeQueueNums":3}]}"#;

#[test]
fn routes_of_name_servers_are_read() {
    let route = route(TWO);
    assert_eq!((route.write.len(), route.read.len()), (5, 6));
    assert_eq!(route.masters[&Arc::from("a")], "10.0.0.1:10911");
    let mut used: Vec<_> = (0..200).map(|n| route.queue_of(&format!("key-{n}")).expect("a queue")).collect();
    used.sort();
    used.dedup();
    assert_eq!(used.len(), 5, "every queue is used");
}

#[test]
fn partitions_of_the_outbox_have_few_queues_and_all_queues_as_many_keys() {
    for count in [1, 3, 8, 16, 40, 64] {
        let route = Route { write: (0..count).map(|queue| (Arc::from("a"), queue)).collect(), ..Route::default() };
        let mut queues = vec![std::collections::BTreeSet::new(); usize::from(PARTITIONS)];
        let mut keys = vec![0; count as usize];
        for n in 0..32_000 {
            let key = format!("bucket/some/key-{n}");
            let place = route.place_of(&key).expect("there are queues");
            queues[usize::from(partition_of(key.as_bytes()))].insert(place);
            keys[place] += 1;
        }
        let most = queues.iter().map(|queues| queues.len()).max().expect("partitions");
        assert!(most <= count as usize / usize::from(PARTITIONS) + 2, "{most} of {count} for one partition");
        let (least, most) = (keys.iter().min().expect("queues"), keys.iter().max().expect("queues"));
        assert!(most < &(least * 2), "{count} queues: {least} to {most} keys");
    }
}

#[test]
fn an_answer_does_not_decide_how_much_memory_a_route_takes() {
    let queue = r#"{"brokerName":"a","perm":6,"readQueueNums":2147483647,"writeQueueNums":2147483647}"#;
    let text = format!(r#"{{"brokerDatas":[],"queueDatas":[{}]}}"#, vec![queue; 20_000].join(","));
    let route = route(&text);
    assert_eq!((route.write.len(), route.read.len()), (QUEUES_IN_ROUTE_MAX, QUEUES_IN_ROUTE_MAX));
}

#[tokio::test(start_paused = true)]
async fn keys_of_a_missing_broker_wait_for_it_and_then_move() {
    let routes = Routes::new();
    let before = routes.learn("topic", route(TWO));
    let key = (0..).map(|n| format!("key-{n}")).find(|key| before.queue_of(key).expect("a queue").1 == &Arc::from("b"));
    let key = key.expect("a key of that broker");
    let without = routes.learn("topic", route(ONE));
    assert!(matches!(without.queue_of(&key), Err(EventError::Unavailable(_))), "it waits");
    tokio::time::advance(MISSING_GRACE / 2).await;
    let back = routes.learn("topic", route(TWO));
    assert_eq!(back.queue_of(&key), before.queue_of(&key));
    routes.learn("topic", route(ONE));
    tokio::time::advance(MISSING_GRACE).await;
    let moved = routes.learn("topic", route(ONE));
    assert_eq!(moved.queue_of(&key).expect("a queue").1, &Arc::from("a"));
}

#[tokio::test(start_paused = true)]
async fn each_missing_broker_is_waited_for_from_when_it_went() {
    let routes = Routes::new();
    let learn = |brokers: &[&str]| {
        let write = brokers.iter().map(|broker| (Arc::from(*broker), 0)).collect();
        let learned = routes.learn("topic", Route { write, ..Route::default() });
        learned.write.iter().map(|(broker, _)| broker.to_string()).collect::<String>()
    };
    learn(&["a", "b", "c"]);
    assert_eq!(learn(&["b", "c"]), "abc");
    tokio::time::advance(MISSING_GRACE / 2).await;
    assert_eq!(learn(&["c"]), "abc");
    tokio::time::advance(MISSING_GRACE / 2).await;
    // The name servers know of the topic no more.
    let there = BTreeMap::from([("c".to_owned(), "10.0.0.9:10911".to_owned())]);
    assert_eq!(routes.waits_for("topic", &there), Some("b".into()));
    assert_eq!(learn(&["c"]), "bc", "a was missing for long, and b was not");
    tokio::time::advance(MISSING_GRACE / 2).await;
    assert_eq!(learn(&["c"]), "c");
}

fn fixed(text: &str, topic_queues: u32) -> EventResult<Route> {
    let brokers = vec!["b".to_owned(), "a".to_owned()];
    let options = RocketMqOptions { brokers, topic_queues, ..RocketMqOptions::new(Vec::new()) };
    let mut route = route(text);
    route.fix("topic", &options)?;
    Ok(route)
}

#[tokio::test(start_paused = true)]
async fn named_brokers_have_the_same_queues_on_a_node_that_starts_while_one_of_them_is_missing() {
    let whole = fixed(TWO, 2).expect("a route");
    assert_eq!(whole.write.len(), 4);
    let routes = Routes::new();
    for _ in 0..2 {
        let learned = routes.learn("topic", fixed(ONE, 2).expect("a route"));
        assert_eq!(learned.write, whole.write);
        for key in (0..100).map(|n| format!("key-{n}")) {
            let (_, broker, queue) = whole.queue_of(&key).expect("a queue");
            match learned.queue_of(&key) {
                Ok((_, same, number)) => assert_eq!((same, number), (broker, queue)),
                Err(error) => assert!(**broker == *"b" && matches!(error, EventError::Unavailable(_)), "{error}"),
            }
        }
        // However long it is missing.
        tokio::time::advance(MISSING_GRACE).await;
    }
    assert_eq!(routes.learn("topic", fixed(TWO, 2).expect("a route")).masters.len(), 2);
}

#[test]
fn topic_with_fewer_queues_than_are_configured_is_told() {
    let told = fixed(TWO, 3).expect_err("b has two").to_string();
    assert!(told.contains("2 queues at the broker b") && told.contains("events.topic_queues"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn topic_is_not_made_elsewhere_while_its_broker_is_waited_for() {
    let routes = Routes::new();
    let there = |broker: &str| BTreeMap::from([(broker.to_owned(), "10.0.0.9:10911".to_owned())]);
    assert_eq!(routes.waits_for("topic", &there("b")), None, "nothing is known of it");
    routes.learn("topic", route(ONE));
    assert_eq!(routes.waits_for("topic", &there("a")), None, "it was deleted there");
    assert_eq!(routes.waits_for("topic", &there("b")), Some("a".into()));
    tokio::time::advance(MISSING_GRACE).await;
    assert_eq!(routes.waits_for("topic", &there("b")), None, "nothing else would ever deliver");
    let moved = routes.learn("topic", route(&ONE.replace(r#""a""#, r#""b""#)));
    assert!(moved.write.iter().all(|(broker, _)| **broker == *"b"));
}

#[test]
fn topic_that_can_only_be_read_is_told_from_one_that_nobody_has() {
    let told = |text: &str| route(text).queue_of("key").expect_err("nobody takes it").to_string();
    let read_only = told(&ONE.replace(r#""perm":6"#, r#""perm":4"#));
    assert!(read_only.contains("brokerPermission"), "{read_only}");
    assert!(told(r#"{"brokerDatas":[],"queueDatas":[]}"#).contains("no broker takes messages"));
}

/// An operator has closed it there: it must not be opened again.
#[test]
fn topic_that_may_not_even_be_read_is_there_all_the_same() {
    let closed = route(&ONE.replace(r#""perm":6"#, r#""perm":0"#));
    assert!(closed.read.is_empty() && closed.is_at("a") && !closed.is_at("b"));
}

#[test]
fn what_is_in_no_order_goes_to_a_broker_that_is_there() {
    let (whole, without) = (fixed(TWO, 2).expect("a route"), fixed(ONE, 2).expect("a route"));
    for key in (0..100).map(|n| format!("key-{n}")) {
        assert_eq!(whole.queue_of_any(&key), whole.queue_of(&key));
        assert_eq!(without.queue_of_any(&key).expect("there is one").1, &Arc::from("a"));
    }
    assert!(Route::default().queue_of_any("key").is_err());
}

/// Brokers work without name servers, also without those that hang.
#[tokio::test]
async fn who_knows_a_route_does_not_wait_for_name_servers_that_do_not_answer() {
    const LONG: Duration = Duration::from_secs(3_600);
    // The kernel takes connections, and nobody reads.
    let silent = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let mut options = RocketMqOptions::new(vec![silent.local_addr().expect("an address").to_string()]);
    options.request_timeout = LONG;
    let (connections, routes) = (Connections::new(options), Routes::new());
    let known = routes.learn("topic", route(ONE));
    for _ in 0..2 {
        routes.doubt("topic");
        let asked = routes.of(&connections, "topic", Instant::now() + LONG);
        let found = tokio::time::timeout(Duration::from_secs(60), asked).await.expect("it goes on without them");
        assert_eq!(found.expect("a route"), known);
    }
}

/// Answers whatever it is asked, by the code of the request.
async fn serve(listener: TcpListener, answer_to: impl Fn(i32) -> String) {
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut buffer = BytesMut::new();
    while let Ok(1..) = stream.read_buf(&mut buffer).await {
        while let Some(asked) = Command::decode(&mut buffer).expect("a frame") {
            let answer = Command { opaque: asked.opaque, is_answer: true, ..Command::new(response::SUCCESS) };
            let body = answer_to(asked.code).into_bytes();
            stream.write_all(&answer.body(body).encode()).await.expect("it is read");
        }
    }
}

#[tokio::test]
async fn name_server_that_hangs_leaves_time_for_the_next_one() {
    let silent = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let other = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let addr = |listener: &TcpListener| listener.local_addr().expect("an address").to_string();
    // A part of it is what the other one has, more than a busy machine stands still for.
    let time = Duration::from_secs(20);
    let mut options = RocketMqOptions::new(vec![addr(&silent), addr(&other)]);
    options.request_timeout = time;
    tokio::spawn(serve(other, |_| ONE.to_owned()));
    let found = Routes::new().of(&Connections::new(options), "topic", Instant::now() + time).await;
    assert_eq!(found.expect("a route").write.len(), 3);
}

#[tokio::test]
async fn broker_that_hangs_does_not_keep_a_topic_from_the_next_one() {
    let silent = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let other = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let addr = |listener: &TcpListener| listener.local_addr().expect("an address").to_string();
    // A part of it is what the other one has, more than a busy machine stands still for.
    let time = Duration::from_secs(20);
    let mut options = RocketMqOptions::new(vec![addr(&other)]);
    options.request_timeout = time;
    options.brokers = ["a", "b", "c"].map(str::to_owned).into();
    options.topic_queues = 3;
    let broker =
        |name: &str, addr: String| format!(r#""{name}":{{"brokerName":"{name}","brokerAddrs":{{0:"{addr}"}}}}"#);
    let (b, c) = (broker("b", addr(&silent)), broker("c", addr(&other)));
    let cluster = format!(r#"{{"brokerAddrTable":{{{b},{c}}}}}"#);
    // Name server and broker in one.
    tokio::spawn(serve(other, move |code| match code {
        request::GET_CLUSTER => cluster.clone(),
        request::UPDATE_AND_CREATE_TOPIC => String::new(),
        _ => ONE.to_owned(),
    }));
    let found = Routes::new().of(&Connections::new(options), "topic", Instant::now() + time).await.expect("a route");
    let there: Vec<_> = found.masters.keys().map(|broker| &**broker).collect();
    assert_eq!(there, ["a", "c"]);
    assert_eq!(found.write.len(), 9, "keys of b wait for it");
}
