//! What the adapter says and leaves behind when the store fails.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_actors::ports::ColdTier as _;
use holdfast_actors::ports::tiers::{ColdBody, PieceName, PieceSpec, TierError, TierResult};
use holdfast_protocol::ContentId;
use holdfast_tiers::oss::{Encryption, OssConfig, OssTier};

use crate::Rig;
use crate::server::Fault;

const SMALL_BYTES: usize = 100_000;
/// Three parts.
const LARGE_BYTES: usize = 12 << 20;

fn piece(size: usize) -> PieceSpec {
    PieceSpec { content: ContentId([0xc0; 12]), index: 3, attempt: 1, size_bytes: size as u64 }
}

fn data(size: usize) -> Bytes {
    (0..size as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn body(size: usize) -> ColdBody {
    let data = data(size);
    let starts = (0..size).step_by(1 << 16);
    stream::iter(starts.map(move |start| Ok(data.slice(start..(start + (1 << 16)).min(size))))).boxed()
}

async fn put(tier: &OssTier, size: usize) -> (PieceName, TierResult<()>) {
    let name = tier.reserve(&piece(size)).await.unwrap();
    let result = tier.put(&name, &piece(size), body(size)).await;
    (name, result)
}

async fn stored(tier: &OssTier, size: usize) -> PieceName {
    let (name, result) = put(tier, size).await;
    result.unwrap();
    name
}

async fn get(tier: &OssTier, name: &PieceName, size: usize) -> TierResult<Vec<u8>> {
    let steps: Vec<Bytes> = tier.get(name, 0..size as u64).await?.try_collect().await?;
    Ok(steps.concat())
}

fn is_unavailable<T>(result: &TierResult<T>) -> bool {
    matches!(result, Err(TierError::Unavailable(_)))
}

/// Every operation is refused, in words that have `word` among them.
async fn assert_denied(tier: &OssTier, word: &str) {
    let name = tier.reserve(&piece(SMALL_BYTES)).await.unwrap();
    let results = [
        ("check", tier.check().await.map(drop)),
        ("put", put(tier, SMALL_BYTES).await.1),
        ("put in parts", put(tier, LARGE_BYTES).await.1),
        ("get", get(tier, &name, 1).await.map(drop)),
        ("size", tier.size_bytes(&name).await.map(drop)),
        ("delete", tier.delete(&name).await),
    ];
    for (what, result) in results {
        assert!(matches!(&result, Err(TierError::Denied(text)) if text.contains(word)), "{what}: {result:?}");
    }
}

#[tokio::test]
async fn wrong_keys_are_denied_by_name() {
    let rig = Rig::start().await;
    rig.write_keys(crate::ACCESS_KEY, "not the secret");
    assert_denied(&rig.tier(), "correct secret_access_key").await;
    rig.write_keys("AKOTHER", crate::SECRET_KEY);
    assert_denied(&rig.tier(), "access key").await;
}

#[tokio::test]
async fn keys_that_went_away_are_denied() {
    let rig = Rig::start().await;
    let tier = rig.tier();
    rig.remove_keys();
    assert_denied(&tier, "credentials").await;
    assert!(matches!(OssTier::new(rig.config()), Err(TierError::Denied(_))), "a new one says so at once");
    rig.write_keys(crate::ACCESS_KEY, crate::SECRET_KEY);
    // What came back is taken without a restart.
    stored(&tier, SMALL_BYTES).await;
}

#[tokio::test]
async fn missing_bucket_is_denied_and_not_taken_for_missing_pieces() {
    let rig = Rig::start().await;
    let tier = OssTier::new(OssConfig { bucket: "another".into(), ..rig.config() }).unwrap();
    assert_denied(&tier, "the bucket does not exist").await;
}

#[tokio::test]
async fn missing_right_is_denied() {
    let rig = Rig::start().await;
    rig.server.break_with(Fault::Errors { left: u64::MAX, status: 403, code: "AccessDenied" });
    assert_denied(&rig.tier(), "lack a right").await;
}

#[tokio::test]
async fn full_store_is_full() {
    let rig = Rig::start().await;
    let tier = rig.tier();
    for (status, code) in [(507, "XMinioStorageFull"), (403, "QuotaExceeded"), (507, "InsufficientStorage")] {
        rig.server.break_with(Fault::Errors { left: u64::MAX, status, code });
        for size in [SMALL_BYTES, LARGE_BYTES] {
            let (_, result) = put(&tier, size).await;
            assert!(matches!(result, Err(TierError::Full(_))), "{code}: {result:?}");
        }
    }
    rig.server.break_with(Fault::None);
    assert_eq!(rig.server.contents(), Vec::<String>::new());
}

#[tokio::test]
async fn store_that_is_down_is_unavailable() {
    let rig = Rig::start().await;
    // A port that nobody listens at, kept so that nobody else gets it and does.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let endpoint = format!("http://{}", socket.local_addr().unwrap());
    let tier = OssTier::new(OssConfig { endpoint, ..rig.config() }).unwrap();
    let name = tier.reserve(&piece(SMALL_BYTES)).await.unwrap();
    assert!(is_unavailable(&tier.check().await));
    assert!(is_unavailable(&put(&tier, SMALL_BYTES).await.1));
    assert!(is_unavailable(&put(&tier, LARGE_BYTES).await.1));
    assert!(is_unavailable(&get(&tier, &name, 1).await));
    assert!(is_unavailable(&tier.size_bytes(&name).await));
    assert!(is_unavailable(&tier.delete(&name).await));
}

#[tokio::test]
async fn store_that_never_answers_is_unavailable() {
    let rig = Rig::start().await;
    rig.server.break_with(Fault::Silent);
    let limits = OssConfig { request_timeout: Duration::from_millis(200), attempts_max: 2, ..rig.config() };
    let tier = OssTier::new(limits).unwrap();
    let name = tier.reserve(&piece(SMALL_BYTES)).await.unwrap();
    assert!(is_unavailable(&tier.check().await));
    assert!(is_unavailable(&put(&tier, SMALL_BYTES).await.1));
    assert!(is_unavailable(&get(&tier, &name, 1).await));
    assert!(is_unavailable(&tier.size_bytes(&name).await));
    assert!(is_unavailable(&tier.delete(&name).await));
}

#[tokio::test]
async fn passing_errors_are_tried_again_and_lasting_ones_are_unavailable() {
    let rig = Rig::start().await;
    let tier = rig.tier();
    for (status, code) in [(503, "SlowDown"), (500, "InternalError"), (503, "ServiceUnavailable")] {
        rig.server.break_with(Fault::Errors { left: 2, status, code });
        let name = stored(&tier, SMALL_BYTES).await;
        rig.server.break_with(Fault::Errors { left: 2, status, code });
        assert_eq!(get(&tier, &name, SMALL_BYTES).await.unwrap(), data(SMALL_BYTES));
        rig.server.break_with(Fault::Errors { left: u64::MAX, status, code });
        let before = rig.server.requests();
        assert!(is_unavailable(&get(&tier, &name, SMALL_BYTES).await));
        assert!(rig.server.requests() - before <= u64::from(rig.config().attempts_max), "tries have a bound");
        assert!(is_unavailable(&tier.size_bytes(&name).await));
    }
}

#[tokio::test]
async fn answer_that_breaks_off_is_unavailable() {
    let rig = Rig::start().await;
    let tier = rig.tier();
    let name = stored(&tier, SMALL_BYTES).await;
    rig.server.break_with(Fault::CutGets);
    let result = get(&tier, &name, SMALL_BYTES).await;
    assert!(is_unavailable(&result), "{:?}", result.map(|bytes| bytes.len()));
    rig.server.break_with(Fault::None);
    assert_eq!(get(&tier, &name, SMALL_BYTES).await.unwrap(), data(SMALL_BYTES));
}

#[tokio::test]
async fn answer_that_stands_still_is_unavailable() {
    let rig = Rig::start().await;
    let name = stored(&rig.tier(), SMALL_BYTES).await;
    let tier = OssTier::new(OssConfig { request_timeout: Duration::from_secs(2), ..rig.config() }).unwrap();
    rig.server.break_with(Fault::StuckGets);
    assert!(is_unavailable(&get(&tier, &name, SMALL_BYTES).await));
}

#[tokio::test]
async fn object_that_became_shorter_is_corrupt() {
    let rig = Rig::start().await;
    let tier = rig.tier();
    let name = stored(&tier, SMALL_BYTES).await;
    rig.server.break_with(Fault::ShortGets);
    for range in [0..SMALL_BYTES as u64, 10..SMALL_BYTES as u64, SMALL_BYTES as u64 - 10..SMALL_BYTES as u64] {
        let result = tier.get(&name, range).await.err();
        assert!(matches!(&result, Some(TierError::Corrupt { piece, .. }) if *piece == name), "{result:?}");
    }
}

#[tokio::test]
async fn etag_of_something_else_is_corrupt() {
    let rig = Rig::start().await;
    let tier = rig.tier();
    rig.server.break_with(Fault::WrongEtags);
    for size in [SMALL_BYTES, LARGE_BYTES] {
        let (name, result) = put(&tier, size).await;
        assert!(matches!(result, Err(TierError::Corrupt { .. })), "{result:?}");
        tier.delete(&name).await.unwrap();
    }
    assert_eq!(rig.server.contents(), Vec::<String>::new());
    // Where it is no MD5, it says nothing.
    let tier = OssTier::new(OssConfig { etag_is_md5: false, ..rig.config() }).unwrap();
    stored(&tier, SMALL_BYTES).await;
}

#[tokio::test]
async fn upload_that_was_cut_off_is_gone_after_the_next_put_or_delete() {
    let rig = Rig::start().await;
    let tier = OssTier::new(OssConfig { attempts_max: 1, ..rig.config() }).unwrap();
    for cuts in [1, 3] {
        for _ in 0..cuts {
            // Not even aborting works, as after a crash; nor does tidying up before the next put.
            rig.server.break_with(Fault::AfterFirstPart);
            assert!(is_unavailable(&put(&tier, LARGE_BYTES).await.1));
        }
        assert!(rig.server.uploads() > 0, "there is something to tidy up");
        rig.server.break_with(Fault::None);
        let name = stored(&tier, LARGE_BYTES).await;
        assert_eq!(rig.server.uploads(), 0);
        assert_eq!(get(&tier, &name, LARGE_BYTES).await.unwrap(), data(LARGE_BYTES));

        rig.server.break_with(Fault::AfterFirstPart);
        assert!(is_unavailable(&put(&tier, LARGE_BYTES).await.1));
        assert!(rig.server.uploads() > 0);
        rig.server.break_with(Fault::None);
        tier.delete(&name).await.unwrap();
        assert_eq!(rig.server.contents(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn completion_whose_answer_was_lost_counts() {
    let rig = Rig::start().await;
    let tier = rig.tier();
    rig.server.break_with(Fault::CompletesUnheard);
    let name = stored(&tier, LARGE_BYTES).await;
    assert_eq!(rig.server.object(name.as_str()).unwrap().bytes, data(LARGE_BYTES));
}

#[tokio::test]
async fn completion_that_fails_in_a_good_answer_is_unavailable_and_leaves_nothing() {
    let rig = Rig::start().await;
    let tier = rig.tier();
    rig.server.break_with(Fault::FailsLate);
    let (name, result) = put(&tier, LARGE_BYTES).await;
    assert!(is_unavailable(&result), "{result:?}");
    assert_eq!(rig.server.contents(), Vec::<String>::new(), "the upload was aborted");
    rig.server.break_with(Fault::None);
    tier.put(&name, &piece(LARGE_BYTES), body(LARGE_BYTES)).await.unwrap();
    assert_eq!(get(&tier, &name, LARGE_BYTES).await.unwrap(), data(LARGE_BYTES));
}

#[tokio::test]
async fn objects_say_what_they_are_and_how_they_are_kept() {
    let rig = Rig::start().await;
    let tier = OssTier::new(OssConfig {
        encryption: Encryption::Aes256,
        remote_storage_class: Some("STANDARD_IA".into()),
        ..rig.config()
    })
    .unwrap();
    for size in [SMALL_BYTES, LARGE_BYTES] {
        let name = stored(&tier, size).await;
        assert!(name.as_str().starts_with("clusters/one/c0/"), "{name}");
        let object = rig.server.object(name.as_str()).unwrap();
        assert_eq!(object.metadata["holdfast-content"], piece(size).content.to_string());
        assert_eq!(object.metadata["holdfast-index"], "3");
        assert_eq!(object.encryption.as_deref(), Some("AES256"));
        assert_eq!(object.storage_class.as_deref(), Some("STANDARD_IA"));
    }
}

#[tokio::test]
async fn small_piece_is_one_request_and_its_deletion_another() {
    let rig = Rig::start().await;
    let tier = rig.tier();
    let name = stored(&tier, SMALL_BYTES).await;
    assert_eq!(rig.server.requests(), 1);
    tier.delete(&name).await.unwrap();
    assert_eq!(rig.server.requests(), 2);
}

#[tokio::test]
async fn check_tells_of_versioning() {
    let rig = Rig::start().await;
    let health = rig.tier().check().await.unwrap();
    assert!(health.notes.iter().any(|note| note.contains("versioning")), "{health:?}");
}

#[tokio::test]
async fn piece_stays_where_it_is_when_the_prefix_changes() {
    let rig = Rig::start().await;
    let name = stored(&rig.tier(), SMALL_BYTES).await;
    let tier = OssTier::new(OssConfig { prefix: String::new(), ..rig.config() }).unwrap();
    assert_eq!(get(&tier, &name, SMALL_BYTES).await.unwrap(), data(SMALL_BYTES));
}
