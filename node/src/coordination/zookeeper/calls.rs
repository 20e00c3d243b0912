//! Reads and transactions with deadlines, and finding out what became of a write whose answer was lost.
//!
//! Requests of a session are carried out in the order in which they were sent, and one that was in flight when the
//! connection broke is not sent again. So a read after `sync` on the same session shows whether such a write took
//! place, also when it was given up for being late and is still queued before the read.

use std::time::Duration;

use holdfast_actors::ports::coordination::{CoordinationError, CoordinationResult, Version};
use tokio::time::{Instant, sleep, timeout_at};
use zookeeper_client as zk;

use super::session::{Shared, connected, is_open, refused};
use super::stored::{Encoded, ROOT, nonce_of};

/// Pause before something is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Values that are read by one request, of which there may be thousands, and which many nodes read at the same time.
pub(super) const READS_TOGETHER: usize = 64;

/// What is stored somewhere, if something is.
pub(super) type Stored = Option<(Vec<u8>, zk::Stat)>;

/// What is stored at each of these paths, at most [`READS_TOGETHER`], by one request.
pub(super) async fn read_together(client: &zk::Client, paths: &[String]) -> Result<Vec<Stored>, zk::Error> {
    let mut reader = client.new_multi_reader();
    for path in paths {
        reader.add_get_data(path)?;
    }
    let results = reader.commit().await?;
    if results.len() != paths.len() {
        return Err(zk::Error::UnexpectedError(format!("{} answers to {} reads", results.len(), paths.len())));
    }
    let stored = |result: zk::MultiReadResult| match result {
        zk::MultiReadResult::Data { data, stat } => Ok(Some((data, stat))),
        zk::MultiReadResult::Error { err: zk::Error::NoNode } => Ok(None),
        zk::MultiReadResult::Error { err } => Err(err),
        other => Err(zk::Error::UnexpectedError(format!("{other:?} in answer to a read"))),
    };
    results.into_iter().map(stored).collect()
}

/// What became of a transaction.
pub(super) enum Outcome {
    Done,
    /// Nothing happened, because of the operation at this place.
    Refused(usize, zk::Error),
    /// It happened or not.
    Open(String),
}

impl Shared {
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.config.operation_timeout
    }

    /// The session's client once it is connected. Requests are not queued on a broken connection: they would be carried
    /// out when their callers are long gone.
    pub(super) async fn ready(&self, deadline: Instant) -> CoordinationResult<zk::Client> {
        let client = self.client()?;
        match timeout_at(deadline, connected(&client)).await {
            Ok(true) => Ok(client),
            Ok(false) => Err(CoordinationError::SessionExpired),
            Err(_) => Err(CoordinationError::Unavailable("no connection".into())),
        }
    }

    /// Reads, again after connection losses until the deadline. `Ok(None)` when there is no such node.
    pub(super) async fn read<T, F>(
        &self,
        deadline: Instant,
        what: &str,
        call: impl Fn(zk::Client) -> F,
    ) -> CoordinationResult<Option<T>>
    where
        F: Future<Output = Result<T, zk::Error>>,
    {
        loop {
            let client = self.ready(deadline).await?;
            let error = match timeout_at(deadline, call(client)).await {
                Ok(Ok(value)) => return Ok(Some(value)),
                Ok(Err(zk::Error::NoNode)) => return Ok(None),
                Ok(Err(error)) => error,
                Err(_) => return Err(CoordinationError::Unavailable(format!("{what}: no answer in time"))),
            };
            if !is_open(&error) || Instant::now() >= deadline {
                return Err(refused(what, &error));
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// The data at `path` after everything that was written before this call by anybody.
    pub(super) async fn latest(
        &self,
        deadline: Instant,
        path: &str,
    ) -> CoordinationResult<Option<(Vec<u8>, zk::Stat)>> {
        self.read(deadline, path, |client| async move {
            client.sync(ROOT).await?;
            client.get_data(path).await
        })
        .await
    }

    /// One transaction, tried once.
    pub(super) async fn transact(
        &self,
        deadline: Instant,
        build: impl Fn(&mut zk::MultiWriter<'_>) -> Result<(), zk::Error>,
    ) -> CoordinationResult<Outcome> {
        let client = self.ready(deadline).await?;
        let mut writer = client.new_multi_writer();
        build(&mut writer).map_err(|e| refused("transaction", &e))?;
        let error = match timeout_at(deadline, writer.commit()).await {
            Ok(Ok(_)) => return Ok(Outcome::Done),
            Ok(Err(zk::MultiWriteError::OperationFailed { index, source })) => {
                return Ok(Outcome::Refused(index, source));
            }
            Ok(Err(zk::MultiWriteError::RequestFailed { source })) => source,
            Err(_) => return Ok(Outcome::Open("no answer in time".into())),
        };
        if is_open(&error) { Ok(Outcome::Open(error.to_string())) } else { Err(refused("transaction", &error)) }
    }

    /// Writes `value` to `path` if it is still at version `expected` (`None`: if there is nothing yet) and, in the same
    /// step, `guard` still exists. Returns `Ok(None)` when the guard is gone.
    pub(super) async fn compare_and_set(
        &self,
        path: &str,
        what: &str,
        expected: Option<Version>,
        value: &Encoded,
        guard: Option<&str>,
    ) -> CoordinationResult<Option<Version>> {
        let deadline = self.deadline();
        let conflict = || CoordinationError::Conflict(what.to_owned());
        let acls = self.config.acls();
        loop {
            let outcome = self
                .transact(deadline, |writer| {
                    if let Some(guard) = guard {
                        writer.add_check_version(guard, -1)?;
                    }
                    match expected {
                        Some(Version(version)) => writer.add_set_data(path, &value.bytes, Some(version)),
                        None => writer.add_create(path, &value.bytes, &zk::CreateMode::Persistent.with_acls(acls)),
                    }
                })
                .await?;
            let reason = match outcome {
                Outcome::Done => return Ok(Some(Version(expected.map_or(0, |v| v.0 + 1)))),
                Outcome::Refused(0, zk::Error::NoNode) if guard.is_some() => return Ok(None),
                Outcome::Refused(_, zk::Error::BadVersion | zk::Error::NodeExists) => return Err(conflict()),
                Outcome::Refused(_, zk::Error::NoNode) if expected.is_some() => return Err(conflict()),
                Outcome::Refused(_, zk::Error::NoNode) => return Err(CoordinationError::NotFound("cluster".into())),
                Outcome::Refused(_, error) => return Err(refused(what, &error)),
                Outcome::Open(reason) => reason,
            };
            tracing::debug!(path, reason, "finding out what became of a coordination write");
            let unknown = |why: &dyn std::fmt::Display| CoordinationError::Unknown(format!("{what}: {why}"));
            // Another operation's time: the write has used up its own waiting.
            let found = self.latest(self.deadline(), path).await.map_err(|e| unknown(&e))?;
            let ours = Version(expected.map_or(0, |v| v.0 + 1));
            match found {
                Some((bytes, stat)) if Version(stat.version) == ours => {
                    let written = nonce_of(&bytes).is_some_and(|n| n == value.nonce);
                    return if written { Ok(Some(ours)) } else { Err(conflict()) };
                }
                // Somebody wrote after the one that took this version, who may have been us.
                Some((_, stat)) if Some(Version(stat.version)) != expected => return Err(unknown(&reason)),
                None if expected.is_some() => return Err(conflict()),
                // It did not happen.
                _ if Instant::now() < deadline => sleep(RETRY_PAUSE).await,
                _ => return Err(CoordinationError::Unavailable(format!("{what}: {reason}"))),
            }
        }
    }
}
