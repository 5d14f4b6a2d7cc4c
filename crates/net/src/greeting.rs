//! The first words on a stream: what it is for, and whether that is granted. Without them a stream the other side has
//! dropped looks like one it is thinking about.
//!
//! Hello: version, length of the name, name. Answer: version, status, length of the detail (2 bytes, big-endian), detail.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use types::NodeId;

use crate::protocol::{PROTOCOL_NAME_MAX, Protocol, Refusal, STATUS_OK};
use crate::reception::Reception;
use crate::score::Offence;
use crate::stream::Carrier;

const VERSION: u8 = 1;
/// How long either side waits for the other's words.
pub(crate) const GREETING_MAX: Duration = Duration::from_secs(5);
/// More than any refusal says.
const DETAIL_MAX: usize = 1024;

#[derive(Debug)]
pub(crate) enum Failed {
    Refused(Refusal),
    /// Nothing was granted and nothing refused; another try may do.
    Unanswered(io::Error),
}

/// Says what a stream is for, and waits until that is granted.
pub(crate) async fn ask(carrier: &mut Box<dyn Carrier>, protocol: Protocol) -> Result<(), Failed> {
    match exchange(carrier, protocol).await {
        Ok(granted) => granted.map_err(Failed::Refused),
        Err(error) => Err(Failed::Unanswered(error)),
    }
}

async fn exchange(carrier: &mut Box<dyn Carrier>, protocol: Protocol) -> io::Result<Result<(), Refusal>> {
    let name = protocol.name().as_bytes();
    let length = u8::try_from(name.len()).expect("a protocol's name has at most 64 bytes");
    carrier.write_all(&[&[VERSION, length], name].concat()).await?;
    carrier.flush().await?;
    let [version, status] = read_array(carrier).await?;
    check_version(version)?;
    let length = usize::from(u16::from_be_bytes(read_array(carrier).await?));
    if length > DETAIL_MAX {
        return Err(malformed("the answer is too long"));
    }
    let mut detail = vec![0; length];
    carrier.read_exact(&mut detail).await?;
    Ok(if status == STATUS_OK { Ok(()) } else { Err(Refusal::decode(status, &detail)) })
}

/// Hears what a stream is for, grants or refuses it, and serves it to its end. `waiting` is let go as soon as the peer
/// no longer waits for a decision. `expected` is the name the transport has heard already.
pub(crate) async fn serve(
    reception: Arc<Reception>,
    from: NodeId,
    address: Option<SocketAddr>,
    mut carrier: Box<dyn Carrier>,
    expected: Option<String>,
    waiting: impl Send,
) {
    let name = match reception.clock.within(GREETING_MAX, hear(&mut carrier)).await {
        Some(Ok(name)) if expected.as_ref().is_none_or(|expected| *expected == name) => name,
        Some(Err(error)) if error.kind() != io::ErrorKind::InvalidData => return,
        Some(_) => return reception.offended(from, Offence::Malformed),
        None => return reception.offended(from, Offence::Silent),
    };
    let accepted = reception.accept(from, address, &name);
    let (status, detail) = match &accepted {
        Ok(_) => (STATUS_OK, Vec::new()),
        Err(refusal) => refusal.encode(),
    };
    let length = u16::try_from(detail.len()).expect("a refusal's text is bounded");
    let words = [&[VERSION, status][..], &length.to_be_bytes(), &detail].concat();
    let said = async {
        carrier.write_all(&words).await?;
        carrier.flush().await
    };
    let said = reception.clock.within(GREETING_MAX, said).await;
    drop(waiting);
    match (accepted, said) {
        (Ok(accepted), Some(Ok(()))) => accepted.serve(carrier).await,
        (Err(_), Some(Ok(()))) => {
            // Ended well, so that the refusal is read before the end is seen.
            let _ = reception.clock.within(GREETING_MAX, carrier.shutdown()).await;
        }
        _ => {}
    }
}

async fn hear(carrier: &mut Box<dyn Carrier>) -> io::Result<String> {
    let [version, length] = read_array(carrier).await?;
    check_version(version)?;
    if usize::from(length) > PROTOCOL_NAME_MAX {
        return Err(malformed("the name is too long"));
    }
    let mut name = vec![0; usize::from(length)];
    carrier.read_exact(&mut name).await?;
    String::from_utf8(name).map_err(|_| malformed("the name is no text"))
}

async fn read_array<const N: usize>(carrier: &mut Box<dyn Carrier>) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    carrier.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn check_version(version: u8) -> io::Result<()> {
    if version == VERSION { Ok(()) } else { Err(malformed("the greeting has another version")) }
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Allowed, Clock, Keypair, Member, Roles, Services, StreamSpec};

    const COPY: StreamSpec = StreamSpec {
        protocol: Protocol::new("/test/copy/1"),
        allowed: Allowed::Members(Roles::NODES),
        concurrency_per_peer: 1,
        concurrency_total: 1,
    };

    fn reception(peer: NodeId) -> Arc<Reception> {
        let reception = Reception::new(Keypair::from_seed([1; 32]).node_id(), Clock::tokio());
        reception.open(Services::new().on_stream(COPY, |_, mut stream| {
            Box::pin(async move {
                let _ = stream.write_all(b"welcome").await;
                let _ = stream.shutdown().await;
            })
        }));
        reception.admit(vec![Member { id: peer, role: types::Role::Node, mesh: Vec::new(), bulk: Vec::new() }]);
        reception
    }

    async fn greeted(words: &[u8], expected: Option<&str>) -> (Vec<u8>, f64) {
        let peer = Keypair::from_seed([2; 32]).node_id();
        let reception = reception(peer);
        let (mut near, far) = tokio::io::duplex(4096);
        near.write_all(words).await.unwrap();
        let expected = expected.map(str::to_owned);
        serve(reception.clone(), peer, None, Box::new(far), expected, ()).await;
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        (answer, reception.peers()[0].score)
    }

    #[tokio::test]
    async fn a_stream_is_served_after_hello_and_answer() {
        let (answer, score) = greeted(b"\x01\x0c/test/copy/1", Some("/test/copy/1")).await;
        assert_eq!(answer, b"\x01\x00\x00\x00welcome");
        assert_eq!(score, 0.0);
    }

    #[tokio::test]
    async fn a_refusal_is_said_with_its_reason() {
        let (answer, _) = greeted(b"\x01\x0c/test/copy/9", None).await;
        assert_eq!(answer, b"\x01\x03\x00\x04\x00\x00\x00\x01", "unknown protocol, speaks version 1");
    }

    #[tokio::test]
    async fn malformed_words_are_not_answered_and_are_counted() {
        for words in [&b"\x07\x0c/test/copy/1"[..], b"\x01\xff", b"\x01\x02\xff\xff"] {
            let (answer, score) = greeted(words, None).await;
            assert!(answer.is_empty() && score > 0.0, "{words:?}");
        }
        let (answer, score) = greeted(b"\x01\x0c/test/copy/1", Some("/test/join/1")).await;
        assert!(answer.is_empty() && score > 0.0, "the handshake named another protocol");
    }
}
