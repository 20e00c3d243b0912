//! `Expires` of an object that is no HTTP date, such as `0`.
//!
//! S3 keeps the text as it comes and gives it back. s3s takes dates only, and refuses anything else with 400 while it
//! parses the request. So the text is taken out of the request before s3s sees it, and kept beside it. One that the
//! signature covers has to stay, else the signature would not hold: such a request is refused. SDKs write dates
//! themselves; other texts come in forms and by presigned URLs, which do not cover this header.

use holdfast_actors::ports::metadata::ObjectVersion;
use http::header::EXPIRES;
use http::{Extensions, HeaderMap, HeaderValue, Method, Request};
use s3s::Body;

use super::ignored::{is_date, is_one_good, is_signed};

/// What was taken out of a request.
#[derive(Clone)]
struct Taken(String);

/// Takes the header out of a request that may store an object, unless s3s can read it.
pub(super) fn take_text(request: &mut Request<Body>) {
    if !matches!(*request.method(), Method::PUT | Method::POST) {
        return;
    }
    let headers = request.headers();
    if !headers.contains_key(EXPIRES) || is_one_good(headers, &EXPIRES, is_date) {
        return;
    }
    let Some(text) = one_text(headers).filter(|_| !is_signed(request.uri(), headers, &EXPIRES)) else { return };
    request.extensions_mut().insert(Taken(text));
    request.headers_mut().remove(EXPIRES);
}

/// The text, if the header is there once and not empty.
fn one_text(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(EXPIRES).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    value.to_str().ok().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// What was taken out of the request that these extensions are of.
pub(super) fn text_of(extensions: &Extensions) -> Option<String> {
    extensions.get::<Taken>().map(|taken| taken.0.clone())
}

/// The headers that an answer about an object carries beside those that s3s writes: the text, if it is no date.
pub(super) fn headers_of(object: &ObjectVersion) -> HeaderMap {
    let text = object.attributes.expires.as_deref().filter(|text| !is_date(text));
    let value = text.and_then(|text| HeaderValue::from_str(text).ok());
    value.map(|value| (EXPIRES, value)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(method: Method, uri: &'static str, values: &[&'static str]) -> (Option<String>, bool) {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = method;
        *request.uri_mut() = http::Uri::from_static(uri);
        for value in values {
            request.headers_mut().append(EXPIRES, HeaderValue::from_static(value));
        }
        take_text(&mut request);
        (text_of(request.extensions()), request.headers().contains_key(EXPIRES))
    }

    #[test]
    fn only_what_s3s_cannot_read_and_nobody_signed_is_taken() {
        let text = |text: &str| (Some(text.to_owned()), false);
        assert_eq!(taken(Method::PUT, "/b/k", &["0"]), text("0"));
        assert_eq!(taken(Method::POST, "/b/k?uploads", &["tomorrow, maybe"]), text("tomorrow, maybe"));
        assert_eq!(taken(Method::PUT, "/b/k?X-Amz-SignedHeaders=host", &["0"]), text("0"));
        for (method, uri, values) in [
            (Method::PUT, "/b/k", &["Mon, 30 Nov 2026 02:07:08 GMT"][..]),
            (Method::PUT, "/b/k?X-Amz-SignedHeaders=expires%3Bhost", &["0"][..]),
            (Method::PUT, "/b/k", &["0", "1"][..]),
            (Method::PUT, "/b/k", &[""][..]),
            (Method::GET, "/b/k", &["0"][..]),
        ] {
            assert_eq!(taken(method, uri, values), (None, true), "{uri} {values:?}");
        }
        assert_eq!(taken(Method::PUT, "/b/k", &[]), (None, false));
    }
}
