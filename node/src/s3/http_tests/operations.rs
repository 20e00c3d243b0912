//! The table of operations against the service and against `docs/s3.md`.

use http::StatusCode;

use super::super::operations::{OPERATIONS, Operation, Target};
use super::support::{Fixture, HOST};

const DOCS: &str = include_str!("../../../../docs/s3.md");

fn path(operation: &Operation) -> String {
    let path = match operation.target {
        Target::Service => "/",
        Target::Bucket => "/photos",
        Target::Object => "/photos/k",
    };
    if operation.query.is_empty() { path.to_owned() } else { format!("{path}?{}", operation.query) }
}

#[tokio::test]
async fn what_the_table_calls_unsupported_answers_not_implemented() {
    let fixture = Fixture::new();
    for operation in OPERATIONS.iter().filter(|o| !o.supported) {
        let headers: &[(&str, &str)] = match operation.name {
            "WriteGetObjectResponse" => &[("x-amz-request-route", "r"), ("x-amz-request-token", "t")],
            _ => &[],
        };
        let answer = fixture.call("ann", operation.method, &path(operation), headers, b"").await;
        assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED, "{}: {answer:?}", operation.name);
        assert_eq!(answer.code(), "NotImplemented");
        let expected = format!("{} is not implemented", operation.name);
        assert!(answer.body.contains(&expected), "{} was taken for another operation: {}", operation.name, answer.body);
        let anonymous = fixture.anonymous(operation.method, &path(operation), &[], b"").await;
        assert!(anonymous.status.is_client_error() || anonymous.status == 501, "{}", operation.name);
    }
}

#[tokio::test]
async fn supported_operations_are_not_refused_by_access_control() {
    let fixture = Fixture::new();
    for operation in OPERATIONS.iter().filter(|o| o.supported) {
        let answer = fixture.call("ann", operation.method, &path(operation), &[], b"").await;
        let refused = format!("{} is not implemented by Holdfast", operation.name);
        assert!(!answer.body.contains(&refused) && answer.status != StatusCode::FORBIDDEN, "{answer:?}");
    }
}

#[tokio::test]
async fn keys_to_delete_are_looked_at_in_whatever_way_the_bucket_is_addressed() {
    let fixture = Fixture::new();
    for (host, path) in [(HOST, "/photos"), (HOST, "/photos/"), ("photos.s3.test", "/")] {
        for (key, status) in [("a", 200), ("a<![CDATA[/b]]>", 400)] {
            let body = format!("<Delete><Object><Key>{key}</Key></Object></Delete>");
            let request = fixture.signer("ann").request("POST", host, path, &[("delete", "")], &[], body.as_bytes());
            let answer = fixture.send(request).await;
            assert_eq!(answer.status.as_u16(), status, "{host} {path} {answer:?}");
            assert_eq!(answer.code(), if status == 200 { "" } else { "MalformedXML" });
        }
    }
}

#[tokio::test]
async fn a_document_with_too_much_in_it_is_refused_before_anything_is_made_of_it() {
    let fixture = Fixture::new();
    let keys =
        |count: usize| format!("<Delete>{}</Delete>", "<Object><Key>k</Key></Object>".repeat(count)).into_bytes();
    for (method, path) in [("POST", "/photos?delete"), ("PUT", "/photos/k?tagging")] {
        let answer = fixture.anonymous(method, path, &[], b"").await;
        assert_eq!(answer.code(), "AccessDenied", "nothing is read: {answer:?}");
    }
    assert_eq!(fixture.call("bob", "POST", "/photos?delete", &[], &keys(1_000)).await.status, StatusCode::OK);
    let policy = r#"{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/*"}"#;
    fixture.put_policy(policy).await;
    for count in [1_001, 6_000, 100_000] {
        for answer in [
            fixture.call("bob", "POST", "/photos?delete", &[], &keys(count)).await,
            fixture.anonymous("POST", "/photos?delete", &[], &keys(count)).await,
        ] {
            assert_eq!(answer.code(), "MalformedXML", "{count}");
        }
    }
    let parts = format!("<CompleteMultipartUpload>{}</CompleteMultipartUpload>", "<Part/>".repeat(300_000));
    let answer = fixture.call("ann", "POST", "/photos/k?uploadId=u", &[], parts.as_bytes()).await;
    assert_eq!(answer.code(), "MalformedXML");
}

/// The row of an operation in the documentation's table.
fn row(operation: &Operation) -> String {
    let path = match operation.target {
        Target::Service => "/",
        Target::Bucket => "/bucket",
        Target::Object => "/bucket/key",
    };
    let query = if operation.query.is_empty() { String::new() } else { format!("?{}", operation.query) };
    let permission = match (operation.action, operation.version_action) {
        ("", _) => "—".to_owned(),
        (action, "") => format!("`{action}`"),
        (action, version) => format!("`{action}`, `{version}`"),
    };
    let answer = if operation.supported { "yes" } else { "NotImplemented" };
    format!("| {} | `{} {path}{query}` | {permission} | {answer} |", operation.name, operation.method)
}

#[test]
fn the_documentation_lists_each_operation_as_the_code_has_it() {
    let listed: Vec<&str> =
        DOCS.lines().filter(|line| line.starts_with("| ") && line.matches('`').count() >= 2).collect();
    let listed: Vec<&str> =
        listed.into_iter().filter(|l| l.ends_with("| yes |") || l.ends_with("| NotImplemented |")).collect();
    let expected: Vec<String> = OPERATIONS.iter().map(row).collect();
    assert_eq!(listed, expected, "the table in docs/s3.md should be:\n{}", expected.join("\n"));
}

#[test]
fn the_documentation_names_the_limits_of_the_code() {
    use holdfast_actors::domain::access::cors::CORS_RULES_MAX;
    use holdfast_actors::domain::access::policy::POLICY_BYTES_MAX;
    for limit in [format!("{} KiB", POLICY_BYTES_MAX / 1024), format!("{CORS_RULES_MAX} rules")] {
        assert!(DOCS.contains(&limit), "{limit}");
    }
}

#[tokio::test]
async fn metadata_that_is_half_an_encoded_word_is_refused_and_nothing_else_is() {
    let fixture = Fixture::new();
    for value in ["=?=", "=?= =?=", "=?UTF-8?Q?a?= =?="] {
        let answer = fixture.call("ann", "PUT", "/photos/k", &[("x-amz-meta-a", value)], b"x").await;
        assert_eq!((answer.status, answer.code()), (StatusCode::BAD_REQUEST, "InvalidArgument"), "{value}: {answer:?}");
    }
    assert!(fixture.stored.lock().is_empty());
    for (value, kept) in [("a =?= b", "a =?= b"), ("=?", "=?"), ("?=", "?="), ("=?UTF-8?Q?=C3=A4?=", "\u{e4}")] {
        let answer = fixture.call("ann", "PUT", "/photos/k", &[("x-amz-meta-a", value)], b"x").await;
        assert_eq!(answer.status, StatusCode::OK, "{value}: {answer:?}");
        let metadata = fixture.stored.lock()["photos/k"].metadata.clone();
        assert_eq!(metadata.and_then(|metadata| metadata.get("a").cloned()).as_deref(), Some(kept), "{value}");
    }
}
