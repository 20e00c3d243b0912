//! The database of a node that runs alone, filled beside the one whose place it takes.
//!
//! A node takes chunks that its metadata does not know for left over, and deletes them. So half a database must never
//! bear the name that a node opens. What fills one works on a copy under another name; [`Beside::put_in_place`] makes
//! it durable and gives it the name by a rename. Whatever happens before that (an error, a full disk, `kill -9`) leaves
//! the database that was there, or none.
//!
//! A database is its file and the log beside it, and a log is taken for that of whichever file bears the name. So
//! neither may have a log when names change: SQLite empties and removes it as the last connection is closed, and a log
//! that is left all the same is an error here.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::metadata::{SqliteMetadataStore, SqliteOptions};

/// What SQLite keeps beside a database while it is open.
const COMPANIONS: [&str; 2] = ["-wal", "-shm"];

/// A database under a temporary name. Dropping it removes what was made.
pub(super) struct Beside {
    target: PathBuf,
    made: PathBuf,
}

impl Beside {
    /// Begins with a copy of the database at `path`, which nobody has open, or with none if there is none. What an
    /// earlier run left under the temporary name is removed.
    ///
    /// # Errors
    /// When the database has a log; those of files.
    pub(super) fn begin(path: &Path) -> anyhow::Result<Self> {
        // The log lies beside the file that a link points to.
        let target = match path.canonicalize() {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(error).with_context(|| format!("find {}", path.display())),
        };
        refuse_log(&target)?;
        let beside = Self { made: with_suffix(&target, ".partial"), target };
        beside.remove().with_context(|| format!("remove what an earlier run left in {}", beside.made.display()))?;
        if beside.target.exists() {
            let copied = fs::copy(&beside.target, &beside.made);
            copied.with_context(|| format!("copy {} to {}", beside.target.display(), beside.made.display()))?;
        }
        Ok(beside)
    }

    /// Opens what is to be filled. It is to be closed before it is put in place.
    ///
    /// # Errors
    /// Those of opening a database.
    pub(super) async fn open(&self) -> anyhow::Result<SqliteMetadataStore> {
        open(&self.made).await
    }

    /// Puts what was made into the place of the database, durably: after a crash at any moment there is one of the two,
    /// whole.
    ///
    /// # Errors
    /// When it was not closed; those of files.
    pub(super) fn put_in_place(self) -> anyhow::Result<()> {
        refuse_log(&self.made)?;
        refuse_log(&self.target)?;
        let failed = || format!("put {} into its place", self.made.display());
        File::open(&self.made).and_then(|file| file.sync_all()).with_context(failed)?;
        for suffix in COMPANIONS {
            remove_file(&with_suffix(&self.target, suffix)).with_context(failed)?;
        }
        fs::rename(&self.made, &self.target).with_context(failed)?;
        let directory = self.target.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all()).with_context(failed)
    }

    fn remove(&self) -> io::Result<()> {
        for suffix in COMPANIONS {
            remove_file(&with_suffix(&self.made, suffix))?;
        }
        remove_file(&self.made)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // The next run removes what is left.
        self.remove().ok();
    }
}

/// Opens the database of a node that runs alone.
///
/// # Errors
/// Those of opening a database.
pub(super) async fn open(path: &Path) -> anyhow::Result<SqliteMetadataStore> {
    let store = SqliteMetadataStore::open(path, SqliteOptions::default()).await;
    store.with_context(|| format!("open metadata {}", path.display()))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A log holds commits that are not in the file yet.
fn refuse_log(path: &Path) -> anyhow::Result<()> {
    let log = with_suffix(path, "-wal");
    match fs::metadata(&log) {
        Ok(found) if found.len() > 0 => bail!("{} was not written into its database", log.display()),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("look at {}", log.display())),
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_with_a_log_is_neither_copied_nor_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata.sqlite");
        fs::write(&path, "old").unwrap();
        fs::write(with_suffix(&path, "-wal"), "commits").unwrap();
        assert!(Beside::begin(&path).is_err());
        fs::remove_file(with_suffix(&path, "-wal")).unwrap();

        let beside = Beside::begin(&path).unwrap();
        fs::write(with_suffix(&beside.made, "-wal"), "commits").unwrap();
        assert!(beside.put_in_place().is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_was_made_takes_the_place_and_what_was_left_of_an_earlier_run_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata.sqlite");
        for left in [".partial", ".partial-wal", ".partial-shm", "-wal", "-shm"] {
            // A log of no bytes holds nothing.
            fs::write(with_suffix(&path, left), if left == "-wal" { "" } else { "left" }).unwrap();
        }
        let beside = Beside::begin(&path).unwrap();
        assert!(!beside.made.exists(), "there was nothing to copy");
        fs::write(&beside.made, "new").unwrap();
        beside.put_in_place().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        let beside = Beside::begin(&path).unwrap();
        assert_eq!(fs::read_to_string(&beside.made).unwrap(), "new");
        fs::write(&beside.made, "newer").unwrap();
        drop(beside);
        assert_eq!(fs::read_to_string(&path).unwrap(), "new", "what was given up is gone");
    }
}
