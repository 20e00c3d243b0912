//! Form uploads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use s3s::Body;

use super::signer::{Signer, amz_date, unsigned};
use super::support::{Answer, Fixture, HOST};

const BOUNDARY: &str = "----form-boundary-7MA4YWxk";

/// A form; the file comes last unless `after` names fields behind it.
fn form(fields: &[(String, String)], file: &[u8], after: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    let field = |name: &str, value: &str| {
        format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").into_bytes()
    };
    for (name, value) in fields {
        body.extend(field(name, value));
    }
    body.extend(
        format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"cat.png\"\r\n\
             Content-Type: image/png\r\n\r\n"
        )
        .into_bytes(),
    );
    body.extend_from_slice(file);
    body.extend_from_slice(b"\r\n");
    for (name, value) in after {
        body.extend(field(name, value));
    }
    body.extend(format!("--{BOUNDARY}--\r\n").into_bytes());
    body
}

/// A request whose body arrives in pieces, as over a network.
fn post(host: &str, path: &str, body: &[u8]) -> Request<Body> {
    let mut request = unsigned("POST", host, path, &[], body);
    let pieces: Vec<_> = body
        .chunks(16 * 1024)
        .map(|piece| Ok::<_, std::io::Error>(Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    *request.body_mut() = Body::http_body_unsync(StreamBody::new(futures::stream::iter(pieces)));
    let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
    request.headers_mut().insert("content-type", content_type.parse().unwrap());
    request
}

/// Fields signed by a policy that covers them; `conditions` come on top.
fn signed(signer: &Signer, fields: &[(&str, &str)], conditions: &str, valid_seconds: u64) -> Vec<(String, String)> {
    signed_for(r#"{"bucket":"photos"}"#, signer, fields, conditions, valid_seconds)
}

/// As [`signed`], with this condition about the bucket.
fn signed_for(
    bucket: &str,
    signer: &Signer,
    fields: &[(&str, &str)],
    conditions: &str,
    valid_seconds: u64,
) -> Vec<(String, String)> {
    let date = amz_date(signer.at_ms);
    let credential = format!("{}/{}", signer.access_key, signer.scope());
    let mut fields: Vec<(String, String)> = fields.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
    for (name, value) in
        [("x-amz-algorithm", "AWS4-HMAC-SHA256"), ("x-amz-credential", &credential), ("x-amz-date", &date)]
    {
        fields.push((name.into(), value.into()));
    }
    let now_s = (signer.at_ms / 1000 + valid_seconds) as i64;
    let expires = time::OffsetDateTime::from_unix_timestamp(now_s)
        .unwrap()
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap();
    let mut all: Vec<String> = fields.iter().map(|(n, v)| serde_json::json!({ n.as_str(): v }).to_string()).collect();
    all.push(bucket.into());
    all.extend((!conditions.is_empty()).then(|| conditions.to_owned()));
    let policy = format!(r#"{{"expiration":"{expires}","conditions":[{}]}}"#, all.join(","));
    let policy = base64::prelude::BASE64_STANDARD.encode(policy);
    fields.push(("x-amz-signature".into(), signer.sign_text(&policy)));
    fields.push(("policy".into(), policy));
    fields
}

async fn upload(fixture: &Fixture, fields: &[(String, String)], file: &[u8]) -> Answer {
    fixture.send(post(HOST, "/photos", &form(fields, file, &[]))).await
}

#[tokio::test]
async fn a_signed_form_stores_its_file_with_the_fields_as_headers() {
    let fixture = Fixture::new();
    let tags = "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>";
    let fields = signed(
        &fixture.signer("ann"),
        &[
            ("Key", "up/${filename}"),
            ("Content-Type", "image/png"),
            ("acl", "public-read"),
            ("x-amz-meta-camera", "old"),
            ("tagging", tags),
            ("x-amz-storage-class", "OSS"),
        ],
        "",
        600,
    );
    for (host, path) in [(HOST, "/photos"), (HOST, "/photos/"), ("photos.s3.test", "/")] {
        fixture.stored.lock().clear();
        let answer = fixture.send(post(host, path, &form(&fields, b"a picture\r\n--of a cat", &[]))).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{answer:?}");
        assert_eq!(answer.header("location"), format!("http://{host}{}/up/cat.png", path.trim_end_matches('/')));
        assert_eq!(answer.header("etag"), "\"etag\"");
        let stored = fixture.stored.lock()["photos/up/cat.png"].clone();
        assert_eq!(stored.bytes, b"a picture\r\n--of a cat");
        assert_eq!(stored.caller.as_deref(), Some("ann"));
        assert_eq!(stored.content_type.as_deref(), Some("image/png"));
        assert_eq!(stored.acl.as_deref(), Some("public-read"));
        assert_eq!(stored.tagging.as_deref(), Some("a=b"));
        assert_eq!(stored.class.as_deref(), Some("OSS"));
        assert_eq!(stored.metadata.unwrap()["camera"], "old");
    }
}

#[tokio::test]
async fn a_form_may_be_used_until_its_policy_expires() {
    let fixture = Fixture::new();
    let mut hour_ago = fixture.signer("ann");
    hour_ago.at_ms -= 3_600_000;
    let answer = upload(&fixture, &signed(&hour_ago, &[("key", "k")], "", 7200), b"x").await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{answer:?}");
    let answer = upload(&fixture, &signed(&hour_ago, &[("key", "k")], "", 3500), b"x").await;
    assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "AccessDenied"));
    assert!(answer.body.contains("expired"));
    let mut tomorrow = fixture.signer("ann");
    tomorrow.at_ms += 86_400_000;
    let answer = upload(&fixture, &signed(&tomorrow, &[("key", "k")], "", 600), b"x").await;
    assert_eq!(answer.code(), "RequestTimeTooSkewed");
}

#[tokio::test]
async fn a_policy_sees_how_long_ago_a_form_was_signed() {
    let fixture = Fixture::new();
    let put = r#""Principal":{"AWS":"bob"},"Action":"s3:PutObject","Resource":"arn:aws:s3:::photos/*""#;
    let old = r#""Condition":{"NumericGreaterThan":{"s3:signatureAge":"600000"}}"#;
    fixture.put_policy(&format!(r#"{{"Effect":"Allow",{put}}},{{"Effect":"Deny",{put},{old}}}"#)).await;
    let mut signer = fixture.signer("bob");
    let answer = upload(&fixture, &signed(&signer, &[("key", "k")], "", 7200), b"x").await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{answer:?}");
    signer.at_ms -= 1_200_000;
    let answer = upload(&fixture, &signed(&signer, &[("key", "k")], "", 7200), b"x").await;
    assert_eq!(answer.code(), "AccessDenied", "{answer:?}");
}

#[tokio::test]
async fn a_form_that_breaks_its_policy_or_signature_stores_nothing() {
    let fixture = Fixture::new();
    let signer = fixture.signer("ann");
    let good = signed(&signer, &[("key", "k")], r#"["content-length-range",2,4]"#, 600);
    let change = |name: &str, value: &str| -> Vec<(String, String)> {
        good.iter().map(|(n, v)| (n.clone(), if n == name { value.into() } else { v.clone() })).collect()
    };
    let mut wrong = signer.clone();
    wrong.secret.push('x');
    let mut nobody = signer.clone();
    nobody.access_key = "KEY-nobody".into();
    let mut extra = good.clone();
    extra.insert(0, ("acl".into(), "public-read".into()));
    let mut version_2 = good.clone();
    version_2.insert(0, ("AWSAccessKeyId".into(), "KEY-ann".into()));
    for (fields, file, code) in [
        (good.clone(), &b"12345"[..], "EntityTooLarge"),
        (good.clone(), b"1", "EntityTooSmall"),
        (change("key", "other"), b"123", "AccessDenied"),
        (change("x-amz-signature", &"0".repeat(64)), b"123", "SignatureDoesNotMatch"),
        (change("x-amz-signature", "zz"), b"123", "SignatureDoesNotMatch"),
        (change("policy", "e30="), b"123", "SignatureDoesNotMatch"),
        (signed(&wrong, &[("key", "k")], "", 600), b"123", "SignatureDoesNotMatch"),
        (signed(&nobody, &[("key", "k")], "", 600), b"123", "InvalidAccessKeyId"),
        (extra, b"123", "AccessDenied"),
        (version_2, b"123", "InvalidRequest"),
        (good.iter().filter(|(n, _)| n != "key").cloned().collect(), b"123", "AccessDenied"),
        (good.iter().filter(|(n, _)| n != "x-amz-signature").cloned().collect(), b"123", "InvalidArgument"),
        (Vec::new(), b"123", "InvalidArgument"),
        (signed(&fixture.signer("bob"), &[("key", "k")], "", 600), b"123", "AccessDenied"),
    ] {
        let answer = upload(&fixture, &fields, file).await;
        assert_eq!(answer.code(), code, "{fields:?}\n{answer:?}");
        assert!(fixture.stored.lock().is_empty());
    }
    assert_eq!(upload(&fixture, &good, b"123").await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_policy_may_mean_the_key_with_the_name_of_the_file() {
    let fixture = Fixture::new();
    let signer = fixture.signer("ann");
    // The key is not signed as the form has it, but by the condition.
    let fields = |key: &str, condition: &str| -> Vec<(String, String)> {
        let mut fields = signed(&signer, &[], condition, 600);
        fields.insert(0, ("key".into(), key.into()));
        fields
    };
    for (key, condition, is_let_in) in [
        ("${filename}", r#"["starts-with","$key","cat"]"#, true),
        ("${filename}", r#"{"key":"cat.png"}"#, true),
        ("up/${filename}", r#"{"key":"up/${filename}"}"#, true),
        ("up/${filename}", r#"["starts-with","$key","up/"]"#, true),
        ("${filename}", r#"["starts-with","$key","dog"]"#, false),
        ("${filename}", r#"["starts-with","$key","up/"]"#, false),
        ("${filename}", r#"{"key":"dog.png"}"#, false),
    ] {
        fixture.stored.lock().clear();
        let answer = upload(&fixture, &fields(key, condition), b"x").await;
        assert_eq!(answer.status == StatusCode::NO_CONTENT, is_let_in, "{key} {condition} {answer:?}");
        assert_eq!(
            fixture.stored.lock().contains_key(&format!("photos/{}", key.replace("${filename}", "cat.png"))),
            is_let_in
        );
        assert!(is_let_in || answer.code() == "AccessDenied", "{answer:?}");
    }
}

#[tokio::test]
async fn a_form_with_a_session_token_is_refused() {
    let fixture = Fixture::new();
    let signer = fixture.signer("ann");
    let with = |token: &str| signed(&signer, &[("key", "k"), ("x-amz-security-token", token)], "", 600);
    assert_eq!(upload(&fixture, &with("FwoGZXIv"), b"x").await.code(), "InvalidToken");
    assert!(fixture.stored.lock().is_empty());
    assert_eq!(upload(&fixture, &with(""), b"x").await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_form_for_another_bucket_is_refused_by_its_policy() {
    let fixture = Fixture::new();
    let signer = fixture.signer("ann");
    let elsewhere = signed_for(r#"{"bucket":"elsewhere"}"#, &signer, &[("key", "k"), ("bucket", "elsewhere")], "", 600);
    assert_eq!(upload(&fixture, &elsewhere, b"x").await.code(), "AccessDenied");
    let mut field = signed_for(r#"["starts-with","$bucket",""]"#, &signer, &[("key", "k")], "", 600);
    field.insert(0, ("bucket".into(), "elsewhere".into()));
    assert_eq!(upload(&fixture, &field, b"x").await.code(), "InvalidArgument");
    assert!(fixture.stored.lock().is_empty());
}

#[tokio::test]
async fn an_anonymous_form_is_let_in_by_the_bucket_policy_only() {
    let fixture = Fixture::new();
    let fields = [("key".to_owned(), "drop/x".to_owned())];
    assert_eq!(upload(&fixture, &fields, b"x").await.code(), "AccessDenied");
    fixture
        .put_policy(
            r#"{"Effect":"Allow","Principal":"*","Action":"s3:PutObject","Resource":"arn:aws:s3:::photos/drop/*"}"#,
        )
        .await;
    assert_eq!(upload(&fixture, &fields, b"x").await.status, StatusCode::NO_CONTENT);
    assert_eq!(fixture.stored.lock()["photos/drop/x"].caller, None);
    let elsewhere = [("key".to_owned(), "x".to_owned())];
    assert_eq!(upload(&fixture, &elsewhere, b"x").await.code(), "AccessDenied");
}

#[tokio::test]
async fn the_answer_is_the_one_that_the_form_asks_for() {
    let fixture = Fixture::new();
    let signer = fixture.signer("ann");
    let with = |name: &'static str, value: &'static str| signed(&signer, &[("key", "a&b"), (name, value)], "", 600);
    for (value, status) in [
        ("200", StatusCode::OK),
        ("201", StatusCode::CREATED),
        ("204", StatusCode::NO_CONTENT),
        ("404", StatusCode::NO_CONTENT),
    ] {
        let answer = upload(&fixture, &with("success_action_status", value), b"x").await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.body.contains("<Key>a&amp;b</Key>"), value == "201", "{}", answer.body);
    }
    let answer = upload(&fixture, &with("success_action_redirect", "https://example.com/done?x=1"), b"x").await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    assert_eq!(answer.header("location"), "https://example.com/done?x=1&bucket=photos&key=a%26b&etag=%22etag%22");
    let answer = upload(&fixture, &with("success_action_redirect", "javascript:alert(1)"), b"x").await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn large_files_stream_and_must_come_last() {
    let fixture = Fixture::new();
    let fields = signed(&fixture.signer("ann"), &[("key", "k")], "", 600);
    let file: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(upload(&fixture, &fields, &file).await.status, StatusCode::NO_CONTENT);
    assert_eq!(fixture.stored.lock().remove("photos/k").unwrap().bytes, file);
    let button = [("submit", "Upload")];
    let answer = fixture.send(post(HOST, "/photos", &form(&fields, &file, &button))).await;
    assert_eq!(answer.code(), "MalformedPOSTRequest", "{answer:?}");
    assert!(fixture.stored.lock().is_empty());
    let small = fixture.send(post(HOST, "/photos", &form(&fields, b"small", &button))).await;
    assert_eq!(small.status, StatusCode::NO_CONTENT, "{small:?}");
    assert_eq!(fixture.stored.lock()["photos/k"].bytes, b"small");
}

#[tokio::test]
async fn a_form_cut_off_stores_nothing() {
    let fixture = Fixture::new();
    let fields = signed(&fixture.signer("ann"), &[("key", "k")], "", 600);
    for size in [10, 2_000_000] {
        let whole = form(&fields, &vec![7; size], &[]);
        let mut request = post(HOST, "/photos", &whole[..whole.len() - 60]);
        request.headers_mut().insert("content-length", whole.len().into());
        let answer = fixture.send(request).await;
        assert_eq!(answer.code(), "IncompleteBody", "{answer:?}");
        assert!(fixture.stored.lock().is_empty());
    }
}

#[tokio::test]
async fn a_form_for_an_object_or_for_no_bucket_is_refused() {
    let fixture = Fixture::new();
    let body = form(&[("key".into(), "k".into())], b"x", &[]);
    for path in ["/photos/k", "/"] {
        assert_eq!(fixture.send(post(HOST, path, &body)).await.code(), "MethodNotAllowed", "{path}");
    }
    assert_eq!(fixture.send(post(HOST, "/nowhere", &body)).await.code(), "NoSuchBucket");
}

#[tokio::test]
async fn a_post_to_a_bucket_that_is_no_form_is_told_so() {
    let fixture = Fixture::new();
    for kind in ["application/x-www-form-urlencoded", "text/plain", ""] {
        let headers = [("content-type", kind)];
        for path in ["/photos", "/photos/"] {
            for answer in [
                fixture.call("ann", "POST", path, &headers, b"key=k&file=x").await,
                fixture.anonymous("POST", path, &headers, b"key=k&file=x").await,
            ] {
                assert_eq!((answer.status.as_u16(), answer.code()), (412, "PreconditionFailed"), "{answer:?}");
                assert!(answer.body.contains("multipart/form-data"), "{answer:?}");
            }
        }
        for (path, code) in [("/photos?delete", "MalformedXML"), ("/photos/k", "NotImplemented")] {
            let answer = fixture.call("ann", "POST", path, &headers, b"key=k&file=x").await;
            assert_eq!(answer.code(), code, "{path} {answer:?}");
        }
    }
    assert!(fixture.stored.lock().is_empty());
}

#[tokio::test]
async fn a_form_whose_type_is_written_strangely_is_not_collected_in_memory() {
    let fixture = Fixture::new();
    let plain = format!("multipart/form-data; boundary={BOUNDARY}");
    let named = format!("{plain}; charset=\"\u{e9}\"");
    for values in [
        &[named.as_bytes()][..],
        &[&b"\xff"[..], plain.as_bytes()],
        &[&b"text/plain"[..], plain.as_bytes()],
        &[&b"MULTIPART/FORM-DATA+xml; boundary=x"[..]],
    ] {
        let mut request = post(HOST, "/photos", b"");
        request.headers_mut().remove("content-type");
        for value in values {
            request.headers_mut().append("content-type", http::HeaderValue::from_bytes(value).unwrap());
        }
        let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n");
        let read = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&read);
        let file = futures::stream::repeat(Bytes::from(vec![0; 64 * 1024])).take(1_000);
        let pieces = futures::stream::once(async move { Bytes::from(head) }).chain(file).map(move |piece| {
            counter.fetch_add(piece.len(), Ordering::Relaxed);
            Ok::<_, std::io::Error>(Frame::data(piece))
        });
        *request.body_mut() = Body::http_body_unsync(StreamBody::new(pieces));
        let answer = fixture.send(request).await;
        assert!(answer.status.is_client_error(), "{values:?} {answer:?}");
        let read = read.load(Ordering::Relaxed);
        assert!(read < 4 << 20, "{values:?}: {read} bytes were read");
    }
}

#[tokio::test]
async fn a_form_puts_an_object_whatever_its_address_looks_like() {
    let fixture = Fixture::new();
    let fields = signed_for(r#"["starts-with","$bucket","photos"]"#, &fixture.signer("ann"), &[("key", "k")], "", 600);
    let policy =
        r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":"arn:aws:s3:::photos/*"}]}"#;
    let body = form(&fields, policy.as_bytes(), &[]);
    for path in
        ["/photos%3Fpolicy%26x%3D", "/photos%3Fpolicy%26x%3D/", "/photos%23", "/photos%3Facl%26x=", "/photos%0A"]
    {
        let answer = fixture.send(post(HOST, path, &body)).await;
        assert_eq!(answer.code(), "InvalidBucketName", "{path} {answer:?}");
    }
    assert_eq!(fixture.call("ann", "GET", "/photos?policy", &[], b"").await.code(), "NoSuchBucketPolicy");
    assert_eq!(fixture.send(post(HOST, "/photos", &body)).await.status, StatusCode::NO_CONTENT);
}
