//! Entry points for fuzzing: whatever the bytes are, decoding ends with a message or an error, and a message that was
//! decoded encodes again to one that is equal. The fuzz targets and the mutation tests call the same functions.

use std::fmt::Debug;

use super::block::BlockHead;
use super::enrol::{EnrolAnswer, EnrolRequest};
use super::{Answer, Message, Request, decode, encode};

fn round_trip<M: Message + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(message) = decode::<M>(bytes) {
        // Escapes can make the text longer than what was decoded, beyond the limit.
        if let Ok(frame) = encode(&message) {
            assert_eq!(decode::<M>(&frame), Ok(message), "a message does not survive its own encoding");
        }
    }
}

/// Request frames.
pub fn request(bytes: &[u8]) {
    round_trip::<Request>(bytes);
}

/// Answer frames.
pub fn answer(bytes: &[u8]) {
    round_trip::<Answer>(bytes);
}

/// Frames of an enrolment.
pub fn enrol(bytes: &[u8]) {
    round_trip::<EnrolRequest>(bytes);
    round_trip::<EnrolAnswer>(bytes);
}

/// Heads of blocks.
pub fn block(bytes: &[u8]) {
    if let Some(bytes) = bytes.first_chunk()
        && let Ok(head) = BlockHead::decode(*bytes)
    {
        assert_eq!(head.encode().as_ref(), Ok(bytes));
    }
}
