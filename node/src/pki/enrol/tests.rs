//! Tokens that are damaged, and clocks that do not fit.

use holdfast_protocol::fuzz::{Target, damage};

use super::*;

fn json() -> Vec<u8> {
    let token = Token {
        cluster: ClusterId([7; 16]),
        issuer: NodeId::from(1),
        addresses: vec!["node1.example.com:9002".into(), "[::1]:9002".into()],
        ca_pem: "-----BEGIN CERTIFICATE-----".into(),
        certificate_pem: "C".into(),
        key_pem: "K".into(),
    };
    serde_json::to_vec(&token).unwrap()
}

#[tokio::test]
async fn clock_that_is_days_behind_is_told_before_the_token_is_used() {
    let ca = ClusterCa::generate(ClusterId([7; 16])).unwrap();
    let key = KeyPair::generate().unwrap();
    let (hour, now) = (Duration::from_secs(3600), SystemTime::now());
    let made = ca.issue(Role::Enrol, &key, Validity { from: now + hour, until: now + hour * 26 }).unwrap();
    let token = Token {
        cluster: ca.cluster(),
        issuer: NodeId::from(1),
        addresses: vec![],
        ca_pem: ca.certificate_pem().to_owned(),
        certificate_pem: made.pem(),
        key_pem: key.serialize_pem(),
    };
    let dir = tempfile::tempdir().unwrap();
    let error = join(dir.path(), NodeId::from(2), &token).await.unwrap_err();
    assert!(matches!(error, EnrolError::ClockBehind { .. }), "{error}");
}

#[test]
fn damaged_join_tokens_are_refused_and_no_harm() {
    fn body(bytes: &[u8]) {
        let encoded = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        for text in [&*String::from_utf8_lossy(bytes), &encoded] {
            if let Ok(token) = text.parse::<Token>() {
                let again: Token = token.to_text().parse().unwrap();
                assert_eq!(*again.to_text(), *token.to_text());
                let _ = ca_of(&token);
            }
        }
    }
    let seeds = || vec![json(), format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(json())).into_bytes()];
    damage::run(&[Target { name: "join_token", body, seeds }], 5_000);
}
