//! The admin API's listener, which answers from the beginning of the start to the end of the stop.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::STOP_STEP_MAX;
use crate::admin::{self, AdminState};

/// The admin API, served. Dropped instead of stopped, it stops too.
pub(super) struct AdminServer {
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl AdminServer {
    /// # Errors
    /// When the address cannot be bound.
    pub(super) async fn start(addr: SocketAddr, state: AdminState) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(addr).await.with_context(|| format!("listen on admin.addr {addr}"))?;
        let addr = listener.local_addr().context("ask for the admin port")?;
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(admin::serve(listener, state, async move { drop(stopped.await) }, STOP_STEP_MAX));
        Ok(Self { addr, stop, task })
    }

    /// Where it is served.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it.
    pub(super) async fn stop(self) {
        // One that ended on its own has nobody to hear it.
        let _ = self.stop.send(());
        drop(self.task.await);
    }
}
