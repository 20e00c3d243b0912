//! `Range` headers that S3 ignores.
//!
//! S3 answers one well-formed range of bytes with 206 and ignores everything else: several ranges, other units, nonsense.
//! s3s refuses those with 400 while it parses the request, so they are taken away before it sees them. A range that the
//! signature covers has to stay, else the signature would not hold; s3s's 400 then says what is wrong.

use http::header::{AUTHORIZATION, RANGE};
use http::{HeaderMap, Method, Uri};

use super::facts::query_value;

/// Takes the `Range` header of a read away if S3 would ignore it.
pub(super) fn drop_ignored(method: &Method, uri: &Uri, headers: &mut HeaderMap) {
    if !matches!(*method, Method::GET | Method::HEAD) || !headers.contains_key(RANGE) {
        return;
    }
    if is_one_range(headers) || is_signed(uri, headers) {
        return;
    }
    headers.remove(RANGE);
}

fn is_one_range(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    value.to_str().is_ok_and(|text| s3s::dto::Range::parse(text).is_ok())
}

fn is_signed(uri: &Uri, headers: &HeaderMap) -> bool {
    let lists_range = |names: &str| names.split(';').any(|name| name.trim() == "range");
    let in_header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).is_some_and(|text| {
        text.split([',', ' ']).filter_map(|field| field.trim().strip_prefix("SignedHeaders=")).any(lists_range)
    });
    in_header || query_value(uri.query().unwrap_or_default(), "X-Amz-SignedHeaders").is_some_and(|n| lists_range(&n))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn survives(
        method: Method,
        uri: &'static str,
        authorization: Option<&'static str>,
        ranges: &[&'static str],
    ) -> bool {
        let mut headers = HeaderMap::new();
        for range in ranges {
            headers.append(RANGE, HeaderValue::from_static(range));
        }
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, HeaderValue::from_static(authorization));
        }
        drop_ignored(&method, &Uri::from_static(uri), &mut headers);
        headers.contains_key(RANGE)
    }

    #[test]
    fn one_well_formed_range_stays_and_others_are_ignored() {
        for good in ["bytes=0-0", "bytes=5-", "bytes=-7", "bytes=0-99999999"] {
            assert!(survives(Method::GET, "/b/k", None, &[good]), "{good}");
        }
        for ignored in ["bytes=0-1,3-4", "bytes=5-2", "bytes=", "bytes=a-b", "lines=1-2", "", "bytes=--1"] {
            assert!(!survives(Method::GET, "/b/k", None, &[ignored]), "{ignored}");
            assert!(!survives(Method::HEAD, "/b/k", None, &[ignored]), "{ignored}");
        }
        assert!(!survives(Method::GET, "/b/k", None, &["bytes=0-1", "bytes=2-3"]));
        assert!(survives(Method::PUT, "/b/k", None, &["bytes=0-1,3-4"]));
    }

    #[test]
    fn a_signed_range_stays_so_that_the_signature_holds() {
        let signed =
            "AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/s3/aws4_request, SignedHeaders=host;range, Signature=0";
        let unsigned =
            "AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        assert!(survives(Method::GET, "/b/k", Some(signed), &["bytes=0-1,3-4"]));
        assert!(!survives(Method::GET, "/b/k", Some(unsigned), &["bytes=0-1,3-4"]));
        assert!(survives(Method::GET, "/b/k?X-Amz-SignedHeaders=host%3Brange", None, &["bytes=0-1,3-4"]));
        assert!(!survives(Method::GET, "/b/k?X-Amz-SignedHeaders=host", None, &["bytes=0-1,3-4"]));
    }
}
