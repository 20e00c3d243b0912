//! A temporary directory that goes with the process that made it, whatever way that ends: also for services in statics,
//! which are never dropped, and after kill -9.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::statvfs;

/// Waits until its standard input closes. What still ran in the directory is killed at the same moment, so a second
/// attempt may be needed. A terminal's Ctrl-C is for the tests.
const KEEPER: &str = r#"trap '' HUP INT TERM; cat >/dev/null; rm -rf "$1" 2>/dev/null || { sleep 1; rm -rf "$1"; }"#;

const MEMORY: &str = "/dev/shm";
/// Less than this is a container's default of 64 MiB, or somebody else's full memory.
const MEMORY_FREE_BYTES: u64 = 1 << 30;

/// A directory; removed with all that it holds when dropped.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    keeper: Child,
}

impl Directory {
    /// Where temporary files lie.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new() -> Self {
        Self::new_in(&std::env::temp_dir())
    }

    /// In memory where there is room for it: for services that look at how full the disk is.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn in_memory() -> Self {
        let room = statvfs(MEMORY).is_ok_and(|memory| memory.f_bavail * memory.f_frsize >= MEMORY_FREE_BYTES);
        if room { Self::new_in(Path::new(MEMORY)) } else { Self::new() }
    }

    fn new_in(parent: &Path) -> Self {
        let made = tempfile::Builder::new().prefix("holdfast-service-").tempdir_in(parent).unwrap();
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(made.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { path: made.keep(), keeper }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
