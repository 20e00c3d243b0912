//! The id of a file: its group and its path, in which the server wrote down what it received.

use std::fmt;
use std::net::Ipv4Addr;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::{GroupName, PATH_BYTES_MAX, WireError, WireResult};

/// Length of `M00/00/00/`.
const DIRECTORY_BYTES: usize = 10;
/// Length of the part that carries the facts.
const FACTS_BYTES: usize = 27;
/// Server ids are below this; what is not is an address.
const SERVER_ID_END: u32 = 1 << 24;
/// 27 characters are 162 bits for 160: the servers do not look at the last two.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// The server that took a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// By its address.
    Ip(Ipv4Addr),
    /// By its number, where the cluster gives its servers numbers.
    Server(u32),
}

impl Source {
    fn decode(bytes: [u8; 4]) -> Self {
        match u32::from_le_bytes(bytes) {
            number @ 1..SERVER_ID_END => Self::Server(number),
            _ => Self::Ip(Ipv4Addr::from(bytes)),
        }
    }

    fn encode(self) -> [u8; 4] {
        match self {
            Self::Ip(ip) => ip.octets(),
            Self::Server(number) => number.to_le_bytes(),
        }
    }
}

impl fmt::Display for Source {
    /// As the trackers call the server.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Server(number) => number.fmt(f),
        }
    }
}

/// The size that an id tells, with the marks in its upper bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSize(pub u64);

impl FileSize {
    /// The upper half is random: files below 4 GiB.
    const RANDOM: u64 = 1 << 63;
    /// A file inside a larger one.
    const TRUNK: u64 = 1 << 59;
    /// A file that can be appended to: neither size nor checksum are known.
    const APPENDER: u64 = 1 << 58;

    /// Whether the file can be appended to.
    pub fn is_appender(self) -> bool {
        self.0 & Self::APPENDER != 0
    }

    /// Whether the file lies in a trunk file. Its name is longer.
    pub fn is_trunk(self) -> bool {
        self.0 & Self::TRUNK != 0
    }

    /// The size, where the id tells it.
    pub fn bytes(self) -> Option<u64> {
        if self.is_appender() {
            None
        } else if self.0 & (Self::RANDOM | Self::TRUNK) != 0 {
            Some(self.0 & 0xffff_ffff)
        } else {
            Some(self.0)
        }
    }
}

/// A file's id, with the facts in it. Of a slave file they are those of its master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileId {
    /// The group that stores it.
    pub group: GroupName,
    /// What comes after the group: `M00/00/00/…`.
    pub path: String,
    /// Who took it.
    pub source: Source,
    /// When, in seconds since 1970.
    pub created_s: u32,
    /// How long it is.
    pub size: FileSize,
    /// The checksum of what was received: not of appenders, whose id has a random one.
    pub crc32: u32,
}

impl FileId {
    /// Reads `group/M00/00/00/…`.
    ///
    /// # Errors
    /// It does not have that form.
    pub fn parse(id: &str) -> WireResult<Self> {
        let (group, path) = id.split_once('/').ok_or_else(|| WireError::new(format!("{id:?} is no id of a file")))?;
        Self::new(GroupName::new(group)?, path)
    }

    /// Reads what comes after the group.
    ///
    /// # Errors
    /// It does not have the form of a path.
    pub fn new(group: GroupName, path: &str) -> WireResult<Self> {
        let no_path = || WireError::new(format!("{path:?} is no path of a file"));
        let bytes = path.as_bytes();
        let facts = bytes.get(DIRECTORY_BYTES..DIRECTORY_BYTES + FACTS_BYTES).ok_or_else(no_path)?;
        let hex = |at: usize| matches!(bytes[at], b'0'..=b'9' | b'A'..=b'F');
        let directory = bytes[0] == b'M'
            && [3, 6, 9].iter().all(|at| bytes[*at] == b'/')
            && [1, 2, 4, 5, 7, 8].into_iter().all(hex);
        let rest = &bytes[DIRECTORY_BYTES + FACTS_BYTES..];
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !directory || bytes.len() > PATH_BYTES_MAX || !rest.iter().all(plain) {
            return Err(no_path());
        }
        let mut decoded = [0; 20];
        if BASE64.decode_slice(facts, &mut decoded) != Ok(decoded.len()) {
            return Err(no_path());
        }
        let mut fields = super::Fields::new(&decoded);
        let mut word = || {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(fields.take(4, "the facts")?);
            Ok::<_, WireError>(bytes)
        };
        let source = Source::decode(word()?);
        let created_s = u32::from_be_bytes(word()?);
        let size_high = u32::from_be_bytes(word()?);
        let size_low = u32::from_be_bytes(word()?);
        let crc32 = u32::from_be_bytes(word()?);
        let size = FileSize(u64::from(size_high) << 32 | u64::from(size_low));
        Ok(Self { group, path: path.into(), source, created_s, size, crc32 })
    }

    /// The 27 characters that say this.
    pub fn facts(source: Source, created_s: u32, size: FileSize, crc32: u32) -> String {
        let mut bytes = Vec::with_capacity(20);
        bytes.extend(source.encode());
        bytes.extend(created_s.to_be_bytes());
        bytes.extend(size.0.to_be_bytes());
        bytes.extend(crc32.to_be_bytes());
        BASE64.encode(bytes)
    }

    /// What comes after the facts: seven characters, more of files in trunk files and of slave files.
    pub fn suffix(&self) -> &str {
        &self.path[DIRECTORY_BYTES + FACTS_BYTES..]
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group.as_str(), self.path)
    }
}
