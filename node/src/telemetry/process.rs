//! What the process uses, by the names that Prometheus' own clients give it, read when metrics are asked for.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// The time of day, in seconds since 1970.
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Reads `/proc/self` and the clock into metrics. What cannot be read is left as it was.
pub fn measure() {
    metrics::gauge!("holdfast_time_seconds").set(unix_seconds());
    if let Ok(statm) = fs::read_to_string("/proc/self/statm") {
        let mut pages = statm.split(' ').map(|n| n.parse::<u64>().unwrap_or(0));
        let page_bytes = rustix::param::page_size() as u64;
        let (total, resident) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
        metrics::gauge!("process_virtual_memory_bytes").set((total * page_bytes) as f64);
        metrics::gauge!("process_resident_memory_bytes").set((resident * page_bytes) as f64);
    }
    if let Ok(stat) = fs::read_to_string("/proc/self/stat")
        && let Some((_, _, threads)) = parse_stat(&stat)
    {
        metrics::gauge!("process_threads").set(threads as f64);
    }
    if let Ok(fds) = fs::read_dir("/proc/self/fd") {
        metrics::gauge!("process_open_fds").set(fds.count() as f64);
    }
    if let Some(max) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        metrics::gauge!("process_max_fds").set(max as f64);
    }
}

/// The process's CPU time in Prometheus' text form. It is no metric of the exporter, whose counters are whole numbers.
pub fn cpu_text() -> String {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let Some((user, system, _)) = parse_stat(&stat) else { return String::new() };
    let seconds = (user + system) as f64 / rustix::param::clock_ticks_per_second() as f64;
    format!(
        "# HELP process_cpu_seconds_total User and system CPU time.\n# TYPE process_cpu_seconds_total counter\n\
         process_cpu_seconds_total {seconds}\n"
    )
}

/// User and system time in ticks, and threads, from `/proc/self/stat`. The name in parentheses may hold anything.
fn parse_stat(stat: &str) -> Option<(u64, u64, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    Some((fields.get(11)?.parse().ok()?, fields.get(12)?.parse().ok()?, fields.get(17)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 111 222 0 0 20 0 7 0 99";
        assert_eq!(parse_stat(stat), Some((111, 222, 7)));
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        assert!(parse_stat(&own).unwrap().2 >= 1);
    }

    #[test]
    fn cpu_time_is_a_counter() {
        let text = cpu_text();
        assert!(text.contains("\n# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total "), "{text}");
    }
}
