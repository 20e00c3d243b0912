//! How values stand in the cache: one byte that says what follows, then fields in a fixed order, each with its length.
//!
//! Nothing here outlives a keyspace for long. Another version of the program that finds a form that it does not know
//! takes it for nothing, and forgets it. So whoever changes the fields of an entry gives it a new [`Entry::FORM`], or
//! two versions that run side by side would misread each other.

use holdfast_actors::ports::metadata::MetadataError;
use serde::Serialize;
use serde::de::DeserializeOwned;

mod buckets;
mod objects;
#[cfg(test)]
mod tests;
mod users;

pub(super) use users::{Credential, Profile};

/// It is known not to exist.
const ABSENT: u8 = 0;

/// What is kept in the cache.
pub(super) trait Entry: Sized + Send + Sync + 'static {
    /// Names it in metrics.
    const CACHE: &'static str;
    /// Tells its keys from others.
    const KIND: char;

    /// The first byte of a value, which says which fields follow: not that of [`ABSENT`], and another one with each
    /// change.
    const FORM: u8 = 1;

    /// The error that says that there is none.
    fn absent() -> MetadataError;
    /// Whether an error says so.
    fn is_absent(error: &MetadataError) -> bool {
        std::mem::discriminant(error) == std::mem::discriminant(&Self::absent())
    }
    /// Whether it may be kept in the cache at all.
    fn is_whole(&self) -> bool {
        true
    }
    /// The fields.
    fn write(&self, out: &mut Writer);
    /// Reads the fields; `None`: they cannot be understood.
    fn read(fields: &mut Reader<'_>) -> Option<Self>;
}

/// The form of a value; `None`: it must not be kept.
pub(super) fn encode<E: Entry>(value: &E) -> Option<Vec<u8>> {
    value.is_whole().then(|| {
        let mut out = Writer(vec![E::FORM]);
        value.write(&mut out);
        out.0
    })
}

/// The form of there being none.
pub(super) fn encode_absent() -> Vec<u8> {
    vec![ABSENT]
}

/// Reads a form: a value, or that there is none. `None`: it cannot be understood.
pub(super) fn decode<E: Entry>(bytes: &[u8]) -> Option<Result<E, MetadataError>> {
    match bytes.split_first()? {
        (&ABSENT, []) => Some(Err(E::absent())),
        (form, fields) if *form == E::FORM => {
            let mut fields = Reader(fields);
            let value = E::read(&mut fields)?;
            fields.0.is_empty().then_some(Ok(value))
        }
        _ => None,
    }
}

/// Appends fields.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn json<T: Serialize + Default + PartialEq>(&mut self, value: &T) {
        let text =
            if *value == T::default() { String::new() } else { serde_json::to_string(value).unwrap_or_default() };
        self.bytes(text.as_bytes());
    }
}

/// Takes fields off the front.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.array().map(u32::from_be_bytes)? as usize;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    fn json<T: DeserializeOwned + Default>(&mut self) -> Option<T> {
        let text = self.bytes()?;
        if text.is_empty() { Some(T::default()) } else { serde_json::from_slice(text).ok() }
    }
}
