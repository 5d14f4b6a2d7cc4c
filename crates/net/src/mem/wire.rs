//! A stream between two nodes, as long as the wire between them.
//!
//! It has the manners of TLS, so that a test in memory finds what would fail there: a stream that ends without `shutdown`
//! reads as broken, and what is written without `flush` need not arrive.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use types::NodeId;

use super::fabric::Fabric;

/// What the wire holds at each end, and what it moves at once.
const BUFFER: usize = 64 * 1024;

/// What an end keeps back without `flush`.
const UNFLUSHED_MAX: usize = 16 * 1024;

/// One end of a stream.
pub(super) struct End {
    io: DuplexStream,
    /// Written and not flushed; at most `UNFLUSHED_MAX`.
    unflushed: BytesMut,
    /// Set by `shutdown` here.
    ended_here: Flag,
    /// Set when the `shutdown` of the other end has come over the wire.
    ended_there: Flag,
}

type Flag = Arc<AtomicBool>;

/// The wire between two ends: moves bytes while `run` is polled, and breaks when that is dropped.
pub(super) struct Wire {
    far: DuplexStream,
    near: DuplexStream,
    far_flags: (Flag, Flag),
    near_flags: (Flag, Flag),
}

/// The far end, the wire, the near end.
pub(super) fn wire() -> (End, Wire, End) {
    let end = || {
        let (io, inner) = tokio::io::duplex(BUFFER);
        let flags = (Flag::default(), Flag::default());
        (
            End { io, unflushed: BytesMut::new(), ended_here: flags.0.clone(), ended_there: flags.1.clone() },
            inner,
            flags,
        )
    };
    let (far_end, far, far_flags) = end();
    let (near_end, near, near_flags) = end();
    (far_end, Wire { far, near, far_flags, near_flags }, near_end)
}

impl Wire {
    /// Until both directions are closed.
    pub(super) async fn run(self, fabric: &Fabric, far: NodeId, near: NodeId) {
        let (mut far_read, mut far_write) = tokio::io::split(self.far);
        let (mut near_read, mut near_write) = tokio::io::split(self.near);
        let inward = pump(fabric, (far, near), &mut far_read, &mut near_write, &self.far_flags.0, &self.near_flags.1);
        let outward = pump(fabric, (near, far), &mut near_read, &mut far_write, &self.near_flags.0, &self.far_flags.1);
        tokio::join!(inward, outward);
    }
}

async fn pump(
    fabric: &Fabric,
    (from, to): (NodeId, NodeId),
    source: &mut (impl AsyncRead + Unpin),
    sink: &mut (impl AsyncWrite + Unpin),
    ended_at_source: &AtomicBool,
    ended_at_sink: &AtomicBool,
) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = source.read(&mut buffer).await.unwrap_or(0);
        fabric.carry_bytes(from, to).await;
        if count == 0 {
            ended_at_sink.store(ended_at_source.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        // At the end of the bytes, and where nobody reads any more.
        if count == 0 || sink.write_all(&buffer[..count]).await.is_err() {
            let _ = sink.shutdown().await;
            return;
        }
    }
}

impl AsyncRead for End {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let nothing = buf.filled().len() == before && buf.remaining() > 0;
        Poll::Ready(match nothing && !self.ended_there.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(()),
        })
    }
}

impl End {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unflushed.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.unflushed))?;
            self.unflushed.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.unflushed.len() >= UNFLUSHED_MAX {
            ready!(self.poll_drain(cx))?;
        }
        let taken = bytes.len().min(UNFLUSHED_MAX - self.unflushed.len());
        self.unflushed.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        // Before the bytes end, so that the wire finds it set when they do.
        self.ended_here.store(true, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
