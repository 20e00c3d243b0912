//! Access keys and users. A key is kept without its user, tied to one reading of the user, so that what changes a user
//! ends all of the user's keys at once.

use std::sync::Arc;

use futures::FutureExt as _;
use holdfast_actors::ports::metadata::{AccessKey, MetadataError, MetadataResult, MetadataStore, User};

use super::RedisCachedStore;
use super::codec::{Credential, Entry as _, Profile};
use super::coherence::{Core, Name};
use crate::metadata::caching::Flights;

/// Users, read through the cache.
pub(super) struct Profiles<S: ?Sized> {
    pub(super) inner: Arc<S>,
    pub(super) core: Arc<Core>,
    pub(super) flights: Arc<Flights<Profile>>,
}

impl<S: MetadataStore + ?Sized> Profiles<S> {
    pub(super) async fn get(&self, name: &str) -> MetadataResult<Arc<Profile>> {
        let (inner, owned) = (Arc::clone(&self.inner), name.to_owned());
        let load = move || {
            async move {
                let user = inner.user(&owned).await?;
                Ok(Arc::new(Profile { user: User::clone(&user), reading: rand::random() }))
            }
            .boxed()
        };
        self.core.read(&self.flights, &Name::of::<Profile>(name), load).await
    }
}

impl<S: MetadataStore + ?Sized> RedisCachedStore<S> {
    /// A key that is found through the user that it belonged to when it was last read.
    pub(super) async fn key_of(&self, access_key: &str, owner: &str) -> MetadataResult<Arc<AccessKey>> {
        let name = Name::of::<Credential>(access_key);
        let (credential, profile) = tokio::join!(self.core.peek::<Credential>(&name), self.profiles.get(owner));
        let profile = match profile {
            Ok(profile) => profile,
            // Without its user a key is nothing; which error that is, the database says.
            Err(_) => return self.key_from_database(access_key).await,
        };
        if let Some(Ok(credential)) = credential {
            if let Some(key) = credential.with(&profile) {
                metrics::counter!("holdfast_metadata_cache_hits_total", "cache" => Credential::CACHE).increment(1);
                return Ok(Arc::new(key));
            }
            // It belongs to another reading of the user.
            self.core.discard(&name).await;
        }
        let (inner, owned, with) = (self.inner.clone(), access_key.to_owned(), profile.clone());
        let load = move || {
            async move {
                let key = inner.key(&owned).await?;
                Ok(Arc::new(Credential::of(&key, &with)))
            }
            .boxed()
        };
        let credential = self.core.read(&self.keys, &name, load).await?;
        match credential.with(&profile) {
            Some(key) => Ok(Arc::new(key)),
            None => self.key_from_database(access_key).await,
        }
    }

    async fn key_from_database(&self, access_key: &str) -> MetadataResult<Arc<AccessKey>> {
        let key = self.inner.key(access_key).await?;
        self.owners.insert(access_key.to_owned(), key.user.name.as_str().into());
        Ok(key)
    }

    /// The user of a key that was not asked for here before.
    pub(super) async fn owner_of(&self, access_key: &str) -> MetadataResult<Arc<str>> {
        let (inner, profiles, owned) = (self.inner.clone(), self.profiles.clone(), access_key.to_owned());
        let load = move || {
            async move {
                let owner = inner.key(&owned).await?.user.name.clone();
                // The key is read after the reading of the user that it is tied to.
                let profile = profiles.get(&owner).await.map_err(|error| match error {
                    MetadataError::NotFound(_) => Credential::absent(),
                    error => error,
                })?;
                let key = inner.key(&owned).await?;
                Ok(Arc::new(Credential::of(&key, &profile)))
            }
            .boxed()
        };
        let credential = self.core.read(&self.keys, &Name::of::<Credential>(access_key), load).await?;
        let owner: Arc<str> = credential.user.as_str().into();
        self.owners.insert(access_key.to_owned(), owner.clone());
        Ok(owner)
    }
}
