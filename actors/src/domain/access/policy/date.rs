//! Dates in conditions: ISO 8601, or seconds since 1970.

/// Milliseconds since 1970, or `None` for what is no date.
pub(super) fn parse_ms(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<i64>() {
        return seconds.checked_mul(1000);
    }
    if !text.is_ascii() {
        return None;
    }
    let (date, time) = text.split_once('T').map_or((text, None), |(d, t)| (d, Some(t)));
    let mut parts = date.splitn(3, '-');
    let year = digits(parts.next()?, 4, 0, 9999)?;
    let month = digits(parts.next()?, 2, 1, 12)?;
    let day = digits(parts.next()?, 2, 1, days_in_month(year, month))?;
    let mut ms = days_since_epoch(year, month, day) * 86_400_000;
    if let Some(time) = time {
        let (clock, offset_minutes) = split_zone(time)?;
        let (clock, fraction) = clock.split_once('.').map_or((clock, None), |(c, f)| (c, Some(f)));
        let mut parts = clock.split(':');
        let hour = digits(parts.next()?, 2, 0, 23)?;
        let minute = digits(parts.next()?, 2, 0, 59)?;
        let second = parts.next().map_or(Some(0), |s| digits(s, 2, 0, 60))?;
        if parts.next().is_some() {
            return None;
        }
        ms += ((hour * 60 + minute - offset_minutes) * 60 + second) * 1000;
        if let Some(fraction) = fraction {
            if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            let three: String = fraction.chars().chain("00".chars()).take(3).collect();
            ms += three.parse::<i64>().ok()?;
        }
    }
    Some(ms)
}

/// The time of day and the zone's distance from UTC in minutes.
fn split_zone(time: &str) -> Option<(&str, i64)> {
    if let Some(clock) = time.strip_suffix('Z') {
        return Some((clock, 0));
    }
    let at = time.rfind(['+', '-'])?;
    let (hours, minutes) = time[at + 1..].split_once(':')?;
    let offset = digits(hours, 2, 0, 23)? * 60 + digits(minutes, 2, 0, 59)?;
    Some((&time[..at], if time.as_bytes()[at] == b'-' { -offset } else { offset }))
}

fn digits(text: &str, count: usize, min: i64, max: i64) -> Option<i64> {
    if text.len() != count || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|n| (min..=max).contains(n))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the Gregorian calendar.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let before = year - 1;
    let days_to_year = year * 365 + before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400);
    let days_to_month: i64 = (1..month).map(|m| days_in_month(year, m)).sum();
    const DAYS_TO_1970: i64 = 1970 * 365 + 1969 / 4 - 1969 / 100 + 1969 / 400;
    days_to_year - DAYS_TO_1970 + days_to_month + day - 1
}

#[cfg(test)]
mod tests {
    use super::parse_ms;

    #[test]
    fn dates_are_read_as_iso_8601_or_seconds() {
        for (text, ms) in [
            ("0", 0),
            ("1700000000", 1_700_000_000_000),
            ("1970-01-01", 0),
            ("1970-01-01T00:00:00Z", 0),
            ("2023-11-14T22:13:20Z", 1_700_000_000_000),
            ("2023-11-14T23:13:20+01:00", 1_700_000_000_000),
            ("2023-11-14T22:13:20.5Z", 1_700_000_000_500),
            ("2023-11-14T22:13Z", 1_699_999_980_000),
            ("2000-02-29", 951_782_400_000),
            ("1969-12-31", -86_400_000),
            ("2100-03-01", 4_107_542_400_000),
        ] {
            assert_eq!(parse_ms(text), Some(ms), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "yesterday",
            "2023-13-01",
            "2023-02-29",
            "2023-1-1",
            "2023-01-01T",
            "2023-01-01T25:00:00Z",
            "é-01-01",
            "2023-01-01T00:00:00",
            "2023-01-01T00:00:00.Z",
            "99999999999999999999",
        ] {
            assert_eq!(parse_ms(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}", dateish in "[0-9TZ:+.-]{0,30}") {
            let _ = parse_ms(&text);
            let _ = parse_ms(&dateish);
        }
    }
}
