//! Condition keys, and where their values come from.

use std::borrow::Cow;

/// A fact about a request that conditions and policy variables can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConditionKey {
    /// `aws:SourceIp`: the client's address.
    SourceIp,
    /// `aws:SecureTransport`: whether the request came over TLS.
    SecureTransport,
    /// `aws:Referer`.
    Referer,
    /// `aws:UserAgent`.
    UserAgent,
    /// `aws:username`, and `aws:userid`, which are the same here.
    UserName,
    /// `aws:PrincipalArn`: `arn:aws:iam::000000000000:user/NAME`.
    PrincipalArn,
    /// `aws:PrincipalType`: `User` or `Anonymous`.
    PrincipalType,
    /// `aws:CurrentTime`, in ISO 8601.
    CurrentTime,
    /// `aws:EpochTime`, in seconds.
    EpochTime,
    /// `s3:prefix` of a listing.
    Prefix,
    /// `s3:delimiter` of a listing.
    Delimiter,
    /// `s3:max-keys` of a listing.
    MaxKeys,
    /// `s3:VersionId`.
    VersionId,
    /// `s3:authType`: `REST-HEADER`, `REST-QUERY-STRING` or `POST`.
    AuthType,
    /// `s3:signatureversion`: `AWS4-HMAC-SHA256`.
    SignatureVersion,
    /// `s3:signatureAge`: milliseconds since a presigned URL or a form was signed.
    SignatureAge,
    /// `s3:ExistingObjectTag/NAME`: a tag of the stored object.
    ExistingObjectTag(String),
    /// `s3:RequestObjectTag/NAME`: a tag that the request sets.
    RequestObjectTag(String),
    /// `s3:RequestObjectTagKeys`: names of the tags that the request sets.
    RequestObjectTagKeys,
    /// `s3:HEADER`: a request header, in lower case.
    Header(&'static str),
}

/// Request headers that are condition keys under `s3:`.
const HEADERS: [&str; 14] = [
    "x-amz-acl",
    "x-amz-copy-source",
    "x-amz-metadata-directive",
    "x-amz-storage-class",
    "x-amz-content-sha256",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-website-redirect-location",
    "x-amz-grant-full-control",
    "x-amz-grant-read",
    "x-amz-grant-write",
    "if-match",
    "if-none-match",
];

impl ConditionKey {
    /// A key by its name, in any case; the part after a slash (a tag's name) is taken as it is.
    pub fn parse(name: &str) -> Option<Self> {
        if let Some((kind, tag)) = name.split_once('/') {
            if tag.is_empty() {
                return None;
            }
            return match kind.to_ascii_lowercase().as_str() {
                "s3:existingobjecttag" => Some(Self::ExistingObjectTag(tag.to_owned())),
                "s3:requestobjecttag" => Some(Self::RequestObjectTag(tag.to_owned())),
                _ => None,
            };
        }
        let name = name.to_ascii_lowercase();
        Some(match name.as_str() {
            "aws:sourceip" => Self::SourceIp,
            "aws:securetransport" => Self::SecureTransport,
            "aws:referer" => Self::Referer,
            "aws:useragent" => Self::UserAgent,
            "aws:username" | "aws:userid" => Self::UserName,
            "aws:principalarn" => Self::PrincipalArn,
            "aws:principaltype" => Self::PrincipalType,
            "aws:currenttime" => Self::CurrentTime,
            "aws:epochtime" => Self::EpochTime,
            "s3:prefix" => Self::Prefix,
            "s3:delimiter" => Self::Delimiter,
            "s3:max-keys" => Self::MaxKeys,
            "s3:versionid" => Self::VersionId,
            "s3:authtype" => Self::AuthType,
            "s3:signatureversion" => Self::SignatureVersion,
            "s3:signatureage" => Self::SignatureAge,
            "s3:requestobjecttagkeys" => Self::RequestObjectTagKeys,
            name => {
                let header = name.strip_prefix("s3:")?;
                Self::Header(HEADERS.iter().find(|h| **h == header)?)
            }
        })
    }

    /// Whether `${key}` may stand in resources and values: keys with one value that is a plain text.
    pub(super) fn is_variable(&self) -> bool {
        !matches!(self, Self::RequestObjectTagKeys | Self::Header(_))
    }
}

/// What is known of a request. Asked only for the keys that a policy names.
pub trait Facts {
    /// The values of a key; empty when the request has none.
    fn values(&self, key: &ConditionKey) -> Vec<Cow<'_, str>>;

    /// About how many bytes have to be looked through to find the values of a key.
    fn cost(&self, key: &ConditionKey) -> usize {
        let _ = key;
        0
    }
}

/// A request of which nothing is known.
#[cfg(test)]
pub(super) struct NoFacts;

#[cfg(test)]
impl Facts for NoFacts {
    fn values(&self, _key: &ConditionKey) -> Vec<Cow<'_, str>> {
        Vec::new()
    }
}
