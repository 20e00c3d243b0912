//! What a write or a deletion does to the versions of one key: S3's versioning rules as decisions over a small view of
//! the key, so that every metadata adapter makes the same ones.
//!
//! # The stored shape
//! A key has at most one *current* row, its latest version if that is an object. All else is *history*: older versions
//! and all delete markers. So a key is visible if and only if it has a current row, and a listing of latest objects
//! never meets an old version or a marker. The invariants a plan keeps:
//! * the current row has the highest sequence of the key;
//! * at most one row of a key has the null version, whether current or in history;
//! * without a current row the newest row of history, if any, is a delete marker. It is the key's latest version.

use holdfast_protocol::VersionId;

use crate::ports::metadata::{Deleted, ETag, MetadataError, OnlyIf, Versioning, WritePrecondition};

/// The current row of a key, as far as decisions need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Current {
    /// Its version.
    pub version: VersionId,
    /// Its ETag, for preconditions.
    pub etag: ETag,
    /// Its sequence number.
    pub sequence: u64,
}

/// A row of a key's history, as far as decisions need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Past {
    /// Its version.
    pub version: VersionId,
    /// Whether it is a delete marker.
    pub delete_marker: bool,
    /// Its sequence number.
    pub sequence: u64,
}

/// What becomes of the current row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CurrentFate {
    /// It stays, or there is none.
    Keep,
    /// It moves to history.
    Archive,
    /// It goes, and its content loses a reference.
    Remove,
}

/// What a write does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutPlan {
    /// The version id of the new current row.
    pub version: VersionId,
    /// What becomes of the row that was current.
    pub current: CurrentFate,
    /// Whether the null version in history, if there is one, goes.
    pub remove_past_null: bool,
}

/// What becomes of the newest row of history when a deletion makes it the latest version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promotion {
    /// The latest version did not change, or nothing is left.
    None,
    /// It is an object and becomes the current row, under a new sequence number.
    ToCurrent(VersionId),
    /// It is a delete marker: it stays in history, under a new sequence number.
    MarkerStays(VersionId),
}

/// What a deletion does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeletePlan {
    /// What becomes of the current row.
    pub current: CurrentFate,
    /// The row of history that goes.
    pub remove_past: Option<VersionId>,
    /// The delete marker that is added to history.
    pub add_marker: Option<VersionId>,
    /// What becomes the latest version.
    pub promotion: Promotion,
    /// What the caller is told.
    pub deleted: Deleted,
}

/// Which rows of history a deletion must be shown; see [`plan_delete`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct History {
    /// The two newest rows, newest first.
    pub newest: [Option<Past>; 2],
    /// The row whose version the request names, or for a deletion without a version the row of the null version.
    pub named: Option<Past>,
}

/// Holds a write's conditions against the current row.
///
/// # Errors
/// `PreconditionFailed`; `NoSuchKey` for an If-Match on a key without an object.
pub fn check_precondition(precondition: &WritePrecondition, current: Option<&Current>) -> Result<(), MetadataError> {
    if precondition.must_not_exist && current.is_some() {
        return Err(MetadataError::PreconditionFailed);
    }
    if let Some(wanted) = &precondition.must_match {
        let current = current.ok_or(MetadataError::NoSuchKey)?;
        if wanted.is_some_and(|etag| etag != current.etag) {
            return Err(MetadataError::PreconditionFailed);
        }
    }
    Ok(())
}

/// Holds a deletion of `version` against what was judged before, as far as the key's versions tell. `history` as for
/// [`plan_delete`].
///
/// # Errors
/// `PreconditionFailed`.
pub fn check_only_if(
    only_if: &OnlyIf,
    version: Option<VersionId>,
    current: Option<&Current>,
    history: &History,
) -> Result<(), MetadataError> {
    let named = version.is_none_or(|wanted| current.is_some_and(|current| current.version == wanted));
    let (sequence, is_alone) = if named {
        (current.map(|current| current.sequence), history.newest[0].is_none())
    } else {
        (history.named.map(|past| past.sequence), current.is_none() && history.newest[1].is_none())
    };
    if sequence != Some(only_if.sequence) || (only_if.is_alone && !is_alone) {
        return Err(MetadataError::PreconditionFailed);
    }
    Ok(())
}

/// Whether [`plan_put`]'s plan may touch history: only then must an adapter look for a past null version.
pub fn put_touches_history(versioning: Versioning) -> bool {
    versioning == Versioning::Suspended
}

/// Decides a write of `version` over `current`.
///
/// # Errors
/// As [`check_precondition`].
pub fn plan_put(
    versioning: Versioning,
    version: VersionId,
    current: Option<&Current>,
    precondition: &WritePrecondition,
) -> Result<PutPlan, MetadataError> {
    check_precondition(precondition, current)?;
    Ok(match versioning {
        Versioning::Enabled => PutPlan {
            version,
            current: if current.is_some() { CurrentFate::Archive } else { CurrentFate::Keep },
            remove_past_null: false,
        },
        Versioning::Unversioned | Versioning::Suspended => PutPlan {
            version: VersionId::NULL,
            current: null_replaced(current),
            remove_past_null: versioning == Versioning::Suspended,
        },
    })
}

/// Whether [`plan_delete`] must be shown the key's history.
pub fn delete_needs_history(versioning: Versioning, version: Option<VersionId>, current: Option<&Current>) -> bool {
    match (versioning, version) {
        (Versioning::Unversioned, _) => false,
        (Versioning::Enabled, None) => false,
        (Versioning::Suspended, None) => current.is_none_or(|current| !current.version.is_null()),
        (_, Some(_)) => true,
    }
}

/// Decides a deletion. `history` is looked at only where [`delete_needs_history`] says so.
///
/// # Errors
/// As [`check_precondition`].
pub fn plan_delete(
    versioning: Versioning,
    version: Option<VersionId>,
    marker_version: VersionId,
    precondition: &WritePrecondition,
    current: Option<&Current>,
    history: &History,
) -> Result<DeletePlan, MetadataError> {
    check_precondition(precondition, current)?;
    let told = |version| (versioning != Versioning::Unversioned).then_some(version);
    let mut plan = DeletePlan {
        current: CurrentFate::Keep,
        remove_past: None,
        add_marker: None,
        promotion: Promotion::None,
        deleted: Deleted { version: None, delete_marker: false },
    };
    match (version, versioning) {
        (None, Versioning::Unversioned) => plan.current = null_replaced(current),
        (None, Versioning::Enabled) => {
            if current.is_some() {
                plan.current = CurrentFate::Archive;
            }
            plan.add_marker = Some(marker_version);
            plan.deleted = Deleted { version: told(marker_version), delete_marker: true };
        }
        (None, Versioning::Suspended) => {
            plan.current = null_replaced(current);
            plan.remove_past = history.named.map(|past| past.version);
            plan.add_marker = Some(VersionId::NULL);
            plan.deleted = Deleted { version: told(VersionId::NULL), delete_marker: true };
        }
        (Some(wanted), _) if current.is_some_and(|current| current.version == wanted) => {
            plan.current = CurrentFate::Remove;
            plan.promotion = promotion_of(history.newest[0]);
            plan.deleted.version = told(wanted);
        }
        (Some(wanted), _) => {
            plan.deleted.version = told(wanted);
            if let Some(past) = history.named {
                plan.remove_past = Some(past.version);
                plan.deleted.delete_marker = past.delete_marker;
                let was_latest = current.is_none() && history.newest[0].is_some_and(|top| top.version == wanted);
                if was_latest {
                    plan.promotion = promotion_of(history.newest[1]);
                }
            }
        }
    }
    Ok(plan)
}

/// What a write of the null version does to the current row.
fn null_replaced(current: Option<&Current>) -> CurrentFate {
    match current {
        None => CurrentFate::Keep,
        Some(current) if current.version.is_null() => CurrentFate::Remove,
        Some(_) => CurrentFate::Archive,
    }
}

fn promotion_of(next: Option<Past>) -> Promotion {
    match next {
        None => Promotion::None,
        Some(past) if past.delete_marker => Promotion::MarkerStays(past.version),
        Some(past) => Promotion::ToCurrent(past.version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: VersionId = VersionId([1; 12]);
    const V2: VersionId = VersionId([2; 12]);
    const V3: VersionId = VersionId([3; 12]);
    const ETAG: ETag = ETag { md5: [7; 16], parts: None };

    fn current(version: VersionId) -> Current {
        Current { version, etag: ETAG, sequence: 5 }
    }

    fn past(version: VersionId, delete_marker: bool) -> Option<Past> {
        Some(Past { version, delete_marker, sequence: 3 })
    }

    fn put(versioning: Versioning, current: Option<Current>) -> PutPlan {
        plan_put(versioning, V3, current.as_ref(), &WritePrecondition::default()).unwrap()
    }

    fn delete(
        versioning: Versioning,
        version: Option<VersionId>,
        current: Option<Current>,
        history: History,
    ) -> DeletePlan {
        plan_delete(versioning, version, V3, &WritePrecondition::default(), current.as_ref(), &history).unwrap()
    }

    #[test]
    fn unversioned_put_replaces() {
        let plan = put(Versioning::Unversioned, Some(current(VersionId::NULL)));
        assert_eq!(plan.version, VersionId::NULL);
        assert_eq!(plan.current, CurrentFate::Remove);
        assert!(!plan.remove_past_null);
    }

    #[test]
    fn enabled_put_archives_even_the_null_version() {
        let plan = put(Versioning::Enabled, Some(current(VersionId::NULL)));
        assert_eq!((plan.version, plan.current), (V3, CurrentFate::Archive));
    }

    #[test]
    fn suspended_put_replaces_only_the_null_version() {
        let over_null = put(Versioning::Suspended, Some(current(VersionId::NULL)));
        assert_eq!((over_null.version, over_null.current), (VersionId::NULL, CurrentFate::Remove));
        let over_named = put(Versioning::Suspended, Some(current(V1)));
        assert_eq!((over_named.version, over_named.current), (VersionId::NULL, CurrentFate::Archive));
        assert!(over_named.remove_past_null);
    }

    #[test]
    fn enabled_delete_of_a_missing_key_still_makes_a_marker() {
        let plan = delete(Versioning::Enabled, None, None, History::default());
        assert_eq!(plan.add_marker, Some(V3));
        assert_eq!(plan.deleted, Deleted { version: Some(V3), delete_marker: true });
    }

    #[test]
    fn suspended_delete_removes_the_null_version_in_history() {
        let history = History { named: past(VersionId::NULL, false), ..History::default() };
        let plan = delete(Versioning::Suspended, None, Some(current(V1)), history);
        assert_eq!(plan.current, CurrentFate::Archive);
        assert_eq!(plan.remove_past, Some(VersionId::NULL));
        assert_eq!(plan.add_marker, Some(VersionId::NULL));
    }

    #[test]
    fn unversioned_delete_of_a_missing_key_says_nothing() {
        let plan = delete(Versioning::Unversioned, None, None, History::default());
        assert_eq!(plan.deleted, Deleted { version: None, delete_marker: false });
        assert_eq!(plan.add_marker, None);
    }

    #[test]
    fn removing_the_current_version_promotes_the_next_object() {
        let history = History { newest: [past(V1, false), None], named: None };
        let plan = delete(Versioning::Enabled, Some(V2), Some(current(V2)), history);
        assert_eq!(plan.current, CurrentFate::Remove);
        assert_eq!(plan.promotion, Promotion::ToCurrent(V1));
    }

    #[test]
    fn removing_the_current_version_above_a_marker_hides_the_key() {
        let history = History { newest: [past(V1, true), past(V3, false)], named: None };
        let plan = delete(Versioning::Enabled, Some(V2), Some(current(V2)), history);
        assert_eq!(plan.promotion, Promotion::MarkerStays(V1));
    }

    #[test]
    fn removing_the_latest_marker_brings_the_object_back() {
        let history = History { newest: [past(V2, true), past(V1, false)], named: past(V2, true) };
        let plan = delete(Versioning::Enabled, Some(V2), None, history);
        assert_eq!(plan.remove_past, Some(V2));
        assert_eq!(plan.promotion, Promotion::ToCurrent(V1));
        assert_eq!(plan.deleted, Deleted { version: Some(V2), delete_marker: true });
    }

    #[test]
    fn removing_an_old_version_changes_nothing_else() {
        let history = History { newest: [past(V1, false), None], named: past(V1, false) };
        let plan = delete(Versioning::Enabled, Some(V1), Some(current(V2)), history);
        assert_eq!(plan.current, CurrentFate::Keep);
        assert_eq!(plan.remove_past, Some(V1));
        assert_eq!(plan.promotion, Promotion::None);
        // The same, when a marker hides the key.
        let history = History { newest: [past(V2, true), past(V1, false)], named: past(V1, false) };
        assert_eq!(delete(Versioning::Enabled, Some(V1), None, history).promotion, Promotion::None);
    }

    #[test]
    fn a_deletion_of_what_was_judged_wants_the_very_same_version() {
        let only = |sequence, is_alone| OnlyIf { sequence, is_alone, ..OnlyIf::default() };
        let check = |only_if, version, current: Option<Current>, history| {
            check_only_if(&only_if, version, current.as_ref(), &history).is_ok()
        };
        let none = History::default();
        assert!(check(only(5, false), None, Some(current(V1)), none));
        assert!(check(only(5, false), Some(V1), Some(current(V1)), none));
        assert!(!check(only(4, false), None, Some(current(V1)), none), "it was changed since");
        assert!(!check(only(5, false), None, None, none), "it is gone");
        // A marker that hides nothing, and one that does.
        let alone = History { newest: [past(V1, true), None], named: past(V1, true) };
        let hiding = History { newest: [past(V1, true), past(V2, false)], named: past(V1, true) };
        assert!(check(only(3, true), Some(V1), None, alone));
        assert!(!check(only(3, true), Some(V1), None, hiding));
        assert!(!check(only(3, true), Some(V1), Some(current(V2)), alone), "an object took its place");
        assert!(check(only(3, false), Some(V1), Some(current(V2)), alone));
        assert!(!check(only(3, true), Some(V3), None, History { named: None, ..alone }));
    }

    #[test]
    fn preconditions_hold_against_the_object_only() {
        let must_not_exist = WritePrecondition { must_not_exist: true, must_match: None };
        assert!(check_precondition(&must_not_exist, None).is_ok());
        assert!(matches!(
            check_precondition(&must_not_exist, Some(&current(V1))),
            Err(MetadataError::PreconditionFailed)
        ));
        let any = WritePrecondition { must_not_exist: false, must_match: Some(None) };
        assert!(check_precondition(&any, Some(&current(V1))).is_ok());
        assert!(matches!(check_precondition(&any, None), Err(MetadataError::NoSuchKey)));
        let other =
            WritePrecondition { must_not_exist: false, must_match: Some(Some(ETag { md5: [8; 16], parts: None })) };
        assert!(matches!(check_precondition(&other, Some(&current(V1))), Err(MetadataError::PreconditionFailed)));
    }
}
