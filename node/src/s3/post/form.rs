//! Reading `multipart/form-data` as it arrives: first the fields, bounded, then the file as a stream.

use bytes::{Bytes, BytesMut};
use holdfast_actors::domain::access::names::OBJECT_KEY_BYTES_MAX;
use holdfast_actors::domain::objects::tags::OBJECT_TAGS_MAX;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt;
use s3s::{Body, S3Result, s3_error};
use url::form_urlencoded;

/// Largest size of all that precedes the file. S3 allows 20 KB; a policy in base64 may need a little more.
const FIELDS_BYTES_MAX: usize = 64 * 1024;
/// Most fields.
const FIELDS_MAX: usize = 200;
/// Stands for the file's name in a key.
const FILENAME: &str = "${filename}";
/// Longest boundary, by the standard.
const BOUNDARY_BYTES_MAX: usize = 70;

/// Why a form cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum FormError {
    /// It is not `multipart/form-data`.
    #[error("{0}")]
    Malformed(&'static str),
    /// More fields than anybody needs.
    #[error("the fields of the form are too large")]
    FieldsTooLarge,
    /// It ended without a file.
    #[error("the form has no file")]
    NoFile,
    /// The file is large and the request has no length.
    #[error("the length of the file is not known")]
    UnknownLength,
    /// The file does not reach to the end of the form.
    #[error("the file is not the last field of the form")]
    FieldsAfterFile,
    /// The body ended within a part.
    #[error("the form is incomplete")]
    Incomplete,
    /// The body could not be read.
    #[error("read a form: {0}")]
    Body(String),
}

/// The fields of a form.
#[derive(Debug, Default)]
pub(super) struct Form {
    /// Names in lower case.
    fields: Vec<(String, String)>,
    filename: String,
}

impl Form {
    /// A form without a file, for tests.
    #[cfg(test)]
    pub(super) fn of(fields: &[(&str, &str)]) -> Self {
        let fields = fields.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Self { fields, filename: String::new() }
    }

    /// All fields, names in lower case.
    pub(super) fn fields(&self) -> &[(String, String)] {
        &self.fields
    }

    /// A field by its name in lower case.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The key, in which `${filename}` stands for the file's name.
    pub(super) fn key(&self) -> S3Result<String> {
        let key = self.get("key").filter(|key| !key.is_empty()).ok_or_else(|| {
            s3_error!(
                InvalidArgument,
                "Bucket POST must contain a field named 'key'.  If it is specified, please check the order of the fields."
            )
        })?;
        // Browsers of old send the whole path.
        let name = self.filename.rsplit(['/', '\\']).next().unwrap_or_default();
        // Both may have 64 KiB, and together a thousand times that; nobody has been asked yet who sends this.
        let places = key.matches(FILENAME).count();
        let bytes = key.len().saturating_sub(places * FILENAME.len()).saturating_add(places.saturating_mul(name.len()));
        if bytes > OBJECT_KEY_BYTES_MAX {
            return Err(s3_error!(KeyTooLongError, "Your key is too long"));
        }
        Ok(key.replace(FILENAME, name))
    }
}

/// The boundary that a request's Content-Type names.
pub(super) fn boundary(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let boundary = parameter(value, "boundary")?;
    (1..=BOUNDARY_BYTES_MAX).contains(&boundary.len()).then_some(boundary)
}

/// A parameter of a header such as `form-data; name="a"; filename="b"`.
fn parameter(header: &str, wanted: &str) -> Option<String> {
    let mut rest = header.split_once(';')?.1;
    loop {
        let (name, after) = rest.split_once('=')?;
        let name = name.trim();
        let value;
        if let Some(quoted) = after.strip_prefix('"') {
            let mut text = String::new();
            let mut end = None;
            let mut chars = quoted.char_indices().peekable();
            while let Some((at, c)) = chars.next() {
                match c {
                    // Only quotes are escaped: a lone backslash is part of a path of Windows.
                    '\\' if chars.peek().is_some_and(|(_, next)| *next == '"') => {
                        text.push('"');
                        chars.next();
                    }
                    '"' => {
                        end = Some(at);
                        break;
                    }
                    c => text.push(c),
                }
            }
            rest = quoted[end? + 1..].trim_start().strip_prefix(';').unwrap_or_default();
            value = text;
        } else {
            let (text, after) = after.split_once(';').unwrap_or((after, ""));
            value = text.trim().to_owned();
            rest = after;
        }
        if name.eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
    }
}

/// The position of `needle` in `haystack`, at `from` or behind.
fn find(haystack: &[u8], needle: &[u8], mut from: usize) -> Option<usize> {
    let first = *needle.first()?;
    while let Some(at) = haystack.get(from..)?.iter().position(|b| *b == first) {
        let at = from + at;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// Reads a form from a body.
pub(super) struct FormReader {
    body: Body,
    /// What was read and not yet given out.
    buffer: BytesMut,
    /// What ends a part: `\r\n--boundary`.
    delimiter: Vec<u8>,
    /// Bytes read from the body.
    read_bytes: u64,
    /// The file has ended.
    finished: bool,
}

impl FormReader {
    pub(super) fn new(body: Body, boundary: String) -> Self {
        // The first boundary needs no line end before it: with one put there, all boundaries are alike.
        let buffer = BytesMut::from(&b"\r\n"[..]);
        let delimiter = format!("\r\n--{boundary}").into_bytes();
        Self { body, buffer, delimiter, read_bytes: 0, finished: false }
    }

    /// Reads more into the buffer; `false` at the end of the body.
    async fn fill(&mut self) -> Result<bool, FormError> {
        loop {
            match self.body.frame().await {
                None => return Ok(false),
                Some(Err(error)) => return Err(FormError::Body(error.to_string())),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.read_bytes += data.len() as u64;
                        self.buffer.extend_from_slice(data);
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Reads until `needle` is in the buffer, and gives its position.
    async fn fill_until(&mut self, needle: &[u8], budget: usize) -> Result<usize, FormError> {
        let mut from = 0;
        loop {
            if let Some(at) = find(&self.buffer, needle, from) {
                return if at <= budget { Ok(at) } else { Err(FormError::FieldsTooLarge) };
            }
            if self.buffer.len() > budget + needle.len() {
                return Err(FormError::FieldsTooLarge);
            }
            // Each byte is searched once, in however small pieces they come.
            from = self.buffer.len().saturating_sub(needle.len() - 1);
            if !self.fill().await? {
                return Err(FormError::Incomplete);
            }
        }
    }

    /// Reads the fields up to the file, whose first byte is then the next one.
    pub(super) async fn read_fields(mut self) -> Result<(Form, Self), FormError> {
        let mut form = Form::default();
        let mut budget = FIELDS_BYTES_MAX;
        let delimiter = self.delimiter.clone();
        let start = self.fill_until(&delimiter, budget).await?;
        let _ = self.buffer.split_to(start);
        loop {
            // The buffer begins with a delimiter.
            while self.buffer.len() < delimiter.len() + 2 {
                if !self.fill().await? {
                    return Err(FormError::Incomplete);
                }
            }
            match &self.buffer[delimiter.len()..delimiter.len() + 2] {
                b"--" => return Err(FormError::NoFile),
                b"\r\n" => {}
                _ => return Err(FormError::Malformed("A boundary of the form is malformed.")),
            }
            let _ = self.buffer.split_to(delimiter.len());
            let end = self.fill_until(b"\r\n\r\n", budget).await?;
            let head = self.buffer.split_to(end + 4);
            let (name, filename) = part_names(&head)?;
            if name.eq_ignore_ascii_case("file") {
                form.filename = filename.unwrap_or_default();
                return Ok((form, self));
            }
            budget = budget.checked_sub(head.len()).ok_or(FormError::FieldsTooLarge)?;
            let end = self.fill_until(&delimiter, budget).await?;
            budget = budget.checked_sub(end + delimiter.len()).ok_or(FormError::FieldsTooLarge)?;
            let value = String::from_utf8(self.buffer.split_to(end).to_vec())
                .map_err(|_| FormError::Malformed("A field of the form is not UTF-8."))?;
            let name = name.to_ascii_lowercase();
            // Which of two values is meant, and which of them a policy looks at, must not be open.
            if form.get(&name).is_some() {
                return Err(FormError::Malformed("A field of the form occurs twice."));
            }
            if form.fields.len() >= FIELDS_MAX {
                return Err(FormError::FieldsTooLarge);
            }
            form.fields.push((name, value));
        }
    }

    /// The file's length: known if the file ends within the next `ahead` bytes, else by the request's length. Whether
    /// it was right shows when the file ends.
    pub(super) async fn file_length(&mut self, ahead: usize, total_bytes: Option<u64>) -> Result<u64, FormError> {
        let mut from = 0;
        loop {
            if let Some(end) = find(&self.buffer, &self.delimiter, from) {
                return Ok(end as u64);
            }
            if self.buffer.len() >= ahead {
                break;
            }
            from = self.buffer.len().saturating_sub(self.delimiter.len() - 1);
            if !self.fill().await? {
                return Err(FormError::Incomplete);
            }
        }
        let total = total_bytes.ok_or(FormError::UnknownLength)?;
        let before = self.read_bytes.saturating_sub(self.buffer.len() as u64);
        // After the file: the delimiter, `--`, and a line end.
        total.checked_sub(before + self.delimiter.len() as u64 + 4).ok_or(FormError::Incomplete)
    }

    /// The next piece of the file; `None` at its end.
    pub(super) async fn next_piece(&mut self) -> Result<Option<Bytes>, FormError> {
        loop {
            if self.finished {
                return Ok(None);
            }
            if let Some(end) = find(&self.buffer, &self.delimiter, 0) {
                self.finished = true;
                let piece = self.buffer.split_to(end).freeze();
                return Ok((!piece.is_empty()).then_some(piece));
            }
            // All but what could be the beginning of the delimiter is the file's.
            let safe = self.buffer.len().saturating_sub(self.delimiter.len() - 1);
            if safe > 0 {
                return Ok(Some(self.buffer.split_to(safe).freeze()));
            }
            if !self.fill().await? {
                return Err(FormError::Incomplete);
            }
        }
    }
}

/// Name and file name in the head of a part.
fn part_names(head: &[u8]) -> Result<(String, Option<String>), FormError> {
    const MALFORMED: FormError = FormError::Malformed("A part of the form has no proper Content-Disposition.");
    let head = std::str::from_utf8(head).map_err(|_| MALFORMED)?;
    let disposition = head
        .split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition"))
        .map(|(_, value)| value)
        .ok_or(MALFORMED)?;
    let name = parameter(disposition, "name").ok_or(MALFORMED)?;
    Ok((name, parameter(disposition, "filename")))
}

/// The field `tagging`, an XML document, as the header `x-amz-tagging` has it.
pub(super) fn tagging_header(xml: &str) -> S3Result<String> {
    use quick_xml::events::Event;
    let malformed = || s3_error!(MalformedXML, "The field 'tagging' is not a well-formed Tagging document.");
    let mut reader = quick_xml::Reader::from_str(xml);
    let (mut key, mut value): (Option<String>, Option<String>) = (None, None);
    let mut path: Vec<Vec<u8>> = Vec::new();
    let mut text = String::new();
    let mut header = form_urlencoded::Serializer::new(String::new());
    let mut count = 0;
    loop {
        match reader.read_event().map_err(|_| malformed())? {
            Event::Start(start) => {
                if path.len() > 4 {
                    return Err(malformed());
                }
                path.push(start.local_name().as_ref().to_vec());
                text.clear();
            }
            Event::Text(t) => text.push_str(&t.decode().map_err(|_| malformed())?),
            Event::GeneralRef(reference) => {
                let name = reference.decode().map_err(|_| malformed())?;
                let escaped = format!("&{name};");
                text.push_str(&quick_xml::escape::unescape(&escaped).map_err(|_| malformed())?);
            }
            Event::End(_) => {
                let names: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
                match names.as_slice() {
                    [b"Tagging", b"TagSet", b"Tag", b"Key"] => key = Some(std::mem::take(&mut text)),
                    [b"Tagging", b"TagSet", b"Tag", b"Value"] => value = Some(std::mem::take(&mut text)),
                    [b"Tagging", b"TagSet", b"Tag"] => {
                        count += 1;
                        if count > OBJECT_TAGS_MAX {
                            return Err(s3_error!(InvalidTag, "Object tags cannot be greater than 10"));
                        }
                        let key = key.take().ok_or_else(malformed)?;
                        header.append_pair(&key, &value.take().ok_or_else(malformed)?);
                    }
                    [b"Tagging"] | [b"Tagging", b"TagSet"] => {}
                    _ => return Err(malformed()),
                }
                path.pop();
            }
            Event::Eof if path.is_empty() => return Ok(header.finish()),
            Event::Eof => return Err(malformed()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
