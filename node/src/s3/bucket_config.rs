//! Operations on a bucket's policy, CORS rules, tags and ACLs.
//!
//! Each document is validated whole before it is stored; the metadata store replaces it in one transaction. Policies
//! are kept as their author wrote them, since GetBucketPolicy gives them back; the others as JSON of the domain's
//! types.

use std::sync::Arc;

use holdfast_actors::domain::access::acl::{self, AclError, Grantee as AclGrantee, Permission as AclPermission};
use holdfast_actors::domain::access::cors::{CorsError, CorsRule, CorsRules};
use holdfast_actors::domain::access::policy::Policy;
use holdfast_actors::domain::objects::tags::{
    TAG_KEY_CHARS_MAX, TAG_VALUE_CHARS_MAX, TagError, is_readable, is_system_key,
};
use holdfast_actors::ports::MetadataError;
use holdfast_actors::ports::metadata::{Bucket, BucketConfigKind, CannedAcl, ChangeRequest, ObjectVersion, Tag};
use holdfast_protocol::{EventName, VersionId};
use s3s::dto::{self, *};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use serde::de::DeserializeOwned;

use super::S3Front;
use super::access::{bucket_acl, bucket_of};
use super::errors::{ResultExt as _, ToS3 as _};
use super::judged::{self, Judged};

/// Most tags of a bucket.
const BUCKET_TAGS_MAX: usize = 50;

fn acl_error(error: AclError) -> S3Error {
    let code = match error {
        AclError::NotSupported(_) | AclError::Grants => S3ErrorCode::NotImplemented,
        AclError::Unknown(_) => S3ErrorCode::InvalidArgument,
    };
    S3Error::with_message(code, error.to_string())
}

fn cors_error(error: CorsError) -> S3Error {
    let code = match error {
        CorsError::Invalid(_) => S3ErrorCode::InvalidRequest,
        CorsError::Malformed(_) => S3ErrorCode::MalformedXML,
    };
    S3Error::with_message(code, error.to_string())
}

/// A stored document in JSON; `None` if there is none.
pub(super) fn stored<T: DeserializeOwned>(bucket: &Bucket, kind: BucketConfigKind) -> S3Result<Option<T>> {
    let Some(text) = bucket.config(kind) else { return Ok(None) };
    serde_json::from_str(text).map(Some).map_err(|error| {
        tracing::error!(bucket = bucket.name, kind = kind.as_str(), %error, "a stored document is not understood");
        s3_error!(InternalError, "The stored configuration cannot be read; put it again.")
    })
}

pub(super) fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain structs of strings and numbers serialise")
}

/// A document as it is stored. What is stored with a bucket is read with it, for each request, so it is bounded.
///
/// # Errors
/// `InvalidRequest` if it has more bytes than it may.
pub(super) fn to_bounded_json<T: serde::Serialize>(value: &T, bytes_max: usize) -> S3Result<String> {
    let text = to_json(value);
    if text.len() > bytes_max {
        return Err(s3_error!(InvalidRequest, "This configuration is larger than {} KiB.", bytes_max >> 10));
    }
    Ok(text)
}

/// Checks tags of a bucket against S3's rules.
///
/// # Errors
/// `InvalidTag` with what is wrong.
pub(super) fn check_tags(tag_set: &[dto::Tag]) -> S3Result<Vec<Tag>> {
    if tag_set.len() > BUCKET_TAGS_MAX {
        return Err(s3_error!(InvalidTag, "Tag count cannot be greater than {BUCKET_TAGS_MAX}"));
    }
    let mut tags: Vec<Tag> = Vec::with_capacity(tag_set.len());
    for tag in tag_set {
        let key = tag.key.clone().unwrap_or_default();
        let value = tag.value.clone().unwrap_or_default();
        if key.is_empty() || key.chars().count() > TAG_KEY_CHARS_MAX || !is_readable(&key) {
            return Err(s3_error!(InvalidTag, "The TagKey you have provided is invalid"));
        }
        if value.chars().count() > TAG_VALUE_CHARS_MAX || !is_readable(&value) {
            return Err(s3_error!(InvalidTag, "The TagValue you have provided is invalid"));
        }
        if is_system_key(&key) {
            return Err(TagError::System.to_s3());
        }
        if tags.iter().any(|t| t.key == key) {
            return Err(s3_error!(InvalidTag, "Cannot provide multiple Tags with the same key"));
        }
        tags.push(Tag { key, value });
    }
    Ok(tags)
}

fn owner(name: &str) -> Owner {
    Owner { display_name: Some(name.to_owned()), id: Some(name.to_owned()) }
}

/// The grants of a canned ACL as S3 shows them.
fn grant_list(acl: CannedAcl, owner: &str) -> Vec<Grant> {
    let grant = |(grantee, permission): (AclGrantee<'_>, AclPermission)| Grant {
        grantee: Some(match grantee {
            AclGrantee::User(name) => Grantee {
                display_name: Some(name.to_owned()),
                email_address: None,
                id: Some(name.to_owned()),
                type_: Type::from_static(Type::CANONICAL_USER),
                uri: None,
            },
            AclGrantee::AllUsers => Grantee {
                display_name: None,
                email_address: None,
                id: None,
                type_: Type::from_static(Type::GROUP),
                uri: Some(acl::ALL_USERS_URI.to_owned()),
            },
        }),
        permission: Some(match permission {
            AclPermission::FullControl => Permission::from_static(Permission::FULL_CONTROL),
            AclPermission::Read => Permission::from_static(Permission::READ),
        }),
    };
    acl::grants(acl, owner).into_iter().map(grant).collect()
}

/// The ACL that a request asks for: by name, or by a list of grants that stands for one.
fn requested_acl(
    canned: Option<&str>,
    policy: Option<&AccessControlPolicy>,
    has_grant_headers: bool,
    owner: &str,
) -> S3Result<CannedAcl> {
    if has_grant_headers {
        return Err(acl_error(AclError::Grants));
    }
    match (canned, policy) {
        (Some(_), Some(_)) => Err(s3_error!(UnexpectedContent, "This request does not support content")),
        (Some(name), None) => acl::from_canned_name(name).map_err(acl_error),
        (None, None) => Err(s3_error!(MissingSecurityHeader, "Your request was missing a required header: x-amz-acl")),
        (None, Some(policy)) => {
            if let Some(id) = policy.owner.as_ref().and_then(|o| o.id.as_deref())
                && id != owner
            {
                return Err(s3_error!(AccessDenied, "The owner in an access control list cannot be changed."));
            }
            let malformed = || s3_error!(MalformedACLError, "The XML you provided was not well-formed");
            let mut grants = Vec::new();
            for grant in policy.grants.iter().flatten() {
                let grantee = grant.grantee.as_ref().ok_or_else(malformed)?;
                let grantee = match (grantee.id.as_deref(), grantee.uri.as_deref()) {
                    (Some(id), None) => AclGrantee::User(id),
                    (None, Some(acl::ALL_USERS_URI)) => AclGrantee::AllUsers,
                    (None, None) if grantee.email_address.is_none() => return Err(malformed()),
                    _ => return Err(acl_error(AclError::Grants)),
                };
                let permission = match grant.permission.as_ref().map(Permission::as_str) {
                    Some(Permission::FULL_CONTROL) => AclPermission::FullControl,
                    Some(Permission::READ) => AclPermission::Read,
                    Some(_) => return Err(acl_error(AclError::Grants)),
                    None => return Err(malformed()),
                };
                grants.push((grantee, permission));
            }
            acl::from_grants(owner, &grants).map_err(acl_error)
        }
    }
}

fn parse_version(text: Option<&str>) -> S3Result<Option<VersionId>> {
    text.map(|text| text.parse().map_err(|_| s3_error!(InvalidArgument, "Invalid version id specified"))).transpose()
}

fn cors_rule_from_dto(rule: CORSRule) -> S3Result<CorsRule> {
    let max_age_seconds = rule
        .max_age_seconds
        .map(|seconds| u32::try_from(seconds).map_err(|_| s3_error!(InvalidRequest, "MaxAgeSeconds is negative")))
        .transpose()?;
    Ok(CorsRule {
        id: rule.id,
        allowed_origins: rule.allowed_origins,
        allowed_methods: rule.allowed_methods,
        allowed_headers: rule.allowed_headers.unwrap_or_default(),
        expose_headers: rule.expose_headers.unwrap_or_default(),
        max_age_seconds,
    })
}

fn cors_rule_to_dto(rule: CorsRule) -> CORSRule {
    let unless_empty = |list: Vec<String>| (!list.is_empty()).then_some(list);
    CORSRule {
        id: rule.id,
        allowed_origins: rule.allowed_origins,
        allowed_methods: rule.allowed_methods,
        allowed_headers: unless_empty(rule.allowed_headers),
        expose_headers: unless_empty(rule.expose_headers),
        max_age_seconds: rule.max_age_seconds.map(|seconds| i32::try_from(seconds).unwrap_or(i32::MAX)),
    }
}

impl S3Front {
    /// The bucket of a request: as access control read it, else from the store.
    pub(crate) async fn config_bucket<T>(&self, req: &S3Request<T>, name: &str) -> S3Result<Arc<Bucket>> {
        match bucket_of(&req.extensions) {
            Some(bucket) if bucket.name == name => Ok(Arc::clone(bucket)),
            _ => self.metadata.bucket(name).await.s3(),
        }
    }

    /// Sets or removes a document of the bucket that the request was decided about. Documents may come slowly, and
    /// whoever owned the bucket may have deleted it meanwhile: one that somebody has made since is `NoSuchBucket`.
    pub(super) async fn set_config(
        &self,
        bucket: &Bucket,
        kind: BucketConfigKind,
        value: Option<String>,
    ) -> S3Result<()> {
        self.metadata.set_bucket_config(&bucket.name, bucket.id, kind, value).await.s3()
    }

    /// A version that is not a delete marker, for its ACL.
    async fn acl_object(&self, bucket: &Bucket, key: &str, version: Option<&str>) -> S3Result<Arc<ObjectVersion>> {
        let version = parse_version(version)?;
        let object = self.metadata.object(bucket.id, key, version).await.map_err(|error| match error {
            MetadataError::NoSuchKey if version.is_some() => MetadataError::NoSuchVersion.to_s3(),
            error => error.to_s3(),
        })?;
        match (object.is_delete_marker(), version) {
            (false, _) => Ok(object),
            (true, None) => Err(MetadataError::NoSuchKey.to_s3()),
            (true, Some(_)) => {
                Err(s3_error!(MethodNotAllowed, "The specified method is not allowed against this resource."))
            }
        }
    }

    // --- policy ------------------------------------------------------------------------------------------------------

    pub(crate) async fn put_bucket_policy(
        &self,
        req: S3Request<PutBucketPolicyInput>,
    ) -> S3Result<S3Response<PutBucketPolicyOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        let text = req.input.policy;
        let refuse = |message: String| S3Error::with_message(S3ErrorCode::MalformedPolicy, message);
        let policy = Policy::parse(&text, &bucket.name).map_err(|error| refuse(error.to_string()))?;
        for user in policy.users() {
            match self.metadata.user(user).await {
                Ok(_) => {}
                // A principal that does not exist is a typing error, or would grant to whoever gets that name later.
                Err(MetadataError::NotFound(_)) => {
                    return Err(refuse(format!("Invalid principal in policy: there is no user {user:?}")));
                }
                Err(error) => return Err(error.to_s3()),
            }
        }
        self.set_config(&bucket, BucketConfigKind::Policy, Some(text)).await?;
        Ok(S3Response::new(PutBucketPolicyOutput::default()))
    }

    pub(crate) async fn get_bucket_policy(
        &self,
        req: S3Request<GetBucketPolicyInput>,
    ) -> S3Result<S3Response<GetBucketPolicyOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        let policy = bucket.config(BucketConfigKind::Policy).ok_or_else(no_policy)?.to_owned();
        Ok(S3Response::new(GetBucketPolicyOutput { policy: Some(policy) }))
    }

    pub(crate) async fn delete_bucket_policy(
        &self,
        req: S3Request<DeleteBucketPolicyInput>,
    ) -> S3Result<S3Response<DeleteBucketPolicyOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        self.set_config(&bucket, BucketConfigKind::Policy, None).await?;
        Ok(S3Response::new(DeleteBucketPolicyOutput::default()))
    }

    pub(crate) async fn get_bucket_policy_status(
        &self,
        req: S3Request<GetBucketPolicyStatusInput>,
    ) -> S3Result<S3Response<GetBucketPolicyStatusOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        let text = bucket.config(BucketConfigKind::Policy).ok_or_else(no_policy)?;
        let policy = Policy::parse(text, &bucket.name)
            .map_err(|error| S3Error::with_message(S3ErrorCode::MalformedPolicy, error.to_string()))?;
        let policy_status = Some(PolicyStatus { is_public: Some(policy.is_public()) });
        Ok(S3Response::new(GetBucketPolicyStatusOutput { policy_status }))
    }

    // --- CORS --------------------------------------------------------------------------------------------------------

    pub(crate) async fn put_bucket_cors(
        &self,
        req: S3Request<PutBucketCorsInput>,
    ) -> S3Result<S3Response<PutBucketCorsOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        let rules = req.input.cors_configuration.cors_rules;
        let rules = rules.into_iter().map(cors_rule_from_dto).collect::<S3Result<_>>()?;
        let rules = CorsRules { rules };
        rules.validate().map_err(cors_error)?;
        self.set_config(&bucket, BucketConfigKind::Cors, Some(to_json(&rules))).await?;
        Ok(S3Response::new(PutBucketCorsOutput::default()))
    }

    pub(crate) async fn get_bucket_cors(
        &self,
        req: S3Request<GetBucketCorsInput>,
    ) -> S3Result<S3Response<GetBucketCorsOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        let rules: CorsRules = stored(&bucket, BucketConfigKind::Cors)?
            .ok_or_else(|| s3_error!(NoSuchCORSConfiguration, "The CORS configuration does not exist"))?;
        let cors_rules = Some(rules.rules.into_iter().map(cors_rule_to_dto).collect());
        Ok(S3Response::new(GetBucketCorsOutput { cors_rules }))
    }

    pub(crate) async fn delete_bucket_cors(
        &self,
        req: S3Request<DeleteBucketCorsInput>,
    ) -> S3Result<S3Response<DeleteBucketCorsOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        self.set_config(&bucket, BucketConfigKind::Cors, None).await?;
        Ok(S3Response::new(DeleteBucketCorsOutput::default()))
    }

    // --- tags --------------------------------------------------------------------------------------------------------

    pub(crate) async fn put_bucket_tagging(
        &self,
        req: S3Request<PutBucketTaggingInput>,
    ) -> S3Result<S3Response<PutBucketTaggingOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        let tags = check_tags(&req.input.tagging.tag_set)?;
        self.set_config(&bucket, BucketConfigKind::Tagging, Some(to_json(&tags))).await?;
        Ok(S3Response::new(PutBucketTaggingOutput::default()))
    }

    pub(crate) async fn get_bucket_tagging(
        &self,
        req: S3Request<GetBucketTaggingInput>,
    ) -> S3Result<S3Response<GetBucketTaggingOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        let tags: Vec<Tag> = stored(&bucket, BucketConfigKind::Tagging)?
            .ok_or_else(|| s3_error!(NoSuchTagSet, "The TagSet does not exist"))?;
        let tag_set = tags.into_iter().map(|t| dto::Tag { key: Some(t.key), value: Some(t.value) }).collect();
        Ok(S3Response::new(GetBucketTaggingOutput { tag_set }))
    }

    pub(crate) async fn delete_bucket_tagging(
        &self,
        req: S3Request<DeleteBucketTaggingInput>,
    ) -> S3Result<S3Response<DeleteBucketTaggingOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        self.set_config(&bucket, BucketConfigKind::Tagging, None).await?;
        Ok(S3Response::new(DeleteBucketTaggingOutput::default()))
    }

    // --- ACLs --------------------------------------------------------------------------------------------------------

    pub(crate) async fn get_bucket_acl(
        &self,
        req: S3Request<GetBucketAclInput>,
    ) -> S3Result<S3Response<GetBucketAclOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        let grants = Some(grant_list(bucket_acl(&bucket), &bucket.owner));
        Ok(S3Response::new(GetBucketAclOutput { grants, owner: Some(owner(&bucket.owner)) }))
    }

    pub(crate) async fn put_bucket_acl(
        &self,
        req: S3Request<PutBucketAclInput>,
    ) -> S3Result<S3Response<PutBucketAclOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        let input = &req.input;
        let has_grants = input.grant_full_control.is_some()
            || input.grant_read.is_some()
            || input.grant_read_acp.is_some()
            || input.grant_write.is_some()
            || input.grant_write_acp.is_some();
        let canned = input.acl.as_ref().map(BucketCannedACL::as_str);
        let acl = requested_acl(canned, input.access_control_policy.as_ref(), has_grants, &bucket.owner)?;
        self.set_config(&bucket, BucketConfigKind::Acl, Some(to_json(&acl))).await?;
        Ok(S3Response::new(PutBucketAclOutput::default()))
    }

    pub(crate) async fn get_object_acl(
        &self,
        req: S3Request<GetObjectAclInput>,
    ) -> S3Result<S3Response<GetObjectAclOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        let object = self.acl_object(&bucket, &req.input.key, req.input.version_id.as_deref()).await?;
        Judged::check(&req.extensions, &bucket, &req.input.key, req.input.version_id.as_deref(), &object)?;
        Ok(S3Response::new(GetObjectAclOutput {
            grants: Some(grant_list(object.acl, &object.owner)),
            owner: Some(owner(&object.owner)),
            request_charged: None,
        }))
    }

    pub(crate) async fn put_object_acl(
        &self,
        req: S3Request<PutObjectAclInput>,
    ) -> S3Result<S3Response<PutObjectAclOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        let input = &req.input;
        let object = self.acl_object(&bucket, &input.key, input.version_id.as_deref()).await?;
        Judged::check(&req.extensions, &bucket, &input.key, input.version_id.as_deref(), &object)?;
        let has_grants = input.grant_full_control.is_some()
            || input.grant_read.is_some()
            || input.grant_read_acp.is_some()
            || input.grant_write.is_some()
            || input.grant_write_acp.is_some();
        let canned = input.acl.as_ref().map(ObjectCannedACL::as_str);
        let acl = requested_acl(canned, input.access_control_policy.as_ref(), has_grants, &object.owner)?;
        let named = input.version_id.as_deref();
        let request = ChangeRequest {
            bucket: bucket.id,
            key: input.key.clone(),
            // The one that was looked at, so that a write in between does not get an ACL meant for its predecessor.
            version: Some(object.version),
            only_if: Judged::only_this(&req.extensions, &bucket, &input.key, named, &object),
            event: self.event(&req.extensions, &bucket, EventName::AclPut),
            now_ms: self.clock.now_ms(),
        };
        let set = self.metadata.set_object_acl(request, acl).await.map_err(|error| match error {
            // It is gone since it was looked at.
            MetadataError::NoSuchVersion if named.is_none() => MetadataError::NoSuchKey,
            error => error,
        });
        set.map_err(judged::refused)?;
        Ok(S3Response::new(PutObjectAclOutput::default()))
    }

    // --- what is the same for every bucket
    // -----------------------------------------------------------------------------

    /// The bucket's owner has full control of every object in it, and ACLs are in force.
    pub(crate) async fn get_bucket_ownership_controls(
        &self,
        req: S3Request<GetBucketOwnershipControlsInput>,
    ) -> S3Result<S3Response<GetBucketOwnershipControlsOutput>> {
        self.config_bucket(&req, &req.input.bucket).await?;
        let object_ownership = ObjectOwnership::from_static(ObjectOwnership::BUCKET_OWNER_PREFERRED);
        let rules = vec![OwnershipControlsRule { object_ownership }];
        let ownership_controls = Some(OwnershipControls { rules });
        Ok(S3Response::new(GetBucketOwnershipControlsOutput { ownership_controls }))
    }

    /// Nobody pays; S3's word for that is the owner.
    pub(crate) async fn get_bucket_request_payment(
        &self,
        req: S3Request<GetBucketRequestPaymentInput>,
    ) -> S3Result<S3Response<GetBucketRequestPaymentOutput>> {
        self.config_bucket(&req, &req.input.bucket).await?;
        let payer = Some(Payer::from_static(Payer::BUCKET_OWNER));
        Ok(S3Response::new(GetBucketRequestPaymentOutput { payer }))
    }
}

fn no_policy() -> S3Error {
    s3_error!(NoSuchBucketPolicy, "The bucket policy does not exist")
}
