//! The data directory: made, locked and identified before anything opens a file in it.
//!
//! | path | what |
//! |---|---|
//! | `node.lock` | held with `flock` while a process uses the directory |
//! | `node.id` | this node's identity, 32 hexadecimal digits |
//! | `cluster.id` | the cluster that the node belongs to, written once when it is made or joined |
//! | `node.secret` | the key that seals secrets, mode 0600 |
//! | `admin.token` | bearer token of the admin API, mode 0600 |
//! | `metadata.sqlite` | metadata |
//! | `metadata.unfinished` | there while a tool fills the metadata: no node starts with half of them |
//! | `node.processes` | under which names processes registered here ([`super::predecessors`]), mode 0600 |
//! | `disks.known` | the directories that were disks of the node ([`super::known_disks`]) |
//! | `disks/0` | the first disk, unless the configuration names others |

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use holdfast_protocol::{ClusterId, NodeId};
use rustix::fs::{FlockOperation, flock};

/// Says that a tool which fills the metadata has not come to its end.
const UNFINISHED: &str = "metadata.unfinished";

/// Another process has the data directory.
#[derive(Debug, thiserror::Error)]
#[error("data directory {} is in use by another process: stop it, or choose another directory", .0.display())]
pub struct InUse(PathBuf);

/// A data directory that this process has to itself.
pub(crate) struct DataDir {
    path: PathBuf,
    id: [u8; 16],
    lock: File,
}

impl DataDir {
    /// Takes `path`, making it if it does not exist.
    ///
    /// # Errors
    /// When another process has it, or it cannot be written.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("make data directory {}", path.display()))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("node.lock"))
            .with_context(|| format!("open the lock of data directory {}", path.display()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(InUse(path.to_owned()).into()),
            Err(error) => return Err(error).with_context(|| format!("lock data directory {}", path.display())),
        }
        let id = read_or_make_id(path)?;
        Ok(Self { path: path.to_owned(), id, lock })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file whose lock keeps other processes out.
    pub(super) fn lock(&self) -> &File {
        &self.lock
    }

    /// A file in the directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The node's identity.
    pub(crate) fn id(&self) -> [u8; 16] {
        self.id
    }

    /// The identity by which the nodes of a cluster know each other: the first half.
    pub(crate) fn node_id(&self) -> NodeId {
        let mut short = [0; 8];
        short.copy_from_slice(&self.id[..8]);
        NodeId(short)
    }

    /// The cluster that the node belongs to; `None` for one that runs alone.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub(crate) fn cluster_id(&self) -> anyhow::Result<Option<ClusterId>> {
        let path = self.file("cluster.id");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().parse().with_context(|| format!("read {}", path.display()))?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Makes the node one of `cluster`, for good.
    ///
    /// # Errors
    /// When it belongs to another one; when the file cannot be written.
    pub(crate) fn set_cluster_id(&self, cluster: ClusterId) -> anyhow::Result<()> {
        match self.cluster_id()? {
            Some(found) if found == cluster => Ok(()),
            Some(found) => bail!("data directory {} belongs to cluster {found}, not to {cluster}", self.path.display()),
            None => self.write("cluster.id", format!("{cluster}\n").as_bytes()),
        }
    }

    /// A tool begins to fill the metadata. Until [`Self::end_filling`] no node starts here: it would take the chunks of
    /// all that is not in them yet for left over, and delete them.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub(crate) fn begin_filling(&self) -> anyhow::Result<()> {
        self.write(UNFINISHED, b"")
    }

    /// Everything is in the metadata, whoever began to fill them.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub(crate) fn end_filling(&self) -> anyhow::Result<()> {
        let path = self.file(UNFINISHED);
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| File::open(&self.path)?.sync_all()),
        };
        removed.with_context(|| format!("remove {}", path.display()))
    }

    /// Refuses metadata that a tool has filled in part.
    ///
    /// # Errors
    /// When they are.
    pub(crate) fn refuse_unfinished(&self) -> anyhow::Result<()> {
        let path = self.file(UNFINISHED);
        if !path.try_exists().with_context(|| format!("look for {}", path.display()))? {
            return Ok(());
        }
        bail!(
            "restoring or rebuilding the metadata of this node did not come to its end, and chunks of what is not in them would be \
             deleted: restore again into new metadata, or rebuild again with --add (if they are whole all the same, remove {})",
            path.display()
        )
    }

    /// Writes a small file of mode 0600 so that after a crash it is there whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.file(name);
        write_durably(&self.path, &path, bytes).with_context(|| format!("write {}", path.display()))
    }
}

fn read_or_make_id(dir: &Path) -> anyhow::Result<[u8; 16]> {
    let path = dir.join("node.id");
    let mut id = [0; 16];
    match fs::read_to_string(&path) {
        Ok(text) => {
            hex::decode_to_slice(text.trim(), &mut id)
                .with_context(|| format!("{} does not hold 32 hexadecimal digits", path.display()))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            id = rand::random();
            write_durably(dir, &path, format!("{}\n", hex::encode(id)).as_bytes())
                .with_context(|| format!("write {}", path.display()))?;
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    }
    Ok(id)
}

/// Writes a small file of mode 0600 so that after a crash it is there whole or not at all.
fn write_durably(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    // One that a crash left may have got another mode since, as from a backup.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
impl DataDir {
    /// Takes a directory that this process had a moment ago. Another test may be starting a program meanwhile: until
    /// that runs, the child has a copy of the lock.
    pub(super) fn reopen(path: &Path) -> Self {
        let deadline = std::time::Instant::now() + holdfast_actors::wait::PATIENCE;
        loop {
            match Self::open(path) {
                Ok(data_dir) => return data_dir,
                Err(error) => {
                    assert!(error.is::<InUse>() && std::time::Instant::now() < deadline, "{error:#}");
                }
            }
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_directory_has_one_owner_and_keeps_its_identity() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(&dir.path().join("data")).unwrap();
        let error = DataDir::open(&dir.path().join("data")).err().unwrap();
        assert!(error.to_string().contains("in use by another process"), "{error}");
        let id = first.id();
        drop(first);
        assert_eq!(DataDir::reopen(&dir.path().join("data")).id(), id);
    }

    #[test]
    fn a_node_belongs_to_one_cluster_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        assert_eq!(data.cluster_id().unwrap(), None);
        let (ours, other) = (ClusterId([1; 16]), ClusterId([2; 16]));
        data.set_cluster_id(ours).unwrap();
        data.set_cluster_id(ours).unwrap();
        let error = data.set_cluster_id(other).unwrap_err().to_string();
        assert!(error.contains(&ours.to_string()) && error.contains(&other.to_string()), "{error}");
    }

    #[test]
    fn metadata_that_were_filled_in_part_are_refused_until_they_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        data.refuse_unfinished().unwrap();
        data.begin_filling().unwrap();
        drop(data);
        // The tool died, and is run again.
        let data = DataDir::reopen(dir.path());
        let error = data.refuse_unfinished().unwrap_err().to_string();
        assert!(error.contains("metadata.unfinished"), "{error}");
        data.begin_filling().unwrap();
        data.end_filling().unwrap();
        data.end_filling().unwrap();
        data.refuse_unfinished().unwrap();
    }

    #[test]
    fn a_file_that_others_can_read_is_not_written_into() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let left = data.file("node.new");
        fs::write(&left, "left by a crash, and longer than what comes").unwrap();
        fs::set_permissions(&left, Permissions::from_mode(0o644)).unwrap();
        data.write("node.secret", b"secret").unwrap();
        let secret = data.file("node.secret");
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
        assert!(!left.exists());
    }

    #[test]
    fn a_damaged_identity_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("node.id"), "nonsense").unwrap();
        assert!(DataDir::open(dir.path()).is_err());
        assert_eq!(fs::read_to_string(dir.path().join("node.id")).unwrap(), "nonsense");
    }
}
