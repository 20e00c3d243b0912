//! Where the server is and how patient to be with it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};

use super::error::OpenError;
use crate::addresses::is_this_machine;

/// How a connection is protected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MysqlTls {
    /// Not at all.
    Off,
    /// Encrypted where the server can, without a look at its certificate.
    #[default]
    Preferred,
    /// Encrypted; the server's certificate must come from a CA of this PEM file, or of the system's.
    VerifyCa(Option<PathBuf>),
    /// The same, and the certificate must be made out to the host of the URL.
    VerifyIdentity(Option<PathBuf>),
}

/// Settings of a [`MysqlMetadataStore`](super::MysqlMetadataStore).
#[derive(Clone)]
pub struct MysqlOptions {
    /// `mysql://user@host:3306/database`, without a password.
    pub url: String,
    /// The user's password.
    pub password: Option<String>,
    /// How connections are protected.
    pub tls: MysqlTls,
    /// Connections at once.
    pub connections: u32,
    /// How long a verb waits for one of them before it is refused as `Busy`.
    pub acquire_timeout: Duration,
    /// How long one attempt to connect may take.
    pub connect_timeout: Duration,
    /// How long one statement may take.
    pub query_timeout: Duration,
    /// How long a statement waits for another transaction's lock before its verb starts anew.
    pub lock_timeout: Duration,
    /// How long after it was asked for a write may begin. One that waited longer (for its turn, for a lock, in a
    /// process that stood still) is refused: its client has given up, and may have written again since.
    pub write_timeout: Duration,
    /// How long to try to find out what became of a commit whose connection broke.
    pub settle_timeout: Duration,
}

impl MysqlOptions {
    /// The defaults, for a server.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            password: None,
            tls: MysqlTls::default(),
            connections: 32,
            acquire_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            query_timeout: Duration::from_secs(20),
            lock_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(60),
            settle_timeout: Duration::from_secs(15),
        }
    }

    /// What the driver needs.
    pub(super) fn connect(&self) -> Result<MySqlConnectOptions, OpenError> {
        let url = url::Url::parse(&self.url).map_err(|error| OpenError::Url(error.to_string()))?;
        if !matches!(url.scheme(), "mysql" | "mariadb") || url.host_str().is_none() || url.path().len() < 2 {
            return Err(OpenError::Url("expected mysql://user@host:port/database".to_owned()));
        }
        if url.password().is_some() {
            return Err(OpenError::Url("a password does not belong there".to_owned()));
        }
        let (mode, ca) = match &self.tls {
            MysqlTls::Off => (MySqlSslMode::Disabled, &None),
            MysqlTls::Preferred => (MySqlSslMode::Preferred, &None),
            MysqlTls::VerifyCa(ca) => (MySqlSslMode::VerifyCa, ca),
            MysqlTls::VerifyIdentity(ca) => (MySqlSslMode::VerifyIdentity, ca),
        };
        let mut options = MySqlConnectOptions::from_url(&url)
            .map_err(|error| OpenError::Url(error.to_string()))?
            .ssl_mode(mode)
            .statement_cache_capacity(STATEMENTS_MAX)
            .disable_statement_logging();
        if let Some(ca) = ca {
            options = options.ssl_ca(ca);
        }
        if let Some(password) = &self.password {
            options = options.password(password);
        }
        Ok(options)
    }
}

/// What an eavesdropper between this node and the server could do, if there is somewhere to stand; for the log.
pub fn exposure(url: &str, tls: &MysqlTls) -> Option<&'static str> {
    let url = url::Url::parse(url).ok()?;
    match tls {
        _ if is_this_machine(url.host_str()?) => None,
        MysqlTls::Off => {
            Some("connections to the metadata server are not encrypted: whoever is on the way reads everything")
        }
        MysqlTls::Preferred => Some(
            "connections to the metadata server are encrypted only if it offers that, and its certificate is not checked: whoever \
             is on the way can pretend to be it",
        ),
        MysqlTls::VerifyCa(_) | MysqlTls::VerifyIdentity(_) => None,
    }
}

/// Prepared statements of a connection. A server has 16,382 for all connections by default (`max_prepared_stmt_count`):
/// 500 connections stay below that.
const STATEMENTS_MAX: usize = 32;

impl fmt::Debug for MysqlOptions {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlOptions")
            .field("url", &self.url)
            .field("tls", &self.tls)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_of_the_scheme_are_known_and_others_are_not() {
        for url in ["mysql://u@h:3306/d", "mariadb://u@h/d"] {
            assert!(MysqlOptions::new(url).connect().is_ok(), "{url}");
        }
        for url in ["postgres://u@h/d", "mysql://u:secret@h/d", "mysql://u@h", "nonsense"] {
            assert!(MysqlOptions::new(url).connect().is_err(), "{url}");
        }
    }

    #[test]
    fn only_unchecked_ways_to_other_machines_are_warned_of() {
        for local in ["mysql://u@localhost/d", "mysql://u@127.0.0.1:3306/d", "mysql://u@[::1]/d"] {
            assert_eq!(exposure(local, &MysqlTls::Off), None, "{local}");
        }
        let far = "mysql://u@db.example.com/d";
        assert!(exposure(far, &MysqlTls::Off).is_some() && exposure(far, &MysqlTls::Preferred).is_some());
        assert_eq!(exposure(far, &MysqlTls::VerifyCa(None)), None);
        assert_eq!(exposure(far, &MysqlTls::VerifyIdentity(None)), None);
    }
}
