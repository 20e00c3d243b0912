//! The operations of S3, in one table: how a request for each looks, which permission it needs, and whether Holdfast
//! has it.
//!
//! Access control decides by this table, metrics take their labels from it, and `docs/s3.md` is checked against it, so
//! that none of the three can drift from the others. An operation that is not in the table does not exist.

/// What the path of a request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// `/`
    Service,
    /// `/bucket`
    Bucket,
    /// `/bucket/key`
    Object,
}

/// One operation.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// S3's name of it; also the label in metrics.
    pub name: &'static str,
    /// HTTP method.
    pub method: &'static str,
    /// What the path names.
    pub target: Target,
    /// The query that tells it from others on the same path; values are examples.
    pub query: &'static str,
    /// The permission that it needs; empty where none is asked for (any user may call it).
    pub action: &'static str,
    /// The permission instead, when the request names a version; empty if that makes no difference.
    pub version_action: &'static str,
    /// Whether Holdfast has it. If not, the answer is NotImplemented.
    pub supported: bool,
}

const fn yes(
    name: &'static str,
    method: &'static str,
    target: Target,
    query: &'static str,
    action: &'static str,
    version_action: &'static str,
) -> Operation {
    Operation { name, method, target, query, action, version_action, supported: true }
}

const fn no(name: &'static str, method: &'static str, target: Target, query: &'static str) -> Operation {
    Operation { name, method, target, query, action: "", version_action: "", supported: false }
}

use Target::{Bucket, Object, Service};

/// All operations, in the order of their names.
#[rustfmt::skip]
pub const OPERATIONS: &[Operation] = &[
    yes("AbortMultipartUpload", "DELETE", Object, "uploadId=U", "s3:AbortMultipartUpload", ""),
    yes("CompleteMultipartUpload", "POST", Object, "uploadId=U", "s3:PutObject", ""),
    yes("CopyObject", "PUT", Object, "", "s3:PutObject", ""),
    yes("CreateBucket", "PUT", Bucket, "", "", ""),
    no("CreateBucketMetadataTableConfiguration", "POST", Bucket, "metadataTable"),
    yes("CreateMultipartUpload", "POST", Object, "uploads", "s3:PutObject", ""),
    no("CreateSession", "GET", Bucket, "session"),
    yes("DeleteBucket", "DELETE", Bucket, "", "s3:DeleteBucket", ""),
    no("DeleteBucketAnalyticsConfiguration", "DELETE", Bucket, "analytics&id=I"),
    yes("DeleteBucketCors", "DELETE", Bucket, "cors", "s3:PutBucketCORS", ""),
    no("DeleteBucketEncryption", "DELETE", Bucket, "encryption"),
    no("DeleteBucketIntelligentTieringConfiguration", "DELETE", Bucket, "intelligent-tiering&id=I"),
    no("DeleteBucketInventoryConfiguration", "DELETE", Bucket, "inventory&id=I"),
    yes("DeleteBucketLifecycle", "DELETE", Bucket, "lifecycle", "s3:PutLifecycleConfiguration", ""),
    no("DeleteBucketMetadataTableConfiguration", "DELETE", Bucket, "metadataTable"),
    no("DeleteBucketMetricsConfiguration", "DELETE", Bucket, "metrics&id=I"),
    no("DeleteBucketOwnershipControls", "DELETE", Bucket, "ownershipControls"),
    yes("DeleteBucketPolicy", "DELETE", Bucket, "policy", "s3:DeleteBucketPolicy", ""),
    no("DeleteBucketReplication", "DELETE", Bucket, "replication"),
    yes("DeleteBucketTagging", "DELETE", Bucket, "tagging", "s3:PutBucketTagging", ""),
    no("DeleteBucketWebsite", "DELETE", Bucket, "website"),
    yes("DeleteObject", "DELETE", Object, "", "s3:DeleteObject", "s3:DeleteObjectVersion"),
    yes("DeleteObjectTagging", "DELETE", Object, "tagging", "s3:DeleteObjectTagging", "s3:DeleteObjectVersionTagging"),
    // Each key is checked on its own, by s3:DeleteObject or s3:DeleteObjectVersion.
    yes("DeleteObjects", "POST", Bucket, "delete", "", ""),
    no("DeletePublicAccessBlock", "DELETE", Bucket, "publicAccessBlock"),
    yes("GetBucketAccelerateConfiguration", "GET", Bucket, "accelerate", "s3:GetAccelerateConfiguration", ""),
    yes("GetBucketAcl", "GET", Bucket, "acl", "s3:GetBucketAcl", ""),
    yes("GetBucketAnalyticsConfiguration", "GET", Bucket, "analytics&id=I", "s3:GetAnalyticsConfiguration", ""),
    yes("GetBucketCors", "GET", Bucket, "cors", "s3:GetBucketCORS", ""),
    yes("GetBucketEncryption", "GET", Bucket, "encryption", "s3:GetEncryptionConfiguration", ""),
    yes("GetBucketIntelligentTieringConfiguration", "GET", Bucket, "intelligent-tiering&id=I", "s3:GetIntelligentTieringConfiguration", ""),
    yes("GetBucketInventoryConfiguration", "GET", Bucket, "inventory&id=I", "s3:GetInventoryConfiguration", ""),
    yes("GetBucketLifecycleConfiguration", "GET", Bucket, "lifecycle", "s3:GetLifecycleConfiguration", ""),
    yes("GetBucketLocation", "GET", Bucket, "location", "s3:GetBucketLocation", ""),
    yes("GetBucketLogging", "GET", Bucket, "logging", "s3:GetBucketLogging", ""),
    no("GetBucketMetadataTableConfiguration", "GET", Bucket, "metadataTable"),
    yes("GetBucketMetricsConfiguration", "GET", Bucket, "metrics&id=I", "s3:GetMetricsConfiguration", ""),
    yes("GetBucketNotificationConfiguration", "GET", Bucket, "notification", "s3:GetBucketNotification", ""),
    yes("GetBucketOwnershipControls", "GET", Bucket, "ownershipControls", "s3:GetBucketOwnershipControls", ""),
    yes("GetBucketPolicy", "GET", Bucket, "policy", "s3:GetBucketPolicy", ""),
    yes("GetBucketPolicyStatus", "GET", Bucket, "policyStatus", "s3:GetBucketPolicyStatus", ""),
    yes("GetBucketReplication", "GET", Bucket, "replication", "s3:GetReplicationConfiguration", ""),
    yes("GetBucketRequestPayment", "GET", Bucket, "requestPayment", "s3:GetBucketRequestPayment", ""),
    yes("GetBucketTagging", "GET", Bucket, "tagging", "s3:GetBucketTagging", ""),
    yes("GetBucketVersioning", "GET", Bucket, "versioning", "s3:GetBucketVersioning", ""),
    yes("GetBucketWebsite", "GET", Bucket, "website", "s3:GetBucketWebsite", ""),
    yes("GetObject", "GET", Object, "", "s3:GetObject", "s3:GetObjectVersion"),
    yes("GetObjectAcl", "GET", Object, "acl", "s3:GetObjectAcl", "s3:GetObjectVersionAcl"),
    yes("GetObjectAttributes", "GET", Object, "attributes", "s3:GetObjectAttributes", "s3:GetObjectVersionAttributes"),
    yes("GetObjectLegalHold", "GET", Object, "legal-hold", "s3:GetObjectLegalHold", ""),
    yes("GetObjectLockConfiguration", "GET", Bucket, "object-lock", "s3:GetBucketObjectLockConfiguration", ""),
    yes("GetObjectRetention", "GET", Object, "retention", "s3:GetObjectRetention", ""),
    yes("GetObjectTagging", "GET", Object, "tagging", "s3:GetObjectTagging", "s3:GetObjectVersionTagging"),
    no("GetObjectTorrent", "GET", Object, "torrent"),
    yes("GetPublicAccessBlock", "GET", Bucket, "publicAccessBlock", "s3:GetBucketPublicAccessBlock", ""),
    yes("HeadBucket", "HEAD", Bucket, "", "s3:ListBucket", ""),
    yes("HeadObject", "HEAD", Object, "", "s3:GetObject", "s3:GetObjectVersion"),
    yes("ListBucketAnalyticsConfigurations", "GET", Bucket, "analytics", "s3:GetAnalyticsConfiguration", ""),
    yes("ListBucketIntelligentTieringConfigurations", "GET", Bucket, "intelligent-tiering", "s3:GetIntelligentTieringConfiguration", ""),
    yes("ListBucketInventoryConfigurations", "GET", Bucket, "inventory", "s3:GetInventoryConfiguration", ""),
    yes("ListBucketMetricsConfigurations", "GET", Bucket, "metrics", "s3:GetMetricsConfiguration", ""),
    yes("ListBuckets", "GET", Service, "", "", ""),
    no("ListDirectoryBuckets", "GET", Service, "x-id=ListDirectoryBuckets"),
    yes("ListMultipartUploads", "GET", Bucket, "uploads", "s3:ListBucketMultipartUploads", ""),
    yes("ListObjectVersions", "GET", Bucket, "versions", "s3:ListBucketVersions", ""),
    yes("ListObjects", "GET", Bucket, "", "s3:ListBucket", ""),
    yes("ListObjectsV2", "GET", Bucket, "list-type=2", "s3:ListBucket", ""),
    yes("ListParts", "GET", Object, "uploadId=U", "s3:ListMultipartUploadParts", ""),
    yes("PostObject", "POST", Bucket, "", "s3:PutObject", ""),
    no("PutBucketAccelerateConfiguration", "PUT", Bucket, "accelerate"),
    yes("PutBucketAcl", "PUT", Bucket, "acl", "s3:PutBucketAcl", ""),
    no("PutBucketAnalyticsConfiguration", "PUT", Bucket, "analytics&id=I"),
    yes("PutBucketCors", "PUT", Bucket, "cors", "s3:PutBucketCORS", ""),
    no("PutBucketEncryption", "PUT", Bucket, "encryption"),
    no("PutBucketIntelligentTieringConfiguration", "PUT", Bucket, "intelligent-tiering&id=I"),
    no("PutBucketInventoryConfiguration", "PUT", Bucket, "inventory&id=I"),
    yes("PutBucketLifecycleConfiguration", "PUT", Bucket, "lifecycle", "s3:PutLifecycleConfiguration", ""),
    no("PutBucketLogging", "PUT", Bucket, "logging"),
    no("PutBucketMetricsConfiguration", "PUT", Bucket, "metrics&id=I"),
    yes("PutBucketNotificationConfiguration", "PUT", Bucket, "notification", "s3:PutBucketNotification", ""),
    no("PutBucketOwnershipControls", "PUT", Bucket, "ownershipControls"),
    yes("PutBucketPolicy", "PUT", Bucket, "policy", "s3:PutBucketPolicy", ""),
    no("PutBucketReplication", "PUT", Bucket, "replication"),
    no("PutBucketRequestPayment", "PUT", Bucket, "requestPayment"),
    yes("PutBucketTagging", "PUT", Bucket, "tagging", "s3:PutBucketTagging", ""),
    yes("PutBucketVersioning", "PUT", Bucket, "versioning", "s3:PutBucketVersioning", ""),
    no("PutBucketWebsite", "PUT", Bucket, "website"),
    yes("PutObject", "PUT", Object, "", "s3:PutObject", ""),
    yes("PutObjectAcl", "PUT", Object, "acl", "s3:PutObjectAcl", "s3:PutObjectVersionAcl"),
    no("PutObjectLegalHold", "PUT", Object, "legal-hold"),
    no("PutObjectLockConfiguration", "PUT", Bucket, "object-lock"),
    no("PutObjectRetention", "PUT", Object, "retention"),
    yes("PutObjectTagging", "PUT", Object, "tagging", "s3:PutObjectTagging", "s3:PutObjectVersionTagging"),
    no("PutPublicAccessBlock", "PUT", Bucket, "publicAccessBlock"),
    yes("RestoreObject", "POST", Object, "restore", "s3:RestoreObject", ""),
    no("SelectObjectContent", "POST", Object, "select&select-type=2"),
    yes("UploadPart", "PUT", Object, "partNumber=1&uploadId=U", "s3:PutObject", ""),
    yes("UploadPartCopy", "PUT", Object, "partNumber=1&uploadId=U", "s3:PutObject", ""),
    no("WriteGetObjectResponse", "POST", Bucket, ""),
];

/// An operation by name.
pub fn find(name: &str) -> Option<&'static Operation> {
    OPERATIONS.binary_search_by(|operation| operation.name.cmp(name)).ok().map(|index| &OPERATIONS[index])
}

#[cfg(test)]
mod tests {
    use holdfast_actors::domain::access::policy::{Scope, scope_of};

    use super::*;

    #[test]
    fn the_table_is_sorted_so_that_every_operation_is_found() {
        for operation in OPERATIONS {
            assert_eq!(find(operation.name).map(|o| o.name), Some(operation.name));
        }
        assert!(find("GetObjects").is_none());
    }

    #[test]
    fn each_action_exists_and_is_performed_on_what_the_path_names() {
        for operation in OPERATIONS {
            for action in [operation.action, operation.version_action] {
                if action.is_empty() {
                    continue;
                }
                let expected = match operation.name {
                    // The key is in the form.
                    "PostObject" => Scope::Object,
                    _ if operation.target == Target::Object => Scope::Object,
                    _ => Scope::Bucket,
                };
                assert_eq!(scope_of(action), Some(expected), "{} {action}", operation.name);
            }
        }
    }

    #[test]
    fn only_operations_that_are_checked_otherwise_need_no_action() {
        let without: Vec<_> =
            OPERATIONS.iter().filter(|o| o.supported && o.action.is_empty()).map(|o| o.name).collect();
        assert_eq!(without, ["CreateBucket", "DeleteObjects", "ListBuckets"]);
    }
}
