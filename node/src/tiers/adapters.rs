//! From settings to an adapter. What settings leave out is the adapter's default.

use std::sync::Arc;
use std::time::Duration;

use holdfast_actors::ports::tiers::{ColdTier, TierError, TierResult};
use holdfast_protocol::admin::{
    DirectorySettings, FastdfsSettings, OssAddressing, OssCredentials, OssEncryption, OssSettings, TierSettings,
};
use holdfast_protocol::tiers::BLOCK_BYTES_MAX;
use holdfast_tiers::directory::{DirectoryConfig, DirectoryTier};
use holdfast_tiers::fastdfs::{FastdfsColdTier, FastdfsConfig};
use holdfast_tiers::oss::{AccessKeys, Addressing, CredentialsSource, Encryption, OssConfig, OssTier};
use zeroize::Zeroizing;

/// Settings that can be worked with: a secret in them is open.
#[derive(Debug)]
pub(super) struct OpenSettings {
    /// Without secrets.
    pub(super) settings: TierSettings,
    /// The secret half of the access key, if there is one.
    pub(super) secret: Option<Secret>,
}

/// A secret that is not shown.
pub(super) struct Secret(pub(super) Zeroizing<String>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What stands behind a tier that is there.
///
/// # Errors
/// [`TierError::Invalid`] when the settings cannot work; [`TierError::Denied`], [`TierError::Unavailable`] from the
/// adapter.
pub(super) async fn open(open: OpenSettings) -> TierResult<Arc<dyn ColdTier>> {
    build(open, false).await
}

/// The same of one that is new: an empty directory becomes a tier.
///
/// # Errors
/// As [`open`].
pub(super) async fn create(open: OpenSettings) -> TierResult<Arc<dyn ColdTier>> {
    build(open, true).await
}

async fn build(open: OpenSettings, is_new: bool) -> TierResult<Arc<dyn ColdTier>> {
    let OpenSettings { settings, secret } = open;
    let tier: Arc<dyn ColdTier> = match settings {
        TierSettings::Directory(settings) => {
            let config = directory(settings);
            require_room(config.piece_bytes_max)?;
            let made = if is_new { DirectoryTier::create(config).await } else { DirectoryTier::open(config).await };
            Arc::new(made?)
        }
        TierSettings::Oss(settings) => {
            let config = oss(settings, secret)?;
            require_room(config.piece_bytes_max)?;
            Arc::new(OssTier::new(config)?)
        }
        TierSettings::Fastdfs(settings) => {
            let config = fastdfs(settings);
            require_room(config.piece_bytes_max)?;
            Arc::new(FastdfsColdTier::new(config)?)
        }
    };
    Ok(tier)
}

/// A piece has whole blocks, whose size the content decides.
fn require_room(piece_bytes_max: u64) -> TierResult<()> {
    if piece_bytes_max < u64::from(BLOCK_BYTES_MAX) {
        return Err(TierError::Invalid(format!(
            "piece_bytes_max must be {BLOCK_BYTES_MAX} or more, not {piece_bytes_max}"
        )));
    }
    Ok(())
}

fn set<T>(field: &mut T, told: Option<T>) {
    if let Some(told) = told {
        *field = told;
    }
}

fn set_ms(field: &mut Duration, told: Option<u64>) {
    set(field, told.map(Duration::from_millis));
}

fn set_count(field: &mut usize, told: Option<u32>) {
    set(field, told.map(|count| count as usize));
}

fn directory(settings: DirectorySettings) -> DirectoryConfig {
    let DirectorySettings { root, piece_bytes_max, patience_ms } = settings;
    let mut config = DirectoryConfig::new(root);
    set(&mut config.piece_bytes_max, piece_bytes_max);
    set_ms(&mut config.patience, patience_ms);
    config
}

fn oss(settings: OssSettings, secret: Option<Secret>) -> TierResult<OssConfig> {
    let mut config = OssConfig::new(settings.endpoint, settings.region, settings.bucket);
    config.prefix = settings.prefix;
    set(
        &mut config.addressing,
        settings.addressing.map(|addressing| match addressing {
            OssAddressing::VirtualHosted => Addressing::VirtualHosted,
            OssAddressing::Path => Addressing::Path,
        }),
    );
    config.credentials = match settings.credentials {
        OssCredentials::File { path } => CredentialsSource::File(path.into()),
        OssCredentials::Environment {} => CredentialsSource::Environment,
        OssCredentials::InstanceRole {} => CredentialsSource::InstanceRole,
        OssCredentials::Keys { access_key_id, .. } => {
            let Some(Secret(secret_access_key)) = secret else {
                return Err(TierError::Invalid("credentials: secret_access_key is missing".into()));
            };
            CredentialsSource::Keys(AccessKeys { access_key_id, secret_access_key })
        }
    };
    config.ca_file = settings.ca_file.map(Into::into);
    set(
        &mut config.encryption,
        settings.encryption.map(|encryption| match encryption {
            OssEncryption::BucketDefault {} => Encryption::BucketDefault,
            OssEncryption::Aes256 {} => Encryption::Aes256,
            OssEncryption::Kms { key_id } => Encryption::Kms { key_id },
        }),
    );
    config.remote_storage_class = settings.remote_storage_class;
    set(&mut config.piece_bytes_max, settings.piece_bytes_max);
    set(&mut config.part_bytes, settings.part_bytes);
    set_count(&mut config.parts_in_flight, settings.parts_in_flight);
    set(&mut config.etag_is_md5, settings.etag_is_md5);
    set_ms(&mut config.connect_timeout, settings.connect_timeout_ms);
    set_ms(&mut config.request_timeout, settings.request_timeout_ms);
    set(&mut config.attempts_max, settings.attempts_max);
    Ok(config)
}

fn fastdfs(settings: FastdfsSettings) -> FastdfsConfig {
    let mut config = FastdfsConfig {
        trackers: settings.trackers,
        group: settings.group,
        address_map: settings.address_map,
        ..FastdfsConfig::default()
    };
    set(&mut config.piece_bytes_max, settings.piece_bytes_max);
    set_ms(&mut config.connect_timeout, settings.connect_timeout_ms);
    set_ms(&mut config.idle_timeout, settings.idle_timeout_ms);
    set_ms(&mut config.overall_timeout, settings.overall_timeout_ms);
    set_count(&mut config.connections_max, settings.connections_max);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_the_adapters_default() {
        let settings = OssSettings::new("https://h", "r", "cold");
        assert_eq!(oss(settings, None).unwrap(), OssConfig::new("https://h", "r", "cold"));
        assert_eq!(fastdfs(FastdfsSettings::default()), FastdfsConfig::default());
        let of = DirectorySettings { root: "/mnt".into(), piece_bytes_max: None, patience_ms: None };
        let (made, default) = (directory(of), DirectoryConfig::new("/mnt"));
        assert_eq!((made.piece_bytes_max, made.patience), (default.piece_bytes_max, default.patience));
    }

    #[test]
    fn what_is_told_arrives() {
        let settings = OssSettings {
            addressing: Some(OssAddressing::Path),
            encryption: Some(OssEncryption::Aes256 {}),
            credentials: OssCredentials::File { path: "/keys".into() },
            part_bytes: Some(16 << 20),
            parts_in_flight: Some(2),
            etag_is_md5: Some(false),
            request_timeout_ms: Some(1_500),
            attempts_max: Some(2),
            ..OssSettings::new("https://h", "r", "cold")
        };
        let expected = OssConfig {
            addressing: Addressing::Path,
            encryption: Encryption::Aes256,
            credentials: CredentialsSource::File("/keys".into()),
            part_bytes: 16 << 20,
            parts_in_flight: 2,
            etag_is_md5: false,
            request_timeout: Duration::from_millis(1_500),
            attempts_max: 2,
            ..OssConfig::new("https://h", "r", "cold")
        };
        assert_eq!(oss(settings, None).unwrap(), expected);
    }

    #[tokio::test]
    async fn pieces_that_are_smaller_than_a_block_can_be_are_refused() {
        let settings = TierSettings::Fastdfs(FastdfsSettings {
            trackers: vec!["h:1".into()],
            piece_bytes_max: Some(1 << 20),
            ..Default::default()
        });
        let refused = create(OpenSettings { settings, secret: None }).await;
        assert!(matches!(refused.err(), Some(TierError::Invalid(text)) if text.contains("piece_bytes_max")));
    }
}
