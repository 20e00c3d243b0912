//! What can be told from a request's operation, query and headers alone: the actions that it needs, and what it may not
//! carry.

use http::HeaderMap;
use url::form_urlencoded;

use super::super::facts::passes_over_tags;
use super::super::operations::Operation;
use super::super::presigned;

/// What S3 tells of a bucket and s3s does not know.
const UNKNOWN_READS: [&str; 2] = ["abac", "metadataConfiguration"];
/// And of an object.
const UNKNOWN_READS_OF_OBJECTS: [&str; 1] = ["annotation"];

/// The actions that a request needs, all of them. Writes that also set tags or an ACL need those permissions too.
pub(super) fn needed_actions(
    operation: &Operation,
    names_version: bool,
    headers: &HeaderMap,
) -> impl Iterator<Item = &'static str> {
    let main = match operation.name {
        // Decided with the parsed input: by key, and by the tags in the body.
        "DeleteObjects" | "PutObjectTagging" => None,
        _ if names_version && !operation.version_action.is_empty() => Some(operation.version_action),
        _ => Some(operation.action),
    };
    let second = match operation.name {
        "GetObjectAttributes" if names_version => Some("s3:GetObjectVersion"),
        "GetObjectAttributes" => Some("s3:GetObject"),
        _ => None,
    };
    let writes = matches!(operation.name, "PutObject" | "CopyObject" | "CreateMultipartUpload");
    let sets_tags = writes && has_value(headers, "x-amz-tagging", "") && !passes_over_tags(operation.name, headers);
    let tags = sets_tags.then_some("s3:PutObjectTagging");
    let acl = (writes && has_value(headers, "x-amz-acl", "private")).then_some("s3:PutObjectAcl");
    [main, second, tags, acl].into_iter().flatten()
}

/// Whether a header has a value, and not this one. To the operation an empty one is none.
fn has_value(headers: &HeaderMap, name: &str, other_than: &str) -> bool {
    headers.get_all(name).iter().any(|value| !value.is_empty() && value != other_than)
}

pub(super) fn has_streaming_payload(headers: &HeaderMap) -> bool {
    let starts = |name: &str, prefix: &[u8]| headers.get(name).is_some_and(|v| v.as_bytes().starts_with(prefix));
    starts("x-amz-content-sha256", b"STREAMING-") || starts("content-encoding", b"aws-chunked")
}

/// A subresource that s3s does not know, on a request that would be taken for a plain write or deletion. S3 gains new
/// ones (`?renameObject`), and carrying one out as PutObject with an empty body would destroy the object.
///
/// Of a read S3 passes over what it does not know, so there only those are refused that S3 has: a program that asks how
/// a bucket is configured would take a listing for the answer, and one that asks for an annotation the object itself.
pub(super) fn unknown_subresource<'q>(operation: &str, query: &'q str) -> Option<&'q str> {
    if query.is_empty() {
        return None;
    }
    let is_unknown: fn(&str) -> bool = match operation {
        "PutObject" | "CopyObject" | "DeleteObject" | "CreateBucket" | "DeleteBucket" => {
            |name| !name.is_empty() && name != "versionId" && !presigned::is_amz(name)
        }
        "ListObjects" => |name| UNKNOWN_READS.contains(&name),
        "GetObject" | "HeadObject" => |name| UNKNOWN_READS_OF_OBJECTS.contains(&name),
        _ => return None,
    };
    query.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (value.is_empty() && is_unknown(name)).then_some(name)
    })
}

/// A parameter that belongs to another operation, which the request was meant to be: `uploadId` without `partNumber`
/// must not replace the object by the part. However it is written: s3s finds operations by decoded names. Nor one that
/// the operation does not look at, and a policy would: of an upload that names a version, the tags of that one would
/// decide, and the latest be overwritten.
pub(super) fn misplaced_parameter(operation: &str, query: &str) -> Option<&'static str> {
    let others: &[&'static str] = match operation {
        "PutObject" | "CopyObject" => &["partNumber", "uploadId", "versionId"],
        // By it the body would be taken for a part, and not be looked at (`strict_xml`).
        "CreateBucket" => &["uploadId"],
        "DeleteObject" => &["partNumber"],
        "CreateMultipartUpload"
        | "UploadPart"
        | "UploadPartCopy"
        | "CompleteMultipartUpload"
        | "AbortMultipartUpload"
        | "ListParts" => &["versionId"],
        _ => return None,
    };
    form_urlencoded::parse(query.as_bytes()).find_map(|(name, _)| others.iter().copied().find(|other| *other == name))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::super::super::operations;
    use super::*;

    #[test]
    fn what_a_header_without_a_value_sets_needs_no_permission() {
        let needed = |name: &'static str, value: &'static str| -> Vec<&'static str> {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            needed_actions(operations::find("PutObject").unwrap(), false, &headers).collect()
        };
        for (name, value, second) in [
            ("x-amz-tagging", "a=b", Some("s3:PutObjectTagging")),
            ("x-amz-tagging", "", None),
            ("x-amz-acl", "public-read", Some("s3:PutObjectAcl")),
            ("x-amz-acl", "private", None),
            ("x-amz-acl", "", None),
        ] {
            let expected: Vec<_> = std::iter::once("s3:PutObject").chain(second).collect();
            assert_eq!(needed(name, value), expected, "{name}: {value:?}");
        }
    }

    #[test]
    fn a_parameter_of_another_operation_is_found_however_it_is_written() {
        for (operation, query, expected) in [
            ("PutObject", "uploadId=u", Some("uploadId")),
            ("PutObject", "x=y&%75ploadId=u", Some("uploadId")),
            ("CopyObject", "%70artNumber=1", Some("partNumber")),
            ("CreateBucket", "partNumber=1&uploadId=u", Some("uploadId")),
            ("CreateBucket", "%75ploadId", Some("uploadId")),
            ("CreateBucket", "x-id=CreateBucket", None),
            ("DeleteObject", "partNumber", Some("partNumber")),
            ("DeleteObject", "uploadId=u", None),
            ("PutObject", "x-id=PutObject", None),
            ("UploadPart", "partNumber=1&uploadId=u", None),
            ("UploadPart", "partNumber=1&uploadId=u&versionId=v", Some("versionId")),
            ("CompleteMultipartUpload", "uploadId=u&%76ersionId", Some("versionId")),
            ("GetObject", "versionId=v", None),
        ] {
            assert_eq!(misplaced_parameter(operation, query), expected, "{operation} {query}");
        }
    }
}
