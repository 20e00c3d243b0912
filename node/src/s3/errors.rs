//! Every error of ports, flows and rules as an S3 error: the one place where codes and statuses are chosen for them.
//! What is wrong with a request itself is refused where that is found.
//!
//! What the client did wrong is said in the message. What the node suffers is logged here, where it is consumed, and
//! told to the client only as far as it can act on it.

use std::error::Error as _;

use holdfast_actors::domain::lifecycle::RuleFault;
use holdfast_actors::domain::objects::attributes::AttributeError;
use holdfast_actors::domain::objects::checksums::DigestMismatch;
use holdfast_actors::domain::objects::multipart::CompletionError;
use holdfast_actors::domain::objects::ranges::{NoSuchPart, RangeNotSatisfiable};
use holdfast_actors::domain::objects::tags::TagError;
use holdfast_actors::flow::cold::read::ColdReadError;
use holdfast_actors::flow::get::ReadError;
use holdfast_actors::flow::put::{BodyError, StoreError};
use holdfast_actors::ports::{ChunkError, MetadataError};
use holdfast_protocol::TierName;
use holdfast_protocol::tiers::STANDARD;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use s3s::{S3Error, S3ErrorCode, s3_error};

use super::chunked::SIGNED_CHUNK_BYTES_MAX;

/// Seconds after which a client that was told to slow down may try again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// The same for who wants an object in a cold tier that cannot be reached, which lasts longer.
const RETRY_TIER_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("10");

/// Errors that have an S3 form.
pub(crate) trait ToS3 {
    /// The S3 form.
    fn to_s3(self) -> S3Error;
}

/// Shorthand for `map_err(ToS3::to_s3)`.
pub(crate) trait ResultExt<T> {
    /// The result with the error in its S3 form.
    fn s3(self) -> s3s::S3Result<T>;
}

impl<T, E: ToS3> ResultExt<T> for Result<T, E> {
    fn s3(self) -> s3s::S3Result<T> {
        self.map_err(ToS3::to_s3)
    }
}

/// Sends headers along with an error. s3s then sends only these, so the content type is among them.
pub(crate) fn with_headers(
    mut error: S3Error,
    headers: impl IntoIterator<Item = (&'static str, HeaderValue)>,
) -> S3Error {
    let mut map = HeaderMap::new();
    map.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    for (name, value) in headers {
        map.insert(name, value);
    }
    error.set_headers(map);
    error
}

/// 503 with a hint when to come back.
pub(crate) fn slow_down() -> S3Error {
    with_headers(s3_error!(SlowDown, "Please reduce your request rate."), [("retry-after", RETRY_AFTER_SECONDS)])
}

/// The node cannot do it now, through no fault of the client.
pub(super) fn unavailable() -> S3Error {
    with_headers(
        s3_error!(ServiceUnavailable, "The service is not able to handle the request now. Please try again."),
        [("retry-after", RETRY_AFTER_SECONDS)],
    )
}

fn internal() -> S3Error {
    s3_error!(InternalError, "We encountered an internal error. Please try again.")
}

/// 507: every disk is full, or that of the metadata. A client gains nothing by trying again at once.
fn storage_full() -> S3Error {
    let mut error = S3Error::with_message(
        S3ErrorCode::Custom("InsufficientStorage".into()),
        "The node has no space left for new objects.",
    );
    error.set_status_code(StatusCode::INSUFFICIENT_STORAGE);
    with_headers(error, [("retry-after", HeaderValue::from_static("60"))])
}

impl ToS3 for MetadataError {
    fn to_s3(self) -> S3Error {
        match self {
            Self::NoSuchBucket => s3_error!(NoSuchBucket, "The specified bucket does not exist"),
            Self::BucketExists { owned_by_caller: true } => s3_error!(
                BucketAlreadyOwnedByYou,
                "Your previous request to create the named bucket succeeded and you already own it."
            ),
            Self::BucketExists { owned_by_caller: false } => s3_error!(
                BucketAlreadyExists,
                "The requested bucket name is not available. Please select a different name and try again."
            ),
            Self::BucketNotEmpty => s3_error!(
                BucketNotEmpty,
                "The bucket you tried to delete is not empty: it has objects, versions or delete markers, or an \
                 upload has just begun."
            ),
            Self::NoSuchKey => s3_error!(NoSuchKey, "The specified key does not exist."),
            Self::NoSuchVersion => s3_error!(NoSuchVersion, "The specified version does not exist."),
            Self::NoSuchUpload => s3_error!(
                NoSuchUpload,
                "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted \
                 or completed."
            ),
            Self::InvalidPart(number) => CompletionError::InvalidPart(number).to_s3(),
            Self::PreconditionFailed => precondition_failed(),
            Self::NotFound(what) | Self::Exists(what) => {
                tracing::error!(what, "unexpected answer of the metadata store");
                internal()
            }
            Self::NotCold => {
                s3_error!(InvalidObjectState, "Restore is not allowed for the object's current storage class")
            }
            Self::Superseded | Self::TierInUse => {
                tracing::error!("unexpected answer of the metadata store");
                internal()
            }
            Self::Busy => slow_down(),
            // The adapter has said it in the log.
            Self::NoSpace(_) => storage_full(),
            Self::NoSuchContent => {
                tracing::warn!("the source of a copy went away again and again");
                unavailable()
            }
            // Nothing was committed, and the client's next attempt starts from the beginning.
            Self::Condemned => {
                tracing::warn!("a write took so long that its chunks were given up as orphans");
                unavailable()
            }
            Self::StaleEpoch { shard, current } => {
                tracing::warn!(
                    %shard,
                    %current,
                    "a write was planned under an epoch that is over; if all writes of the shard are, ZooKeeper was set back: see \
                     `holdfast cluster status`"
                );
                unavailable()
            }
            Self::Fenced { name, current } => {
                tracing::warn!(name, %current, "a write was refused: its lock was granted again since");
                unavailable()
            }
            Self::Unavailable(detail) => {
                tracing::error!(detail, "metadata store unavailable");
                unavailable()
            }
            Self::Unknown(detail) => {
                tracing::error!(detail, "outcome of a commit unknown");
                internal()
            }
            Self::Corrupt(detail) => {
                tracing::error!(detail, "metadata corrupt");
                internal()
            }
        }
    }
}

impl ToS3 for ChunkError {
    fn to_s3(self) -> S3Error {
        match self {
            Self::NoSpace => storage_full(),
            Self::Unavailable(detail) => {
                tracing::warn!(detail, "chunks cannot be stored or read now");
                unavailable()
            }
            // Ordinary while shards move and sessions lapse; the client repeats the write.
            error @ (Self::Stale { .. } | Self::Fenced) => {
                tracing::info!(%error, "a write was refused by its fence");
                unavailable()
            }
            error @ (Self::NotFound(_)
            | Self::Corrupt { .. }
            | Self::Exists(_)
            | Self::Invalid(_)
            | Self::Io { .. }) => {
                tracing::error!(%error, source = error.source().map(tracing::field::display), "chunk store failed");
                internal()
            }
        }
    }
}

impl ToS3 for ReadError {
    fn to_s3(self) -> S3Error {
        match self {
            Self::Chunk(error) => error.to_s3(),
            Self::Cold(error) => error.to_s3(),
        }
    }
}

impl ToS3 for ColdReadError {
    fn to_s3(self) -> S3Error {
        match &self {
            Self::Unavailable { tier, .. } | Self::Denied { tier, .. } => {
                tracing::warn!(error = %self, "a cold object cannot be read now");
                let message =
                    format!("The storage tier {tier} that holds the object cannot be reached now. Please try again.");
                with_headers(
                    S3Error::with_message(S3ErrorCode::ServiceUnavailable, message),
                    [("retry-after", RETRY_TIER_AFTER_SECONDS)],
                )
            }
            Self::Missing { .. } | Self::Corrupt { .. } | Self::Invalid(_) => {
                tracing::error!(error = %self, "a cold object cannot be read");
                internal()
            }
        }
    }
}

impl ToS3 for StoreError {
    fn to_s3(self) -> S3Error {
        match self {
            // The body of a copy is an object that is read here.
            Self::Body(error) => match error.downcast::<ReadError>() {
                Ok(error) => error.to_s3(),
                Err(error) => body_error(&error),
            },
            Self::TooShort { .. } => incomplete_body(),
            Self::TooLong { .. } => s3_error!(InvalidRequest, "The body is longer than the length that was announced."),
            Self::Digest(error) => error.to_s3(),
            Self::Chunk(error) => error.to_s3(),
            Self::Label(error) => {
                s3_error!(InvalidRequest, "The key and the headers of the object are too long: {error}")
            }
        }
    }
}

/// 400: there is more in a document than there may be.
pub(super) fn too_much() -> S3Error {
    s3_error!(MalformedXML, "The XML you provided was not well-formed or did not validate against our published schema")
}

fn incomplete_body() -> S3Error {
    s3_error!(IncompleteBody, "You did not provide the number of bytes specified by the Content-Length HTTP header.")
}

/// 400: the bytes are not those that were signed.
pub(super) fn wrong_payload_hash() -> S3Error {
    let mut error = S3Error::with_message(
        S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into()),
        "The provided 'x-amz-content-sha256' header does not match what was computed.",
    );
    error.set_status_code(StatusCode::BAD_REQUEST);
    error
}

/// Whether the error of a body, however it is wrapped, says that the client sent too slowly.
pub(super) fn is_too_slow(text: &str) -> bool {
    text.contains(&crate::http::body::BodyError::TooSlow.to_string())
}

/// 400, which SDKs try again.
pub(super) fn request_timeout() -> S3Error {
    s3_error!(
        RequestTimeout,
        "Your socket connection to the server was not read from or written to within the timeout period."
    )
}

/// The error of a body. s3s checks payload hashes and chunk signatures in the stream and keeps the types of what it
/// finds to itself, so they are told by name.
pub(super) fn body_error(error: &BodyError) -> S3Error {
    let text = error.to_string();
    let mut code = if text.contains("Sha256Mismatch") {
        wrong_payload_hash()
    } else if text.contains("SignatureMismatch") {
        s3_error!(SignatureDoesNotMatch, "The signature of a chunk of the body does not match.")
    } else if text.contains("ChunkTooLarge") {
        s3_error!(InvalidRequest, "A signed chunk of the body has at most {SIGNED_CHUNK_BYTES_MAX} bytes.")
    } else if text.contains("FormatError") || text.contains("TooLarge") || text.contains("TooMany") {
        s3_error!(InvalidRequest, "The aws-chunked encoding of the body is malformed.")
    } else if is_too_slow(&text) {
        request_timeout()
    } else {
        incomplete_body()
    };
    tracing::debug!(error = text, code = code.code().as_str(), "the body of an upload failed");
    code.set_source(text.into());
    code
}

impl ToS3 for DigestMismatch {
    fn to_s3(self) -> S3Error {
        let code = match self {
            Self::Md5 | Self::Checksum(_) => S3ErrorCode::BadDigest,
            Self::MissingTrailer(_) => S3ErrorCode::Custom("MalformedTrailerError".into()),
        };
        let mut error = S3Error::with_message(code, self.to_string());
        error.set_status_code(StatusCode::BAD_REQUEST);
        error
    }
}

impl ToS3 for CompletionError {
    fn to_s3(self) -> S3Error {
        let code = match self {
            Self::PartCount => S3ErrorCode::MalformedXML,
            Self::Order => S3ErrorCode::InvalidPartOrder,
            Self::InvalidPart(_) => S3ErrorCode::InvalidPart,
            Self::TooSmall { .. } => S3ErrorCode::EntityTooSmall,
            Self::TooLarge(_) => S3ErrorCode::EntityTooLarge,
            Self::SizeMismatch { .. } | Self::ChecksumType => S3ErrorCode::InvalidRequest,
            Self::BadDigest(_) => S3ErrorCode::BadDigest,
        };
        S3Error::with_message(code, self.to_string())
    }
}

impl ToS3 for AttributeError {
    fn to_s3(self) -> S3Error {
        let code = match self {
            Self::KeyTooLong(_) => S3ErrorCode::KeyTooLongError,
            Self::KeyEmpty => S3ErrorCode::InvalidArgument,
            Self::MetadataTooLarge(_) => S3ErrorCode::MetadataTooLarge,
        };
        S3Error::with_message(code, self.to_string())
    }
}

impl ToS3 for TagError {
    fn to_s3(self) -> S3Error {
        let code = match self {
            Self::TooMany => S3ErrorCode::Custom("BadRequest".into()),
            Self::Key | Self::Value | Self::System | Self::Duplicate => S3ErrorCode::InvalidTag,
            Self::Malformed => S3ErrorCode::InvalidArgument,
        };
        let mut error = S3Error::with_message(code, self.to_string());
        error.set_status_code(StatusCode::BAD_REQUEST);
        error
    }
}

impl ToS3 for RangeNotSatisfiable {
    fn to_s3(self) -> S3Error {
        let error = s3_error!(InvalidRange, "The requested range is not satisfiable");
        match HeaderValue::try_from(format!("bytes */{}", self.size_bytes)) {
            Ok(value) => with_headers(error, [("content-range", value)]),
            Err(_) => error,
        }
    }
}

impl ToS3 for NoSuchPart {
    fn to_s3(self) -> S3Error {
        let mut error = S3Error::with_message(
            S3ErrorCode::Custom("InvalidPartNumber".into()),
            "The requested partnumber is not satisfiable",
        );
        error.set_status_code(StatusCode::RANGE_NOT_SATISFIABLE);
        error
    }
}

/// 412.
pub(crate) fn precondition_failed() -> S3Error {
    s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold")
}

/// 501 for a feature that Holdfast does not have.
pub(crate) fn not_implemented(what: &str) -> S3Error {
    s3_error!(NotImplemented, "{what} is not implemented")
}

/// A storage class that is none. The message names those that are.
pub(crate) fn no_such_class(tiers: &[TierName]) -> S3Error {
    let classes: Vec<&str> = std::iter::once(STANDARD).chain(tiers.iter().map(TierName::as_str)).collect();
    let mut error = s3_error!(
        InvalidStorageClass,
        "The storage class you specified is not valid. Here are: {}",
        classes.join(", ")
    );
    error.set_status_code(StatusCode::BAD_REQUEST);
    error
}

/// 503: the bucket's default class names no tier. Until an operator acts, a client gains nothing by trying again at
/// once.
pub(crate) fn lost_default_class(class: &str) -> S3Error {
    let error = s3_error!(
        ServiceUnavailable,
        "No tier is set up for {class}, the default storage class of this bucket. Name a storage class in the request, or have \
         the tier or the default changed."
    );
    with_headers(error, [("retry-after", HeaderValue::from_static("60"))])
}

/// 404 with S3's code for what is not there.
pub(crate) fn not_configured(code: S3ErrorCode, message: &'static str) -> S3Error {
    let mut error = S3Error::with_message(code, message);
    // s3s takes the status of some of these codes from the operations that set them.
    error.set_status_code(StatusCode::NOT_FOUND);
    error
}

impl ToS3 for RuleFault {
    fn to_s3(self) -> S3Error {
        let code = match &self {
            Self::Malformed(_) => S3ErrorCode::MalformedXML,
            Self::Request(_) => S3ErrorCode::InvalidRequest,
            Self::Argument(_) => S3ErrorCode::InvalidArgument,
        };
        S3Error::with_message(code, self.to_string())
    }
}

/// 400 `InvalidArgument`.
pub(crate) fn invalid_argument(message: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    S3Error::with_message(S3ErrorCode::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier() -> holdfast_protocol::TierName {
        "OSS".parse().unwrap()
    }

    fn cold(error: ColdReadError) -> S3Error {
        ReadError::from(error).to_s3()
    }

    #[test]
    fn statuses_are_those_of_s3() {
        let table: Vec<(S3Error, &str, u16)> = vec![
            (MetadataError::NoSuchBucket.to_s3(), "NoSuchBucket", 404),
            (MetadataError::BucketExists { owned_by_caller: true }.to_s3(), "BucketAlreadyOwnedByYou", 409),
            (MetadataError::BucketExists { owned_by_caller: false }.to_s3(), "BucketAlreadyExists", 409),
            (MetadataError::BucketNotEmpty.to_s3(), "BucketNotEmpty", 409),
            (MetadataError::NoSuchKey.to_s3(), "NoSuchKey", 404),
            (MetadataError::NoSuchVersion.to_s3(), "NoSuchVersion", 404),
            (MetadataError::NoSuchUpload.to_s3(), "NoSuchUpload", 404),
            (MetadataError::InvalidPart(1).to_s3(), "InvalidPart", 400),
            (MetadataError::PreconditionFailed.to_s3(), "PreconditionFailed", 412),
            (MetadataError::Busy.to_s3(), "SlowDown", 503),
            (MetadataError::NoSpace(String::new()).to_s3(), "InsufficientStorage", 507),
            (MetadataError::Unavailable(String::new()).to_s3(), "ServiceUnavailable", 503),
            (MetadataError::Unknown(String::new()).to_s3(), "InternalError", 500),
            (MetadataError::Corrupt(String::new()).to_s3(), "InternalError", 500),
            (ChunkError::NoSpace.to_s3(), "InsufficientStorage", 507),
            (ChunkError::Unavailable(String::new()).to_s3(), "ServiceUnavailable", 503),
            (ChunkError::Invalid(String::new()).to_s3(), "InternalError", 500),
            (cold(ColdReadError::Unavailable { tier: tier(), detail: "x".into() }), "ServiceUnavailable", 503),
            (cold(ColdReadError::Denied { tier: tier(), detail: "x".into() }), "ServiceUnavailable", 503),
            (cold(ColdReadError::Corrupt { tier: tier(), detail: "x".into() }), "InternalError", 500),
            (cold(ColdReadError::Missing { tier: tier(), piece: "x".into() }), "InternalError", 500),
            (
                StoreError::Body(ReadError::from(ChunkError::Unavailable("a copy's source".into())).into()).to_s3(),
                "ServiceUnavailable",
                503,
            ),
            (StoreError::TooShort { announced: 2, received: 1 }.to_s3(), "IncompleteBody", 400),
            (StoreError::Body("UploadStreamError: Sha256Mismatch".into()).to_s3(), "XAmzContentSHA256Mismatch", 400),
            (StoreError::Body("AwsChunkedStreamError: SignatureMismatch".into()).to_s3(), "SignatureDoesNotMatch", 403),
            (StoreError::Body("reset".into()).to_s3(), "IncompleteBody", 400),
            (StoreError::Body(crate::http::body::BodyError::TooSlow.into()).to_s3(), "RequestTimeout", 400),
            (
                StoreError::Body(
                    format!("UploadStreamError: Underlying: {}", crate::http::body::BodyError::TooSlow).into(),
                )
                .to_s3(),
                "RequestTimeout",
                400,
            ),
            (DigestMismatch::Md5.to_s3(), "BadDigest", 400),
            (CompletionError::Order.to_s3(), "InvalidPartOrder", 400),
            (CompletionError::TooSmall { number: 1, size_bytes: 1 }.to_s3(), "EntityTooSmall", 400),
            (AttributeError::KeyTooLong(1025).to_s3(), "KeyTooLongError", 400),
            (AttributeError::MetadataTooLarge(2049).to_s3(), "MetadataTooLarge", 400),
            (TagError::Duplicate.to_s3(), "InvalidTag", 400),
            (TagError::System.to_s3(), "InvalidTag", 400),
            (TagError::TooMany.to_s3(), "BadRequest", 400),
            (RangeNotSatisfiable { size_bytes: 7 }.to_s3(), "InvalidRange", 416),
            (NoSuchPart(3).to_s3(), "InvalidPartNumber", 416),
            (not_implemented("x"), "NotImplemented", 501),
            (no_such_class(&[]), "InvalidStorageClass", 400),
            (lost_default_class("OSS"), "ServiceUnavailable", 503),
            (MetadataError::NotCold.to_s3(), "InvalidObjectState", 403),
            (RuleFault::Malformed("x").to_s3(), "MalformedXML", 400),
            (RuleFault::Request("x").to_s3(), "InvalidRequest", 400),
            (RuleFault::Argument("x").to_s3(), "InvalidArgument", 400),
        ];
        for (error, code, status) in table {
            assert_eq!(error.code().as_str(), code);
            assert_eq!(error.status_code().map(|s| s.as_u16()), Some(status), "{code}");
        }
    }

    #[test]
    fn headers_that_clients_act_on() {
        let header = |error: S3Error, name| error.headers().unwrap().get(name).unwrap().to_str().unwrap().to_owned();
        assert_eq!(header(MetadataError::Busy.to_s3(), "retry-after"), "1");
        let away = cold(ColdReadError::Unavailable { tier: tier(), detail: "10.0.0.7 refuses".into() });
        assert!(!away.message().unwrap().contains("10.0.0.7"), "clients are not told of the inside");
        assert_eq!(header(away, "retry-after"), "10");
        assert_eq!(header(RangeNotSatisfiable { size_bytes: 7 }.to_s3(), "content-range"), "bytes */7");
    }
}
