//! Disks as tests need them: small ones that fill up, and contents that are found and damaged on them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every regular file below `dir`. Others may come and go meanwhile.
///
/// # Panics
/// When it is no directory.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    assert!(dir.is_dir(), "{} is no directory", dir.display());
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { todo.push(path) } else { found.push(path) }
        }
    }
    found
}

/// Where `needle` lies: the file and the offset in it.
///
/// # Panics
/// When it lies nowhere.
pub fn locate(dir: &Path, needle: &[u8]) -> (PathBuf, u64) {
    locate_all(dir, needle).swap_remove(0)
}

/// The same in each file that has it: what was just moved lies in two. Holes are skipped, so a sparse file of 1 GiB
/// costs little.
///
/// # Panics
/// When it lies nowhere.
pub fn locate_all(dir: &Path, needle: &[u8]) -> Vec<(PathBuf, u64)> {
    let mut places = Vec::new();
    for path in files(dir) {
        let file = fs::File::open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        let mut at = 0;
        // Windows of 4 MiB that overlap by the needle's length.
        let mut window = vec![0; (4 << 20) + needle.len()];
        while at < length {
            match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
                Ok(data) => at = data,
                Err(_) => break,
            }
            let got = file.read_at(&mut window, at).unwrap();
            if let Some(found) = window[..got].windows(needle.len()).position(|bytes| bytes == needle) {
                places.push((path, at + found as u64));
                break;
            }
            at += 4 << 20;
        }
    }
    assert!(!places.is_empty(), "the content is in no file below {}", dir.display());
    places
}

/// Overwrites bytes in the middle of a file by their complement.
///
/// # Panics
/// When the file cannot be written to.
pub fn flip_bytes(path: &Path, at: u64, count: usize) {
    let file: File = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; count];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    file.write_all_at(&bytes, at).unwrap();
    file.sync_all().unwrap();
}

/// Bytes allocated on disk below `dir`: holes count for nothing.
pub fn allocated(dir: &Path) -> u64 {
    // Files may go away while they are counted.
    files(dir).iter().filter_map(|path| fs::metadata(path).ok()).map(|metadata| metadata.blocks() * 512).sum()
}

/// A small ext4 in a file (or a tmpfs), mounted for one test.
#[derive(Debug)]
pub struct SmallDisk {
    mounted: PathBuf,
}

impl SmallDisk {
    /// Mounts one of `mib` MiB in `dir`.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn new(dir: &Path, mib: u64) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "a full disk is made by mounting a small one, and that needs root: run the tests as root"
        );
        let (image, mounted) = (dir.join("disk.img"), dir.join("disk"));
        fs::create_dir(&mounted).unwrap();
        let file = fs::File::create(&image).unwrap();
        file.set_len(mib << 20).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output();
            output.map(|output| output.status.success()).unwrap_or(false)
        };
        let (image, at) = (image.to_str().unwrap(), mounted.to_str().unwrap());
        let size = format!("size={mib}m");
        let mounted_it = (run("mkfs.ext4", &["-q", "-F", "-m", "0", image]) && run("mount", &["-o", "loop", image, at]))
            // Containers without loop devices still have tmpfs.
            || run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", at]);
        assert!(mounted_it, "neither a loop device nor a tmpfs can be mounted here");
        Self { mounted }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mounted
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a node that is being dropped may hold it for another moment.
        let _ = Command::new("umount").arg("-l").arg(&self.mounted).status();
    }
}
