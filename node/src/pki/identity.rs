//! This node's membership of its cluster, and the renewal of its certificate.
//!
//! The certificate is renewed at two thirds of its lifetime, by the node itself, with a fresh key. Connections made
//! from then on show the new one, on either side; those that stand go on. Where the two files of certificate and key do
//! not belong together (a crash came between) or the certificate has expired (the node was off for long), loading makes
//! a new pair: the CA's key is what proves the membership. For the same reason a new pair is used even if it cannot be
//! stored.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use holdfast_protocol::{ClusterId, NodeId};
use rcgen::KeyPair;
use rustls::crypto::ring as provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::ca::{ClusterCa, Facts, Role, Subject, Validity, facts};
use super::files::{self, CLUSTER_DIR, NewFile};
use super::{PkiError, verify};
use crate::telemetry;

const CA_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca.key";
/// What of a membership is the same on all nodes: the CA's certificate, and its key.
pub const AUTHORITY_FILES: [&str; 2] = [CA_FILE, CA_KEY_FILE];
const NODE_FILE: &str = "node.pem";
const NODE_KEY_FILE: &str = "node.key";

/// The longest time between two looks whether the certificate is due. Short, since one that was made while the clock
/// was wrong is refused by the others until it is replaced.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(60);
/// How long it waits after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// How certificates of this node are made.
#[derive(Debug, Clone, Copy)]
pub struct IdentityOptions {
    /// How long one lives.
    pub lifetime: Duration,
}

impl Default for IdentityOptions {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(90 * 24 * 3600) }
    }
}

/// The certificate in use.
#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    made: SystemTime,
    until: SystemTime,
}

impl Current {
    /// Tells metrics until when it is valid.
    fn show(&self) {
        let until = self.until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        telemetry::show_certificate("peer", i64::try_from(until.as_secs()).unwrap_or(i64::MAX));
    }

    fn is_due(&self, now: SystemTime) -> bool {
        let lifetime = self.until.duration_since(self.made).unwrap_or_default();
        // A clock that went back makes it due too: better once too often.
        now < self.made - Duration::from_secs(24 * 3600) || now >= self.made + lifetime / 3 * 2
    }
}

/// This node as a member of its cluster. Cheap to share by [`Arc`].
#[derive(Debug)]
pub struct NodeIdentity {
    ca: ClusterCa,
    node: NodeId,
    dir: PathBuf,
    options: IdentityOptions,
    current: ArcSwap<Current>,
}

/// The cluster that a data directory belongs to, if it belongs to one.
///
/// # Errors
/// When there is a membership that cannot be read.
pub fn cluster_of(data_dir: &Path) -> Result<Option<ClusterId>, PkiError> {
    let dir = data_dir.join(CLUSTER_DIR);
    if !files::is_there(&dir)? {
        return Ok(None);
    }
    Ok(Some(read_ca(&dir)?.cluster()))
}

/// Makes the CA of a new cluster, with `node` as its first node. Durable on return.
///
/// # Errors
/// [`PkiError::AlreadyMember`], [`PkiError::OtherCluster`], [`PkiError::File`].
pub fn init_cluster(data_dir: &Path, node: NodeId, cluster: ClusterId) -> Result<(), PkiError> {
    refuse_member(data_dir, cluster)?;
    let ca = ClusterCa::generate(cluster)?;
    let key = KeyPair::generate()?;
    let certificate = ca.issue(Role::Node(node), &key, Validity::from_now(IdentityOptions::default().lifetime))?;
    files::become_member(data_dir, member_files(&ca, &certificate.pem(), &key.serialize_pem()))
}

/// Gives the node in `data_dir`, of `cluster`, a new CA in place of the one that it has. From its next start on it
/// refuses what the one before signed, and makes itself another certificate. Durable on return. A crash may leave a key
/// that does not belong to the CA's certificate, with which no node starts; the next call puts that right. The
/// directory must be the caller's alone meanwhile.
///
/// # Errors
/// [`PkiError::File`], also where there is no membership; [`PkiError::Certificate`].
pub fn replace_authority(data_dir: &Path, cluster: ClusterId) -> Result<(), PkiError> {
    let (dir, ca) = (data_dir.join(CLUSTER_DIR), ClusterCa::generate(cluster)?);
    files::replace(&dir, &NewFile::text(CA_KEY_FILE, &ca.key_pem()))?;
    files::replace(&dir, &NewFile::text(CA_FILE, ca.certificate_pem()))
}

/// Fails when the data directory belongs to a cluster.
pub(super) fn refuse_member(data_dir: &Path, cluster: ClusterId) -> Result<(), PkiError> {
    match cluster_of(data_dir)? {
        None => Ok(()),
        Some(mine) if mine == cluster => Err(PkiError::AlreadyMember(mine)),
        Some(mine) => Err(PkiError::OtherCluster { mine, theirs: cluster }),
    }
}

/// The files of a membership.
pub(super) fn member_files(ca: &ClusterCa, certificate_pem: &str, key_pem: &str) -> Vec<NewFile> {
    vec![
        NewFile::text(CA_FILE, ca.certificate_pem()),
        NewFile::text(CA_KEY_FILE, &ca.key_pem()),
        NewFile::text(NODE_FILE, certificate_pem),
        NewFile::text(NODE_KEY_FILE, key_pem),
    ]
}

fn read_ca(dir: &Path) -> Result<ClusterCa, PkiError> {
    let (certificate, key) = (files::read_text(dir, CA_FILE, false)?, files::read_text(dir, CA_KEY_FILE, true)?);
    ClusterCa::from_pem(&certificate, &key)
        .map_err(|error| PkiError::Damaged { path: dir.join(CA_FILE), detail: error.to_string() })
}

fn unix(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.max(0) as u64)
}

/// A certificate and its key, ready for TLS, with what the certificate says.
pub(super) fn certified(certificate_pem: &str, key_pem: &str) -> Result<(CertifiedKey, Facts), PkiError> {
    let unusable = |detail: String| PkiError::Certificate(detail);
    let certificate =
        CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|error| unusable(error.to_string()))?;
    let facts = facts(&certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| unusable(error.to_string()))?;
    let certified = CertifiedKey::from_der(vec![certificate], key, &provider::default_provider())
        .map_err(|error| unusable(error.to_string()))?;
    Ok((certified, facts))
}

impl NodeIdentity {
    /// Reads the membership in `data_dir`; `None` when it belongs to no cluster. Call it before the node's secret is
    /// read, since it completes a join that was interrupted. Blocks on files.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn load(data_dir: &Path, node: NodeId, options: IdentityOptions) -> Result<Option<Arc<Self>>, PkiError> {
        let dir = data_dir.join(CLUSTER_DIR);
        if !files::is_there(&dir)? {
            return Ok(None);
        }
        files::settle(data_dir)?;
        let ca = read_ca(&dir)?;
        let current = match read_current(&dir, &ca, node) {
            Ok(current) => current,
            Err(error) => {
                tracing::warn!(%error, "this node's certificate cannot be used, making another");
                make_current(&dir, &ca, node, options)?
            }
        };
        current.show();
        telemetry::show_certificate("authority", facts(ca.certificate())?.not_after_unix_seconds);
        Ok(Some(Arc::new(Self { ca, node, dir, options, current: ArcSwap::from_pointee(current) })))
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.ca.cluster()
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The CA.
    pub fn ca(&self) -> &ClusterCa {
        &self.ca
    }

    /// The certificate that new connections show.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.load().key)
    }

    /// Until when it is valid.
    pub fn valid_until(&self) -> SystemTime {
        self.current.load().until
    }

    /// Renews the certificate now. One that cannot be stored is used all the same, and told of in the log: the next
    /// start makes another. Blocks on files.
    ///
    /// # Errors
    /// [`PkiError`]; the old one stays in use.
    pub fn renew(&self) -> Result<(), PkiError> {
        let current = make_current(&self.dir, &self.ca, self.node, self.options)?;
        current.show();
        self.current.store(Arc::new(current));
        metrics::counter!("holdfast_peer_certificate_renewals_total").increment(1);
        Ok(())
    }

    /// Renews the certificate when it is due, until the future is dropped.
    pub async fn keep_renewed(self: Arc<Self>) {
        loop {
            let mut pause = (self.options.lifetime / 20).min(LOOK_EVERY_MAX);
            if self.current.load().is_due(SystemTime::now()) {
                let identity = Arc::clone(&self);
                let renewed = tokio::task::spawn_blocking(move || identity.renew()).await;
                match renewed {
                    Ok(Ok(())) => tracing::info!("this node's certificate was renewed"),
                    Ok(Err(error)) => {
                        tracing::error!(%error, "this node's certificate cannot be renewed, trying again");
                        pause = pause.min(RETRY_AFTER);
                    }
                    Err(error) => tracing::error!(%error, "the renewal of this node's certificate broke off"),
                }
            }
            tokio::time::sleep(pause).await;
        }
    }
}

fn read_current(dir: &Path, ca: &ClusterCa, node: NodeId) -> Result<Current, PkiError> {
    let certificate = files::read_text(dir, NODE_FILE, false)?;
    let key = files::read_text(dir, NODE_KEY_FILE, true)?;
    let (key, facts) = certified(&certificate, &key)?;
    let expected = Subject { cluster: ca.cluster(), role: Role::Node(node) };
    if facts.subject != expected {
        return Err(PkiError::Certificate(format!("it is for {}, not for {expected}", facts.subject)));
    }
    verify::check_own(ca, &key.cert[0]).map_err(PkiError::Certificate)?;
    // It was backdated by a day when it was made; what counts for the renewal is when it was made.
    let made = unix(facts.not_before_unix_seconds) + Duration::from_secs(24 * 3600);
    Ok(Current { key: Arc::new(key), made, until: unix(facts.not_after_unix_seconds) })
}

fn make_current(dir: &Path, ca: &ClusterCa, node: NodeId, options: IdentityOptions) -> Result<Current, PkiError> {
    let key = KeyPair::generate()?;
    let made = SystemTime::now();
    let certificate_pem = ca.issue(Role::Node(node), &key, Validity::from_now(options.lifetime))?.pem();
    let key_pem = zeroize::Zeroizing::new(key.serialize_pem());
    let stored = files::replace(dir, &NewFile::text(NODE_KEY_FILE, &key_pem))
        .and_then(|()| files::replace(dir, &NewFile::text(NODE_FILE, &certificate_pem)));
    if let Err(error) = stored {
        // It is the authority's key that proves the membership. Without a new certificate a node whose disk stays full
        // would be refused by all others in the end.
        tracing::error!(%error, "this node's new certificate cannot be stored: it is used until the node stops");
    }
    let (key, facts) = certified(&certificate_pem, &key_pem)?;
    Ok(Current { key: Arc::new(key), made, until: unix(facts.not_after_unix_seconds) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeId {
        NodeId::from(1)
    }

    fn member() -> (tempfile::TempDir, Arc<NodeIdentity>) {
        let dir = tempfile::tempdir().unwrap();
        init_cluster(dir.path(), node(), ClusterId([4; 16])).unwrap();
        let identity = NodeIdentity::load(dir.path(), node(), IdentityOptions::default()).unwrap().unwrap();
        (dir, identity)
    }

    #[test]
    fn first_node_belongs_to_the_cluster_it_made() {
        let (dir, identity) = member();
        assert_eq!((identity.cluster(), identity.node()), (ClusterId([4; 16]), node()));
        assert_eq!(cluster_of(dir.path()).unwrap(), Some(ClusterId([4; 16])));
        let again = NodeIdentity::load(dir.path(), node(), IdentityOptions::default()).unwrap().unwrap();
        assert_eq!(again.certified_key().cert, identity.certified_key().cert);
        assert!(!identity.current.load().is_due(SystemTime::now()));
    }

    #[test]
    fn directory_of_another_cluster_is_refused_naming_both() {
        let (dir, _) = member();
        let error = init_cluster(dir.path(), node(), ClusterId([5; 16])).unwrap_err().to_string();
        assert!(error.contains(&ClusterId([4; 16]).to_string()) && error.contains(&ClusterId([5; 16]).to_string()));
        let again = init_cluster(dir.path(), node(), ClusterId([4; 16]));
        assert!(matches!(again, Err(PkiError::AlreadyMember(_))));
    }

    #[test]
    fn certificate_is_due_after_two_thirds_of_its_life() {
        let (_dir, identity) = member();
        let current = identity.current.load();
        let day = Duration::from_secs(24 * 3600);
        assert!(!current.is_due(current.made + day * 59));
        assert!(current.is_due(current.made + day * 61));
    }

    /// One that was made while the clock was wrong is refused by the others until then.
    #[tokio::test(start_paused = true)]
    async fn certificate_that_falls_due_is_replaced_within_minutes() {
        let (_dir, identity) = member();
        let before = identity.certified_key();
        let keeping = tokio::spawn(Arc::clone(&identity).keep_renewed());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(Arc::ptr_eq(&identity.certified_key(), &before), "it was not due yet");
        let until = SystemTime::now();
        let due = Current { key: Arc::clone(&before), made: until - identity.options.lifetime, until };
        identity.current.store(Arc::new(due));
        let replaced = async {
            while Arc::ptr_eq(&identity.certified_key(), &before) {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(600), replaced).await.expect("it is looked at");
        keeping.abort();
    }

    #[test]
    fn certificate_is_renewed_though_it_cannot_be_stored() {
        let (dir, identity) = member();
        let cluster = dir.path().join(CLUSTER_DIR);
        // Something stands in the way of the new files.
        for name in [NODE_KEY_FILE, NODE_FILE] {
            std::fs::create_dir(cluster.join(format!("{name}.new"))).unwrap();
        }
        let before = identity.certified_key();
        identity.renew().unwrap();
        assert_ne!(identity.certified_key().cert, before.cert);
        verify::check_own(identity.ca(), &identity.certified_key().cert[0]).unwrap();

        // Nor does it keep a node from starting.
        std::fs::remove_file(cluster.join(NODE_FILE)).unwrap();
        let again = NodeIdentity::load(dir.path(), node(), IdentityOptions::default()).unwrap().unwrap();
        verify::check_own(again.ca(), &again.certified_key().cert[0]).unwrap();
    }

    #[test]
    fn pair_that_does_not_belong_together_is_made_anew() {
        let (dir, identity) = member();
        let other = KeyPair::generate().unwrap();
        let key = NewFile::text(NODE_KEY_FILE, &other.serialize_pem());
        files::replace(&dir.path().join(CLUSTER_DIR), &key).unwrap();
        let healed = NodeIdentity::load(dir.path(), node(), IdentityOptions::default()).unwrap().unwrap();
        assert_ne!(healed.certified_key().cert, identity.certified_key().cert);
        verify::check_own(healed.ca(), &healed.certified_key().cert[0]).unwrap();
    }

    #[test]
    fn what_the_authority_before_signed_is_refused() {
        let (dir, before) = member();
        replace_authority(dir.path(), before.cluster()).unwrap();
        let after = NodeIdentity::load(dir.path(), node(), IdentityOptions::default()).unwrap().unwrap();
        assert_eq!((after.cluster(), after.node()), (before.cluster(), before.node()));
        let own = |identity: &NodeIdentity| identity.certified_key().cert[0].clone();
        verify::check_own(after.ca(), &own(&after)).unwrap();
        // Nor does the key help that whoever took the files has.
        before.renew().unwrap();
        assert!(verify::check_own(after.ca(), &own(&before)).is_err());
        assert!(verify::check_own(before.ca(), &own(&after)).is_err());
    }

    #[test]
    fn replacing_the_authority_goes_on_after_a_crash() {
        let (dir, before) = member();
        let other = ClusterCa::generate(before.cluster()).unwrap();
        files::replace(&dir.path().join(CLUSTER_DIR), &NewFile::text(CA_KEY_FILE, &other.key_pem())).unwrap();
        let torn = NodeIdentity::load(dir.path(), node(), IdentityOptions::default());
        assert!(matches!(torn, Err(PkiError::Damaged { .. })), "{torn:?}");
        replace_authority(dir.path(), before.cluster()).unwrap();
        let after = NodeIdentity::load(dir.path(), node(), IdentityOptions::default()).unwrap().unwrap();
        assert_ne!(after.ca().certificate(), before.ca().certificate());
    }

    #[test]
    fn where_there_is_no_membership_no_authority_is_made() {
        let dir = tempfile::tempdir().unwrap();
        assert!(replace_authority(dir.path(), ClusterId([4; 16])).is_err());
        assert_eq!(cluster_of(dir.path()).unwrap(), None);
    }

    #[test]
    fn key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let (dir, _) = member();
        let path = dir.path().join(CLUSTER_DIR).join(CA_KEY_FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = NodeIdentity::load(dir.path(), node(), IdentityOptions::default()).unwrap_err();
        assert!(matches!(error, PkiError::TooOpen { .. }), "{error}");
    }
}
