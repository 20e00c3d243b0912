//! Key pairs: made, checked, sealed and stored. A secret leaves this module once, in the answer to its making.

use holdfast_actors::ports::MetadataStore;
use holdfast_actors::ports::metadata::{AccessKey, User};
use holdfast_protocol::admin::ErrorCode;
use rand::Rng;
use zeroize::Zeroizing;

use super::ApiError;
use crate::secrets::SecretSealer;

/// An access key and its secret.
#[derive(Clone)]
pub struct Pair {
    /// The public half.
    pub access_key: String,
    /// The secret half.
    pub secret_key: Zeroizing<String>,
}

impl Pair {
    /// Checks a pair that somebody brings.
    ///
    /// # Errors
    /// `InvalidRequest`, saying what a pair must look like.
    pub fn given(access_key: &str, secret_key: &str) -> Result<Self, ApiError> {
        let key_fits = (3..=128).contains(&access_key.len())
            && access_key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if !key_fits {
            return Err(ApiError::invalid("an access key has 3 to 128 letters, digits and _ . -"));
        }
        let secret_fits = (8..=128).contains(&secret_key.len()) && secret_key.bytes().all(|b| b.is_ascii_graphic());
        if !secret_fits {
            return Err(ApiError::invalid("a secret key has 8 to 128 printable ASCII characters without spaces"));
        }
        Ok(Self { access_key: access_key.to_owned(), secret_key: Zeroizing::new(secret_key.to_owned()) })
    }
}

/// A new random pair: 18 characters of 5 bits behind `HF`, and 40 of the alphabet that every client takes.
pub fn new_pair() -> Pair {
    const UPPER: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    const MIXED: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    let mut pick = |alphabet: &[u8], length: usize| -> String {
        (0..length).map(|_| char::from(alphabet[rng.random_range(0..alphabet.len())])).collect()
    };
    Pair { access_key: format!("HF{}", pick(UPPER, 18)), secret_key: Zeroizing::new(pick(MIXED, 40)) }
}

/// Seals and stores a pair for `user`.
///
/// # Errors
/// `Exists` when the access key is taken, `NotFound` when there is no such user; those of the metadata store.
pub async fn add_key(
    metadata: &dyn MetadataStore,
    sealer: &dyn SecretSealer,
    user: User,
    pair: &Pair,
    description: &str,
    now_ms: u64,
) -> Result<AccessKey, ApiError> {
    if description.len() > 256 {
        return Err(ApiError::invalid("a description has at most 256 bytes"));
    }
    let sealed_secret = sealer
        .seal_secret(&pair.secret_key, &pair.access_key)
        .map_err(|error| ApiError::new(ErrorCode::Internal, format!("seal the secret: {error}")))?;
    let key = AccessKey {
        access_key: pair.access_key.clone(),
        sealed_secret,
        user,
        enabled: true,
        description: description.to_owned(),
        created_ms: now_ms,
    };
    metadata.create_key(key.clone()).await?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_pair_obeys_the_rules_for_given_ones() {
        let pair = new_pair();
        assert!(Pair::given(&pair.access_key, &pair.secret_key).is_ok());
        assert_eq!((pair.access_key.len(), pair.secret_key.len()), (20, 40));
        assert!(Pair::given("ab", &pair.secret_key).is_err());
        assert!(Pair::given("has space", &pair.secret_key).is_err());
        assert!(Pair::given("fine", "short").is_err());
    }
}
