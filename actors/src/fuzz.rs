//! Entry points for fuzzing what clients and the coordination service give to the decisions. See
//! [`holdfast_protocol::fuzz`].

use std::borrow::Cow;
use std::collections::BTreeSet;

use holdfast_protocol::NodeId;
use holdfast_protocol::cluster::{Epoch, Joiner, LayoutChange, LayoutDocument, LayoutNode, Leaver, ShardState};
use holdfast_protocol::fuzz::{Target, json};

use crate::domain::access::cors::{CorsRule, CorsRules};
use crate::domain::access::names::validate_bucket_name;
use crate::domain::access::policy::{Attempt, ConditionKey, Facts, Policy};
use crate::domain::events::NotificationRules;
use crate::domain::objects::ranges::ByteRange;
use crate::domain::objects::tags::parse_tagging_header;
use crate::domain::placement::{self, danger, layout, shard};
use crate::ports::coordination::{CacheState, ClusterIdentity, NodeAnnouncement};

/// Those of this crate.
pub const TARGETS: &[Target] = &[
    Target { name: "policy", body: policy, seeds: policies },
    Target { name: "placement", body: placement, seeds: placements },
    Target { name: "header_text", body: header_text, seeds: header_texts },
];

/// What stands between the parts of an input.
const END: char = '\0';

fn parts(bytes: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(bytes).ok()?;
    Some(text.split_once(END).unwrap_or((text, "")))
}

/// Has one value for each key, or several.
struct Says<'a>(&'a str);

impl Facts for Says<'_> {
    fn values(&self, key: &ConditionKey) -> Vec<Cow<'_, str>> {
        match key {
            ConditionKey::SourceIp => vec!["10.1.2.3".into()],
            ConditionKey::SecureTransport => vec!["true".into()],
            ConditionKey::CurrentTime => vec!["2026-01-02T03:04:05Z".into()],
            ConditionKey::EpochTime | ConditionKey::SignatureAge | ConditionKey::MaxKeys => vec!["1700000000".into()],
            ConditionKey::RequestObjectTagKeys => self.0.split(',').map(Cow::from).collect(),
            ConditionKey::Referer => Vec::new(),
            _ => vec![self.0.into()],
        }
    }
}

/// A bucket policy, and the key of a request that it is asked about.
pub fn policy(bytes: &[u8]) {
    let Some((text, key)) = parts(bytes) else { return };
    let Ok(policy) = Policy::parse(text, "photos") else { return };
    for (user, action, key) in [
        (Some("ann"), "s3:GetObject", Some(key)),
        (None, "s3:PutObject", Some(key)),
        (Some(key), "s3:ListBucket", None),
    ] {
        let attempt = Attempt { user, action, bucket: "photos", key };
        let verdict = policy.evaluate(&attempt, &Says(attempt.key.unwrap_or("a,b")));
        assert_eq!(verdict, policy.evaluate(&attempt, &Says(attempt.key.unwrap_or("a,b"))));
    }
    let _ = (policy.is_public(), policy.needs_object_tags(), policy.users().len());
}

/// A layout and the state of a shard, as the coordination service holds them, and what the controller makes of them.
pub fn placement(bytes: &[u8]) {
    json::<ClusterIdentity>(bytes).map(|identity| identity.check());
    json::<CacheState>(bytes).map(|state| state.warming(None, "a server").on(None));
    json::<NodeAnnouncement>(bytes);
    let Some((layout, state)) = parts(bytes) else { return };
    let state = json::<ShardState>(state.as_bytes()).filter(|state| shard::check(state).is_ok());
    let lost = BTreeSet::from([NodeId::from(2)]);
    let target = state.as_ref().map(|state| state.target.clone()).unwrap_or_default();
    if let Some(mut document) = json::<LayoutDocument>(layout.as_bytes()) {
        let version = document.version.saturating_add(1);
        let _ = layout::apply(&mut document, version);
        let current = vec![target; 4];
        if let Ok(assigned) = placement::assign(&document.applied, &lost, &current) {
            let replicas = document.applied.replication_factor as usize;
            for holders in &assigned {
                assert_eq!(holders.iter().collect::<BTreeSet<_>>().len(), replicas);
                assert!(holders.iter().all(|node| document.applied.nodes.contains_key(node) && !lost.contains(node)));
            }
            layout::diff(&current, &assigned, &[1; 4]);
        }
    }
    let Some(state) = state else { return };
    danger::health(&state, &lost);
    shard::pending(&state, &lost);
    for node in state.write_set().chain(state.leaving.iter().map(|leaver| leaver.node)).collect::<Vec<_>>() {
        let since = state.joining.iter().find(|joiner| joiner.node == node).map_or(state.epoch, |joiner| joiner.since);
        for event in [
            shard::ShardEvent::Retarget { target: vec![node] },
            shard::ShardEvent::Verified { node, since },
            shard::ShardEvent::JoinFailed { node, since },
            shard::ShardEvent::GraceElapsed { node, since },
            shard::ShardEvent::NodeLost { node },
            shard::ShardEvent::DataLost { node },
        ] {
            let after = shard::apply(&state, &event, &lost).state;
            assert!(after.epoch >= state.epoch && !after.members.is_empty());
        }
    }
}

/// Values of headers and queries, and what is kept of a bucket's configuration.
pub fn header_text(bytes: &[u8]) {
    let Some((text, other)) = parts(bytes) else { return };
    let _ = validate_bucket_name(text);
    let _ = parse_tagging_header(text);
    if let Some(range) = ByteRange::parse_copy_source_range(text) {
        for size_bytes in [0, 1, u64::MAX] {
            let _ = range.resolve(size_bytes).map(|range| assert!(range.start < range.end && range.end <= size_bytes));
        }
    }
    if let Some(rules) = json::<CorsRules>(text.as_bytes()).filter(|rules| rules.validate().is_ok()) {
        let _ = rules.actual(other, "GET");
        let _ = rules.preflight(other, "PUT", other);
    }
    json::<NotificationRules>(text.as_bytes()).map(|rules| rules.check());
}

fn policies() -> Vec<Vec<u8>> {
    let statement = |rest: &str| {
        format!(
            r#"{{"Version":"2012-10-17","Id":"p","Statement":[{{"Sid":"one","Effect":"Allow","Principal":{{"AWS":["arn:aws:iam::1:user/ann","*"]}},"Action":["s3:Get*","s3:ListBucket"],"Resource":["arn:aws:s3:::photos","arn:aws:s3:::photos/home/${{aws:username, 'guest'}}/*"]{rest}}}]}}{END}home/ann/cat.jpg"#
        )
    };
    let conditions = [
        r#"{"StringLike":{"s3:prefix":["a*","?b"]},"StringNotEqualsIgnoreCase":{"aws:UserAgent":"x"}}"#,
        r#"{"NumericLessThanEquals":{"s3:max-keys":"10"},"DateGreaterThan":{"aws:CurrentTime":"2026-01-01T00:00:00.5+01:30"}}"#,
        r#"{"IpAddress":{"aws:SourceIp":["10.0.0.0/8","2001:db8::/32"]},"Bool":{"aws:SecureTransport":true}}"#,
        r#"{"ForAnyValue:StringEquals":{"s3:RequestObjectTagKeys":["a","b"]},"Null":{"s3:ExistingObjectTag/k":"false"}}"#,
        r#"{"DateLessThanIfExists":{"aws:EpochTime":1700000000},"ArnLike":{"aws:PrincipalArn":"arn:aws:iam::*:user/*"}}"#,
    ];
    let mut all = vec![statement("")];
    all.extend(conditions.map(|condition| statement(&format!(r#","Condition":{condition}"#))));
    let deny = r#"{"Statement":{"Effect":"Deny","NotPrincipal":{"AWS":"bob"},"NotAction":"s3:*Object","NotResource":"arn:aws:s3:::photos/x?"}}"#;
    all.push(format!("{deny}{END}x1"));
    all.into_iter().map(String::into_bytes).collect()
}

fn placements() -> Vec<Vec<u8>> {
    let node = NodeId::from;
    let mut document = LayoutDocument::new(2);
    for (id, zone) in [(1, "a"), (2, "b"), (3, "a"), (4, "c")] {
        document.applied.nodes.insert(node(id), LayoutNode { zone: zone.into(), weight: 5, draining: id == 4 });
    }
    document.staged = vec![
        LayoutChange::Assign { node: node(5), zone: "b".into(), weight: 7 },
        LayoutChange::Undrain { node: node(4) },
        LayoutChange::SetReplicationFactor { replicas: 3 },
    ];
    let settled = ShardState::founding(vec![node(1), node(2)]);
    let mut moving = ShardState { epoch: Epoch(5), target: vec![node(1), node(3)], ..settled.clone() };
    moving.joining.push(Joiner { node: node(3), since: Epoch(4) });
    moving.leaving.push(Leaver { node: node(4), since: Epoch(5) });
    let text = |state: &ShardState| {
        let (layout, state) = (serde_json::to_string(&document), serde_json::to_string(state));
        format!("{}{END}{}", layout.expect("plain data"), state.expect("plain data")).into_bytes()
    };
    let announced = r#"{"id":"0000000000000001","addresses":{"peer":"a:1","s3":"a:2","admin":"a:3"},"zone":"z","capacity_bytes":9,"free_bytes":5,"version":"0.1.0","state":"ready","publishes":true,"disks_working":2,"disks_unrebuilt":1}"#;
    vec![
        text(&settled),
        text(&moving),
        serde_json::to_vec(&CacheState::initial()).expect("plain data"),
        serde_json::to_vec(&ClusterIdentity::new(256, 5)).expect("plain data"),
        announced.into(),
    ]
}

fn header_texts() -> Vec<Vec<u8>> {
    let rule = CorsRule {
        id: Some("r".into()),
        allowed_origins: vec!["https://*.example.com".into(), "*".into()],
        allowed_methods: vec!["GET".into(), "PUT".into()],
        allowed_headers: vec!["x-amz-*".into()],
        expose_headers: vec!["ETag".into()],
        max_age_seconds: Some(60),
    };
    let cors = serde_json::to_string(&CorsRules { rules: vec![rule] }).expect("plain data");
    let all = [
        "my.bucket-name".to_owned(),
        "a=1&b+c=%C3%A4%26&empty=&bare".to_owned(),
        "bytes=5-9".to_owned(),
        format!("{cors}{END}https://a.example.com"),
        r#"{"everything":true,"rules":[{"id":"a","target":"topic","arn":"arn:aws:sns:::t","events":["s3:ObjectCreated:*"],"prefix":"p/","suffix":".jpg"}]}"#.to_owned(),
    ];
    all.into_iter().map(String::into_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_bytes_are_errors_and_never_panics() {
        holdfast_protocol::fuzz::damage::run(TARGETS, 3_000);
    }

    #[test]
    fn seeds_are_good() {
        for seed in policies() {
            let (text, _) = parts(&seed).unwrap();
            Policy::parse(text, "photos").unwrap();
        }
        let (layout, state) =
            parts(&placements()[1]).map(|(layout, state)| (layout.to_owned(), state.to_owned())).unwrap();
        serde_json::from_str::<LayoutDocument>(&layout).unwrap();
        shard::check(&serde_json::from_str(&state).unwrap()).unwrap();
        serde_json::from_str::<NotificationRules>(std::str::from_utf8(&header_texts()[4]).unwrap()).unwrap();
    }
}
