//! What a store may hold after requests whose answers were lost.
//!
//! A request that was acknowledged leaves exactly one possibility. One that was cut off leaves two: it happened as a
//! whole, or not at all. What is read afterwards must be one of them, byte for byte, and settles which.

use std::collections::BTreeMap;
use std::io;

use crate::client::{Client, Response};
use crate::content;

/// The content of a version: how it is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Seed of its bytes.
    pub seed: u64,
    /// Its length.
    pub len: usize,
}

impl Version {
    /// Its bytes.
    pub fn bytes(self) -> Vec<u8> {
        content::bytes(self.seed, self.len)
    }
}

/// Keys and what each may hold; `None` is "no such key".
#[derive(Clone, Debug, Default)]
pub struct Model {
    keys: BTreeMap<String, Vec<Option<Version>>>,
}

impl Model {
    /// The request that puts `version` (or deletes, with none) was acknowledged.
    pub fn acknowledged(&mut self, key: &str, version: Option<Version>) {
        self.keys.insert(key.to_owned(), vec![version]);
    }

    /// The answer of the request was lost.
    pub fn unknown(&mut self, key: &str, version: Option<Version>) {
        let may = self.keys.entry(key.to_owned()).or_insert_with(|| vec![None]);
        if !may.contains(&version) {
            may.push(version);
        }
    }

    /// What became of the request that puts `version` (or deletes, with none): acknowledged, or nobody knows. Returns
    /// whether it was acknowledged.
    pub fn told(&mut self, key: &str, version: Option<Version>, response: &io::Result<Response>) -> bool {
        // An error inside a 200 is how a multipart completion or a copy fails late.
        let is_acknowledged =
            response.as_ref().is_ok_and(|response| response.status / 100 == 2 && response.element("Code").is_none());
        if is_acknowledged {
            self.acknowledged(key, version);
        } else {
            self.unknown(key, version);
        }
        is_acknowledged
    }

    /// All keys that were ever written to.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// Checks what was read (`None` for "no such key") and settles it.
    ///
    /// # Errors
    /// Says what is wrong when it is none of the possibilities.
    pub fn observe(&mut self, key: &str, got: Option<&[u8]>) -> Result<(), String> {
        let may = self.keys.entry(key.to_owned()).or_insert_with(|| vec![None]);
        let found = may.iter().copied().find(|version| match (version, got) {
            (None, None) => true,
            (Some(version), Some(got)) => version.len == got.len() && version.bytes() == got,
            _ => false,
        });
        match found {
            Some(version) => {
                *may = vec![version];
                Ok(())
            }
            None => {
                let got = got.map_or_else(|| "nothing".to_owned(), |bytes| format!("{} bytes", bytes.len()));
                Err(format!("`{key}` holds {got}, and may hold {may:?}"))
            }
        }
    }

    /// Reads every key that was ever written to, and settles it.
    ///
    /// # Panics
    /// When what is read is none of the possibilities, or anything but an object or "no such key".
    pub fn observe_all(&mut self, client: &Client, bucket: &str) {
        let keys: Vec<String> = self.keys().map(str::to_owned).collect();
        for key in keys {
            let response = client.get_until_served(bucket, &key);
            let got = match response.status {
                200 => Some(response.body.as_slice()),
                404 => None,
                other => panic!("GET {key} after all: {other} {}", response.text()),
            };
            self.observe(&key, got).unwrap();
        }
    }

    /// What `key` holds, when that is certain and not "no such key".
    pub fn current(&self, key: &str) -> Option<Version> {
        match self.keys.get(key).map(Vec::as_slice) {
            Some([version]) => *version,
            _ => None,
        }
    }

    /// The keys that exist, once everything was observed.
    pub fn existing(&self) -> Vec<String> {
        let exists = |may: &Vec<Option<Version>>| may.len() == 1 && may[0].is_some();
        self.keys.iter().filter(|(_, may)| exists(may)).map(|(key, _)| key.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Version = Version { seed: 1, len: 10 };
    const NEW: Version = Version { seed: 2, len: 20 };

    #[test]
    fn an_acknowledged_write_has_to_be_there() {
        let mut model = Model::default();
        model.acknowledged("k", Some(OLD));
        assert!(model.observe("k", None).is_err());
        assert!(model.observe("k", Some(&NEW.bytes())).is_err());
        assert!(model.observe("k", Some(&OLD.bytes()[..9])).is_err());
        assert!(model.observe("k", Some(&OLD.bytes())).is_ok());
    }

    #[test]
    fn a_lost_answer_leaves_old_or_new_and_reading_settles_it() {
        let mut model = Model::default();
        model.acknowledged("k", Some(OLD));
        model.unknown("k", Some(NEW));
        let mut other = model.clone();
        assert!(model.observe("k", Some(&NEW.bytes())).is_ok());
        assert!(model.observe("k", Some(&OLD.bytes())).is_err());
        assert!(other.observe("k", Some(&OLD.bytes())).is_ok());
        assert_eq!(other.existing(), ["k"]);
        assert!(other.observe("k", None).is_err());
    }
}
