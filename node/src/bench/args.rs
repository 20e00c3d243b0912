//! The command line of `holdfast bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::units::{parse_duration, parse_size};

/// Measure an S3 endpoint, or the machine under it.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// What to do.
    #[command(subcommand)]
    pub(super) command: BenchCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Write objects.
    Put(LoadArgs),
    /// Write some objects, then read them and check every byte.
    Get(LoadArgs),
    /// Write some objects, then ask for their heads.
    Head(LoadArgs),
    /// Write some objects, then list them.
    List(LoadArgs),
    /// Reads and writes together, in the proportion of --get-share.
    Mixed(LoadArgs),
    /// Write the objects that `get` would read into a directory, for a web server to compare with.
    Files(FilesArgs),
    /// Measure the machine itself: appends with fdatasync, O_DIRECT writes, MD5, loopback.
    Disk(DiskArgs),
    /// Serve PUT through tokio::fs, without MD5, as the baseline that the disk engine is measured against.
    Baseline(BaselineArgs),
}

/// Whether a request's signature covers its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Payload {
    /// With the SHA-256 of the body, as most clients do over plain HTTP.
    Signed,
    /// UNSIGNED-PAYLOAD.
    Unsigned,
}

/// An endpoint as somebody writes it; a host and a port alone would be taken for a scheme and a path.
fn checked_endpoint(text: &str) -> Result<String, String> {
    let is_endpoint = url::Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if is_endpoint { Ok(text.to_owned()) } else { Err("write a URL, such as http://127.0.0.1:9000".to_owned()) }
}

#[derive(Args, Clone, Debug)]
pub(super) struct LoadArgs {
    /// The server, as a URL. https checks the certificate against --ca-file.
    #[arg(long, env = "HOLDFAST_ENDPOINT", default_value = "http://127.0.0.1:9000", value_parser = checked_endpoint)]
    pub(super) endpoint: String,
    /// The access key.
    #[arg(long, env = "HOLDFAST_ACCESS_KEY", required_unless_present = "unsigned")]
    pub(super) access_key: Option<String>,
    /// The secret key. Everybody on this machine can read it here, in the list of processes: better use the variable.
    #[arg(long, env = "HOLDFAST_SECRET_KEY", hide_env_values = true, required_unless_present = "unsigned")]
    pub(super) secret_key: Option<String>,
    /// The region that requests are signed for.
    #[arg(long, env = "HOLDFAST_REGION", default_value = "us-east-1")]
    pub(super) region: String,
    /// The bucket to use. It is created when missing, and then deleted afterwards.
    #[arg(long, env = "HOLDFAST_BUCKET", default_value = "holdfast-bench")]
    pub(super) bucket: String,
    /// What every key begins with.
    #[arg(long, default_value = "bench/")]
    pub(super) prefix: String,
    /// Plain HTTP without signatures, for servers that are not S3.
    #[arg(long)]
    pub(super) unsigned: bool,
    /// Whether a signature covers the body.
    #[arg(long, value_enum, default_value = "unsigned")]
    pub(super) payload: Payload,
    /// A file of PEM certificates to trust for https.
    #[arg(long, env = "HOLDFAST_CA_FILE", default_value = "/etc/ssl/certs/ca-certificates.crt")]
    pub(super) ca_file: PathBuf,

    /// Object sizes, such as 4KiB or 4KiB,1MiB; each request takes one at random.
    #[arg(long, value_delimiter = ',', value_parser = parse_size, default_value = "1MiB")]
    pub(super) size: Vec<u64>,
    /// Requests in flight, each on a connection of its own.
    #[arg(long, short, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(super) concurrency: u32,
    /// For how long to measure. Requests in flight at the end are finished and counted.
    #[arg(long, short, value_parser = parse_duration, default_value = "10s")]
    pub(super) duration: Duration,
    /// Stop after this many requests, if that comes first.
    #[arg(long, short = 'n')]
    pub(super) count: Option<u64>,
    /// For how long to run before measuring.
    #[arg(long, value_parser = parse_duration, default_value = "2s")]
    pub(super) warmup: Duration,
    /// Objects to write before `get`, `head`, `list` and `mixed` (default: 256 MiB of them, 16 to 1,024 for each size).
    /// With `put`: overwrite this many keys in turn rather than write new ones.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(super) objects: Option<u64>,
    /// How unevenly `get`, `head` and `mixed` choose objects: the exponent of a Zipf distribution. 0 chooses all alike,
    /// 0.99 is what many caches see.
    #[arg(long, default_value_t = 0.0)]
    pub(super) zipf: f64,
    /// Do not write the objects first: they are there, from `--keep` or `bench files`, with the same prefix and seed.
    #[arg(long)]
    pub(super) no_fill: bool,
    /// Leave the objects and the bucket behind.
    #[arg(long)]
    pub(super) keep: bool,
    /// The share of reads in `mixed`, 0 to 1.
    #[arg(long, default_value_t = 0.8)]
    pub(super) get_share: f64,
    /// Keys asked for in one page by `list`.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) max_keys: u32,
    /// A request that takes longer than this has failed.
    #[arg(long, value_parser = parse_duration, default_value = "60s")]
    pub(super) timeout: Duration,
    /// Threads of the client.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) threads: u32,
    /// What the contents of the objects are made from.
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Processes of the server, for its CPU seconds and memory (on this machine).
    #[arg(long, value_delimiter = ',')]
    pub(super) pid: Vec<u32>,
    /// The share of requests that may fail before the exit code says so, 0 to 1. Wrong content always does.
    #[arg(long, default_value_t = 0.0)]
    pub(super) errors_max: f64,
    /// The result as one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(super) struct FilesArgs {
    /// The directory to write into: the root of the web server.
    #[arg(long)]
    pub(super) dir: PathBuf,
    /// As for `get`.
    #[arg(long, default_value = "holdfast-bench")]
    pub(super) bucket: String,
    /// As for `get`.
    #[arg(long, default_value = "bench/")]
    pub(super) prefix: String,
    /// As for `get`.
    #[arg(long, value_delimiter = ',', value_parser = parse_size, default_value = "1MiB")]
    pub(super) size: Vec<u64>,
    /// As for `get`.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(super) objects: Option<u64>,
    /// As for `get`.
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
}

#[derive(Args, Clone, Debug)]
pub(super) struct DiskArgs {
    /// A directory on the disk to measure. The files made in it are removed.
    #[arg(long)]
    pub(super) dir: PathBuf,
    /// For how long to measure each thing.
    #[arg(long, short, value_parser = parse_duration, default_value = "3s")]
    pub(super) duration: Duration,
    /// The most bytes to write with O_DIRECT.
    #[arg(long, value_parser = parse_size, default_value = "4GiB")]
    pub(super) bytes_max: u64,
    /// The result as one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(super) struct BaselineArgs {
    /// Where the bodies go. Each file is removed once it is durable.
    #[arg(long)]
    pub(super) dir: PathBuf,
    /// Where to listen; the address is printed.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(super) addr: std::net::SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_is_a_url_and_what_is_none_is_told_how_to_write_it() {
        for good in ["http://127.0.0.1:9000", "https://s3.example.com", "http://[::1]:9000"] {
            assert_eq!(checked_endpoint(good).as_deref(), Ok(good));
        }
        for wrong in ["", "127.0.0.1:9000", "localhost:9000", "s3.example.com", "ftp://host", "http://"] {
            assert!(checked_endpoint(wrong).is_err_and(|error| error.contains("http://")), "{wrong}");
        }
    }
}
