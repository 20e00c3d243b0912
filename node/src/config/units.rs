//! Sizes and durations as people write them: `64 MiB`, `10 min`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes, written with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(u64);

impl Bytes {
    /// So many KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// So many MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

const SIZES: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];

impl FromStr for Bytes {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let explain =
            || format!("{s:?} is not a size: write a whole number and a unit, such as \"64 MiB\" or \"1 GB\"");
        let (number, unit) = split(s).ok_or_else(explain)?;
        let factor = match unit {
            "" if number == 0 => 1,
            _ => SIZES.iter().find(|(name, _)| *name == unit).ok_or_else(explain)?.1,
        };
        number.checked_mul(factor).map(Self).ok_or_else(|| format!("{s:?} is more than 16 EiB"))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = SIZES.iter().find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor));
        let (unit, factor) = exact.copied().unwrap_or(("B", 1));
        write!(f, "{} {unit}", self.0 / factor)
    }
}

/// A length of time, written with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u64);

impl Span {
    /// So many milliseconds.
    pub const fn milliseconds(n: u64) -> Self {
        Self(n)
    }

    /// So many seconds.
    pub const fn seconds(n: u64) -> Self {
        Self(n * 1_000)
    }

    /// So many minutes.
    pub const fn minutes(n: u64) -> Self {
        Self::seconds(n * 60)
    }

    /// So many hours.
    pub const fn hours(n: u64) -> Self {
        Self::minutes(n * 60)
    }

    /// So many days.
    pub const fn days(n: u64) -> Self {
        Self::hours(n * 24)
    }

    /// As the standard library has it.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// `None` for 0, which switches some things off.
    pub fn nonzero(self) -> Option<Duration> {
        (self.0 > 0).then(|| self.duration())
    }
}

const SPANS: [(&str, u64); 12] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("min", 60_000),
    ("s", 1_000),
    ("ms", 1),
    ("day", 86_400_000),
    ("days", 86_400_000),
    ("hour", 3_600_000),
    ("hours", 3_600_000),
    ("m", 60_000),
    ("minutes", 60_000),
    ("seconds", 1_000),
];

/// Longest time that can be written: a hundred years, so that sums never overflow.
const SPAN_MAX_MS: u64 = 36_500 * 86_400_000;

impl FromStr for Span {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let explain = || {
            format!(
                "{s:?} is not a duration: write a whole number and a unit of d, h, min, s or ms, such as \"10 min\""
            )
        };
        let (number, unit) = split(s).ok_or_else(explain)?;
        let factor = match unit {
            "" if number == 0 => 1,
            _ => SPANS.iter().find(|(name, _)| *name == unit).ok_or_else(explain)?.1,
        };
        match number.checked_mul(factor) {
            Some(ms) if ms <= SPAN_MAX_MS => Ok(Self(ms)),
            _ => Err(format!("{s:?} is more than 36500 d")),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0 s");
        }
        let (unit, factor) =
            SPANS[..5].iter().find(|(_, factor)| self.0.is_multiple_of(*factor)).copied().unwrap_or(("ms", 1));
        write!(f, "{} {unit}", self.0 / factor)
    }
}

/// A whole number and what stands after it.
fn split(s: &str) -> Option<(u64, &str)> {
    let s = s.trim();
    let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    Some((s[..digits].parse().ok()?, s[digits..].trim_start()))
}

macro_rules! serde_by_text {
    ($type:ty, $expecting:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: de::Error>(self, v: &str) -> Result<Self::Value, E> {
                        v.parse().map_err(E::custom)
                    }

                    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Self::Value, E> {
                        v.to_string().parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}

serde_by_text!(Bytes, "a size with a unit, such as \"64 MiB\"");
serde_by_text!(Span, "a duration with a unit, such as \"10 min\"");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_round_trip() {
        for (text, bytes) in [("64 MiB", 64 << 20), ("1GiB", 1 << 30), ("7 kB", 7_000), ("0", 0), ("1 B", 1)] {
            let parsed: Bytes = text.parse().unwrap();
            assert_eq!(parsed.get(), bytes);
            assert_eq!(parsed.to_string().parse::<Bytes>().unwrap(), parsed);
        }
        for (text, ms) in [("10 min", 600_000), ("1h", 3_600_000), ("500 ms", 500), ("0", 0), ("90 s", 90_000)] {
            let parsed: Span = text.parse().unwrap();
            assert_eq!(parsed.duration().as_millis(), ms);
            assert_eq!(parsed.to_string().parse::<Span>().unwrap(), parsed);
        }
    }

    #[test]
    fn a_number_without_a_unit_is_refused() {
        for text in ["64", "", "MiB", "-1 s", "1.5 GiB", "64 mib", "99999999999 d", "99999999999999 TiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
