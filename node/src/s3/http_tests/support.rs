//! A running front end for tests: operations that keep bytes in memory behind the real service.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use holdfast_actors::flow::cold::read::{ColdReadSettings, ColdReads};
use holdfast_actors::ports::chunks::{ChunkBody, ChunkError, ChunkInfo, ChunkSink, ChunkSpec, ChunkStore};
use holdfast_actors::ports::tiers::EmptyTiers;
use holdfast_actors::ports::{Clock, SystemClock};
use holdfast_protocol::ChunkId;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use s3s::dto::*;
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};
use zeroize::Zeroizing;

use super::super::S3Front;
use super::super::access::DeniedDeletes;
use super::super::auth::{Caller, OpenSecretError};
use super::super::facts::ClientConnection;
use super::super::host::HostNames;
use super::super::http_service::{S3HttpOptions, S3HttpService};
use super::signer::Signer;
use super::store::TestStore;
use crate::locks::InProcessLocks;

pub const HOST: &str = "127.0.0.1:9000";

/// What a PUT brought.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    pub bytes: Vec<u8>,
    pub caller: Option<String>,
    pub content_type: Option<String>,
    pub acl: Option<String>,
    pub tagging: Option<String>,
    pub class: Option<String>,
    pub metadata: Option<HashMap<String, String>>,
}

struct NoChunks;

#[async_trait]
impl ChunkStore for NoChunks {
    async fn create(&self, _: ChunkSpec) -> Result<Box<dyn ChunkSink>, ChunkError> {
        Err(ChunkError::Unavailable("no chunks here".into()))
    }
    fn read(&self, id: ChunkId, _: std::ops::Range<u32>) -> Result<ChunkBody, ChunkError> {
        Err(ChunkError::NotFound(id))
    }
    fn stat(&self, _: ChunkId) -> Option<ChunkInfo> {
        None
    }
    async fn delete(&self, _: &[ChunkId]) -> Result<(), ChunkError> {
        Ok(())
    }
    fn list(&self, _: Option<ChunkId>, _: usize) -> Vec<ChunkInfo> {
        Vec::new()
    }
}

/// Operations of the test: bytes in memory, and the bucket configuration of the real front end.
#[derive(Clone)]
struct Operations {
    front: S3Front,
    stored: Arc<Mutex<HashMap<String, Stored>>>,
}

/// The whole implementation in one macro, since `async_trait` does not look into macros within it.
macro_rules! operations {
    (
        delegate { $($delegated:ident($delegated_input:ident) -> $delegated_output:ident;)* }
        succeed { $($succeeding:ident($input:ident) -> $output:ident;)* }
        here { $($here:tt)* }
    ) => {
        #[async_trait]
        impl S3 for Operations {
            $(async fn $delegated(
                &self,
                req: S3Request<$delegated_input>,
            ) -> S3Result<S3Response<$delegated_output>> {
                self.front.$delegated(req).await
            })*
            $(async fn $succeeding(&self, _: S3Request<$input>) -> S3Result<S3Response<$output>> {
                Ok(S3Response::new($output::default()))
            })*
            $($here)*
        }
    };
}

operations! {
    delegate {
        put_bucket_policy(PutBucketPolicyInput) -> PutBucketPolicyOutput;
        get_bucket_policy(GetBucketPolicyInput) -> GetBucketPolicyOutput;
        delete_bucket_policy(DeleteBucketPolicyInput) -> DeleteBucketPolicyOutput;
        get_bucket_policy_status(GetBucketPolicyStatusInput) -> GetBucketPolicyStatusOutput;
        put_bucket_cors(PutBucketCorsInput) -> PutBucketCorsOutput;
        get_bucket_cors(GetBucketCorsInput) -> GetBucketCorsOutput;
        delete_bucket_cors(DeleteBucketCorsInput) -> DeleteBucketCorsOutput;
        put_bucket_tagging(PutBucketTaggingInput) -> PutBucketTaggingOutput;
        get_bucket_tagging(GetBucketTaggingInput) -> GetBucketTaggingOutput;
        delete_bucket_tagging(DeleteBucketTaggingInput) -> DeleteBucketTaggingOutput;
        get_bucket_acl(GetBucketAclInput) -> GetBucketAclOutput;
        put_bucket_acl(PutBucketAclInput) -> PutBucketAclOutput;
        get_object_acl(GetObjectAclInput) -> GetObjectAclOutput;
        put_object_acl(PutObjectAclInput) -> PutObjectAclOutput;
        get_bucket_ownership_controls(GetBucketOwnershipControlsInput) -> GetBucketOwnershipControlsOutput;
        restore_object(RestoreObjectInput) -> RestoreObjectOutput;
        get_bucket_request_payment(GetBucketRequestPaymentInput) -> GetBucketRequestPaymentOutput;
    }

    succeed {
        list_buckets(ListBucketsInput) -> ListBucketsOutput;
        create_bucket(CreateBucketInput) -> CreateBucketOutput;
        delete_bucket(DeleteBucketInput) -> DeleteBucketOutput;
        head_bucket(HeadBucketInput) -> HeadBucketOutput;
        list_objects(ListObjectsInput) -> ListObjectsOutput;
        list_objects_v2(ListObjectsV2Input) -> ListObjectsV2Output;
        delete_object(DeleteObjectInput) -> DeleteObjectOutput;
        copy_object(CopyObjectInput) -> CopyObjectOutput;
        put_object_tagging(PutObjectTaggingInput) -> PutObjectTaggingOutput;
    }

    here {
    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let name = format!("{}/{}", req.input.bucket, req.input.key);
        let bytes = self.stored.lock().get(&name).map(|s| s.bytes.clone());
        let bytes = bytes.ok_or_else(|| s3_error!(NoSuchKey, "The specified key does not exist."))?;
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(bytes.len() as i64),
            body: Some(StreamingBlob::from(Body::from(bytes))),
            ..Default::default()
        }))
    }

    async fn put_object(&self, mut req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let mut bytes = Vec::new();
        if let Some(mut body) = req.input.body.take() {
            while let Some(piece) = body.next().await {
                bytes.extend_from_slice(&piece.map_err(|_| s3_error!(IncompleteBody, "the body ended early"))?);
            }
        }
        if req.input.content_length.is_some_and(|length| length != bytes.len() as i64) {
            return Err(s3_error!(IncompleteBody, "the length differs"));
        }
        let stored = Stored {
            bytes,
            caller: Caller::of(&req.extensions).user_name().map(str::to_owned),
            content_type: req.input.content_type.clone().map(|c| c.to_string()),
            acl: req.input.acl.as_ref().map(|a| a.as_str().to_owned()),
            tagging: req.input.tagging.clone(),
            class: req.input.storage_class.as_ref().map(|c| c.as_str().to_owned()),
            metadata: req.input.metadata.clone(),
        };
        self.stored.lock().insert(format!("{}/{}", req.input.bucket, req.input.key), stored);
        let e_tag = Some(s3s::dto::ETag::Strong("etag".into()));
        Ok(S3Response::new(PutObjectOutput { e_tag, ..Default::default() }))
    }

    async fn delete_objects(
        &self,
        mut req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let errors = DeniedDeletes::take(&mut req.extensions);
        let deleted = req.input.delete.objects.into_iter();
        let deleted = deleted.map(|o| DeletedObject { key: Some(o.key), ..Default::default() }).collect();
        Ok(S3Response::new(DeleteObjectsOutput { deleted: Some(deleted), errors: Some(errors), request_charged: None }))
    }
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: String,
}

impl Answer {
    /// The error code in the body.
    pub fn code(&self) -> &str {
        self.body.split_once("<Code>").and_then(|(_, r)| r.split_once("</Code>")).map_or("", |(code, _)| code)
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

/// The front end and all that a test looks at.
pub struct Fixture {
    pub service: S3HttpService,
    pub store: Arc<TestStore>,
    pub stored: Arc<Mutex<HashMap<String, Stored>>>,
    /// How often a secret was opened.
    pub opened: Arc<AtomicUsize>,
}

impl Fixture {
    /// Users `root` (admin), `ann` and `bob`; Ann's bucket `photos`; the base name `s3.test`.
    pub fn new() -> Self {
        let stored: Arc<Mutex<HashMap<String, Stored>>> = Arc::default();
        let operations_of = |front| Operations { front, stored: Arc::clone(&stored) };
        let cold = ColdReads::new(Arc::new(EmptyTiers), ColdReadSettings::default());
        Self { stored: Arc::clone(&stored), ..Self::serving(Arc::new(NoChunks), cold, operations_of) }
    }

    /// The same, over the operations of the real front end on these bytes.
    pub fn of_front(chunks: Arc<dyn ChunkStore>, cold: ColdReads) -> Self {
        Self::serving(chunks, cold, |front| front)
    }

    fn serving<S: S3>(chunks: Arc<dyn ChunkStore>, cold: ColdReads, operations_of: impl FnOnce(S3Front) -> S) -> Self {
        let store = Arc::new(TestStore::default());
        for (user, admin) in [("root", true), ("ann", false), ("bob", false)] {
            store.add_key(&format!("KEY-{user}"), &format!("secret of {user}"), user, admin);
        }
        store.add_bucket("photos", "ann");
        store.add_bucket("drafts", "bob");
        let opened = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&opened);
        let opener = move |sealed: &[u8], _: &str| {
            counter.fetch_add(1, Ordering::Relaxed);
            String::from_utf8(sealed.iter().rev().copied().collect())
                .map(Zeroizing::new)
                .map_err(|e| OpenSecretError(e.to_string()))
        };
        let front = S3Front {
            metadata: store.clone(),
            chunks,
            cold: Arc::new(cold),
            locks: Arc::new(InProcessLocks::new()),
            clock: Arc::new(SystemClock),
            region: "us-east-1".into(),
            events_from: None,
            tiers: Arc::new(EmptyTiers),
            lifecycle: Arc::default(),
        };
        let options = S3HttpOptions {
            hosts: HostNames::new(["s3.test"]).unwrap(),
            node_name: "node-of-test".into(),
            region: "us-east-1".into(),
        };
        let operations = operations_of(front);
        let service = S3HttpService::new(operations, store.clone(), Arc::new(opener), Arc::new(SystemClock), options);
        Self { service, store, stored: Arc::default(), opened }
    }

    /// A signer whose clock is right.
    pub fn signer(&self, user: &str) -> Signer {
        Signer { access_key: format!("KEY-{user}"), secret: format!("secret of {user}"), at_ms: SystemClock.now_ms() }
    }

    /// The answer as it comes, its body unread.
    pub async fn begin(&self, mut request: Request<Body>) -> Response<Body> {
        request.extensions_mut().insert(ClientConnection { address: IpAddr::from([203, 0, 113, 7]), tls: false });
        self.service.handle(request).await
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let (parts, body) = self.begin(request).await.into_parts();
        let body: Bytes = BodyExt::collect(body).await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body: String::from_utf8_lossy(&body).into_owned() }
    }

    /// A request signed by a user, path style, with a query as written.
    pub async fn call(&self, user: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let query: Vec<(&str, &str)> =
            query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, ""))).collect();
        self.send(self.signer(user).request(method, HOST, path, &query, headers, body)).await
    }

    /// A request without signature.
    pub async fn anonymous(&self, method: &str, path: &str, headers: &[(&'static str, &str)], body: &[u8]) -> Answer {
        let mut request = super::signer::unsigned(method, HOST, path, &[], body);
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        self.send(request).await
    }

    /// Puts a policy of statements on Ann's bucket.
    pub async fn put_policy(&self, statements: &str) {
        let policy = format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#);
        let answer = self.call("ann", "PUT", "/photos?policy", &[], policy.as_bytes()).await;
        assert!(answer.status.is_success(), "{answer:?}");
    }

    /// Stores an object of Ann's in both worlds: metadata and bytes.
    pub fn put_object(&self, key: &str, acl: holdfast_actors::ports::metadata::CannedAcl, tags: &[(&str, &str)]) {
        self.store.add_object("photos", key, acl, tags);
        let stored = Stored { bytes: b"picture".to_vec(), ..Default::default() };
        self.stored.lock().insert(format!("photos/{key}"), stored);
    }
}
