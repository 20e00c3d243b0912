//! Files that hold a secret, which nobody else may read: one rule for all of them, and how one text is read.
//!
//! The rule holds for what Holdfast makes (`node.secret`, `admin.token`, keys under `cluster/`) and for what it is
//! given (passwords, secret keys, join tokens, the key of `s3.tls_key`). The tiers' files of credentials are judged
//! alike in their crate.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use zeroize::Zeroizing;

/// Largest file that is read, unless the caller says otherwise.
const BYTES_MAX: u64 = 4_096;

/// The most that the mode of a secret file may allow.
const OWNERS_ONLY: u32 = 0o700;

/// The same of a file that programs of several users share through a group.
const GROUP_READS: u32 = 0o750;

/// A secret that others than those whom it is for may read or write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} can be read by others (mode {mode:03o}): run chmod {wanted:o} {path}")]
pub struct Exposed {
    /// The file.
    pub path: PathBuf,
    /// Its permissions.
    pub mode: u32,
    /// The most that they should be.
    pub wanted: u32,
}

/// Refuses a file that others have access to, by what the opened file tells of itself.
///
/// # Errors
/// [`Exposed`].
pub fn check(path: &Path, about: &Metadata) -> Result<(), Exposed> {
    refuse_beyond(OWNERS_ONLY, path, about)
}

/// The same of the private key of a certificate, which its group may read: systems give keys to several services so
/// (Debian's `ssl-cert`, volumes of Kubernetes).
///
/// # Errors
/// [`Exposed`].
pub(crate) fn check_tls_key(path: &Path, about: &Metadata) -> Result<(), Exposed> {
    refuse_beyond(GROUP_READS, path, about)
}

fn refuse_beyond(allowed: u32, path: &Path, about: &Metadata) -> Result<(), Exposed> {
    let mode = about.permissions().mode() & 0o777;
    // A pipe, such as a shell's process substitution, is nobody else's.
    if about.is_file() && mode & !allowed != 0 {
        return Err(Exposed { path: path.to_owned(), mode, wanted: allowed & 0o660 });
    }
    Ok(())
}

/// The file's text without the ends of lines after it.
///
/// # Errors
/// When it cannot be read, or others can read it too.
pub(crate) fn read(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    read_at_most(file, BYTES_MAX)
}

/// The same of a file that may have so many bytes.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_at_most(file: &Path, bytes_max: u64) -> anyhow::Result<Zeroizing<String>> {
    let failed = || format!("read {}", file.display());
    let opened = File::open(file).with_context(|| format!("open {}", file.display()))?;
    check(file, &opened.metadata().with_context(failed)?)?;
    let mut text = Zeroizing::new(String::new());
    opened.take(bytes_max).read_to_string(&mut text).with_context(failed)?;
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    #[test]
    fn secret_is_read_only_where_nobody_else_can() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        fs::write(&file, "a secret\r\n").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o644] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            let error = read(&file).unwrap_err().to_string();
            let shown = file.display();
            assert_eq!(error, format!("{shown} can be read by others (mode {mode:o}): run chmod 600 {shown}"));
        }
        for mode in [0o600, 0o400] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            assert_eq!(*read(&file).unwrap(), "a secret");
        }
        for (mode, is_good) in [(0o640, true), (0o440, true), (0o660, false), (0o644, false)] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            let checked = check_tls_key(&file, &fs::metadata(&file).unwrap());
            assert_eq!(checked.is_ok(), is_good, "{mode:o}");
            if let Err(error) = checked {
                assert!(error.to_string().contains("chmod 640"), "{error}");
            }
        }
        assert!(read(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn what_is_no_file_is_nobody_elses() {
        assert!(check(Path::new("/dev/null"), &fs::metadata("/dev/null").unwrap()).is_ok());
    }
}
