//! The baseline that durable PUTs are measured against: the same hyper, writing through `tokio::fs`.
//!
//! A PUT's body goes frame by frame into a new file with `tokio::fs`, is made durable with one fdatasync, and the file
//! is removed before the answer. No signature, no checksum, no metadata: what remains is what writing itself costs.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::args::BaselineArgs;

/// Connections served at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// A client has this long to send a request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves until it is interrupted.
///
/// # Errors
/// When the address cannot be bound.
pub(super) async fn run(args: BaselineArgs) -> Result<ExitCode> {
    let listener = TcpListener::bind(args.addr).await.with_context(|| format!("listen on {}", args.addr))?;
    println!("{}", serde_json::json!({"addr": listener.local_addr()?.to_string(), "pid": std::process::id()}));
    let dir: Arc<Path> = args.dir.into();
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let next = Arc::new(AtomicU64::new(0));
    loop {
        let permit = permits.clone().acquire_owned().await.context("the semaphore is never closed")?;
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted.context("accept")?,
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        };
        stream.set_nodelay(true)?;
        let (dir, next) = (dir.clone(), next.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &dir, &next));
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "connection ended");
            }
            drop(permit);
        });
    }
}

async fn answer(request: Request<Incoming>, dir: &Path, next: &AtomicU64) -> Result<Response<Full<Bytes>>, Infallible> {
    let status = match *request.method() {
        Method::PUT => {
            let path =
                dir.join(format!(".holdfast-baseline-{}-{}", std::process::id(), next.fetch_add(1, Ordering::Relaxed)));
            let written = store(request.into_body(), &path).await;
            // Removed also after a failure; a file that was never made is no concern.
            let _ = tokio::fs::remove_file(&path).await;
            match written {
                Ok(()) => StatusCode::OK,
                Err(error) => {
                    tracing::warn!(%error, "write failed");
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            }
        }
        Method::DELETE => StatusCode::NO_CONTENT,
        _ => StatusCode::METHOD_NOT_ALLOWED,
    };
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    Ok(response)
}

async fn store(mut body: Incoming, path: &PathBuf) -> Result<()> {
    let mut file = tokio::fs::File::create(path).await.context("create the file")?;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("read the body")?.into_data() {
            file.write_all(&data).await.context("write")?;
        }
    }
    file.flush().await.context("write the rest")?;
    file.sync_data().await.context("fdatasync")
}
