//! What commands print: one JSON document with `--json`, else aligned text.
//!
//! What is shown may be a client's: keys of objects, and messages that name them. A terminal obeys some characters, and
//! whoever may put an object must not write on an operator's screen by them. In text they are shown as `\u{1b}`.

use std::borrow::Cow;
use std::io::Write;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Failure;

/// How results are printed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    pub(super) json: bool,
}

impl Output {
    /// Prints `value` as JSON, or what `text` makes of it.
    pub(super) fn print<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        let written = if self.json {
            serde_json::to_writer(&mut out, value).map_err(std::io::Error::from).and_then(|()| out.write_all(b"\n"))
        } else {
            out.write_all(harmless(&text(value), true).as_bytes())
        };
        still_read(written.and_then(|()| out.flush())).map(|_is_read| ())
    }

    pub(super) fn failure(self, failure: &Failure) {
        // Where nobody can be told, the exit code tells.
        let told = if self.json {
            let error = serde_json::json!({
                "error": { "code": failure.exit as u8, "message": format!("{:#}", failure.error) }
            });
            writeln!(std::io::stderr(), "{error}")
        } else {
            writeln!(std::io::stderr(), "error: {}", harmless(&format!("{:#}", failure.error), true))
        };
        drop(told);
    }
}

/// Text without what a terminal obeys; line ends and tabs stay if they are the command's own.
fn harmless(text: &str, keeps_layout: bool) -> Cow<'_, str> {
    let is_obeyed = |c: char| c.is_control() && !(keeps_layout && matches!(c, '\n' | '\t'));
    if !text.chars().any(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_obeyed(c) {
            shown.extend(c.escape_debug());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// A name or message that stays within its line, whatever is in it.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    harmless(text, false)
}

/// A word for a shell, to be copied from a message.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Prints one of many results in a line of its own, at once. `false` when nobody reads them any more.
///
/// # Errors
/// When it cannot be written for another reason.
pub(super) fn print_line(line: &str) -> std::io::Result<bool> {
    still_read(writeln!(std::io::stdout().lock(), "{line}"))
}

/// Whether what was written found a reader: `holdfast … | head` is no failure.
///
/// # Errors
/// When it could not be written for another reason.
pub(super) fn still_read(written: std::io::Result<()>) -> std::io::Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Rows under a heading, columns aligned.
pub(super) fn table<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut lines = vec![heading.map(str::to_owned)];
    lines.extend(rows.into_iter().map(|row| row.map(|cell| one_line(&cell).into_owned())));
    let mut widths = [0; N];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in lines {
        let cells: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A time as people and programs read it.
pub(super) fn timestamp(ms: u64) -> String {
    i64::try_from(ms / 1000)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| "-".into())
}

/// A number of bytes, to three digits.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_not_padded() {
        let text = table(["NAME", "ON"], [["a".into(), "yes".into()], ["longer".into(), "no".into()]]);
        assert_eq!(text, "NAME    ON\na       yes\nlonger  no\n");
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown_and_not_done() {
        let key = "a\u{1b}]0;mine\u{7}\u{9b}2J\nerror: fake\r";
        let shown = r"a\u{1b}]0;mine\u{7}\u{9b}2J\nerror: fake\r";
        assert_eq!(one_line(key), shown);
        assert_eq!(table(["KEY"], [[key.to_owned()]]), format!("KEY\n{shown}\n"));
        assert_eq!(harmless("two\nlines\t\u{1b}", true), "two\nlines\t\\u{1b}");
        for plain in ["bild-\u{e4}.jpg", "\u{1f980}", "a b/c"] {
            assert!(matches!(one_line(plain), Cow::Borrowed(_)), "{plain}");
        }
    }

    #[test]
    fn what_is_copied_into_a_shell_is_one_word() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("a'; reboot '"), r"'a'\''; reboot '\'''");
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure_and_a_full_disk_is_one() {
        use std::io::{Error, ErrorKind};
        assert!(still_read(Ok(())).unwrap());
        assert!(!still_read(Err(Error::from(ErrorKind::BrokenPipe))).unwrap());
        assert!(still_read(Err(Error::from(ErrorKind::StorageFull))).is_err());
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!((bytes(0), bytes(1536), bytes(1 << 40)), ("0 B".into(), "1.5 KiB".into(), "1.0 TiB".into()));
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
    }
}
