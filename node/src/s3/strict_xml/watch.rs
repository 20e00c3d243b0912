//! The body of a request that is looked at on its way to s3s.
//!
//! s3s reads a body only after it has found the operation and the caller, and access control had nothing against it.
//! The body is looked at there, so that nobody else can make the node keep a document in memory, and so that it is s3s
//! who says which operation it is. What the headers say of the body is compared for every document ([`super::proofs`]).
//! Bodies in the framing of `aws-chunked` are refused: clients use it for objects, and s3s has no document from them
//! either (it then says `IncompleteBody`), so that it is given no large ones.
//!
//! s3s has one error for a body that fails, so the true one is left in [`Outcome`]. A document with an element that s3s
//! does not know, or with a character that it does not read, is left there too, written as s3s can read it: the request
//! is then given to s3s once more ([`Watched::again`]), as the one that was allowed.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use parking_lot::Mutex;
use s3s::{Body, S3Error, StdError, s3_error};
use url::form_urlencoded;

use super::super::errors::{body_error, not_implemented, too_much};
use super::super::facts::AsSigned;
use super::super::http_service::XML_BODY_BYTES_MAX;
use super::super::ignored::without_signature;
use super::super::request_id::RequestContext;
use super::proofs::Proofs;
use super::{Document, bucket_tags, idle, may_rewrite, numbers, read};

/// Headers that prove who sent which body.
const PROOFS: [&str; 3] = ["authorization", "x-amz-content-sha256", "content-md5"];

/// Most bytes of a body that comes framed where a document is expected. An empty one with trailers has some hundred.
const FRAMED_BYTES_MAX: usize = 64 << 10;

/// What became of a body, if s3s is not to have the last word.
#[derive(Clone, Default)]
struct Outcome(Arc<Mutex<Option<Result<Bytes, S3Error>>>>);

impl Outcome {
    fn refuse(&self, error: S3Error) -> StdError {
        let said = error.to_string();
        *self.0.lock() = Some(Err(error));
        said.into()
    }

    fn rewrite(&self, text: Bytes) -> StdError {
        *self.0.lock() = Some(Ok(text));
        "the document is given once more".into()
    }
}

/// A request whose body is looked at.
pub(in crate::s3) struct Watched {
    outcome: Outcome,
    head: Request<()>,
}

impl Watched {
    /// What to do, whatever s3s made of the body: answer with the error, or give it this request. `None`: s3s has
    /// answered.
    pub(in crate::s3) fn again(self, context: &RequestContext) -> Option<Result<Request<Body>, S3Error>> {
        let text = match self.outcome.0.lock().take()? {
            Ok(text) => text,
            Err(error) => return Some(Err(error)),
        };
        let (mut head, ()) = self.head.into_parts();
        // What is decided by the body is decided about the request that was signed.
        head.extensions.insert(AsSigned { headers: head.headers.clone(), uri: head.uri.clone() });
        // What proved who the caller is belongs to the other bytes.
        for name in PROOFS {
            head.headers.remove(name);
        }
        let Some(uri) = without_signature(&head.uri) else { return Some(Err(s3_error!(InvalidURI))) };
        head.uri = uri;
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
        if let Some(granted) = context.take_granted() {
            head.extensions.insert(granted);
        }
        Some(Ok(Request::from_parts(head, Body::from(text))))
    }
}

/// Subresources with which a PUT has a document.
const PUT_DOCUMENTS: [&str; 7] = ["acl", "cors", "lifecycle", "notification", "policy", "tagging", "versioning"];
/// And a POST.
const POST_DOCUMENTS: [&str; 3] = ["delete", "restore", "uploadId"];

/// Whether the body of a request may be a document, by its method and target. s3s has the last word.
fn may_have_document(method: &Method, uri: &Uri) -> bool {
    let parameters: &[&str] = match *method {
        Method::PUT => &PUT_DOCUMENTS,
        Method::POST => &POST_DOCUMENTS,
        _ => return false,
    };
    let names_one = |query: &str, names: &[&str]| {
        form_urlencoded::parse(query.as_bytes()).any(|(name, _)| names.contains(&name.as_ref()))
    };
    let query = uri.query().unwrap_or_default();
    // Of CreateBucket, whatever else is in the query; with an upload in it that is refused.
    let may_make_bucket = *method == Method::PUT && !uri.path().trim_matches('/').contains('/');
    names_one(query, parameters) || may_make_bucket && !names_one(query, &["uploadId"])
}

/// How many tags, opening and closing ones, the document of an operation may have: more than any within the limits of
/// S3 has. What s3s makes of an element of a few bytes takes hundreds.
fn tags_max(operation: &str) -> usize {
    match operation {
        // 1,000 keys, each with what there is to say of it.
        "DeleteObjects" => 20_000,
        // 10,000 parts with their checksums, or 1,000 rules with ten tags each.
        _ => 200_000,
    }
}

/// Whether an operation's body is an object's content, or nothing that is read.
fn has_content(operation: &str) -> bool {
    matches!(
        operation,
        "PutObject" | "UploadPart" | "CopyObject" | "UploadPartCopy" | "CreateMultipartUpload" | "Unknown"
    )
}

impl Document {
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
    if !may_have_document(request.method(), request.uri()) {
        return None;
    }
    let proofs = Proofs::of(request.headers());
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
        let operation = context.operation();
        if has_content(operation) {
            return Ok(body);
        }
        looked_at(body, &context, &proofs, &kept).await
    };
    let pieces = stream::once(first).try_flatten().boxed();
    *request.body_mut() = Body::http_body_unsync(Pieces { pieces, size_hint });
    Some(Watched { outcome, head })
}

async fn looked_at(body: Body, context: &RequestContext, proofs: &Proofs, outcome: &Outcome) -> Result<Body, StdError> {
    let operation = context.operation();
    let document = Document::of(operation);
    if proofs.is_chunked() {
        let refused = || not_implemented("an aws-chunked body of this request");
        if document.is_some() {
            return Err(outcome.refuse(refused()));
        }
        return in_one_piece(body, FRAMED_BYTES_MAX, refused).await.map(Body::from).map_err(|e| outcome.refuse(e));
    }
    let too_large = || s3_error!(MaxMessageLengthExceeded, "Your request was too large.");
    let bytes = in_one_piece(body, XML_BODY_BYTES_MAX, too_large).await.map_err(|error| outcome.refuse(error))?;
    proofs.check(operation, &bytes).map_err(|error| outcome.refuse(error))?;
    if bytes.iter().filter(|byte| **byte == b'<').count() > tags_max(operation) {
        return Err(outcome.refuse(too_much()));
    }
    if document.is_none() && operation != "PutBucketPolicy" && has_cdata(&bytes) {
        return Err(outcome.refuse(s3_error!(
            MalformedXML,
            "The XML you provided was not well-formed or did not validate against our published schema: it has a CDATA \
             section, which is not taken"
        )));
    }
    if operation != "PutBucketPolicy" && has_prefixed_name(&bytes) {
        return Err(outcome.refuse(s3_error!(
            MalformedXML,
            "The XML you provided was not well-formed or did not validate against our published schema: it has an \
             element with a namespace prefix, which is not taken"
        )));
    }
    if operation == "CreateBucket" {
        let tags = bucket_tags::read(&bytes).map_err(|what| {
            outcome.refuse(s3_error!(
                MalformedXML,
                "The XML you provided was not well-formed or did not validate against our published schema: {what}"
            ))
        })?;
        context.set_bucket_tags(tags);
    }
    let written_out = if may_rewrite(operation) { numbers::written_out(&bytes).map(Bytes::from) } else { None };
    let text = written_out.as_ref().unwrap_or(&bytes);
    let idle = match document {
        Some(document) => read(text, document).map_err(|what| {
            outcome.refuse(s3_error!(
                MalformedXML,
                "The XML you provided was not well-formed or did not validate against our published schema: {what}"
            ))
        })?,
        None => Vec::new(),
    };
    if !idle.is_empty() {
        return Err(outcome.rewrite(idle::rewritten(text, &idle).into()));
    }
    match written_out {
        Some(text) => Err(outcome.rewrite(text)),
        None => Ok(Body::from(bytes)),
    }
}

/// All of a body. A client may send it byte by byte, and each piece that is kept takes some ten times as much: they are
/// put together as they come.
///
/// # Errors
/// `too_large` of a body with more bytes than this; S3's error for one that cannot be read.
async fn in_one_piece(body: Body, bytes_max: usize, too_large: impl FnOnce() -> S3Error) -> Result<Bytes, S3Error> {
    let mut body = Limited::new(body, bytes_max);
    // Most documents come in one piece, which is not copied.
    let (mut first, mut whole) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) if error.is::<LengthLimitError>() => return Err(too_large()),
            Err(error) => return Err(body_error(&error)),
        };
        let Ok(data) = frame.into_data() else { continue };
        if first.is_empty() {
            first = data;
            continue;
        }
        if whole.is_empty() {
            whole.extend_from_slice(&first);
        }
        whole.extend_from_slice(&data);
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}

/// Whether there is a CDATA section. s3s passes over it: a tag would be stored without its value.
fn has_cdata(text: &[u8]) -> bool {
    const BEGIN: &[u8] = b"<![CDATA[";
    text.windows(BEGIN.len()).any(|window| window == BEGIN)
}

/// Whether the name of an element has a prefix. s3s compares whole names, and passes over what it does not know: a list
/// of `<s:Tag>` would be one without tags, and all that an object has would go.
fn has_prefixed_name(text: &[u8]) -> bool {
    text.split(|byte| *byte == b'<').skip(1).any(|tag| {
        let end = tag.iter().position(|byte| b"/> \t\r\n".contains(byte)).unwrap_or(tag.len());
        // Comments and instructions have no name.
        !tag.starts_with(b"!") && !tag.starts_with(b"?") && tag[..end].contains(&b':')
    })
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
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test]
    async fn a_body_is_put_together_however_it_comes_and_up_to_its_bound() {
        const TEXT: &[u8] = b"<Tagging/>";
        let in_pieces = |size: usize| {
            let pieces = TEXT.chunks(size).map(|piece| Ok::<_, StdError>(Frame::data(Bytes::from_static(piece))));
            Body::http_body_unsync(StreamBody::new(stream::iter(pieces)))
        };
        let too_large = || s3_error!(MaxMessageLengthExceeded);
        for size in [1, 3, TEXT.len()] {
            let read = in_one_piece(in_pieces(size), TEXT.len(), too_large).await.unwrap();
            assert_eq!(read, TEXT, "{size}");
            let refused = in_one_piece(in_pieces(size), TEXT.len() - 1, too_large).await.unwrap_err();
            assert_eq!(refused.code().as_str(), "MaxMessageLengthExceeded", "{size}");
        }
        assert!(in_one_piece(Body::empty(), 0, too_large).await.unwrap().is_empty());
    }

    #[test]
    fn requests_with_documents_are_told_by_method_and_target_however_that_is_written() {
        for (method, target, may_have) in [
            (Method::PUT, "/b?lifecycle", true),
            (Method::PUT, "/b?x-id=PutBucketLifecycleConfiguration&lifecycle=", true),
            (Method::PUT, "/b?lifec%79cle", true),
            (Method::PUT, "/b/k?tagging", true),
            (Method::PUT, "/b?policy", true),
            (Method::PUT, "/b", true),
            (Method::PUT, "/b/", true),
            (Method::PUT, "/b?x-id=CreateBucket", true),
            (Method::PUT, "/b/k?x-id=PutObject", false),
            (Method::PUT, "/b/k", false),
            (Method::PUT, "/b?delete", true),
            (Method::PUT, "/b?x=y", true),
            (Method::PUT, "/k?partNumber=1&uploadId=u", false),
            (Method::PUT, "/b/k?restore", false),
            (Method::PUT, "/b/k?partNumber=1&uploadId=u", false),
            (Method::POST, "/b?delete", true),
            (Method::POST, "/b?d%65lete&x", true),
            (Method::POST, "/b/k?restore", true),
            (Method::POST, "/b/k?versionId=v&restore=", true),
            (Method::POST, "/b/k?uploadId=u", true),
            (Method::POST, "/b/k?uploads", false),
            (Method::POST, "/b?lifecycle", false),
            (Method::GET, "/b?lifecycle", false),
            (Method::PUT, "/b/k?prefix=lifecycle", false),
        ] {
            assert_eq!(may_have_document(&method, &Uri::from_static(target)), may_have, "{method} {target}");
        }
    }

    #[test]
    fn prefixes_are_found_in_names_of_elements_and_nowhere_else() {
        for (text, found) in [
            ("<Tagging><TagSet><s:Tag><Key>a</Key></s:Tag></TagSet></Tagging>", true),
            ("<s:Tagging xmlns:s=\"x\"/>", true),
            ("<a><s:b/></a>", true),
            ("<s:a\n>", true),
            ("<?xml version=\"1.0\"?><Key xmlns=\"http://s3\" xsi:type=\"a\">a:b</Key><!-- c:d --><e/>", false),
            ("<Key>a</Key >:", false),
            ("<!--c:d--><?p:q?>", false),
            ("a:b", false),
            ("<", false),
            ("", false),
        ] {
            assert_eq!(has_prefixed_name(text.as_bytes()), found, "{text}");
        }
    }

    #[test]
    fn documents_belong_to_operations_that_there_are() {
        use crate::s3::operations::OPERATIONS;
        let with: Vec<_> = OPERATIONS.iter().filter_map(|operation| Document::of(operation.name)).collect();
        assert_eq!(with, [Document::Delete, Document::Lifecycle, Document::Restore]);
    }
}
