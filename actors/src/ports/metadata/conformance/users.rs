//! Users and access keys.

use super::{Store, T0, bucket, object};
use crate::ports::metadata::{AccessKey, MetadataError, User};

fn user(name: &str) -> User {
    User { name: name.into(), admin: name == "root", enabled: true, created_ms: T0 }
}

fn key(access_key: &str, user_name: &str) -> AccessKey {
    AccessKey {
        access_key: access_key.into(),
        sealed_secret: vec![0, 1, 255],
        user: user(user_name),
        enabled: true,
        description: "laptop".into(),
        created_ms: T0 + 1,
    }
}

/// Names are unique; a removed user is gone.
pub async fn users_are_made_listed_and_removed(store: Store) {
    for name in ["root", "alice", "bob"] {
        store.create_user(user(name)).await.unwrap();
    }
    assert!(matches!(store.create_user(user("bob")).await, Err(MetadataError::Exists("user"))));
    assert_eq!(*store.user("root").await.unwrap(), user("root"));
    let names = |users: Vec<std::sync::Arc<User>>| users.iter().map(|u| u.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(store.list_users(None, 2).await.unwrap()), ["alice", "bob"]);
    assert_eq!(names(store.list_users(Some("bob"), 2).await.unwrap()), ["root"]);
    store.set_user_enabled("bob", false).await.unwrap();
    assert!(!store.user("bob").await.unwrap().enabled);
    store.delete_user("bob").await.unwrap();
    assert!(matches!(store.user("bob").await, Err(MetadataError::NotFound("user"))));
    assert!(matches!(store.delete_user("bob").await, Err(MetadataError::NotFound("user"))));
    assert!(matches!(store.set_user_enabled("bob", true).await, Err(MetadataError::NotFound("user"))));
}

/// A key shows its user as the user is now.
pub async fn keys_belong_to_users(store: Store) {
    assert!(matches!(store.create_key(key("A", "alice")).await, Err(MetadataError::NotFound("user"))));
    store.create_user(user("alice")).await.unwrap();
    store.create_user(user("bob")).await.unwrap();
    for (access_key, name) in [("A", "alice"), ("B", "bob"), ("C", "alice")] {
        store.create_key(key(access_key, name)).await.unwrap();
    }
    assert!(matches!(store.create_key(key("A", "bob")).await, Err(MetadataError::Exists("access key"))));
    let read = store.key("A").await.unwrap();
    assert_eq!(*read, key("A", "alice"));
    assert!(matches!(store.key("a").await, Err(MetadataError::NotFound("access key"))));

    store.set_user_enabled("alice", false).await.unwrap();
    assert!(!store.key("A").await.unwrap().user.enabled);
    store.set_key_enabled("C", false).await.unwrap();
    assert!(!store.key("C").await.unwrap().enabled);
    let names = |keys: Vec<std::sync::Arc<AccessKey>>| keys.iter().map(|k| k.access_key.clone()).collect::<Vec<_>>();
    assert_eq!(names(store.list_keys(None, None, 10).await.unwrap()), ["A", "B", "C"]);
    assert_eq!(names(store.list_keys(Some("alice"), Some("A"), 10).await.unwrap()), ["C"]);

    store.delete_key("A").await.unwrap();
    assert!(matches!(store.key("A").await, Err(MetadataError::NotFound("access key"))));
    assert!(matches!(store.delete_key("A").await, Err(MetadataError::NotFound("access key"))));
    assert!(matches!(store.set_key_enabled("A", true).await, Err(MetadataError::NotFound("access key"))));
    assert!(store.key("C").await.is_ok());
    store.delete_user("alice").await.unwrap();
    assert!(matches!(store.key("C").await, Err(MetadataError::NotFound("access key"))));
    assert!(store.key("B").await.is_ok());
}

/// Buckets never lose their owner.
pub async fn a_user_with_buckets_stays(store: Store) {
    super::owner(&store, "alice").await;
    store.create_key(key("A", "alice")).await.unwrap();
    let id = bucket(&store, "b").await.id;
    assert!(matches!(store.delete_user("alice").await, Err(MetadataError::BucketNotEmpty)));
    assert!(store.key("A").await.is_ok());
    store.delete_bucket("b", id).await.unwrap();
    store.delete_user("alice").await.unwrap();
}

/// Work that was accepted is done; later work is refused, without a hang.
pub async fn closing_refuses_what_comes_after(store: Store) {
    let id = bucket(&store, "b").await.id;
    store.ping().await.unwrap();
    let accepted = tokio::spawn({
        let store = store.clone();
        async move { store.commit_object(object(id, "k", 1)).await }
    });
    store.close().await;
    match accepted.await.unwrap() {
        Ok(_) | Err(MetadataError::Unavailable(_)) => {}
        Err(error) => panic!("{error:?}"),
    }
    let late = store.commit_object(object(id, "k2", 1)).await;
    assert!(matches!(late, Err(MetadataError::Unavailable(_))), "{late:?}");
    store.close().await;
}
