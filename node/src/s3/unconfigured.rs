//! What a bucket of S3 can have and none has here: encryption, replication and the like.
//!
//! SDKs, terraform and consoles ask for all of it. They are told what S3 tells of a bucket on which nothing was
//! configured, and that is the truth, since whoever configures something gets NotImplemented. Each answer asks whether
//! the bucket exists.

use s3s::dto::*;
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result};

use super::S3Front;
use super::errors::not_configured;

/// Operations whose answer is an error.
macro_rules! missing {
    ($($method:ident($input:ident) -> $output:ident: $code:expr, $message:literal;)*) => {
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

missing! {
    get_bucket_encryption(GetBucketEncryptionInput) -> GetBucketEncryptionOutput:
        S3ErrorCode::ServerSideEncryptionConfigurationNotFoundError,
        "The server side encryption configuration was not found";
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
