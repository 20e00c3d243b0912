//! What the machine itself can do: the limits that results are told as ratios of.
//!
//! Everything is plain blocking code on one thread unless said otherwise, so that it shows the machine and not a
//! runtime.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use md5::{Digest, Md5};
use rustix::fs::OFlags;
use serde::Serialize;

use super::args::DiskArgs;
use super::content::Random;

/// An append of the size that the smallest record on disk has.
const APPEND_BYTES: usize = 4096;
/// Appends at most: far beyond what any disk does in the time allowed.
const APPENDS_MAX: u64 = 1_000_000;
/// The unit and number of O_DIRECT writes in flight: those of the disk engine.
const DIRECT_BYTES: usize = 1 << 20;
const DIRECT_WRITERS: u64 = 4;
/// O_DIRECT wants memory, lengths and places aligned to the disk's block; 4 KiB is enough for all.
const ALIGNMENT_BYTES: usize = 4096;

/// The machine's limits.
#[derive(Clone, Debug, Serialize)]
struct Limits {
    /// Appends of 4 KiB a second, each with its own fdatasync, one writer.
    appends_fdatasync_per_s: f64,
    /// Milliseconds of the median and the 99th percentile of such an append.
    append_p50_ms: f64,
    append_p99_ms: f64,
    /// O_DIRECT writes of 1 MiB, four in flight, into an allocated file, MiB/s with the final fdatasync.
    direct_write_mib_per_s: f64,
    /// One core's MD5, MiB/s and its cost.
    md5_mib_per_s: f64,
    md5_cpu_s_per_gib: f64,
    /// One TCP connection over loopback, MiB/s.
    loopback_mib_per_s: f64,
    cores: usize,
}

/// Measures and prints.
///
/// # Errors
/// When the directory cannot be written to.
pub(super) fn run(args: &DiskArgs) -> Result<()> {
    let mut appends = appends(args).context("measure appends")?;
    appends.latencies.sort_unstable();
    let at = |share: f64| {
        let index = (appends.latencies.len() as f64 * share) as usize;
        appends.latencies.get(index.min(appends.latencies.len() - 1)).copied().unwrap_or_default().as_secs_f64()
            * 1000.0
    };
    let md5_mib_per_s = md5_rate(args.duration);
    let limits = Limits {
        appends_fdatasync_per_s: appends.latencies.len() as f64 / appends.elapsed.as_secs_f64(),
        append_p50_ms: at(0.5),
        append_p99_ms: at(0.99),
        direct_write_mib_per_s: direct_rate(args).context("measure O_DIRECT writes")?,
        md5_mib_per_s,
        md5_cpu_s_per_gib: 1024.0 / md5_mib_per_s,
        loopback_mib_per_s: loopback_rate(args.duration).context("measure loopback")?,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
    };
    if args.json {
        println!("{}", serde_json::to_string(&limits).context("write the result")?);
    } else {
        println!(
            "4 KiB append + fdatasync, one writer: {:.0}/s (p50 {:.2} ms, p99 {:.2} ms)",
            limits.appends_fdatasync_per_s, limits.append_p50_ms, limits.append_p99_ms
        );
        println!("O_DIRECT write, 1 MiB x 4 in flight: {:.0} MiB/s", limits.direct_write_mib_per_s);
        println!("MD5, one core: {:.0} MiB/s, {:.2} CPU-s per GiB", limits.md5_mib_per_s, limits.md5_cpu_s_per_gib);
        println!("loopback TCP, one connection: {:.0} MiB/s", limits.loopback_mib_per_s);
        println!("cores: {}", limits.cores);
    }
    Ok(())
}

/// A file that is removed when it is dropped.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(dir: &Path, name: &str) -> Self {
        Self { path: dir.join(format!(".holdfast-bench-{name}-{}", std::process::id())) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may never have been made; what cannot be removed is named so that a person can.
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "scratch file stays");
        }
    }
}

struct Appends {
    latencies: Vec<Duration>,
    elapsed: Duration,
}

fn appends(args: &DiskArgs) -> Result<Appends> {
    let scratch = Scratch::new(&args.dir, "append");
    let mut file = File::create(&scratch.path).with_context(|| format!("create {}", scratch.path.display()))?;
    let block = noise(APPEND_BYTES);
    let begin = Instant::now();
    let mut latencies = Vec::new();
    // At least one, so that there is a latency to tell.
    while latencies.is_empty() || (begin.elapsed() < args.duration && (latencies.len() as u64) < APPENDS_MAX) {
        let start = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        latencies.push(start.elapsed());
    }
    Ok(Appends { latencies, elapsed: begin.elapsed() })
}

fn direct_rate(args: &DiskArgs) -> Result<f64> {
    let scratch = Scratch::new(&args.dir, "direct");
    let units = (args.bytes_max / DIRECT_BYTES as u64).max(1);
    let direct = i32::try_from(OFlags::DIRECT.bits()).expect("O_DIRECT is a small flag");
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(direct)
        .open(&scratch.path)
        .with_context(|| format!("create {} for O_DIRECT", scratch.path.display()))?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, units * DIRECT_BYTES as u64)
        .context("allocate the file (is there room for --bytes-max?)")?;
    let next = AtomicU64::new(0);
    let begin = Instant::now();
    let written = std::thread::scope(|scope| {
        let write = || -> std::io::Result<u64> {
            let memory = noise(DIRECT_BYTES + ALIGNMENT_BYTES);
            let skip = memory.as_ptr().align_offset(ALIGNMENT_BYTES);
            let buffer = &memory[skip..skip + DIRECT_BYTES];
            let mut bytes = 0;
            // At least one, so that there is a rate to tell: on a busy machine the time may be over before it begins.
            while bytes == 0 || begin.elapsed() < args.duration {
                let unit = next.fetch_add(1, Ordering::Relaxed);
                if unit >= units {
                    break;
                }
                file.write_all_at(buffer, unit * DIRECT_BYTES as u64)?;
                bytes += DIRECT_BYTES as u64;
            }
            Ok(bytes)
        };
        let writers: Vec<_> = (0..DIRECT_WRITERS).map(|_| scope.spawn(write)).collect();
        writers.into_iter().map(|writer| writer.join().expect("writers do not panic")).sum::<std::io::Result<u64>>()
    })?;
    file.sync_data()?;
    Ok(mib_per_s(written, begin.elapsed()))
}

fn md5_rate(duration: Duration) -> f64 {
    let block = noise(1 << 20);
    let mut hash = Md5::new();
    let mut bytes = 0;
    let begin = Instant::now();
    while bytes == 0 || begin.elapsed() < duration {
        hash.update(&block);
        bytes += block.len() as u64;
    }
    std::hint::black_box(hash.finalize());
    mib_per_s(bytes, begin.elapsed())
}

fn loopback_rate(duration: Duration) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut to = TcpStream::connect(listener.local_addr()?)?;
    let (mut from, _) = listener.accept()?;
    // Made before the clock runs.
    let block = noise(1 << 20);
    let begin = Instant::now();
    let received = std::thread::scope(|scope| {
        let reader = scope.spawn(move || -> std::io::Result<u64> {
            let mut buffer = vec![0; 1 << 20];
            let mut bytes = 0;
            loop {
                match from.read(&mut buffer)? {
                    0 => return Ok(bytes),
                    n => bytes += n as u64,
                }
            }
        });
        let mut sent = 0;
        while sent == 0 || begin.elapsed() < duration {
            to.write_all(&block)?;
            sent += block.len();
        }
        drop(to);
        reader.join().expect("the reader does not panic")
    })?;
    Ok(mib_per_s(received, begin.elapsed()))
}

/// Bytes that no disk or file system compresses.
fn noise(len: usize) -> Vec<u8> {
    let mut random = Random::new(len as u64);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn mib_per_s(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / elapsed.as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measuring_gives_figures_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let args = DiskArgs {
            dir: dir.path().to_owned(),
            duration: Duration::from_millis(20),
            bytes_max: 4 << 20,
            json: true,
        };
        assert!(!appends(&args).expect("appends").latencies.is_empty());
        assert!(loopback_rate(args.duration).expect("loopback") > 0.0);
        assert!(md5_rate(args.duration) > 0.0);
        // A tmpfs without O_DIRECT is no failure of this code.
        if let Ok(rate) = direct_rate(&args) {
            assert!(rate > 0.0);
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 0);
    }
}
