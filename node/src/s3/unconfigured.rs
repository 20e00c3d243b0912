//! What a bucket of S3 can have and none has here: encryption, replication, locks of its objects and the like.
//!
//! SDKs, terraform and consoles ask for all of it. They are told what S3 tells of a bucket on which nothing was
//! configured, and that is the truth, since whoever configures something gets NotImplemented. Each answer asks whether
//! the bucket exists.

use s3s::dto::*;
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::S3Front;
use super::errors::not_configured;

/// What S3 says of a configuration of which a bucket can have several, each with an id.
const NO_SUCH_CONFIGURATION: &str = "The specified configuration does not exist.";

fn no_such_configuration() -> S3ErrorCode {
    S3ErrorCode::Custom("NoSuchConfiguration".into())
}

/// Operations whose answer is an error.
macro_rules! missing {
    ($($method:ident($input:ident) -> $output:ident: $code:expr, $message:expr;)*) => {
        impl S3Front {
            $(
                pub(crate) async fn $method(&self, req: S3Request<$input>) -> S3Result<S3Response<$output>> {
                    self.config_bucket(&req, &req.input.bucket).await?;
                    Err(not_configured($code, $message))
                }
            )*
        }
    };
}

/// Operations whose answer is a document without content.
macro_rules! empty {
    ($($method:ident($input:ident) -> $output:ident;)*) => {
        impl S3Front {
            $(
                pub(crate) async fn $method(&self, req: S3Request<$input>) -> S3Result<S3Response<$output>> {
                    self.config_bucket(&req, &req.input.bucket).await?;
                    Ok(S3Response::new($output::default()))
                }
            )*
        }
    };
}

/// Operations that list configurations: there are none.
macro_rules! empty_list {
    ($($method:ident($input:ident) -> $output:ident;)*) => {
        impl S3Front {
            $(
                pub(crate) async fn $method(&self, req: S3Request<$input>) -> S3Result<S3Response<$output>> {
                    self.config_bucket(&req, &req.input.bucket).await?;
                    Ok(S3Response::new($output { is_truncated: Some(false), ..Default::default() }))
                }
            )*
        }
    };
}

/// Operations on the lock of an object. Whether there is the object is not asked: in S3 the answer is the same.
macro_rules! without_lock {
    ($($method:ident($input:ident) -> $output:ident;)*) => {
        impl S3Front {
            $(
                pub(crate) async fn $method(&self, req: S3Request<$input>) -> S3Result<S3Response<$output>> {
                    self.config_bucket(&req, &req.input.bucket).await?;
                    Err(s3_error!(InvalidRequest, "Bucket is missing Object Lock Configuration"))
                }
            )*
        }
    };
}

missing! {
    get_bucket_analytics_configuration(GetBucketAnalyticsConfigurationInput) -> GetBucketAnalyticsConfigurationOutput:
        no_such_configuration(), NO_SUCH_CONFIGURATION;
    get_bucket_encryption(GetBucketEncryptionInput) -> GetBucketEncryptionOutput:
        S3ErrorCode::ServerSideEncryptionConfigurationNotFoundError,
        "The server side encryption configuration was not found";
    get_bucket_intelligent_tiering_configuration(GetBucketIntelligentTieringConfigurationInput)
        -> GetBucketIntelligentTieringConfigurationOutput: no_such_configuration(), NO_SUCH_CONFIGURATION;
    get_bucket_inventory_configuration(GetBucketInventoryConfigurationInput) -> GetBucketInventoryConfigurationOutput:
        no_such_configuration(), NO_SUCH_CONFIGURATION;
    get_bucket_metrics_configuration(GetBucketMetricsConfigurationInput) -> GetBucketMetricsConfigurationOutput:
        no_such_configuration(), NO_SUCH_CONFIGURATION;
    get_bucket_replication(GetBucketReplicationInput) -> GetBucketReplicationOutput:
        S3ErrorCode::ReplicationConfigurationNotFoundError, "The replication configuration was not found";
    get_bucket_website(GetBucketWebsiteInput) -> GetBucketWebsiteOutput:
        S3ErrorCode::NoSuchWebsiteConfiguration, "The specified bucket does not have a website configuration";
    get_object_lock_configuration(GetObjectLockConfigurationInput) -> GetObjectLockConfigurationOutput:
        S3ErrorCode::ObjectLockConfigurationNotFoundError,
        "Object Lock configuration does not exist for this bucket";
    get_public_access_block(GetPublicAccessBlockInput) -> GetPublicAccessBlockOutput:
        S3ErrorCode::Custom("NoSuchPublicAccessBlockConfiguration".into()),
        "The public access block configuration was not found";
}

empty! {
    get_bucket_accelerate_configuration(GetBucketAccelerateConfigurationInput)
        -> GetBucketAccelerateConfigurationOutput;
    get_bucket_logging(GetBucketLoggingInput) -> GetBucketLoggingOutput;
}

empty_list! {
    list_bucket_analytics_configurations(ListBucketAnalyticsConfigurationsInput)
        -> ListBucketAnalyticsConfigurationsOutput;
    list_bucket_intelligent_tiering_configurations(ListBucketIntelligentTieringConfigurationsInput)
        -> ListBucketIntelligentTieringConfigurationsOutput;
    list_bucket_inventory_configurations(ListBucketInventoryConfigurationsInput)
        -> ListBucketInventoryConfigurationsOutput;
    list_bucket_metrics_configurations(ListBucketMetricsConfigurationsInput)
        -> ListBucketMetricsConfigurationsOutput;
}

without_lock! {
    get_object_legal_hold(GetObjectLegalHoldInput) -> GetObjectLegalHoldOutput;
    get_object_retention(GetObjectRetentionInput) -> GetObjectRetentionOutput;
}
