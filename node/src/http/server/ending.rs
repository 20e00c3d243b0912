//! When the answer to a request is the last one of its connection.

use http::{Request, header};
use http_body::Body as _;
use hyper::body::Incoming;

use super::super::body::BodyEnd;

/// Whether the client waits for 100 before it sends the body. An empty body is answered without 100, and botocore then
/// takes the status line of the connection's next answer for a header: it reads a 200 without an ETag and fails the
/// upload. Only closing the connection makes it forget.
fn expects_continue(request: &Request<Incoming>) -> bool {
    request.headers().get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// When the answer to a request ends its connection.
pub(super) enum Ending {
    /// Never: there is no body.
    Kept,
    /// Always.
    Announced,
    /// If it comes before the body's end. hyper closes then, unless what is left has come already, but does not say so:
    /// a client that sends its next request before it sees the close loses that request. botocore, refused in place of
    /// 100, even takes the status of the refusal for the next request's.
    Unless(BodyEnd),
}

impl Ending {
    pub(super) fn of(request: &Request<Incoming>) -> Ending {
        match (request.body().is_end_stream(), expects_continue(request)) {
            (true, false) => Ending::Kept,
            (true, true) => Ending::Announced,
            (false, _) => Ending::Unless(BodyEnd::default()),
        }
    }

    pub(super) fn is_to_be_announced(&self) -> bool {
        match self {
            Ending::Kept => false,
            Ending::Announced => true,
            Ending::Unless(end) => !end.reached(),
        }
    }
}
