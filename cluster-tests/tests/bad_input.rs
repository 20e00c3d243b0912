//! Input that no honest client sends: at the level of bytes on the socket.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io;
use std::time::{Duration, Instant};

use holdfast_cluster_tests::client::{Client, Connection, Payload, Request, Response};
use holdfast_cluster_tests::node::Node;
use holdfast_cluster_tests::{content, eventually};
use time::OffsetDateTime;

const UNSIGNED: Payload<'static> = Payload::Literal("UNSIGNED-PAYLOAD");

fn put_head(client: &Client, key: &str, length: usize, payload: Payload<'_>) -> String {
    let (path, length) = (format!("/bad/{key}"), length.to_string());
    let headers = [("content-length", length.as_str())];
    let request = Request { method: "PUT", path: &path, headers: &headers, ..Request::default() };
    client.head(&request, payload, OffsetDateTime::now_utc())
}

fn start(environment: &[(&str, &str)]) -> (Node, Client) {
    let node = Node::start_with(environment);
    let client = node.client();
    client.create_bucket("bad");
    (node, client)
}

/// The node still serves an ordinary client.
fn assert_healthy(client: &Client) {
    let body = content::bytes(1, 100_000);
    assert_eq!(client.put("bad", "healthy", &body).unwrap().status, 200);
    assert_eq!(client.get("bad", "healthy").unwrap().body, body);
}

fn assert_absent(client: &Client, key: &str) {
    let response = client.get("bad", key).unwrap();
    assert_eq!(response.status, 404, "`{key}` is visible with {} bytes", response.body.len());
    assert!(!client.list("bad", "").unwrap().iter().any(|listed| listed == key), "`{key}` is listed");
}

#[test]
fn uploads_that_end_early_leave_nothing_at_whatever_byte() {
    let (_node, client) = start(&[]);
    let size = 3 << 20;
    let body = content::bytes(2, size);
    for (n, sent) in [0, 1, 4_095, 4_096, 65_536, 1 << 20, (2 << 20) + 7, size - 1].into_iter().enumerate() {
        let key = format!("cut{n}");
        // Once by closing the connection, once by ending only the writing side and waiting for an answer.
        for half_close in [false, true] {
            let mut connection = client.connect().unwrap();
            connection.write(put_head(&client, &key, size, UNSIGNED).as_bytes()).unwrap();
            connection.write(&body[..sent]).unwrap();
            if half_close {
                connection.finish_writing().unwrap();
                if let Ok(response) = connection.read_response("PUT") {
                    assert!(response.status >= 400, "{} for a body cut at {sent}", response.status);
                }
            }
            drop(connection);
        }
        assert_absent(&client, &key);
    }
    assert_healthy(&client);
}

#[test]
fn an_upload_cut_off_over_an_existing_object_leaves_the_old_one() {
    let (_node, client) = start(&[]);
    let old = content::bytes(3, 70_000);
    assert_eq!(client.put("bad", "kept", &old).unwrap().status, 200);
    for _ in 0..5 {
        let mut connection = client.connect().unwrap();
        connection.write(put_head(&client, "kept", 1 << 20, UNSIGNED).as_bytes()).unwrap();
        connection.write(&content::bytes(4, 900_000)).unwrap();
        drop(connection);
        assert_eq!(client.get("bad", "kept").unwrap().body, old);
    }
}

#[test]
fn bodies_that_do_not_match_their_signed_hash_are_refused() {
    let (_node, client) = start(&[]);
    for size in [1, 5_000, 2 << 20] {
        let (told, sent) = (content::bytes(5, size), content::bytes(6, size));
        let mut connection = client.connect().unwrap();
        connection.write(put_head(&client, "hash", size, Payload::Hash(&told)).as_bytes()).unwrap();
        connection.write(&sent).unwrap();
        let response = connection.read_response("PUT").unwrap();
        assert_eq!(
            (response.status, response.code().as_str()),
            (400, "XAmzContentSHA256Mismatch"),
            "{}",
            response.text()
        );
        assert_absent(&client, "hash");
    }
}

#[test]
fn wrong_signatures_unknown_keys_and_skewed_clocks_are_told_apart() {
    let (_node, client) = start(&[]);
    let code = |client: &Client, now: OffsetDateTime| {
        let request = Request { method: "GET", path: "/bad", ..Request::default() };
        let head = client.head(&request, Payload::Hash(b""), now);
        let mut connection = client.connect().unwrap();
        connection.write(head.as_bytes()).unwrap();
        let response = connection.read_response("GET").unwrap();
        (response.status, response.code())
    };
    let now = OffsetDateTime::now_utc();
    assert_eq!(code(&client, now).0, 200);
    let wrong = Client { secret_key: "wrong".into(), ..client.clone() };
    assert_eq!(code(&wrong, now), (403, "SignatureDoesNotMatch".into()));
    let unknown = Client { access_key: "HFUNKNOWN00000000000".into(), ..client.clone() };
    assert_eq!(code(&unknown, now), (403, "InvalidAccessKeyId".into()));
    for skew in [-20, 20] {
        assert_eq!(code(&client, now + time::Duration::minutes(skew)), (403, "RequestTimeTooSkewed".into()));
    }
    assert_eq!(code(&client, now - time::Duration::minutes(5)).0, 200);
    // A signature over another path does not open this one.
    let request = Request { method: "GET", path: "/other", ..Request::default() };
    let head = client.head(&request, Payload::Hash(b""), now).replace("GET /other", "GET /bad");
    let mut connection = client.connect().unwrap();
    connection.write(head.as_bytes()).unwrap();
    assert_eq!(connection.read_response("GET").unwrap().code(), "SignatureDoesNotMatch");
}

#[test]
fn keys_may_have_1024_bytes_and_not_1025() {
    let (_node, client) = start(&[]);
    for unit in ["k", "ü"] {
        let longest = unit.repeat(1024 / unit.len());
        assert_eq!(client.put("bad", &longest, b"x").unwrap().status, 200);
        assert_eq!(client.get("bad", &longest).unwrap().body, b"x");
        assert!(client.list("bad", unit).unwrap().contains(&longest));
        let response = client.put("bad", &format!("{longest}k"), b"x").unwrap();
        assert_eq!((response.status, response.code().as_str()), (400, "KeyTooLongError"));
    }
}

#[test]
fn keys_with_every_odd_character_come_back_as_they_went() {
    let (_node, client) = start(&[]);
    let mut keys: Vec<String> = (1..=0x7f_u8).map(|byte| format!("odd-{}-end", byte as char)).collect();
    keys.extend(
        [
            "a//b",
            "a/../b",
            "a/./b",
            "..",
            "a/",
            " lead",
            "trail ",
            "a\u{0}b",
            "日本語",
            "🦀",
            "%41",
            "a%2fb",
            "\u{85}",
            "\u{feff}x",
        ]
        .map(String::from),
    );
    let mut refused = Vec::new();
    for key in &keys {
        let body = format!("content of {key:?}");
        let response = client.put("bad", key, body.as_bytes()).unwrap();
        if response.status == 200 {
            assert_eq!(client.get("bad", key).unwrap().text(), body, "{key:?}");
        } else {
            assert_eq!(response.status, 400, "{key:?}: {}", response.text());
            refused.push(key.clone());
        }
    }
    // Only what has no place in a key at all may be refused.
    assert!(refused.iter().all(|key| key.contains('\u{0}')), "refused: {refused:?}");
    // With url encoding each of them is listed; without, XML has no way to write some of them.
    let query = [("list-type", "2"), ("encoding-type", "url")];
    let page = client.send(&Request { method: "GET", path: "/bad", query: &query, ..Request::default() }).unwrap();
    let listed = holdfast_cluster_tests::client::elements(&page.text(), "Key");
    assert_eq!(listed.len(), keys.len() - refused.len());
    for key in keys.iter().filter(|key| !refused.contains(key)) {
        let found = listed.iter().any(|listed| {
            let listed = listed.replace('+', " ");
            percent_encoding::percent_decode_str(&listed).decode_utf8().unwrap() == key.as_str()
        });
        assert!(found, "{key:?} is not listed");
    }
}

#[test]
fn huge_heads_are_refused_and_cost_nothing() {
    let (node, client) = start(&[]);
    let send = |head: &str| -> io::Result<Response> {
        let mut connection = Connection::open(node.s3())?;
        connection.write(head.as_bytes())?;
        connection.read_response("GET")
    };
    let big = "x".repeat(2 << 20);
    let many: String = (0..5_000).map(|n| format!("x-h{n}: v\r\n")).collect();
    let heads = [
        format!("GET /bad HTTP/1.1\r\nhost: h\r\nx-big: {big}\r\n\r\n"),
        format!("GET /bad HTTP/1.1\r\nhost: h\r\n{many}\r\n"),
        format!("GET /{big} HTTP/1.1\r\nhost: h\r\n\r\n"),
    ];
    for head in &heads {
        // Refusing by closing is as good: the client's write may fail then.
        if let Ok(response) = send(head) {
            assert!(matches!(response.status, 400 | 413 | 414 | 431), "{}", response.status);
        }
    }
    // User metadata beyond S3's 2 KiB has an error of its own.
    let metadata = "m".repeat(3_000);
    let headers = [("x-amz-meta-big", metadata.as_str())];
    let request = Request { method: "PUT", path: "/bad/meta", headers: &headers, body: b"x", ..Request::default() };
    let response = client.send(&request).unwrap();
    assert_eq!((response.status, response.code().as_str()), (400, "MetadataTooLarge"), "{}", response.text());
    assert_healthy(&client);
}

#[test]
fn bytes_that_are_no_http_are_refused() {
    let (node, client) = start(&[]);
    for junk in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PUT / HTTP/9.9\r\n\r\n",
    ] {
        let mut connection = Connection::open(node.s3()).unwrap();
        connection.write(junk).unwrap();
        let _ = connection.finish_writing();
        if let Ok(response) = connection.read_response("GET") {
            assert!(response.status >= 400);
        }
    }
    assert_healthy(&client);
}

/// Until the server closes or answers; none when neither happens within `limit`.
fn time_to_end(connection: &mut Connection, limit: Duration) -> Option<Duration> {
    let begin = Instant::now();
    connection.stream().set_read_timeout(Some(limit)).unwrap();
    let mut buffer = [0; 4096];
    loop {
        match connection.read(&mut buffer) {
            Ok(0) => return Some(begin.elapsed()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return None,
            Err(_) => return Some(begin.elapsed()),
        }
    }
}

#[test]
fn slow_senders_are_cut_off_in_the_head_and_in_the_body() {
    let (_node, client) = start(&[("HOLDFAST_LIMITS_HEADER_TIMEOUT", "3s"), ("HOLDFAST_LIMITS_IDLE_TIMEOUT", "3s")]);
    // Less than the half minute that is waited for a body by default.
    let limit = Duration::from_secs(25);

    let mut silent_head = client.connect().unwrap();
    silent_head.write(b"GET /bad HTTP/1.1\r\nhost: ").unwrap();
    assert!(time_to_end(&mut silent_head, limit).is_some(), "a head that never ends is waited for");

    let mut silent_body = client.connect().unwrap();
    silent_body.write(put_head(&client, "slow", 1 << 20, UNSIGNED).as_bytes()).unwrap();
    silent_body.write(&[7; 1000]).unwrap();
    assert!(time_to_end(&mut silent_body, limit).is_some(), "a body that stops is waited for");
    assert_absent(&client, "slow");

    // A head that drips a byte at a time makes progress, and still has to end in time.
    let mut drip = client.connect().unwrap();
    let begin = Instant::now();
    let cut = loop {
        if drip.write(b"G").is_err() {
            break true;
        }
        if begin.elapsed() > limit {
            break false;
        }
        // It drips.
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(cut, "a head that drips is waited for");
    assert_healthy(&client);
}

#[test]
fn slow_but_steady_senders_are_served() {
    // A window of three seconds wants 16 KiB: any piece is enough for one. All of them take longer than two windows.
    let (_node, client) = start(&[("HOLDFAST_LIMITS_IDLE_TIMEOUT", "3s")]);
    let body = content::bytes(8, 800_000);
    let send = |longest: &mut Duration| -> io::Result<u16> {
        let mut connection = client.connect()?;
        connection.write(put_head(&client, "steady", body.len(), UNSIGNED).as_bytes())?;
        for piece in body.chunks(40_000) {
            let before = Instant::now();
            connection.write(piece)?;
            // It is slow and steady.
            std::thread::sleep(Duration::from_millis(400));
            *longest = before.elapsed().max(*longest);
        }
        Ok(connection.read_response("PUT")?.status)
    };
    let served = (0..10).any(|_| {
        let mut longest = Duration::ZERO;
        let answer = send(&mut longest);
        let served = matches!(answer, Ok(200));
        // A sender to whom the machine gave no time for a while was not steady.
        assert!(served || longest > Duration::from_secs(2), "{answer:?} though no pause was longer than {longest:?}");
        served
    });
    assert!(served, "the machine is too busy for any pace");
    assert_eq!(client.get("bad", "steady").unwrap().body, body);
}

#[test]
fn readers_that_stop_reading_are_cut_off_and_hold_nothing() {
    let (node, client) = start(&[("HOLDFAST_LIMITS_IDLE_TIMEOUT", "5s")]);
    assert_eq!(client.put("bad", "large", &content::bytes(1, 40 << 20)).unwrap().status, 200);
    let request = Request { method: "GET", path: "/bad/large", ..Request::default() };
    let mut readers: Vec<Connection> = (0..8)
        .map(|_| {
            let mut connection = client.connect().unwrap();
            let head = client.head(&request, Payload::Hash(b""), OffsetDateTime::now_utc());
            connection.write(head.as_bytes()).unwrap();
            connection.read_head().unwrap();
            connection
        })
        .collect();
    let open = || node.metric("holdfast_http_connections", &[]).unwrap().expect("the metric exists");
    // Less than the half minute that is waited for a reader by default.
    eventually("the node to give them up", Duration::from_secs(25), || open() == 0.0);
    for reader in &mut readers {
        // What is in the sockets' buffers still comes; then the connection has to end, short of the object.
        let mut got = 0;
        let mut buffer = vec![0; 1 << 20];
        reader.stream().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        while let Ok(n @ 1..) = reader.read(&mut buffer) {
            got += n;
        }
        assert!(got < 40 << 20, "a reader that was given up got everything");
    }
    assert_healthy(&client);
}

#[test]
fn disconnects_at_every_stage_of_a_multipart_upload_leave_it_usable() {
    let (_node, client) = start(&[]);
    let create = Request { method: "POST", path: "/bad/mp", query: &[("uploads", "")], ..Request::default() };
    let upload = client.send(&create).unwrap().element("UploadId").unwrap();
    let body = content::bytes(11, 5 << 20);
    let length = body.len().to_string();
    let headers = [("content-length", length.as_str())];
    let query = [("partNumber", "1"), ("uploadId", upload.as_str())];
    let part = Request { method: "PUT", path: "/bad/mp", query: &query, headers: &headers, ..Request::default() };
    for sent in [0, 1, 100_000, body.len() - 1, body.len()] {
        let mut connection = client.connect().unwrap();
        connection.write(client.head(&part, UNSIGNED, OffsetDateTime::now_utc()).as_bytes()).unwrap();
        connection.write(&body[..sent]).unwrap();
    }
    let part = Request { method: "PUT", path: "/bad/mp", query: &query, body: &body, ..Request::default() };
    let etag = client.send(&part).unwrap().header("etag").unwrap().to_owned();
    let xml = format!(
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    );
    let query = [("uploadId", upload.as_str())];
    let complete =
        Request { method: "POST", path: "/bad/mp", query: &query, body: xml.as_bytes(), ..Request::default() };
    // The client is gone before the answer: the completion happens or does not, and can be asked for again.
    let length = xml.len().to_string();
    let headers = [("content-length", length.as_str())];
    let unheard = Request { headers: &headers, body: b"", ..complete.clone() };
    let mut connection = client.connect().unwrap();
    let head = client.head(&unheard, Payload::Hash(xml.as_bytes()), OffsetDateTime::now_utc());
    connection.write(head.as_bytes()).unwrap();
    connection.write(xml.as_bytes()).unwrap();
    drop(connection);
    eventually("the completed object", Duration::from_secs(60), || {
        let again = client.send(&complete).unwrap();
        assert!(again.status == 200 || again.code() == "NoSuchUpload", "{}", again.text());
        client.get("bad", "mp").unwrap().body == body
    });
}

#[test]
fn a_delete_of_1000_keys_works_and_bad_xml_does_not() {
    let (_node, client) = start(&[]);
    for n in 0..20 {
        assert_eq!(client.put("bad", &format!("d/{n:04}"), b"x").unwrap().status, 200);
    }
    let post = |xml: &str| {
        use base64::Engine as _;
        use md5::Digest as _;
        let md5 = base64::engine::general_purpose::STANDARD.encode(md5::Md5::digest(xml.as_bytes()));
        let headers = [("content-md5", md5.as_str())];
        let request =
            Request { method: "POST", path: "/bad", query: &[("delete", "")], headers: &headers, body: xml.as_bytes() };
        client.send(&request).unwrap()
    };
    let delete = |count: usize| {
        let keys: String = (0..count).map(|n| format!("<Object><Key>d/{n:04}</Key></Object>")).collect();
        format!("<Delete>{keys}</Delete>")
    };
    for bad in [
        "",
        "<Delete>",
        "<Delete></Delete>",
        "<Delete><Object></Object></Delete>",
        "<Other/>",
        "not xml",
        "<Delete><Object><Key>d/0000</Key></Object>",
        &delete(1001),
    ] {
        let response = post(bad);
        let shown = &bad[..bad.len().min(60)];
        assert_eq!(response.status, 400, "`{shown}`: {}", response.text());
        assert!(
            matches!(response.code().as_str(), "MalformedXML" | "InvalidRequest" | "MissingRequestBodyError"),
            "`{shown}`: {}",
            response.code()
        );
    }
    assert_eq!(client.list("bad", "d/").unwrap().len(), 20, "a refused delete deleted something");
    let response = post(&delete(1000));
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.text().matches("<Deleted>").count(), 1000);
    assert!(client.list("bad", "d/").unwrap().is_empty());
}

#[test]
fn two_clients_completing_one_upload_get_one_object() {
    let (_node, client) = start(&[]);
    for round in 0..5 {
        let path = format!("/bad/race{round}");
        let create = Request { method: "POST", path: &path, query: &[("uploads", "")], ..Request::default() };
        let upload = client.send(&create).unwrap().element("UploadId").unwrap();
        let body = content::bytes(round, 40_000);
        let query = [("partNumber", "1"), ("uploadId", upload.as_str())];
        let part = Request { method: "PUT", path: &path, query: &query, body: &body, ..Request::default() };
        let etag = client.send(&part).unwrap().header("etag").unwrap().to_owned();
        let xml = format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
        );
        let answers: Vec<Response> = std::thread::scope(|scope| {
            let complete = || {
                let query = [("uploadId", upload.as_str())];
                let request =
                    Request { method: "POST", path: &path, query: &query, body: xml.as_bytes(), ..Request::default() };
                client.send(&request).unwrap()
            };
            let running: Vec<_> = (0..4).map(|_| scope.spawn(complete)).collect();
            running.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let done = |response: &&Response| response.status == 200 && response.element("ETag").is_some();
        assert!(answers.iter().filter(done).count() >= 1);
        for answer in &answers {
            assert!(done(&answer) || answer.code() == "NoSuchUpload", "{} {}", answer.status, answer.text());
        }
        assert_eq!(client.get("bad", &format!("race{round}")).unwrap().body, body);
    }
}

#[test]
fn of_many_conditional_writes_exactly_one_wins() {
    let (_node, client) = start(&[]);
    let race = |key: &str, condition: (&str, &str)| -> Vec<u16> {
        let path = format!("/bad/{key}");
        std::thread::scope(|scope| {
            let write = |n: u64| {
                let body = content::bytes(n, 3_000);
                let headers = [condition];
                let request =
                    Request { method: "PUT", path: &path, headers: &headers, body: &body, ..Request::default() };
                client.send(&request).unwrap().status
            };
            let running: Vec<_> = (0..8).map(|n| scope.spawn(move || write(n))).collect();
            running.into_iter().map(|one| one.join().unwrap()).collect()
        })
    };
    for round in 0..5 {
        let key = format!("cond{round}");
        let created = race(&key, ("if-none-match", "*"));
        assert_eq!(created.iter().filter(|status| **status == 200).count(), 1, "{created:?}");
        assert!(created.iter().all(|status| matches!(status, 200 | 409 | 412)), "{created:?}");
        let etag = client.get("bad", &key).unwrap().header("etag").unwrap().to_owned();
        let swapped = race(&key, ("if-match", &etag));
        // The winner may write the very content that was there: then its ETag still matches for others.
        assert!(swapped.contains(&200), "{swapped:?}");
        assert!(swapped.iter().all(|status| matches!(status, 200 | 409 | 412)), "{swapped:?}");
    }
}
