//! Leases: one holder at a time, known by a token that only rises.

use std::collections::BTreeMap;
use std::fmt;

use futures::future::BoxFuture;
use holdfast_protocol::NodeId;
use tokio::sync::watch;

use super::{CoordinationError, Ownership};

/// The name of the lease that makes its holder the controller.
pub const CONTROLLER: &str = "controller";

/// The name of the lease of a tool that fills the metadata of a cluster whose nodes are stopped. While it is held no
/// node registers: it would delete the chunks of what is not in the metadata yet.
pub const FILLING: &str = "filling";

/// The longest name of a lease, in bytes.
const NAME_BYTES_MAX: usize = 100;

/// The name of a lease: lower-case letters, digits and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseName(String);

impl LeaseName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`CoordinationError::Invalid`].
    pub fn new(name: impl Into<String>) -> Result<Self, CoordinationError> {
        let name = name.into();
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(fine) {
            return Err(CoordinationError::Invalid(format!("{name:?} is no name of a lease")));
        }
        Ok(Self(name))
    }

    /// The lease of the controller.
    pub fn controller() -> Self {
        Self(CONTROLLER.to_owned())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LeaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Tells the grants of a lease apart: a later grant has a higher one. Whoever is asked to act under a lease remembers
/// the highest token it saw and refuses lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(pub u64);

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The proof of a grant that a guarded write carries to where tokens are remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// Of which lease.
    pub name: LeaseName,
    /// Which grant.
    pub token: FencingToken,
}

/// Who holds a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseHolder {
    /// Which node.
    pub node: NodeId,
    /// Under which token.
    pub token: FencingToken,
}

/// Who holds which lease, by name. Leases that nobody holds are left out.
pub type LeaseTable = BTreeMap<String, LeaseHolder>;

/// Gives a lease back.
pub type Release = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send + Sync>;

/// A lease that this node was granted. Dropping it gives it back in the background.
pub struct Lease {
    name: LeaseName,
    token: FencingToken,
    key: String,
    held: watch::Receiver<bool>,
    ownership: Ownership,
    release: Option<Release>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} {} held={})", self.name, self.token, self.is_held())
    }
}

impl Lease {
    /// For adapters. `key` is what the adapter knows this grant by; `held` turns false when it is lost.
    pub fn new(
        name: LeaseName,
        token: FencingToken,
        key: String,
        held: watch::Receiver<bool>,
        ownership: Ownership,
        release: Release,
    ) -> Self {
        Self { name, token, key, held, ownership, release: Some(release) }
    }

    /// Its name.
    pub fn name(&self) -> &LeaseName {
        &self.name
    }

    /// To be carried by everything that is done under it.
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// What a write carries that this lease guards.
    pub fn fence(&self) -> Fence {
        Fence { name: self.name.clone(), token: self.token }
    }

    /// What the adapter knows this grant by.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether this node may act under it right now: not lost, and ownership proven.
    pub fn is_held(&self) -> bool {
        *self.held.borrow() && self.ownership.is_proven()
    }

    /// Waits until it is lost for good. While the session is fenced but not over it is not: ask [`Lease::is_held`] too.
    pub async fn lost(&self) {
        self.watch_lost().await;
    }

    /// [`Lease::lost`], for who does not keep the lease.
    pub fn watch_lost(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut held = self.held.clone();
        // An adapter that is gone holds nothing either.
        async move { drop(held.wait_for(|held| !held).await) }
    }

    /// Gives it back and waits until the service knows. Who waits no longer does not stop it: a lease that is half
    /// given back would be nobody's, and kept from everybody, for as long as the session lives.
    pub async fn release(mut self) {
        if let Some(release) = self.release.take() {
            drop(tokio::spawn(release()).await);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Without a runtime nobody can tell the service; the lease then ends with the session.
        if let (Some(release), Ok(runtime)) = (self.release.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(release());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_given_back_though_nobody_waits_to_the_end() {
        let (answer, answered) = oneshot::channel::<()>();
        let (held, mut shown) = watch::channel(true);
        let release: Release = Box::new(move || -> BoxFuture<'static, ()> {
            Box::pin(async move {
                drop(answered.await);
                held.send_replace(false);
            })
        });
        let (name, key) = (LeaseName::controller(), "a candidate".to_owned());
        let lease = Lease::new(name, FencingToken(1), key, shown.clone(), Ownership::default(), release);
        let waited = timeout(Duration::from_secs(5), lease.release()).await;
        assert!(waited.is_err(), "the service does not answer");
        assert!(answer.send(()).is_ok(), "it was stopped with who waited for it");
        let given_back = timeout(Duration::from_secs(30), shown.wait_for(|held| !held)).await;
        assert!(given_back.is_ok_and(|shown| shown.is_ok()));
    }
}
