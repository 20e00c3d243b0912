//! Puts on their way.
//!
//! The port allows a caller to drop a `put` at any await, and promises that `delete` of its name then removes whatever
//! it left. A request whose last byte has left the machine may still take effect after that, and so may a system call
//! that runs on another thread. So a put runs as a task of its own: dropping the caller's future makes the task's body
//! end with an error, which takes the same way out as any other failed body, and the task holds its name until it is
//! through. Deletions and repeated puts of that name wait for it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use holdfast_actors::flow::key_locks::{KeyLock, KeyLocks};
use holdfast_actors::ports::tiers::{ColdBody, PieceName, TierError, TierResult};
use tokio_util::sync::CancellationToken;

/// Holds a name. Clones go to the threads that work for the put; the name is free when the last of them is gone.
pub(crate) type Claim = Arc<KeyLock<PieceName>>;

/// Which names are being worked on by this instance.
pub(crate) struct InFlight {
    names: Arc<KeyLocks<PieceName>>,
    /// How long one waits for another who has the name.
    patience: Duration,
}

impl InFlight {
    pub(crate) fn new(patience: Duration) -> Self {
        Self { names: KeyLocks::new(), patience }
    }

    /// Waits until nobody of this instance works under the name.
    pub(crate) async fn claim(&self, name: &PieceName) -> TierResult<Claim> {
        match self.names.lock_within(name.clone(), self.patience).await {
            Some(claim) => Ok(Arc::new(claim)),
            None => Err(TierError::Unavailable(format!("an earlier put of {name} has not ended yet"))),
        }
    }

    /// Runs the work of a put, of which dropping this future drops only the source.
    pub(crate) async fn put<W, F>(&self, name: &PieceName, size_bytes: u64, body: ColdBody, work: W) -> TierResult<()>
    where
        W: FnOnce(PutBody, Claim) -> F + Send,
        F: Future<Output = TierResult<()>> + Send + 'static,
    {
        let claim = self.claim(name).await?;
        let stop = CancellationToken::new();
        let body = PutBody { body, size_bytes, left_bytes: size_bytes, rest: Bytes::new(), stop: stop.clone() };
        let task = tokio::spawn(work(body, claim));
        let _dropped = stop.drop_guard();
        match task.await {
            Ok(result) => result,
            Err(ended) => Err(TierError::Unavailable(format!("the put of {name} ended early: {ended}"))),
        }
    }
}

/// The source of a put, which gives exactly as many bytes as were announced, or an error.
pub(crate) struct PutBody {
    body: ColdBody,
    size_bytes: u64,
    left_bytes: u64,
    /// What came and was not asked for yet.
    rest: Bytes,
    /// The caller is gone.
    stop: CancellationToken,
}

impl PutBody {
    /// The next bytes, 1 to `bytes_max` of them; `None` after the last, when there are neither fewer nor more than
    /// announced.
    pub(crate) async fn next(&mut self, bytes_max: usize) -> TierResult<Option<Bytes>> {
        while self.rest.is_empty() {
            let step = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(TierError::Invalid("the put was given up by its caller".into())),
                step = self.body.next() => step,
            };
            self.rest = match step {
                Some(Ok(bytes)) => bytes,
                Some(Err(error)) => {
                    return Err(TierError::Invalid(format!("the source of the piece failed: {error}")));
                }
                None if self.left_bytes == 0 => return Ok(None),
                None => {
                    let missing = format!("{} of {} bytes are missing", self.left_bytes, self.size_bytes);
                    return Err(TierError::Invalid(format!("the body ended early: {missing}")));
                }
            };
            self.left_bytes = self.left_bytes.checked_sub(self.rest.len() as u64).ok_or_else(|| {
                TierError::Invalid(format!("the body has more than the {} bytes announced", self.size_bytes))
            })?;
        }
        Ok(Some(self.rest.split_to(self.rest.len().min(bytes_max))))
    }
}

/// A piece has at least a byte and at most as many as the tier takes.
pub(crate) fn size_is_allowed(size_bytes: u64, size_bytes_max: u64) -> TierResult<()> {
    if (1..=size_bytes_max).contains(&size_bytes) {
        return Ok(());
    }
    Err(TierError::Invalid(format!("a piece of this tier has 1 to {size_bytes_max} bytes, not {size_bytes}")))
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, stream};
    use tokio::sync::oneshot;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn name(text: &str) -> PieceName {
        PieceName::new(text).unwrap()
    }

    #[tokio::test]
    async fn name_is_held_until_the_work_of_a_dropped_put_is_through() {
        let in_flight = InFlight::new(PATIENCE);
        let (hungry, asked) = oneshot::channel();
        let (go, may_go) = oneshot::channel::<()>();
        let a = name("a");
        let put = in_flight.put(&a, 10, stream::pending().boxed(), |mut body, claim| async move {
            hungry.send(()).unwrap();
            let given_up = body.next(10).await;
            assert!(matches!(given_up, Err(TierError::Invalid(_))), "{given_up:?}");
            may_go.await.unwrap();
            drop(claim);
            Ok(())
        });
        tokio::select! {
            result = put => panic!("{result:?}"),
            asked = asked => asked.unwrap(),
        }
        assert!(in_flight.claim(&name("a")).now_or_never().is_none(), "the work goes on");
        assert!(in_flight.claim(&name("b")).now_or_never().is_some(), "other names are free");
        go.send(()).unwrap();
        in_flight.claim(&name("a")).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_name_has_a_limit() {
        let in_flight = InFlight::new(PATIENCE);
        let _held = in_flight.claim(&name("a")).await.unwrap();
        assert!(matches!(in_flight.claim(&name("a")).await, Err(TierError::Unavailable(_))));
    }

    #[tokio::test]
    async fn body_is_cut_to_what_is_asked_for() {
        let steps = [&b""[..], b"abc", b"", b"defg"].map(|step| Ok(Bytes::from_static(step)));
        let mut body = PutBody {
            body: stream::iter(steps).boxed(),
            size_bytes: 7,
            left_bytes: 7,
            rest: Bytes::new(),
            stop: CancellationToken::new(),
        };
        for expected in [&b"ab"[..], b"c", b"de", b"fg"] {
            assert_eq!(body.next(2).await.unwrap().unwrap(), expected);
        }
        assert!(body.next(2).await.unwrap().is_none());
    }
}
