//! The bearer token of the admin API: 32 random bytes in a file that only the node's user may read.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use holdfast_protocol::admin::ErrorCode;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::audit::Client;
use super::{AdminState, ApiError};
use crate::secret_file::{self, Exposed};
use crate::secrets;
use crate::telemetry::seldom::Seldom;

/// Whoever tries tokens is told of, and does not fill the log.
static WRONG_TOKENS: Seldom = Seldom::new(Duration::from_secs(10));

/// Longest token file that is read.
const TOKEN_FILE_BYTES_MAX: u64 = 4096;

/// A token file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not readable or not writable.
    #[error("{action} admin token {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Others may read it.
    #[error("admin token {0}")]
    Exposed(Exposed),
    /// It holds no token.
    #[error("admin token {} holds no token of at least 16 characters: delete the file and start the node", .0.display())]
    Malformed(PathBuf),
}

/// A bearer token.
pub struct Token {
    text: Zeroizing<String>,
}

impl Token {
    /// Reads a token file.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Io { action: "read", path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        secret_file::check(path, &file.metadata().map_err(failed)?).map_err(TokenError::Exposed)?;
        let mut text = Zeroizing::new(String::new());
        file.take(TOKEN_FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        let text = Zeroizing::new(text.trim().to_owned());
        if text.len() < 16 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(TokenError::Malformed(path.to_owned()));
        }
        Ok(Self { text })
    }

    /// Reads a token file, making it with a new token if there is none. One that was begun and not ended, as on a disk
    /// without room, would be refused ever after: it appears whole or not at all.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn read_or_create(path: &Path) -> Result<Self, TokenError> {
        match Self::read(path) {
            Err(TokenError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            read => return read,
        }
        let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
        let text = Zeroizing::new(hex::encode(bytes.as_slice()));
        let line = Zeroizing::new(format!("{}\n", *text));
        match secrets::create(path, line.as_bytes()) {
            Ok(()) => Ok(Self { text }),
            // Another process was faster: its token counts.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::read(path),
            Err(source) => Err(TokenError::Io { action: "write", path: path.to_owned(), source }),
        }
    }

    /// The token's text, to be sent.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// Whether `presented` is the token. Compares digests, so that the time taken tells nothing about the token.
    pub fn matches(&self, presented: &str) -> bool {
        let digest = |text: &str| Sha256::digest(text.as_bytes());
        digest(&self.text) == digest(presented)
    }
}

/// Middleware: refuses requests without the token.
pub(super) async fn require(State(state): State<AdminState>, request: Request, next: Next) -> Response {
    let presented = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    match presented {
        Some(token) if state.token.matches(token) => next.run(request).await,
        Some(_) => {
            if let Some(untold) = WRONG_TOKENS.untold() {
                let from = request.extensions().get::<Client>().map(|Client(from)| *from);
                tracing::warn!(?from, untold, "an admin request had a wrong token");
            }
            ApiError::new(ErrorCode::Unauthorized, "the admin token is wrong").into_response()
        }
        None => ApiError::new(ErrorCode::Unauthorized, "send the admin token: Authorization: Bearer …").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_token_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.token");
        let token = Token::read_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Token::read_or_create(&path).unwrap();
        assert!(again.matches(token.reveal()));
        assert!(!again.matches("something else"));
        let kept: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(kept, ["admin.token"], "nothing else is left");
        let nowhere = dir.path().join("absent").join("admin.token");
        assert!(matches!(Token::read_or_create(&nowhere), Err(TokenError::Io { action: "write", .. })));
    }

    #[test]
    fn a_token_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.token");
        drop(Token::read_or_create(&path).unwrap());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Token::read(&path), Err(TokenError::Exposed(_))));
    }
}
