//! How many requests were answered, and how fast.

use std::collections::HashMap;
use std::time::Duration;

use http::StatusCode;
use metrics::{Counter, Histogram, counter, describe_counter, describe_histogram, histogram};
use parking_lot::RwLock;

/// Tells the exporter what the metrics of this module mean.
pub fn describe_metrics() {
    describe_counter!("holdfast_s3_requests_total", "S3 requests answered, by operation and HTTP status.");
    describe_histogram!(
        "holdfast_s3_request_seconds",
        metrics::Unit::Seconds,
        "Time from the head of an S3 request to the head of its answer, by operation."
    );
}

/// The meters of all operations, each looked up in the registry once: by its labels that takes longer than the rest of
/// what is counted for a small request. As many as there are operations and labels of statuses.
#[derive(Default)]
pub(super) struct Meters(RwLock<HashMap<Labels, (Counter, Histogram)>>);

/// Operation and status.
type Labels = (&'static str, &'static str);

impl Meters {
    /// Counts a request.
    pub(super) fn answered(&self, operation: &'static str, status: StatusCode, took: Duration) {
        let labels = (operation, status_label(status));
        if let Some((requests, seconds)) = self.0.read().get(&labels) {
            requests.increment(1);
            seconds.record(took);
            return;
        }
        let requests = counter!("holdfast_s3_requests_total", "operation" => operation, "status" => labels.1);
        let seconds = histogram!("holdfast_s3_request_seconds", "operation" => operation);
        requests.increment(1);
        seconds.record(took);
        self.0.write().insert(labels, (requests, seconds));
    }
}

/// Metric label of a status: text that lives for ever, so that a request allocates none.
fn status_label(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200 => "200",
        202 => "202",
        204 => "204",
        206 => "206",
        304 => "304",
        400 => "400",
        403 => "403",
        404 => "404",
        409 => "409",
        411 => "411",
        412 => "412",
        416 => "416",
        500 => "500",
        501 => "501",
        503 => "503",
        100..=199 => "1xx",
        201..=299 => "2xx",
        300..=399 => "3xx",
        401..=499 => "4xx",
        _ => "5xx",
    }
}
