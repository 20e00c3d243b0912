//! Form uploads (POST Object): a browser sends a file with `multipart/form-data`.
//!
//! s3s would collect the whole file in memory, refuses forms older than 15 minutes although their policy allows them,
//! and knows neither the field `acl` nor `tagging`. So forms are taken apart here: the fields before the file are read
//! (bounded), policy and signature are checked, and the file is streamed into a PutObject whose headers are the fields.
//! That request passes s3s, access control and the operation like any other; its caller is handed on as [`FormCaller`].
//!
//! # The file's length
//! A PUT must know its length at the start, a form does not tell it. Up to [`BUFFERED_BYTES_MAX`] of the file are read
//! ahead; a file that ends within them has a known length. A longer one is taken to reach to the closing boundary, as
//! the length of the request then tells; if it turns out that fields follow the file, the upload is refused and leaves
//! nothing.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HOST, LOCATION, REFERER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Frame;
use http_body_util::StreamBody;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::{Body, S3Error, S3Result, s3_error};
use url::Url;

use super::auth::{Authenticator, Caller, FormCaller};
use super::errors::{is_too_slow, request_timeout};
use super::facts::ClientConnection;

mod form;
mod policy;

use form::{Form, FormError, FormReader};
use policy::PostPolicy;

/// How much of a file is read ahead to learn its length.
const BUFFERED_BYTES_MAX: usize = 1024 * 1024;

/// Characters of a path that stay as they are.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Fields that become headers of the same name.
const HEADER_FIELDS: [&str; 9] = [
    "cache-control",
    "content-type",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
    "x-amz-storage-class",
    "x-amz-website-redirect-location",
    "x-amz-sdk-checksum-algorithm",
];

/// Beginnings of the names of further ones. Encryption and locks are refused as headers: nobody is to believe in them.
const HEADER_FIELD_STARTS: [&str; 4] =
    ["x-amz-meta-", "x-amz-checksum-", "x-amz-object-lock-", "x-amz-server-side-encryption"];

/// Whether a request carries a form. Looks at bytes and at every value: what s3s takes for a form must not pass here as
/// none, and s3s passes over values that are not UTF-8, and takes parameters that are not ASCII.
pub(crate) fn is_form(headers: &HeaderMap) -> bool {
    const FORM: &[u8] = b"multipart/form-data";
    headers.get_all(CONTENT_TYPE).iter().any(|value| {
        let start = value.as_bytes().trim_ascii_start().get(..FORM.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(FORM))
    })
}

/// What an upload needs to know besides the request.
pub(crate) struct FormContext<'a> {
    pub(crate) authenticator: &'a Authenticator,
    /// The bucket that the request addresses.
    pub(crate) bucket: &'a str,
    /// Whether the host name carries it.
    pub(crate) in_host: bool,
    /// The host as the client calls it.
    pub(crate) host: String,
    pub(crate) now_ms: u64,
}

/// Why the file's stream ended with an error, told by the stream to the one who answers.
type Failure = Arc<Mutex<Option<S3Error>>>;

/// Takes a form upload apart and stores it through `put`.
///
/// # Errors
/// What is wrong with the form, its policy or its signature. Nothing is stored then.
pub(crate) async fn upload<F, R>(context: FormContext<'_>, request: Request<Body>, put: F) -> S3Result<Response<Body>>
where
    F: FnOnce(Request<Body>) -> R,
    R: Future<Output = S3Result<Response<Body>>>,
{
    let (parts, body) = request.into_parts();
    let boundary = form::boundary(&parts.headers).ok_or_else(|| malformed("The boundary of the form is missing."))?;
    let total_bytes = parts
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    let (form, mut reader) = FormReader::new(body, boundary).read_fields().await.map_err(form_error)?;
    let (caller, size_range) = check_policy(&context, &form).await?;
    if form.get("bucket").is_some_and(|bucket| bucket != context.bucket) {
        return Err(s3_error!(InvalidArgument, "The field 'bucket' names another bucket than the address."));
    }

    let key = form.key()?;
    let file_bytes = reader.file_length(BUFFERED_BYTES_MAX, total_bytes).await.map_err(form_error)?;
    let (min, max) = size_range;
    if file_bytes > max {
        return Err(too_large());
    }
    if file_bytes < min {
        return Err(s3_error!(EntityTooSmall, "Your proposed upload is smaller than the minimum allowed size"));
    }

    let mut headers = HeaderMap::new();
    for name in [USER_AGENT, REFERER] {
        if let Some(value) = parts.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    if let Ok(host) = HeaderValue::from_str(&context.host) {
        headers.insert(HOST, host);
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(file_bytes));
    add_field_headers(&form, &mut headers)?;

    let encoded_key = utf8_percent_encode(&key, PATH);
    // Also the bucket, which is as the client wrote it: a question mark in it would begin a query.
    let encoded_bucket = utf8_percent_encode(context.bucket, PATH);
    let path = if context.in_host { format!("/{encoded_key}") } else { format!("/{encoded_bucket}/{encoded_key}") };
    let uri: Uri = path.parse().map_err(|_| s3_error!(InvalidURI, "The key cannot be addressed."))?;
    let failure = Failure::default();
    let mut put_request = Request::new(file_body(reader, file_bytes, Arc::clone(&failure)));
    *put_request.method_mut() = Method::PUT;
    *put_request.uri_mut() = uri;
    *put_request.headers_mut() = headers;
    *put_request.extensions_mut() = parts.extensions;
    let tls = put_request.extensions().get::<ClientConnection>().is_some_and(|c| c.tls);
    put_request.extensions_mut().insert(caller);

    let response = put(put_request).await;
    if let Some(error) = failure.lock().take() {
        return Err(error);
    }
    let response = response?;
    if !response.status().is_success() {
        return Ok(response);
    }
    let location = format!("{}://{}{path}", if tls { "https" } else { "http" }, context.host);
    Ok(answer(&form, context.bucket, &key, &location, response))
}

/// Who uploads, and between which sizes, as the form's policy says. A form without policy and signature is anonymous.
async fn check_policy(context: &FormContext<'_>, form: &Form) -> S3Result<(FormCaller, (u64, u64))> {
    const ANY_SIZE: (u64, u64) = (0, u64::MAX);
    if form.get("awsaccesskeyid").is_some() || form.get("signature").is_some() {
        return Err(s3_error!(
            InvalidRequest,
            "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."
        ));
    }
    let Some(encoded) = form.get("policy") else {
        if form.get("x-amz-signature").is_some() {
            return Err(s3_error!(InvalidArgument, "Bucket POST must contain a field named 'policy'."));
        }
        return Ok((FormCaller { caller: Caller::Anonymous, signed_ms: None }, ANY_SIZE));
    };
    let caller = policy::check_signature(context.authenticator, form, encoded, context.now_ms).await?;
    let policy = PostPolicy::from_base64(encoded)?;
    policy.check(form, context.bucket, context.now_ms)?;
    Ok((caller, policy.size_range()))
}

fn add_field_headers(form: &Form, headers: &mut HeaderMap) -> S3Result<()> {
    for (name, value) in form.fields() {
        let passes =
            HEADER_FIELDS.contains(&name.as_str()) || HEADER_FIELD_STARTS.iter().any(|start| name.starts_with(start));
        match name.as_str() {
            "acl" => insert(headers, "x-amz-acl", value)?,
            "tagging" => insert(headers, "x-amz-tagging", &form::tagging_header(value)?)?,
            _ if passes => insert(headers, name, value)?,
            _ => {}
        }
    }
    Ok(())
}

fn insert(headers: &mut HeaderMap, name: &str, value: &str) -> S3Result<()> {
    let invalid = || s3_error!(InvalidArgument, "The form field {name:?} cannot be used.");
    let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
    headers.insert(header, HeaderValue::from_bytes(value.as_bytes()).map_err(|_| invalid())?);
    Ok(())
}

/// The file as the body of a PUT: exactly `file_bytes`, or an error instead of the end.
fn file_body(reader: FormReader, file_bytes: u64, failure: Failure) -> Body {
    let pieces = futures::stream::unfold(Some((reader, 0u64)), move |state| {
        let failure = Arc::clone(&failure);
        async move {
            let (mut reader, sent) = state?;
            let next = match reader.next_piece().await {
                Ok(Some(piece)) if sent + piece.len() as u64 <= file_bytes => Ok(Some(piece)),
                Ok(None) if sent == file_bytes => Ok(None),
                Ok(_) => Err(FormError::FieldsAfterFile),
                Err(error) => Err(error),
            };
            match next {
                Ok(Some(piece)) => {
                    let sent = sent + piece.len() as u64;
                    Some((Ok(Frame::data(piece)), Some((reader, sent))))
                }
                Ok(None) => None,
                Err(error) => {
                    *failure.lock() = Some(form_error(error.clone()));
                    Some((Err::<Frame<Bytes>, FormError>(error), None))
                }
            }
        }
    });
    Body::http_body_unsync(StreamBody::new(pieces.boxed()))
}

/// The answer that the form asks for.
fn answer(form: &Form, bucket: &str, key: &str, location: &str, put: Response<Body>) -> Response<Body> {
    let etag = put.headers().get(ETAG).and_then(|e| e.to_str().ok()).unwrap_or_default().to_owned();
    let mut response = Response::new(Body::empty());
    // Version, checksums and whatever else the PUT said, but not its body.
    *response.headers_mut() = put.headers().clone();
    response.headers_mut().remove(CONTENT_LENGTH);
    let redirect = form.get("success_action_redirect").or_else(|| form.get("redirect"));
    // What is no web address counts as absent, as in S3.
    if let Some(mut url) = redirect.and_then(|r| Url::parse(r).ok()).filter(|u| matches!(u.scheme(), "http" | "https"))
    {
        url.query_pairs_mut().append_pair("bucket", bucket).append_pair("key", key).append_pair("etag", &etag);
        *response.status_mut() = StatusCode::SEE_OTHER;
        if let Ok(url) = HeaderValue::from_str(url.as_str()) {
            response.headers_mut().insert(LOCATION, url);
        }
        return response;
    }
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    *response.status_mut() = match form.get("success_action_status") {
        Some("200") => StatusCode::OK,
        Some("201") => {
            let escape = |text: &str| {
                let clean: String = text.chars().filter(|c| !c.is_control()).collect();
                quick_xml::escape::escape(clean).into_owned()
            };
            let xml = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<PostResponse><Location>{}</Location><Bucket>{}</Bucket>\
                 <Key>{}</Key><ETag>{}</ETag></PostResponse>",
                escape(location),
                escape(bucket),
                escape(key),
                escape(&etag)
            );
            *response.body_mut() = Body::from(xml);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
            StatusCode::CREATED
        }
        _ => StatusCode::NO_CONTENT,
    };
    response
}

/// 412, S3's answer to a POST to a bucket that asks for nothing and is no form.
pub(crate) fn not_a_form() -> S3Error {
    s3_error!(PreconditionFailed, "Bucket POST must be of the enclosure-type multipart/form-data")
}

fn malformed(message: &'static str) -> S3Error {
    S3Error::with_message(s3s::S3ErrorCode::MalformedPOSTRequest, message)
}

fn too_large() -> S3Error {
    s3_error!(EntityTooLarge, "Your proposed upload exceeds the maximum allowed size")
}

fn form_error(error: FormError) -> S3Error {
    match error {
        FormError::Malformed(message) => malformed(message),
        FormError::FieldsTooLarge => s3_error!(
            MaxPostPreDataLengthExceededError,
            "Your POST request fields preceding the upload file were too large."
        ),
        FormError::NoFile => {
            s3_error!(InvalidArgument, "POST requires exactly one file upload per request.")
        }
        FormError::UnknownLength => s3_error!(MissingContentLength, "You must provide the Content-Length HTTP header."),
        FormError::FieldsAfterFile => malformed("In a large upload the file must be the last field of the form."),
        FormError::Incomplete => s3_error!(IncompleteBody, "The form ended before its closing boundary."),
        FormError::Body(message) if is_too_slow(&message) => request_timeout(),
        FormError::Body(message) => {
            tracing::debug!(message, "reading a form failed");
            s3_error!(IncompleteBody, "The form could not be read to its end.")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_that_comes_too_slowly_may_be_sent_again() {
        let code = |message: String| form_error(FormError::Body(message)).code().as_str().to_owned();
        assert_eq!(code(crate::http::body::BodyError::TooSlow.to_string()), "RequestTimeout");
        assert_eq!(code("reset".to_owned()), "IncompleteBody");
    }
}
