//! Whose requests are sent: keys from a file, from the environment, or of the instance's role.

use std::collections::HashMap;
use std::env;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_config::imds;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future::ProvideCredentials as Provided;
use aws_sdk_s3::config::{Credentials, ProvideCredentials, SharedCredentialsProvider, SharedHttpClient};
use holdfast_actors::ports::tiers::{TierError, TierResult};
use zeroize::Zeroizing;

use super::config::CredentialsSource;

/// Largest file that is read.
const BYTES_MAX: u64 = 64 << 10;
/// How long keys of a file are used before it is read again.
const REREAD_AFTER: Duration = Duration::from_secs(300);

/// A provider of the credentials, which are there now where that can be said without a request.
///
/// # Errors
/// [`TierError::Denied`] with what is missing.
pub(super) fn provider(source: &CredentialsSource, http: &SharedHttpClient) -> TierResult<SharedCredentialsProvider> {
    match source {
        CredentialsSource::File(path) => {
            read(path)?;
            Ok(SharedCredentialsProvider::new(KeyFile(path.clone())))
        }
        CredentialsSource::Environment => {
            from_environment(|name| env::var(name).ok()).map(SharedCredentialsProvider::new)
        }
        CredentialsSource::InstanceRole => {
            Ok(SharedCredentialsProvider::new(instance_role(http, imds::Client::builder())))
        }
        CredentialsSource::Keys(keys) => {
            let secret = keys.secret_access_key.as_str();
            Ok(SharedCredentialsProvider::new(Credentials::new(&keys.access_key_id, secret, None, None, "settings")))
        }
    }
}

/// The keys that the instance's own service gives, through the one client of HTTP that there is.
fn instance_role(http: &SharedHttpClient, client: imds::client::Builder) -> ImdsCredentialsProvider {
    let config = ProviderConfig::without_region().with_http_client(http.clone());
    ImdsCredentialsProvider::builder().configure(&config).imds_client(client.configure(&config).build()).build()
}

fn from_environment(variable: impl Fn(&str) -> Option<String>) -> TierResult<Credentials> {
    let of = |name: &str| variable(name).filter(|value| !value.is_empty());
    let wanted = |name: &str| of(name).ok_or_else(|| TierError::Denied(format!("{name} is not set")));
    let (id, secret) = (wanted("AWS_ACCESS_KEY_ID")?, wanted("AWS_SECRET_ACCESS_KEY")?);
    Ok(Credentials::new(id, secret, of("AWS_SESSION_TOKEN"), None, "environment"))
}

/// Keys in a file, which is read again from time to time.
#[derive(Debug)]
struct KeyFile(PathBuf);

impl ProvideCredentials for KeyFile {
    fn provide_credentials<'a>(&'a self) -> Provided<'a>
    where
        Self: 'a,
    {
        // The file is small, and read once in minutes.
        Provided::ready(read(&self.0).map_err(|error| CredentialsError::invalid_configuration(error.to_string())))
    }
}

fn read(path: &Path) -> TierResult<Credentials> {
    let denied = |what: String| TierError::Denied(format!("the credentials file {} {what}", path.display()));
    let unreadable = |error: std::io::Error| denied(format!("cannot be read: {error}"));
    let file = File::open(path).map_err(unreadable)?;
    let about = file.metadata().map_err(unreadable)?;
    // As the node judges all secret files. A pipe, such as a shell's process substitution, is nobody else's.
    let mode = about.permissions().mode() & 0o777;
    if about.is_file() && mode & 0o077 != 0 {
        return Err(denied(format!("can be read by others (mode {mode:03o}): run chmod 600 {}", path.display())));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    parse(&text).map_err(denied)
}

/// The error tells nothing of what stands in the file.
fn parse(text: &str) -> Result<Credentials, String> {
    let fields: HashMap<String, Zeroizing<String>> = if text.trim_start().starts_with('{') {
        let fields: HashMap<String, String> =
            serde_json::from_str(text).map_err(|error| format!("is no JSON object of texts, line {}", error.line()))?;
        fields.into_iter().map(|(name, value)| (name, Zeroizing::new(value))).collect()
    } else {
        let mut fields = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';', '[']) {
                continue;
            }
            let Some((name, value)) = line.split_once('=') else {
                return Err(format!("has no key=value in line {}", number + 1));
            };
            fields.insert(name.trim().to_owned(), Zeroizing::new(value.trim().to_owned()));
        }
        fields
    };
    let of = |name: &str| {
        // As in the file of the tools of AWS, and in an environment.
        let names = [name.to_owned(), format!("aws_{name}"), format!("AWS_{}", name.to_uppercase())];
        let value = names.iter().find_map(|name| fields.get(name)).map(|value| value.trim_matches('"').to_owned());
        value.filter(|value| !value.is_empty())
    };
    let wanted = |name: &str| of(name).ok_or_else(|| format!("has no {name}"));
    let (id, secret) = (wanted("access_key_id")?, wanted("secret_access_key")?);
    Ok(Credentials::new(id, secret, of("session_token"), Some(SystemTime::now() + REREAD_AFTER), "file"))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::fs::{self, Permissions};

    use http_body_util::Full;
    use hyper::body::{Bytes, Incoming};
    use hyper::service::service_fn;
    use hyper::{Method, Request, Response};
    use hyper_util::rt::TokioIo;
    use tokio::net::TcpListener;

    use super::*;

    const ROLE: &str = "/latest/meta-data/iam/security-credentials/";

    /// The service of an instance that has a role.
    async fn instance(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let keys = r#"{"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
            "AccessKeyId": "id", "SecretAccessKey": "secret", "Token": "token", "Expiration": "2100-01-01T00:00:00Z"}"#;
        let answer = Response::builder().header("x-aws-ec2-metadata-token-ttl-seconds", "21600");
        let known = request.headers().get("x-aws-ec2-metadata-token").is_some_and(|token| token == "pass");
        let (status, text) = match (request.method(), request.uri().path()) {
            (&Method::PUT, "/latest/api/token") => (200, "pass"),
            (&Method::GET, ROLE) if known => (200, "role"),
            (&Method::GET, path) if known && path.strip_prefix(ROLE) == Some("role") => (200, keys),
            _ => (404, ""),
        };
        Ok(answer.status(status).body(Full::from(text)).unwrap())
    }

    #[tokio::test]
    async fn role_of_the_instance_gives_keys() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(connection), service_fn(instance));
                tokio::spawn(async move { serving.await.ok() });
            }
        });
        let http = aws_smithy_http_client::Builder::new().build_http();
        // Its own limits are of a second, and a busy machine stands still for longer.
        let patience = Duration::from_secs(60);
        let client = imds::Client::builder().endpoint(endpoint).unwrap();
        let client = client.connect_timeout(patience).read_timeout(patience).operation_timeout(patience);
        let keys = instance_role(&http, client).provide_credentials().await.unwrap();
        assert_eq!((keys.access_key_id(), keys.session_token()), ("id", Some("token")));
    }

    #[test]
    fn both_formats_are_read() {
        for text in [
            "access_key_id=id\nsecret_access_key = a=b+/c\nsession_token=token\n",
            "# keys\n[default]\naws_access_key_id = id\naws_secret_access_key = a=b+/c\naws_session_token=token",
            "AWS_ACCESS_KEY_ID=\"id\"\nAWS_SECRET_ACCESS_KEY=\"a=b+/c\"\nAWS_SESSION_TOKEN=token",
            r#" {"access_key_id": "id", "secret_access_key": "a=b+/c", "session_token": "token"}"#,
        ] {
            let keys = parse(text).unwrap();
            assert_eq!((keys.access_key_id(), keys.secret_access_key()), ("id", "a=b+/c"), "{text}");
            assert_eq!(keys.session_token(), Some("token"));
            assert!(keys.expiry().is_some(), "it is read again");
        }
        assert_eq!(parse("access_key_id=id\nsecret_access_key=s").unwrap().session_token(), None);
    }

    #[test]
    fn mistakes_are_named_without_the_secret() {
        for (text, word) in [
            ("access_key_id=id\nhush", "line 2"),
            ("access_key_id=id", "secret_access_key"),
            ("access_key_id=id\nsecret_access_key=", "secret_access_key"),
            ("{\"access_key_id\": \"hush\",", "JSON"),
            ("{\"access_key_id\": [\"hush\"]}", "JSON"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word) && !error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn file_is_read_only_where_nobody_else_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        fs::write(&path, "access_key_id=id\nsecret_access_key=s").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(read(&path), Err(TierError::Denied(text)) if text.contains("chmod 600")));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&path).unwrap().access_key_id(), "id");
        assert!(matches!(read(&dir.path().join("absent")), Err(TierError::Denied(_))));
    }

    #[test]
    fn environment_says_what_it_lacks() {
        let keys = from_environment(|name| (name != "AWS_SESSION_TOKEN").then(|| name.to_lowercase())).unwrap();
        assert_eq!(keys.access_key_id(), "aws_access_key_id");
        let missing = from_environment(|name| (name == "AWS_ACCESS_KEY_ID").then(|| "id".into()));
        assert!(matches!(missing, Err(TierError::Denied(text)) if text.contains("AWS_SECRET_ACCESS_KEY")));
    }
}
