//! Files that hold one secret, which nobody else may read.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, bail};
use zeroize::Zeroizing;

/// Largest file that is read.
const BYTES_MAX: u64 = 4_096;

/// The file's text without the ends of lines after it.
///
/// # Errors
/// When it cannot be read, or others can read it too.
pub(crate) fn read(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    let failed = || format!("read {}", file.display());
    let opened = File::open(file).with_context(|| format!("open {}", file.display()))?;
    let about = opened.metadata().with_context(failed)?;
    // A pipe, such as a shell's process substitution, is nobody else's.
    if about.is_file() && about.permissions().mode() & 0o077 != 0 {
        bail!("{} can be read by others: run chmod 600 on it", file.display());
    }
    let mut text = Zeroizing::new(String::new());
    opened.take(BYTES_MAX).read_to_string(&mut text).with_context(failed)?;
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
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(*read(&file).unwrap(), "a secret");
        assert!(read(&dir.path().join("absent")).is_err());
    }
}
