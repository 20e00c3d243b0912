//! The options that say how a tier is reached.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use holdfast_protocol::admin::{
    DirectorySettings, FastdfsSettings, OssAddressing, OssCredentials, OssEncryption, OssSettings, SecretText,
    TierSettings,
};
use zeroize::Zeroizing;

use super::super::secret::secret;
use super::super::{CliResult, Failure};
use crate::config::Bytes;
use crate::secret_file;

/// Shown below the help of `tier add`.
pub(super) const ADD_EXAMPLES: &str = "\
Examples:
  holdfast tier add ARCHIVE --directory /mnt/archive        empty, and every node sees it
  holdfast tier add OSS --oss-endpoint https://oss-cn-hangzhou.aliyuncs.com \\
           --oss-bucket cold-data --oss-access-key LTAI5tEXAMPLE --secret-key-file oss.secret
  holdfast tier add OSS --oss-endpoint http://10.0.0.9:9000 --oss-path-style --oss-bucket cold \\
           --oss-credentials-file /etc/holdfast/oss.keys    on each node; read again when it changes
  holdfast tier add FASTDFS --fastdfs-tracker 10.0.0.5:22122 --fastdfs-tracker 10.0.0.6:22122 \\
           --fastdfs-map 172.17.0.2=10.0.0.7                storages behind NAT
  holdfast tier add OSS --settings-file oss.json            everything that the API takes

See docs/tiers.md.";

#[derive(Args, Debug, Default)]
pub(in crate::cli) struct SettingsArgs {
    /// Files below this directory, which every node sees under the same path.
    #[arg(long, value_name = "PATH", help_heading = "Directory")]
    directory: Option<String>,

    /// The store's address, without the bucket.
    #[arg(long, value_name = "URL", help_heading = "OSS, S3")]
    oss_endpoint: Option<String>,
    /// The bucket, which exists already.
    #[arg(long, value_name = "BUCKET", help_heading = "OSS, S3")]
    oss_bucket: Option<String>,
    /// What requests are signed for [default: the endpoint's at Alibaba Cloud, else us-east-1].
    #[arg(long, value_name = "REGION", help_heading = "OSS, S3")]
    oss_region: Option<String>,
    /// What keys begin with.
    #[arg(long, value_name = "PREFIX", help_heading = "OSS, S3")]
    oss_prefix: Option<String>,
    /// Put the bucket into the path of addresses instead of the host's name.
    #[arg(long, help_heading = "OSS, S3")]
    oss_path_style: bool,
    /// The public half of a key; its secret half goes with --secret-key-file.
    #[arg(long, value_name = "KEY", group = "credentials", requires = "secret_key_file", help_heading = "OSS, S3")]
    oss_access_key: Option<String>,
    /// A file of mode 0600 that holds the secret half, which is sealed and kept in the database; - is standard input.
    #[arg(long, value_name = "PATH", requires = "oss_access_key", help_heading = "OSS, S3")]
    secret_key_file: Option<PathBuf>,
    /// A file on each node, of mode 0600, with access_key_id and secret_access_key.
    #[arg(long, value_name = "PATH", group = "credentials", help_heading = "OSS, S3")]
    oss_credentials_file: Option<String>,
    /// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of each node: the default.
    #[arg(long, group = "credentials", help_heading = "OSS, S3")]
    oss_credentials_env: bool,
    /// The role of the EC2 instance that a node runs on.
    #[arg(long, group = "credentials", help_heading = "OSS, S3")]
    oss_instance_role: bool,
    /// Certificates (PEM) on each node that are trusted beside the system's.
    #[arg(long, value_name = "PATH", help_heading = "OSS, S3")]
    oss_ca_file: Option<String>,
    /// How the store encrypts: bucket, aes256, kms or kms:KEYID.
    #[arg(long, value_name = "HOW", value_parser = encryption, help_heading = "OSS, S3")]
    oss_encryption: Option<OssEncryption>,
    /// The storage class at the store, such as IA or STANDARD_IA.
    #[arg(long, value_name = "CLASS", help_heading = "OSS, S3")]
    oss_storage_class: Option<String>,

    /// A tracker; give it once for each.
    #[arg(long, value_name = "HOST:PORT", help_heading = "FastDFS")]
    fastdfs_tracker: Vec<String>,
    /// The only group to store in [default: the tracker chooses].
    #[arg(long, value_name = "GROUP", help_heading = "FastDFS")]
    fastdfs_group: Option<String>,
    /// Where a storage is reached whose own address is not, such as 172.17.0.2=10.0.0.7 or with ports; once for each.
    #[arg(long, value_name = "FROM=TO", value_parser = mapping, help_heading = "FastDFS")]
    fastdfs_map: Vec<(String, String)>,

    /// The largest piece in the tier, such as "1 GiB".
    #[arg(long, value_name = "SIZE")]
    piece_max: Option<Bytes>,
    /// All settings as JSON, as `holdfast tier show --json` tells them; other options are laid over them. With a secret
    /// in it, the file must be of mode 0600.
    #[arg(long, value_name = "FILE")]
    settings_file: Option<PathBuf>,
}

fn encryption(text: &str) -> Result<OssEncryption, String> {
    match text {
        "bucket" => Ok(OssEncryption::BucketDefault {}),
        "aes256" => Ok(OssEncryption::Aes256 {}),
        "kms" => Ok(OssEncryption::Kms { key_id: None }),
        _ => match text.strip_prefix("kms:") {
            Some(key_id) if !key_id.is_empty() => Ok(OssEncryption::Kms { key_id: Some(key_id.to_owned()) }),
            _ => Err("write bucket, aes256, kms or kms:KEYID".into()),
        },
    }
}

fn mapping(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((from.to_owned(), to.to_owned())),
        _ => Err("write FROM=TO, such as 172.17.0.2=10.0.0.7".into()),
    }
}

/// What requests to an endpoint are signed for, if nothing is said.
fn region_of(endpoint: &str) -> String {
    let host = endpoint.split("://").last().unwrap_or_default();
    let alibaba = host.split_once('.').filter(|(_, rest)| rest.trim_end_matches('/').ends_with("aliyuncs.com"));
    alibaba.map_or("us-east-1", |(first, _)| first.trim_end_matches("-internal")).to_owned()
}

/// Where a tier is, in short.
pub(super) fn place(settings: &TierSettings) -> String {
    match settings {
        TierSettings::Directory(directory) => directory.root.clone(),
        TierSettings::Oss(oss) if oss.prefix.is_empty() => format!("{} {}", oss.endpoint, oss.bucket),
        TierSettings::Oss(oss) => format!("{} {}/{}", oss.endpoint, oss.bucket, oss.prefix),
        TierSettings::Fastdfs(fastdfs) => fastdfs.trackers.join(","),
    }
}

fn read_settings(file: &Path) -> CliResult<TierSettings> {
    let read = || -> anyhow::Result<TierSettings> {
        let failed = || format!("read {}", file.display());
        let mut opened = File::open(file).with_context(failed)?;
        let about = opened.metadata().with_context(failed)?;
        let mut text = Zeroizing::new(String::new());
        opened.read_to_string(&mut text).with_context(failed)?;
        let understood = || format!("understand the settings in {}", file.display());
        let settings = serde_json::from_str(&text).with_context(understood)?;
        if has_secret(&settings) {
            secret_file::check(file, &about)?;
        }
        Ok(settings)
    };
    read().map_err(Failure::usage)
}

fn has_secret(settings: &TierSettings) -> bool {
    let TierSettings::Oss(oss) = settings else { return false };
    matches!(oss.credentials, OssCredentials::Keys { secret_access_key: Some(_), .. })
}

fn usage<T>(message: &str) -> CliResult<T> {
    Err(Failure::usage(anyhow::anyhow!("{message}")))
}

impl SettingsArgs {
    /// The settings that were given, laid over those of the file or `before`.
    pub(super) fn settings(&self, before: Option<TierSettings>) -> CliResult<TierSettings> {
        let base = match &self.settings_file {
            Some(file) => Some(read_settings(file)?),
            None => before,
        };
        let settings = match base {
            Some(base) => base,
            None => self.fresh()?,
        };
        let other_kind = "these options are of another kind of tier than this one";
        match settings {
            TierSettings::Directory(directory) if !self.says_oss() && !self.says_fastdfs() => {
                Ok(TierSettings::Directory(self.over_directory(directory)))
            }
            TierSettings::Oss(oss) if self.directory.is_none() && !self.says_fastdfs() => {
                self.over_oss(oss).map(TierSettings::Oss)
            }
            TierSettings::Fastdfs(fastdfs) if self.directory.is_none() && !self.says_oss() => {
                Ok(TierSettings::Fastdfs(self.over_fastdfs(fastdfs)))
            }
            _ => usage(other_kind),
        }
    }

    fn fresh(&self) -> CliResult<TierSettings> {
        match (&self.directory, &self.oss_endpoint, self.fastdfs_tracker.is_empty()) {
            (Some(root), None, true) => Ok(TierSettings::Directory(DirectorySettings {
                root: root.clone(),
                piece_bytes_max: None,
                patience_ms: None,
            })),
            (None, Some(endpoint), true) => {
                let Some(bucket) = &self.oss_bucket else { return usage("name the bucket with --oss-bucket") };
                Ok(TierSettings::Oss(OssSettings::new(endpoint, region_of(endpoint), bucket)))
            }
            (None, None, false) => Ok(TierSettings::Fastdfs(FastdfsSettings::default())),
            (None, None, true) => {
                usage("say where the tier is: --directory, --oss-endpoint, --fastdfs-tracker or --settings-file")
            }
            _ => usage("a tier is one of a directory, OSS and FastDFS"),
        }
    }

    fn says_oss(&self) -> bool {
        let texts = [
            &self.oss_endpoint,
            &self.oss_bucket,
            &self.oss_region,
            &self.oss_prefix,
            &self.oss_access_key,
            &self.oss_credentials_file,
            &self.oss_ca_file,
            &self.oss_storage_class,
        ];
        let flags = self.oss_path_style || self.oss_credentials_env || self.oss_instance_role;
        flags || self.oss_encryption.is_some() || texts.iter().any(|text| text.is_some())
    }

    fn says_fastdfs(&self) -> bool {
        !self.fastdfs_tracker.is_empty() || self.fastdfs_group.is_some() || !self.fastdfs_map.is_empty()
    }

    fn over_directory(&self, mut directory: DirectorySettings) -> DirectorySettings {
        set(&mut directory.root, &self.directory);
        directory.piece_bytes_max = self.piece_bytes().or(directory.piece_bytes_max);
        directory
    }

    fn over_oss(&self, mut oss: OssSettings) -> CliResult<OssSettings> {
        set(&mut oss.endpoint, &self.oss_endpoint);
        set(&mut oss.region, &self.oss_region);
        set(&mut oss.bucket, &self.oss_bucket);
        set(&mut oss.prefix, &self.oss_prefix);
        if self.oss_path_style {
            oss.addressing = Some(OssAddressing::Path);
        }
        if let Some(access_key_id) = &self.oss_access_key {
            let secret = secret(None, self.secret_key_file.clone())?;
            oss.credentials = OssCredentials::Keys {
                access_key_id: access_key_id.clone(),
                secret_access_key: secret.map(|secret| SecretText::new(secret.as_str())),
                sealed_secret: None,
            };
        }
        if let Some(path) = &self.oss_credentials_file {
            oss.credentials = OssCredentials::File { path: path.clone() };
        }
        if self.oss_credentials_env {
            oss.credentials = OssCredentials::Environment {};
        }
        if self.oss_instance_role {
            oss.credentials = OssCredentials::InstanceRole {};
        }
        oss.ca_file = self.oss_ca_file.clone().or(oss.ca_file);
        oss.encryption = self.oss_encryption.clone().or(oss.encryption);
        oss.remote_storage_class = self.oss_storage_class.clone().or(oss.remote_storage_class);
        oss.piece_bytes_max = self.piece_bytes().or(oss.piece_bytes_max);
        Ok(oss)
    }

    /// Trackers that are given are all of them; so are the addresses of storages.
    fn over_fastdfs(&self, mut fastdfs: FastdfsSettings) -> FastdfsSettings {
        if !self.fastdfs_tracker.is_empty() {
            fastdfs.trackers.clone_from(&self.fastdfs_tracker);
        }
        fastdfs.group = self.fastdfs_group.clone().or(fastdfs.group);
        if !self.fastdfs_map.is_empty() {
            fastdfs.address_map = BTreeMap::from_iter(self.fastdfs_map.iter().cloned());
        }
        fastdfs.piece_bytes_max = self.piece_bytes().or(fastdfs.piece_bytes_max);
        fastdfs
    }

    fn piece_bytes(&self) -> Option<u64> {
        self.piece_max.map(Bytes::get)
    }
}

fn set(field: &mut String, given: &Option<String>) {
    if let Some(given) = given {
        field.clone_from(given);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SettingsArgs,
    }

    fn args(line: &str) -> SettingsArgs {
        Line::try_parse_from(std::iter::once("tier").chain(line.split_whitespace())).unwrap().args
    }

    fn json(line: &str, before: Option<TierSettings>) -> serde_json::Value {
        serde_json::to_value(args(line).settings(before).ok().unwrap()).unwrap()
    }

    #[test]
    fn each_kind_of_tier_can_be_told() {
        let directory = json("--directory /mnt/cold --piece-max 1GiB", None);
        assert_eq!(
            directory,
            serde_json::json!({"kind": "directory", "root": "/mnt/cold", "piece_bytes_max": 1u64 << 30})
        );
        let oss =
            json("--oss-endpoint https://oss-cn-hangzhou.aliyuncs.com --oss-bucket cold --oss-encryption kms:k", None);
        assert_eq!(oss["region"], "oss-cn-hangzhou");
        assert_eq!(oss["credentials"], serde_json::json!({"source": "environment"}));
        assert_eq!(oss["encryption"], serde_json::json!({"kind": "kms", "key_id": "k"}));
        let own = json("--oss-endpoint http://10.0.0.9:9000 --oss-path-style --oss-bucket cold --oss-prefix one", None);
        assert_eq!(
            (&own["region"], &own["addressing"], &own["prefix"]),
            (&"us-east-1".into(), &"path".into(), &"one".into())
        );
        let fastdfs = json("--fastdfs-tracker a:1 --fastdfs-tracker b:2 --fastdfs-map 172.17.0.2=10.0.0.7", None);
        assert_eq!(
            fastdfs,
            serde_json::json!({"kind": "fastdfs", "trackers": ["a:1", "b:2"], "address_map": {"172.17.0.2": "10.0.0.7"}})
        );
    }

    #[test]
    fn what_is_not_given_stays_as_it_was() {
        let before = args("--oss-endpoint https://h --oss-bucket cold --oss-prefix one").settings(None).ok().unwrap();
        let after = json("--oss-storage-class IA", Some(before.clone()));
        assert_eq!((&after["prefix"], &after["remote_storage_class"]), (&"one".into(), &"IA".into()));
        assert!(args("--fastdfs-tracker a:1").settings(Some(before)).is_err(), "another kind");
    }

    #[test]
    fn a_tier_must_say_where_it_is_and_be_of_one_kind() {
        for line in ["", "--oss-endpoint https://h", "--directory /a --fastdfs-tracker b:1"] {
            assert!(args(line).settings(None).is_err(), "{line}");
        }
    }

    #[test]
    fn secret_comes_from_a_file_and_from_nowhere_else() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        std::fs::write(&file, "very-secret\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let line = format!(
            "--oss-endpoint https://h --oss-bucket cold --oss-access-key id --secret-key-file {}",
            file.display()
        );
        let settings = json(&line, None);
        assert_eq!(settings["credentials"]["secret_access_key"], "very-secret");
        for line in ["--oss-access-key id", "--oss-secret-key s", "--secret-key s"] {
            let words = std::iter::once("tier").chain(line.split(' '));
            assert!(Line::try_parse_from(words).is_err(), "{line}");
        }
    }

    #[test]
    fn settings_file_with_a_secret_is_read_only_where_nobody_else_can() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("settings");
        let settings = |secret: &str| {
            let keys = format!(r#"{{"source":"keys","access_key_id":"id"{secret}}}"#);
            let text =
                format!(r#"{{"kind":"oss","endpoint":"https://h","region":"r","bucket":"b","credentials":{keys}}}"#);
            std::fs::write(&file, text).unwrap();
            args(&format!("--settings-file {}", file.display())).settings(None)
        };
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(settings("").is_ok(), "nothing in it is secret");
        let refused = settings(r#","secret_access_key":"very-secret""#).unwrap_err();
        assert!(format!("{:#}", refused.error).contains("chmod 600"), "{:#}", refused.error);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(settings(r#","secret_access_key":"very-secret""#).is_ok());
    }

    #[test]
    fn region_follows_from_an_endpoint_of_alibaba() {
        for (endpoint, region) in [
            ("https://oss-cn-hangzhou.aliyuncs.com", "oss-cn-hangzhou"),
            ("https://oss-cn-beijing-internal.aliyuncs.com/", "oss-cn-beijing"),
            ("https://s3.example.com", "us-east-1"),
            ("http://10.0.0.9:9000", "us-east-1"),
        ] {
            assert_eq!(region_of(endpoint), region, "{endpoint}");
        }
    }
}
