//! Which directories were disks of this node, so that one that is not mounted is not taken for an empty one.
//!
//! An empty directory of the configuration becomes a disk. If it is the place where a disk is usually mounted, what is
//! written there lies on another file system, and is hidden when the disk is mounted again. So a node remembers its
//! disks, in `disks.known` of its data directory, and refuses to start where one is gone, unless a file in the
//! directory says that an empty disk took its place. The file can only be made where the disk is mounted, or where an
//! operator means it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, bail};
use holdfast_storage::Engine;

use super::data_dir::DataDir;

/// Directories, one a line.
const FILE: &str = "disks.known";

/// In an empty directory: it took the place of a disk.
const REPLACED: &str = "replaced";

/// See the module's documentation.
pub(super) struct KnownDisks<'a> {
    data_dir: &'a DataDir,
    dirs: BTreeSet<String>,
}

impl<'a> KnownDisks<'a> {
    /// Those that were there before.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub(super) fn read(data_dir: &'a DataDir) -> anyhow::Result<Self> {
        let path = data_dir.file(FILE);
        let dirs = match fs::read_to_string(&path) {
            Ok(text) => text.lines().map(str::to_owned).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Self { data_dir, dirs })
    }

    /// Refuses a directory that was a disk and is none now.
    ///
    /// # Errors
    /// When it is so, and nobody says that the disk was replaced; when it cannot be looked into.
    pub(super) fn check(&self, dir: &Path) -> anyhow::Result<()> {
        let is_there = |path: &Path| path.try_exists().with_context(|| format!("look for {}", path.display()));
        if !self.dirs.contains(&name(dir)) || is_there(&Engine::superblock_path(dir))? || is_there(&dir.join(REPLACED))?
        {
            return Ok(());
        }
        let dir = dir.display();
        bail!(
            "{dir} is not the disk that it was when this node ran last: is it mounted? If an empty disk took its place, say so \
             with `mkdir -p {dir} && touch {dir}/{REPLACED}`, and start again"
        )
    }

    /// Warns of [`unnamed`] disks: whoever adds one may forget those that there were. Nobody waits for the look at
    /// them: one that is not named because it hangs answers never, and is not to keep the node from starting.
    pub(super) fn warn_of_unnamed(&self, named: &[PathBuf]) {
        let mut others = self.dirs.clone();
        for dir in named {
            others.remove(&name(dir));
        }
        if others.is_empty() {
            return;
        }
        let named = named.to_owned();
        let look = move || {
            for disk in unnamed(&others, &named) {
                tracing::warn!(
                    disk,
                    "this was a disk of the node and is not named any more: what only it has cannot be read. If that is not \
                     meant, name it in node.disks, too"
                );
            }
        };
        // A thread of its own: a runtime waits for its own ones when it ends.
        if let Err(error) = thread::Builder::new().name("known-disks".into()).spawn(look) {
            tracing::debug!(%error, "nobody looks for disks that are not named");
        }
    }

    /// Remembers disks that were opened.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub(super) fn remember<'d>(mut self, opened: impl Iterator<Item = &'d Path>) -> anyhow::Result<()> {
        let before = self.dirs.len();
        for dir in opened {
            self.dirs.insert(name(dir));
            let said = dir.join(REPLACED);
            match fs::remove_file(&said) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", said.display()));
                }
                _ => {}
            }
        }
        if self.dirs.len() == before {
            return Ok(());
        }
        let lines: String = self.dirs.iter().map(|dir| format!("{dir}\n")).collect();
        self.data_dir.write(FILE, lines.as_bytes())
    }
}

/// Those of `dirs` that still are disks by what lies in them, and are not among `named` by another name either. Waits
/// for what does not answer.
fn unnamed<'d>(dirs: &'d BTreeSet<String>, named: &[PathBuf]) -> Vec<&'d str> {
    let named: BTreeSet<PathBuf> = named.iter().filter_map(|dir| fs::canonicalize(dir).ok()).collect();
    let is_unnamed = |dir: &Path| {
        Engine::superblock_path(dir).exists() && fs::canonicalize(dir).is_ok_and(|real| !named.contains(&real))
    };
    dirs.iter().map(String::as_str).filter(|dir| is_unnamed(Path::new(dir))).collect()
}

/// A directory as it stands in the configuration, from the root.
fn name(dir: &Path) -> String {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    absolute.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remember(data_dir: &DataDir, dir: &Path) {
        KnownDisks::read(data_dir).unwrap().remember([dir].into_iter()).unwrap();
    }

    #[test]
    fn a_disk_that_is_not_named_any_more_is_noticed_and_another_name_of_it_is_none() {
        let scratch = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(&scratch.path().join("data")).unwrap();
        let (disk, link) = (scratch.path().join("disk"), scratch.path().join("link"));
        fs::create_dir(&disk).unwrap();
        std::os::unix::fs::symlink(&disk, &link).unwrap();
        fs::write(Engine::superblock_path(&disk), "").unwrap();
        remember(&data_dir, &disk);
        let known = KnownDisks::read(&data_dir).unwrap();
        assert_eq!(unnamed(&known.dirs, &[scratch.path().join("new")]), [name(&disk)]);
        for named in [disk.clone(), link] {
            assert!(unnamed(&known.dirs, &[named]).is_empty());
        }
        fs::remove_file(Engine::superblock_path(&disk)).unwrap();
        assert!(unnamed(&known.dirs, &[]).is_empty(), "it was taken away");
    }

    #[test]
    fn a_disk_that_is_not_mounted_is_no_empty_one() {
        let scratch = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(&scratch.path().join("data")).unwrap();
        let (disk, other) = (scratch.path().join("disk"), scratch.path().join("other"));
        fs::create_dir(&disk).unwrap();
        let known = || KnownDisks::read(&data_dir).unwrap();
        known().check(&disk).expect("it is new");
        fs::write(Engine::superblock_path(&disk), "").unwrap();
        remember(&data_dir, &disk);
        remember(&data_dir, &disk);
        known().check(&disk).expect("it is there");

        fs::remove_file(Engine::superblock_path(&disk)).unwrap();
        let error = known().check(&disk).unwrap_err().to_string();
        assert!(error.contains("is it mounted?") && error.contains("disk/replaced"), "{error}");
        known().check(&other).expect("a disk more");
        fs::remove_dir(&disk).unwrap();
        known().check(&disk).expect_err("the directory is gone, too");

        fs::create_dir(&disk).unwrap();
        fs::write(disk.join(REPLACED), "").unwrap();
        known().check(&disk).expect("it was replaced");
        fs::write(Engine::superblock_path(&disk), "").unwrap();
        remember(&data_dir, &disk);
        assert!(!disk.join(REPLACED).exists(), "said once");
        fs::remove_file(Engine::superblock_path(&disk)).unwrap();
        known().check(&disk).expect_err("it is gone again");
    }
}
