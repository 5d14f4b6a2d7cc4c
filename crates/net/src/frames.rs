//! Messages on a stream of bytes, each with its length before it.

use std::fmt;
use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::stream::ByteStream;

/// What is asked for at once: most messages, and several small ones.
const READ_BYTES: usize = 8 << 10;

/// More than this is not reserved on the word of a length.
const RESERVE_BYTES_MAX: usize = 64 << 10;

/// Many messages, both ways.
pub struct Frames<S = ByteStream> {
    stream: S,
    received: BytesMut,
    queued: BytesMut,
    /// Of one message that comes in.
    bytes_max: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    pub fn new(stream: S, bytes_max: usize) -> Self {
        Self { stream, received: BytesMut::new(), queued: BytesMut::new(), bytes_max }
    }

    /// The next message; `None` at an end in good order. May be dropped at any time: nothing is lost.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(mut head) = self.received.get(..4) {
                let length = head.get_u32() as usize;
                check_length(length, self.bytes_max)?;
                if self.received.len() >= 4 + length {
                    self.received.advance(4);
                    return Ok(Some(self.received.split_to(length).freeze()));
                }
                self.received.reserve((4 + length - self.received.len()).min(RESERVE_BYTES_MAX));
            }
            self.received.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return if self.received.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Puts a message behind those that `flush` sends. The caller bounds how many.
    pub fn queue(&mut self, body: &[u8]) {
        append(&mut self.queued, body);
    }

    /// To be awaited to its end: dropped, it leaves half a message, and the stream is of no use any more.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.queued).await?;
        self.queued.clear();
        self.stream.flush().await
    }
}

/// One message. One write, so that small messages take one record of TLS and one packet.
pub async fn write_framed(stream: &mut ByteStream, body: &[u8]) -> io::Result<()> {
    let mut framed = BytesMut::with_capacity(4 + body.len());
    append(&mut framed, body);
    stream.write_all(&framed).await?;
    stream.flush().await
}

/// The next message, where nothing else is read from the stream meanwhile.
pub async fn read_framed(stream: &mut ByteStream, bytes_max: usize) -> io::Result<Vec<u8>> {
    let length = stream.read_u32().await? as usize;
    check_length(length, bytes_max)?;
    // Grows as bytes come in: the announced length reserves nothing.
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(body)
}

impl<S> fmt::Debug for Frames<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("queued", &self.queued.len()).finish_non_exhaustive()
    }
}

fn append(bytes: &mut BytesMut, body: &[u8]) {
    bytes.put_u32(u32::try_from(body.len()).expect("what nodes send is far below 4 GiB"));
    bytes.put_slice(body);
}

fn check_length(length: usize, bytes_max: usize) -> io::Result<()> {
    match length > bytes_max {
        true => Err(io::Error::other(format!("a message of {length} bytes, where {bytes_max} are allowed"))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    fn pair() -> (Frames<DuplexStream>, Frames<DuplexStream>) {
        let (near, far) = duplex(1 << 20);
        (Frames::new(near, 100_000), Frames::new(far, 100_000))
    }

    #[tokio::test]
    async fn messages_come_out_as_they_went_in_however_they_were_cut() {
        let (mut near, mut far) = pair();
        let sent: Vec<Vec<u8>> =
            [0, 1, 3, 20_000, 100_000].into_iter().map(|length| vec![length as u8; length]).collect();
        sent.iter().for_each(|body| near.queue(body));
        let bytes = std::mem::take(&mut near.queued);
        for piece in bytes.chunks(7) {
            near.queued.put_slice(piece);
            near.flush().await.unwrap();
        }
        for body in sent {
            assert_eq!(far.next().await.unwrap().unwrap(), body);
        }
        drop(near);
        assert_eq!(far.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_wait_that_is_dropped_loses_nothing() {
        let (mut near, mut far) = pair();
        near.queue(b"in two pieces");
        let rest = near.queued.split_off(6);
        near.flush().await.unwrap();
        assert!(poll!(Box::pin(far.next())).is_pending());
        near.queued.put_slice(&rest);
        near.flush().await.unwrap();
        assert_eq!(far.next().await.unwrap().unwrap(), &b"in two pieces"[..]);
    }

    #[tokio::test]
    async fn a_message_too_long_is_refused_by_its_length_and_half_of_one_is_no_end() {
        let (mut near, mut far) = pair();
        near.queued.put_u32(100_001);
        near.flush().await.unwrap();
        assert!(far.next().await.is_err());
        let (mut near, mut far) = pair();
        near.queue(b"cut off");
        near.queued.truncate(8);
        near.flush().await.unwrap();
        drop(near);
        assert_eq!(far.next().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
