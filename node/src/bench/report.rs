//! Results: collected by the workers, shown to people or as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::process::{Cpu, Memory};
use super::units::show_size;

/// Different kinds of errors kept apart; the rest is counted together.
const ERROR_KINDS_MAX: usize = 32;
/// The end of the latency histograms: one hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// What a request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Put,
    Get,
    Head,
    List,
}

impl Operation {
    pub(super) const ALL: [Self; 4] = [Self::Put, Self::Get, Self::Head, Self::List];

    fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
        }
    }
}

/// Counts of one operation.
#[derive(Clone, Debug)]
struct Tally {
    requests: u64,
    bytes: u64,
    /// Microseconds from the start of a request to the last byte of its answer.
    latency_us: Histogram<u64>,
}

/// What a thread's workers count while they measure.
#[derive(Clone, Debug)]
pub(super) struct Stats {
    tallies: [Tally; 4],
    errors: BTreeMap<String, u64>,
    wrong_contents: u64,
}

impl Stats {
    pub(super) fn new() -> Self {
        let tally = Tally {
            requests: 0,
            bytes: 0,
            latency_us: Histogram::new_with_max(LATENCY_US_MAX, 3).expect("three significant digits are allowed"),
        };
        Self {
            tallies: [tally.clone(), tally.clone(), tally.clone(), tally],
            errors: BTreeMap::new(),
            wrong_contents: 0,
        }
    }

    pub(super) fn succeeded(&mut self, operation: Operation, bytes: u64, latency: Duration) {
        let tally = &mut self.tallies[operation as usize];
        tally.requests += 1;
        tally.bytes += bytes;
        // Saturating: what took longer than the histogram's end counts at its end.
        tally.latency_us.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    pub(super) fn failed(&mut self, kind: String, wrong_content: bool) {
        let room = self.errors.len() < ERROR_KINDS_MAX || self.errors.contains_key(&kind);
        let kind = if room { kind } else { "other".to_owned() };
        *self.errors.entry(kind).or_default() += 1;
        self.wrong_contents += u64::from(wrong_content);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.tallies.iter_mut().zip(&other.tallies) {
            mine.requests += theirs.requests;
            mine.bytes += theirs.bytes;
            mine.latency_us.add(&theirs.latency_us).expect("all histograms have one range");
        }
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        self.wrong_contents += other.wrong_contents;
    }
}

/// Latencies in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latency {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p999: f64,
    max: f64,
}

/// One operation's result.
#[derive(Clone, Debug, Serialize)]
pub(super) struct OperationReport {
    operation: &'static str,
    requests: u64,
    bytes: u64,
    requests_per_s: f64,
    mib_per_s: f64,
    latency_ms: Latency,
}

/// What the server spent while it was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct ServerReport {
    cpu: Cpu,
    /// None when no body was moved.
    cpu_s_per_gib: Option<f64>,
    cpu_s_per_1000_requests: Option<f64>,
    /// The highest seen while measuring.
    memory_max: Memory,
}

/// The result of a run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    workload: &'static str,
    sizes_bytes: Vec<u64>,
    concurrency: u32,
    elapsed_s: f64,
    operations: Vec<OperationReport>,
    requests: u64,
    errors: BTreeMap<String, u64>,
    wrong_contents: u64,
    client_cpu_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<ServerReport>,
    interrupted: bool,
}

/// What a report is made from besides the counts.
pub(super) struct Measured {
    pub(super) workload: &'static str,
    pub(super) sizes_bytes: Vec<u64>,
    pub(super) concurrency: u32,
    pub(super) elapsed: Duration,
    pub(super) client: Cpu,
    pub(super) server: Option<(Cpu, Memory)>,
    pub(super) interrupted: bool,
}

impl Report {
    pub(super) fn new(stats: &Stats, measured: Measured) -> Self {
        let elapsed_s = measured.elapsed.as_secs_f64().max(1e-9);
        let requests: u64 = stats.tallies.iter().map(|tally| tally.requests).sum();
        let gib = stats.tallies.iter().map(|tally| tally.bytes).sum::<u64>() as f64 / f64::from(1 << 30);
        let operations = Operation::ALL
            .iter()
            .zip(&stats.tallies)
            .filter(|(_, tally)| tally.requests > 0)
            .map(|(operation, tally)| OperationReport {
                operation: operation.name(),
                requests: tally.requests,
                bytes: tally.bytes,
                requests_per_s: tally.requests as f64 / elapsed_s,
                mib_per_s: tally.bytes as f64 / f64::from(1 << 20) / elapsed_s,
                latency_ms: latency(&tally.latency_us),
            })
            .collect();
        let server = measured.server.map(|(cpu, memory_max)| ServerReport {
            cpu,
            cpu_s_per_gib: (gib > 0.0).then(|| cpu.total_s() / gib),
            cpu_s_per_1000_requests: (requests > 0).then(|| cpu.total_s() / (requests as f64 / 1000.0)),
            memory_max,
        });
        Self {
            workload: measured.workload,
            sizes_bytes: measured.sizes_bytes,
            concurrency: measured.concurrency,
            elapsed_s,
            operations,
            requests,
            errors: stats.errors.clone(),
            wrong_contents: stats.wrong_contents,
            client_cpu_s: measured.client.total_s(),
            server,
            interrupted: measured.interrupted,
        }
    }

    /// Whether the run is a success: something was done, nothing wrong was read, and few enough requests failed.
    pub(super) fn is_success(&self, errors_max: f64) -> bool {
        let errors: u64 = self.errors.values().sum();
        let share = errors as f64 / (self.requests + errors).max(1) as f64;
        self.requests > 0 && self.wrong_contents == 0 && share <= errors_max
    }

    /// The report for people.
    pub(super) fn print(&self) {
        let sizes: Vec<String> = self.sizes_bytes.iter().map(|size| show_size(*size)).collect();
        println!("{} of {}, {} clients, {:.1} s", self.workload, sizes.join(" and "), self.concurrency, self.elapsed_s);
        for one in &self.operations {
            let l = one.latency_ms;
            println!(
                "  {:<5} {:>10} requests  {:>10.1} req/s  {:>9.1} MiB/s",
                one.operation, one.requests, one.requests_per_s, one.mib_per_s
            );
            println!(
                "        latency ms: mean {:.2}  p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2}",
                l.mean, l.p50, l.p90, l.p99, l.p999, l.max
            );
        }
        if let Some(server) = &self.server {
            print!("  server: {:.2} CPU-s ({:.2} user)", server.cpu.total_s(), server.cpu.user_s);
            if let Some(cost) = server.cpu_s_per_gib {
                print!(", {cost:.3} per GiB");
            }
            if let Some(cost) = server.cpu_s_per_1000_requests {
                print!(", {cost:.4} per 1,000 requests");
            }
            let mib = |bytes: u64| bytes / (1 << 20);
            println!(
                "; memory at most {} MiB resident, {} MiB of it anonymous",
                mib(server.memory_max.rss_bytes),
                mib(server.memory_max.anon_bytes)
            );
        }
        println!("  client: {:.2} CPU-s", self.client_cpu_s);
        for (kind, count) in &self.errors {
            println!("  error: {kind}: {count}");
        }
        if self.wrong_contents > 0 {
            println!("  {} ANSWERS HELD WRONG BYTES", self.wrong_contents);
        }
        if self.interrupted {
            println!("  interrupted");
        }
    }
}

fn latency(histogram: &Histogram<u64>) -> Latency {
    let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    Latency {
        mean: histogram.mean() / 1000.0,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: histogram.max() as f64 / 1000.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> Measured {
        Measured {
            workload: "get",
            sizes_bytes: vec![1 << 30],
            concurrency: 1,
            elapsed: Duration::from_secs(2),
            client: Cpu::default(),
            server: Some((Cpu { user_s: 1.0, system_s: 0.5 }, Memory::default())),
            interrupted: false,
        }
    }

    #[test]
    fn rates_and_costs_follow_from_the_counts() {
        let mut stats = Stats::new();
        for _ in 0..3 {
            stats.succeeded(Operation::Get, 1 << 30, Duration::from_millis(10));
        }
        let mut more = Stats::new();
        more.succeeded(Operation::Get, 1 << 30, Duration::from_millis(50));
        stats.merge(&more);
        let report = Report::new(&stats, measured());
        let json = serde_json::to_value(&report).expect("serialise");
        assert_eq!(json["operations"][0]["requests_per_s"], 2.0);
        assert_eq!(json["operations"][0]["mib_per_s"], 2048.0);
        assert_eq!(json["server"]["cpu_s_per_gib"], 0.375);
        assert_eq!(json["server"]["cpu_s_per_1000_requests"], 375.0);
        let max = json["operations"][0]["latency_ms"]["max"].as_f64().expect("a number");
        assert!((49.9..50.1).contains(&max));
        assert!(report.is_success(0.0));
    }

    #[test]
    fn success_needs_requests_right_content_and_few_errors() {
        let mut stats = Stats::new();
        assert!(!Report::new(&stats, measured()).is_success(1.0));
        stats.succeeded(Operation::Get, 1, Duration::from_millis(1));
        stats.failed("503 SlowDown".into(), false);
        assert!(!Report::new(&stats, measured()).is_success(0.4));
        assert!(Report::new(&stats, measured()).is_success(0.5));
        stats.failed("wrong content".into(), true);
        assert!(!Report::new(&stats, measured()).is_success(1.0));
    }

    #[test]
    fn kinds_of_errors_are_bounded() {
        let mut stats = Stats::new();
        for kind in 0..1000 {
            stats.failed(kind.to_string(), false);
        }
        assert_eq!(stats.errors.len(), ERROR_KINDS_MAX + 1);
        assert_eq!(stats.errors.values().sum::<u64>(), 1000);
    }
}
