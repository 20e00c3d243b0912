//! Where s3s writes an answer otherwise than S3 does, it is put right here.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, Response, StatusCode};
use percent_encoding::percent_decode_str;
use s3s::Body;

use super::error_details::Detail;
use super::version_order::VersionOrder;

/// Tells the right region, to whom signed for a wrong one.
pub(super) const BUCKET_REGION: &str = "x-amz-bucket-region";

const ERROR_END: &[u8] = b"</Error>";

/// Puts the answer of an operation right.
pub(super) fn corrected(operation: &str, mut response: Response<Body>) -> Response<Body> {
    if response.status() == StatusCode::NOT_MODIFIED {
        // It would be that of the object, and there is nothing of it.
        response.headers_mut().remove(CONTENT_TYPE);
    }
    // Whatever the body of an object looks like, it is not s3s that wrote it.
    if operation == "GetObject" || response.headers().get(CONTENT_TYPE).is_none_or(|kind| kind != "application/xml") {
        return response;
    }
    let order = response.extensions_mut().remove::<VersionOrder>();
    let Some(body) = response.body().bytes() else { return response };
    let mut text = order.and_then(|order| order.apply(&body));
    if operation == "GetObjectAttributes" {
        text = without_quotes(&body);
    }
    if let Some(escaped) = with_escaped_returns(text.as_deref().unwrap_or(&body)) {
        text = Some(escaped);
    }
    if let Some(text) = text {
        set_body(&mut response, text);
    }
    response
}

/// GetObjectAttributes is the one answer in which S3 writes an ETag without its quotes.
fn without_quotes(body: &Bytes) -> Option<Vec<u8>> {
    const OPEN: &str = "<ETag>";
    const CLOSE: &str = "</ETag>";
    let text = std::str::from_utf8(body).ok()?;
    let (before, rest) = text.split_once(OPEN)?;
    let (etag, after) = rest.split_once(CLOSE)?;
    let etag = etag.replace("&quot;", "");
    Some(format!("{before}{OPEN}{}{CLOSE}{after}", etag.trim_matches('"')).into_bytes())
}

/// A reader of XML takes a bare carriage return for a line feed, so that a key with one would be read as another key.
fn with_escaped_returns(body: &[u8]) -> Option<Vec<u8>> {
    const RETURN: &[u8] = b"&#13;";
    let count = body.iter().filter(|byte| **byte == b'\r').count();
    if count == 0 {
        return None;
    }
    let mut text = Vec::with_capacity(body.len() + count * RETURN.len());
    for byte in body {
        match byte {
            b'\r' => text.extend_from_slice(RETURN),
            byte => text.push(*byte),
        }
    }
    Some(text)
}

/// Puts into the body of an error what s3s builds it without: resource and ids, a message, the right region, the size
/// of the object that a range is beyond, and what an error of its code names of the request.
pub(super) fn complete_error(
    response: &mut Response<Body>,
    id: &str,
    node: &str,
    path: &str,
    named: impl FnOnce(&str) -> Vec<Detail>,
) {
    let Some(body) = response.body().bytes() else { return };
    let Some(start) = body.strip_suffix(ERROR_END) else { return };
    let resource = plain(&percent_decode_str(path).decode_utf8_lossy());
    let mut text = Vec::with_capacity(body.len() + resource.len() + 256);
    text.extend_from_slice(start);
    if !contains(&body, b"<Message>") {
        let message = code_of(&body).map_or("", default_message);
        text.extend_from_slice(format!("<Message>{}</Message>", quick_xml::escape::escape(message)).as_bytes());
    }
    for (name, value) in code_of(&body).map_or_else(Vec::new, named) {
        text.extend_from_slice(format!("<{name}>{}</{name}>", plain(&value)).as_bytes());
    }
    // Programs that read beyond the end take it for that of the object (smart_open), and 0 where it is missing.
    if let Some(size) = unsatisfied_size(response.headers()) {
        text.extend_from_slice(format!("<ActualObjectSize>{size}</ActualObjectSize>").as_bytes());
    }
    if let Some(region) = response.headers().get(BUCKET_REGION).and_then(|region| region.to_str().ok()) {
        text.extend_from_slice(format!("<Region>{}</Region>", quick_xml::escape::escape(region)).as_bytes());
    }
    text.extend_from_slice(format!("<Resource>{resource}</Resource>").as_bytes());
    if !contains(&body, b"<RequestId>") {
        text.extend_from_slice(format!("<RequestId>{id}</RequestId>").as_bytes());
    }
    text.extend_from_slice(format!("<HostId>{}</HostId>", quick_xml::escape::escape(node)).as_bytes());
    text.extend_from_slice(ERROR_END);
    set_body(response, text);
}

/// The size, in bytes, of an object in which a range is not satisfiable.
fn unsatisfied_size(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes */")?.parse().ok()
}

/// Text for XML 1.0, which cannot hold control characters and two others, not even escaped.
fn plain(text: &str) -> String {
    let fits = |c: &char| !c.is_control() && !matches!(*c, '\u{FFFE}' | '\u{FFFF}');
    quick_xml::escape::escape(text).chars().filter(fits).collect()
}

fn code_of(body: &Bytes) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("<Code>")?;
    rest.split_once("</Code>").map(|(code, _)| code)
}

/// What an error means that came without a message.
fn default_message(code: &str) -> &'static str {
    match code {
        "AccessDenied" => "Access Denied",
        "IncompleteBody" => "You did not provide the number of bytes specified by the Content-Length HTTP header.",
        "InternalError" => "We encountered an internal error. Please try again.",
        "InvalidBucketName" => "The specified bucket is not valid.",
        "InvalidPolicyDocument" => {
            "The content of the form does not meet the conditions specified in the policy document."
        }
        "InvalidURI" => "Couldn't parse the specified URI.",
        "KeyTooLongError" => "Your key is too long.",
        "MalformedPOSTRequest" => "The body of your POST request is not well-formed multipart/form-data.",
        "MalformedXML" => "The XML you provided was not well-formed or did not validate against our published schema",
        "MaxMessageLengthExceeded" => "Your request was too large.",
        "MethodNotAllowed" => "The specified method is not allowed against this resource.",
        "MissingContentLength" => "You must provide the Content-Length HTTP header.",
        "MissingRequestBodyError" => "Request Body is empty",
        "NotImplemented" => "A header or query you provided implies functionality that is not implemented.",
        "SignatureDoesNotMatch" => {
            "The request signature we calculated does not match the signature you provided. Check your key and signing \
             method."
        }
        _ => "The request cannot be carried out.",
    }
}

fn set_body(response: &mut Response<Body>, text: Vec<u8>) {
    response.headers_mut().remove(CONTENT_LENGTH);
    *response.body_mut() = Body::from(text);
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn answer(status: u16, kind: &'static str, body: &'static str) -> Response<Body> {
        let mut response = Response::new(Body::from(Bytes::from_static(body.as_bytes())));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }

    fn text(response: &Response<Body>) -> String {
        String::from_utf8(response.body().bytes().unwrap().to_vec()).unwrap()
    }

    #[test]
    fn returns_are_escaped_in_xml_and_in_nothing_else() {
        let body = "<Key>a\rb\nc</Key>";
        let listed = corrected("ListObjectsV2", answer(200, "application/xml", body));
        assert_eq!(text(&listed), "<Key>a&#13;b\nc</Key>");
        assert_eq!(text(&corrected("GetObject", answer(200, "application/xml", body))), body);
        assert_eq!(text(&corrected("GetBucketPolicy", answer(200, "application/json", body))), body);
    }

    #[test]
    fn an_etag_of_attributes_has_no_quotes_and_others_do() {
        for body in ["<R><ETag>\"ab-2\"</ETag></R>", "<R><ETag>&quot;ab-2&quot;</ETag></R>"] {
            let attributes = corrected("GetObjectAttributes", answer(200, "application/xml", body));
            assert_eq!(text(&attributes), "<R><ETag>ab-2</ETag></R>");
            assert_eq!(text(&corrected("ListParts", answer(200, "application/xml", body))), body);
        }
    }

    #[test]
    fn what_was_not_modified_has_no_type() {
        let response = corrected("GetObject", answer(304, "application/xml", ""));
        assert!(!response.headers().contains_key(CONTENT_TYPE));
    }

    #[test]
    fn an_error_says_what_it_is_and_where() {
        let mut response = answer(403, "application/xml", "<Error><Code>SignatureDoesNotMatch</Code></Error>");
        complete_error(&mut response, "7", "node", "/b/a%20%0D%EF%BF%BE%EF%BF%BF%3C", |_| Vec::new());
        let completed = text(&response);
        assert!(
            completed.contains("</Code><Message>The request signature we calculated does not match"),
            "{completed}"
        );
        let end = "<Resource>/b/a &lt;</Resource><RequestId>7</RequestId><HostId>node</HostId></Error>";
        assert!(completed.ends_with(end), "{completed}");
        let mut region = answer(400, "application/xml", "<Error><Code>C</Code><Message>m</Message></Error>");
        region.headers_mut().insert(BUCKET_REGION, HeaderValue::from_static("eu-1"));
        complete_error(&mut region, "7", "node", "/", |code| vec![("Key", format!("{code} \u{1}<k>"))]);
        let expected = "<Message>m</Message><Key>C &lt;k&gt;</Key><Region>eu-1</Region><Resource>";
        assert!(text(&region).contains(expected), "{}", text(&region));
    }

    #[test]
    fn a_range_beyond_the_end_is_told_the_size() {
        let error = |range: &'static str| {
            let mut response = answer(416, "application/xml", "<Error><Code>C</Code><Message>m</Message></Error>");
            response.headers_mut().insert(CONTENT_RANGE, HeaderValue::from_static(range));
            complete_error(&mut response, "7", "node", "/", |_| Vec::new());
            text(&response)
        };
        assert!(error("bytes */0").contains("</Message><ActualObjectSize>0</ActualObjectSize><Resource>"));
        assert!(!error("bytes 0-1/2").contains("ActualObjectSize"));
    }
}
