//! The S3 front end as an HTTP service: s3s, and what stands around it.
//!
//! A request passes, in this order: its id and log span; CORS preflight, which is answered here; the gate for the form
//! of signatures ([`super::signature`]); form uploads, which become a PutObject ([`super::post`]); headers that a
//! presigned URL carries ([`super::presigned`]); then s3s, which authenticates, asks [`super::access`], and calls the
//! operation; large chunks of `aws-chunked` are cut on their way into it ([`super::chunked`]), and documents that
//! decide what is deleted or moved are looked at on their way into it ([`super::strict_xml`]). On the way back the
//! answer gets the request id (also in the body of an error), CORS headers, and `Retry-After` if the node is busy; it
//! is logged and counted.
//!
//! The service holds no state of a request beyond its future, so a client that goes away cancels it.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_actors::ports::{Clock, MetadataStore};
use http::header::{CONTENT_RANGE, DATE, HOST, IF_MATCH, ORIGIN, RANGE, RETRY_AFTER, SERVER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use percent_encoding::percent_decode_str;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3, S3Error, S3Result, s3_error};
use tracing::Instrument;

use super::access::AccessControl;
use super::answers;
use super::auth::{Authenticator, SecretOpener, SharedAuthenticator};
use super::chunked;
use super::cors::Cors;
use super::encoded_words;
use super::error_details::{self, Detail, Subject};
use super::expires;
use super::host::HostNames;
use super::ignored::Again;
use super::meters::Meters;
use super::post::{self, FormContext};
use super::presigned;
use super::repeated;
use super::request_id::{RequestContext, RequestId};
use super::restore::Accepted;
use super::signature;
use super::strict_xml;

/// Largest XML body, in bytes. 1,000 keys of 1,024 bytes to delete, each byte escaped, are 6 MB.
pub(super) const XML_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What s3s may collect of a form, in bytes.
const FORM_BYTES_OF_S3S_MAX: usize = 4 * 1024;

const X_AMZ_REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");
const X_AMZ_ID_2: HeaderName = HeaderName::from_static("x-amz-id-2");
const X_AMZ_REQUEST_ROUTE: HeaderName = HeaderName::from_static("x-amz-request-route");
const X_AMZ_COPY_SOURCE: HeaderName = HeaderName::from_static("x-amz-copy-source");

/// What the front end is told by the configuration.
#[derive(Debug, Clone, Default)]
pub struct S3HttpOptions {
    /// Base names of virtual-hosted style.
    pub hosts: HostNames,
    /// What `x-amz-id-2` shows: which node answered.
    pub node_name: String,
    /// The region that clients are told who signed for one that cannot be.
    pub region: String,
}

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct S3HttpService {
    inner: Arc<Inner>,
}

struct Inner {
    s3: S3Service,
    cors: Cors,
    hosts: HostNames,
    authenticator: Arc<Authenticator>,
    clock: Arc<dyn Clock>,
    node_name: HeaderValue,
    region: String,
    meters: Meters,
}

impl S3HttpService {
    /// Puts operations, authentication and access control together.
    pub fn new(
        operations: impl S3,
        metadata: Arc<dyn MetadataStore>,
        secrets: Arc<dyn SecretOpener>,
        clock: Arc<dyn Clock>,
        options: S3HttpOptions,
    ) -> Self {
        let authenticator = Arc::new(Authenticator::new(Arc::clone(&metadata), secrets, Arc::clone(&clock)));
        let mut config = S3Config::default();
        config.xml_max_body_size = XML_BODY_BYTES_MAX;
        // Forms are taken apart by `post`. Should one come to s3s all the same, it collects nothing: it would do so in
        // memory, and before anybody is asked who sends it.
        config.post_object_max_file_size = 0;
        config.form_max_field_size = FORM_BYTES_OF_S3S_MAX;
        config.form_max_fields_size = FORM_BYTES_OF_S3S_MAX;
        let mut builder = S3ServiceBuilder::new(operations);
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        builder.set_auth(SharedAuthenticator(Arc::clone(&authenticator)));
        builder.set_access(AccessControl::new(Arc::clone(&metadata), Arc::clone(&authenticator), Arc::clone(&clock)));
        builder.set_host(options.hosts.clone());
        let node_name =
            HeaderValue::from_str(&options.node_name).unwrap_or_else(|_| HeaderValue::from_static("holdfast"));
        let inner = Inner {
            s3: builder.build(),
            cors: Cors::new(metadata),
            hosts: options.hosts,
            authenticator,
            clock,
            node_name,
            region: options.region,
            meters: Meters::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Answers a request. The body type must be `Send`; it is read as the operation consumes it.
    pub async fn handle(&self, mut request: Request<Body>) -> Response<Body> {
        let started = Instant::now();
        let id = RequestId::generate();
        let context = Arc::new(RequestContext::new(id));
        request.extensions_mut().insert(Arc::clone(&context));
        let span = tracing::info_span!("s3", request_id = %id);
        // In its place from the start: what holds it is large, and would be moved with it.
        let answered = std::pin::pin!(async {
            let response = self.inner.answer(request, &context).await;
            self.inner.note(&context, response.status(), started.elapsed());
            response
        });
        answered.instrument(span).await
    }
}

/// The name in the `Host` header, or in HTTP/2 the authority.
fn host_of<'a>(headers: &'a HeaderMap, uri: &'a Uri, version: Version) -> &'a str {
    match headers.get(HOST).and_then(|host| host.to_str().ok()) {
        Some(host) => host,
        None if version >= Version::HTTP_2 => uri.authority().map_or("", |authority| authority.as_str()),
        None => "",
    }
}

impl Inner {
    /// Counts and logs a request that is answered.
    fn note(&self, context: &RequestContext, status: StatusCode, took: Duration) {
        let operation = context.operation();
        self.meters.answered(operation, status, took);
        let (user, elapsed_us) = (context.user().unwrap_or("-"), took.as_micros());
        if status.is_server_error()
            && status != StatusCode::SERVICE_UNAVAILABLE
            && status != StatusCode::NOT_IMPLEMENTED
        {
            tracing::warn!(operation, user, status = status.as_u16(), elapsed_us, "request failed");
        } else {
            tracing::debug!(operation, user, status = status.as_u16(), elapsed_us, "request answered");
        }
    }

    async fn answer(&self, request: Request<Body>, context: &Arc<RequestContext>) -> Response<Body> {
        let method = request.method().clone();
        let uri = request.uri().clone();
        let origin = request.headers().get(ORIGIN).and_then(|o| o.to_str().ok()).map(str::to_owned);
        // Only browsers and forms need the bucket here; s3s finds it on its own.
        let is_form = method == Method::POST && post::is_form(request.headers());
        let bucket = if origin.is_some() || is_form || method == Method::OPTIONS {
            self.bucket_of(host_of(request.headers(), &uri, request.version()), &uri)
        } else {
            None
        };
        let kept = Kept::of(&request);
        let result = self.dispatch(request, context, bucket.as_ref(), is_form).await;
        let mut response = result.unwrap_or_else(|error| {
            tracing::debug!(%error, "request refused");
            error_response(error)
        });
        response = answers::corrected(context.operation(), response);
        // s3s knows one status for HeadObject; S3 answers a part or a range as it answers its GET.
        if method == Method::HEAD
            && response.status() == StatusCode::OK
            && response.headers().contains_key(CONTENT_RANGE)
        {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        // And one for RestoreObject, which tells by it whether bytes have to be moved.
        if response.extensions_mut().remove::<Accepted>().is_some() {
            *response.status_mut() = StatusCode::ACCEPTED;
        }
        if let (Some(origin), Some(bucket)) = (&origin, &bucket)
            && method != Method::OPTIONS
        {
            self.cors.decorate(&bucket.name, origin, method.as_str(), response.headers_mut()).await;
        }
        self.finish(&mut response, context.id(), &uri, &kept);
        // As S3 does: programs that look for a bucket's region ask without a signature. A missing bucket is 404.
        // This comes last, since the body of the error does not name the region.
        if response.status() == StatusCode::FORBIDDEN
            && matches!(context.operation(), "HeadBucket" | "ListObjects" | "ListObjectsV2")
            && let Ok(region) = HeaderValue::from_str(&self.region)
        {
            response.headers_mut().insert(answers::BUCKET_REGION, region);
        }
        response
    }

    async fn dispatch(
        &self,
        mut request: Request<Body>,
        context: &Arc<RequestContext>,
        bucket: Option<&AddressedBucket>,
        is_form: bool,
    ) -> S3Result<Response<Body>> {
        if request.method() == Method::OPTIONS {
            context.set_operation("Preflight");
            let headers = self.cors.preflight(bucket.map(|b| b.name.as_str()), request.headers()).await?;
            let mut response = Response::new(Body::empty());
            *response.headers_mut() = headers;
            return Ok(response);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD | Method::PUT | Method::POST | Method::DELETE) {
            return Err(s3_error!(MethodNotAllowed, "The specified method is not allowed against this resource."));
        }
        signature::check_form(request.headers(), request.uri(), &self.region)?;
        if self.lacks_form(&request, is_form) {
            context.set_operation("PostObject");
            return Err(post::not_a_form());
        }
        if !is_form {
            signature::take_date(request.headers_mut())?;
            repeated::join_metadata(request.headers_mut());
            presigned::take_headers(&mut request)?;
            chunked::bound(&mut request);
            let again = Again::of(&mut request, context);
            let watched = strict_xml::watch(&mut request, context);
            let mut response = self.s3(request).await;
            let next = match (again, &response) {
                (Some(again), Ok(refused)) => again.after(refused, context),
                _ => None,
            };
            if let Some(next) = next {
                // These are rare, and would have every request's future be longer: it is moved more often than once.
                response = Box::pin(self.s3(next)).await;
            }
            let response = match watched.and_then(|watched| watched.again(context)) {
                Some(again) => Box::pin(self.s3(again?)).await,
                None => response,
            };
            return Ok(strict_xml::with_idle_days(context.operation(), response?));
        }
        context.set_operation("PostObject");
        let bucket = match bucket {
            Some(bucket) if bucket.key.is_empty() => bucket,
            Some(_) => return Err(s3_error!(MethodNotAllowed, "A form is posted to a bucket, not to an object.")),
            None => return Err(s3_error!(MethodNotAllowed, "A form is posted to a bucket.")),
        };
        let form_context = FormContext {
            authenticator: &self.authenticator,
            bucket: &bucket.name,
            in_host: bucket.in_host,
            host: host_of(request.headers(), request.uri(), request.version()).to_owned(),
            now_ms: self.clock.now_ms(),
        };
        Box::pin(post::upload(form_context, request, |put| self.s3(put))).await
    }

    /// Whether a request is what only a form can be, a plain POST to a bucket, and is none.
    fn lacks_form(&self, request: &Request<Body>, is_form: bool) -> bool {
        let (headers, uri) = (request.headers(), request.uri());
        if is_form || *request.method() != Method::POST || !uri.query().unwrap_or_default().is_empty() {
            return false;
        }
        // By that header s3s tells another operation on the same path, which it refuses.
        !headers.contains_key(X_AMZ_REQUEST_ROUTE)
            && self.bucket_of(host_of(headers, uri, request.version()), uri).is_some_and(|bucket| bucket.key.is_empty())
    }

    async fn s3(&self, mut request: Request<Body>) -> S3Result<Response<Body>> {
        encoded_words::refuse_broken(request.headers())?;
        expires::take_text(&mut request);
        // In a box of its own: it is large, and what holds it is moved more often than once.
        Box::pin(self.s3.call(request)).await.map_err(|error| {
            tracing::error!(?error, "s3s could not answer");
            s3_error!(InternalError, "We encountered an internal error. Please try again.")
        })
    }

    fn bucket_of(&self, host: &str, uri: &Uri) -> Option<AddressedBucket> {
        let path = percent_decode_str(uri.path()).decode_utf8().ok()?;
        let path = path.strip_prefix('/').unwrap_or(&path);
        if let Some(name) = self.hosts.bucket_of(host) {
            return Some(AddressedBucket { name, in_host: true, key: path.to_owned() });
        }
        let (name, key) = path.split_once('/').unwrap_or((path, ""));
        (!name.is_empty()).then(|| AddressedBucket { name: name.to_owned(), in_host: false, key: key.to_owned() })
    }

    /// What an error of this code names of its request.
    fn details(&self, code: &str, uri: &Uri, kept: &Kept) -> Vec<Detail> {
        let host = kept.host.as_ref().and_then(|host| host.to_str().ok());
        let host = host.or_else(|| uri.authority().map(|authority| authority.as_str()));
        let bucket = self.bucket_of(host.unwrap_or_default(), uri);
        let (bucket, key) = bucket.as_ref().map_or(("", ""), |bucket| (bucket.name.as_str(), bucket.key.as_str()));
        let query = uri.query().unwrap_or_default();
        let carried = presigned::carried(query, X_AMZ_COPY_SOURCE.as_str());
        let copy_source = kept.copy_source.as_ref().map(|source| source.to_str().unwrap_or_default());
        let in_url = presigned::carried(query, signature::X_AMZ_DATE.as_str());
        let in_header = kept.date.as_ref().and_then(|date| date.to_str().ok());
        let subject = Subject {
            bucket,
            key,
            query,
            copy_source: copy_source.or(carried.as_deref()),
            is_conditional: kept.is_conditional,
            range: kept.range.as_ref().and_then(|range| range.to_str().ok()),
            signed_at: in_url.as_deref().or(in_header),
            now_ms: self.clock.now_ms(),
        };
        error_details::details(code, &subject)
    }

    /// Adds what every answer carries.
    fn finish(&self, response: &mut Response<Body>, id: RequestId, uri: &Uri, kept: &Kept) {
        let id = id.digits();
        let status = response.status();
        if status.is_client_error() || status.is_server_error() {
            let node = self.node_name.to_str().unwrap_or_default();
            let id = std::str::from_utf8(&id).unwrap_or_default();
            answers::complete_error(response, id, node, uri.path(), |code| self.details(code, uri, kept));
            if status == StatusCode::SERVICE_UNAVAILABLE && !response.headers().contains_key(RETRY_AFTER) {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
        }
        let headers = response.headers_mut();
        headers.insert(X_AMZ_REQUEST_ID, HeaderValue::from_bytes(&id).expect("hex digits are a header value"));
        headers.insert(X_AMZ_ID_2, self.node_name.clone());
        headers.insert(SERVER, HeaderValue::from_static("Holdfast"));
    }
}

/// The bucket that a request addresses.
struct AddressedBucket {
    name: String,
    /// Virtual-hosted style.
    in_host: bool,
    /// Empty if the path names none.
    key: String,
}

/// What of a request's headers an error may have to tell.
struct Kept {
    host: Option<HeaderValue>,
    copy_source: Option<HeaderValue>,
    is_conditional: bool,
    range: Option<HeaderValue>,
    /// `x-amz-date`, or `Date` where that is not there.
    date: Option<HeaderValue>,
}

impl Kept {
    fn of(request: &Request<Body>) -> Self {
        let headers = request.headers();
        Self {
            host: headers.get(HOST).cloned(),
            copy_source: headers.get(X_AMZ_COPY_SOURCE).cloned(),
            is_conditional: headers.contains_key(IF_MATCH),
            range: headers.get(RANGE).cloned(),
            date: headers.get(signature::X_AMZ_DATE).or_else(|| headers.get(DATE)).cloned(),
        }
    }
}

/// An error as S3 sends it.
pub(crate) fn error_response(error: S3Error) -> Response<Body> {
    error.to_http_response().unwrap_or_else(|_| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl hyper::service::Service<Request<hyper::body::Incoming>> for S3HttpService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn call(&self, request: Request<hyper::body::Incoming>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(service.handle(request.map(Body::from)).await) })
    }
}

impl<B> tower::Service<Request<B>> for S3HttpService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(service.handle(request.map(Body::http_body_unsync)).await) })
    }
}
