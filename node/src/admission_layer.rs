//! Admission and measurement around the S3 service, on the data plane's own threads.
//!
//! Every request asks [`Admission`] for a permit before anything else looks at it: a read for one job, a write for one
//! job and for as many bytes as it announces, up to the window that one write holds in buffers. What is refused is
//! answered 503 SlowDown with Retry-After at once, its body unread; where no disk has room, 507 InsufficientStorage.
//! Deletions go on then: they are what makes room. Writes that nobody has signed, such as forms, of which the signature
//! comes in the body, have a quarter of the places for writes: else some hundred slow ones would hold all of them, from
//! who has no key. The permit is held until the last byte of the answer is sent or the client is gone, whichever way
//! the answer ends. In a cluster a write is refused likewise while this node cannot prove its membership (promise D9):
//! asked before the work, and again before the answer, since the proof may have ended between. Bodies pass through as
//! they are: pieces of mapped segments stay pieces of mapped segments.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use holdfast_actors::domain::admission::{JobKind, Refusal};
use holdfast_actors::ports::coordination::Ownership;
use holdfast_actors::service::{Admission, Rejected};
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use metrics::{Counter, Gauge, Histogram};
use tokio::sync::Semaphore;
use tower::util::ServiceExt;

use crate::s3::facts::ClientConnection;
use crate::s3::request_id::RequestId;

mod bodies;
mod head;

pub use bodies::{Answer, Received};
use bodies::{Guard, Inner};
use head::{announced_bytes, is_unsigned, kind_of, stores_nothing};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");

/// The S3 service behind admission. One a connection, whose requests share it: what all connections share they would
/// count in and out for each request, and the cores of the data plane would wait for each other.
pub struct Admitted<S> {
    shared: Arc<Shared<S>>,
}

#[derive(Clone)]
struct Shared<S> {
    inner: S,
    admission: Admission,
    write_window_bytes: u64,
    connection: Option<ClientConnection>,
    ownership: Option<Ownership>,
    /// Places for writes that nobody has signed.
    unsigned: Arc<Semaphore>,
    meters: Arc<Meters>,
}

impl<S> Clone for Admitted<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

#[derive(Clone)]
struct Meters {
    in_flight: Gauge,
    received_bytes: Counter,
    sent_bytes: Counter,
    duration: [Histogram; 2],
}

impl<S: Clone> Admitted<S> {
    /// Puts `admission` before `inner`; a write counts for at most `write_window_bytes`.
    pub fn new(inner: S, admission: Admission, write_window_bytes: u64) -> Self {
        let meters = Meters {
            in_flight: metrics::gauge!("holdfast_s3_requests_in_flight"),
            received_bytes: metrics::counter!("holdfast_s3_received_bytes_total"),
            sent_bytes: metrics::counter!("holdfast_s3_sent_bytes_total"),
            duration: JobKind::ALL
                .map(|kind| metrics::histogram!("holdfast_s3_transfer_seconds", "class" => kind.as_str())),
        };
        let writes = admission.limits().write;
        let places = u64::from(writes.jobs_max).min(writes.bytes_max / write_window_bytes.max(1));
        let unsigned = Arc::new(Semaphore::new((places / UNSIGNED_SHARE).max(1) as usize));
        let (connection, ownership, meters) = (None, None, Arc::new(meters));
        let shared = Shared { inner, admission, write_window_bytes, connection, ownership, unsigned, meters };
        Self { shared: Arc::new(shared) }
    }

    /// With a proof that is needed to answer a write.
    pub fn owned_by(self, ownership: Option<Ownership>) -> Self {
        Self { shared: Arc::new(Shared { ownership, ..(*self.shared).clone() }) }
    }

    /// The service for one connection.
    pub fn on(&self, connection: ClientConnection) -> Self {
        let (connection, meters) = (Some(connection), Arc::new(Meters::clone(&self.shared.meters)));
        Self { shared: Arc::new(Shared { connection, meters, ..(*self.shared).clone() }) }
    }
}

impl<S> Shared<S> {
    fn is_full(&self) -> bool {
        self.admission.limits().write.refused == Some(Refusal::NoSpace)
    }

    fn may_write(&self) -> bool {
        self.ownership.as_ref().is_none_or(Ownership::is_proven)
    }
}

impl<S, B, R> hyper::service::Service<Request<B>> for Admitted<S>
where
    S: tower::Service<Request<Received<B>>, Response = Response<R>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<Answer<R>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<B>) -> Self::Future {
        let this = Arc::clone(&self.shared);
        Box::pin(async move {
            let started = Instant::now();
            let kind = kind_of(request.method());
            let bytes = match kind {
                JobKind::Read => 0,
                // Nothing else holds buffers then.
                JobKind::Write if stores_nothing(&request) && this.is_full() => 0,
                JobKind::Write => announced_bytes(request.headers()).min(this.write_window_bytes),
            };
            if kind == JobKind::Write && !this.may_write() {
                return Ok(slow_down(FENCED));
            }
            let unsigned = if kind == JobKind::Write && is_unsigned(&request) {
                let Ok(place) = Arc::clone(&this.unsigned).try_acquire_owned() else { return Ok(slow_down(UNSIGNED)) };
                Some(place)
            } else {
                None
            };
            let permit = match this.admission.admit(kind, bytes).await {
                Ok(permit) => permit,
                Err(rejected) => return Ok(slow_down(rejected)),
            };
            let guard = Guard::new((permit, unsigned), kind, started, &this.meters);
            let mut request = request.map(|body| Received { body, bytes: 0, meters: Arc::clone(&this.meters) });
            if let Some(connection) = this.connection {
                request.extensions_mut().insert(connection);
            }
            let mut inner = this.inner.clone();
            let ready = ServiceExt::<Request<Received<B>>>::ready(&mut inner).await?;
            let response = tower::Service::call(ready, request).await?;
            if kind == JobKind::Write && response.status().is_success() && !this.may_write() {
                return Ok(slow_down(FENCED));
            }
            Ok(response.map(|body| Answer { inner: Inner::Passed { body, guard } }))
        })
    }
}

/// A node that others may have replaced must not say that something was changed.
const FENCED: Rejected = Rejected { reason: "this node lost its cluster", retry_after_seconds: 1 };

/// One of so many places for writes is for those that nobody has signed.
const UNSIGNED_SHARE: u64 = 4;

const UNSIGNED: Rejected = Rejected { reason: "too many requests without a signature", retry_after_seconds: 1 };

fn slow_down<R>(rejected: Rejected) -> Response<Answer<R>> {
    let id = RequestId::generate().to_string();
    let (status, code, message) = if rejected.reason == Refusal::NoSpace.as_str() {
        let message = "The node has no space left for new objects.".to_owned();
        (StatusCode::INSUFFICIENT_STORAGE, "InsufficientStorage", message)
    } else {
        let message = format!("Please reduce your request rate ({}).", rejected.reason);
        (StatusCode::SERVICE_UNAVAILABLE, "SlowDown", message)
    };
    let label = status.as_str().to_owned();
    metrics::counter!("holdfast_s3_requests_total", "operation" => "NotAdmitted", "status" => label).increment(1);
    tracing::debug!(request_id = id, reason = rejected.reason, "request not admitted");
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>\
         <RequestId>{id}</RequestId></Error>"
    );
    let mut response = Response::new(Answer { inner: Inner::Refused(Some(Bytes::from(text))) });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from(rejected.retry_after_seconds));
    headers.insert(CONTENT_TYPE, const { HeaderValue::from_static("application/xml") });
    headers.insert(REQUEST_ID, HeaderValue::from_str(&id).expect("hex digits are a header value"));
    // The body was not read, so nothing after it on this connection could be understood.
    headers.insert(CONNECTION, const { HeaderValue::from_static("close") });
    response
}

#[cfg(test)]
mod tests {
    use std::task::Context;

    use super::*;
    use holdfast_actors::domain::admission::{ClassLimits, Limits};
    use http::Method;
    use http_body_util::{BodyExt, Full};
    use hyper::service::Service;

    fn limits(jobs_max: u32, bytes_max: u64) -> Limits {
        let class = ClassLimits { jobs_max, bytes_max, queue_max: 0, refused: None };
        Limits { read: class, write: class, queue_wait_ms: 100 }
    }

    type TestBody = Full<Bytes>;

    /// Answers "done" as soon as `gate` lets it.
    fn service(
        gate: Arc<Semaphore>,
    ) -> impl tower::Service<
        Request<Received<TestBody>>,
        Response = Response<TestBody>,
        Error = Infallible,
        Future: Send,
    > + Clone
    + Send
    + 'static {
        tower::service_fn(move |_request| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.expect("open").forget();
                Ok(Response::new(Full::new(Bytes::from_static(b"done"))))
            }
        })
    }

    fn put(announced: u64) -> Request<TestBody> {
        Request::put("/b/k")
            .header("content-length", announced)
            .header("authorization", "AWS4-HMAC-SHA256 …")
            .body(Full::default())
            .unwrap()
    }

    #[tokio::test]
    async fn a_full_node_says_so_and_takes_deletions() {
        let gate = Arc::new(Semaphore::new(10));
        let mut full = limits(10, 100);
        full.write.refused = Some(Refusal::NoSpace);
        let admitted = Admitted::new(service(gate), Admission::new(full), 80);
        let refused = admitted.call(put(5)).await.unwrap();
        assert_eq!(refused.status(), StatusCode::INSUFFICIENT_STORAGE);
        let text = refused.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&text).contains("<Code>InsufficientStorage</Code>"), "{text:?}");
        for (method, uri, length) in [
            ("DELETE", "/b/k", 0),
            ("DELETE", "/b/k?uploadId=u", 0),
            ("POST", "/b?delete", 500),
            ("POST", "/b/?delete=", 500),
            ("POST", "/b/k?uploadId=u", 500),
        ] {
            let request = Request::builder().method(method).uri(uri).header("content-length", length);
            let answer = admitted.call(request.body(Full::default()).unwrap()).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK, "{method} {uri}");
        }
        let form = Request::post("/b").header("content-length", 500).body(Full::default()).unwrap();
        assert_eq!(admitted.call(form).await.unwrap().status(), StatusCode::INSUFFICIENT_STORAGE);
    }

    #[tokio::test]
    async fn a_put_beyond_the_budget_is_told_to_slow_down_and_the_permit_lives_until_the_answer_is_sent() {
        let gate = Arc::new(Semaphore::new(1));
        let admission = Admission::new(limits(10, 100));
        let admitted = Admitted::new(service(gate.clone()), admission.clone(), 80);
        let first = admitted.call(put(1_000_000)).await.unwrap();
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(admission.usage(JobKind::Write), (1, 80, 0), "held while the answer's body is not sent");

        let refused = admitted.call(put(1_000_000)).await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.headers()["retry-after"], "1");
        let text = refused.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&text).contains("<Code>SlowDown</Code>"));

        drop(first);
        assert_eq!(admission.usage(JobKind::Write), (0, 0, 0));
        gate.add_permits(1);
        let body = admitted.call(put(5)).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&*body, b"done");
        assert_eq!(admission.usage(JobKind::Write), (0, 0, 0));
    }

    #[tokio::test]
    async fn a_client_that_goes_away_gives_its_permit_back() {
        let admission = Admission::new(limits(1, 100));
        let admitted = Admitted::new(service(Arc::new(Semaphore::new(0))), admission.clone(), 80);
        let mut call = admitted.call(put(50));
        let waker = std::task::Waker::noop();
        assert!(call.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        assert_eq!(admission.usage(JobKind::Write), (1, 50, 0));
        drop(call);
        assert_eq!(admission.usage(JobKind::Write), (0, 0, 0));
    }

    #[tokio::test]
    async fn slow_forms_of_strangers_leave_places_for_who_has_a_key() {
        let admission = Admission::new(limits(8, 800));
        let admitted = Admitted::new(service(Arc::new(Semaphore::new(0))), admission.clone(), 80);
        let form = || Request::post("/b").header("content-length", 500).body(Full::default()).unwrap();
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut slow = [admitted.call(form()), admitted.call(form())];
        assert!(slow.iter_mut().all(|call| call.as_mut().poll(&mut context).is_pending()));
        let refused = admitted.call(form()).await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        // A signature in the head of a form is one that nobody looks at.
        let mut disguised = put(500);
        *disguised.method_mut() = Method::POST;
        *disguised.uri_mut() = http::Uri::from_static("/b?X-Amz-Signature=00");
        disguised.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("Multipart/form-data; boundary=x"));
        let refused = admitted.call(disguised).await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(admission.usage(JobKind::Write).0, 2);

        // Only what is posted is a form, whatever its type is called.
        let presigned = Request::put("/b/k?X-Amz-Signature=00").header(CONTENT_TYPE, "multipart/form-data");
        let presigned = presigned.body(Full::default()).unwrap();
        let mut signed = [admitted.call(put(5)), admitted.call(presigned)];
        assert!(signed.iter_mut().all(|call| call.as_mut().poll(&mut context).is_pending()));
        assert_eq!(admission.usage(JobKind::Write).0, 4);
        drop(slow);
        assert!(admitted.call(form()).as_mut().poll(&mut context).is_pending(), "their places are free again");
    }
}
