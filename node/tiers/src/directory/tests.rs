use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use holdfast_actors::ports::tiers::conformance::Harness;
use holdfast_protocol::ContentId;
use tempfile::TempDir;

use super::*;

struct Folder(TempDir);

#[async_trait]
impl Harness for Folder {
    async fn tier(&self) -> Arc<dyn ColdTier> {
        Arc::new(DirectoryTier::create(DirectoryConfig::new(self.0.path())).await.unwrap())
    }

    async fn contents(&self) -> Option<Vec<String>> {
        Some(files_below(self.0.path()))
    }
}

fn files_below(path: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else if !path.ends_with(".holdfast-tier") {
            files.push(path.display().to_string());
        }
    }
    files
}

holdfast_actors::cold_tier_conformance!(Folder(tempfile::tempdir().unwrap()));

fn piece() -> PieceSpec {
    PieceSpec { content: ContentId([7; 12]), index: 0, attempt: 1, size_bytes: 5 }
}

fn body() -> ColdBody {
    stream::iter([Ok(Bytes::from_static(b"hello"))]).boxed()
}

async fn created(path: &Path) -> DirectoryTier {
    DirectoryTier::create(DirectoryConfig::new(path)).await.unwrap()
}

fn denied<T>(result: TierResult<T>) -> String {
    match result {
        Err(TierError::Denied(text)) => text,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was let in"),
    }
}

#[tokio::test]
async fn directory_that_is_no_tier_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = DirectoryConfig::new(dir.path());
    assert!(denied(DirectoryTier::open(config.clone()).await).contains("not marked"));
    fs::write(dir.path().join("photo.jpg"), "x").unwrap();
    assert!(denied(DirectoryTier::create(config.clone()).await).contains("photo.jpg"));
    fs::remove_file(dir.path().join("photo.jpg")).unwrap();
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    DirectoryTier::create(config.clone()).await.unwrap();
    DirectoryTier::open(config.clone()).await.unwrap();
    fs::write(dir.path().join(".holdfast-tier"), "Holdfast cold tier, format 9\n00").unwrap();
    assert!(denied(DirectoryTier::open(config).await).contains("cannot read"));
    let absent = DirectoryConfig::new(dir.path().join("absent"));
    assert!(denied(DirectoryTier::create(absent).await).contains("does not exist"));
    let relative = DirectoryTier::create(DirectoryConfig::new("relative")).await.err();
    assert!(matches!(relative, Some(TierError::Invalid(_))));
}

#[tokio::test]
async fn file_system_that_went_away_is_not_taken_for_an_empty_tier() {
    let dir = tempfile::tempdir().unwrap();
    let (root, aside) = (dir.path().join("tier"), dir.path().join("aside"));
    fs::create_dir(&root).unwrap();
    let tier = created(&root).await;
    let name = tier.reserve(&piece()).await.unwrap();
    tier.put(&name, &piece(), body()).await.unwrap();
    fs::rename(&root, &aside).unwrap();
    for what in ["does not exist", "not the tier's directory", "another tier"] {
        assert!(denied(tier.get(&name, 0..5).await).contains(what));
        assert!(denied(tier.size_bytes(&name).await).contains(what));
        assert!(denied(tier.put(&name, &piece(), body()).await).contains(what));
        assert!(denied(tier.delete(&name).await).contains(what), "nothing says that the piece is gone");
        assert!(denied(tier.check().await).contains(what));
        if what == "does not exist" {
            fs::create_dir(&root).unwrap();
        } else {
            created(&root).await;
        }
    }
    fs::remove_dir_all(&root).unwrap();
    fs::rename(&aside, &root).unwrap();
    assert_eq!(tier.size_bytes(&name).await.unwrap(), 5);
    assert!(tier.check().await.unwrap().free_bytes.is_some());
}

#[tokio::test]
async fn links_are_not_followed() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tier = created(dir.path()).await;
    let name = tier.reserve(&piece()).await.unwrap();
    let path = dir.path().join(name.as_str());
    symlink(outside.path(), dir.path().join("07")).unwrap();
    denied(tier.put(&name, &piece(), body()).await);
    assert_eq!(files_below(outside.path()), Vec::<String>::new());
    fs::remove_file(dir.path().join("07")).unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(outside.path().join("secret"), "hello").unwrap();
    symlink(outside.path().join("secret"), &path).unwrap();
    denied(tier.get(&name, 0..5).await);
    denied(tier.size_bytes(&name).await);
    tier.put(&name, &piece(), body()).await.unwrap();
    assert!(fs::symlink_metadata(&path).unwrap().is_file(), "the link was replaced");
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"hello");
    let escape = PieceName::new("../../secret").unwrap();
    assert!(matches!(tier.get(&escape, 0..1).await.err(), Some(TierError::Invalid(_))));
    assert!(matches!(tier.delete(&escape).await, Err(TierError::Invalid(_))));
}

#[tokio::test]
async fn temporary_files_of_a_crash_go_with_the_next_put_or_delete() {
    let dir = tempfile::tempdir().unwrap();
    let tier = created(dir.path()).await;
    let name = tier.reserve(&piece()).await.unwrap();
    let path = dir.path().join(name.as_str());
    let file = path.file_name().unwrap().to_str().unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let leave = || {
        fs::write(path.with_file_name(format!(".{file}.00000000000000aa")), "hel").unwrap();
        fs::write(path.with_file_name(format!(".{file}1.00000000000000aa")), "of another attempt").unwrap();
    };
    leave();
    tier.put(&name, &piece(), body()).await.unwrap();
    assert_eq!(files_below(dir.path()).len(), 2);
    leave();
    tier.delete(&name).await.unwrap();
    assert_eq!(files_below(dir.path()).len(), 1);
}

#[tokio::test]
async fn file_that_became_shorter_is_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let tier = created(dir.path()).await;
    let name = tier.reserve(&piece()).await.unwrap();
    tier.put(&name, &piece(), body()).await.unwrap();
    let mut reading = tier.get(&name, 0..5).await.unwrap();
    fs::OpenOptions::new().write(true).open(dir.path().join(name.as_str())).unwrap().set_len(3).unwrap();
    let read = reading.next().await.unwrap();
    assert!(matches!(read, Err(TierError::Corrupt { .. })), "{read:?}");
    assert!(reading.next().await.is_none());
}

#[tokio::test]
async fn missing_rights_are_denied_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let tier = created(dir.path()).await;
    let name = tier.reserve(&piece()).await.unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    // Nothing is forbidden to root.
    if fs::write(dir.path().join("probe"), "").is_err() {
        assert!(denied(tier.put(&name, &piece(), body()).await).contains("rights"));
        denied(tier.check().await);
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn errors_of_the_system_say_who_has_to_act() {
    use rustix::io::Errno;
    let kind = |errno: Errno| root::error_of("write", Path::new("/t"), &errno.into());
    assert!(matches!(kind(Errno::NOSPC), TierError::Full(_)));
    assert!(matches!(kind(Errno::DQUOT), TierError::Full(_)));
    assert!(matches!(kind(Errno::ACCESS), TierError::Denied(_)));
    assert!(matches!(kind(Errno::ROFS), TierError::Denied(_)));
    assert!(matches!(kind(Errno::IO), TierError::Unavailable(_)));
    assert!(matches!(kind(Errno::STALE), TierError::Unavailable(_)));
}

#[tokio::test]
async fn directory_that_does_not_answer_keeps_no_more_than_its_share_of_the_threads() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = |dir: &TempDir, patience| DirectoryConfig { patience, ..DirectoryConfig::new(dir.path()) };
    let (hasty, patient) = (Duration::from_millis(200), Duration::from_secs(60));
    let (release, hang) = std::sync::mpsc::channel::<()>();
    let hang = Arc::new(Mutex::new(hang));
    let steps = (0..STEPS_MAX).map(|_| {
        let (config, hang) = (config(&dir, hasty), hang.clone());
        async move {
            let step = move || {
                hang.lock().recv().ok();
                Ok(())
            };
            blocking(&config, None, step).await
        }
    });
    for ended in futures::future::join_all(steps).await {
        assert!(matches!(ended, Err(TierError::Unavailable(_))), "{ended:?}");
    }
    let one_more = blocking(&config(&dir, hasty), None, || Ok(())).await;
    assert!(matches!(&one_more, Err(TierError::Unavailable(why)) if why.contains("already")), "{one_more:?}");
    blocking(&config(&other, patient), None, || Ok(())).await.unwrap();
    // It answers again.
    drop(release);
    blocking(&config(&dir, patient), None, || Ok(())).await.unwrap();
}
