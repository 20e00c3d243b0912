//! Clients that are too slow, too large or too many.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_node::http::Limits;
use holdfast_node::http::body::BodyError;
use holdfast_node::http::pace::Pace;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

const QUICK: Pace = Pace { window: Duration::from_millis(500), min_bytes: 1000 };

/// Far longer than any limit here, shorter than the defaults.
const PATIENCE: Duration = Duration::from_secs(25);

fn limits() -> Limits {
    Limits { pace: QUICK, ..Limits::default() }
}

/// Reads the whole request body and answers its length, or 408.
fn counting() -> Handler<impl Fn(http::Request<holdfast_node::http::RequestBody>) -> Answer + Clone + Send + 'static> {
    Handler(|request: http::Request<holdfast_node::http::RequestBody>| {
        Box::pin(async move {
            let mut response = match request.into_body().collect().await {
                Ok(body) => Response::new(Slices::one(Bytes::from(body.to_bytes().len().to_string()))),
                Err(BodyError::TooSlow) => {
                    let mut response = Response::new(Slices::one(Bytes::new()));
                    *response.status_mut() = StatusCode::REQUEST_TIMEOUT;
                    response
                }
                Err(BodyError::Broken(_)) => Response::new(Slices::one(Bytes::from_static(b"broken"))),
            };
            response.headers_mut().insert("x-test", http::HeaderValue::from_static("1"));
            Ok(response)
        }) as Answer
    })
}

/// Answers 400 and leaves the body where it is.
fn refusing() -> Handler<impl Fn(http::Request<holdfast_node::http::RequestBody>) -> Answer + Clone + Send + 'static> {
    Handler(|_: http::Request<holdfast_node::http::RequestBody>| {
        let mut response = Response::new(Slices::one(Bytes::from_static(b"no")));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        Box::pin(async { Ok(response) }) as Answer
    })
}

async fn closes(stream: &mut tokio::net::TcpStream) {
    let mut rest = vec![];
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    read.expect("the connection stays open").ok();
}

#[test]
fn body_sent_at_a_good_pace_is_read() {
    // Any of the pieces is enough for a window.
    let pace = Pace { window: Duration::from_secs(1), min_bytes: 100 };
    let send = async |stream: &mut tokio::net::TcpStream, longest: &mut Duration| {
        stream.write_all(b"PUT / HTTP/1.1\r\nhost: test\r\ncontent-length: 5000\r\n\r\n").await?;
        for _ in 0..10 {
            let before = Instant::now();
            // Its pace: that is what is tried.
            tokio::time::sleep(Duration::from_millis(230)).await;
            stream.write_all(&[1; 500]).await?;
            *longest = before.elapsed().max(*longest);
        }
        head(stream).await
    };
    run(async {
        let limits = Limits { pace, ..Limits::default() };
        let server = start(config(best_plane(), limits), counting());
        for _ in 0..10 {
            let (begun, mut longest) = (Instant::now(), Duration::ZERO);
            let answer = send(&mut connect(&server).await, &mut longest).await;
            assert!(begun.elapsed() > 2 * pace.window || answer.is_err());
            if matches!(answer, Ok((200, 4))) {
                return;
            }
            // A sender to whom the machine gave no time for a while was too slow.
            assert!(longest > pace.window / 2, "{answer:?} though no piece was later than {longest:?}");
        }
        panic!("the machine is too busy for any pace");
    });
}

#[test]
fn sender_that_stops_or_drips_is_answered_408_and_cut() {
    run(async {
        let server = start(config(best_plane(), limits()), counting());
        for drip in [false, true] {
            let stream = connect(&server).await;
            let (mut reader, mut writer) = stream.into_split();
            writer.write_all(b"PUT / HTTP/1.1\r\nhost: test\r\ncontent-length: 50000\r\n\r\nx").await.unwrap();
            let dripping = tokio::spawn(async move {
                while drip && writer.write_all(b"x").await.is_ok() {
                    // It drips.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                writer
            });
            let answer = tokio::time::timeout(PATIENCE, head(&mut reader)).await.expect("no answer to a slow sender");
            assert_eq!(answer.unwrap().0, 408);
            let mut rest = vec![];
            let read = tokio::time::timeout(PATIENCE, reader.read_to_end(&mut rest)).await;
            read.expect("the connection stays open").ok();
            dripping.abort();
        }
    });
}

#[test]
fn reader_that_stops_is_cut_and_its_slices_are_given_back() {
    let segment = Arc::new(Segment::new());
    run(async {
        for (_, data_plane) in planes() {
            let server = start(config(data_plane, limits()), ranges(&segment));
            let mut stream = connect(&server).await;
            ask(&mut stream, &format!("/0/{}", 64 << 20)).await;
            head(&mut stream).await.unwrap();
            eventually("the reader is cut", || segment.lent() == 0 && server.connections() == 0).await;
        }
    });
}

#[test]
fn head_must_arrive_in_time() {
    run(async {
        let limits = Limits { head_timeout: Duration::from_millis(400), ..Limits::default() };
        let server = start(config(best_plane(), limits), counting());
        let mut silent = connect(&server).await;
        let mut slow = connect(&server).await;
        slow.write_all(b"GET / HTTP/1.1\r\nhost: te").await.unwrap();
        closes(&mut silent).await;
        closes(&mut slow).await;
        eventually("the connections are closed", || server.connections() == 0).await;
    });
}

#[test]
fn oversized_heads_are_refused() {
    run(async {
        let server = start(config(best_plane(), Limits::default()), counting());
        let long = format!("GET / HTTP/1.1\r\nhost: test\r\nx-long: {}\r\n\r\n", "x".repeat(40 << 10));
        let many = format!("GET / HTTP/1.1\r\nhost: test\r\n{}\r\n", "x-many: 1\r\n".repeat(200));
        for request in [long, many] {
            let mut stream = connect(&server).await;
            stream.write_all(request.as_bytes()).await.unwrap();
            assert_eq!(head(&mut stream).await.unwrap().0, 431);
            closes(&mut stream).await;
        }
        let mut stream = connect(&server).await;
        stream.write_all(b"this is not http\r\n\r\n").await.unwrap();
        assert_eq!(head(&mut stream).await.unwrap().0, 400);
    });
}

#[test]
fn connections_beyond_the_limit_wait_for_a_place() {
    run(async {
        let limits = Limits { connections_max: 2, ..Limits::default() };
        let server = start(config(best_plane(), limits), counting());
        let mut places = served(&server, 2).await;
        assert_eq!(server.connections(), 2);
        let mut third = connect(&server).await;
        ask(&mut third, "/").await;
        let early = tokio::time::timeout(Duration::from_millis(100), third.readable()).await;
        assert!(early.is_err(), "the third connection was served beyond the limit");
        places.clear();
        let answer = tokio::time::timeout(PATIENCE, head(&mut third)).await.expect("the place was not passed on");
        assert_eq!(answer.unwrap().0, 200);
    });
}

#[test]
fn connections_beyond_the_share_of_an_address_are_closed_and_others_are_served() {
    run(async {
        for (name, data_plane) in planes() {
            let limits = Limits { connections_per_address: 2, ..Limits::default() };
            let server = start(config(data_plane, limits), counting());
            let mut places = served(&server, 2).await;
            let mut third = connect(&server).await;
            closes(&mut third).await;
            let other = tokio::net::TcpSocket::new_v4().unwrap();
            other.bind(([127, 0, 0, 2], 0).into()).unwrap();
            let mut other = other.connect(server.local_addr()).await.unwrap();
            ask(&mut other, "/").await;
            assert_eq!(head(&mut other).await.unwrap().0, 200, "{name}: another address");
            places.clear();
            eventually("the places are given back", || server.connections() == 1).await;
            let mut next = connect(&server).await;
            ask(&mut next, "/").await;
            assert_eq!(head(&mut next).await.unwrap().0, 200, "{name}: a place was given back");
        }
    });
}

#[test]
fn exempt_addresses_may_have_more_connections() {
    run(async {
        let exempt_addresses = vec!["127.0.0.1".parse().unwrap()];
        let limits = Limits { connections_per_address: 1, exempt_addresses, ..Limits::default() };
        let server = start(config(best_plane(), limits), counting());
        drop(served(&server, 3).await);
    });
}

#[test]
fn an_answer_before_the_body_has_come_is_not_lost_to_a_reset() {
    run(async {
        let server = start(config(best_plane(), Limits::default()), refusing());
        for _ in 0..10 {
            let begun = Instant::now();
            let mut stream = connect(&server).await;
            stream.write_all(b"PUT / HTTP/1.1\r\nhost: test\r\ncontent-length: 4000000\r\n\r\n").await.unwrap();
            // The server has answered and closed before any of the body is sent.
            stream.readable().await.unwrap();
            let sent = stream.write_all(&vec![1; 4_000_000]).await;
            // A server does not wait for long for a client to whom the machine gave no time.
            if sent.is_err() && begun.elapsed() > Duration::from_secs(1) {
                continue;
            }
            sent.unwrap();
            assert_eq!(head(&mut stream).await.unwrap().0, 400);
            closes(&mut stream).await;
            return;
        }
        panic!("the machine is too busy to send a body in time");
    });
}

#[test]
fn an_empty_body_that_was_to_be_continued_ends_the_connection() {
    run(async {
        let server = start(config(best_plane(), Limits::default()), counting());
        for (length, closed) in [(0, true), (3, false)] {
            let mut stream = connect(&server).await;
            let head =
                format!("PUT / HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&b"abc"[..length]).await.unwrap();
            let mut answer = vec![];
            while !answer.ends_with(length.to_string().as_bytes()) {
                assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
            }
            let answer = String::from_utf8(answer).unwrap();
            assert_eq!(answer.contains("connection: close"), closed, "{answer}");
            assert_eq!(answer.contains("100 Continue"), !closed, "{answer}");
        }
    });
}

#[test]
fn an_answer_that_did_not_wait_for_the_body_announces_the_end_of_the_connection() {
    run(async {
        let server = start(config(best_plane(), Limits::default()), refusing());
        // Not sent, sent in part, and there already; with and without waiting for 100.
        for (expect, sent) in [(true, 0), (true, 3), (false, 0), (false, 1), (false, 3)] {
            let mut stream = connect(&server).await;
            let expect = if expect { "expect: 100-continue\r\n" } else { "" };
            let head = format!("PUT / HTTP/1.1\r\nhost: test\r\n{expect}content-length: 3\r\n\r\n");
            stream.write_all(&[head.as_bytes(), &b"abc"[..sent]].concat()).await.unwrap();
            let mut answer = vec![];
            while !answer.ends_with(b"no") {
                assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
            }
            let answer = String::from_utf8(answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
            assert!(answer.contains("connection: close"), "{expect:?}, {sent} sent: {answer}");
            closes(&mut stream).await;
        }
    });
}

#[test]
fn a_body_that_was_read_keeps_the_connection() {
    run(async {
        let server = start(config(best_plane(), Limits::default()), counting());
        let mut stream = connect(&server).await;
        for body in ["content-length: 3\r\n\r\nabc", "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"] {
            stream.write_all(format!("PUT / HTTP/1.1\r\nhost: test\r\n{body}").as_bytes()).await.unwrap();
            let mut answer = vec![];
            while !answer.ends_with(b"\r\n\r\n3") {
                assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
            }
            assert!(!String::from_utf8(answer).unwrap().contains("connection: close"));
        }
    });
}
