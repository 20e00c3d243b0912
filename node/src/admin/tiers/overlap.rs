//! Whether a tier would lie where another one does.
//!
//! Pieces of two tiers never meet, whatever they share: a name is made of the id of a content, which no other content
//! of any cluster has, and of an attempt, or the store gives it. Nothing lists a store and deletes what it does not
//! know: verification and sweeping work on names that the database has. What is dangerous are people: the store of a
//! tier is left as it is when the tier is removed, and whoever deletes it then deletes what another tier has there. So
//! each tier has a directory of its own, which lies in no other tier's, or a bucket or a prefix of its own.
//!
//! Buckets are divided by prefixes, so one prefix may lie in another. A FastDFS is divided by nothing but its groups,
//! gives names itself and cannot be listed: several tiers, which are storage classes, may lie in one.
//!
//! What settings tell is compared, and what stores tell of themselves. Two names of one server are not seen through. Of
//! two tiers that are added or changed at one moment the ledger refuses the one that did not see the other. Tiers that
//! share a place already can be changed as before.

use std::path::Path;

use holdfast_actors::ports::tiering::TierRecord;
use holdfast_actors::ports::tiers::{ColdTier, Tiers as _};
use holdfast_protocol::TierName;
use holdfast_protocol::admin::{ErrorCode, OssSettings, TierSettings};

use super::{AdminState, ApiError, told};

/// Providers whose bucket names are unique, whatever endpoint they are reached at.
const PROVIDERS: [&str; 3] = ["aliyuncs.com", "amazonaws.com", "amazonaws.com.cn"];

/// Refuses settings of the tier `name` that lead to the place of another tier, unless those `before` did, too.
///
/// # Errors
/// `Conflict`, with the other tier's name.
pub(super) fn check_settings(
    name: &TierName,
    settings: &TierSettings,
    before: Option<&TierSettings>,
    records: &[TierRecord],
) -> Result<(), ApiError> {
    for record in records.iter().filter(|record| record.name != *name) {
        let Some(other) = told(record) else { continue };
        let was_so = before.is_some_and(|before| shared(before, &other).is_some());
        if let Some(place) = shared(settings, &other).filter(|_| !was_so) {
            return Err(refused(name, &record.name, &place));
        }
    }
    Ok(())
}

/// The same by what the store that was reached tells of itself: one directory may have several paths.
///
/// # Errors
/// `Conflict`, with the other tier's name.
pub(super) fn check_store(state: &AdminState, name: &TierName, tier: &dyn ColdTier) -> Result<(), ApiError> {
    let Some(store) = tier.store_id() else { return Ok(()) };
    let is_there = |tier: &TierName| state.tiers.tier(tier).is_ok_and(|tier| tier.store_id().as_ref() == Some(&store));
    if is_there(name) {
        return Ok(());
    }
    let names = state.tiers.names();
    match names.iter().find(|&other| other != name && is_there(other)) {
        Some(other) => Err(refused(name, other, "the same directory, by its marker,")),
        None => Ok(()),
    }
}

fn refused(name: &TierName, other: &TierName, place: &str) -> ApiError {
    let message = format!(
        "{place} belongs to the tier {other}: who deletes the store of one would delete what the other has there. Give \
         {name} a place of its own"
    );
    ApiError::new(ErrorCode::Conflict, message)
}

/// What two tiers would share, for people.
fn shared(one: &TierSettings, other: &TierSettings) -> Option<String> {
    match (one, other) {
        (TierSettings::Directory(one), TierSettings::Directory(other)) => {
            let (mine, theirs) = (Path::new(&one.root), Path::new(&other.root));
            (mine.starts_with(theirs) || theirs.starts_with(mine))
                .then(|| format!("the directory {}", theirs.display()))
        }
        (TierSettings::Oss(one), TierSettings::Oss(other)) => {
            let is_one = one.bucket == other.bucket && one.prefix == other.prefix && is_one_store(one, other);
            let prefix = if one.prefix.is_empty() { "no prefix".into() } else { format!("the prefix {}", one.prefix) };
            is_one.then(|| format!("the bucket {} with {prefix}", one.bucket))
        }
        _ => None,
    }
}

fn is_one_store(one: &OssSettings, other: &OssSettings) -> bool {
    store_of(&one.endpoint) == store_of(&other.endpoint)
}

/// What an endpoint is of. Its scheme tells nothing: a store may be served with TLS and without.
fn store_of(endpoint: &str) -> (String, Option<u16>) {
    let Ok(url) = url::Url::parse(endpoint) else { return (endpoint.to_owned(), None) };
    let host = url.host_str().unwrap_or_default().trim_end_matches('.');
    let is_of = |provider: &str| host.strip_suffix(provider).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    match PROVIDERS.into_iter().find(|&provider| is_of(provider)) {
        Some(provider) => (provider.to_owned(), None),
        None => (host.to_owned(), url.port()),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::admin::{DirectorySettings, FastdfsSettings};

    use super::*;

    fn directory(root: &str) -> TierSettings {
        TierSettings::Directory(DirectorySettings { root: root.into(), piece_bytes_max: None, patience_ms: None })
    }

    fn bucket(endpoint: &str, bucket: &str, prefix: &str) -> TierSettings {
        TierSettings::Oss(OssSettings { prefix: prefix.into(), ..OssSettings::new(endpoint, "r", bucket) })
    }

    fn fastdfs(group: Option<&str>) -> TierSettings {
        let group = group.map(str::to_owned);
        TierSettings::Fastdfs(FastdfsSettings { trackers: vec!["h:1".into()], group, ..Default::default() })
    }

    fn record(name: &str, settings: &TierSettings) -> TierRecord {
        let settings = serde_json::to_string(settings).unwrap();
        TierRecord { name: name.parse().unwrap(), settings, created_ms: 0, revision: 1 }
    }

    #[test]
    fn places_that_are_one_are_known_and_others_are_not() {
        let hangzhou = bucket("https://oss-cn-hangzhou.aliyuncs.com", "cold", "a");
        for (one, other, is_shared) in [
            (directory("/mnt/a"), directory("/mnt/a"), true),
            (directory("/mnt/a/"), directory("/mnt//./a"), true),
            (directory("/mnt/a/sub"), directory("/mnt/a"), true),
            (directory("/mnt/a"), directory("/mnt/a/sub"), true),
            (directory("/mnt/a"), directory("/mnt/ab"), false),
            (directory("/mnt/a"), directory("/mnt/b"), false),
            (bucket("http://h:9000", "cold", ""), bucket("http://h:9000", "cold", ""), true),
            (bucket("http://H:9000/", "cold", "a"), bucket("https://h:9000", "cold", "a"), true),
            (bucket("http://h", "cold", "a"), bucket("https://h", "cold", "a"), true),
            (bucket("http://h:9000", "cold", "a"), bucket("http://h:9001", "cold", "a"), false),
            (bucket("http://h:9000", "cold", "a"), bucket("http://h:9000", "cold", "b"), false),
            (bucket("http://h:9000", "cold", ""), bucket("http://h:9000", "cold", "b"), false),
            (bucket("http://h:9000", "cold", "a"), bucket("http://h:9000", "warm", "a"), false),
            (hangzhou.clone(), bucket("https://oss-cn-hangzhou-internal.aliyuncs.com", "cold", "a"), true),
            (hangzhou.clone(), bucket("https://oss.notaliyuncs.com", "cold", "a"), false),
            (hangzhou, bucket("https://s3.amazonaws.com", "cold", "a"), false),
            (fastdfs(None), fastdfs(None), false),
            (fastdfs(Some("group1")), fastdfs(Some("group1")), false),
            (directory("/mnt/a"), fastdfs(None), false),
        ] {
            assert_eq!(shared(&one, &other).is_some(), is_shared, "{one:?} {other:?}");
        }
    }

    #[test]
    fn the_other_tier_is_named_and_what_was_shared_before_may_stay() {
        let records = [record("COLD", &directory("/mnt/a")), record("OTHER", &directory("/mnt/b"))];
        let other: TierName = "OTHER".parse().unwrap();
        let check = |settings: &str, before: Option<&str>| {
            check_settings(&other, &directory(settings), before.map(directory).as_ref(), &records)
        };
        assert!(check("/mnt/b", Some("/mnt/b")).is_ok(), "its own place");
        assert!(check("/mnt/c", Some("/mnt/b")).is_ok());
        let refused = check("/mnt/a", Some("/mnt/b")).unwrap_err();
        assert!(refused.code() == ErrorCode::Conflict && refused.message().contains("the tier COLD"), "{refused:?}");
        assert!(check("/mnt/a", None).is_err());
        assert!(check("/mnt/a", Some("/mnt/a")).is_ok(), "other settings than the place can be changed");
    }
}
