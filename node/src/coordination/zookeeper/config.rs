//! How to reach the ensemble.

use std::time::Duration;

use holdfast_actors::ports::coordination::{CoordinationError, CoordinationResult};
use zookeeper_client as zk;

/// Bounds of the session timeout. Shorter ones are lost to a pause of the ensemble's garbage collector.
const SESSION_TIMEOUT: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(120);

/// Name and password of ZooKeeper's digest scheme. Nodes of the cluster's tree are then open to nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct Digest {
    /// The name.
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Digest({}, …)", self.user)
    }
}

/// How to reach the ensemble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZookeeperConfig {
    /// `host:port` of each server, separated by commas.
    pub servers: String,
    /// Where the cluster's tree is; made if it is not there. Each cluster has its own.
    pub chroot: String,
    /// How long the ensemble waits for a node that it does not hear of. The ensemble has bounds of its own.
    pub session_timeout: Duration,
    /// How long one operation may take.
    pub operation_timeout: Duration,
    /// Credentials, if the tree is to be protected.
    pub digest: Option<Digest>,
}

impl ZookeeperConfig {
    /// The defaults: ten seconds for a session, five for an operation, no credentials.
    pub fn new(servers: impl Into<String>, chroot: impl Into<String>) -> Self {
        Self {
            servers: servers.into(),
            chroot: chroot.into(),
            session_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(5),
            digest: None,
        }
    }

    pub(super) fn check(&self) -> CoordinationResult<()> {
        let invalid = |text: String| Err(CoordinationError::Invalid(text));
        let chroot_fine = self.chroot.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'))
        });
        if !chroot_fine {
            return invalid(format!("chroot {:?} is no absolute path below the root", self.chroot));
        }
        if self.servers.is_empty() || self.servers.contains('/') {
            return invalid(format!("servers {:?}: host:port, separated by commas", self.servers));
        }
        if !SESSION_TIMEOUT.contains(&self.session_timeout) {
            return invalid(format!(
                "a session timeout of {:?} is not within {SESSION_TIMEOUT:?}",
                self.session_timeout
            ));
        }
        if self.digest.as_ref().is_some_and(|d| d.user.is_empty() || d.user.contains(':')) {
            return invalid("the digest's user name is empty or contains ':'".into());
        }
        Ok(())
    }

    pub(super) fn acls(&self) -> zk::Acls<'static> {
        if self.digest.is_some() { zk::Acls::creator_all() } else { zk::Acls::anyone_all() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        let good = ZookeeperConfig::new("a:2181,b:2181", "/holdfast/one");
        assert_eq!(good.check(), Ok(()));
        for chroot in ["", "/", "holdfast", "/a//b", "/a/", "/a/../b"] {
            assert!(ZookeeperConfig { chroot: chroot.into(), ..good.clone() }.check().is_err(), "{chroot}");
        }
        assert!(ZookeeperConfig { servers: "a:2181/x".into(), ..good.clone() }.check().is_err());
        assert!(ZookeeperConfig { session_timeout: Duration::from_millis(10), ..good.clone() }.check().is_err());
        let digest = Digest { user: "holdfast".into(), password: "very secret".into() };
        assert!(!format!("{:?}", ZookeeperConfig { digest: Some(digest), ..good }).contains("secret"));
    }
}
