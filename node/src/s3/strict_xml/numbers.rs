//! Characters that a document has by their numbers (`&#128512;`).
//!
//! s3s refuses those beyond U+FFFF, by mistake, and those that XML cannot hold. Programs in Python write all that is
//! not ASCII so, minio-py for one: a list of keys to delete with one such key was refused as a whole. So they are
//! written out before s3s reads the document. Where a document has no references, in comments and CDATA sections,
//! nothing is read anyway.

/// How long a number may be, with the `x` before it.
const DIGITS_MAX: usize = 10;
const BEGIN: &[u8] = b"&#";

/// Whether s3s reads a reference to a character. As they are it takes them all.
pub(super) fn is_read(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{100000}'..)
}

/// A document with the characters in it that s3s would not read; `None`: there are none.
pub(super) fn written_out(text: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut rest) = (Vec::new(), text);
    let mut from = 0;
    while let Some(at) = rest[from..].windows(BEGIN.len()).position(|window| window == BEGIN) {
        let (at, number) = (from + at, from + at + BEGIN.len());
        from = number;
        if let Some((character, len)) = character(&rest[number..]).filter(|(character, _)| !is_read(*character)) {
            out.extend_from_slice(&rest[..at]);
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            rest = &rest[number + len..];
            from = 0;
        }
    }
    if out.is_empty() {
        return None;
    }
    out.extend_from_slice(rest);
    Some(out)
}

/// The character whose number stands here, and the length of that with the `;` behind it. U+0000 is none.
fn character(text: &[u8]) -> Option<(char, usize)> {
    let end = text.iter().take(DIGITS_MAX + 1).position(|byte| *byte == b';')?;
    let digits = std::str::from_utf8(&text[..end]).ok().filter(|digits| !digits.starts_with('+'))?;
    let number = match digits.strip_prefix('x') {
        Some(hex) if !hex.starts_with('+') => u32::from_str_radix(hex, 16),
        Some(_) => return None,
        None => digits.parse(),
    };
    Some((number.ok().filter(|number| *number != 0).and_then(char::from_u32)?, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(text: &str) -> Option<String> {
        written_out(text.as_bytes()).map(|text| String::from_utf8(text).unwrap())
    }

    #[test]
    fn what_s3s_does_not_read_is_written_out() {
        for (text, expected) in [
            ("<Key>a&#128512;&amp;&#x1F600;b</Key>", "<Key>a\u{1F600}&amp;\u{1F600}b</Key>"),
            ("&#1;", "\u{1}"),
            ("&#228;&#xFFFE;&#38;", "&#228;\u{FFFE}&#38;"),
            ("&#&#x10000;&#", "&#\u{10000}&#"),
            ("&amp;#128512;&#128512;", "&amp;#128512;\u{1F600}"),
        ] {
            assert_eq!(changed(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        for text in [
            "",
            "<Key>\u{1F600}</Key>",
            "&#60;&#x26;&#13;&#x10FFFD;",
            "&#0;",
            "&#xD800;",
            "&#x110000;",
            "&#128512",
            "&#+128512;",
            "&#x+1F600;",
            "&#X1F600;",
            "&#00000128512;",
            "&amp;#128512;",
            "&#",
        ] {
            assert_eq!(changed(text), None, "{text}");
        }
    }
}
