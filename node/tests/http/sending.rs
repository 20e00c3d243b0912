//! What is sent arrives, byte for byte, and large bodies are not copied on the way.

use std::collections::VecDeque;
use std::fs::Permissions;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_node::http::Limits;
use holdfast_node::http::pace::Pace;
use holdfast_node::http::tls::{Tls, TlsFiles};
use holdfast_storage::mapping::splice;
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

/// More than any head that these tests receive.
const HEAD_BYTES_MAX: u64 = 512;

async fn no_pipe_is_in_use() {
    eventually("all pipes are idle", || splice::open_pipes() == splice::idle_pipes()).await;
}

#[test]
fn large_bodies_arrive_whole_and_only_heads_are_copied() {
    let segment = Arc::new(Segment::new());
    run(async {
        for (plane, data_plane) in planes() {
            let server = start(config(data_plane, Limits::default()), ranges(&segment));
            let mut stream = connect(&server).await;
            for (start, len) in [(4096, 256 << 10), (0, 1 << 20), (8192, 64 << 20), (12345, (3 << 20) + 1)] {
                sent_bytes();
                get(&mut stream, start, len).await;
                let (mut copied, mut spliced) = (0, 0);
                // The client may have the last byte before the server has counted it.
                eventually("all bytes are counted", || {
                    let more = sent_bytes();
                    (copied, spliced) = (copied + more.0, spliced + more.1);
                    spliced >= len || copied >= len
                })
                .await;
                assert!(copied <= HEAD_BYTES_MAX, "{plane}: {copied} bytes of a body of {len} were copied");
                assert_eq!(spliced, len, "{plane}");
            }
            eventually("the slices are given back", || segment.lent() == 0).await;
        }
        no_pipe_is_in_use().await;
    });
}

#[test]
fn small_bodies_are_written_from_the_mapping() {
    let segment = Arc::new(Segment::new());
    run(async {
        let server = start(config(best_plane(), Limits::default()), ranges(&segment));
        let mut stream = connect(&server).await;
        for (start, len) in [(0, 0), (4095, 2), (4096, 4096), (70_000, 64 << 10)] {
            get(&mut stream, start, len).await;
        }
        assert_eq!(sent_bytes().1, 0);
        get(&mut stream, 1, (64 << 10) + 1).await;
        let mut spliced = 0;
        eventually("one byte more is spliced", || {
            spliced += sent_bytes().1;
            spliced == (64 << 10) + 1
        })
        .await;
    });
}

#[test]
fn body_of_mixed_slices_keeps_its_order() {
    let segment = Arc::new(Segment::new());
    let lengths: Vec<u64> = vec![10, 300 << 10, 5, 64 << 10, (64 << 10) + 1, 1, 2 << 20, 1 << 20, 4096, 100 << 10];
    let served = segment.clone();
    let total: u64 = lengths.iter().sum();
    let handler = Handler(move |_| {
        let mut at = 777;
        let mut slices = VecDeque::new();
        for (index, len) in lengths.iter().enumerate() {
            let mapped = served.lend(at, *len);
            // Every third slice is on the heap.
            slices.push_back(if index % 3 == 0 { mapped.to_vec().into() } else { mapped });
            at += len;
        }
        Box::pin(async move { Ok(Response::new(Slices(slices))) }) as Answer
    });
    run(async {
        let server = start(config(best_plane(), Limits::default()), handler);
        let mut stream = connect(&server).await;
        for _ in 0..5 {
            ask(&mut stream, "/").await;
            assert_eq!(head(&mut stream).await.unwrap(), (200, total));
            expect_range(&mut stream, 777, total).await;
        }
        no_pipe_is_in_use().await;
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let segment = Arc::new(Segment::new());
    run(async {
        let server = start(config(best_plane(), Limits::default()), ranges(&segment));
        let mut stream = connect(&server).await;
        let ranges: Vec<(u64, u64)> =
            (0..40).map(|n| (n * 100_003, [300, 4096, 65_537, 1 << 20][n as usize % 4])).collect();
        let (mut reader, mut writer) = stream.split();
        let asking = async {
            for (start, len) in &ranges {
                ask(&mut writer, &format!("/{start}/{len}")).await;
            }
        };
        let reading = async {
            for (start, len) in &ranges {
                assert_eq!(head(&mut reader).await.unwrap(), (200, *len));
                expect_range(&mut reader, *start, *len).await;
            }
        };
        tokio::join!(asking, reading);
    });
}

#[test]
fn slow_reader_gets_every_byte() {
    let segment = Arc::new(Segment::new());
    run(async {
        for (_, data_plane) in planes() {
            let server = start(config(data_plane, Limits::default()), ranges(&segment));
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(8 << 10).unwrap();
            let mut stream = socket.connect(server.local_addr()).await.unwrap();
            let (start, len) = (5, 6 << 20);
            ask(&mut stream, &format!("/{start}/{len}")).await;
            head(&mut stream).await.unwrap();
            let mut at = start;
            while at < start + len {
                let part = (start + len - at).min(17_001);
                expect_range(&mut stream, at, part).await;
                at += part;
                tokio::task::yield_now().await;
            }
            get(&mut stream, 0, 1 << 20).await;
        }
    });
}

#[test]
fn readers_that_leave_in_the_middle_harm_nobody() {
    let segment = Arc::new(Segment::new());
    run(async {
        let server = start(config(best_plane(), Limits::default()), ranges(&segment));
        let mut steady = connect(&server).await;
        for round in 0..60u64 {
            let mut stream = connect(&server).await;
            ask(&mut stream, &format!("/{}/{}", round * 4096, 20 << 20)).await;
            let mut some = vec![0; 1 + (round as usize * 7919) % 200_000];
            stream.read_exact(&mut some).await.unwrap();
            drop(stream);
            get(&mut steady, round * 333, 1 << 20).await;
        }
        eventually("the slices are given back", || segment.lent() == 0).await;
        no_pipe_is_in_use().await;
    });
}

#[test]
fn many_connections_are_served_at_once() {
    let segment = Arc::new(Segment::new());
    run(async {
        for (_, data_plane) in planes() {
            let server = start(config(data_plane, Limits::default()), ranges(&segment));
            let clients = (0..64u64).map(|client| {
                let address = server.local_addr();
                tokio::spawn(async move {
                    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
                    for round in 0..6u64 {
                        let len = [4096, 64 << 10, 300 << 10, (1 << 20) + 3][((client + round) % 4) as usize];
                        get(&mut stream, (client * 1_000_003 + round * 77) % (64 << 20), len).await;
                    }
                })
            });
            for client in clients.collect::<Vec<_>>() {
                client.await.unwrap();
            }
        }
        no_pipe_is_in_use().await;
    });
}

#[test]
fn connections_beyond_the_number_of_pipes_are_served_by_copying() {
    let segment = Arc::new(Segment::new());
    // Those that do not read are not cut before one of them does, on a busy machine either.
    let pace = Pace { window: Duration::from_secs(600), ..Pace::default() };
    run(async {
        let server = start(config(best_plane(), Limits { pace, ..Limits::default() }), ranges(&segment));
        // Each of them leaves a pipe with bytes in it behind, as it does not read.
        let mut stalled = vec![];
        for _ in 0..300 {
            let mut stream = connect(&server).await;
            ask(&mut stream, &format!("/0/{}", 64 << 20)).await;
            stalled.push(stream);
        }
        eventually("all pipes are in use", || splice::open_pipes() >= 256 && splice::idle_pipes() == 0).await;
        sent_bytes();
        let mut stream = connect(&server).await;
        get(&mut stream, 99, 5 << 20).await;
        let mut copied = 0;
        eventually("the body is copied", || {
            copied += sent_bytes().0;
            copied >= 5 << 20
        })
        .await;
        let mut oldest = stalled.swap_remove(0);
        head(&mut oldest).await.unwrap();
        expect_range(&mut oldest, 0, 64 << 20).await;
        drop((stalled, oldest));
        no_pipe_is_in_use().await;
        get(&mut stream, 99, 5 << 20).await;
    });
}

#[test]
fn evicted_range_is_brought_back_verified_before_it_is_sent() {
    let segment = Arc::new(Segment::new());
    let refreshed = Arc::new(AtomicUsize::new(0));
    let (count, file) = (refreshed.clone(), Arc::new(segment.file.try_clone().unwrap()));
    let mapping = Arc::downgrade(&segment.mapping);
    segment.mapping.set_refresh(Box::new(move |range| {
        let (count, file, mapping) = (count.clone(), file.clone(), mapping.clone());
        Box::pin(async move {
            count.fetch_add(1, Ordering::Relaxed);
            let mut buf = vec![0; (range.end - range.start) as usize];
            let start = range.start;
            let read = move || std::os::unix::fs::FileExt::read_exact_at(&*file, &mut buf, start);
            tokio::task::spawn_blocking(read).await.unwrap()?;
            mapping.upgrade().unwrap().set_verified(range.start / 4096 * 4096..range.end.next_multiple_of(4096));
            Ok(())
        })
    }));
    let served = segment.clone();
    let handler = Handler(move |request: http::Request<_>| {
        let (start, len) = range_of(request.uri().path());
        let body = Slices::one(served.lend(start, len));
        // The engine found the range resident and lent it; now memory is short.
        served.evict();
        Box::pin(async move { Ok(Response::new(body)) }) as Answer
    });
    run(async {
        let server = start(config(best_plane(), Limits::default()), handler);
        let mut stream = connect(&server).await;
        for (start, len, refreshes) in [(0, 4096, 1), (1 << 20, 5 << 20, 5), (50 << 20, 100 << 10, 1)] {
            refreshed.store(0, Ordering::Relaxed);
            get(&mut stream, start, len).await;
            assert!(refreshed.load(Ordering::Relaxed) >= refreshes, "{start}+{len} was sent without verification");
        }
    });
}

#[test]
fn range_that_another_reader_brought_back_unverified_is_verified_before_it_is_sent() {
    let segment = Arc::new(Segment::new());
    let refreshed = Arc::new(AtomicUsize::new(0));
    let (count, mapping) = (refreshed.clone(), Arc::downgrade(&segment.mapping));
    segment.mapping.set_refresh(Box::new(move |range| {
        count.fetch_add(1, Ordering::Relaxed);
        mapping.upgrade().unwrap().set_verified(range);
        Box::pin(async { Ok(()) })
    }));
    run(async {
        let server = start(config(best_plane(), Limits::default()), ranges(&segment));
        let mut stream = connect(&server).await;
        for len in [4096, 1 << 20] {
            segment.mapping.clear_verified(0..len);
            refreshed.store(0, Ordering::Relaxed);
            get(&mut stream, 0, len).await;
            assert_eq!(refreshed.load(Ordering::Relaxed), 1, "{len} resident, unverified bytes were sent");
        }
    });
}

/// The machine may evict by itself what a test has not.
fn bring_back(file: &std::fs::File, range: &Range<u64>) {
    file.read_exact_at(&mut vec![0; (range.end - range.start) as usize], range.start).unwrap();
}

/// Clients send one request after the other, and the evictions of a day add up.
#[test]
fn small_bodies_may_be_evicted_any_number_of_times_on_one_connection() {
    let segment = Arc::new(Segment::new());
    let (mapping, file) = (Arc::downgrade(&segment.mapping), segment.file.try_clone().unwrap());
    segment.mapping.set_refresh(Box::new(move |range| {
        bring_back(&file, &range);
        mapping.upgrade().unwrap().set_verified(range);
        Box::pin(async { Ok(()) })
    }));
    run(async {
        let server = start(config(best_plane(), Limits::default()), ranges(&segment));
        let mut stream = connect(&server).await;
        for _ in 0..40 {
            segment.mapping.clear_verified(0..4096);
            get(&mut stream, 0, 4096).await;
        }
    });
}

/// While a reader is slow the range that it is to get may be evicted, and come back by somebody who did not compare it.
#[test]
fn range_that_was_verified_is_asked_about_again_after_its_reader_had_it_wait() {
    const SLICE_BYTES: u64 = 64 << 10;
    const SLICES: u64 = 1024;
    let segment = Arc::new(Segment::new());
    let starts = Arc::new(Mutex::new(Vec::new()));
    let (seen, file) = (Arc::clone(&starts), segment.file.try_clone().unwrap());
    // Nothing stays verified.
    segment.mapping.set_refresh(Box::new(move |range| {
        bring_back(&file, &range);
        seen.lock().unwrap().push(range.start);
        Box::pin(async { Ok(()) })
    }));
    let served = segment.clone();
    let handler = Handler(move |_| {
        let slices: VecDeque<_> = (0..SLICES).map(|slice| served.lend(slice * SLICE_BYTES, SLICE_BYTES)).collect();
        Box::pin(async move { Ok(Response::new(Slices(slices))) }) as Answer
    });
    run(async {
        let server = start(config(best_plane(), Limits::default()), handler);
        let mut stream = connect(&server).await;
        ask(&mut stream, "/").await;
        head(&mut stream).await.unwrap();
        let (mut before, mut polls) = (0, 0);
        // More than sockets hold: it has to wait.
        eventually("nothing more is sent", || {
            let now = starts.lock().unwrap().len();
            polls = if now == before { polls + 1 } else { 0 };
            before = now;
            now > 0 && polls > 200
        })
        .await;
        expect_range(&mut stream, 0, SLICES * SLICE_BYTES).await;
    });
    let starts = starts.lock().unwrap();
    assert!(starts.windows(2).any(|pair| pair[0] == pair[1]), "each range was asked about once: {}", starts.len());
}

#[test]
fn corrupt_range_cuts_the_connection_and_none_of_it_is_sent() {
    let segment = Arc::new(Segment::new());
    segment.mapping.set_refresh(Box::new(|_| Box::pin(async { Err(ErrorKind::InvalidData.into()) })));
    let served = segment.clone();
    let handler = Handler(move |_| {
        let body = Slices::one(served.lend(0, 1 << 20));
        served.evict();
        Box::pin(async move { Ok(Response::new(body)) }) as Answer
    });
    run(async {
        let server = start(config(best_plane(), Limits::default()), handler);
        let mut stream = connect(&server).await;
        ask(&mut stream, "/").await;
        head(&mut stream).await.unwrap();
        let mut rest = vec![];
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "{} unverified bytes were sent", rest.len());
    });
}

#[test]
fn https_serves_the_same_bytes() {
    let segment = Arc::new(Segment::new());
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let files = TlsFiles { certificate: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&files.key, Permissions::from_mode(0o600)).unwrap();
    let tls = Tls::load(files).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    run(async {
        for (_, data_plane) in planes() {
            let mut config = config(data_plane, Limits::default());
            config.tls = Some(tls.clone());
            let server = start(config, ranges(&segment));
            let stream = connect(&server).await;
            let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
            let mut stream = connector.connect(name, stream).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
            for (start, len) in [(3, 4096), (17, 5 << 20)] {
                segment.evict();
                ask(&mut stream, &format!("/{start}/{len}")).await;
                stream.flush().await.unwrap();
                assert_eq!(head(&mut stream).await.unwrap(), (200, len));
                expect_range(&mut stream, start, len).await;
            }
        }
    });
}
