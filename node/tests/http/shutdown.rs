//! The end of a server: what is at hand is finished, what does not end is cut, and nobody is left.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_node::http::server::Drained;
use holdfast_node::http::{DataPlane, Limits};
use holdfast_storage::io::uring::{self, UringIo};
use holdfast_storage::io::{BlockIo, OpenMode};
use http::Response;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::support::*;

/// Far longer than the tests take.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn request_at_hand_is_finished_and_idle_connections_are_closed() {
    run(async {
        for (plane, data_plane) in planes() {
            let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
            let (begin, wait) = (begun.clone(), go.clone());
            let handler = Handler(move |_| {
                let (begin, wait) = (begin.clone(), wait.clone());
                Box::pin(async move {
                    begin.notify_one();
                    wait.notified().await;
                    Ok(Response::new(Slices::one(Bytes::from_static(b"done"))))
                }) as Answer
            });
            let server = start(config(data_plane, Limits::default()), handler);
            let address = server.local_addr();
            let mut idle = connect(&server).await;
            let mut busy = connect(&server).await;
            ask(&mut busy, "/").await;
            begun.notified().await;
            eventually("both connections are accepted", || server.connections() == 2).await;
            let shutdown = tokio::spawn(server.shutdown(LONG));
            let mut rest = vec![];
            idle.read_to_end(&mut rest).await.unwrap();
            assert!(!shutdown.is_finished(), "{plane}: the server left a request behind");
            go.notify_one();
            assert_eq!(head(&mut busy).await.unwrap(), (200, 4));
            busy.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"done");
            assert_eq!(shutdown.await.unwrap(), Drained { in_time: true, all_left: true }, "{plane}");
            assert!(tokio::net::TcpStream::connect(address).await.is_err(), "{plane}: still listening");
        }
    });
}

#[test]
fn request_that_does_not_end_is_cut_at_the_deadline() {
    run(async {
        for (plane, data_plane) in planes() {
            let begun = Arc::new(Notify::new());
            let begin = begun.clone();
            let handler = Handler(move |_| {
                begin.notify_one();
                Box::pin(std::future::pending()) as Answer
            });
            let server = start(config(data_plane, Limits::default()), handler);
            let mut stream = connect(&server).await;
            ask(&mut stream, "/").await;
            begun.notified().await;
            let drained = server.shutdown(Duration::from_millis(50)).await;
            assert_eq!(drained, Drained { in_time: false, all_left: true }, "{plane}");
            let mut rest = vec![];
            let _ = stream.read_to_end(&mut rest).await;
            assert!(rest.is_empty());
        }
    });
}

#[test]
fn writes_on_the_thread_of_a_fast_reader_go_on() {
    run(async {
        if uring::probe().is_err() {
            return;
        }
        let segment = Arc::new(Segment::new());
        let pool = pool();
        let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let file = UringIo::new(&pool).unwrap().create(&temp.path().join("a"), OpenMode::Direct).unwrap();
        let (served, buffers) = (segment.clone(), pool.clone());
        let handler = Handler(move |request: http::Request<holdfast_node::http::RequestBody>| {
            if request.method() == http::Method::GET {
                let (start, len) = range_of(request.uri().path());
                let body = Slices::one(served.lend(start, len));
                return Box::pin(async move { Ok(Response::new(body)) }) as Answer;
            }
            let (file, buffers) = (file.clone(), buffers.clone());
            Box::pin(async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let mut buf = buffers.acquire(1 << 20).await;
                buf[..body.len()].copy_from_slice(&body);
                file.write_at(0, buf.freeze(), 0..body.len()).await.unwrap();
                file.sync_data().await.unwrap();
                Ok(Response::new(Slices::one(Bytes::new())))
            })
        });
        // One thread, so that readers and writers share it.
        let plane = DataPlane::PerCore { threads: 1, rings: Some(pool.clone()) };
        let server = start(config(plane, Limits::default()), handler);
        let address = server.local_addr();
        let readers: Vec<_> = (0..4)
            .map(|_| {
                tokio::spawn(async move {
                    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
                    let mut sink = vec![0; 1 << 20];
                    loop {
                        ask(&mut stream, &format!("/0/{}", 64 << 20)).await;
                        let (_, mut left) = head(&mut stream).await.unwrap();
                        while left > 0 {
                            left -= stream.read(&mut sink).await.unwrap() as u64;
                        }
                    }
                })
            })
            .collect();
        let mut stream = connect(&server).await;
        for _ in 0..20 {
            stream.write_all(b"PUT / HTTP/1.1\r\nhost: test\r\ncontent-length: 1048576\r\n\r\n").await.unwrap();
            stream.write_all(&vec![7; 1 << 20]).await.unwrap();
            let answer = tokio::time::timeout(LONG, head(&mut stream)).await;
            assert_eq!(answer.expect("a write starved").unwrap().0, 200);
        }
        readers.iter().for_each(tokio::task::JoinHandle::abort);
        drop(stream);
        assert_eq!(server.shutdown(LONG).await, Drained { in_time: true, all_left: true });
        assert!(pool.is_idle());
    });
}
