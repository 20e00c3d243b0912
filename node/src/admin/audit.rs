//! Who did what: a middleware that writes every change through the admin API down.
//!
//! The entry is written after the operation and before its answer, both on a task of their own: a client that goes away
//! ends neither. If it cannot be written, the operation has happened all the same: that is logged and counted, with
//! everything that the entry would have said.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{Extension, MatchedPath, OriginalUri, Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use holdfast_protocol::journal::AuditRecord;

use super::AdminState;
use super::server::{current_request_id, with_current_request_id};

/// How long the answer may wait for its entry.
const WRITE_MAX: Duration = Duration::from_secs(5);

/// Names whoever uses the token, as the client tells it.
const OPERATOR: &str = "x-holdfast-operator";

/// The longest such name that is kept, in bytes.
const OPERATOR_BYTES_MAX: usize = 128;

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client(pub(super) SocketAddr);

/// Marks the answer to a call that goes on with what an earlier one began: a command of many pages is one entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct GoesOn;

impl GoesOn {
    /// For a call that says where to go on, or not.
    pub(super) fn after(after: Option<&String>) -> Option<Extension<Self>> {
        after.map(|_| Extension(Self))
    }
}

/// Tells what a call has made, since its path names only the kind.
#[derive(Debug, Clone)]
pub(super) struct Made(String);

impl Made {
    /// For a call that has made what is found under this name below its path.
    pub(super) fn named(name: impl Into<String>) -> Extension<Self> {
        Extension(Self(name.into()))
    }
}

/// Who sends a request with these headers. The name is a claim: the token is what is checked.
pub(super) fn actor(headers: &HeaderMap) -> String {
    let told = headers.get(OPERATOR).and_then(|name| name.to_str().ok()).map(str::trim).unwrap_or_default();
    let fits = !told.is_empty() && told.len() <= OPERATOR_BYTES_MAX && !told.contains(char::is_control);
    if fits { format!("admin token ({told})") } else { "admin token".into() }
}

/// Middleware: writes requests down that change something. Stands behind the check of the token.
pub(super) async fn record(
    State(state): State<AdminState>,
    client: Option<Extension<Client>>,
    path: Option<MatchedPath>,
    // Below a nested router the request's own path has lost its beginning.
    OriginalUri(uri): OriginalUri,
    request: Request,
    next: Next,
) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return next.run(request).await;
    }
    let place = path.as_ref().map_or("(no such path)", MatchedPath::as_str);
    let mut record = AuditRecord {
        at_ms: state.clock.now_ms(),
        node: state.node_id.clone(),
        actor: actor(request.headers()),
        source: client.map_or_else(String::new, |Extension(Client(address))| address.to_string()),
        action: format!("{} {place}", request.method()),
        target: uri.path().to_owned(),
        result: 0,
        request_id: current_request_id(),
    };
    let journal = state.journal.clone();
    let whole = async move {
        let response = next.run(request).await;
        if response.extensions().get::<GoesOn>().is_some() {
            return response;
        }
        if let Some(Made(name)) = response.extensions().get::<Made>() {
            record.target = format!("{}/{name}", record.target);
        }
        record.result = response.status().as_u16();
        let written = match tokio::time::timeout(WRITE_MAX, journal.add_audit(&record)).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("not written within {} s", WRITE_MAX.as_secs())),
        };
        if let Err(error) = written {
            metrics::counter!("holdfast_audit_failures_total").increment(1);
            let AuditRecord { actor, source, action, target, result, .. } = record;
            tracing::error!(
                error,
                actor,
                source,
                action,
                target,
                result,
                "an entry of the audit log could not be written"
            );
        }
        response
    };
    match tokio::spawn(with_current_request_id(whole)).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!(%error, "an admin request ended without an answer");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
