//! The load generator behind `holdfast bench`.
//!
//! It measures any S3 server (and, unsigned, any HTTP server) from the outside: throughput, latency percentiles, errors
//! by code, and with `--pid` what the server spends. Each body that comes back is compared with what was sent. A run is
//! bounded in time and count, creates its bucket and cleans up behind itself. `bench disk` and `bench baseline` measure
//! what the machine itself can do, so that results can be told as ratios.
//!
//! | module | what it holds |
//! |---|---|
//! | `args` | the command line |
//! | `plan` | which keys there are and what the next request is |
//! | `content` | what objects hold and how it is checked |
//! | `client`, `sign` | one kept-alive connection and its SigV4 signatures |
//! | `bucket` | creating, emptying and deleting the bucket |
//! | `load` | the phases of a run |
//! | `process` | CPU seconds and memory from `/proc` |
//! | `report` | counts, histograms, output |
//! | `machine`, `baseline` | the machine's own limits |
//! | `units` | sizes and durations as people type them |

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};

mod args;
mod baseline;
mod bucket;
mod client;
mod content;
mod load;
mod machine;
mod plan;
mod process;
mod report;
mod sign;
mod units;

pub use args::BenchArgs;
use args::{BenchCommand, FilesArgs};
use plan::Workload;

/// Runs one `holdfast bench` command. Must be called on a tokio runtime with time and I/O enabled.
///
/// # Errors
/// When the command could not be run at all; a run that found errors or wrong bytes reports them and gives back a
/// failing exit code.
pub async fn run(args: BenchArgs) -> Result<ExitCode> {
    match args.command {
        BenchCommand::Put(args) => load::run(Workload::Put, args).await,
        BenchCommand::Get(args) => load::run(Workload::Get, args).await,
        BenchCommand::Head(args) => load::run(Workload::Head, args).await,
        BenchCommand::List(args) => load::run(Workload::List, args).await,
        BenchCommand::Mixed(args) => load::run(Workload::Mixed(args.get_share), args).await,
        BenchCommand::Files(args) => {
            let work = tokio::task::spawn_blocking(move || write_files(&args));
            work.await.context("write files")??;
            Ok(ExitCode::SUCCESS)
        }
        BenchCommand::Disk(args) => {
            let work = tokio::task::spawn_blocking(move || machine::run(&args));
            work.await.context("measure the machine")??;
            Ok(ExitCode::SUCCESS)
        }
        BenchCommand::Baseline(args) => baseline::run(args).await,
    }
}

/// Writes the objects that `get` reads as files below `dir/bucket/`.
fn write_files(args: &FilesArgs) -> Result<()> {
    let pattern = content::Pattern::new(args.seed);
    for object in plan::objects_of_files(args) {
        let path = args.dir.join(&args.bucket).join(&object.key);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        let mut file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
        pattern
            .body(&object.key, object.size)
            .write_to(&mut file)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
