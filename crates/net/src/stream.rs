//! A stream of bytes that ends when its peer is removed.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Bytes both ways, whatever carries them.
pub(crate) trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carrier for T {}

/// A stream to or from a peer. What is written may rest in a buffer until `flush`: over TLS the last bytes of a burst do,
/// now and then. Who ends a stream well calls `shutdown`. Both directions must be served at the same time, or
/// in turns agreed on beforehand: two ends that both write everything before they read wait for each other for ever.
pub struct ByteStream {
    carrier: Box<dyn Carrier>,
    /// One for each direction, since reader and writer may be polled by different tasks and each future keeps one waker.
    cut: [Pin<Box<WaitForCancellationFutureOwned>>; 2],
}

const READ: usize = 0;
const WRITE: usize = 1;

impl ByteStream {
    pub(crate) fn new(carrier: Box<dyn Carrier>, cut: &CancellationToken) -> Self {
        let cut = || Box::pin(cut.clone().cancelled_owned());
        Self { carrier, cut: [cut(), cut()] }
    }

    fn poll_cut(&mut self, direction: usize, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut[direction].as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the peer is no longer a member")),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(READ, cx)?;
        Pin::new(&mut self.carrier).poll_read(cx, buf)
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_cut(WRITE, cx)?;
        Pin::new(&mut self.carrier).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(WRITE, cx)?;
        Pin::new(&mut self.carrier).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(WRITE, cx)?;
        Pin::new(&mut self.carrier).poll_shutdown(cx)
    }
}

impl fmt::Debug for ByteStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByteStream")
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_cut_wakes_a_waiting_reader_and_a_waiting_writer() {
        let cut = CancellationToken::new();
        let (near, far) = tokio::io::duplex(8);
        let (mut reader, mut writer) = tokio::io::split(ByteStream::new(Box::new(near), &cut));
        let read = async { reader.read_u8().await.unwrap_err().kind() };
        let write = async { writer.write_all(&[0; 100]).await.unwrap_err().kind() };
        let cutter = async {
            tokio::task::yield_now().await;
            cut.cancel();
        };
        let (read, write, ()) = tokio::join!(read, write, cutter);
        assert_eq!((read, write), (io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionAborted));
        drop(far);
    }
}
