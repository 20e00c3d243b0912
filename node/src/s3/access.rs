//! Who may do what: the S3 front end's access control.
//!
//! s3s asks [`AccessControl`] twice for a request: once by operation and path, before the body is read, and once with
//! the parsed input for the few operations whose permission depends on it (copies, multiple deletes, tags in the body).
//! What is not expressly allowed is denied, also operations that are not in the [table](super::operations).
//!
//! # The decision
//! 1. A Deny of the bucket's policy refuses everybody, the owner and admins too. Only reading, replacing and deleting
//!    the policy itself stay open to them, so that nobody locks a bucket for good.
//! 2. The bucket's owner and admins may do everything.
//! 3. Others may do what the policy allows. Who began an upload may also list its parts and end it.
//! 4. Everybody may do what a canned ACL `public-read` gives, on the bucket or on the object.
//!
//! A caller without permission to list a bucket is not told which keys exist: a missing object is AccessDenied.
//!
//! # Cost
//! For an owner of a bucket without policy the decision is one bucket read and a string comparison. Policies are parsed
//! once and kept, within the bound of [`super::parsed`].

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_actors::domain::access::acl;
use holdfast_actors::domain::access::names::OBJECT_KEY_BYTES_MAX;
use holdfast_actors::domain::access::policy::{Attempt, Policy, Verdict};
use holdfast_actors::domain::objects::PAGE_SIZE_MAX;
use holdfast_actors::ports::metadata::{Bucket, BucketConfigKind, CannedAcl, ObjectVersion, Tag};
use holdfast_actors::ports::{Clock, MetadataError, MetadataStore};
use holdfast_protocol::{UploadId, VersionId};
use http::header::IF_MATCH;
use http::{Extensions, HeaderMap, HeaderValue};
use s3s::access::{S3Access, S3AccessContext};
use s3s::dto::{
    CopyObjectInput, DeleteObjectsInput, ETag, Error as DeleteError, PutObjectTaggingInput, UploadPartCopyInput,
};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Result, s3_error};

use super::auth::{Authenticator, Caller, FormCaller};
use super::copy_source;
use super::errors::{ResultExt as _, ToS3 as _, too_much};
use super::facts::{AsSigned, ClientConnection, RequestFacts, Signing, passes_over_tags, query_value};
use super::judged::Judged;
use super::operations::{self, Operation};
use super::parsed::Parsed;
use super::request_id::{Granted, RequestContext};
use super::signature;
use super::strict_xml;

mod copies;
mod demands;

pub(crate) use copies::{CopiedTags, SourceBucket};
use demands::{has_streaming_payload, misplaced_parameter, needed_actions, unknown_subresource};

/// What a byte of a policy takes when it is parsed: a character of a pattern is a token.
pub(super) const POLICY_BYTES_PER_BYTE: u64 = 64;

/// Actions on the policy itself, which no Deny can take from the owner and from admins.
const POLICY_ACTIONS: [&str; 3] = ["s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy"];

/// What who began an upload may do to it, whatever the policy does not say.
const UPLOAD_ACTIONS: [&str; 2] = ["s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"];

/// Decides about requests. Cheap to clone.
#[derive(Clone)]
pub struct AccessControl {
    inner: Arc<Inner>,
}

struct Inner {
    metadata: Arc<dyn MetadataStore>,
    authenticator: Arc<Authenticator>,
    clock: Arc<dyn Clock>,
    policies: Parsed<Arc<Policy>>,
}

/// Keys of a DeleteObjects request that the caller may not delete; they are taken out of the request before the
/// operation sees it. The operation answers for them with [`DeniedDeletes::take`].
#[derive(Debug, Clone, Default)]
pub struct DeniedDeletes(Vec<DeleteError>);

impl DeniedDeletes {
    /// The errors to add to the answer.
    pub fn take(extensions: &mut Extensions) -> Vec<DeleteError> {
        extensions.remove::<Self>().unwrap_or_default().0
    }
}

/// The bucket that access control read for a request, so that the operation need not read it again.
pub fn bucket_of(extensions: &Extensions) -> Option<&Arc<Bucket>> {
    extensions.get::<Arc<Bucket>>()
}

/// S3's answer to what is not allowed. It says no more, since details would help those who probe.
pub(crate) fn access_denied() -> S3Error {
    s3_error!(AccessDenied, "Access Denied")
}

/// One thing that a request wants to do.
struct Wish<'a> {
    bucket: &'a Arc<Bucket>,
    action: &'a str,
    key: Option<&'a str>,
    /// The version named, for actions on stored objects.
    version: Option<&'a str>,
}

impl AccessControl {
    /// Access control over the buckets of a metadata store.
    pub fn new(metadata: Arc<dyn MetadataStore>, authenticator: Arc<Authenticator>, clock: Arc<dyn Clock>) -> Self {
        let inner = Inner { metadata, authenticator, clock, policies: Parsed::new(POLICY_BYTES_PER_BYTE) };
        Self { inner: Arc::new(inner) }
    }

    /// Decides one wish by the rules in the module's documentation.
    async fn authorize(&self, wish: &Wish<'_>, facts: &mut RequestFacts<'_>) -> S3Result<()> {
        let caller = facts.caller;
        let bucket = wish.bucket;
        let privileged = is_privileged(caller, bucket);
        let Some(text) = bucket.config(BucketConfigKind::Policy) else {
            if privileged {
                return Ok(());
            }
            return self.authorize_without_policy(wish, facts).await;
        };
        if privileged && POLICY_ACTIONS.contains(&wish.action) {
            return Ok(());
        }
        let policy = self.policy(bucket, text)?;
        if let Some(key) = wish.key
            && policy.needs_object_tags()
        {
            let object = self.object(bucket, key, wish.version).await?;
            facts.judged.note_tags(bucket, key, wish.version, object.as_deref());
            facts.object_tags = object.map_or_else(Vec::new, |object| object.tags.clone());
        }
        match evaluate(&policy, wish.bucket, wish.action, wish.key, facts) {
            Verdict::Deny => Err(access_denied()),
            Verdict::Allow if privileged => Ok(()),
            Verdict::Allow => {
                if reads_object(wish.action)
                    && let Some(key) = wish.key
                    && !self.may_list(bucket, Some(&policy), facts)
                    && self.object(bucket, key, wish.version).await?.is_none()
                {
                    return Err(access_denied());
                }
                Ok(())
            }
            Verdict::Silent if privileged => Ok(()),
            Verdict::Silent => self.authorize_without_policy(wish, facts).await,
        }
    }

    /// What is allowed to who is not privileged and whom no policy allows it.
    async fn authorize_without_policy(&self, wish: &Wish<'_>, facts: &mut RequestFacts<'_>) -> S3Result<()> {
        if self.began_upload(wish, facts).await? {
            return Ok(());
        }
        self.authorize_by_acl(wish, &mut facts.judged).await
    }

    /// Whether an action is one on an upload that the caller began.
    async fn began_upload(&self, wish: &Wish<'_>, facts: &RequestFacts<'_>) -> S3Result<bool> {
        if !UPLOAD_ACTIONS.contains(&wish.action) {
            return Ok(false);
        }
        let upload = query_value(facts.query, "uploadId").and_then(|id| id.parse::<UploadId>().ok());
        let (Some(user), Some(key), Some(upload)) = (facts.caller.user_name(), wish.key, upload) else {
            return Ok(false);
        };
        match self.inner.metadata.upload(wish.bucket.id, key, upload).await {
            Ok(upload) => Ok(upload.new.owner == user),
            Err(MetadataError::NoSuchUpload) => Ok(false),
            Err(error) => Err(error.to_s3()),
        }
    }

    /// What canned ACLs give to everybody.
    async fn authorize_by_acl(&self, wish: &Wish<'_>, judged: &mut Judged) -> S3Result<()> {
        let Some(key) = wish.key else {
            let allowed = acl::bucket_acl_allows(bucket_acl(wish.bucket), wish.action);
            return if allowed { Ok(()) } else { Err(access_denied()) };
        };
        if !acl::object_acl_may_allow(wish.action) {
            return Err(access_denied());
        }
        let object = self.object(wish.bucket, key, wish.version).await?;
        judged.note_acl(wish.bucket, key, wish.version, object.as_ref().map(|object| object.acl));
        match object {
            Some(object) if acl::object_acl_allows(object.acl, wish.action) => Ok(()),
            // The operation will say that there is no such key, to those who could see it in a listing.
            None if acl::bucket_acl_allows(bucket_acl(wish.bucket), "s3:ListBucket") => Ok(()),
            _ => Err(access_denied()),
        }
    }

    fn may_list(&self, bucket: &Arc<Bucket>, policy: Option<&Policy>, facts: &RequestFacts<'_>) -> bool {
        match policy.map(|p| evaluate(p, bucket, "s3:ListBucket", None, facts)) {
            Some(Verdict::Allow) => true,
            Some(Verdict::Deny) => false,
            Some(Verdict::Silent) | None => acl::bucket_acl_allows(bucket_acl(bucket), "s3:ListBucket"),
        }
    }

    /// The parsed policy of a bucket.
    fn policy(&self, bucket: &Bucket, text: &str) -> S3Result<Arc<Policy>> {
        let parse = |text: &str| Policy::parse(text, &bucket.name).map(Arc::new);
        // It was validated when it was put. Should this build not understand it all the same, nobody gets access by it.
        self.inner.policies.of(bucket.id, text, parse).map_err(|error| {
            tracing::error!(bucket = bucket.name, %error, "a stored bucket policy is not understood");
            s3_error!(InternalError, "The policy of this bucket cannot be evaluated; put it again.")
        })
    }

    /// A stored object version that is not a delete marker.
    async fn object(&self, bucket: &Bucket, key: &str, version: Option<&str>) -> S3Result<Option<Arc<ObjectVersion>>> {
        // A list of keys to delete may have one of megabytes. The operation refuses it; caches are not to be asked, nor
        // to remember that it does not exist.
        if key.len() > OBJECT_KEY_BYTES_MAX {
            return Ok(None);
        }
        let version = match version.map(str::parse::<VersionId>) {
            None => None,
            Some(Ok(version)) => Some(version),
            Some(Err(_)) => return Ok(None),
        };
        match self.inner.metadata.object(bucket.id, key, version).await {
            Ok(object) => Ok((!object.is_delete_marker()).then_some(object)),
            Err(MetadataError::NoSuchKey | MetadataError::NoSuchVersion) => Ok(None),
            Err(error) => Err(error.to_s3()),
        }
    }

    async fn bucket(&self, name: &str) -> S3Result<Arc<Bucket>> {
        self.inner.metadata.bucket(name).await.s3()
    }

    /// The facts of a request whose operation was checked already, about an object in this version.
    fn facts_of<'a, T>(
        &self,
        req: &'a S3Request<T>,
        version: Option<&'a str>,
        body_tags: Option<&'a [Tag]>,
    ) -> RequestFacts<'a> {
        let (headers, uri) = match req.extensions.get::<AsSigned>() {
            Some(signed) => (&signed.headers, &signed.uri),
            None => (&req.headers, &req.uri),
        };
        let caller = Caller::of(&req.extensions);
        RequestFacts {
            caller,
            headers,
            query: uri.query().unwrap_or_default(),
            version,
            connection: req.extensions.get::<ClientConnection>().copied(),
            signing: signing(caller, req.extensions.get::<FormCaller>(), headers),
            now_ms: self.inner.clock.now_ms(),
            object_tags: Vec::new(),
            body_tags,
            // Of the operations with a parsed input only a copy sets tags by a header.
            passes_over_tags: passes_over_tags("CopyObject", headers),
            judged: Judged::default(),
        }
    }

    async fn check_operation(&self, operation: &Operation, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        if let Some(granted) = cx.extensions_mut().remove::<Granted>() {
            if granted.operation != operation.name {
                return Err(access_denied());
            }
            cx.extensions_mut().insert(granted.caller);
            cx.extensions_mut().insert(granted.bucket);
            granted.judged.keep(cx.extensions_mut());
            return Ok(());
        }
        let form = cx.extensions_mut().get::<FormCaller>().cloned();
        if form.is_some() && operation.name != "PutObject" {
            // Whoever signs a form allows an object to be put, and nothing else.
            return Err(access_denied());
        }
        let caller = match (&form, cx.credentials()) {
            (Some(form), _) => form.caller.clone(),
            (None, Some(credentials)) => self.inner.authenticator.caller(&credentials.access_key).await?,
            (None, None) => Caller::Anonymous,
        };
        let extensions = cx.extensions_mut();
        if let Some(context) = extensions.get::<Arc<RequestContext>>() {
            context.set_caller(&caller);
        }
        extensions.insert(caller.clone());
        let connection = extensions.get::<ClientConnection>().copied();
        // That of a form is looked at with its signature.
        if form.is_none()
            && caller != Caller::Anonymous
            && signature::has_session_token(cx.headers(), cx.uri().query().unwrap_or_default())
        {
            return Err(signature::invalid_token());
        }
        let decided = self.check_path(operation, cx, &caller, connection, form.as_ref()).await?;
        let Some((bucket, judged)) = decided else { return Ok(()) };
        let extensions = cx.extensions_mut();
        let may_come_again =
            |context: &&Arc<RequestContext>| strict_xml::may_rewrite(operation.name) || context.keeps_grant();
        if let Some(context) = extensions.get::<Arc<RequestContext>>().filter(may_come_again) {
            let (bucket, judged) = (Arc::clone(&bucket), judged.clone());
            context.set_granted(Granted { operation: operation.name, caller, bucket, judged });
        }
        extensions.insert(bucket);
        judged.keep(extensions);
        Ok(())
    }

    /// The checks by operation, path and headers. Gives the bucket of the path, if there is one, and what was looked
    /// at.
    async fn check_path(
        &self,
        operation: &Operation,
        cx: &S3AccessContext<'_>,
        caller: &Caller,
        connection: Option<ClientConnection>,
        form: Option<&FormCaller>,
    ) -> S3Result<Option<(Arc<Bucket>, Judged)>> {
        let anonymous = *caller == Caller::Anonymous;
        if !operation.supported {
            if anonymous {
                return Err(access_denied());
            }
            return Err(s3_error!(NotImplemented, "{} is not implemented by Holdfast.", operation.name));
        }
        if anonymous && has_streaming_payload(cx.headers()) {
            // s3s decodes chunked payloads of signed requests only; unsigned ones would be stored with their framing.
            return Err(s3_error!(InvalidRequest, "A chunked payload requires a signed request."));
        }
        let query = cx.uri().query().unwrap_or_default();
        if let Some(name) = unknown_subresource(operation.name, query) {
            return Err(s3_error!(NotImplemented, "The subresource {name:?} is not implemented by Holdfast."));
        }
        if let Some(name) = misplaced_parameter(operation.name, query) {
            return Err(s3_error!(
                InvalidArgument,
                "This operation does not accept {name} as it stands in this request."
            ));
        }
        if matches!(operation.name, "ListBuckets" | "CreateBucket") {
            return if anonymous { Err(access_denied()) } else { Ok(None) };
        }
        if operation.name == "PostObject" {
            // A form arrives here as the PutObject that `post` makes of it. One that did not pass it is not let in.
            return Err(s3_error!(NotImplemented, "This form upload cannot be handled."));
        }
        let bucket = self.bucket(cx.s3_path().get_bucket_name().ok_or_else(access_denied)?).await?;
        check_expected_owner(cx.headers(), "x-amz-expected-bucket-owner", &bucket)?;
        let by_document = matches!(operation.name, "DeleteObjects" | "PutObjectTagging");
        if anonymous && by_document && bucket.config(BucketConfigKind::Policy).is_none() {
            // No ACL lets anybody delete or tag. Each key would be refused, but the list would be taken first, however
            // slowly it comes, and so would the tags.
            return Err(access_denied());
        }
        let version = query_value(query, "versionId").filter(|v| !v.is_empty());
        let mut facts = RequestFacts {
            caller,
            headers: cx.headers(),
            query,
            version: version.as_deref(),
            connection,
            signing: signing(caller, form, cx.headers()),
            now_ms: self.inner.clock.now_ms(),
            object_tags: Vec::new(),
            body_tags: None,
            passes_over_tags: passes_over_tags(operation.name, cx.headers()),
            judged: Judged::default(),
        };
        for action in needed_actions(operation, version.is_some(), cx.headers()) {
            let wish =
                Wish { bucket: &bucket, action, key: cx.s3_path().get_object_key(), version: version.as_deref() };
            self.authorize(&wish, &mut facts).await?;
        }
        let judged = facts.judged;
        Ok(Some((bucket, judged)))
    }
}

/// Whether the caller may do in a bucket what its policy does not deny.
fn is_privileged(caller: &Caller, bucket: &Bucket) -> bool {
    caller.is_admin() || caller.user_name() == Some(bucket.owner.as_str())
}

fn evaluate(policy: &Policy, bucket: &Bucket, action: &str, key: Option<&str>, facts: &RequestFacts<'_>) -> Verdict {
    let attempt = Attempt { user: facts.caller.user_name(), action, bucket: &bucket.name, key };
    policy.evaluate(&attempt, facts)
}

/// The canned ACL of a bucket; a document that is not understood gives nothing.
pub(crate) fn bucket_acl(bucket: &Bucket) -> CannedAcl {
    bucket.config(BucketConfigKind::Acl).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Writes into the headers of a list of keys to delete what the deletion of one of them would have there: a policy is
/// to see the condition of each entry, and not a header that the operation passes over.
fn set_if_match(headers: &mut HeaderMap, etag: Option<&ETag>) {
    let Some(etag) = etag else {
        headers.remove(IF_MATCH);
        return;
    };
    let text = if etag.value() == "*" { "*".to_owned() } else { format!("\"{}\"", etag.value()) };
    // One that cannot be in a header is that of no object, and a condition all the same.
    headers.insert(IF_MATCH, HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("\"\"")));
}

/// Actions after which a missing object would be told.
fn reads_object(action: &str) -> bool {
    action.starts_with("s3:GetObject")
}

fn signing(caller: &Caller, form: Option<&FormCaller>, headers: &HeaderMap) -> Signing {
    match (caller, form) {
        (Caller::Anonymous, _) => Signing::None,
        (Caller::User(_), Some(form)) => Signing::Form { signed_ms: form.signed_ms },
        (Caller::User(_), None) if headers.contains_key(http::header::AUTHORIZATION) => Signing::Header,
        (Caller::User(_), None) => Signing::Query,
    }
}

/// S3's guard against writing to somebody else's bucket of the expected name.
fn check_expected_owner(headers: &HeaderMap, header: &str, bucket: &Bucket) -> S3Result<()> {
    match headers.get(header) {
        Some(owner) if owner.as_bytes() != bucket.owner.as_bytes() => Err(access_denied()),
        _ => Ok(()),
    }
}

#[async_trait]
impl S3Access for AccessControl {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(operation) = operations::find(cx.s3_op().name()) else {
            return Err(s3_error!(NotImplemented, "This operation is not implemented by Holdfast."));
        };
        if let Some(context) = cx.extensions_mut().get::<Arc<RequestContext>>() {
            context.set_operation(operation.name);
        }
        self.check_operation(operation, cx).await
    }

    async fn copy_object(&self, req: &mut S3Request<CopyObjectInput>) -> S3Result<()> {
        copy_source::reread(&req.headers, &mut req.input.copy_source)?;
        let (source, judged) = self.check_copy_source(req, &req.input.copy_source).await?;
        req.extensions.insert(source);
        judged.keep(&mut req.extensions);
        if req.input.tagging_directive.as_ref().is_none_or(|directive| directive.as_str() != "REPLACE") {
            let tags = self.check_copied_tags(req).await?;
            req.extensions.insert(tags);
        }
        Ok(())
    }

    async fn upload_part_copy(&self, req: &mut S3Request<UploadPartCopyInput>) -> S3Result<()> {
        copy_source::reread(&req.headers, &mut req.input.copy_source)?;
        let (source, judged) = self.check_copy_source(req, &req.input.copy_source).await?;
        req.extensions.insert(source);
        judged.keep(&mut req.extensions);
        Ok(())
    }

    async fn put_object_tagging(&self, req: &mut S3Request<PutObjectTaggingInput>) -> S3Result<()> {
        let bucket = bucket_of(&req.extensions).ok_or_else(access_denied)?;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let tags: Vec<Tag> =
            req.input.tagging.tag_set.iter().map(|t| Tag { key: text(&t.key), value: text(&t.value) }).collect();
        let version = req.input.version_id.as_deref();
        let action = if version.is_some() { "s3:PutObjectVersionTagging" } else { "s3:PutObjectTagging" };
        let wish = Wish { bucket, action, key: Some(&req.input.key), version };
        let mut facts = self.facts_of(req, version, Some(&tags));
        self.authorize(&wish, &mut facts).await?;
        let judged = facts.judged;
        judged.keep(&mut req.extensions);
        Ok(())
    }

    async fn delete_objects(&self, req: &mut S3Request<DeleteObjectsInput>) -> S3Result<()> {
        let bucket = Arc::clone(bucket_of(&req.extensions).ok_or_else(access_denied)?);
        // Anybody may send a list, and each key costs a decision.
        if req.input.delete.objects.len() > PAGE_SIZE_MAX as usize {
            return Err(too_much());
        }
        let has_policy = bucket.config(BucketConfigKind::Policy).is_some();
        let (mut denied, mut judged) = (Vec::new(), Judged::default());
        let mut allowed = Vec::with_capacity(req.input.delete.objects.len());
        let mut headers = has_policy.then(|| self.facts_of(req, None, None).headers.clone());
        for object in std::mem::take(&mut req.input.delete.objects) {
            let version = object.version_id.as_deref();
            let action = if version.is_some() { "s3:DeleteObjectVersion" } else { "s3:DeleteObject" };
            let wish = Wish { bucket: &bucket, action, key: Some(&object.key), version };
            let mut facts = self.facts_of(req, version, None);
            if let Some(headers) = &mut headers {
                set_if_match(headers, object.e_tag.as_ref());
                facts.headers = headers;
                // A large policy takes milliseconds for a long key, and nobody else is served on this thread meanwhile.
                tokio::task::yield_now().await;
            }
            match self.authorize(&wish, &mut facts).await {
                Ok(()) => {
                    judged.append(facts.judged);
                    allowed.push(object);
                }
                Err(error) if *error.code() == S3ErrorCode::AccessDenied => denied.push(DeleteError {
                    code: Some("AccessDenied".to_owned()),
                    key: Some(object.key),
                    message: Some("Access Denied".to_owned()),
                    version_id: object.version_id,
                }),
                Err(error) => return Err(error),
            }
        }
        req.input.delete.objects = allowed;
        judged.keep(&mut req.extensions);
        if !denied.is_empty() {
            req.extensions.insert(DeniedDeletes(denied));
        }
        Ok(())
    }
}
