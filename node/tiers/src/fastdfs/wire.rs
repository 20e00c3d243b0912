//! FastDFS's protocol: the header, the fields and the requests. All integers are big-endian.
//!
//! Every message is a [`Header`] of ten bytes and a body. What a server sends is read by [`Fields`], which is total:
//! bytes that do not have the expected form are a [`WireError`], whatever they are.

mod file_id;
mod replies;

pub use file_id::{FileId, FileSize, Source};
pub use replies::{
    Address, FileInfo, GroupStat, StorageStat, StorageStatus, StoreTarget, Stored, fetch_target, fetch_targets,
    file_info, groups, storage, storages, store_target, store_targets, stored,
};

/// Length of a header.
pub const HEADER_BYTES: usize = 10;
/// Length of a group's field.
pub const GROUP_BYTES: usize = 16;
/// Length of a slave file's prefix field.
pub const PREFIX_BYTES: usize = 16;
/// Length of an extension's field.
pub const EXTENSION_BYTES: usize = 6;
/// The longest path of a file: the servers keep it in buffers of 128 bytes, with a zero at the end.
pub const PATH_BYTES_MAX: usize = 127;
/// The most servers that a group can have.
pub const SERVERS_MAX: usize = 32;
/// The most groups that a tracker can have.
pub const GROUPS_MAX: usize = 512;

/// What a message asks for.
pub mod command {
    /// Every reply.
    pub const REPLY: u8 = 100;
    /// Tracker and storage: are you there?
    pub const ACTIVE_TEST: u8 = 111;
    /// Tracker and storage: close the connection.
    pub const QUIT: u8 = 82;
    /// Tracker: one group.
    pub const LIST_ONE_GROUP: u8 = 90;
    /// Tracker: all groups.
    pub const LIST_GROUPS: u8 = 91;
    /// Tracker: the storages of a group, or one of them.
    pub const LIST_STORAGES: u8 = 92;
    /// Tracker: where to store, in any group.
    pub const STORE: u8 = 101;
    /// Tracker: where to read a file.
    pub const FETCH: u8 = 102;
    /// Tracker: where to change a file.
    pub const UPDATE: u8 = 103;
    /// Tracker: where to store, in a group.
    pub const STORE_IN_GROUP: u8 = 104;
    /// Tracker: everywhere that a file can be read.
    pub const FETCH_ALL: u8 = 105;
    /// Tracker: everywhere that a file can be stored, in any group.
    pub const STORE_ALL: u8 = 106;
    /// Tracker: everywhere that a file can be stored, in a group.
    pub const STORE_IN_GROUP_ALL: u8 = 107;
    /// Storage: a new file.
    pub const UPLOAD: u8 = 11;
    /// Storage: delete a file.
    pub const DELETE: u8 = 12;
    /// Storage: read a file.
    pub const DOWNLOAD: u8 = 14;
    /// Storage: a new file beside another, whose name follows from the other's.
    pub const UPLOAD_SLAVE: u8 = 21;
    /// Storage: size and checksum of a file.
    pub const FILE_INFO: u8 = 22;
}

/// What a status says: FastDFS sends the errno of Linux.
pub mod status {
    /// Done.
    pub const OK: u8 = 0;
    /// `ENOENT`: no such file, group or server.
    pub const MISSING: u8 = 2;
    /// `EEXIST`.
    pub const EXISTS: u8 = 17;
    /// `EINVAL`: the storage closes the connection after it.
    pub const INVALID: u8 = 22;
    /// `ENOSPC`.
    pub const FULL: u8 = 28;
}

/// In the header of a [`command::FILE_INFO`]: do not compute the checksum.
pub const INFO_WITHOUT_CRC: u8 = 1;
/// In the header of a [`command::FILE_INFO`]: do not log that the file is missing.
pub const INFO_SILENT: u8 = 2;

/// Bytes that do not have the form that the protocol asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WireError(String);

impl WireError {
    /// With what is wrong.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// Shorthand of this module.
pub type WireResult<T> = Result<T, WireError>;

/// What stands before every body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Length of the body that follows.
    pub body_bytes: u64,
    /// See [`command`].
    pub command: u8,
    /// See [`status`]; in requests, flags.
    pub status: u8,
}

impl Header {
    /// As it is sent.
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.body_bytes.to_be_bytes());
        bytes[8] = self.command;
        bytes[9] = self.status;
        bytes
    }

    /// As it came.
    ///
    /// # Errors
    /// The length is negative: the servers count it signed.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> WireResult<Self> {
        let [a, b, c, d, e, f, g, h, command, status] = bytes;
        let body_bytes = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        if i64::try_from(body_bytes).is_err() {
            return Err(WireError::new(format!("a body of {body_bytes:#x} bytes")));
        }
        Ok(Self { body_bytes, command, status })
    }

    /// As [`Header::decode`], of a reply.
    ///
    /// # Errors
    /// As [`Header::decode`]; it is no reply; it refuses and has a body.
    pub fn decode_reply(bytes: [u8; HEADER_BYTES]) -> WireResult<Self> {
        let header = Self::decode(bytes)?;
        if header.command != command::REPLY {
            return Err(WireError::new(format!("command {} where a reply has 100", header.command)));
        }
        if header.status != status::OK && header.body_bytes != 0 {
            return Err(WireError::new(format!("status {} with a body", header.status)));
        }
        Ok(header)
    }
}

/// The name of a group: 1 to 16 letters and digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupName(String);

impl GroupName {
    /// A name as an operator or a server gave it.
    ///
    /// # Errors
    /// It is empty, too long, or has other characters.
    pub fn new(name: &str) -> WireResult<Self> {
        let fits = (1..=GROUP_BYTES).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if fits { Ok(Self(name.into())) } else { Err(WireError::new(format!("{name:?} is no name of a group"))) }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As a field.
    pub fn field(&self) -> [u8; GROUP_BYTES] {
        padded(&self.0)
    }
}

/// Text in a field of fixed length, filled with zeros; what is too long is cut.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    let length = text.len().min(N);
    field[..length].copy_from_slice(&text.as_bytes()[..length]);
    field
}

/// A request with its whole body, in one piece so that it is sent by one write.
pub fn request(command: u8, flags: u8, body: &[&[u8]]) -> Vec<u8> {
    let body_bytes: usize = body.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(HEADER_BYTES + body_bytes);
    frame.extend(Header { body_bytes: body_bytes as u64, command, status: flags }.encode());
    for part in body {
        frame.extend(*part);
    }
    frame
}

/// A request about a file: its group and path are the whole body.
pub fn file_request(command: u8, flags: u8, group: &GroupName, path: &str) -> Vec<u8> {
    request(command, flags, &[&group.field(), path.as_bytes()])
}

/// The upload of an empty file without an extension.
pub fn upload_empty(path_index: u8) -> Vec<u8> {
    request(command::UPLOAD, 0, &[&[path_index], &0_u64.to_be_bytes(), &[0; EXTENSION_BYTES]])
}

/// All of a slave file's upload but its bytes, of which `size_bytes` have to follow. The slave has no extension, so
/// that its name is the master's and `prefix`.
pub fn upload_slave_head(master: &str, prefix: &str, size_bytes: u64) -> Vec<u8> {
    let mut frame = request(
        command::UPLOAD_SLAVE,
        0,
        &[
            &(master.len() as u64).to_be_bytes(),
            &size_bytes.to_be_bytes(),
            &padded::<PREFIX_BYTES>(prefix),
            &[0; EXTENSION_BYTES],
            master.as_bytes(),
        ],
    );
    let body_bytes = (frame.len() - HEADER_BYTES) as u64 + size_bytes;
    frame[..8].copy_from_slice(&body_bytes.to_be_bytes());
    frame
}

/// The download of `bytes` bytes from `offset` on.
pub fn download(group: &GroupName, path: &str, offset: u64, bytes: u64) -> Vec<u8> {
    let body: [&[u8]; 4] = [&offset.to_be_bytes(), &bytes.to_be_bytes(), &group.field(), path.as_bytes()];
    request(command::DOWNLOAD, 0, &body)
}

/// Reads fields one after the other.
#[derive(Debug, Clone)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The fields of a body.
    pub fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.0.len()
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// There are fewer.
    pub fn take(&mut self, count: usize, what: &str) -> WireResult<&'a [u8]> {
        let (taken, rest) =
            self.0.split_at_checked(count).ok_or_else(|| WireError::new(format!("the body ends before {what}")))?;
        self.0 = rest;
        Ok(taken)
    }

    /// One byte.
    ///
    /// # Errors
    /// There is none.
    pub fn u8(&mut self, what: &str) -> WireResult<u8> {
        Ok(self.take(1, what)?[0])
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// There are fewer.
    pub fn u64(&mut self, what: &str) -> WireResult<u64> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8, what)?);
        Ok(u64::from_be_bytes(bytes))
    }

    /// Text in a field of `count` bytes, up to the first zero.
    ///
    /// # Errors
    /// There are fewer bytes, or they are not visible ASCII.
    pub fn text(&mut self, count: usize, what: &str) -> WireResult<&'a str> {
        let field = self.take(count, what)?;
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(count);
        let text = &field[..end];
        if !text.iter().all(u8::is_ascii_graphic) {
            return Err(WireError::new(format!("{what} is no text: {}", text.escape_ascii())));
        }
        std::str::from_utf8(text).map_err(|_| WireError::new(format!("{what} is no text")))
    }

    /// A group's field.
    ///
    /// # Errors
    /// As [`Fields::text`] and [`GroupName::new`].
    pub fn group(&mut self) -> WireResult<GroupName> {
        GroupName::new(self.text(GROUP_BYTES, "the group")?)
    }
}

#[cfg(test)]
mod tests;
