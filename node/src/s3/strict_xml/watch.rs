//! The body of a request that is looked at on its way to s3s.
//!
//! s3s reads a body only after it has found the operation and the caller, and access control had nothing against it. The body
//! is looked at there, so that nobody else can make the node keep a document in memory, and so that it is s3s who says which
//! operation it is. The hash of the body is still s3s's business: it gets the same bytes. Bodies in the framing of `aws-chunked`
//! are refused: clients use it for objects, and s3s has no document from them either (it then says `IncompleteBody`).
//!
//! s3s has one error for a body that fails, so the true one is left in [`Refused`].

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use http::{Method, Request};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use parking_lot::Mutex;
use s3s::{Body, S3Error, StdError, s3_error};
use url::form_urlencoded;

use super::super::errors::not_implemented;
use super::super::http_service::XML_BODY_BYTES_MAX;
use super::super::request_id::RequestContext;
use super::{Document, check};

/// Why a body was refused, if it was.
#[derive(Clone, Default)]
pub(in crate::s3) struct Refused(Arc<Mutex<Option<S3Error>>>);

impl Refused {
    /// The error to answer with, whatever s3s made of it.
    pub(in crate::s3) fn take(&self) -> Option<S3Error> {
        self.0.lock().take()
    }

    fn set(&self, error: S3Error) -> StdError {
        let said = error.to_string();
        *self.0.lock() = Some(error);
        said.into()
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
pub(in crate::s3) fn watch(request: &mut Request<Body>, context: &Arc<RequestContext>) -> Option<Refused> {
    if !Document::may_be(request.method(), request.uri().query()?) {
        return None;
    }
    let hash = request.headers().get("x-amz-content-sha256");
    // As s3s decides it.
    let is_framed = hash.is_some_and(|hash| hash.as_bytes().starts_with(b"STREAMING-"));
    let (refused, context) = (Refused::default(), Arc::clone(context));
    let (body, kept) = (std::mem::take(request.body_mut()), refused.clone());
    let size_hint = http_body::Body::size_hint(&body);
    let first = async move {
        // Known by now: s3s asks access control before it reads.
        match Document::of(context.operation()) {
            Some(document) => looked_at(body, document, is_framed, &kept).await,
            None => Ok(body),
        }
    };
    let pieces = stream::once(first).try_flatten().boxed();
    *request.body_mut() = Body::http_body_unsync(Watched { pieces, size_hint });
    Some(refused)
}

async fn looked_at(body: Body, document: Document, is_framed: bool, refused: &Refused) -> Result<Body, StdError> {
    if is_framed {
        return Err(refused.set(not_implemented("an aws-chunked body of this request")));
    }
    let read = Limited::new(body, XML_BODY_BYTES_MAX).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            return refused.set(s3_error!(MaxMessageLengthExceeded, "Your request was too large."));
        }
        error
    })?;
    let bytes = read.to_bytes();
    check(&bytes, document).map_err(|what| {
        refused.set(s3_error!(
            MalformedXML,
            "The XML you provided was not well-formed or did not validate against our published schema: {what}"
        ))
    })?;
    Ok(Body::from(bytes))
}

/// A body in pieces of which the length is known as long as nothing was read.
struct Watched {
    pieces: BoxStream<'static, Result<Bytes, StdError>>,
    size_hint: SizeHint,
}

impl http_body::Body for Watched {
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

    #[test]
    fn documents_belong_to_operations_that_there_are() {
        use crate::s3::operations::OPERATIONS;
        let with: Vec<_> = OPERATIONS.iter().filter_map(|operation| Document::of(operation.name)).collect();
        assert_eq!(with, [Document::Delete, Document::Lifecycle, Document::Restore]);
    }
}
