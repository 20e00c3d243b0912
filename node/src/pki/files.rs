//! Private files, written so that a crash leaves them whole or not there.
//!
//! A membership is several files. They are written into `cluster.new` and made durable there; the rename to `cluster`
//! is the moment at which the node belongs to the cluster. The cluster's secret travels in the same directory and is
//! put in its place beside it *afterwards*, by [`settle`], which every start runs first: a crash in between is made
//! good by it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::PkiError;
use crate::secret_file;

/// The directory of the membership.
pub const CLUSTER_DIR: &str = "cluster";
const STAGED_DIR: &str = "cluster.new";
/// The secret under which keys' secrets are sealed, in the data directory; on its way there, in the membership.
pub const SECRET_FILE: &str = "node.secret";
/// A secret that a join replaced. Nothing reads it; what was sealed under it belonged to the node before it joined.
const REPLACED_SECRET_FILE: &str = "node.secret.before-join";
/// The longest file that is read.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A file to be written.
#[derive(Clone)]
pub struct NewFile {
    /// Its name in the directory.
    pub name: &'static str,
    /// Its content.
    pub content: Zeroizing<Vec<u8>>,
}

impl NewFile {
    /// A file of text.
    pub fn text(name: &'static str, text: &str) -> Self {
        Self { name, content: Zeroizing::new(text.as_bytes().to_vec()) }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> PkiError + '_ {
    move |source| PkiError::File { path: path.to_owned(), source }
}

/// Whether there is anything at `path`. A disk that cannot be read must not pass for one without a membership.
pub(super) fn is_there(path: &Path) -> Result<bool, PkiError> {
    path.try_exists().map_err(at(path))
}

fn sync_dir(dir: &Path) -> Result<(), PkiError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at(dir))
}

fn write_new(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    let write = || {
        // One that an attempt left may have got another mode since, as from a backup.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(at(path))
}

/// Replaces one file; durable on return.
///
/// # Errors
/// [`PkiError::File`].
pub fn replace(dir: &Path, file: &NewFile) -> Result<(), PkiError> {
    let (path, temporary) = (dir.join(file.name), dir.join(format!("{}.new", file.name)));
    write_new(&temporary, &file.content)?;
    fs::rename(&temporary, &path).map_err(at(&path))?;
    sync_dir(dir)
}

/// One step of becoming a member. A crash may come between any two.
pub(super) enum Step {
    /// Clears what an earlier attempt left, and makes the directory.
    Stage,
    /// Writes one file there.
    Write(NewFile),
    /// Makes the directory itself durable.
    SyncStaged,
    /// The node belongs to the cluster.
    Commit,
    /// Puts the secret in its place.
    Settle,
}

/// The steps of becoming a member with these files.
pub(super) fn membership_steps(files: Vec<NewFile>) -> Vec<Step> {
    let mut steps = vec![Step::Stage];
    steps.extend(files.into_iter().map(Step::Write));
    steps.extend([Step::SyncStaged, Step::Commit, Step::Settle]);
    steps
}

impl Step {
    pub(super) fn run(&self, data_dir: &Path) -> Result<(), PkiError> {
        let (staged, cluster) = (data_dir.join(STAGED_DIR), data_dir.join(CLUSTER_DIR));
        match self {
            Self::Stage => {
                match fs::remove_dir_all(&staged) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&staged)(error)),
                    _ => {}
                }
                DirBuilder::new().recursive(true).mode(0o700).create(&staged).map_err(at(&staged))
            }
            Self::Write(file) => write_new(&staged.join(file.name), &file.content),
            Self::SyncStaged => sync_dir(&staged),
            Self::Commit => {
                // Fails where a membership is already: a directory that is not empty is not replaced.
                fs::rename(&staged, &cluster).map_err(at(&cluster))?;
                sync_dir(data_dir)
            }
            Self::Settle => settle(data_dir),
        }
    }
}

/// Makes the node a member with these files; durable on return.
///
/// # Errors
/// [`PkiError::File`]; the node is then a member or not, as [`super::cluster_of`] says.
pub(super) fn become_member(data_dir: &Path, files: Vec<NewFile>) -> Result<(), PkiError> {
    membership_steps(files).iter().try_for_each(|step| step.run(data_dir))
}

/// Puts the cluster's secret in its place if a join was interrupted before it did. To be called before the secret is
/// read.
///
/// # Errors
/// [`PkiError::File`].
pub fn settle(data_dir: &Path) -> Result<(), PkiError> {
    let (brought, place) = (data_dir.join(CLUSTER_DIR).join(SECRET_FILE), data_dir.join(SECRET_FILE));
    if !is_there(&brought)? {
        return Ok(());
    }
    match fs::hard_link(&place, data_dir.join(REPLACED_SECRET_FILE)) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {
            return Err(at(&place)(error));
        }
        _ => {}
    }
    fs::rename(&brought, &place).map_err(at(&place))?;
    sync_dir(data_dir)?;
    sync_dir(&data_dir.join(CLUSTER_DIR))
}

/// Reads a small file; `None` when there is none.
///
/// # Errors
/// [`PkiError::File`], [`PkiError::TooOpen`] for a private one that others may read.
pub fn read(path: &Path, private: bool) -> Result<Option<Zeroizing<Vec<u8>>>, PkiError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(path)(error)),
    };
    if private {
        secret_file::check(path, &file.metadata().map_err(at(path))?)?;
    }
    let mut content = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize));
    file.take(FILE_BYTES_MAX).read_to_end(&mut content).map_err(at(path))?;
    Ok(Some(content))
}

/// Reads a text file that must be there.
///
/// # Errors
/// As [`read`], and [`PkiError::Damaged`].
pub fn read_text(dir: &Path, name: &str, private: bool) -> Result<Zeroizing<String>, PkiError> {
    let path: PathBuf = dir.join(name);
    let damaged = |detail: &str| PkiError::Damaged { path: path.clone(), detail: detail.to_owned() };
    let content = read(&path, private)?.ok_or_else(|| damaged("it is missing"))?;
    let text = std::str::from_utf8(&content).map_err(|_| damaged("it is no text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::{ClusterId, NodeId};
    use rcgen::KeyPair;

    use super::super::ca::{ClusterCa, Role, Validity};
    use super::super::identity::{IdentityOptions, NodeIdentity, cluster_of, member_files};
    use super::*;

    fn new_files(node: NodeId) -> Vec<NewFile> {
        let ca = ClusterCa::generate(ClusterId([1; 16])).unwrap();
        let key = KeyPair::generate().unwrap();
        let validity = Validity::from_now(std::time::Duration::from_secs(3600));
        let certificate = ca.issue(Role::Node(node), &key, validity).unwrap();
        let mut files = member_files(&ca, &certificate.pem(), &key.serialize_pem());
        files.push(NewFile { name: SECRET_FILE, content: Zeroizing::new(vec![7; 32]) });
        files
    }

    #[test]
    fn crash_after_any_step_of_a_join_leaves_a_member_or_none() {
        let node = NodeId::from(1);
        let steps = membership_steps(new_files(node));
        let commit = steps.iter().position(|step| matches!(step, Step::Commit)).unwrap();
        for done in 0..=steps.len() {
            let dir = tempfile::tempdir().unwrap();
            write_new(&dir.path().join(SECRET_FILE), &[1; 32]).unwrap();
            steps[..done].iter().for_each(|step| step.run(dir.path()).unwrap());

            // What a start finds.
            let identity = NodeIdentity::load(dir.path(), node, IdentityOptions::default()).unwrap();
            let secret = fs::read(dir.path().join(SECRET_FILE)).unwrap();
            if done <= commit {
                assert!(identity.is_none() && secret == [1; 32], "after {done} steps");
                assert_eq!(cluster_of(dir.path()).unwrap(), None);
                // And a second attempt succeeds.
                become_member(dir.path(), new_files(node)).unwrap();
            } else {
                assert_eq!(identity.unwrap().cluster(), ClusterId([1; 16]), "after {done} steps");
                assert_eq!(secret, [7; 32], "after {done} steps");
                assert_eq!(fs::read(dir.path().join(REPLACED_SECRET_FILE)).unwrap(), [1; 32]);
            }
        }
    }

    #[test]
    fn torn_file_of_a_staged_membership_is_never_read() {
        let (dir, node) = (tempfile::tempdir().unwrap(), NodeId::from(1));
        let steps = membership_steps(new_files(node));
        steps[..2].iter().for_each(|step| step.run(dir.path()).unwrap());
        fs::write(dir.path().join(STAGED_DIR).join("ca.pem"), "-----BEGIN").unwrap();
        assert!(NodeIdentity::load(dir.path(), node, IdentityOptions::default()).unwrap().is_none());
        become_member(dir.path(), new_files(node)).unwrap();
        assert!(NodeIdentity::load(dir.path(), node, IdentityOptions::default()).unwrap().is_some());
    }

    #[test]
    fn file_that_others_can_read_is_not_written_into() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("node.key.new");
        fs::write(&left, "left by an attempt").unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).unwrap();
        replace(dir.path(), &NewFile::text("node.key", "secret")).unwrap();
        let mode = fs::metadata(dir.path().join("node.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn membership_is_not_replaced() {
        let (dir, node) = (tempfile::tempdir().unwrap(), NodeId::from(1));
        become_member(dir.path(), new_files(node)).unwrap();
        assert!(become_member(dir.path(), new_files(node)).is_err());
    }
}
