//! Bodies in the framing of `aws-chunked`, on their way to s3s.
//!
//! s3s gathers a chunk before it gives out a byte of it, however much its head announces: memory would grow with what a
//! client calls a chunk, and some SDKs send an object as one. So s3s gets no large ones. A chunk without a signature is
//! cut into those pieces in which the network brings it. One with a signature cannot be cut, and is refused beyond
//! [`SIGNED_CHUNK_BYTES_MAX`]; its pieces are put together, since a client may send it byte by byte, and each piece that
//! s3s keeps takes some ten times as much. All else passes as it is: whether it is right s3s says.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::Request;
use http_body::Frame;
use s3s::{Body, StdError};

/// The largest chunk with a signature, in bytes: what a write counts for by default, and many times what SDKs sign at
/// once.
pub(super) const SIGNED_CHUNK_BYTES_MAX: u64 = 4 << 20;

/// Pieces of a chunk with a signature that are smaller are put together.
const PIECE_BYTES_MIN: usize = 4 << 10;

/// The longest head of a chunk. One with a signature has a hundred bytes.
const HEAD_BYTES_MAX: usize = 1024;

/// s3s reads so many digits of a size and passes over what follows them, so a head that goes on to it as it is has no
/// more: the two would not mean the same chunk.
const DIGITS_OF_S3S: usize = 8;

/// Why a body is not read further. [`super::errors::body_error`] tells these by name, as those of s3s.
#[derive(Debug, thiserror::Error)]
pub(super) enum FramingError {
    /// The head of a chunk does not say how large it is, or its end is not where it should be.
    #[error("FormatError: the framing of a chunk is malformed")]
    Malformed,
    /// A chunk is signed that is too large for that.
    #[error("ChunkTooLarge: a signed chunk of {0} bytes")]
    TooLarge(u64),
}

/// Where in the framing a body stands.
enum Place {
    /// In the line that begins a chunk, of which this came.
    Head(Vec<u8>),
    /// In a chunk that passes as it is, with so many bytes to come, its line end included.
    Whole(u64),
    /// In a chunk that is cut, with so many bytes to come.
    Cut(u64),
    /// In the line end of one that was cut.
    LineEnd(&'static [u8]),
    /// Behind the last chunk.
    Trailers,
}

/// A body without large chunks.
struct Bounded {
    body: Body,
    framing: Framing,
    failed: bool,
}

/// What is read of a framing, and what goes on.
struct Framing {
    place: Place,
    out: VecDeque<Bytes>,
    /// Small pieces that go on when there are more of them, or the chunk ends.
    small: BytesMut,
}

/// Sees to it that the body of a request has no large chunks.
pub(super) fn bound(request: &mut Request<Body>) {
    let mut hashes = request.headers().get_all("x-amz-content-sha256").iter();
    if hashes.any(|hash| hash.as_bytes().starts_with(b"STREAMING-")) {
        let body = std::mem::take(request.body_mut());
        *request.body_mut() = Body::http_body_unsync(Bounded { body, framing: Framing::new(), failed: false });
    }
}

impl Framing {
    fn new() -> Self {
        Self { place: Place::Head(Vec::new()), out: VecDeque::new(), small: BytesMut::new() }
    }

    /// Takes the next bytes.
    fn take(&mut self, mut data: Bytes) -> Result<(), FramingError> {
        while !data.is_empty() {
            match &mut self.place {
                Place::Head(head) => {
                    let end = data.iter().position(|byte| *byte == b'\n');
                    let piece = data.split_to(end.map_or(data.len(), |end| end + 1));
                    if head.len() + piece.len() > HEAD_BYTES_MAX {
                        return Err(FramingError::Malformed);
                    }
                    head.extend_from_slice(&piece);
                    if end.is_some() {
                        let head = std::mem::take(head);
                        self.place = self.begin(head)?;
                    }
                }
                Place::Whole(left) => {
                    let piece = split_up_to(&mut data, *left);
                    *left -= piece.len() as u64;
                    let is_last = *left == 0;
                    if is_last {
                        self.place = Place::Head(Vec::new());
                    }
                    self.pass(piece, is_last);
                }
                Place::Cut(left) => {
                    let piece = split_up_to(&mut data, *left);
                    *left -= piece.len() as u64;
                    if *left == 0 {
                        self.place = Place::LineEnd(b"\r\n");
                    }
                    let head = format!("{:x}\r\n", piece.len());
                    self.out.extend([head.into(), piece, Bytes::from_static(b"\r\n")]);
                }
                Place::LineEnd(end) => {
                    let Some((expected, rest)) = end.split_first() else {
                        self.place = Place::Head(Vec::new());
                        continue;
                    };
                    if data.get_u8() != *expected {
                        return Err(FramingError::Malformed);
                    }
                    *end = rest;
                }
                Place::Trailers => self.out.push_back(std::mem::take(&mut data)),
            }
        }
        Ok(())
    }

    /// Gives the next piece of a chunk that passes as it is.
    fn pass(&mut self, piece: Bytes, is_last: bool) {
        let is_small = piece.len() < PIECE_BYTES_MIN;
        if is_small {
            self.small.extend_from_slice(&piece);
        }
        if !self.small.is_empty() && (!is_small || is_last || self.small.len() >= PIECE_BYTES_MIN) {
            self.out.push_back(self.small.split().freeze());
        }
        if !is_small {
            self.out.push_back(piece);
        }
    }

    /// Begins a chunk with this head.
    fn begin(&mut self, head: Vec<u8>) -> Result<Place, FramingError> {
        let line = head.strip_suffix(b"\r\n").ok_or(FramingError::Malformed)?;
        let extension = line.iter().position(|byte| *byte == b';');
        let digits = &line[..extension.unwrap_or(line.len())];
        let size_bytes = size_of(digits).ok_or(FramingError::Malformed)?;
        if size_bytes > 0 && extension.is_none() {
            return Ok(Place::Cut(size_bytes));
        }
        if size_bytes > SIGNED_CHUNK_BYTES_MAX {
            return Err(FramingError::TooLarge(size_bytes));
        }
        if digits.len() > DIGITS_OF_S3S {
            return Err(FramingError::Malformed);
        }
        self.out.push_back(head.into());
        Ok(if size_bytes == 0 { Place::Trailers } else { Place::Whole(size_bytes + 2) })
    }
}

/// The next bytes, at most so many.
fn split_up_to(data: &mut Bytes, count: u64) -> Bytes {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    data.split_to(data.len().min(count))
}

/// A size in hexadecimal digits.
fn size_of(digits: &[u8]) -> Option<u64> {
    // The parser for numbers takes a sign too.
    let all_digits = digits.iter().all(u8::is_ascii_hexdigit);
    std::str::from_utf8(digits).ok().filter(|_| all_digits).and_then(|digits| u64::from_str_radix(digits, 16).ok())
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = self.get_mut();
        loop {
            if this.failed {
                return Poll::Ready(None);
            }
            if let Some(piece) = this.framing.out.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx)) else { return Poll::Ready(None) };
            let taken = match frame {
                Ok(frame) => frame.into_data().map_or(Ok(()), |data| this.framing.take(data).map_err(StdError::from)),
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                this.failed = true;
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::fuzz::{Target, damage};

    use super::*;

    /// What goes on of a body that comes in pieces of a size.
    fn passed(body: &[u8], piece_bytes: usize) -> Result<Vec<u8>, FramingError> {
        let mut framing = Framing::new();
        for piece in body.chunks(piece_bytes) {
            framing.take(Bytes::copy_from_slice(piece))?;
        }
        Ok(framing.out.iter().flatten().copied().collect())
    }

    /// Payload, largest chunk, and all behind the payload. `None`: it is not whole.
    fn unframed(mut body: &[u8]) -> Option<(Vec<u8>, usize, Vec<u8>)> {
        let (mut payload, mut largest) = (Vec::new(), 0);
        loop {
            let end = body.windows(2).position(|pair| pair == b"\r\n")?;
            let line = std::str::from_utf8(&body[..end]).ok()?;
            let digits = line.split(';').next()?;
            let size = usize::from_str_radix(digits, 16).ok()?;
            if size == 0 {
                return Some((payload, largest, body.to_vec()));
            }
            body = &body[end + 2..];
            payload.extend_from_slice(body.get(..size)?);
            body = body.get(size..)?.strip_prefix(b"\r\n")?;
            largest = largest.max(size);
        }
    }

    fn signature() -> String {
        format!(";chunk-signature={}", "a".repeat(64))
    }

    #[test]
    fn a_chunk_without_a_signature_is_cut_into_the_pieces_in_which_it_comes() {
        let payload: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let mut body = format!("{:X}\r\n", payload.len()).into_bytes();
        body.extend(&payload);
        body.extend(b"\r\n5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n");
        for piece_bytes in [1, 7, 4_096, body.len()] {
            let (read, largest, rest) = unframed(&passed(&body, piece_bytes).unwrap()).expect("it is whole");
            assert!(read.strip_suffix(b"hello") == Some(&payload[..]), "{piece_bytes}");
            assert!(largest <= piece_bytes, "{largest} in pieces of {piece_bytes}");
            assert_eq!(rest, b"0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n");
        }
    }

    #[test]
    fn a_signed_chunk_passes_as_it_is_up_to_its_bound() {
        let signed = |size: u64| format!("{size:x}{}\r\n", signature());
        let last = format!("0{}\r\n\r\n", signature());
        let body = format!("{}hello\r\n{last}", signed(5)).into_bytes();
        for piece_bytes in [1, 3, 1_000] {
            assert_eq!(passed(&body, piece_bytes).unwrap(), body);
        }
        assert!(passed(signed(SIGNED_CHUNK_BYTES_MAX).as_bytes(), 1_000).is_ok());
        for size in [SIGNED_CHUNK_BYTES_MAX + 1, 0xffff_ffff, 0x1_0000_0005, u64::MAX] {
            let refused = passed(signed(size).as_bytes(), 1_000);
            assert!(matches!(refused, Err(FramingError::TooLarge(found)) if found == size), "{refused:?}");
        }
    }

    #[test]
    fn a_signed_chunk_that_comes_byte_by_byte_goes_on_in_larger_pieces() {
        let signed = |size: usize| format!("{size:x}{}\r\n{}\r\n", signature(), "x".repeat(size));
        let body = [signed(3 * PIECE_BYTES_MIN), signed(10), signed(PIECE_BYTES_MIN - 2)].concat().into_bytes();
        for (piece_bytes, pieces_max) in [(1, 9), (100, 9), (PIECE_BYTES_MIN + 1, 12)] {
            let mut framing = Framing::new();
            for piece in body.chunks(piece_bytes) {
                framing.take(Bytes::copy_from_slice(piece)).unwrap();
            }
            let passed: Vec<u8> = framing.out.iter().flatten().copied().collect();
            assert!(passed == body, "{piece_bytes}");
            assert!(framing.out.len() <= pieces_max, "{} for {piece_bytes}", framing.out.len());
        }
    }

    #[test]
    fn heads_that_do_not_tell_a_size_are_refused() {
        let long = format!("5;{}\r\n", "x".repeat(HEAD_BYTES_MAX));
        for head in
            ["\r\n", "x\r\n", "5x\r\n", "-5\r\n", "+5\r\n", " 5\r\n", "5\n", "5 \r\n", "10000000000000000\r\n", &long]
        {
            for piece_bytes in [1, 5_000] {
                let refused = passed(head.as_bytes(), piece_bytes);
                assert!(matches!(refused, Err(FramingError::Malformed)), "{head:?}");
            }
        }
        assert!(passed(b"5\r\nhelloxx", 100).is_err(), "a chunk ends where it says");
        assert!(passed(b"000000000\r\n", 100).is_err());
    }

    #[test]
    fn damaged_framings_are_read_alike_however_they_come_and_no_harm() {
        fn body(bytes: &[u8]) {
            let read = [1, 3, usize::MAX].map(|piece_bytes| passed(bytes, piece_bytes).ok());
            let payloads = read.map(|read| read.map(|read| unframed(&read).map(|(payload, _, rest)| (payload, rest))));
            assert!(payloads[0] == payloads[1] && payloads[1] == payloads[2]);
        }
        fn seeds() -> Vec<Vec<u8>> {
            let signed = format!("5{0}\r\nhello\r\n0{0}\r\n\r\n", signature());
            vec![signed.into(), b"5\r\nhello\r\n3\r\nabc\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n".to_vec()]
        }
        damage::run(&[Target { name: "aws_chunked", body, seeds }], 10_000);
    }
}
