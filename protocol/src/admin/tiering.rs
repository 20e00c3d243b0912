//! Cold tiers: how each is, what lies in it, and what moves.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::TierSettings;

/// A cold tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TierView {
    /// Its name, which is the storage class of what lies in it.
    pub name: String,
    /// `directory`, `oss` or `fastdfs`; `unknown` if the node that answers does not understand its settings.
    pub kind: String,
    /// How it is reached, without secrets; absent if the node that answers does not understand it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<TierSettings>,
    /// When it was added.
    pub created_ms: u64,
    /// Rises with each change of its settings.
    pub revision: u64,
    /// Whether the node that answers can work with it: `up` or `down`, or `unknown` as long as it has not looked.
    pub state: String,
    /// Why not; what it complains of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Moves to it and from it.
    pub backlog: TierBacklog,
    /// What lies in it; absent in lists, since counting takes time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<TierUse>,
    /// What was looked up in it; only in the answer to a change of its settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<TierSample>,
}

/// Pieces of a tier that were looked up before its settings were changed, to see that they lead to the same store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TierSample {
    /// Pieces, of contents that are spread over the tier.
    pub looked_up: u64,
    /// Pieces that were not there. With the settings before they were not found either, or nothing could be asked any
    /// more.
    pub missing: u64,
}

/// Moves of one tier that wait, on all nodes together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TierBacklog {
    /// Moves that are due, or that a node works on.
    pub due: u64,
    /// Moves that failed at least once.
    pub failing: u64,
    /// All moves, those included that wait for the end of a restore.
    pub waiting: u64,
    /// For how long the oldest due move has been due, in milliseconds; absent: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
}

/// What lies in a tier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TierUse {
    /// Contents; copies of an object share one.
    pub contents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Pieces that are to be deleted, those included that a move has only reserved.
    pub pieces_to_delete: u64,
}

/// `POST /v1/tiers`: a tier to be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTier {
    /// Its name: 1 to 32 characters `A-Z`, `0-9` and `_`, beginning with a letter, not `STANDARD`.
    pub name: String,
    /// How it is reached.
    pub settings: TierSettings,
}

/// `PUT /v1/tiers/{tier}`: other settings for a tier. Keys that are given without their secret half keep the one that
/// is stored, if the public half is the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeTier {
    /// How it is reached from now on: the same store, since what lies in it is not moved.
    pub settings: TierSettings,
    /// The revision that was looked at; another one is refused. Absent: whatever there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

/// `POST /v1/tiers/{tier}/check`: whether the node that answers reaches the tier now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TierCheck {
    /// The tier.
    pub tier: String,
    /// The node that looked.
    pub node: String,
    /// Whether it can be worked with.
    pub up: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Bytes that it can still take, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// What an operator should know: servers that do not answer, lag of replicas.
    pub notes: Vec<String>,
    /// How long the look took, in milliseconds.
    pub elapsed_ms: u64,
}

/// `GET /v1/tiers/{tier}/status`: what lies in a tier, what moves, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TierStatus {
    /// The tier, with its use.
    pub tier: TierView,
    /// How many moves were looked at for what follows, the oldest ones; all of them unless `moves_left_out` is true.
    pub moves_seen: u64,
    /// Whether there are more than that.
    pub moves_left_out: bool,
    /// Of those seen: that a node works on.
    pub claimed: u64,
    /// Of those seen: restores that are under way.
    pub restoring: u64,
    /// Of those seen: that wait for the end of a restore.
    pub restored: u64,
    /// Of those seen: what made moves fail the last time, each with how many it made fail, most first.
    pub errors: Vec<MoveError>,
}

/// Why moves fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoveError {
    /// Why.
    pub error: String,
    /// How many moves.
    pub moves: u64,
}

/// Bytes on their way, or that wait to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoveView {
    /// Its number.
    pub id: u64,
    /// Bucket; its number behind a `#` if it has been deleted meanwhile.
    pub bucket: String,
    /// Key.
    pub key: String,
    /// Version.
    pub version: String,
    /// The tier that it works with.
    pub tier: String,
    /// Where the bytes come from, if that is the tier; a move to the tier takes them from wherever they lie then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The storage class where they go: the tier, or `STANDARD` for the cluster's own disks.
    pub to: String,
    /// `stored`, `lifecycle`, `command`, `restore` or `return`.
    pub reason: String,
    /// When it was asked for.
    pub queued_ms: u64,
    /// When it is to be tried (again); of one that is worked on, when its node must have told of progress.
    pub due_ms: u64,
    /// The node that works on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// How often it failed in a row.
    pub failures: u32,
    /// Why it failed the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A page of moves. It may be empty and not be the last: moves that were not asked for are passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MovesPage {
    /// The moves, by number.
    pub items: Vec<MoveView>,
    /// Pass it as `after` for the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `POST /v1/tiers/{tier}/retry`: what became due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RetriedMoves {
    /// Moves that had failed and are due now.
    pub moves: u64,
}

/// `POST /v1/buckets/{name}/moves`: objects that are to lie elsewhere. One call deals with one object, or with one page
/// of those that begin with a prefix: the answer's `next` is the `after` of the next call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestMoves {
    /// One object. Without it, all latest versions whose keys begin with `prefix`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// With `key`: one version instead of the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Which objects, without `key`; empty or absent: all of the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Storage class: the name of a tier, or `STANDARD` for the cluster's own disks.
    pub to: String,
    /// With `STANDARD`: only for so many days, 1 to 36,500, while the storage class stays. Objects of `STANDARD` are
    /// passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
    /// Where to go on: `next` of the call before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Objects a call: 1 to 1,000; 200 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What a [`RequestMoves`] did with the objects of its page.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RequestedMoves {
    /// Objects looked at.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects of which a move waits now, or is under way.
    pub queued: u64,
    /// Their bytes.
    pub queued_bytes: u64,
    /// Objects that lie there already; of a restore, also those whose restore ends at another time now.
    pub in_place: u64,
    /// Objects that were passed over: deleted meanwhile, or of `STANDARD` where a restore was asked for.
    pub passed_over: u64,
    /// Where to go on; absent: that was all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl RequestedMoves {
    /// Adds what another page did; goes on where that one does.
    pub fn add(&mut self, page: Self) {
        self.objects += page.objects;
        self.bytes += page.bytes;
        self.queued += page.queued;
        self.queued_bytes += page.queued_bytes;
        self.in_place += page.in_place;
        self.passed_over += page.passed_over;
        self.next = page.next;
    }
}

/// `POST /v1/tiers/{tier}/verify`: reads what lies in a tier, or a sample, and compares it with the checksums of what
/// was stored. One call reads a bounded number of bytes: the answer's `next` is the `after` of the next call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyTier {
    /// Which share of the contents is read, above 0 up to 1; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<f64>,
    /// Which sample; the same in all calls of one walk. Another one reads other contents.
    #[serde(default)]
    pub seed: u32,
    /// Where to go on: `next` of the call before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Bytes a call, about: 1 MiB to 1 GiB; 128 MiB if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
}

/// What a [`VerifyTier`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifiedTier {
    /// Contents that were passed, those that are not in the sample included.
    pub contents: u64,
    /// Contents that were read to their end.
    pub checked: u64,
    /// Bytes that were read and are right.
    pub bytes: u64,
    /// Contents that are not what was stored.
    pub damaged: Vec<DamagedContent>,
    /// Contents that could not be read: nothing is known about them.
    pub unread: Vec<UnreadContent>,
    /// Where to go on; absent: that was all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl VerifiedTier {
    /// Adds what another call found; goes on where that one does.
    pub fn add(&mut self, page: Self) {
        self.contents += page.contents;
        self.checked += page.checked;
        self.bytes += page.bytes;
        self.damaged.extend(page.damaged);
        self.unread.extend(page.unread);
        self.next = page.next;
    }
}

/// A content in a tier that is not what was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DamagedContent {
    /// The content.
    pub content: String,
    /// Its size.
    pub size_bytes: u64,
    /// What the tier calls the piece that is damaged.
    pub piece: String,
    /// `missing`: the tier does not have it; `short`: it has another size; `mismatch`: other bytes.
    pub what: String,
    /// For people.
    pub detail: String,
}

/// A content in a tier that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnreadContent {
    /// The content.
    pub content: String,
    /// Why.
    pub error: String,
}

/// `PUT /v1/buckets/{name}/storage-class`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetStorageClass {
    /// The class of objects that are stored without one: the name of a tier, or `STANDARD`.
    pub class: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_add_up_and_the_last_one_says_where_to_go_on() {
        let page = |next: Option<&str>| RequestedMoves {
            objects: 3,
            bytes: 30,
            queued: 1,
            queued_bytes: 10,
            in_place: 1,
            passed_over: 1,
            next: next.map(Into::into),
        };
        let mut all = page(Some("b"));
        all.add(page(None));
        assert_eq!((all.objects, all.bytes, all.queued, all.queued_bytes), (6, 60, 2, 20));
        assert_eq!((all.in_place, all.passed_over, all.next), (2, 2, None));

        let unread = UnreadContent { content: "c".into(), error: "e".into() };
        let page = VerifiedTier { contents: 5, checked: 2, bytes: 7, unread: vec![unread], ..Default::default() };
        let mut all = page.clone();
        all.add(page);
        assert_eq!((all.contents, all.checked, all.bytes, all.unread.len()), (10, 4, 14, 2));
    }

    #[test]
    fn requests_refuse_what_they_do_not_know() {
        assert!(serde_json::from_str::<RequestMoves>(r#"{"to":"OSS","prefix":"p"}"#).is_ok());
        assert!(serde_json::from_str::<RequestMoves>(r#"{"to":"OSS","perfix":"p"}"#).is_err());
        assert!(serde_json::from_str::<VerifyTier>(r#"{"sample":0.5}"#).is_ok());
        assert!(serde_json::from_str::<VerifyTier>(r#"{"all":true}"#).is_err());
    }
}
