//! What the head of a request tells of the work that it brings.

use holdfast_actors::domain::admission::JobKind;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, Method, Request};

use crate::s3::is_form;

/// The announced length of a body sent in signed chunks, without the signatures.
const DECODED_LENGTH: HeaderName = HeaderName::from_static("x-amz-decoded-content-length");

/// Says whether the body is framed.
const PAYLOAD_HASH: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// Whether neither the headers nor the address of a request bear a signature. One that is there is compared before the
/// body is read. A form always counts as unsigned: its signature is a field, and comes with the body.
pub(super) fn is_unsigned<B>(request: &Request<B>) -> bool {
    if request.method() == Method::POST && is_form(request.headers()) {
        return true;
    }
    let query = request.uri().query().unwrap_or_default();
    let in_query = query.split('&').any(|pair| pair.starts_with("X-Amz-Signature="));
    !in_query && !request.headers().contains_key(AUTHORIZATION)
}

/// GET, HEAD and OPTIONS read; all else may bring bytes or change something.
pub(super) fn kind_of(method: &Method) -> JobKind {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) { JobKind::Read } else { JobKind::Write }
}

/// Whether a request that is no read stores no object's bytes, whatever it announces: it deletes, or it completes an
/// upload whose parts are there.
pub(super) fn stores_nothing<B>(request: &Request<B>) -> bool {
    let asks_for = |name: &str| {
        let query = request.uri().query().unwrap_or_default();
        query.split('&').any(|pair| pair.split('=').next() == Some(name))
    };
    match *request.method() {
        Method::DELETE => true,
        Method::POST => asks_for("delete") || asks_for("uploadId"),
        _ => false,
    }
}

/// How many bytes the body announces, and all there can be for a body that comes in pieces without announcement (S3
/// takes XML that way). What a framing carries is asked of framed bodies only: any other could say that it carries
/// nothing.
pub(super) fn announced_bytes(headers: &HeaderMap) -> u64 {
    let number = |name: &HeaderName| headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
    let without = if headers.contains_key(TRANSFER_ENCODING) { u64::MAX } else { 0 };
    let is_framed = headers.get(PAYLOAD_HASH).is_some_and(|hash| hash.as_bytes().starts_with(b"STREAMING-"));
    let carried = if is_framed { number(&DECODED_LENGTH) } else { None };
    carried.or_else(|| number(&CONTENT_LENGTH)).unwrap_or(without)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framed_bodies_count_by_what_they_carry_and_no_others() {
        for (hash, counted) in [("STREAMING-UNSIGNED-PAYLOAD-TRAILER", 1000), ("UNSIGNED-PAYLOAD", 1200)] {
            let request = Request::put("/")
                .header("content-length", "1200")
                .header("x-amz-decoded-content-length", "1000")
                .header("x-amz-content-sha256", hash)
                .body(())
                .unwrap();
            assert_eq!(announced_bytes(request.headers()), counted, "{hash}");
        }
    }
}
