//! The root, its marker, and the directories and files below it. All calls here block.
//!
//! Below the root nothing is opened by a path: each directory is opened in the one above it, and no link is followed.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use holdfast_actors::ports::tiers::{TierError, TierHealth, TierResult};
use rustix::fs::{
    Access, AtFlags, Dir, FileType, Mode, OFlags, StatVfsMountFlags, accessat, fstatvfs, fsync, mkdirat, open, openat,
    renameat, statat, unlinkat,
};
use rustix::io::Errno;

use super::place::Place;

/// Says that a directory is a tier, and which.
const MARKER: &str = ".holdfast-tier";
/// The first line of the marker.
const MARKER_TITLE: &str = "Holdfast cold tier, format 1";
/// What file systems put into an empty directory.
const IGNORED: [&str; 2] = ["lost+found", ".snapshot"];

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Which tier a directory is: drawn when it was marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TierId([u8; 16]);

impl FromStr for TierId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id)?;
        Ok(Self(id))
    }
}

impl fmt::Display for TierId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The root, open and found to be the right one.
pub(super) struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

/// A directory that pieces lie in.
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

/// A piece that is being written; its file is removed when this is dropped, unless it was published.
pub(super) struct Temporary {
    pub(super) directory: Directory,
    pub(super) file: File,
    name: String,
    place: Place,
    published: bool,
}

/// What an operator has to do about an error, or that nothing but time helps.
pub(super) fn error_of(doing: &str, path: &Path, error: &io::Error) -> TierError {
    let text = format!("{doing} {}: {error}", path.display());
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT) => TierError::Full(text),
        Some(Errno::ROFS) => TierError::Denied(format!("{text}: mount it writable")),
        Some(Errno::ACCESS | Errno::PERM) => TierError::Denied(format!("{text}: give this user rights on it")),
        Some(Errno::FBIG) => TierError::Denied(format!("{text}: the file system takes no file of this size")),
        Some(Errno::LOOP | Errno::NOTDIR | Errno::ISDIR) => {
            TierError::Denied(format!("{text}: something else lies where the tier keeps its pieces"))
        }
        _ => TierError::Unavailable(text),
    }
}

/// The result, or nothing where the file or directory does not exist.
fn existing<T>(result: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Root {
    /// Opens the root of the tier `id`.
    pub(super) fn open(path: &Path, id: TierId) -> TierResult<Self> {
        let root = Self::open_any(path)?;
        match root.read_marker()? {
            Some(found) if found == id => Ok(root),
            Some(_) => Err(root.denied("is another tier than it was: mount the file system of this one")),
            None => Err(root.denied("is not the tier's directory any more: mount its file system")),
        }
    }

    /// The id of a directory that is marked.
    pub(super) fn id_of(path: &Path) -> TierResult<TierId> {
        let root = Self::open_any(path)?;
        let missing = || root.denied("is not marked as a cold tier: mount its file system, or add it as a new tier");
        root.read_marker()?.ok_or_else(missing)
    }

    /// The id of a directory, which is marked if it is empty.
    pub(super) fn mark(path: &Path) -> TierResult<TierId> {
        let root = Self::open_any(path)?;
        if let Some(id) = root.read_marker()? {
            return Ok(id);
        }
        let failed = |error: io::Error| error_of("list", path, &error);
        for entry in Dir::read_from(&root.fd).map_err(|error| failed(error.into()))? {
            let name = entry.map_err(|error| failed(error.into()))?.file_name().to_string_lossy().into_owned();
            let expected = [".", ".."].iter().chain(&IGNORED).any(|known| *known == name);
            // Another node may be marking it at this moment.
            if !expected && !name.starts_with(MARKER) {
                return Err(root.denied(&format!("has {name} in it and is no cold tier: give an empty directory")));
            }
        }
        root.write_marker().map_err(|error| error_of("mark", path, &error))?;
        Self::id_of(path)
    }

    fn open_any(path: &Path) -> TierResult<Self> {
        match open(path, DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path: path.to_owned() }),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(TierError::Denied(format!(
                "the tier's directory {} does not exist: create it, or mount its file system",
                path.display()
            ))),
            Err(error) => Err(error_of("open", path, &error.into())),
        }
    }

    fn denied(&self, what: &str) -> TierError {
        TierError::Denied(format!("{} {what}", self.path.display()))
    }

    fn read_marker(&self) -> TierResult<Option<TierId>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let read = || -> io::Result<Option<String>> {
            let Some(fd) = existing(openat(&self.fd, MARKER, flags, Mode::empty()))? else { return Ok(None) };
            let mut text = String::new();
            File::from(fd).take(1024).read_to_string(&mut text)?;
            Ok(Some(text))
        };
        let Some(text) = read().map_err(|error| error_of("read the marker of", &self.path, &error))? else {
            return Ok(None);
        };
        let mut lines = text.lines();
        let title = lines.next();
        match lines.next().and_then(|id| id.parse().ok()) {
            Some(id) if title == Some(MARKER_TITLE) => Ok(Some(id)),
            _ => Err(self.denied(&format!("has a {MARKER} that this version cannot read"))),
        }
    }

    fn write_marker(&self) -> io::Result<()> {
        let temporary = format!("{MARKER}.{:016x}", rand::random::<u64>());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.fd, &temporary, flags, Mode::RUSR | Mode::WUSR)?);
        let id = hex::encode(rand::random::<[u8; 16]>());
        writeln!(file, "{MARKER_TITLE}\n{id}")?;
        file.sync_all()?;
        renameat(&self.fd, &temporary, &self.fd, MARKER)?;
        Ok(fsync(&self.fd)?)
    }

    /// The directory of a place, if there is one.
    pub(super) fn directory(&self, place: &Place) -> TierResult<Option<Directory>> {
        let path = self.path.join(&place.outer).join(&place.inner);
        let open = || -> io::Result<Option<OwnedFd>> {
            let flags = DIRECTORY | OFlags::NOFOLLOW;
            let Some(outer) = existing(openat(&self.fd, &place.outer, flags, Mode::empty()))? else { return Ok(None) };
            existing(openat(&outer, &place.inner, flags, Mode::empty()))
        };
        let fd = open().map_err(|error| error_of("open", &path, &error))?;
        Ok(fd.map(|fd| Directory { fd, path }))
    }

    /// The directory of a place, which is durable before anything is put into it.
    pub(super) fn create_directory(&self, place: &Place) -> TierResult<Directory> {
        if let Some(directory) = self.directory(place)? {
            return Ok(directory);
        }
        let create = |parent: &OwnedFd, name: &str| -> io::Result<OwnedFd> {
            match mkdirat(parent, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            fsync(parent)?;
            Ok(openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?)
        };
        let path = self.path.join(&place.outer).join(&place.inner);
        let fd = create(&self.fd, &place.outer).and_then(|outer| create(&outer, &place.inner));
        fd.map(|fd| Directory { fd, path: path.clone() }).map_err(|error| error_of("create", &path, &error))
    }

    pub(super) fn health(&self) -> TierResult<TierHealth> {
        let failed = |error: Errno| error_of("look at", &self.path, &error.into());
        let about = fstatvfs(&self.fd).map_err(failed)?;
        if about.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(self.denied("is mounted read-only: mount it writable"));
        }
        accessat(&self.fd, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::empty()).map_err(failed)?;
        Ok(TierHealth { free_bytes: Some(about.f_bavail.saturating_mul(about.f_frsize)), notes: Vec::new() })
    }
}

impl Directory {
    /// An error of an operation on something in this directory.
    pub(super) fn error(&self, doing: &str, error: &io::Error) -> TierError {
        error_of(doing, &self.path, error)
    }

    /// A piece's file and its size, if there is one.
    pub(super) fn open_piece(&self, place: &Place) -> TierResult<Option<(File, u64)>> {
        // Without NONBLOCK, a pipe that somebody put there would keep this thread.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let open = || -> io::Result<Option<(File, std::fs::Metadata)>> {
            let Some(fd) = existing(openat(&self.fd, &place.file, flags, Mode::empty()))? else { return Ok(None) };
            let file = File::from(fd);
            let about = file.metadata()?;
            Ok(Some((file, about)))
        };
        match open().map_err(|error| self.error("open a piece in", &error))? {
            Some((_, about)) if !about.is_file() => Err(self.no_file(place)),
            Some((file, about)) => Ok(Some((file, about.len()))),
            None => Ok(None),
        }
    }

    /// The size of a piece's file, if there is one.
    pub(super) fn size_bytes(&self, place: &Place) -> TierResult<Option<u64>> {
        let stat = existing(statat(&self.fd, &place.file, AtFlags::SYMLINK_NOFOLLOW));
        match stat.map_err(|error| self.error("look at a piece in", &error))? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => Err(self.no_file(place)),
            stat => Ok(stat.map(|stat| stat.st_size as u64)),
        }
    }

    fn no_file(&self, place: &Place) -> TierError {
        TierError::Denied(format!("{} in {} is no regular file: take it away", place.file, self.path.display()))
    }

    /// A new file for a piece's bytes. What earlier puts of it left behind is removed.
    pub(super) fn create_temporary(self, place: &Place) -> TierResult<Temporary> {
        self.remove_temporaries(place).map_err(|error| self.error("tidy", &error))?;
        let name = format!("{}{:016x}", place.temporary_prefix(), rand::random::<u64>());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match openat(&self.fd, &name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => {
                Ok(Temporary { directory: self, file: File::from(fd), name, place: place.clone(), published: false })
            }
            Err(error) => Err(self.error("create a file in", &error.into())),
        }
    }

    /// Removes a piece and all that was begun for it; durable on return.
    pub(super) fn remove(&self, place: &Place) -> TierResult<()> {
        let remove = || -> io::Result<()> {
            // In this order: a put of another node either finds its file gone, or has renamed it already.
            let mut removed = self.remove_temporaries(place)?;
            removed |= existing(unlinkat(&self.fd, &place.file, AtFlags::empty()))?.is_some();
            if removed {
                fsync(&self.fd)?;
            }
            Ok(())
        };
        remove().map_err(|error| self.error("delete a piece in", &error))
    }

    fn remove_temporaries(&self, place: &Place) -> io::Result<bool> {
        let prefix = place.temporary_prefix();
        let mut removed = false;
        for entry in Dir::read_from(&self.fd)? {
            let entry = entry?;
            if entry.file_name().to_bytes().starts_with(prefix.as_bytes()) {
                removed |= existing(unlinkat(&self.fd, entry.file_name(), AtFlags::empty()))?.is_some();
            }
        }
        Ok(removed)
    }
}

impl Temporary {
    /// Gives the file its name; it and its name are durable on return.
    pub(super) fn publish(mut self) -> TierResult<()> {
        let (directory, name) = (&self.directory, self.name.as_str());
        self.file.sync_all().map_err(|error| directory.error("sync a piece in", &error))?;
        match renameat(&directory.fd, name, &directory.fd, &self.place.file) {
            Ok(()) => {}
            Err(Errno::NOENT) => {
                let piece = &self.place.piece;
                return Err(TierError::Unavailable(format!("{piece} was deleted or put again while it was written")));
            }
            Err(error) => return Err(directory.error("rename a piece in", &error.into())),
        }
        self.published = true;
        fsync(&self.directory.fd).map_err(|error| self.directory.error("sync", &error.into()))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = existing(unlinkat(&self.directory.fd, &self.name, AtFlags::empty()))
        {
            tracing::warn!(file = %self.directory.path.join(&self.name).display(), %error, "cannot remove a temporary file");
        }
    }
}
