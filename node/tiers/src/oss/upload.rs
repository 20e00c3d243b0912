//! Putting objects: in one request, or in parts.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, ServerSideEncryption, StorageClass};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use holdfast_actors::ports::tiers::{PieceName, PieceSpec, TierError, TierResult};
use md5::{Digest as _, Md5};
use tokio::task::JoinSet;

use super::config::{Encryption, OssConfig, PART_BYTES_MAX, PARTS_MAX};
use super::errors;
use super::store::{Store, corrupt};
use crate::in_flight::PutBody;

/// Says on the object which content it is a piece of.
const CONTENT_META: &str = "holdfast-content";
/// Says on the object which piece of the content it is.
const INDEX_META: &str = "holdfast-index";

/// The bytes of one request, and their sum.
struct Part {
    bytes: Bytes,
    md5: [u8; 16],
}

impl Part {
    /// The next bytes of a body, `bytes_max` of them while there are as many; `None` after the last.
    async fn gather(body: &mut PutBody, bytes_max: u64) -> TierResult<Option<Self>> {
        let Some(first) = body.next(bytes_max as usize).await? else { return Ok(None) };
        let mut sum = Md5::new();
        sum.update(&first);
        let mut bytes = BytesMut::from(first);
        while let left @ 1.. = bytes_max - bytes.len() as u64 {
            let Some(more) = body.next(left as usize).await? else { break };
            sum.update(&more);
            // All of it at once, the first time.
            bytes.reserve(left as usize);
            bytes.extend_from_slice(&more);
        }
        Ok(Some(Self { bytes: bytes.freeze(), md5: sum.finalize().into() }))
    }

    fn content_md5(&self) -> String {
        BASE64.encode(self.md5)
    }

    /// Whether the store says of the bytes what we say; `None` where it says nothing about that.
    fn agrees(
        &self,
        config: &OssConfig,
        etag: Option<&str>,
        encryption: Option<&ServerSideEncryption>,
    ) -> Option<bool> {
        let kms = matches!(config.encryption, Encryption::Kms { .. })
            || matches!(encryption, Some(ServerSideEncryption::AwsKms | ServerSideEncryption::AwsKmsDsse));
        let mut told = [0; 16];
        if !config.etag_is_md5 || kms || hex::decode_to_slice(etag?.trim_matches('"'), &mut told).is_err() {
            return None;
        }
        Some(told == self.md5)
    }
}

fn etag_differs(name: &PieceName, etag: Option<&str>) -> TierError {
    corrupt(name, format!("the store's ETag {} is not the MD5 of what was sent", etag.unwrap_or_default()))
}

fn encryption_of(config: &OssConfig) -> (Option<ServerSideEncryption>, Option<String>) {
    match &config.encryption {
        Encryption::BucketDefault => (None, None),
        Encryption::Aes256 => (Some(ServerSideEncryption::Aes256), None),
        Encryption::Kms { key_id } => (Some(ServerSideEncryption::AwsKms), key_id.clone()),
    }
}

fn storage_class_of(config: &OssConfig) -> Option<StorageClass> {
    config.remote_storage_class.as_deref().map(StorageClass::from)
}

impl Store {
    /// Puts a small piece.
    pub(super) async fn put_at_once(&self, name: &PieceName, piece: &PieceSpec, body: &mut PutBody) -> TierResult<()> {
        // A name that was reserved for less must not be a way around the limit of memory.
        if piece.size_bytes > PART_BYTES_MAX {
            return Err(TierError::Invalid(format!("{name} was reserved for a smaller piece")));
        }
        let short = || TierError::Invalid("the body is empty".into());
        let part = Part::gather(body, piece.size_bytes).await?.ok_or_else(short)?;
        // Only the end of the body says that it has no more than was announced.
        if body.next(1).await?.is_some() {
            return Err(TierError::Invalid("the body has more than was announced".into()));
        }
        let (encryption, key_id) = encryption_of(&self.config);
        let request = self.client.put_object().bucket(&self.config.bucket).key(name.as_str());
        let request = request
            .content_md5(part.content_md5())
            .metadata(CONTENT_META, piece.content.to_string())
            .metadata(INDEX_META, piece.index.to_string())
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(key_id)
            .set_storage_class(storage_class_of(&self.config))
            .body(ByteStream::from(part.bytes.clone()));
        let answer = request.send().await.map_err(|error| errors::of_piece(error, "put", name))?;
        match part.agrees(&self.config, answer.e_tag(), answer.server_side_encryption()) {
            Some(true) => Ok(()),
            Some(false) => Err(etag_differs(name, answer.e_tag())),
            None => self.has_size(name, piece.size_bytes).await,
        }
    }

    /// Puts a large piece.
    pub(super) async fn put_in_parts(&self, name: &PieceName, piece: &PieceSpec, body: &mut PutBody) -> TierResult<()> {
        self.abort_uploads(name).await?;
        let (encryption, key_id) = encryption_of(&self.config);
        let request = self.client.create_multipart_upload().bucket(&self.config.bucket).key(name.as_str());
        let request = request
            .metadata(CONTENT_META, piece.content.to_string())
            .metadata(INDEX_META, piece.index.to_string())
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(key_id)
            .set_storage_class(storage_class_of(&self.config));
        let begun = request.send().await.map_err(|error| errors::of_piece(error, "begin", name))?;
        let no_id = || TierError::Unavailable("the store began an upload without an id".into());
        let upload_id = begun.upload_id.ok_or_else(no_id)?;

        let result = match self.put_parts(name, &upload_id, piece, body).await {
            Ok(parts) => self.complete(name, &upload_id, piece, parts).await,
            Err(error) => Err(error),
        };
        if result.is_err()
            && let Err(error) = self.abort(name, &upload_id).await
        {
            // Whoever deletes the piece, or puts it again, aborts it.
            tracing::warn!(piece = %name, %error, "cannot abort an upload");
        }
        result
    }

    async fn put_parts(
        &self,
        name: &PieceName,
        upload_id: &str,
        piece: &PieceSpec,
        body: &mut PutBody,
    ) -> TierResult<Vec<CompletedPart>> {
        let part_bytes = self.config.part_bytes.max(piece.size_bytes.div_ceil(PARTS_MAX));
        let mut parts = Vec::new();
        let mut sending = JoinSet::new();
        let result = async {
            let mut number = 0;
            while let Some(part) = Part::gather(body, part_bytes).await? {
                while sending.len() >= self.config.parts_in_flight {
                    parts.extend(next_of(&mut sending).await?);
                }
                number += 1;
                sending.spawn(self.put_part(name, upload_id, number, part));
            }
            while let Some(part) = next_of(&mut sending).await? {
                parts.push(part);
            }
            Ok(())
        }
        .await;
        // Parts that are still on their way after an error must not arrive after the upload was aborted.
        sending.shutdown().await;
        parts.sort_by_key(CompletedPart::part_number);
        result.map(|()| parts)
    }

    fn put_part(
        &self,
        name: &PieceName,
        upload_id: &str,
        number: i32,
        part: Part,
    ) -> impl Future<Output = TierResult<CompletedPart>> + use<> {
        let request = self.client.upload_part().bucket(&self.config.bucket).key(name.as_str());
        let request = request.upload_id(upload_id).part_number(number).content_md5(part.content_md5());
        let (name, config) = (name.clone(), self.config.clone());
        async move {
            let sent = request.body(ByteStream::from(part.bytes.clone())).send().await;
            let answer = sent.map_err(|error| errors::of_piece(error, "put a part of", &name))?;
            if part.agrees(&config, answer.e_tag(), answer.server_side_encryption()) == Some(false) {
                return Err(etag_differs(&name, answer.e_tag()));
            }
            Ok(CompletedPart::builder().part_number(number).set_e_tag(answer.e_tag).build())
        }
    }

    async fn complete(
        &self,
        name: &PieceName,
        upload_id: &str,
        piece: &PieceSpec,
        parts: Vec<CompletedPart>,
    ) -> TierResult<()> {
        let whole = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let request = self.client.complete_multipart_upload().bucket(&self.config.bucket).key(name.as_str());
        let request = request.upload_id(upload_id).multipart_upload(whole);
        match request.customize().config_override(self.completion_timeouts()).send().await {
            Ok(_) => {}
            // The first of several tries may have been heard without its answer coming back: the object is there then.
            Err(error) if errors::code_of(&error) == Some("NoSuchUpload") => {}
            Err(error) => return Err(errors::of_piece(error, "complete", name)),
        }
        self.has_size(name, piece.size_bytes).await
    }

    /// The store holds what it was given, by its own account.
    async fn has_size(&self, name: &PieceName, size_bytes: u64) -> TierResult<()> {
        let told = match self.size_bytes(name).await {
            Err(TierError::NotFound(_)) => {
                return Err(TierError::Unavailable(format!("{name} was aborted or deleted while it was put")));
            }
            told => told?,
        };
        if told == size_bytes {
            return Ok(());
        }
        Err(corrupt(name, format!("the store has {told} bytes of {size_bytes}")))
    }
}

/// The next part that has arrived, if there is one on its way.
async fn next_of(sending: &mut JoinSet<TierResult<CompletedPart>>) -> TierResult<Option<CompletedPart>> {
    match sending.join_next().await {
        Some(Ok(result)) => result.map(Some),
        Some(Err(ended)) => Err(TierError::Unavailable(format!("a part ended early: {ended}"))),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(bytes: &'static [u8]) -> Part {
        Part { bytes: Bytes::from_static(bytes), md5: Md5::digest(bytes).into() }
    }

    #[test]
    fn etag_counts_where_it_is_the_md5() {
        let mut config = OssConfig::new("https://host", "region", "bucket");
        let hello = "\"5d41402abc4b2a76b9719d911017c592\"";
        assert_eq!(part(b"hello").agrees(&config, Some(hello), None), Some(true));
        assert_eq!(part(b"hello").agrees(&config, Some(&hello.to_uppercase()), None), Some(true));
        assert_eq!(part(b"jello").agrees(&config, Some(hello), None), Some(false));
        assert_eq!(part(b"jello").agrees(&config, Some("\"5d41402abc4b2a76b9719d911017c592-2\""), None), None);
        assert_eq!(part(b"jello").agrees(&config, None, None), None);
        assert_eq!(part(b"jello").agrees(&config, Some(hello), Some(&ServerSideEncryption::AwsKms)), None);
        config.encryption = Encryption::Kms { key_id: None };
        assert_eq!(part(b"jello").agrees(&config, Some(hello), None), None);
        config.encryption = Encryption::Aes256;
        assert_eq!(part(b"jello").agrees(&config, Some(hello), None), Some(false));
        config.etag_is_md5 = false;
        assert_eq!(part(b"jello").agrees(&config, Some(hello), None), None);
    }
}
