//! The session with the ensemble: connecting, proving that it lives, noticing that it does not.
//!
//! One task owns the session's state. It sends a heartbeat every fifth of the session timeout: a transaction that only
//! checks that the root exists. It has to be a transaction: a server that lost its leader still answers reads and
//! pings, and a leader that was deposed still answers `sync`, while others already count the session's time. What a
//! majority committed is proof that the session lived when the heartbeat was sent.
//!
//! The client library reconnects by itself within the session. When it gives up, or the ensemble says that the session
//! is over, everything that belonged to it is declared lost, and nothing happens until [`Command::Renew`].

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use holdfast_actors::ports::coordination::{CoordinationError, CoordinationResult, Ownership, SessionState};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use zookeeper_client as zk;

use super::mirror::Views;
use super::stored::ROOT;
use super::{Claim, Digest, ZookeeperConfig};

/// How long a try to connect may take before the caller is told to try again.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(10);

/// How long an ensemble to which there is a connection may take to end a session before that is told of.
const LEAVE_QUIET_MAX: Duration = Duration::from_secs(1);

/// What all parts of one participant share.
pub(super) struct Shared {
    pub(super) config: ZookeeperConfig,
    /// Tells this process's registrations from those of another one with the same node id.
    pub(super) claim: Claim,
    /// The present session; `None` when it is over.
    pub(super) current: watch::Sender<Option<zk::Client>>,
    pub(super) state: watch::Sender<SessionState>,
    pub(super) ownership: Ownership,
    pub(super) views: Views,
    /// Leases that are held, by the path of the candidate.
    pub(super) held: Mutex<HashMap<String, watch::Sender<bool>>>,
    /// The participant is gone for good.
    pub(super) closed: CancellationToken,
}

impl Shared {
    pub(super) fn new(config: ZookeeperConfig, claim: Claim) -> Self {
        Self {
            config,
            claim,
            current: watch::Sender::new(None),
            state: watch::Sender::new(SessionState::Expired),
            ownership: Ownership::default(),
            views: Views::default(),
            held: Mutex::default(),
            closed: CancellationToken::new(),
        }
    }

    /// The present session, whether connected or not.
    pub(super) fn client(&self) -> CoordinationResult<zk::Client> {
        let client = self.current.borrow().clone();
        client.filter(|c| !c.state().is_terminated()).ok_or(CoordinationError::SessionExpired)
    }

    /// Declares a lease lost, if it is held.
    pub(super) fn lose_lease(&self, path: &str) {
        if let Some(held) = self.held.lock().remove(path) {
            held.send_replace(false);
        }
    }

    fn set_state(&self, state: SessionState) {
        let changed = self.state.send_if_modified(|present| std::mem::replace(present, state) != state);
        if changed {
            tracing::info!(?state, "coordination session");
            let connected = if state == SessionState::Connected { 1.0 } else { 0.0 };
            metrics::gauge!("holdfast_coordination_connected").set(connected);
        }
    }

    fn begin(&self, client: &zk::Client) {
        self.current.send_replace(Some(client.clone()));
        self.set_state(SessionState::Connected);
    }

    fn end(&self) {
        self.ownership.revoke();
        self.current.send_replace(None);
        for (_, held) in self.held.lock().drain() {
            held.send_replace(false);
        }
        self.set_state(SessionState::Expired);
    }
}

/// What the owner of the session is asked to do.
pub(super) enum Command {
    /// Start a session if there is none.
    Renew(oneshot::Sender<CoordinationResult<()>>),
    /// End the session for good.
    Close(oneshot::Sender<()>),
}

enum End {
    Expired,
    Closed(Option<oneshot::Sender<()>>),
}

/// Opens the first session.
pub(super) async fn first(shared: &Shared) -> CoordinationResult<zk::Client> {
    let client = open(&shared.config).await?;
    prove(shared, &client).await?;
    shared.begin(&client);
    Ok(client)
}

/// Owns the session until the participant is closed or dropped.
pub(super) async fn run(shared: Arc<Shared>, first: zk::Client, mut commands: mpsc::Receiver<Command>) {
    let mut client = first;
    loop {
        // Without this task nobody could renew the session, and the node would be out of its cluster until somebody
        // started it anew.
        let served = AssertUnwindSafe(serve(&shared, &client, &mut commands)).catch_unwind().await;
        let end = served.unwrap_or_else(|_| {
            tracing::error!("the keeper of the coordination session panicked, the session is given up");
            End::Expired
        });
        shared.end();
        match end {
            End::Closed(reply) => {
                shared.closed.cancel();
                leave(client).await;
                if let Some(reply) = reply {
                    // Nobody has to wait for it.
                    reply.send(()).ok();
                }
                return;
            }
            End::Expired => {
                drop(client);
                metrics::counter!("holdfast_coordination_sessions_expired_total").increment(1);
            }
        }
        client = loop {
            match commands.recv().await {
                None => return shared.closed.cancel(),
                Some(Command::Close(reply)) => {
                    shared.closed.cancel();
                    reply.send(()).ok();
                    return;
                }
                Some(Command::Renew(mut reply)) => {
                    let opened = tokio::select! {
                        opened = self::first(&shared) => opened,
                        // Nobody asks any more. A node that stops is not to wait for an ensemble that is away.
                        () = reply.closed() => continue,
                    };
                    match opened {
                        Ok(client) => {
                            reply.send(Ok(())).ok();
                            break client;
                        }
                        Err(error) => drop(reply.send(Err(error))),
                    }
                }
            }
        };
    }
}

/// Ends the session, and waits until the ensemble has said that it is over, as long as the session could last by itself.
/// The library asks for that only when nobody has the client any more, and a process that exits before would be seen by
/// the others until its session lapses.
async fn leave(client: zk::Client) {
    let (mut states, patience) = (client.state_watcher(), client.session_timeout());
    let is_connected = client.state() == zk::SessionState::SyncConnected;
    drop(client);
    let over = async {
        while !states.peek_state().is_terminated() {
            states.changed().await;
        }
    };
    tokio::pin!(over);
    let quiet = if is_connected { patience.min(LEAVE_QUIET_MAX) } else { Duration::ZERO };
    if timeout(quiet, &mut over).await.is_ok() {
        return;
    }
    tracing::warn!("ZooKeeper does not answer: it is waited for some seconds, to be told that this node leaves");
    if timeout(patience.saturating_sub(quiet), over).await.is_err() {
        tracing::warn!(
            "the end of the coordination session was not confirmed: the others see this node until it lapses"
        );
    }
}

type Beat = BoxFuture<'static, (Instant, Result<(), zk::Error>)>;

fn beat(client: &zk::Client, patience: Duration) -> Beat {
    let client = client.clone();
    async move {
        let sent = Instant::now();
        let mut transaction = client.new_multi_writer();
        let result = match transaction.add_check_version(ROOT, -1) {
            Ok(()) => match timeout(patience, transaction.commit()).await {
                Ok(result) => result.map(drop).map_err(zk::Error::from),
                Err(_) => Err(zk::Error::Timeout),
            },
            Err(error) => Err(error),
        };
        (sent, result)
    }
    .boxed()
}

/// Serves one session to its end.
async fn serve(shared: &Shared, client: &zk::Client, commands: &mut mpsc::Receiver<Command>) -> End {
    let session_timeout = client.session_timeout();
    let mut states = client.state_watcher();
    let mut ticks = interval(session_timeout / 5);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut running: Option<Beat> = None;
    loop {
        let fenced = shared.state.borrow().is_fenced();
        tokio::select! {
            _ = states.changed() => {}
            _ = ticks.tick() => {
                if running.is_none() && client.state() == zk::SessionState::SyncConnected {
                    running = Some(beat(client, session_timeout));
                }
            }
            (sent, result) = async { running.as_mut().expect("guarded").await }, if running.is_some() => {
                running = None;
                match result {
                    Ok(()) => {
                        metrics::histogram!("holdfast_coordination_heartbeat_seconds").record(sent.elapsed());
                        shared.ownership.extend(sent, validity(session_timeout));
                    }
                    Err(error) => tracing::debug!(%error, "coordination heartbeat"),
                }
            }
            () = sleep(shared.ownership.remaining()), if !fenced => {}
            command = commands.recv() => match command {
                None => return End::Closed(None),
                Some(Command::Close(reply)) => return End::Closed(Some(reply)),
                Some(Command::Renew(reply)) => drop(reply.send(Ok(()))),
            },
        }
        let connection = client.state();
        if connection.is_terminated() {
            tracing::warn!(state = %connection, "the coordination session is over");
            return End::Expired;
        }
        shared.set_state(match (shared.ownership.is_session_proven(), connection) {
            (false, _) => SessionState::Fenced,
            (true, zk::SessionState::SyncConnected) => SessionState::Connected,
            (true, _) => SessionState::Suspended,
        });
    }
}

/// How long after it was sent a heartbeat proves ownership. The margin covers that a server tells the leader of its
/// clients only every half tick (a session is at least two ticks), and clocks that run at different speeds.
fn validity(session_timeout: Duration) -> Duration {
    session_timeout * 2 / 3
}

async fn prove(shared: &Shared, client: &zk::Client) -> CoordinationResult<()> {
    let session_timeout = client.session_timeout();
    let (sent, result) = beat(client, session_timeout).await;
    result.map_err(|e| refused("first heartbeat", &e))?;
    shared.ownership.extend(sent, validity(session_timeout));
    Ok(())
}

/// Connects, and makes the chroot if it is not there.
async fn open(config: &ZookeeperConfig) -> CoordinationResult<zk::Client> {
    let patience = config.session_timeout.min(CONNECT_TIMEOUT_MAX);
    let late = || CoordinationError::Unavailable(format!("no session with {} in {patience:?}", config.servers));
    let opening = async {
        let mut connector = zk::Client::connector().with_session_timeout(config.session_timeout);
        if let Some(Digest { user, password }) = &config.digest {
            connector = connector.with_auth("digest", format!("{user}:{password}").as_bytes());
        }
        let client = connector.connect(&config.servers).await?;
        if client.check_stat(&config.chroot).await?.is_none() {
            make_chroot(&client, config).await?;
        }
        Ok::<_, zk::Error>(client)
    };
    let client = timeout(patience, opening).await.map_err(|_| late())?.map_err(|e| refused("connect", &e))?;
    client.chroot(config.chroot.clone()).map_err(|_| CoordinationError::Invalid(format!("chroot {}", config.chroot)))
}

/// What lies above the chroot may be shared with others, the chroot itself is the cluster's.
async fn make_chroot(client: &zk::Client, config: &ZookeeperConfig) -> Result<(), zk::Error> {
    let ends = config.chroot.match_indices('/').map(|(i, _)| i).skip(1).chain([config.chroot.len()]);
    for end in ends {
        let acls = if end == config.chroot.len() { config.acls() } else { zk::Acls::anyone_all() };
        match client.create(&config.chroot[..end], b"", &zk::CreateMode::Persistent.with_acls(acls)).await {
            Ok(_) | Err(zk::Error::NodeExists) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The port's view of an error that says that nothing happened.
pub(super) fn refused(what: &str, error: &zk::Error) -> CoordinationError {
    match error {
        zk::Error::SessionExpired | zk::Error::ClientClosed => CoordinationError::SessionExpired,
        zk::Error::NoAuth | zk::Error::AuthFailed | zk::Error::InvalidAcl => {
            CoordinationError::Denied(format!("{what}: {error}"))
        }
        zk::Error::BadArguments(_) | zk::Error::QuotaExceeded => CoordinationError::Invalid(format!("{what}: {error}")),
        _ => CoordinationError::Unavailable(format!("{what}: {error}")),
    }
}

/// Whether an error leaves open what became of a request: everything but a definite answer of a server or a session
/// that is over (requests in flight are answered before the session ends).
pub(super) fn is_open(error: &zk::Error) -> bool {
    use zk::Error as E;
    !matches!(
        error,
        E::NoNode
            | E::NoAuth
            | E::BadVersion
            | E::NoChildrenForEphemerals
            | E::NodeExists
            | E::NotEmpty
            | E::SessionExpired
            | E::InvalidAcl
            | E::AuthFailed
            | E::NotReadOnly
            | E::QuotaExceeded
            | E::Throttled
            | E::BadArguments(_)
            | E::ClientClosed
            | E::RuntimeInconsistent
            | E::Unimplemented
    )
}

/// Waits until the session is connected. False: it is over.
pub(super) async fn connected(client: &zk::Client) -> bool {
    let mut states = client.state_watcher();
    loop {
        let state = client.state();
        if state == zk::SessionState::SyncConnected {
            return true;
        }
        if state.is_terminated() {
            return false;
        }
        // The watcher may have consumed the change that is looked for: look again now and then.
        drop(timeout(Duration::from_millis(100), states.changed()).await);
    }
}
