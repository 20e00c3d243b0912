//! What a process costs: CPU seconds and memory, from `/proc`.

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

/// CPU seconds of a process so far, all of its threads together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Cpu {
    /// In user mode, seconds.
    pub(super) user_s: f64,
    /// In the kernel, seconds.
    pub(super) system_s: f64,
}

impl Cpu {
    /// User and system time together, seconds.
    pub(super) fn total_s(self) -> f64 {
        self.user_s + self.system_s
    }

    /// What was spent since `earlier`.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self { user_s: self.user_s - earlier.user_s, system_s: self.system_s - earlier.system_s }
    }
}

/// Resident memory of a process, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Memory {
    /// Everything resident, mapped files included.
    pub(super) rss_bytes: u64,
    /// Anonymous memory alone: what the process itself allocated.
    pub(super) anon_bytes: u64,
}

impl Memory {
    /// The larger of each figure.
    pub(super) fn max(self, other: Self) -> Self {
        Self { rss_bytes: self.rss_bytes.max(other.rss_bytes), anon_bytes: self.anon_bytes.max(other.anon_bytes) }
    }
}

/// CPU seconds of all of `pids`.
///
/// # Errors
/// When one of them is gone.
pub(super) fn cpu_of(pids: &[u32]) -> Result<Cpu> {
    let mut sum = Cpu::default();
    for pid in pids {
        let cpu = parse_stat(&read(*pid, "stat")?).with_context(|| format!("parse /proc/{pid}/stat"))?;
        sum.user_s += cpu.user_s;
        sum.system_s += cpu.system_s;
    }
    Ok(sum)
}

/// Resident memory of all of `pids`.
///
/// # Errors
/// When one of them is gone.
pub(super) fn memory_of(pids: &[u32]) -> Result<Memory> {
    let mut sum = Memory::default();
    for pid in pids {
        let memory = parse_status(&read(*pid, "status")?);
        sum.rss_bytes += memory.rss_bytes;
        sum.anon_bytes += memory.anon_bytes;
    }
    Ok(sum)
}

fn read(pid: u32, file: &str) -> Result<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}"))
        .with_context(|| format!("read /proc/{pid}/{file} (is it running?)"))
}

/// Fields 14 and 15 of `/proc/PID/stat` are utime and stime in clock ticks; they count ended threads too.
fn parse_stat(stat: &str) -> Option<Cpu> {
    // The name of the program is in parentheses and may hold spaces and parentheses itself.
    let rest = &stat[stat.rfind(')')? + 1..];
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
    let user_s = fields.next()?.parse::<u64>().ok()? as f64 / ticks_per_s;
    let system_s = fields.next()?.parse::<u64>().ok()? as f64 / ticks_per_s;
    Some(Cpu { user_s, system_s })
}

fn parse_status(status: &str) -> Memory {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
            .map_or(0, |kib| kib * 1024)
    };
    Memory { rss_bytes: field("VmRSS"), anon_bytes: field("RssAnon") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_parsed_after_a_name_with_spaces_and_parentheses() {
        let ticks = rustix::param::clock_ticks_per_second();
        let line = format!("42 (a) b (c)) S 1 42 42 0 -1 4194304 10 0 0 0 {} {} 0 0 20 0 9 0", 3 * ticks, ticks);
        assert_eq!(parse_stat(&line), Some(Cpu { user_s: 3.0, system_s: 1.0 }));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn status_gives_resident_and_anonymous_bytes() {
        let memory = parse_status("Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t 1024 kB\n");
        assert_eq!(memory, Memory { rss_bytes: 2 << 20, anon_bytes: 1 << 20 });
    }

    #[test]
    fn this_process_has_a_cost() {
        let me = [std::process::id()];
        assert!(memory_of(&me).expect("own memory").rss_bytes > 0);
        assert!(cpu_of(&me).is_ok());
        assert!(cpu_of(&[u32::MAX]).is_err());
    }
}
