//! Settings of cold tiers: how one is reached, and how it is used.
//!
//! What is left out is chosen by the adapter of the tier; the defaults are told with each field. Only whoever adds or
//! changes a tier sends a secret. The database has it sealed ([`OssCredentials::Keys`]), and nothing that a node tells
//! has it at all: see [`TierSettings::without_secrets`].

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a cold tier is reached. `kind` says what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TierSettings {
    /// Files below a directory that every node sees: a mounted file server, or a single machine.
    Directory(DirectorySettings),
    /// A bucket at Alibaba Cloud OSS, AWS S3, or any store that speaks S3.
    Oss(OssSettings),
    /// A FastDFS cluster.
    Fastdfs(FastdfsSettings),
}

impl TierSettings {
    /// `directory`, `oss` or `fastdfs`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Directory(_) => "directory",
            Self::Oss(_) => "oss",
            Self::Fastdfs(_) => "fastdfs",
        }
    }

    /// The settings as they may be told to anybody: without secrets, sealed ones included.
    pub fn without_secrets(mut self) -> Self {
        if let Self::Oss(OssSettings {
            credentials: OssCredentials::Keys { secret_access_key, sealed_secret, .. },
            ..
        }) = &mut self
        {
            (*secret_access_key, *sealed_secret) = (None, None);
        }
        self
    }
}

/// Settings of a tier in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DirectorySettings {
    /// The directory; an absolute path, the same on all nodes.
    pub root: String,
    /// The largest piece, in bytes; 5 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub piece_bytes_max: Option<u64>,
    /// How long one step on the file system may take, the syncing of a whole piece included; two minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience_ms: Option<u64>,
}

/// Settings of a tier in a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OssSettings {
    /// Such as `https://oss-cn-hangzhou.aliyuncs.com`, without the bucket.
    pub endpoint: String,
    /// What requests are signed for, such as `oss-cn-hangzhou` or `us-east-1`.
    pub region: String,
    /// The bucket, which exists already.
    pub bucket: String,
    /// What keys begin with, without slashes around it; nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// Where the bucket stands in an address; virtual-hosted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addressing: Option<OssAddressing>,
    /// Whose requests these are; the environment of the nodes says.
    #[serde(default)]
    pub credentials: OssCredentials,
    /// A file of certificates (PEM) on the nodes that are trusted beside those of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// How the store encrypts; as the bucket says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<OssEncryption>,
    /// The storage class at the store, such as `STANDARD_IA` or `IA`; its default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_storage_class: Option<String>,
    /// The largest piece, in bytes; 5 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub piece_bytes_max: Option<u64>,
    /// Pieces up to this size go in one request, larger ones in parts of it, in bytes; 8 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_bytes: Option<u64>,
    /// Parts of one piece on their way at a time; 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts_in_flight: Option<u32>,
    /// Whether an ETag of 32 hexadecimal digits is the MD5 of what was sent; true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag_is_md5: Option<bool>,
    /// How long a connection may take to be made; 5 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout_ms: Option<u64>,
    /// How long the store may be silent, and how long one request may take; a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_timeout_ms: Option<u64>,
    /// How often a request is tried, the first time included; 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts_max: Option<u32>,
}

impl OssSettings {
    /// Settings that leave everything else to the adapter.
    pub fn new(endpoint: impl Into<String>, region: impl Into<String>, bucket: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            region: region.into(),
            bucket: bucket.into(),
            prefix: String::new(),
            addressing: None,
            credentials: OssCredentials::default(),
            ca_file: None,
            encryption: None,
            remote_storage_class: None,
            piece_bytes_max: None,
            part_bytes: None,
            parts_in_flight: None,
            etag_is_md5: None,
            connect_timeout_ms: None,
            request_timeout_ms: None,
            attempts_max: None,
        }
    }
}

/// Where the bucket stands in an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OssAddressing {
    /// `https://bucket.endpoint/key`; the only way at Alibaba Cloud OSS.
    VirtualHosted,
    /// `https://endpoint/bucket/key`; what most stores in one's own house want.
    Path,
}

/// How the store encrypts what lies in it.
// Variants without fields are written with braces: serde refuses unknown fields only there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OssEncryption {
    /// As the bucket says.
    BucketDefault {},
    /// With keys of the store (`AES256`).
    Aes256 {},
    /// With a key of its key service (`aws:kms`).
    Kms {
        /// The key's id; the default one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_id: Option<String>,
    },
}

/// Where the credentials come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "source", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OssCredentials {
    /// A file on each node that nobody else may read, with `access_key_id` and `secret_access_key`. It is read again
    /// every few minutes.
    File {
        /// Where it is.
        path: String,
    },
    /// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` of each node.
    Environment {},
    /// The role of the EC2 instance that a node runs on.
    InstanceRole {},
    /// These. The database has the secret sealed by the cluster's own secret.
    Keys {
        /// The public half.
        access_key_id: String,
        /// The secret half, on its way in; never told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>, format = Password, write_only)]
        secret_access_key: Option<SecretText>,
        /// The secret half as the database has it (base64). Neither taken from outside nor told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(ignore)]
        sealed_secret: Option<String>,
    },
}

impl Default for OssCredentials {
    fn default() -> Self {
        Self::Environment {}
    }
}

/// A secret on its way in. It is serialised as it is, and never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

/// Settings of a tier in a FastDFS cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FastdfsSettings {
    /// The trackers, as `host:port`.
    pub trackers: Vec<String>,
    /// The only group to store in; the tracker chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Where storages can be reached whose own address cannot, behind NAT or in containers: `ip` or `ip:port` as the
    /// tracker tells it to `host` or `host:port`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub address_map: BTreeMap<String, String>,
    /// The largest piece, in bytes; 64 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub piece_bytes_max: Option<u64>,
    /// How long a connection may take to be made; 5 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout_ms: Option<u64>,
    /// How long a server may keep a node waiting without a byte; 30 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// How long a server may keep a node waiting in one exchange, all waits together; ten minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overall_timeout_ms: Option<u64>,
    /// The most connections of a node to one server; 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<u32>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn golden(settings: &TierSettings, json: &serde_json::Value) {
        assert_eq!(serde_json::to_value(settings).unwrap(), *json);
        assert_eq!(serde_json::from_value::<TierSettings>(json.clone()).unwrap(), *settings);
    }

    fn with_keys() -> OssSettings {
        OssSettings {
            credentials: OssCredentials::Keys {
                access_key_id: "id".into(),
                secret_access_key: Some(SecretText::new("very-secret")),
                sealed_secret: Some("c2VhbGVk".into()),
            },
            ..OssSettings::new("http://10.0.0.1:9000", "us-east-1", "cold")
        }
    }

    #[test]
    fn stored_form_is_as_written_down() {
        let directory = DirectorySettings { root: "/mnt/cold".into(), piece_bytes_max: None, patience_ms: None };
        golden(&TierSettings::Directory(directory), &json!({"kind": "directory", "root": "/mnt/cold"}));
        let trackers = vec!["10.0.0.1:22122".to_owned()];
        golden(
            &TierSettings::Fastdfs(FastdfsSettings { trackers: trackers.clone(), ..Default::default() }),
            &json!({"kind": "fastdfs", "trackers": trackers}),
        );
        golden(
            &TierSettings::Fastdfs(FastdfsSettings {
                trackers: trackers.clone(),
                group: Some("group1".into()),
                address_map: BTreeMap::from([("172.17.0.2".into(), "10.0.0.1".into())]),
                piece_bytes_max: Some(1 << 26),
                connect_timeout_ms: Some(1),
                idle_timeout_ms: Some(2),
                overall_timeout_ms: Some(3),
                connections_max: Some(4),
            }),
            &json!({
                "kind": "fastdfs", "trackers": trackers, "group": "group1", "address_map": {"172.17.0.2": "10.0.0.1"},
                "piece_bytes_max": 67_108_864, "connect_timeout_ms": 1, "idle_timeout_ms": 2, "overall_timeout_ms": 3,
                "connections_max": 4,
            }),
        );
        golden(
            &TierSettings::Oss(OssSettings {
                prefix: "one".into(),
                addressing: Some(OssAddressing::Path),
                encryption: Some(OssEncryption::Kms { key_id: Some("k".into()) }),
                ca_file: Some("/etc/ca.pem".into()),
                remote_storage_class: Some("STANDARD_IA".into()),
                request_timeout_ms: Some(60_000),
                etag_is_md5: Some(false),
                ..with_keys()
            }),
            &json!({
                "kind": "oss", "endpoint": "http://10.0.0.1:9000", "region": "us-east-1", "bucket": "cold", "prefix": "one",
                "addressing": "path", "ca_file": "/etc/ca.pem", "encryption": {"kind": "kms", "key_id": "k"},
                "remote_storage_class": "STANDARD_IA", "request_timeout_ms": 60_000, "etag_is_md5": false,
                "credentials": {
                    "source": "keys", "access_key_id": "id", "secret_access_key": "very-secret", "sealed_secret": "c2VhbGVk",
                },
            }),
        );
    }

    #[test]
    fn what_is_left_out_is_left_to_the_adapter() {
        let text = r#"{"kind": "oss", "endpoint": "https://h", "region": "r", "bucket": "cold"}"#;
        let settings: TierSettings = serde_json::from_str(text).unwrap();
        assert_eq!(settings, TierSettings::Oss(OssSettings::new("https://h", "r", "cold")));
    }

    #[test]
    fn unknown_fields_are_refused_at_every_level() {
        let oss = |more: serde_json::Value| {
            let mut whole = json!({"kind": "oss", "endpoint": "https://h", "region": "r", "bucket": "cold"});
            whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            whole
        };
        for wrong in [
            json!({"kind": "directory", "root": "/mnt", "rot": 1}),
            json!({"kind": "fastdfs", "trackers": [], "groups": []}),
            json!({"kind": "tape"}),
            json!({"root": "/mnt"}),
            oss(json!({"endpiont": "x"})),
            oss(json!({"addressing": "dns"})),
            oss(json!({"credentials": {"source": "environment", "path": "/keys"}})),
            oss(json!({"credentials": {"source": "instance-role", "role": "x"}})),
            oss(json!({"credentials": {"source": "file", "path": "/keys", "more": 1}})),
            oss(json!({"credentials": {"source": "keys", "access_key_id": "id", "secret": "s"}})),
            oss(json!({"encryption": {"kind": "aes256", "key_id": "k"}})),
            oss(json!({"encryption": {"kind": "kms", "key": "k"}})),
        ] {
            assert!(serde_json::from_value::<TierSettings>(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn secrets_are_neither_shown_nor_told() {
        let settings = TierSettings::Oss(with_keys());
        assert!(!format!("{settings:?}").contains("very-secret"));
        let told = serde_json::to_string(&settings.without_secrets()).unwrap();
        assert!(told.contains(r#""access_key_id":"id""#), "{told}");
        assert!(!told.contains("secret"), "{told}");
    }
}
