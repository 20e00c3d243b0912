//! Logs and metrics.
//!
//! Logs go to standard error, as text for people or one JSON object a line. Each request has a span with its id, which
//! the client gets too. Secrets are in types that print nothing, so no log level shows them. A line that cannot be
//! written is lost, and nothing else: the disk that the log lies on may be full, or who reads it may have gone.

use std::io::IsTerminal;
use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::config::{LogConfig, LogFormat};

mod describe;
pub mod process;
pub(crate) mod seldom;

/// Bounds of latency histograms, in seconds: from a GET out of memory to an upload of hours.
const LATENCY_SECONDS: [f64; 20] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0, 900.0, 3600.0,
];

/// Bounds of histograms of sizes, in bytes.
const SIZE_BYTES: [f64; 8] =
    [1024.0, 16_384.0, 262_144.0, 1_048_576.0, 16_777_216.0, 268_435_456.0, 1_073_741_824.0, 68_719_476_736.0];

/// Bounds of histograms of counts, such as the writers that share one flush.
const COUNTS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Starts logging. Only the first call in a process has an effect, so that tests may start several nodes.
pub fn init_logs(config: &LogConfig) {
    let filter = EnvFilter::try_new(directives(&config.level)).unwrap_or_else(|_| EnvFilter::new(directives("info")));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE)
        // The subscriber would tell of lines that it cannot write by `eprintln!`, which panics for the same reason.
        .log_internal_errors(false)
        .with_ansi(config.format == LogFormat::Text && std::io::stderr().is_terminal());
    // An error means that a subscriber is there already.
    match config.format {
        LogFormat::Text => drop(builder.try_init()),
        LogFormat::Json => drop(builder.json().flatten_event(true).try_init()),
    }
}

/// The filter for a configured level. s3s writes whole requests, with signatures and presigned URLs, at debug, and
/// every client's mistake as an error; what is worth knowing of a request is logged by this crate. A filter that names
/// s3s itself is left as it is.
fn directives(level: &str) -> String {
    let names_s3s = level.split(',').any(|directive| directive.trim().starts_with("s3s"));
    if names_s3s { level.to_owned() } else { format!("{level},s3s=off") }
}

/// Starts collecting metrics; every node of a process shares them.
///
/// # Errors
/// When another recorder is installed in this process.
pub fn init_metrics() -> anyhow::Result<PrometheusHandle> {
    static HANDLE: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();
    let installed = HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &LATENCY_SECONDS)
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_bytes".into()), &SIZE_BYTES))
            .and_then(|builder| builder.set_buckets(&COUNTS))
            .map_err(|error| error.to_string())?;
        let handle = builder.install_recorder().map_err(|error| error.to_string())?;
        describe::describe();
        describe::start_at_zero();
        metrics::gauge!("process_start_time_seconds").set(process::unix_seconds());
        metrics::gauge!("holdfast_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        Ok(handle)
    });
    installed.clone().map_err(|error| anyhow::anyhow!("install the metrics recorder: {error}"))
}

/// Shows until when a certificate is valid, in seconds since 1970.
pub(crate) fn show_certificate(certificate: &'static str, until_unix_seconds: i64) {
    metrics::gauge!("holdfast_certificate_expiry_timestamp_seconds", "certificate" => certificate)
        .set(until_unix_seconds as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s3s_is_silent_at_every_level_unless_it_is_named() {
        for level in ["info", "debug", "trace", "warn,holdfast_storage=debug"] {
            assert_eq!(directives(level), format!("{level},s3s=off"));
            EnvFilter::try_new(directives(level)).expect("a valid filter");
        }
        assert_eq!(directives("info, s3s::ops=debug"), "info, s3s::ops=debug");
    }
}
