//! Work that is done later: the bodies of messages of the topic for tasks.
//!
//! A task only names things. Whoever carries it out asks the metadata whether they are still due, so a task that is
//! late, repeated or forged can do nothing that was not due anyway.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::{ContentId, UploadId};

/// Things that one task names at most: with their ids about 15 KiB of text.
pub const TASK_ITEMS_MAX: usize = 256;

/// The version of the form that [`Task`] has.
const VERSION: u32 = 1;

/// The largest number of a row that databases have.
const ROW_MAX: u64 = i64::MAX as u64;

/// A content in the queue of contents to reclaim. Both must be those of the row: its number is given out again by a
/// database that was set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReclaimItem {
    /// Number of the row in the queue.
    pub id: u64,
    /// The content.
    #[serde(with = "as_text")]
    pub content: ContentId,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Task {
    /// Deletes the chunks of contents that nothing refers to.
    Reclaim {
        /// Those that lost their last reference before that, in milliseconds since 1970.
        before_ms: u64,
        /// Which.
        contents: Vec<ReclaimItem>,
    },
    /// Ends uploads that nobody finishes.
    ExpireUploads {
        /// Those begun before that, in milliseconds since 1970.
        before_ms: u64,
        /// Which.
        #[serde(with = "as_texts")]
        uploads: Vec<UploadId>,
    },
}

/// Why bytes are no task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// A later version of the program wrote it: another node may know it.
    #[error("a task of kind {kind:?} and version {version}, which this node does not know")]
    Unknown {
        /// Its version.
        version: u32,
        /// Its kind.
        kind: String,
    },
    /// Nobody can read it.
    #[error("not a task: {0}")]
    Malformed(String),
}

/// With the version, as it is written.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    #[serde(flatten)]
    task: T,
}

/// What every version has.
#[derive(Deserialize)]
struct Head {
    version: u32,
    kind: String,
}

impl Task {
    /// The kinds that this version knows.
    pub const KINDS: [&'static str; 2] = ["reclaim", "expire-uploads"];

    /// Its kind, as it is written; also the tag of its message.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Reclaim { .. } => Self::KINDS[0],
            Self::ExpireUploads { .. } => Self::KINDS[1],
        }
    }

    /// How many things it names.
    pub const fn len(&self) -> usize {
        match self {
            Self::Reclaim { contents, .. } => contents.len(),
            Self::ExpireUploads { uploads, .. } => uploads.len(),
        }
    }

    /// Whether it names nothing.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As the body of a message.
    ///
    /// # Panics
    /// When it names more than [`TASK_ITEMS_MAX`] things: nobody would take it.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.len() <= TASK_ITEMS_MAX, "{} things in one task", self.len());
        serde_json::to_vec(&Envelope { version: VERSION, task: self }).expect("text and numbers are JSON")
    }

    /// Reads the body of a message.
    ///
    /// # Errors
    /// [`TaskError`] says whether another node may know more.
    pub fn decode(body: &[u8]) -> Result<Self, TaskError> {
        let malformed = |error: serde_json::Error| TaskError::Malformed(error.to_string());
        let Head { version, kind } = serde_json::from_slice(body).map_err(malformed)?;
        if version != VERSION || !Self::KINDS.contains(&kind.as_str()) {
            return Err(TaskError::Unknown { version, kind });
        }
        let Envelope { task, .. } = serde_json::from_slice::<Envelope<Self>>(body).map_err(malformed)?;
        if task.len() > TASK_ITEMS_MAX {
            return Err(TaskError::Malformed(format!("{} things, {TASK_ITEMS_MAX} are allowed", task.len())));
        }
        if let Self::Reclaim { contents, .. } = &task
            && contents.iter().any(|item| item.id > ROW_MAX)
        {
            return Err(TaskError::Malformed("a number that no row has".into()));
        }
        Ok(task)
    }
}

/// Ids as they are shown.
mod as_text {
    use super::{Deserialize, Deserializer, FromStr, Serializer, fmt};

    pub(super) fn serialize<T: fmt::Display, S: Serializer>(id: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: fmt::Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Lists of ids as they are shown.
mod as_texts {
    use super::{Deserialize, Deserializer, FromStr, Serializer, fmt};

    pub(super) fn serialize<T: fmt::Display, S: Serializer>(ids: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().map(T::to_string))
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
    where
        T: FromStr<Err: fmt::Display>,
        D: Deserializer<'de>,
    {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BEFORE_MS: u64 = 1_790_000_000_123;

    fn reclaim() -> Task {
        let content = ContentId([0x6a, 0xb1, 0x3b, 0x80, 0, 1, 2, 3, 4, 5, 6, 7]);
        Task::Reclaim { before_ms: BEFORE_MS, contents: vec![ReclaimItem { id: 17, content }] }
    }

    fn expire() -> Task {
        Task::ExpireUploads { before_ms: BEFORE_MS, uploads: vec![UploadId(std::array::from_fn(|i| i as u8))] }
    }

    /// Nodes of different versions read each other's tasks.
    #[test]
    fn tasks_have_their_golden_form() {
        let golden = [
            (reclaim(), include_str!("../golden/tasks/reclaim.json")),
            (expire(), include_str!("../golden/tasks/expire-uploads.json")),
        ];
        for (task, text) in golden {
            let pretty = serde_json::to_string_pretty(&Envelope { version: VERSION, task: &task }).expect("JSON");
            assert_eq!(pretty.trim(), text.trim(), "the form on the wire changed");
            assert_eq!(Task::decode(text.as_bytes()), Ok(task.clone()));
            assert_eq!(Task::decode(&task.encode()), Ok(task));
        }
    }

    #[test]
    fn tasks_of_later_versions_are_told_from_what_nobody_can_read() {
        let later = |text: &str| matches!(Task::decode(text.as_bytes()), Err(TaskError::Unknown { .. }));
        assert!(later(r#"{"version":2,"kind":"reclaim","ranges":[]}"#));
        assert!(later(r#"{"version":1,"kind":"compact"}"#));
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"version":1,"kind":"reclaim","before_ms":1}"#,
            r#"{"version":1,"kind":"reclaim","before_ms":-1,"contents":[]}"#,
            r#"{"version":1,"kind":"reclaim","before_ms":1,"contents":[{"id":1,"content":"00"}]}"#,
            r#"{"version":1,"kind":"reclaim","before_ms":1,"contents":[{"id":18446744073709551615,"content":"6ab13b800001020304050607"}]}"#,
            r#"{"version":1,"kind":"expire-uploads","before_ms":1,"uploads":["zz"]}"#,
        ] {
            assert!(matches!(Task::decode(wrong.as_bytes()), Err(TaskError::Malformed(_))), "{wrong}");
        }
    }

    #[test]
    fn the_largest_task_is_small_and_a_larger_one_is_refused() {
        let item = ReclaimItem { id: ROW_MAX, content: ContentId([0xff; 12]) };
        let task = |items| Task::Reclaim { before_ms: u64::MAX, contents: vec![item; items] };
        let body = task(TASK_ITEMS_MAX).encode();
        assert!(body.len() < 32 << 10, "{} bytes", body.len());
        assert_eq!(Task::decode(&body).expect("a task").len(), TASK_ITEMS_MAX);
        let larger = serde_json::to_vec(&Envelope { version: VERSION, task: task(TASK_ITEMS_MAX + 1) }).expect("JSON");
        assert!(matches!(Task::decode(&larger), Err(TaskError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn other_bytes_are_no_task(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Task::decode(&bytes).is_err());
        }
    }
}
