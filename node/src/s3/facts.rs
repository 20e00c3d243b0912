//! What bucket policies can ask about a request.
//!
//! Nothing is computed before a condition or policy variable asks for it: most buckets have no policy, and most
//! policies look at two or three facts.

use std::borrow::Cow;
use std::net::IpAddr;

use holdfast_actors::domain::access::policy::{ConditionKey, Facts};
use holdfast_actors::ports::metadata::Tag;
use holdfast_protocol::VersionId;
use http::{HeaderMap, Uri};
use s3s::dto::CopySource;
use url::form_urlencoded;

use super::auth::Caller;
use super::copy_source;
use super::judged::Judged;

/// How the client is connected. The HTTP server puts it into each request's extensions; without it a request has no
/// address, and conditions on `aws:SourceIp` see an absent key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientConnection {
    /// The client's address, as seen by the socket.
    pub address: IpAddr,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

/// How a request was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signing {
    /// By the Authorization header.
    Header,
    /// By a presigned URL.
    Query,
    /// By a signed form policy.
    Form {
        /// When, in milliseconds since 1970.
        signed_ms: Option<u64>,
    },
    /// Not at all.
    None,
}

/// The head of a request that is given to s3s once more without its signature. It is in the extensions of that one,
/// which clients cannot set.
#[derive(Debug, Clone)]
pub(crate) struct AsSigned {
    pub(crate) headers: HeaderMap,
    pub(crate) uri: Uri,
}

/// The facts of one request.
pub(crate) struct RequestFacts<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) headers: &'a HeaderMap,
    /// The raw query string.
    pub(crate) query: &'a str,
    /// The version of the object that is decided about, where one is named: not always in the query.
    pub(crate) version: Option<&'a str>,
    pub(crate) connection: Option<ClientConnection>,
    pub(crate) signing: Signing,
    pub(crate) now_ms: u64,
    /// Tags of the stored object; read only if the policy needs them.
    pub(crate) object_tags: Vec<Tag>,
    /// Tags that the request sets in its body; those in the header `x-amz-tagging` are found without it.
    pub(crate) body_tags: Option<&'a [Tag]>,
    /// Whether that header is one that [the operation passes over](passes_over_tags).
    pub(crate) passes_over_tags: bool,
    /// What decisions by these facts looked at of stored objects.
    pub(crate) judged: Judged,
}

const COPY_SOURCE: &str = "x-amz-copy-source";

const CONTENT_SHA256: &str = "x-amz-content-sha256";

/// What a tag in a body counts for, in bytes that are looked through.
const TAG_COST: usize = 16;

/// The first value of a query parameter, decoded.
pub(crate) fn query_value<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    form_urlencoded::parse(query.as_bytes()).find(|(n, _)| n == name).map(|(_, value)| value)
}

/// Whether an operation passes over the header `x-amz-tagging`: a copy that takes over the tags of its source. That it
/// is a copy is not told by the header that names a source: with one, CreateMultipartUpload sets tags all the same.
pub(crate) fn passes_over_tags(operation: &str, headers: &HeaderMap) -> bool {
    operation == "CopyObject" && headers.get("x-amz-tagging-directive").is_none_or(|directive| directive != "REPLACE")
}

/// A version's id as answers tell it. Requests may write its digits in capitals, too, and mean the same version.
fn told_version(text: &str) -> Cow<'_, str> {
    match text.parse::<VersionId>() {
        Ok(version) => version.to_string().into(),
        Err(_) => text.into(),
    }
}

impl RequestFacts<'_> {
    /// A header. One that is not ASCII is there, too: operations read it, and a Deny on it must see it. One without a
    /// value is not, as it is not to s3s: a write with an empty `If-None-Match` has no condition.
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        let value = self.headers.get(name).filter(|value| !value.is_empty())?;
        Some(String::from_utf8_lossy(value.as_bytes()))
    }

    /// The source of a copy, however a client writes it: decoded, as it is with a slash before it and without. A
    /// policy that knows one way to write it must not be passed by by another one.
    fn copy_sources(&self) -> Vec<Cow<'_, str>> {
        let Some(text) = self.header(COPY_SOURCE) else { return Vec::new() };
        // What is none is refused later, and a policy sees it as it is.
        let Ok(CopySource::Bucket { bucket, key, version_id }) = copy_source::parse(&text) else { return vec![text] };
        let version = version_id.map(|id| format!("{}{}", copy_source::VERSION, told_version(&id))).unwrap_or_default();
        let plain = format!("{bucket}/{key}{version}");
        vec![format!("/{plain}").into(), plain.into()]
    }

    fn request_tags(&self) -> Vec<(Cow<'_, str>, Cow<'_, str>)> {
        if let Some(tags) = self.body_tags {
            return tags.iter().map(|t| (Cow::Borrowed(t.key.as_str()), Cow::Borrowed(t.value.as_str()))).collect();
        }
        if self.passes_over_tags {
            return Vec::new();
        }
        let header = self.headers.get("x-amz-tagging").map_or(&b""[..], |v| v.as_bytes());
        form_urlencoded::parse(header).collect()
    }

    fn value(&self, key: &ConditionKey) -> Option<Cow<'_, str>> {
        match key {
            ConditionKey::SourceIp => self.connection.map(|c| c.address.to_string().into()),
            ConditionKey::SecureTransport => self.connection.map(|c| boolean(c.tls)),
            ConditionKey::Referer => self.header("referer"),
            ConditionKey::UserAgent => self.header("user-agent"),
            ConditionKey::UserName => self.caller.user_name().map(Cow::Borrowed),
            ConditionKey::PrincipalArn => {
                self.caller.user_name().map(|name| format!("arn:aws:iam::000000000000:user/{name}").into())
            }
            ConditionKey::PrincipalType => {
                Some(if self.caller.user_name().is_some() { "User" } else { "Anonymous" }.into())
            }
            // Dates are compared as instants, so that seconds since 1970 serve for both.
            ConditionKey::CurrentTime | ConditionKey::EpochTime => Some((self.now_ms / 1000).to_string().into()),
            ConditionKey::Prefix => query_value(self.query, "prefix"),
            ConditionKey::Delimiter => query_value(self.query, "delimiter"),
            ConditionKey::MaxKeys => query_value(self.query, "max-keys"),
            ConditionKey::VersionId => self.version.map(told_version),
            ConditionKey::AuthType => match self.signing {
                Signing::Header => Some("REST-HEADER".into()),
                Signing::Query => Some("REST-QUERY-STRING".into()),
                Signing::Form { .. } => Some("POST".into()),
                Signing::None => None,
            },
            ConditionKey::SignatureVersion => (self.signing != Signing::None).then(|| "AWS4-HMAC-SHA256".into()),
            ConditionKey::SignatureAge => {
                let signed_ms = match self.signing {
                    Signing::Query => {
                        query_value(self.query, "X-Amz-Date").and_then(|d| super::signature::parse_amz_date_ms(&d))
                    }
                    Signing::Form { signed_ms } => signed_ms,
                    // Only where the date is that of a signature: others can write one there, too.
                    Signing::Header | Signing::None => None,
                };
                Some(self.now_ms.saturating_sub(signed_ms?).to_string().into())
            }
            ConditionKey::ExistingObjectTag(name) => {
                self.object_tags.iter().find(|t| t.key == *name).map(|t| Cow::Borrowed(t.value.as_str()))
            }
            ConditionKey::RequestObjectTag(name) => {
                self.request_tags().into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
            }
            ConditionKey::RequestObjectTagKeys => None,
            // That is what is signed of its payload. A hash in a header is from whoever has the URL.
            ConditionKey::Header(CONTENT_SHA256) if self.signing == Signing::Query => Some("UNSIGNED-PAYLOAD".into()),
            ConditionKey::Header(name) => self.header(name),
        }
    }
}

fn boolean(value: bool) -> Cow<'static, str> {
    if value { "true".into() } else { "false".into() }
}

impl Facts for RequestFacts<'_> {
    fn values(&self, key: &ConditionKey) -> Vec<Cow<'_, str>> {
        match key {
            ConditionKey::RequestObjectTagKeys => self.request_tags().into_iter().map(|(key, _)| key).collect(),
            ConditionKey::Header(COPY_SOURCE) => self.copy_sources(),
            key => self.value(key).into_iter().collect(),
        }
    }

    fn cost(&self, key: &ConditionKey) -> usize {
        match key {
            ConditionKey::Prefix | ConditionKey::Delimiter | ConditionKey::MaxKeys | ConditionKey::SignatureAge => {
                self.query.len()
            }
            ConditionKey::RequestObjectTag(_) | ConditionKey::RequestObjectTagKeys => match self.body_tags {
                // How many may be set is asked later.
                Some(tags) => tags.len() * TAG_COST,
                None => self.headers.get("x-amz-tagging").map_or(0, http::HeaderValue::len),
            },
            ConditionKey::Header(COPY_SOURCE) => self.headers.get(COPY_SOURCE).map_or(0, http::HeaderValue::len),
            _ => 0,
        }
    }
}
