//! The node secret, and the sealing of access-key secrets under it.
//!
//! SigV4 needs the plain secret of a key, so it cannot be hashed; it is stored encrypted. The node secret is 32 random
//! bytes in a file that only the owner may read, beside the data but not in the database: a copy of the database alone
//! opens nothing.
//!
//! # The sealed form
//! `version u8 = 1, nonce 12 bytes, ciphertext, tag 16 bytes`: AES-256-GCM with a random nonce and the access key's
//! public half as associated data, so that a sealed secret moved to another key does not open. Random nonces are safe
//! for 2³² seals under one node secret.
//!
//! # On failure
//! A node that runs alone makes a missing file; one of a cluster refuses to start without it, since what it would seal
//! under a secret of its own opens nowhere else. A file that others may read, or of a wrong length, is refused with a
//! message that says so. If the secret is lost everywhere the keys cannot be used again and must be made anew; the
//! objects are not affected.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rand::Rng as _;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::{Zeroize as _, Zeroizing};

use crate::secret_file::{self, Exposed};

mod sealing;

pub use sealing::{OpenSecretError, SecretOpener, SecretSealer};

/// Length of the node secret.
const NODE_SECRET_BYTES: usize = 32;
/// The first byte of a sealed secret.
const SEAL_VERSION: u8 = 1;

/// Why a secret could not be loaded, sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read or made.
    #[error("node secret {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others may read the file.
    #[error("node secret {0}")]
    TooOpen(Exposed),
    /// There is no file, where one must be.
    #[error(
        "node secret {} is missing, and a new one would open no access key: all nodes of a cluster have the same, copy \
         it from another node, with mode 0600",
        .0.display()
    )]
    Missing(PathBuf),
    /// The file is not what Holdfast wrote.
    #[error("node secret {path} has {found} bytes instead of {NODE_SECRET_BYTES}: restore it from a backup")]
    WrongLength {
        /// Which file.
        path: PathBuf,
        /// Its length; one more than expected stands for all that is longer.
        found: usize,
    },
    /// The sealed form is of a version that this binary does not know.
    #[error("sealed secret of version {0}; this binary knows version {SEAL_VERSION}")]
    UnknownVersion(u8),
    /// It was sealed under another node secret or for another key, or it is damaged.
    #[error("a sealed secret does not open: it was sealed by another node secret, or is damaged")]
    NotOpened,
    /// The operating system gave no random bytes.
    #[error("no random bytes from the operating system")]
    NoRandomness,
}

/// Seals and opens secrets. Never shows its key.
pub struct NodeSecret {
    key: LessSafeKey,
    random: SystemRandom,
}

impl fmt::Debug for NodeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeSecret(…)")
    }
}

impl NodeSecret {
    /// Reads the secret from `path`, where it must be.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        match File::open(path) {
            Ok(file) => Self::load_opened(path, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(SecretError::Missing(path.to_owned())),
            Err(source) => Err(SecretError::File { path: path.to_owned(), source }),
        }
    }

    /// Reads the secret from `path`, or makes it there: durable, mode 0600, and whole or not at all.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub fn load_or_create(path: &Path) -> Result<Self, SecretError> {
        let at_path = |source| SecretError::File { path: path.to_owned(), source };
        match File::open(path) {
            Ok(file) => Self::load_opened(path, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut bytes = Zeroizing::new([0; NODE_SECRET_BYTES]);
                SystemRandom::new().fill(&mut bytes[..]).map_err(|_| SecretError::NoRandomness)?;
                match create(path, &bytes[..]) {
                    Ok(()) => Ok(Self::from_bytes(&bytes)),
                    // Another process was faster: its secret counts.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        Self::load_opened(path, File::open(path).map_err(at_path)?)
                    }
                    Err(error) => Err(at_path(error)),
                }
            }
            Err(error) => Err(at_path(error)),
        }
    }

    fn load_opened(path: &Path, mut file: File) -> Result<Self, SecretError> {
        let at_path = |source| SecretError::File { path: path.to_owned(), source };
        secret_file::check(path, &file.metadata().map_err(at_path)?).map_err(SecretError::TooOpen)?;
        // One byte more than expected, to see that there is more. A buffer of fixed size, so that no reallocation
        // leaves a copy behind.
        let mut bytes = Zeroizing::new([0; NODE_SECRET_BYTES + 1]);
        let mut found = 0;
        while found < bytes.len() {
            match file.read(&mut bytes[found..]) {
                Ok(0) => break,
                Ok(n) => found += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(at_path(error)),
            }
        }
        match bytes.first_chunk::<NODE_SECRET_BYTES>() {
            Some(secret) if found == NODE_SECRET_BYTES => Ok(Self::from_bytes(secret)),
            _ => Err(SecretError::WrongLength { path: path.to_owned(), found }),
        }
    }

    /// A node secret that is known already; for tests and for restoring.
    pub fn from_bytes(bytes: &[u8; NODE_SECRET_BYTES]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, bytes).expect("the key has the length of AES-256");
        Self { key: LessSafeKey::new(key), random: SystemRandom::new() }
    }

    /// Encrypts the secret half of an access key.
    ///
    /// # Errors
    /// [`SecretError::NoRandomness`].
    pub fn seal(&self, access_key: &str, secret: &str) -> Result<Vec<u8>, SecretError> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| SecretError::NoRandomness)?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + secret.len() + AES_256_GCM.tag_len());
        sealed.push(SEAL_VERSION);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(secret.as_bytes());
        let tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(access_key.as_bytes()),
                &mut sealed[1 + NONCE_LEN..],
            )
            .expect("a secret is far below the length limit of AES-GCM");
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// Decrypts what [`Self::seal`] made for the same access key. The result is wiped from memory when dropped.
    ///
    /// # Errors
    /// [`SecretError::UnknownVersion`], [`SecretError::NotOpened`].
    pub fn open(&self, access_key: &str, sealed: &[u8]) -> Result<Zeroizing<String>, SecretError> {
        let (version, rest) = sealed.split_first().ok_or(SecretError::NotOpened)?;
        if *version != SEAL_VERSION {
            return Err(SecretError::UnknownVersion(*version));
        }
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_LEN>().ok_or(SecretError::NotOpened)?;
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        let aad = Aad::from(access_key.as_bytes());
        let plain = self
            .key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut buffer)
            .map_err(|_| SecretError::NotOpened)?;
        match String::from_utf8(plain.to_vec()) {
            Ok(secret) => Ok(Zeroizing::new(secret)),
            Err(error) => {
                error.into_bytes().zeroize();
                Err(SecretError::NotOpened)
            }
        }
    }
}

/// Writes a secret file that appears whole, or fails with `AlreadyExists`; durable on return.
///
/// # Errors
/// When there is one already, or it cannot be written; nothing is left behind.
pub(crate) fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let suffix: u64 = rand::rng().random();
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{suffix:016x}.tmp"));
    let temporary = directory.join(name);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        // A hard link fails where a rename would replace the secret of a process that was faster.
        std::fs::hard_link(&temporary, path)
    })();
    // Also after a failure; that it is not there then is no news.
    std::fs::remove_file(&temporary).ok();
    written?;
    File::open(directory)?.sync_all()
}

/// An access key with its secret, as given to the user once.
pub struct KeyPair {
    /// The public half: 20 upper-case letters and digits, the first two `HF`.
    pub access_key: String,
    /// The secret half: 40 characters of the base64 alphabet, 240 random bits.
    pub secret_key: Zeroizing<String>,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

impl KeyPair {
    /// A fresh pair in the shape that S3 tools expect.
    ///
    /// # Errors
    /// [`SecretError::NoRandomness`].
    pub fn generate() -> Result<Self, SecretError> {
        use base64::Engine as _;
        use base64::engine::general_purpose::STANDARD;

        /// 32 characters, so that five random bits choose one evenly; without 0, 1, 8 and 9, which look like letters.
        const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let random = SystemRandom::new();
        let mut public = [0; 18];
        random.fill(&mut public).map_err(|_| SecretError::NoRandomness)?;
        let mut access_key = String::from("HF");
        access_key.extend(public.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])));
        let mut secret = Zeroizing::new([0; 30]);
        random.fill(&mut secret[..]).map_err(|_| SecretError::NoRandomness)?;
        Ok(Self { access_key, secret_key: Zeroizing::new(STANDARD.encode(&secret[..])) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn secret() -> NodeSecret {
        NodeSecret::from_bytes(&[7; 32])
    }

    #[test]
    fn a_sealed_secret_opens_for_its_key_only() {
        let sealed = secret().seal("AKIA", "wJalr/+=").unwrap();
        assert_eq!(*secret().open("AKIA", &sealed).unwrap(), "wJalr/+=");
        assert!(matches!(secret().open("AKIB", &sealed), Err(SecretError::NotOpened)));
        let other = NodeSecret::from_bytes(&[8; 32]);
        assert!(matches!(other.open("AKIA", &sealed), Err(SecretError::NotOpened)));
        assert!(!sealed.windows(5).any(|window| window == b"wJalr"));
    }

    #[test]
    fn two_seals_of_one_secret_differ() {
        assert_ne!(secret().seal("A", "s").unwrap(), secret().seal("A", "s").unwrap());
    }

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let sealed = secret().seal("A", "secret").unwrap();
        for i in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert!(secret().open("A", &changed).is_err(), "byte {i}");
            assert!(secret().open("A", &sealed[..i]).is_err(), "cut at {i}");
        }
        let mut newer = sealed;
        newer[0] = 2;
        assert!(matches!(secret().open("A", &newer), Err(SecretError::UnknownVersion(2))));
    }

    #[test]
    fn the_file_is_made_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.secret");
        let first = NodeSecret::load_or_create(&path).unwrap();
        let sealed = first.seal("A", "s").unwrap();
        let second = NodeSecret::load_or_create(&path).unwrap();
        assert_eq!(*second.open("A", &sealed).unwrap(), "s");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_file_that_must_be_there_is_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.secret");
        let error = NodeSecret::load(&path).unwrap_err();
        assert!(matches!(error, SecretError::Missing(_)), "{error}");
        assert!(!path.exists(), "it was made");
        let sealed = NodeSecret::load_or_create(&path).unwrap().seal("A", "s").unwrap();
        assert_eq!(*NodeSecret::load(&path).unwrap().open("A", &sealed).unwrap(), "s");
    }

    #[test]
    fn processes_that_start_together_agree() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.secret");
        let secrets: Vec<NodeSecret> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| NodeSecret::load_or_create(&path).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let sealed = secrets[0].seal("A", "s").unwrap();
        for secret in &secrets {
            assert_eq!(*secret.open("A", &sealed).unwrap(), "s");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.secret");
        NodeSecret::load_or_create(&path).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = NodeSecret::load_or_create(&path).unwrap_err();
            assert!(matches!(error, SecretError::TooOpen { .. }), "{error}");
            assert!(error.to_string().contains("chmod 600"));
        }
    }

    #[test]
    fn a_file_of_a_wrong_length_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.secret");
        for length in [0, 31, 33, 1000] {
            std::fs::write(&path, vec![1; length]).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            let error = NodeSecret::load_or_create(&path).unwrap_err();
            assert!(matches!(error, SecretError::WrongLength { .. }), "{error}");
            assert_eq!(std::fs::read(&path).unwrap().len(), length);
        }
    }

    #[test]
    fn generated_pairs_have_the_shape_of_s3_keys_and_are_not_shown() {
        let pair = KeyPair::generate().unwrap();
        assert_eq!((pair.access_key.len(), pair.secret_key.len()), (20, 40));
        assert!(pair.access_key.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()));
        let shown = format!("{pair:?} {:?}", secret());
        assert!(!shown.contains(pair.secret_key.as_str()));
        assert!(!shown.contains("7, 7"));
        assert_ne!(pair.access_key, KeyPair::generate().unwrap().access_key);
    }
}
