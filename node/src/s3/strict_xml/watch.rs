//! The body of a request that is looked at on its way to s3s.
//!
//! s3s reads a body only after it has found the operation and the caller, and access control had nothing against it. The body
//! is looked at there, so that nobody else can make the node keep a document in memory, and so that it is s3s who says which
//! operation it is. The hash of the body is still s3s's business: it gets the same bytes. Bodies in the framing of `aws-chunked`
//! are refused: clients use it for objects, and s3s has no document from them either (it then says `IncompleteBody`).
//!
//! s3s has one error for a body that fails, so the true one is left in [`Outcome`]. A document with an element that s3s does not
//! know is left there too, written as s3s can read it: the request is then given to s3s once more ([`Watched::again`]), as
//! the one that was allowed. That its bytes are those that the caller signed is found out here, for s3s does not come to it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use parking_lot::Mutex;
use s3s::{Body, S3Error, StdError, s3_error};
use url::form_urlencoded;

use super::super::bucket_config::check_content_md5;
use super::super::errors::not_implemented;
use super::super::http_service::XML_BODY_BYTES_MAX;
use super::super::request_id::RequestContext;
use super::{Document, idle, read};

/// Headers that prove who sent which body.
const PROOFS: [&str; 3] = ["authorization", "x-amz-content-sha256", "content-md5"];

/// What became of a body, if s3s is not to have the last word.
#[derive(Clone, Default)]
struct Outcome(Arc<Mutex<Option<Result<Bytes, S3Error>>>>);

impl Outcome {
    fn refuse(&self, error: S3Error) -> StdError {
        let said = error.to_string();
        *self.0.lock() = Some(Err(error));
        said.into()
    }

    fn rewrite(&self, text: Vec<u8>) -> StdError {
        *self.0.lock() = Some(Ok(text.into()));
        "the document is given once more".into()
    }
}

/// A request whose body is looked at.
pub(in crate::s3) struct Watched {
    outcome: Outcome,
    head: Request<()>,
}

impl Watched {
    /// What to do, whatever s3s made of the body: answer with the error, or give it this request. `None`: s3s has answered.
    pub(in crate::s3) fn again(self, context: &RequestContext) -> Option<Result<Request<Body>, S3Error>> {
        let text = match self.outcome.0.lock().take()? {
            Ok(text) => text,
            Err(error) => return Some(Err(error)),
        };
        let (mut head, ()) = self.head.into_parts();
        // What proved who the caller is belongs to the other bytes.
        for name in PROOFS {
            head.headers.remove(name);
        }
        head.uri = match unsigned(&head.uri) {
            Ok(uri) => uri,
            Err(error) => return Some(Err(error)),
        };
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
        if let Some(granted) = context.take_granted() {
            head.extensions.insert(granted);
        }
        Some(Ok(Request::from_parts(head, Body::from(text))))
    }
}

impl Document {
    /// Whether a request may have one, by its method and query. The path is left to s3s.
    fn may_be(method: &Method, query: &str) -> bool {
        let parameters: &[&str] = match *method {
            Method::PUT => &["lifecycle"],
            Method::POST => &["delete", "restore"],
            _ => return false,
        };
        form_urlencoded::parse(query.as_bytes()).any(|(name, _)| parameters.contains(&name.as_ref()))
    }

    fn of(operation: &str) -> Option<Self> {
        match operation {
            "PutBucketLifecycleConfiguration" => Some(Self::Lifecycle),
            "DeleteObjects" => Some(Self::Delete),
            "RestoreObject" => Some(Self::Restore),
            _ => None,
        }
    }
}

/// Has the body of a request looked at, if it may be one of the documents; `None`: it is not.
pub(in crate::s3) fn watch(request: &mut Request<Body>, context: &Arc<RequestContext>) -> Option<Watched> {
    if !Document::may_be(request.method(), request.uri().query()?) {
        return None;
    }
    let hash = request.headers().get("x-amz-content-sha256").cloned();
    let md5 = request.headers().get("content-md5").cloned();
    let (outcome, context) = (Outcome::default(), Arc::clone(context));
    let (body, kept) = (std::mem::take(request.body_mut()), outcome.clone());
    let mut head = Request::new(());
    head.method_mut().clone_from(request.method());
    head.uri_mut().clone_from(request.uri());
    *head.version_mut() = request.version();
    head.headers_mut().clone_from(request.headers());
    head.extensions_mut().clone_from(request.extensions());
    let size_hint = http_body::Body::size_hint(&body);
    let first = async move {
        // Known by now: s3s asks access control before it reads.
        match Document::of(context.operation()) {
            Some(document) => looked_at(body, document, (hash, md5), &kept).await,
            None => Ok(body),
        }
    };
    let pieces = stream::once(first).try_flatten().boxed();
    *request.body_mut() = Body::http_body_unsync(Pieces { pieces, size_hint });
    Some(Watched { outcome, head })
}

/// The target of a request without what was signed in its query: only the document is left of that.
fn unsigned(uri: &Uri) -> Result<Uri, S3Error> {
    let mut parts = uri.clone().into_parts();
    let target = format!("{}?lifecycle", uri.path());
    parts.path_and_query = Some(target.parse().map_err(|_| s3_error!(InvalidURI))?);
    Uri::from_parts(parts).map_err(|_| s3_error!(InvalidURI))
}

/// Whether a body is what its hash says, where there is one.
fn is_signed(bytes: &[u8], hash: Option<&HeaderValue>) -> bool {
    let Some(hash) = hash.filter(|hash| hash.as_bytes() != b"UNSIGNED-PAYLOAD") else { return true };
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    hash.as_bytes() == hex::encode(digest).as_bytes()
}

async fn looked_at(
    body: Body,
    document: Document,
    (hash, md5): (Option<HeaderValue>, Option<HeaderValue>),
    outcome: &Outcome,
) -> Result<Body, StdError> {
    // As s3s decides it.
    if hash.as_ref().is_some_and(|hash| hash.as_bytes().starts_with(b"STREAMING-")) {
        return Err(outcome.refuse(not_implemented("an aws-chunked body of this request")));
    }
    let whole = Limited::new(body, XML_BODY_BYTES_MAX).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            return outcome.refuse(s3_error!(MaxMessageLengthExceeded, "Your request was too large."));
        }
        error
    })?;
    let bytes = whole.to_bytes();
    // s3s does not look at it, and a document that was damaged on its way may name other keys.
    let md5 = md5.as_ref().map(|md5| md5.to_str().unwrap_or_default());
    check_content_md5(md5, &bytes).map_err(|error| outcome.refuse(error))?;
    let idle = read(&bytes, document).map_err(|what| {
        outcome.refuse(s3_error!(
            MalformedXML,
            "The XML you provided was not well-formed or did not validate against our published schema: {what}"
        ))
    })?;
    // With other bytes than were signed s3s has something against it by itself.
    if !idle.is_empty() && is_signed(&bytes, hash.as_ref()) {
        return Err(outcome.rewrite(idle::rewritten(&bytes, &idle)));
    }
    Ok(Body::from(bytes))
}

/// A body in pieces of which the length is known as long as nothing was read.
struct Pieces {
    pieces: BoxStream<'static, Result<Bytes, StdError>>,
    size_hint: SizeHint,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = self.get_mut();
        this.size_hint = SizeHint::default();
        this.pieces.as_mut().poll_next(cx).map_ok(Frame::data)
    }

    fn size_hint(&self) -> SizeHint {
        self.size_hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_with_documents_are_told_by_method_and_query_however_that_is_written() {
        for (method, query, may_be) in [
            (Method::PUT, "lifecycle", true),
            (Method::PUT, "x-id=PutBucketLifecycleConfiguration&lifecycle=", true),
            (Method::PUT, "lifec%79cle", true),
            (Method::PUT, "delete", false),
            (Method::PUT, "restore", false),
            (Method::POST, "delete", true),
            (Method::POST, "d%65lete&x", true),
            (Method::POST, "restore", true),
            (Method::POST, "versionId=v&restore=", true),
            (Method::POST, "lifecycle", false),
            (Method::GET, "lifecycle", false),
            (Method::PUT, "prefix=lifecycle", false),
        ] {
            assert_eq!(Document::may_be(&method, query), may_be, "{method} {query}");
        }
    }

    /// The body that s3s gets, or the code of what is answered.
    async fn given(text: &'static str, document: Document, md5: Option<&'static str>) -> Result<Bytes, String> {
        let outcome = Outcome::default();
        let md5 = md5.map(HeaderValue::from_static);
        match looked_at(Body::from(Bytes::from_static(text.as_bytes())), document, (None, md5), &outcome).await {
            Ok(body) => Ok(body.collect().await.expect("a body").to_bytes()),
            Err(_) => match outcome.0.lock().take() {
                Some(Err(error)) => Err(error.code().as_str().to_owned()),
                other => panic!("{other:?}"),
            },
        }
    }

    #[tokio::test]
    async fn a_document_is_held_against_the_digest_that_came_with_it() {
        let delete = "<Delete><Object><Key>a</Key></Object></Delete>";
        let (right, wrong) = ("aFPqFnlCon58cZ4Qt7zwvQ==", "1B2M2Y8AsgTpgAmY7PhCfg==");
        assert_eq!(given(delete, Document::Delete, None).await.expect("taken"), delete);
        assert_eq!(given(delete, Document::Delete, Some(right)).await.expect("taken"), delete);
        assert_eq!(given(delete, Document::Delete, Some(wrong)).await, Err("BadDigest".into()));
        assert_eq!(given(delete, Document::Delete, Some("x")).await, Err("InvalidDigest".into()));
    }

    #[test]
    fn documents_belong_to_operations_that_there_are() {
        use crate::s3::operations::OPERATIONS;
        let with: Vec<_> = OPERATIONS.iter().filter_map(|operation| Document::of(operation.name)).collect();
        assert_eq!(with, [Document::Delete, Document::Lifecycle, Document::Restore]);
    }
}
