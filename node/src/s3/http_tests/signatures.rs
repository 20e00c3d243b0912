//! Who gets in.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_actors::flow::cold::read::{ColdReadSettings, ColdReads};
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::metadata::CannedAcl;
use holdfast_actors::ports::tiers::EmptyTiers;
use http::StatusCode;

use super::signer::{amz_date, unsigned};
use super::support::{Fixture, HOST};

const MINUTE_MS: u64 = 60_000;

#[tokio::test]
async fn a_signed_request_gets_in_path_style_and_virtual_hosted() {
    let fixture = Fixture::new();
    assert_eq!(fixture.call("ann", "PUT", "/photos/a%20b%2Bc", &[], b"hello").await.status, StatusCode::OK);
    assert_eq!(fixture.stored.lock()["photos/a b+c"].caller.as_deref(), Some("ann"));
    let signer = fixture.signer("ann");
    for host in ["photos.s3.test", "photos.s3.test:9000", "PHOTOS.S3.TEST"] {
        let answer = fixture.send(signer.request("GET", host, "/a%20b%2Bc", &[], &[], b"")).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "hello"), "{host}");
    }
    for host in ["s3.test", "localhost", "storage.intern.example", "127.0.0.1", "[::1]:9000"] {
        let answer = fixture.send(signer.request("GET", host, "/photos/a%20b%2Bc", &[], &[], b"")).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "hello"), "{host}");
    }
}

#[tokio::test]
async fn a_wrong_secret_a_changed_request_and_an_unknown_key_are_refused() {
    let fixture = Fixture::new();
    let mut wrong = fixture.signer("ann");
    wrong.secret.push('x');
    let answer = fixture.send(wrong.request("GET", HOST, "/photos/k", &[], &[], b"")).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "SignatureDoesNotMatch"));

    let mut changed = fixture.signer("ann").request("GET", HOST, "/photos/k", &[], &[("range", "bytes=0-1")], b"");
    changed.headers_mut().insert("range", "bytes=0-9".parse().unwrap());
    assert_eq!(fixture.send(changed).await.code(), "SignatureDoesNotMatch");

    let mut moved = fixture.signer("ann").request("GET", HOST, "/photos/k", &[], &[], b"");
    *moved.uri_mut() = "/photos/other".parse().unwrap();
    assert_eq!(fixture.send(moved).await.code(), "SignatureDoesNotMatch");

    let mut added = fixture.signer("ann").request("PUT", HOST, "/photos/k", &[], &[], b"");
    added.headers_mut().insert("x-amz-acl", "public-read".parse().unwrap());
    assert_eq!(fixture.send(added).await.code(), "AccessDenied");

    let mut body = fixture.signer("ann").request("PUT", HOST, "/photos/k", &[], &[], b"one");
    *body.body_mut() = s3s::Body::from("two".to_owned());
    let answer = fixture.send(body).await;
    assert!(answer.status.is_client_error() && fixture.stored.lock().is_empty(), "{answer:?}");

    let mut unknown = fixture.signer("ann");
    unknown.access_key = "KEY-nobody".into();
    assert_eq!(
        fixture.send(unknown.request("GET", HOST, "/photos/k", &[], &[], b"")).await.code(),
        "InvalidAccessKeyId"
    );
}

#[tokio::test]
async fn what_no_access_key_can_be_called_is_not_looked_up() {
    let fixture = Fixture::new();
    for (length, code) in [(128, ""), (129, "InvalidAccessKeyId"), (20_000, "InvalidAccessKeyId")] {
        let mut signer = fixture.signer("ann");
        signer.access_key = "A".repeat(length);
        fixture.store.add_key(&signer.access_key, &signer.secret, "ann", false);
        let answer = fixture.send(signer.request("PUT", HOST, "/photos/k", &[], &[], b"x")).await;
        assert_eq!(answer.code(), code, "{length}");
    }
}

#[tokio::test]
async fn clocks_may_differ_by_fifteen_minutes() {
    let fixture = Fixture::new();
    let now_ms = fixture.signer("ann").at_ms;
    for (at_ms, code) in [
        (now_ms - 14 * MINUTE_MS, ""),
        (now_ms + 14 * MINUTE_MS, ""),
        (now_ms - 16 * MINUTE_MS, "RequestTimeTooSkewed"),
        (now_ms + 16 * MINUTE_MS, "RequestTimeTooSkewed"),
    ] {
        let mut signer = fixture.signer("ann");
        signer.at_ms = at_ms;
        for (method, path) in [("PUT", "/photos/k"), ("GET", "/")] {
            let answer = fixture.send(signer.request(method, HOST, path, &[], &[], b"")).await;
            assert_eq!(answer.code(), code, "{answer:?}");
            let told = format!("<RequestTime>{}</RequestTime><ServerTime>", amz_date(at_ms));
            assert_eq!(answer.body.contains(&told), !code.is_empty(), "{answer:?}");
        }
        let url = signer.presign("GET", HOST, "/photos/k", &[], "60");
        let answer = fixture.send(unsigned("GET", HOST, &url, &[], b"")).await;
        let told = format!("<RequestTime>{}</RequestTime>", amz_date(at_ms));
        assert_eq!(answer.body.contains(&told), at_ms == now_ms + 16 * MINUTE_MS, "{answer:?}");
    }
}

#[tokio::test]
async fn the_time_of_a_request_may_be_told_by_its_date() {
    let fixture = Fixture::new();
    let signer = fixture.signer("ann");
    let http_date = |at_ms: u64| {
        let at = time::OffsetDateTime::from_unix_timestamp((at_ms / 1000) as i64).unwrap();
        let format = time::macros::format_description!(
            "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
        );
        at.format(format).unwrap()
    };
    for date in [http_date(signer.at_ms), amz_date(signer.at_ms)] {
        let put = || signer.request("PUT", HOST, "/photos/k", &[], &[("date", &date)], b"x");
        let answer = fixture.send(put()).await;
        assert_eq!(answer.status, StatusCode::OK, "{date} {answer:?}");
        let later = signer.at_ms + MINUTE_MS;
        for (other, code) in [
            (http_date(later), "SignatureDoesNotMatch"),
            (amz_date(later), "SignatureDoesNotMatch"),
            ("yesterday".into(), "AccessDenied"),
        ] {
            let mut changed = put();
            changed.headers_mut().insert("date", other.parse().unwrap());
            let answer = fixture.send(changed).await;
            assert_eq!(answer.code(), code, "{other} {answer:?}");
        }
    }
    let mut undated = signer.request("GET", HOST, "/photos/k", &[], &[], b"");
    undated.headers_mut().remove("x-amz-date");
    let answer = fixture.send(undated).await;
    assert_eq!(answer.code(), "AccessDenied", "{answer:?}");
    assert!(answer.body.contains("Date or x-amz-date"), "{answer:?}");
    let mut old = signer.clone();
    old.at_ms -= 16 * MINUTE_MS;
    let request = old.request("PUT", HOST, "/photos/k", &[], &[("date", &http_date(old.at_ms))], b"x");
    assert_eq!(fixture.send(request).await.code(), "RequestTimeTooSkewed");
}

#[tokio::test]
async fn a_session_token_is_refused_and_an_empty_one_is_none() {
    const TOKEN: &str = "x-amz-security-token";
    let fixture = Fixture::new();
    let signer = fixture.signer("ann");
    for (token, status, code) in [("FwoGZXIv", 400, "InvalidToken"), ("", 200, "")] {
        let in_header = signer.request("PUT", HOST, "/photos/header", &[], &[(TOKEN, token)], b"x");
        let url = signer.presign("PUT", HOST, "/photos/url", &[("X-Amz-Security-Token", token)], "60");
        for request in [in_header, unsigned("PUT", HOST, &url, &[], b"x")] {
            let answer = fixture.send(request).await;
            assert_eq!((answer.status.as_u16(), answer.code()), (status, code), "{answer:?}");
        }
        assert_eq!(fixture.stored.lock().len(), if status == 200 { 2 } else { 0 });
    }
    // A key of AWS is unknown before its token is asked about.
    let mut unknown = signer;
    unknown.access_key = "ASIAIOSFODNN7EXAMPLE".into();
    let answer = fixture.send(unknown.request("GET", HOST, "/photos/k", &[], &[(TOKEN, "FwoGZXIv")], b"")).await;
    assert_eq!(answer.code(), "InvalidAccessKeyId", "{answer:?}");
}

#[tokio::test]
async fn a_presigned_url_serves_again_and_again_until_it_expires() {
    let fixture = Fixture::new();
    fixture.call("ann", "PUT", "/photos/k", &[], b"hello").await;
    let get = |url: String| fixture.send(unsigned("GET", HOST, &url, &[], b""));
    let mut signer = fixture.signer("ann");
    signer.at_ms -= 30 * MINUTE_MS;
    let url = signer.presign("GET", HOST, "/photos/k", &[], "3600");
    for _ in 0..2 {
        assert_eq!(get(url.clone()).await.body, "hello");
    }
    let expired = signer.presign("GET", HOST, "/photos/k", &[], "1790");
    let answer = get(expired).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "AccessDenied"));
    assert!(answer.body.contains("Request has expired"), "{}", answer.body);
    let too_long = signer.presign("GET", HOST, "/photos/k", &[], "604801");
    assert_eq!(get(too_long).await.code(), "AuthorizationQueryParametersError");
    assert_eq!(get(url.replace("/photos/k", "/photos/other")).await.code(), "SignatureDoesNotMatch");
    assert_eq!(get(url.replace("Expires=3600", "Expires=3601")).await.code(), "SignatureDoesNotMatch");
    let put = fixture.send(unsigned("PUT", HOST, &url, &[], b"x")).await;
    assert_eq!(put.code(), "SignatureDoesNotMatch", "a URL to read is none to write");
}

#[tokio::test]
async fn what_a_presigned_url_carries_for_headers_counts_as_these() {
    let fixture = Fixture::new();
    fixture.put_object("k", CannedAcl::Private, &[]);
    let signer = fixture.signer("ann");
    let put = |url: String| fixture.send(unsigned("PUT", HOST, &url, &[], b"hello"));
    let query = [
        ("x-amz-acl", "public-read"),
        // SDKs sign that of an empty body.
        ("x-amz-checksum-crc32", "AAAAAA=="),
        ("x-amz-meta-colour", "blue"),
        ("x-amz-meta-none", ""),
        ("x-amz-sdk-checksum-algorithm", "CRC32"),
        ("x-amz-tagging", "a=b"),
    ];
    let url = signer.presign("PUT", HOST, "/photos/k", &query, "60");
    let answer = put(url.clone()).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let stored = fixture.stored.lock()["photos/k"].clone();
    assert_eq!((stored.acl.as_deref(), stored.tagging.as_deref()), (Some("public-read"), Some("a=b")));
    let metadata = stored.metadata.unwrap();
    assert_eq!((metadata["colour"].as_str(), metadata["none"].as_str()), ("blue", ""));
    assert_eq!(put(url.replace("=public-read", "=private")).await.code(), "SignatureDoesNotMatch");

    let copy = signer.presign("PUT", HOST, "/photos/copy", &[("x-amz-copy-source", "/photos/k")], "60");
    let answer = put(copy).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert!(!fixture.stored.lock().contains_key("photos/copy"), "a copy is not the object of the body");
    let owner = signer.presign("PUT", HOST, "/photos/k", &[("x-amz-expected-bucket-owner", "bob")], "60");
    assert_eq!(put(owner).await.code(), "AccessDenied");
}

#[tokio::test]
async fn a_copy_by_url_whose_source_is_missing_names_the_source() {
    let cold = ColdReads::new(Arc::new(EmptyTiers), ColdReadSettings::default());
    let fixture = Fixture::of_front(Arc::new(MemoryChunkStore::new()), cold);
    let query = [("X-Amz-Copy-Source", "/photos/nobody")];
    let url = fixture.signer("ann").presign("PUT", HOST, "/photos/copy", &query, "60");
    let answer = fixture.send(unsigned("PUT", HOST, &url, &[], b"")).await;
    assert_eq!(answer.code(), "NoSuchKey", "{answer:?}");
    assert!(answer.body.contains("<Key>nobody</Key>"), "{answer:?}");
}

#[tokio::test]
async fn a_disabled_key_or_user_is_out_at_the_next_request() {
    let fixture = Fixture::new();
    let url = fixture.signer("ann").presign("PUT", HOST, "/photos/k", &[], "3600");
    let put = || fixture.send(unsigned("PUT", HOST, &url, &[], b"x"));
    assert_eq!(put().await.status, StatusCode::OK);
    fixture.store.change_key("KEY-ann", |key| key.enabled = false);
    assert_eq!(put().await.code(), "InvalidAccessKeyId");
    fixture.store.change_key("KEY-ann", |key| key.enabled = true);
    assert_eq!(put().await.status, StatusCode::OK);
    fixture.store.change_key("KEY-ann", |key| key.user.enabled = false);
    assert_eq!(put().await.code(), "AccessDenied");
    fixture.store.keys.lock().clear();
    assert_eq!(put().await.code(), "InvalidAccessKeyId");
}

#[tokio::test]
async fn a_secret_is_opened_once_and_again_after_it_was_rotated() {
    let fixture = Fixture::new();
    for _ in 0..3 {
        fixture.call("ann", "PUT", "/photos/k", &[], b"x").await;
    }
    assert_eq!(fixture.opened.load(Ordering::Relaxed), 1);
    fixture.store.change_key("KEY-ann", |key| key.sealed_secret = b"terces wen".to_vec());
    assert_eq!(fixture.call("ann", "PUT", "/photos/k", &[], b"x").await.code(), "SignatureDoesNotMatch");
    let mut rotated = fixture.signer("ann");
    rotated.secret = "new secret".into();
    assert_eq!(fixture.send(rotated.request("PUT", HOST, "/photos/k", &[], &[], b"x")).await.status, StatusCode::OK);
    assert_eq!(fixture.opened.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn signature_version_2_is_refused_in_header_and_url() {
    let fixture = Fixture::new();
    let header =
        fixture.anonymous("GET", "/photos/k", &[("authorization", "AWS KEY-ann:c2ln"), ("date", "x")], b"").await;
    assert_eq!(header.code(), "InvalidRequest");
    assert!(header.body.contains("AWS4-HMAC-SHA256"));
    let url =
        fixture.anonymous("GET", "/photos/k?AWSAccessKeyId=KEY-ann&Expires=99999999999&Signature=x", &[], b"").await;
    assert_eq!(url.code(), "InvalidRequest");
}

#[tokio::test]
async fn an_unsigned_chunked_payload_is_not_stored_with_its_framing() {
    let fixture = Fixture::new();
    fixture
        .put_policy(r#"{"Effect":"Allow","Principal":"*","Action":"s3:PutObject","Resource":"arn:aws:s3:::photos/*"}"#)
        .await;
    let streaming = [("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")];
    let answer = fixture.anonymous("PUT", "/photos/k", &streaming, b"5\r\nhello\r\n0\r\n\r\n").await;
    assert_eq!(answer.code(), "InvalidRequest");
    assert!(fixture.stored.lock().is_empty());
    assert_eq!(fixture.anonymous("PUT", "/photos/k", &[], b"hello").await.status, StatusCode::OK);
}

#[tokio::test]
async fn every_answer_carries_the_request_id_and_errors_carry_it_in_their_body() {
    let fixture = Fixture::new();
    fixture.put_object("k", CannedAcl::Private, &[]);
    let fine = fixture.call("ann", "GET", "/photos/k", &[], b"").await;
    assert_eq!(fine.header("x-amz-request-id").len(), 16);
    assert_eq!(fine.header("server"), "Holdfast");
    let error = fixture.anonymous("GET", "/photos/k%3C%26", &[], b"").await;
    let id = error.header("x-amz-request-id");
    assert_ne!(id, fine.header("x-amz-request-id"));
    assert!(error.body.contains(&format!("<RequestId>{id}</RequestId>")), "{}", error.body);
    assert!(error.body.contains("<Resource>/photos/k&lt;&amp;</Resource>"), "{}", error.body);
    assert!(error.body.contains("<HostId>node-of-test</HostId>"), "{}", error.body);
}
