//! CORS on the wire: preflight requests and the headers on actual answers.
//!
//! Preflight requests carry no signature, so they are answered before authentication and tell nothing but the bucket's
//! rules. Rules are parsed once, and kept within the bound of [`super::parsed`].

use std::sync::Arc;

use holdfast_actors::domain::access::cors::{CorsGrant, CorsRules};
use holdfast_actors::domain::access::names::validate_bucket_name;
use holdfast_actors::ports::metadata::{Bucket, BucketConfigKind};
use holdfast_actors::ports::{MetadataError, MetadataStore};
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use super::errors::ToS3 as _;
use super::parsed::Parsed;

/// What a byte of stored rules takes when they are parsed: an entry of one letter, four bytes with what is around it,
/// is a string of its own.
pub(super) const RULES_BYTES_PER_BYTE: u64 = 12;

const VARY_VALUE: HeaderValue =
    HeaderValue::from_static("Origin, Access-Control-Request-Headers, Access-Control-Request-Method");

/// Answers browsers by the rules of buckets.
pub(crate) struct Cors {
    metadata: Arc<dyn MetadataStore>,
    parsed: Parsed<Arc<CorsRules>>,
}

impl Cors {
    pub(crate) fn new(metadata: Arc<dyn MetadataStore>) -> Self {
        Self { metadata, parsed: Parsed::new(RULES_BYTES_PER_BYTE) }
    }

    /// The rules of a bucket; `None` if it has none or does not exist.
    async fn rules(&self, bucket: &str) -> S3Result<Option<Arc<CorsRules>>> {
        // Nobody was asked who he is, and what is not there is remembered by caches: not what no bucket can be called.
        if validate_bucket_name(bucket).is_err() {
            return Ok(None);
        }
        match self.metadata.bucket(bucket).await {
            Ok(bucket) => Ok(self.parse(&bucket)),
            Err(MetadataError::NoSuchBucket) => Ok(None),
            Err(error) => Err(error.to_s3()),
        }
    }

    fn parse(&self, bucket: &Bucket) -> Option<Arc<CorsRules>> {
        let text = bucket.config(BucketConfigKind::Cors)?;
        self.parsed
            .of(bucket.id, text, |text| serde_json::from_str::<CorsRules>(text).map(Arc::new))
            .inspect_err(|error| tracing::error!(%error, bucket = bucket.name, "stored CORS rules are not understood"))
            .ok()
    }

    /// Answers an OPTIONS request with the headers to send.
    ///
    /// # Errors
    /// What S3 answers to a preflight that is malformed or that no rule allows.
    pub(crate) async fn preflight(&self, bucket: Option<&str>, request: &HeaderMap) -> S3Result<HeaderMap> {
        let origin = text(request, &ORIGIN)
            .ok_or_else(|| s3_error!(InvalidRequest, "Insufficient information. Origin request header needed."))?;
        let method = text(request, &ACCESS_CONTROL_REQUEST_METHOD)
            .ok_or_else(|| s3_error!(InvalidRequest, "Invalid Access-Control-Request-Method: null"))?;
        let rules = match bucket {
            Some(bucket) => self.rules(bucket).await?,
            None => None,
        };
        let Some(rules) = rules else {
            return Err(forbidden("CORSResponse: CORS is not enabled for this bucket."));
        };
        let requested = text(request, &ACCESS_CONTROL_REQUEST_HEADERS).unwrap_or_default();
        let grant = rules.preflight(origin, method, requested).ok_or_else(|| {
            forbidden(
                "CORSResponse: This CORS request is not allowed. This is usually because the evaluation of Origin, request \
                 method / Access-Control-Request-Method or Access-Control-Request-Headers are not whitelisted by the \
                 resource's CORS spec.",
            )
        })?;
        let mut answer = HeaderMap::new();
        add_headers(&mut answer, &grant);
        Ok(answer)
    }

    /// Adds headers to the answer of an actual request from a page of another origin. Without a rule that fits nothing
    /// is added, and the browser keeps the answer from the page.
    pub(crate) async fn decorate(&self, bucket: &str, origin: &str, method: &str, answer: &mut HeaderMap) {
        let Ok(Some(rules)) = self.rules(bucket).await else { return };
        match rules.actual(origin, method) {
            Some(grant) => add_headers(answer, &grant),
            // Caches must not give this answer to an origin that would have got headers.
            None => {
                answer.append(VARY, VARY_VALUE);
            }
        }
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok()).filter(|value| !value.is_empty())
}

fn forbidden(message: &'static str) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom("AccessForbidden".into()), message);
    error.set_status_code(http::StatusCode::FORBIDDEN);
    error
}

fn add_headers(answer: &mut HeaderMap, grant: &CorsGrant<'_>) {
    // Values were validated when the rules were put, or came as headers: what is no header value is left out.
    let mut set = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            answer.insert(name, value);
        }
    };
    set(ACCESS_CONTROL_ALLOW_ORIGIN, grant.allow_origin);
    set(ACCESS_CONTROL_ALLOW_METHODS, &grant.allow_methods.join(", "));
    if !grant.allow_headers.is_empty() {
        set(ACCESS_CONTROL_ALLOW_HEADERS, &grant.allow_headers.join(", "));
    }
    if !grant.expose_headers.is_empty() {
        set(ACCESS_CONTROL_EXPOSE_HEADERS, &grant.expose_headers.join(", "));
    }
    if let Some(seconds) = grant.max_age_seconds {
        set(ACCESS_CONTROL_MAX_AGE, &seconds.to_string());
    }
    if grant.allow_credentials() {
        set(ACCESS_CONTROL_ALLOW_CREDENTIALS, "true");
    }
    answer.append(VARY, VARY_VALUE);
}
