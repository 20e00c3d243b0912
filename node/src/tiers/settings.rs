//! The stored form of settings: JSON in which secrets are sealed.
//!
//! A secret is sealed under the secret that all nodes of a cluster have, bound to the tier's name and the access key,
//! so that it opens nowhere else. The slash keeps such a name apart from the access keys of clients, which have none.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_actors::ports::tiers::{TierError, TierResult};
use holdfast_protocol::TierName;
use holdfast_protocol::admin::{OssCredentials, OssSettings, TierSettings};
use zeroize::Zeroizing;

use super::adapters::{OpenSettings, Secret};
use crate::secrets::{SecretOpener, SecretSealer};

/// Seals and opens the secrets of tiers.
#[derive(Clone)]
pub(super) struct Seal {
    pub(super) sealer: Arc<dyn SecretSealer>,
    pub(super) opener: Arc<dyn SecretOpener>,
}

impl Seal {
    /// The stored form of settings as an operator gives them, and what can be worked with. A key without its secret
    /// takes that of `before`, if it is the same key.
    ///
    /// # Errors
    /// [`TierError::Invalid`] when there is no secret, or it came sealed; [`TierError::Denied`] when sealing is not
    /// possible.
    pub(super) fn take(
        &self,
        name: &TierName,
        mut settings: TierSettings,
        before: Option<&TierSettings>,
    ) -> TierResult<(String, OpenSettings)> {
        if let Some((access_key_id, secret, sealed)) = keys_of(&mut settings) {
            if sealed.is_some() {
                return Err(invalid("sealed_secret cannot be given: give secret_access_key"));
            }
            *sealed = Some(match secret.take() {
                Some(secret) => {
                    let sealed = self.sealer.seal_secret(secret.expose(), &bound_to(name, access_key_id));
                    STANDARD.encode(sealed.map_err(TierError::Denied)?)
                }
                None => sealed_before(before, access_key_id)
                    .ok_or_else(|| invalid("secret_access_key is missing"))?
                    .to_owned(),
            });
        }
        let stored = serde_json::to_string(&settings).map_err(|error| invalid(&error.to_string()))?;
        Ok((stored, self.open(name, settings)?))
    }

    /// Opens stored settings.
    ///
    /// # Errors
    /// [`TierError::Denied`] when the secret does not open.
    pub(super) fn open(&self, name: &TierName, mut settings: TierSettings) -> TierResult<OpenSettings> {
        let secret = match keys_of(&mut settings) {
            Some((access_key_id, _, Some(sealed))) => Some(self.open_secret(name, access_key_id, sealed)?),
            Some(_) => return Err(TierError::Denied("the stored settings have no sealed secret".into())),
            None => None,
        };
        Ok(OpenSettings { settings: settings.without_secrets(), secret: secret.map(Secret) })
    }

    fn open_secret(&self, name: &TierName, access_key_id: &str, sealed: &str) -> TierResult<Zeroizing<String>> {
        let denied = |why: String| TierError::Denied(format!("the secret of access key {access_key_id}: {why}"));
        let sealed = STANDARD.decode(sealed).map_err(|error| denied(error.to_string()))?;
        self.opener.open_secret(&sealed, &bound_to(name, access_key_id)).map_err(|error| denied(error.to_string()))
    }
}

/// Reads the stored form.
///
/// # Errors
/// [`TierError::Denied`] when this version does not understand it. What stands in it is not told.
pub(super) fn parse(stored: &str) -> TierResult<TierSettings> {
    serde_json::from_str(stored).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Data => "of another version of Holdfast",
            _ => "no JSON",
        };
        TierError::Denied(format!("the stored settings are {what}, column {}", error.column()))
    })
}

fn bound_to(name: &TierName, access_key_id: &str) -> String {
    format!("tier/{name}/{access_key_id}")
}

type Keys<'a> = (&'a str, &'a mut Option<holdfast_protocol::admin::SecretText>, &'a mut Option<String>);

fn keys_of(settings: &mut TierSettings) -> Option<Keys<'_>> {
    match settings {
        TierSettings::Oss(OssSettings {
            credentials: OssCredentials::Keys { access_key_id, secret_access_key, sealed_secret },
            ..
        }) => Some((access_key_id, secret_access_key, sealed_secret)),
        _ => None,
    }
}

fn sealed_before<'a>(before: Option<&'a TierSettings>, wanted: &str) -> Option<&'a str> {
    match before? {
        TierSettings::Oss(OssSettings {
            credentials: OssCredentials::Keys { access_key_id, sealed_secret, .. },
            ..
        }) if access_key_id == wanted => sealed_secret.as_deref(),
        _ => None,
    }
}

fn invalid(what: &str) -> TierError {
    TierError::Invalid(format!("credentials: {what}"))
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::admin::SecretText;

    use super::*;
    use crate::tiers::tests::seal;

    fn name() -> TierName {
        "OSS".parse().unwrap()
    }

    fn with_keys(access_key_id: &str, secret: Option<&str>) -> TierSettings {
        TierSettings::Oss(OssSettings {
            credentials: OssCredentials::Keys {
                access_key_id: access_key_id.into(),
                secret_access_key: secret.map(SecretText::new),
                sealed_secret: None,
            },
            ..OssSettings::new("https://h", "r", "cold")
        })
    }

    #[test]
    fn stored_settings_have_the_secret_sealed_and_it_opens() {
        let (stored, open) = seal().take(&name(), with_keys("id", Some("very-secret")), None).unwrap();
        assert!(stored.contains(r#""sealed_secret":""#) && !stored.contains("very-secret"), "{stored}");
        assert!(!stored.contains("secret_access_key"), "{stored}");
        assert!(!format!("{open:?}").contains("very-secret"));
        let again = seal().open(&name(), parse(&stored).unwrap()).unwrap();
        assert_eq!(*again.secret.unwrap().0, "very-secret");
        assert!(!serde_json::to_string(&again.settings).unwrap().contains("secret"), "{:?}", again.settings);
    }

    #[test]
    fn sealed_secret_opens_for_its_tier_only() {
        let (stored, _) = seal().take(&name(), with_keys("id", Some("very-secret")), None).unwrap();
        let moved = seal().open(&"OTHER".parse().unwrap(), parse(&stored).unwrap());
        assert!(matches!(moved, Err(TierError::Denied(_))), "{moved:?}");
    }

    #[test]
    fn change_without_a_secret_keeps_that_of_the_same_key() {
        let (stored, _) = seal().take(&name(), with_keys("id", Some("very-secret")), None).unwrap();
        let before = parse(&stored).unwrap();
        let (_, open) = seal().take(&name(), with_keys("id", None), Some(&before)).unwrap();
        assert_eq!(*open.secret.unwrap().0, "very-secret");
        for refused in [with_keys("other", None), before.clone()] {
            let refused = seal().take(&name(), refused, Some(&before));
            assert!(matches!(refused, Err(TierError::Invalid(_))), "{refused:?}");
        }
        assert!(seal().take(&name(), with_keys("id", None), None).is_err());
    }

    #[test]
    fn settings_of_another_version_are_denied_without_telling_them() {
        for stored in [r#"{"kind":"tape","hush":1}"#, r#"{"kind":"directory","root":"/a","hush":1}"#, "hush"] {
            let error = parse(stored).unwrap_err();
            assert!(matches!(&error, TierError::Denied(text) if !text.contains("hush")), "{error}");
        }
    }
}
