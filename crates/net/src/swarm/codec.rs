//! The frames of a request and of its answer. One protocol carries all requests and the frame names the inner one, so
//! that a refusal can say more than that nobody listens.
//!
//! Request: version, length of the name, name, length of the body (4 bytes, big-endian), body. Answer: version, status,
//! length (4 bytes), body or detail of the refusal.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::behaviour::REQUEST_READ_MAX;
use crate::handle::Answer;
use crate::protocol::{PROTOCOL_NAME_MAX, Refusal, STATUS_OK};
use crate::reception::Reception;

const VERSION: u8 = 1;

/// Bodies of all requests that are being read or answered, in KiB. Where it is used up reading waits, and who waits too
/// long is dropped: so no set of members can make this node hold more.
const BODIES_KIB_MAX: u32 = 64 * 1024;

/// A body that is too large is read up to this and thrown away, so that the sender, still writing, hears the refusal.
const DISCARD_MAX: u64 = 1024 * 1024;

/// Body space is taken as it fills, not as it is announced.
const FIRST_CAPACITY: usize = 16 * 1024;

#[derive(Clone)]
pub(crate) struct Codec {
    reception: Arc<Reception>,
    room: Arc<Semaphore>,
}

pub(crate) struct Request {
    pub(super) name: String,
    pub(super) body: Result<Bytes, Refusal>,
    /// Given back when the request has been answered.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

impl Codec {
    pub(super) fn new(reception: Arc<Reception>) -> Self {
        Self { reception, room: Arc::new(Semaphore::new(BODIES_KIB_MAX as usize)) }
    }

    async fn read(&self, io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<Request> {
        let [version, length] = read_array(io).await?;
        check_version(version)?;
        if usize::from(length) > PROTOCOL_NAME_MAX {
            return Err(malformed("the name is too long"));
        }
        let name = read_exactly(io, usize::from(length)).await?;
        let name = String::from_utf8(name).map_err(|_| malformed("the name is no text"))?;
        let length = u32::from_be_bytes(read_array(io).await?);
        let refuse = |refusal| Request { name: name.clone(), body: Err(refusal), room: None };
        let max = match self.reception.services() {
            Err(_) => return Ok(refuse(Refusal::Stopping)),
            Ok(services) => services.request(&name).map(|(spec, _)| spec.request_bytes_max),
        };
        let refusal = match max {
            Ok(max) if length as usize <= max => None,
            Ok(_) => Some(Refusal::TooLarge),
            Err(unknown) => Some(unknown),
        };
        if let Some(refusal) = refusal {
            futures::io::copy(io.take(u64::from(length).min(DISCARD_MAX)), &mut futures::io::sink()).await?;
            return Ok(refuse(refusal));
        }
        let kib = (length.div_ceil(1024)).clamp(1, BODIES_KIB_MAX);
        let room = self.room.clone().acquire_many_owned(kib).await.expect("the semaphore is never closed");
        let body = read_exactly(io, length as usize).await?;
        Ok(Request { name, body: Ok(body.into()), room: Some(room) })
    }
}

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Request;
    type Response = Answer;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Request> {
        // A timeout is not told from a broken link: both end in a lost request.
        let read = self.reception.clock.within(REQUEST_READ_MAX, self.read(io)).await;
        read.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Answer> {
        let [version, status] = read_array(io).await?;
        check_version(version)?;
        let length = u32::from_be_bytes(read_array(io).await?) as usize;
        // The largest of all: which protocol this answers is not known here. The handle checks again.
        let specs = self.reception.services().into_iter().flat_map(|services| services.requests());
        let max = specs.map(|spec| spec.response_bytes_max).max().unwrap_or(0);
        if length > max.max(1024) {
            return Err(malformed("the answer is too large"));
        }
        let body = read_exactly(io, length).await?;
        Ok(if status == STATUS_OK { Ok(body.into()) } else { Err(Refusal::decode(status, &body)) })
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        request: Request,
    ) -> io::Result<()> {
        let name = request.name.as_bytes();
        let body = request.body.expect("what we send has a body");
        let length = u8::try_from(name.len()).expect("a protocol's name has at most 64 bytes");
        let head = [&[VERSION, length][..], name, &body_length(&body)?].concat();
        io.write_all(&head).await?;
        io.write_all(&body).await?;
        io.close().await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        answer: Answer,
    ) -> io::Result<()> {
        let (status, body) = match answer {
            Ok(body) => (STATUS_OK, body),
            Err(refusal) => {
                let (status, detail) = refusal.encode();
                (status, detail.into())
            }
        };
        io.write_all(&[&[VERSION, status][..], &body_length(&body)?].concat()).await?;
        io.write_all(&body).await?;
        io.close().await
    }
}

/// Without the body: it belongs to its owner and has no place in a log.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Request").field(&self.name).finish()
    }
}

fn body_length(body: &Bytes) -> io::Result<[u8; 4]> {
    u32::try_from(body.len()).map(u32::to_be_bytes).map_err(|_| malformed("four gigabytes are no message"))
}

async fn read_exactly(io: &mut (impl AsyncRead + Unpin), length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length.min(FIRST_CAPACITY));
    io.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
}

async fn read_array<const N: usize>(io: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    io.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn check_version(version: u8) -> io::Result<()> {
    if version == VERSION { Ok(()) } else { Err(malformed("the frame has another version")) }
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;
    use libp2p::request_response::Codec as _;
    use std::time::Duration;

    use super::*;
    use crate::{Clock, Keypair, Protocol, RequestSpec, Roles, Services};

    const PROTOCOL: StreamProtocol = StreamProtocol::new("/test");
    const SPEC: RequestSpec = RequestSpec {
        protocol: Protocol::new("/test/echo/1"),
        roles: Roles::ALL,
        request_bytes_max: 2000,
        response_bytes_max: 3000,
        deadline: Duration::from_secs(1),
        concurrency_per_peer: 1,
    };

    fn codec() -> Codec {
        let reception = Reception::new(Keypair::from_seed([1; 32]).node_id(), Clock::tokio());
        reception.open(Services::new().on_request(SPEC, |_, body| Box::pin(async { Ok(body) })));
        Codec::new(reception)
    }

    async fn written(name: &str, body: &[u8]) -> Vec<u8> {
        let mut io = Cursor::new(Vec::new());
        let body = Ok(Bytes::copy_from_slice(body));
        let request = Request { name: name.to_owned(), body, room: None };
        codec().write_request(&PROTOCOL, &mut io, request).await.unwrap();
        io.into_inner()
    }

    #[tokio::test]
    async fn a_request_arrives_as_it_was_sent() {
        let bytes = written("/test/echo/1", &[7; 2000]).await;
        let read = codec().read_request(&PROTOCOL, &mut Cursor::new(bytes)).await.unwrap();
        assert_eq!((read.name.as_str(), read.body.unwrap().len()), ("/test/echo/1", 2000));
    }

    #[tokio::test]
    async fn what_may_not_come_in_is_refused_by_its_head_alone() {
        for (name, length, refusal) in [
            ("/test/echo/1", 2001, Refusal::TooLarge),
            ("/test/none/1", 10, Refusal::UnknownProtocol { speaks: None }),
            ("/test/echo/7", 10, Refusal::UnknownProtocol { speaks: Some(1) }),
        ] {
            let bytes = written(name, &vec![0; length]).await;
            let read = codec().read_request(&PROTOCOL, &mut Cursor::new(bytes)).await.unwrap();
            assert_eq!(read.body.unwrap_err(), refusal);
            assert!(read.room.is_none());
        }
    }

    #[tokio::test]
    async fn no_damaged_frame_is_taken_for_a_request_or_makes_us_allocate_what_it_announces() {
        let good = written("/test/echo/1", b"body").await;
        for end in 0..good.len() {
            assert!(codec().read_request(&PROTOCOL, &mut Cursor::new(&good[..end])).await.is_err(), "cut at {end}");
        }
        let mut other_version = good.clone();
        other_version[0] = 9;
        let mut long_name = good.clone();
        long_name[1] = 65;
        let mut no_text = good.clone();
        no_text[3] = 0xff;
        for bytes in [other_version, long_name, no_text] {
            let error = codec().read_request(&PROTOCOL, &mut Cursor::new(bytes)).await.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let huge = [1, 0, 0xff, 0xff, 0xff, 0xff];
        assert!(codec().read_response(&PROTOCOL, &mut Cursor::new(huge)).await.is_err());
    }

    #[tokio::test]
    async fn an_answer_and_a_refusal_arrive_as_they_were_said() {
        for answer in [Ok(Bytes::from_static(b"fine")), Err(Refusal::Busy), Err(Refusal::Failed("no".to_owned()))] {
            let mut io = Cursor::new(Vec::new());
            codec().write_response(&PROTOCOL, &mut io, answer.clone()).await.unwrap();
            let read = codec().read_response(&PROTOCOL, &mut Cursor::new(io.into_inner())).await.unwrap();
            assert_eq!(read, answer);
        }
    }
}
