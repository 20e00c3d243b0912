//! An S3 server in memory, on a free port: s3s checks the signatures, this keeps the objects and breaks what it is told
//! to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, future, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use md5::{Digest as _, Md5};
use parking_lot::Mutex;
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::*;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};
use tokio::net::TcpListener;

/// The one bucket that there is.
pub const BUCKET: &str = "cold-data";
pub const ACCESS_KEY: &str = "AKTEST";
pub const SECRET_KEY: &str = "a secret of the tests";

/// What the server does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Takes requests and never answers.
    Silent,
    /// Answers this many requests with an error, then does its work.
    Errors {
        left: u64,
        status: u16,
        code: &'static str,
    },
    /// Takes the first part of an upload, and nothing after it, deletions included.
    AfterFirstPart,
    /// Breaks off in the middle of what it gives.
    CutGets,
    /// Stands still in the middle of what it gives.
    StuckGets,
    /// Has lost the second half of everything, and thinks that is right.
    ShortGets,
    /// Gives the ETag of something else.
    WrongEtags,
    /// Completes an upload, and says that there is none: as when the answer to a first try was lost.
    CompletesUnheard,
    /// Begins a good answer to the end of an upload, and tells in its body that it failed.
    FailsLate,
}

#[derive(Debug, Clone)]
pub struct Object {
    pub bytes: Bytes,
    pub metadata: BTreeMap<String, String>,
    pub encryption: Option<String>,
    pub storage_class: Option<String>,
}

struct Upload {
    parts: BTreeMap<i32, Bytes>,
    object: Object,
    key: String,
}

#[derive(Default)]
struct Shelf {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
}

pub struct State {
    shelf: Mutex<Shelf>,
    fault: Mutex<Fault>,
    /// Requests that came in, whatever became of them.
    pub requests: AtomicU64,
    next_upload: AtomicU64,
}

/// A running server; connections end with the runtime of the test.
#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    pub state: Arc<State>,
}

impl Server {
    pub async fn start() -> Self {
        let state = Arc::new(State {
            shelf: Mutex::default(),
            fault: Mutex::new(Fault::None),
            requests: AtomicU64::new(0),
            next_upload: AtomicU64::new(1),
        });
        let mut service = S3ServiceBuilder::new(Store(state.clone()));
        service.set_auth(Keys);
        let service = service.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn({
            let state = state.clone();
            async move {
                while let Ok((connection, _)) = listener.accept().await {
                    let (service, state) = (service.clone(), state.clone());
                    let handler = service_fn(move |request| answer(service.clone(), state.clone(), request));
                    let connection =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(connection), handler);
                    // A client may go away at any time.
                    tokio::spawn(async move { connection.await.ok() });
                }
            }
        });
        Self { address, state }
    }

    pub fn break_with(&self, fault: Fault) {
        *self.state.fault.lock() = fault;
    }

    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    pub fn object(&self, key: &str) -> Option<Object> {
        self.state.shelf.lock().objects.get(key).cloned()
    }

    pub fn uploads(&self) -> usize {
        self.state.shelf.lock().uploads.len()
    }

    pub fn contents(&self) -> Vec<String> {
        let shelf = self.state.shelf.lock();
        let objects = shelf.objects.iter().map(|(key, object)| format!("{key} of {} bytes", object.bytes.len()));
        let uploads = shelf.uploads.values().map(|upload| format!("upload of {}", upload.key));
        objects.chain(uploads).collect()
    }
}

async fn answer(
    service: S3Service,
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    state.requests.fetch_add(1, Ordering::SeqCst);
    // As OSS, which takes no checksums in trailers; ours are in Content-MD5, and nothing else is to be sent.
    let is_checksum = |name: &str| name.starts_with("x-amz-checksum") || name.starts_with("x-amz-sdk-checksum");
    let payload = request.headers().get("x-amz-content-sha256").and_then(|value| value.to_str().ok());
    if payload.is_some_and(|payload| payload.starts_with("STREAMING"))
        || request.headers().contains_key("x-amz-trailer")
        || request.headers().keys().any(|name| is_checksum(name.as_str()))
    {
        return Ok(refusal(501, "NotImplemented"));
    }
    let (is_get, is_post) = (request.method() == Method::GET, request.method() == Method::POST);
    let fault = state.fault_for(&request);
    match fault {
        Fault::Silent => future::pending().await,
        Fault::Errors { status, code, .. } => return Ok(refusal(status, code)),
        Fault::FailsLate if request.uri().query().is_some_and(|query| query.contains("uploadId=")) && is_post => {
            return Ok(refusal(200, "InternalError"));
        }
        _ => {}
    }
    let mut response = service.call(request.map(Body::from)).await.expect("s3s answers");
    if is_get && response.status().is_success() && matches!(fault, Fault::CutGets | Fault::StuckGets) {
        let whole = BodyExt::collect(std::mem::replace(response.body_mut(), Body::empty()))
            .await
            .expect("from memory")
            .to_bytes();
        let half = stream::iter([Ok(Frame::data(whole.slice(..whole.len() / 2)))]);
        let rest = match fault {
            Fault::CutGets => stream::iter([Err(std::io::Error::other("cut"))]).boxed(),
            _ => stream::pending().boxed(),
        };
        *response.body_mut() = Body::http_body_unsync(StreamBody::new(half.chain(rest)));
    }
    Ok(response)
}

fn refusal(status: u16, code: &str) -> Response<Body> {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as told</Message></Error>");
    let status = StatusCode::from_u16(status).unwrap();
    Response::builder().status(status).header("content-type", "application/xml").body(Body::from(body)).unwrap()
}

impl State {
    /// What goes wrong with this request.
    fn fault_for(&self, request: &Request<Incoming>) -> Fault {
        let query = request.uri().query().unwrap_or_default();
        let mut fault = self.fault.lock();
        match &mut *fault {
            Fault::Errors { left: 0, .. } => Fault::None,
            Fault::Errors { left, .. } => {
                *left -= 1;
                *fault
            }
            Fault::AfterFirstPart => {
                let later_part = query.contains("partNumber=") && !query.contains("partNumber=1&");
                if later_part || request.method() == Method::DELETE {
                    return Fault::Errors { left: 0, status: 503, code: "ServiceUnavailable" };
                }
                Fault::None
            }
            other => *other,
        }
    }

    fn is(&self, fault: Fault) -> bool {
        *self.fault.lock() == fault
    }

    fn etag(&self, bytes: &[u8]) -> ETag {
        let bytes = if self.is(Fault::WrongEtags) { &b"something else"[..] } else { bytes };
        ETag::Strong(hex::encode(Md5::digest(bytes)))
    }
}

/// The one pair of keys.
struct Keys;

#[async_trait::async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == ACCESS_KEY { Ok(SECRET_KEY.into()) } else { Err(s3_error!(InvalidAccessKeyId)) }
    }
}

struct Store(Arc<State>);

/// There is one bucket.
fn in_bucket(bucket: &str) -> S3Result<()> {
    if bucket == BUCKET { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
}

/// The body of a request, which has the length and the MD5 that it says; it must say one.
async fn received(body: Option<StreamingBlob>, length: Option<i64>, content_md5: Option<String>) -> S3Result<Bytes> {
    let mut body = body.ok_or_else(|| s3_error!(IncompleteBody))?;
    let mut bytes = BytesMut::new();
    while let Some(step) = body.try_next().await.map_err(|_| s3_error!(IncompleteBody))? {
        bytes.extend_from_slice(&step);
    }
    if length != Some(bytes.len() as i64) {
        return Err(s3_error!(IncompleteBody));
    }
    let sum = base64::engine::general_purpose::STANDARD.encode(Md5::digest(&bytes));
    match content_md5 {
        Some(told) if told == sum => Ok(bytes.freeze()),
        Some(_) => Err(s3_error!(BadDigest)),
        None => Err(s3_error!(InvalidRequest, "this server wants a Content-MD5")),
    }
}

fn object(
    bytes: Bytes,
    metadata: Option<Metadata>,
    encryption: Option<ServerSideEncryption>,
    storage_class: Option<StorageClass>,
) -> Object {
    Object {
        bytes,
        metadata: metadata.unwrap_or_default().into_iter().collect(),
        encryption: encryption.map(|value| value.as_str().to_owned()),
        storage_class: storage_class.map(|value| value.as_str().to_owned()),
    }
}

#[async_trait::async_trait]
impl S3 for Store {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        in_bucket(&input.bucket)?;
        let bytes = received(input.body, input.content_length, input.content_md5).await?;
        let e_tag = Some(self.0.etag(&bytes));
        let stored = object(bytes, input.metadata, input.server_side_encryption, input.storage_class);
        self.0.shelf.lock().objects.insert(input.key, stored);
        Ok(S3Response::new(PutObjectOutput { e_tag, ..Default::default() }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        in_bucket(&input.bucket)?;
        let mut bytes = self.0.shelf.lock().objects.get(&input.key).ok_or_else(|| s3_error!(NoSuchKey))?.bytes.clone();
        if self.0.is(Fault::ShortGets) {
            bytes.truncate(bytes.len() / 2);
        }
        let total = bytes.len() as u64;
        let range = input.range.map(|range| range.check(total)).transpose()?;
        let content_range = range.as_ref().map(|range| format!("bytes {}-{}/{total}", range.start, range.end - 1));
        if let Some(range) = range {
            bytes = bytes.slice(range.start as usize..range.end as usize);
        }
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(bytes.len() as i64),
            content_range,
            body: Some(StreamingBlob::from(Body::from(bytes))),
            ..Default::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        in_bucket(&request.input.bucket)?;
        let shelf = self.0.shelf.lock();
        let object = shelf.objects.get(&request.input.key).ok_or_else(|| s3_error!(NoSuchKey))?;
        let content_length = Some(object.bytes.len() as i64);
        Ok(S3Response::new(HeadObjectOutput { content_length, ..Default::default() }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        in_bucket(&request.input.bucket)?;
        self.0.shelf.lock().objects.remove(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        in_bucket(&input.bucket)?;
        let id = format!("upload-{}", self.0.next_upload.fetch_add(1, Ordering::SeqCst));
        let begun = object(Bytes::new(), input.metadata, input.server_side_encryption, input.storage_class);
        let upload = Upload { parts: BTreeMap::new(), object: begun, key: input.key };
        self.0.shelf.lock().uploads.insert(id.clone(), upload);
        Ok(S3Response::new(CreateMultipartUploadOutput { upload_id: Some(id), ..Default::default() }))
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let input = request.input;
        in_bucket(&input.bucket)?;
        let bytes = received(input.body, input.content_length, input.content_md5).await?;
        let e_tag = Some(self.0.etag(&bytes));
        let mut shelf = self.0.shelf.lock();
        let upload = shelf.uploads.get_mut(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        upload.parts.insert(input.part_number, bytes);
        Ok(S3Response::new(UploadPartOutput { e_tag, ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        in_bucket(&input.bucket)?;
        let mut shelf = self.0.shelf.lock();
        let upload = shelf.uploads.get(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let mut whole = BytesMut::new();
        for (at, part) in named.iter().enumerate() {
            let bytes = part.part_number.and_then(|number| upload.parts.get(&number));
            let bytes = bytes.ok_or_else(|| s3_error!(InvalidPart))?;
            if part.e_tag.as_ref() != Some(&self.0.etag(bytes)) {
                return Err(s3_error!(InvalidPart));
            }
            if at + 1 < named.len() && bytes.len() < 5 << 20 {
                return Err(s3_error!(EntityTooSmall));
            }
            whole.extend_from_slice(bytes);
        }
        let stored = Object { bytes: whole.freeze(), ..upload.object.clone() };
        shelf.uploads.remove(&input.upload_id);
        shelf.objects.insert(input.key, stored);
        if self.0.is(Fault::CompletesUnheard) {
            return Err(s3_error!(NoSuchUpload));
        }
        Ok(S3Response::new(CompleteMultipartUploadOutput::default()))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        in_bucket(&request.input.bucket)?;
        let aborted = self.0.shelf.lock().uploads.remove(&request.input.upload_id);
        aborted.map(|_| S3Response::new(AbortMultipartUploadOutput::default())).ok_or_else(|| s3_error!(NoSuchUpload))
    }

    /// One upload a page, so that whoever lists has to turn them.
    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        in_bucket(&input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let after = (input.key_marker.unwrap_or_default(), input.upload_id_marker.unwrap_or_default());
        let shelf = self.0.shelf.lock();
        let mut found: Vec<_> = shelf.uploads.iter().map(|(id, upload)| (upload.key.clone(), id.clone())).collect();
        found.retain(|one| one.0.starts_with(&prefix) && *one > after);
        found.sort();
        let first = found.first().cloned();
        let upload = first.clone().map(|(key, id)| MultipartUpload {
            key: Some(key),
            upload_id: Some(id),
            ..Default::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            is_truncated: Some(found.len() > 1),
            next_key_marker: first.clone().map(|(key, _)| key),
            next_upload_id_marker: first.map(|(_, id)| id),
            uploads: Some(upload.into_iter().collect()),
            ..Default::default()
        }))
    }

    async fn get_bucket_versioning(
        &self,
        request: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        in_bucket(&request.input.bucket)?;
        let status = Some(BucketVersioningStatus::from_static(BucketVersioningStatus::ENABLED));
        Ok(S3Response::new(GetBucketVersioningOutput { status, ..Default::default() }))
    }
}
