//! Streams inside the mesh connection: slower than the direct way, and there where that is not.

use std::io;
use std::sync::Arc;

use futures::StreamExt;
use libp2p_stream::{Control, IncomingStreams, OpenStreamError};
use tokio::task::JoinSet;
use tokio_util::compat::FuturesAsyncReadCompatExt;
use types::NodeId;

use super::behaviour::STREAM_PROTOCOL;
use crate::greeting::{self, Failed};
use crate::protocol::{Protocol, Refusal};
use crate::reception::Reception;
use crate::stream::Carrier;

/// Streams served at once, greetings included. One more is dropped; its opener gets no answer and tries again.
const SERVED_MAX: usize = 4096;
/// How often a stream is opened again when no answer comes: libp2p-stream drops what comes in while its one-place queue
/// is full, and says so to nobody.
const TRIES_MAX: u32 = 6;

/// Opens a stream to a connected peer. The caller sets the deadline.
pub(crate) async fn open(mut control: Control, peer: &NodeId, protocol: Protocol) -> Result<Box<dyn Carrier>, Failed> {
    let peer = super::peer_id(peer);
    let mut last = None;
    for _ in 0..TRIES_MAX {
        let stream = match control.open_stream(peer, STREAM_PROTOCOL).await {
            Ok(stream) => stream,
            Err(OpenStreamError::UnsupportedProtocol(_)) => {
                return Err(Failed::Refused(Refusal::UnknownProtocol { speaks: None }));
            }
            Err(OpenStreamError::Io(error)) => return Err(Failed::Unanswered(error)),
            Err(other) => return Err(Failed::Unanswered(io::Error::other(other.to_string()))),
        };
        let mut carrier: Box<dyn Carrier> = Box::new(stream.compat());
        match tokio::time::timeout(greeting::GREETING_MAX, greeting::ask(&mut carrier, protocol)).await {
            Ok(Ok(())) => return Ok(carrier),
            Ok(Err(refused @ Failed::Refused(_))) => return Err(refused),
            Ok(Err(Failed::Unanswered(error))) => last = Some(error),
            Err(_) => return Err(Failed::Unanswered(io::ErrorKind::TimedOut.into())),
        }
    }
    Err(Failed::Unanswered(last.unwrap_or_else(|| io::ErrorKind::TimedOut.into())))
}

/// Serves what peers open, for ever. Dropped, it takes its streams along.
pub(crate) async fn serve(mut incoming: IncomingStreams, reception: Arc<Reception>) {
    let mut served = JoinSet::new();
    loop {
        tokio::select! {
            // First, and without waiting for anything else: while we are busy, libp2p-stream drops.
            biased;
            opened = incoming.next() => {
                let Some((peer, stream)) = opened else { return };
                if let Some(from) = super::node_id(&peer).filter(|_| served.len() < SERVED_MAX) {
                    let carrier = Box::new(stream.compat());
                    served.spawn(greeting::serve(reception.clone(), from, None, carrier, None, ()));
                }
            }
            Some(ended) = served.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the handler of a stream failed");
                }
            }
        }
    }
}
