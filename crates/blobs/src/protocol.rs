//! What peers say to each other on a stream of `/omx/blob/1`.
//!
//! Who opened the stream asks, the other end answers in the order of the questions; news of a blob that is still being
//! fetched there come in between. Each message has its length before it. Behind some answers stand raw bytes, whose
//! number the message tells, so that a chunk goes from the stream into its buffer without being copied.

use std::io;

use bytes::{BufMut, BytesMut};
use net::{Allowed, Protocol, Roles, StreamSpec};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use types::BlobHash;

use crate::bits::Bits;
use crate::chunks::{self, SIZE_MAX};

pub(crate) const PROTOCOL: Protocol = Protocol::new("/omx/blob/1");

/// A node fetches a few blobs at once, each over a few streams.
pub(crate) const SPEC: StreamSpec = StreamSpec {
    protocol: PROTOCOL,
    allowed: Allowed::Members(Roles::ALL),
    concurrency_per_peer: 16,
    concurrency_total: 96,
};

/// The longest question.
pub(crate) const QUESTION_BYTES_MAX: usize = 64;
/// The longest answer, without the raw bytes behind it: a bit for each chunk of the largest blob.
pub(crate) const ANSWER_BYTES_MAX: usize = (SIZE_MAX as usize / chunks::CHUNK_BYTES) / 8 + 64;
/// Questions that wait for their answers on one stream. More break the rules.
pub(crate) const QUESTIONS_MAX: usize = 32;
/// Chunks told of in one piece of news.
pub(crate) const NEWS_MAX: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Question {
    /// What of this is there? The other questions, and the news, are about the blob that was opened last.
    Open(BlobHash),
    List,
    Chunk(u32),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Nothing of what was opened is there.
    Nothing,
    Whole {
        size: u64,
    },
    /// It is being fetched. A bit for each chunk that is there.
    Part {
        size: u64,
        held: Vec<u8>,
    },
    /// Followed by `hashes` times 32 bytes, and by the last chunk, which proves the size.
    List {
        size: u64,
        hashes: u32,
        last: u32,
    },
    NoList,
    /// Followed by `length` bytes.
    Chunk {
        index: u32,
        length: u32,
    },
    NoChunk {
        index: u32,
    },
    /// Chunks that have come there since.
    News(Vec<u32>),
}

/// What of a blob a peer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Held {
    Whole,
    Part(Bits),
}

/// With its length before it.
pub(crate) fn frame(message: &impl Serialize) -> BytesMut {
    let body = codec::to_bytes(message).expect("a message has a binary form");
    let mut framed = BytesMut::with_capacity(4 + body.len());
    framed.put_u32(u32::try_from(body.len()).expect("messages are far below 4 GiB"));
    framed.put_slice(&body);
    framed
}

/// The next message; `None` at the end of the stream. Not to be dropped half-way.
pub(crate) async fn read<T: for<'de> Deserialize<'de>>(
    stream: &mut (impl AsyncRead + Unpin),
    bytes_max: usize,
) -> io::Result<Option<T>> {
    let mut head = [0; 4];
    // A peer that goes away between two messages has done nothing wrong.
    if stream.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[1..]).await?;
    let length = u32::from_be_bytes(head) as usize;
    if length > bytes_max {
        return Err(broken("a message that is too long"));
    }
    let body = read_bytes(stream, length).await?;
    codec::from_bytes(&body).map(Some).map_err(|_| broken("a message that cannot be read"))
}

/// Grows as the bytes come in: a length reserves nothing.
pub(crate) async fn read_bytes(stream: &mut (impl AsyncRead + Unpin), length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(length as u64).read_to_end(&mut bytes).await?;
    match bytes.len() == length {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// What a peer said breaks the rules, as against a connection that broke.
pub(crate) fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that another release reads, or writes.
    #[test]
    fn bytes_on_the_wire_stay_what_they_are() {
        let hash = BlobHash::from_bytes([7; 32]);
        let mut open = vec![0, 0, 0, 33, 0];
        open.extend([7; 32]);
        let questions: [(Question, &[u8]); 3] = [
            (Question::Open(hash), &open),
            (Question::List, &[0, 0, 0, 1, 1]),
            (Question::Chunk(300), &[0, 0, 0, 4, 2, 251, 44, 1]),
        ];
        for (question, golden) in questions {
            assert_eq!(frame(&question), golden, "{question:?}");
            assert_eq!(codec::from_bytes::<Question>(&golden[4..]).unwrap(), question);
        }
        let answers: [(Answer, &[u8]); 8] = [
            (Answer::Nothing, &[0, 0, 0, 1, 0]),
            (Answer::Whole { size: 1 << 33 }, &[0, 0, 0, 10, 1, 253, 0, 0, 0, 0, 2, 0, 0, 0]),
            (Answer::Part { size: 9, held: vec![1] }, &[0, 0, 0, 4, 2, 9, 1, 1]),
            (Answer::List { size: 9, hashes: 2, last: 3 }, &[0, 0, 0, 4, 3, 9, 2, 3]),
            (Answer::NoList, &[0, 0, 0, 1, 4]),
            (Answer::Chunk { index: 5, length: 6 }, &[0, 0, 0, 3, 5, 5, 6]),
            (Answer::NoChunk { index: 5 }, &[0, 0, 0, 2, 6, 5]),
            (Answer::News(vec![1, 2]), &[0, 0, 0, 4, 7, 2, 1, 2]),
        ];
        for (answer, golden) in answers {
            assert_eq!(frame(&answer), golden, "{answer:?}");
            assert_eq!(codec::from_bytes::<Answer>(&golden[4..]).unwrap(), answer);
        }
    }

    #[tokio::test]
    async fn messages_are_read_within_their_limit_and_to_their_end() {
        let framed = frame(&Question::Chunk(300));
        let read_from = |bytes: Vec<u8>, max| async move { read::<Question>(&mut bytes.as_slice(), max).await };
        assert_eq!(read_from(framed.to_vec(), 4).await.unwrap(), Some(Question::Chunk(300)));
        assert_eq!(read_from(vec![], 4).await.unwrap(), None);
        assert_eq!(read_from(framed.to_vec(), 3).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read_from(framed[..6].to_vec(), 4).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read_from(vec![0, 0, 0, 1, 99], 4).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        // As long as it says, and longer than it is.
        assert_eq!(read_from(vec![0, 0, 0, 2, 1, 1], 4).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_largest_messages_fit_into_their_limits() {
        let held = vec![0xff; chunks::count(SIZE_MAX) as usize / 8];
        assert!(frame(&Answer::Part { size: SIZE_MAX, held }).len() <= 4 + ANSWER_BYTES_MAX);
        assert!(frame(&Answer::News(vec![u32::MAX; NEWS_MAX])).len() <= 4 + ANSWER_BYTES_MAX);
        assert!(frame(&Question::Open(BlobHash::from_bytes([255; 32]))).len() <= 4 + QUESTION_BYTES_MAX);
    }
}
