//! Which processes that registered with this data directory are dead for certain, so that a node that was killed does
//! not wait at its next start until its old session is over.
//!
//! Another process under the same node id may live: in a copy of the directory. It counts on its registration, and must
//! not be replaced. So what is remembered of a process, in `node.processes`, says under which lock it ran: the start of
//! the machine (the kernel's boot id) and the lock file's device and inode. While a process has that file open, neither
//! number is given to anything else under this kernel, and while it has its lock nobody else gets it. Whoever has a
//! lock with these three has the very same one, and who had it before is dead, or has given it up and serves nobody.
//!
//! A copy has another lock file, a snapshot another device, another machine and a later start another boot id: there
//! nothing is known of who lives, and the end of the session is waited for. So it is where the file system is none of
//! [`TRUSTED`]: of network file systems and those in user space nobody here knows what a number or a lock is worth.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use anyhow::Context as _;

use super::data_dir::DataDir;
use crate::coordination::Claim;

/// The first line says under which lock the processes ran, each other one is the name of one, the oldest first.
const FILE: &str = "node.processes";

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Kinds of local file systems (`statfs`): ext2 to ext4, XFS, btrfs, F2FS, tmpfs, and overlays of containers.
const TRUSTED: [u32; 6] = [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0x0102_1994, 0x794C_7630];

/// A name for this process to register under, which is remembered before it is used, and the dead whom it replaces.
/// Where that cannot be done the node waits as one that knows of nobody.
pub(super) fn claim(data_dir: &DataDir) -> Claim {
    try_claim(data_dir).unwrap_or_else(|error| {
        tracing::warn!(error = format!("{error:#}"), "if this node is killed, it waits for the end of its session");
        Claim::default()
    })
}

fn try_claim(data_dir: &DataDir) -> anyhow::Result<Claim> {
    let Some(lock) = lock_of(data_dir)? else { return Ok(Claim::default()) };
    let path = data_dir.file(FILE);
    let remembered = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let mut lines = remembered.lines();
    let dead = if lines.next() == Some(&*lock) { lines.map(str::to_owned).collect() } else { Vec::new() };
    let claim = Claim::replacing(dead);
    let names: String = claim.names().map(|name| format!("{name}\n")).collect();
    data_dir.write(FILE, format!("{lock}\n{names}").as_bytes())?;
    Ok(claim)
}

/// What the lock of the directory is known by; `None` where that says nothing.
fn lock_of(data_dir: &DataDir) -> anyhow::Result<Option<String>> {
    let about = data_dir.lock().metadata().context("look at the lock of the data directory")?;
    let system = rustix::fs::fstatfs(data_dir.lock()).context("ask for the file system of the data directory")?;
    // Its type differs between machines; the numbers have 32 bits.
    if !TRUSTED.contains(&(system.f_type as u32)) {
        return Ok(None);
    }
    // Where there is no such file, as in a sandbox, nothing tells one start of the machine from another.
    let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
    let boot = boot.trim();
    Ok((!boot.is_empty()).then(|| format!("{boot} {} {}", about.dev(), about.ino())))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    fn names(claim: &Claim) -> Vec<String> {
        claim.names().map(str::to_owned).collect()
    }

    fn start(dir: &Path) -> (DataDir, Vec<String>) {
        let data_dir = DataDir::reopen(dir);
        let names = names(&claim(&data_dir));
        (data_dir, names)
    }

    #[test]
    fn who_had_the_same_lock_is_replaced_and_a_copy_replaces_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        if lock_of(&DataDir::open(&own).unwrap()).unwrap().is_none() {
            println!("not on a file system of this kind: nothing is remembered");
            return;
        }
        let (first, names_of_first) = start(&own);
        assert_eq!(names_of_first.len(), 1);

        // While it lives.
        let copy = dir.path().join("copy");
        assert!(Command::new("cp").arg("-a").arg(&own).arg(&copy).status().unwrap().success());
        let (_other, names_of_copy) = start(&copy);
        assert_eq!(names_of_copy.len(), 1, "it knows of nobody who is dead");
        assert_ne!(names_of_copy, names_of_first);

        // Killed, and again before it could register.
        drop(first);
        let (second, names_of_second) = start(&own);
        assert_eq!(names_of_second[..1], names_of_first);
        drop(second);
        let (third, names_of_third) = start(&own);
        assert_eq!(names_of_third[..2], names_of_second);
        drop(third);

        // The machine was started again.
        let path = own.join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("another start {text}")).unwrap();
        assert_eq!(start(&own).1.len(), 1);
    }

    #[test]
    fn a_lock_file_that_was_made_anew_says_nothing_of_who_had_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let (_lives, names) = start(dir.path());
        fs::remove_file(dir.path().join("node.lock")).unwrap();
        let (_second, names_of_second) = start(dir.path());
        assert!(!names_of_second.contains(&names[0]), "it has the directory still, as far as can be known");
    }
}
