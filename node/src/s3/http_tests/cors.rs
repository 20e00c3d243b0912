//! Browsers.

use http::StatusCode;

use super::support::{Answer, Fixture};

const RULES: &[u8] = b"<CORSConfiguration><CORSRule><ID>app</ID><AllowedOrigin>https://*.example.com</AllowedOrigin>\
    <AllowedMethod>GET</AllowedMethod><AllowedMethod>PUT</AllowedMethod><AllowedHeader>*</AllowedHeader>\
    <ExposeHeader>ETag</ExposeHeader><MaxAgeSeconds>600</MaxAgeSeconds></CORSRule></CORSConfiguration>";

async fn with_rules() -> Fixture {
    let fixture = Fixture::new();
    let answer = fixture.call("ann", "PUT", "/photos?cors", &[], RULES).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    fixture
}

async fn preflight(fixture: &Fixture, path: &str, origin: &str, method: &str) -> Answer {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", method),
        ("access-control-request-headers", "X-Amz-Date, content-type"),
    ];
    fixture.anonymous("OPTIONS", path, &headers, b"").await
}

#[tokio::test]
async fn a_preflight_is_answered_without_a_signature() {
    let fixture = with_rules().await;
    let answer = preflight(&fixture, "/photos/k", "https://app.example.com", "PUT").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("access-control-allow-origin"), "https://app.example.com");
    assert_eq!(answer.header("access-control-allow-methods"), "GET, PUT");
    assert_eq!(answer.header("access-control-allow-headers"), "x-amz-date, content-type");
    assert_eq!(answer.header("access-control-expose-headers"), "ETag");
    assert_eq!(answer.header("access-control-max-age"), "600");
    assert_eq!(answer.header("access-control-allow-credentials"), "true");
    assert!(answer.header("vary").contains("Origin"));
}

#[tokio::test]
async fn a_preflight_that_no_rule_allows_is_forbidden() {
    let fixture = with_rules().await;
    for (path, origin, method) in [
        ("/photos/k", "https://evil.org", "PUT"),
        ("/photos/k", "https://app.example.com", "DELETE"),
        ("/drafts/k", "https://app.example.com", "GET"),
        ("/nowhere/k", "https://app.example.com", "GET"),
        ("/", "https://app.example.com", "GET"),
    ] {
        let answer = preflight(&fixture, path, origin, method).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "AccessForbidden"), "{path} {origin}");
        assert_eq!(answer.header("access-control-allow-origin"), "");
    }
    let answer = fixture.anonymous("OPTIONS", "/photos/k", &[], b"").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn what_no_bucket_can_be_called_is_not_looked_for() {
    let fixture = with_rules().await;
    let photos = fixture.store.buckets.lock()["photos"].clone();
    let long = "a".repeat(3_000);
    for (name, looked_for) in [("others", true), ("Others", false), (&*long, false)] {
        // It is there, for who looks.
        fixture.store.buckets.lock().insert(name.to_owned(), photos.clone());
        let answer = preflight(&fixture, &format!("/{name}/k"), "https://app.example.com", "PUT").await;
        assert_eq!(answer.status.is_success(), looked_for, "{} {answer:?}", name.len());
    }
}

#[tokio::test]
async fn actual_answers_carry_the_headers_also_when_they_are_errors() {
    let fixture = with_rules().await;
    for origin in ["https://app.example.com", "https://evil.org"] {
        let allowed = if origin.ends_with("example.com") { origin } else { "" };
        let fine = fixture.call("ann", "PUT", "/photos/k", &[("origin", origin)], b"x").await;
        assert_eq!(fine.status, StatusCode::OK);
        assert_eq!(fine.header("access-control-allow-origin"), allowed);
        let error = fixture.anonymous("GET", "/photos/k", &[("origin", origin)], b"").await;
        assert_eq!(error.status, StatusCode::FORBIDDEN);
        assert_eq!(error.header("access-control-allow-origin"), allowed, "the page must be able to read the error");
    }
    let other = fixture.call("ann", "DELETE", "/photos/k", &[("origin", "https://app.example.com")], b"").await;
    assert_eq!(other.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn rules_are_read_back_and_forgotten_at_once_when_deleted() {
    let fixture = with_rules().await;
    let rules = fixture.call("ann", "GET", "/photos?cors", &[], b"").await;
    assert!(rules.body.contains("<AllowedOrigin>https://*.example.com</AllowedOrigin>"), "{}", rules.body);
    assert!(rules.body.contains("<MaxAgeSeconds>600</MaxAgeSeconds>"));
    fixture.call("ann", "DELETE", "/photos?cors", &[], b"").await;
    let answer = preflight(&fixture, "/photos/k", "https://app.example.com", "PUT").await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
}
