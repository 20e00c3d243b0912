//! Headers of a read that S3 ignores: a `Range` that is not one well-formed range of bytes, and conditions by dates
//! that are none.
//!
//! s3s refuses those with 400 while it parses the request, so they are taken away before it sees them. One that the
//! signature covers has to stay, else the signature would not hold; then the request is given to s3s once more without
//! it, as the one that was allowed ([`Again`]).

use http::header::{AUTHORIZATION, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, RANGE};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri};
use s3s::Body;
use s3s::dto::{Timestamp, TimestampFormat};

use super::facts::query_value;
use super::request_id::RequestContext;

/// Whether S3 does not ignore a value.
type Rule = fn(&str) -> bool;

/// Takes what S3 would ignore away from the headers of a read. What the signature covers stays, and is named.
fn drop_ignored(method: &Method, uri: &Uri, headers: &mut HeaderMap) -> Vec<HeaderName> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Vec::new();
    }
    let mut kept = Vec::new();
    let rules: [(HeaderName, Rule); 3] =
        [(RANGE, is_range), (IF_MODIFIED_SINCE, is_date), (IF_UNMODIFIED_SINCE, is_date)];
    for (name, is_good) in rules {
        if !headers.contains_key(&name) || is_one_good(headers, &name, is_good) {
            continue;
        }
        if is_signed(uri, headers, &name) {
            kept.push(name);
        } else {
            headers.remove(&name);
        }
    }
    kept
}

fn is_range(text: &str) -> bool {
    // s3s takes a suffix without a length for the last 0 bytes.
    text != "bytes=-" && s3s::dto::Range::parse(text).is_ok()
}

/// Whether s3s can read a date in a header.
pub(super) fn is_date(text: &str) -> bool {
    Timestamp::parse(TimestampFormat::HttpDate, text).is_ok()
}

/// Whether a header is there once, with a value that is not ignored.
pub(super) fn is_one_good(headers: &HeaderMap, name: &HeaderName, is_good: Rule) -> bool {
    let mut values = headers.get_all(name).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    value.to_str().is_ok_and(is_good)
}

/// Whether the signature of a request covers a header.
pub(super) fn is_signed(uri: &Uri, headers: &HeaderMap, name: &HeaderName) -> bool {
    let lists = |names: &str| names.split(';').any(|listed| listed.trim() == name.as_str());
    let in_header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).is_some_and(|text| {
        text.split([',', ' ']).filter_map(|field| field.trim().strip_prefix("SignedHeaders=")).any(lists)
    });
    in_header || query_value(uri.query().unwrap_or_default(), "X-Amz-SignedHeaders").is_some_and(|n| lists(&n))
}

/// A read whose signature covers a header that is to be ignored.
pub(super) struct Again {
    head: Request<()>,
}

impl Again {
    /// Takes what S3 would ignore away from a request; gives what is left to be done for what has to stay at first.
    pub(super) fn of(request: &mut Request<Body>, context: &RequestContext) -> Option<Self> {
        // Most requests have none of them, and need no copies.
        if ![RANGE, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE].iter().any(|name| request.headers().contains_key(name)) {
            return None;
        }
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let kept = drop_ignored(&method, &uri, request.headers_mut());
        if kept.is_empty() {
            return None;
        }
        context.keep_grant();
        let mut head = Request::new(());
        *head.method_mut() = method;
        *head.uri_mut() = without_signature(&uri)?;
        *head.version_mut() = request.version();
        head.headers_mut().clone_from(request.headers());
        head.extensions_mut().clone_from(request.extensions());
        head.headers_mut().remove(AUTHORIZATION);
        for name in kept {
            head.headers_mut().remove(name);
        }
        Some(Self { head })
    }

    /// The request without the header, if it was allowed and then refused.
    pub(super) fn after(self, response: &Response<Body>, context: &RequestContext) -> Option<Request<Body>> {
        // What s3s cannot read is 400, and 416 is its suffix without a length.
        if !matches!(response.status(), StatusCode::BAD_REQUEST | StatusCode::RANGE_NOT_SATISFIABLE) {
            return None;
        }
        let mut request = self.head.map(|()| Body::empty());
        request.extensions_mut().insert(context.take_granted()?);
        Some(request)
    }
}

/// A target without what signs it.
pub(super) fn without_signature(uri: &Uri) -> Option<Uri> {
    let Some(query) = uri.query() else { return Some(uri.clone()) };
    let left: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with("X-Amz-")).collect();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{}?{}", uri.path(), left.join("&")).parse().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn survives(
        method: Method,
        uri: &'static str,
        authorization: Option<&'static str>,
        (name, values): (HeaderName, &[&'static str]),
    ) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_static(value));
        }
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, HeaderValue::from_static(authorization));
        }
        drop_ignored(&method, &Uri::from_static(uri), &mut headers);
        headers.contains_key(name)
    }

    #[test]
    fn one_well_formed_range_stays_and_others_are_ignored() {
        for good in ["bytes=0-0", "bytes=5-", "bytes=-7", "bytes=0-99999999"] {
            assert!(survives(Method::GET, "/b/k", None, (RANGE, &[good])), "{good}");
        }
        for ignored in ["bytes=0-1,3-4", "bytes=5-2", "bytes=", "bytes=-", "bytes=a-b", "lines=1-2", "", "bytes=--1"] {
            assert!(!survives(Method::GET, "/b/k", None, (RANGE, &[ignored])), "{ignored}");
            assert!(!survives(Method::HEAD, "/b/k", None, (RANGE, &[ignored])), "{ignored}");
        }
        assert!(!survives(Method::GET, "/b/k", None, (RANGE, &["bytes=0-1", "bytes=2-3"])));
        assert!(survives(Method::PUT, "/b/k", None, (RANGE, &["bytes=0-1,3-4"])));
    }

    #[test]
    fn dates_stay_and_what_is_none_is_ignored() {
        for name in [IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE] {
            let good = "Mon, 30 Nov 2026 02:07:08 GMT";
            assert!(survives(Method::GET, "/b/k", None, (name.clone(), &[good])));
            assert!(!survives(Method::HEAD, "/b/k", None, (name.clone(), &["yesterday"])));
        }
    }

    #[test]
    fn a_signed_range_stays_so_that_the_signature_holds() {
        let signed =
            "AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/s3/aws4_request, SignedHeaders=host;range, Signature=0";
        let unsigned =
            "AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        let ranges = (RANGE, &["bytes=0-1,3-4"][..]);
        assert!(survives(Method::GET, "/b/k", Some(signed), ranges.clone()));
        assert!(!survives(Method::GET, "/b/k", Some(unsigned), ranges.clone()));
        assert!(survives(Method::GET, "/b/k?X-Amz-SignedHeaders=host%3Brange", None, ranges.clone()));
        assert!(!survives(Method::GET, "/b/k?X-Amz-SignedHeaders=host", None, ranges));
    }

    #[test]
    fn a_target_without_its_signature_asks_for_the_same() {
        let uri = Uri::from_static("/b/k?X-Amz-Signature=0&versionId=v&X-Amz-Date=d&response-expires=e");
        assert_eq!(without_signature(&uri).unwrap(), "/b/k?versionId=v&response-expires=e");
        assert_eq!(without_signature(&Uri::from_static("/b/k")).unwrap(), "/b/k");
    }
}
