//! Limits on what an object carries beside its bytes: its key and its user metadata.

use super::{KEY_SIZE_MAX, USER_METADATA_SIZE_MAX};

/// Why a key or the metadata of an object is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttributeError {
    /// S3: `KeyTooLongError`.
    #[error("the key has {0} bytes, more than {KEY_SIZE_MAX}")]
    KeyTooLong(usize),
    /// A key has at least one byte. S3: `InvalidArgument`.
    #[error("the key is empty")]
    KeyEmpty,
    /// S3: `MetadataTooLarge`.
    #[error("the user metadata has {0} bytes, more than {USER_METADATA_SIZE_MAX}")]
    MetadataTooLarge(usize),
}

/// Checks a key's length.
///
/// # Errors
/// [`AttributeError::KeyTooLong`], [`AttributeError::KeyEmpty`].
pub fn check_key(key: &str) -> Result<(), AttributeError> {
    match key.len() {
        0 => Err(AttributeError::KeyEmpty),
        n if n > KEY_SIZE_MAX => Err(AttributeError::KeyTooLong(n)),
        _ => Ok(()),
    }
}

/// Checks the size of user metadata as S3 counts it: the bytes of names (without `x-amz-meta-`) and values.
///
/// # Errors
/// [`AttributeError::MetadataTooLarge`].
pub fn check_user_metadata(metadata: &[(String, String)]) -> Result<(), AttributeError> {
    let size = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > USER_METADATA_SIZE_MAX { Err(AttributeError::MetadataTooLarge(size)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_measured_in_bytes() {
        assert_eq!(check_key(&"k".repeat(1024)), Ok(()));
        assert_eq!(check_key(&"k".repeat(1025)), Err(AttributeError::KeyTooLong(1025)));
        assert_eq!(check_key(&"ä".repeat(513)), Err(AttributeError::KeyTooLong(1026)));
        assert_eq!(check_key(""), Err(AttributeError::KeyEmpty));
    }

    #[test]
    fn metadata_counts_names_and_values() {
        let just = vec![("n".repeat(48), "v".repeat(2000))];
        assert_eq!(check_user_metadata(&just), Ok(()));
        let over = vec![("n".repeat(49), "v".repeat(2000))];
        assert_eq!(check_user_metadata(&over), Err(AttributeError::MetadataTooLarge(2049)));
    }
}
