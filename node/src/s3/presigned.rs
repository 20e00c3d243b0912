//! Headers that a presigned URL carries as parameters.
//!
//! A URL is handed to somebody who knows nothing of headers, so the SDKs for JavaScript, Go and Ruby write those that
//! begin with `x-amz-` into its query (`x-amz-acl`, `x-amz-meta-colour`), and S3 takes them for the headers. To s3s
//! they are nothing: an object would be stored without its metadata, and a copy as an empty object. So they become
//! headers before s3s sees the request. The signature covers the whole query, and s3s compares it: nobody but the
//! signer can have put them there.
//!
//! Not those that describe a body. Whoever signs a URL does not have it: SDKs write the checksum of an empty body into
//! each URL for a PUT, and S3 passes over that.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, Request};
use s3s::{Body, S3Result};
use url::form_urlencoded;

use super::errors::invalid_argument;
use super::facts::query_value;

/// What these parameters, and the headers of that name, begin with.
const PREFIX: &str = "x-amz-";

/// Parameters that are no headers: the signature itself.
const SIGNATURE: [&str; 8] = [
    "x-amz-algorithm",
    "x-amz-content-sha256",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-signedheaders",
];

/// And what is said of a body.
const BODY: [&str; 3] = ["x-amz-decoded-content-length", "x-amz-sdk-checksum-algorithm", "x-amz-trailer"];

/// Whether a parameter of a query is one of S3's, however it is written.
pub(super) fn is_amz(name: &str) -> bool {
    name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// Whether a parameter stands for the header of its name, however that is written.
fn is_header(name: &str) -> bool {
    const CHECKSUM: &str = "x-amz-checksum-";
    let is_one_of = |names: &[&str], name: &str| names.iter().any(|one| one.eq_ignore_ascii_case(name));
    let is_checksum = name.split_at_checked(CHECKSUM.len()).is_some_and(|(start, kind)| {
        start.eq_ignore_ascii_case(CHECKSUM) && !is_one_of(&["algorithm", "mode", "type"], kind)
    });
    is_amz(name) && !is_checksum && !is_one_of(&SIGNATURE, name) && !is_one_of(&BODY, name)
}

/// What the URL of a presigned request carries for a header of this name.
pub(super) fn carried<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    query_value(query, "X-Amz-Signature")?;
    form_urlencoded::parse(query.as_bytes()).find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Makes headers of what a presigned URL carries for them. A header that the request has stays as it is: it is signed
/// too.
///
/// # Errors
/// `InvalidArgument` for what cannot be a header.
pub(super) fn take_headers(request: &mut Request<Body>) -> S3Result<()> {
    let query = request.uri().query().unwrap_or_default();
    if query_value(query, "X-Amz-Signature").is_none() {
        return Ok(());
    }
    let mut taken = HeaderMap::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if !is_header(&name) {
            continue;
        }
        let (Ok(header), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value.as_bytes()))
        else {
            return Err(invalid_argument("A parameter of the URL that stands for a header cannot be one."));
        };
        if request.headers().contains_key(&header) {
            continue;
        }
        // Twice is an error, as it is for headers: s3s says so.
        taken.append(header, value);
    }
    request.headers_mut().extend(taken);
    Ok(())
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::fuzz::{Target, damage};
    use http::Uri;

    use super::*;

    fn headers(query: &str, given: &[(&'static str, &'static str)]) -> Result<Vec<(String, String)>, String> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = format!("/b/k?{query}").parse().unwrap();
        for (name, value) in given {
            request.headers_mut().insert(*name, HeaderValue::from_static(value));
        }
        take_headers(&mut request).map_err(|error| error.code().as_str().to_owned())?;
        let text = |value: &HeaderValue| String::from_utf8(value.as_bytes().to_vec()).unwrap();
        let mut headers: Vec<_> =
            request.headers().iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
        headers.sort();
        Ok(headers)
    }

    fn pairs(expected: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
        Ok(expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn parameters_of_a_presigned_url_become_headers() {
        let query = "X-Amz-Acl=public-read&x-amz-meta-colour=bl%C3%A4u+gr%C3%BCn&x-amz-checksum-mode=ENABLED&prefix=p\
                     &x-amz-tagging=a%3Db%26c&X-Amz-Signature=0";
        let expected = [
            ("x-amz-acl", "public-read"),
            ("x-amz-checksum-mode", "ENABLED"),
            ("x-amz-meta-colour", "bläu grün"),
            ("x-amz-tagging", "a=b&c"),
        ];
        assert_eq!(headers(query, &[]), pairs(&expected));
        assert_eq!(headers("x-amz-acl=a&x-amz-acl=b&X-Amz-Signature=0", &[]).unwrap().len(), 2);
    }

    #[test]
    fn without_a_signature_in_the_url_they_are_nothing() {
        assert_eq!(headers("x-amz-acl=public-read&x-amz-meta-a=b", &[]), pairs(&[]));
    }

    #[test]
    fn the_signature_and_what_is_said_of_a_body_are_no_headers() {
        let query = "X-Amz-Algorithm=a&X-Amz-Content-Sha256=b&X-Amz-Credential=c&X-Amz-Date=d&X-Amz-Expires=e\
                     &X-Amz-Security-Token=f&X-Amz-SignedHeaders=g&X-Amz-Signature=h&x-amz-checksum-crc32=AAAAAA%3D%3D\
                     &x-amz-sdk-checksum-algorithm=CRC32&x-amz-decoded-content-length=1&x-amz-trailer=t";
        assert_eq!(headers(query, &[]), pairs(&[]));
    }

    #[test]
    fn a_header_that_is_there_stays() {
        let query = "x-amz-acl=public-read&X-Amz-Signature=0";
        assert_eq!(headers(query, &[("x-amz-acl", "private")]), pairs(&[("x-amz-acl", "private")]));
    }

    #[test]
    fn what_cannot_be_a_header_is_refused() {
        for query in ["x-amz-meta-a=b%0D%0Ac&X-Amz-Signature=0", "x-amz-meta-a%20b=c&X-Amz-Signature=0"] {
            assert_eq!(headers(query, &[]), Err("InvalidArgument".to_owned()), "{query}");
        }
    }

    #[test]
    fn damaged_queries_bring_no_other_headers() {
        fn body(bytes: &[u8]) {
            let Ok(uri) = Uri::try_from([&b"/b/k?"[..], bytes].concat()) else { return };
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = uri;
            let taken = take_headers(&mut request);
            assert!(request.headers().keys().all(|name| taken.is_ok() && is_header(name.as_str())));
        }
        let seeds = || vec![b"X-Amz-Acl=private&x-amz-meta-a=%C3%A4&X-Amz-Date=d&X-Amz-Signature=0".to_vec()];
        damage::run(&[Target { name: "presigned_headers", body, seeds }], 3_000);
    }
}
