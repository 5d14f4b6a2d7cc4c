//! HTTP/1.1 connections that are kept for the next request, to backends and to other nodes alike.
//!
//! A connection belongs to whoever reads its answer: dropped before the end it is closed, and the other side stops
//! working. Read to the end it goes back to where the next request finds it. There is no task, so none to leak.
//!
//! It stays with the runtime it was made in, whose thread hears of its bytes: used from another, each of them would wake
//! two.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, timeout};

/// What HTTP can be spoken over.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Kept connections of all keys together; what comes back beyond it is closed.
const IDLE_MAX: usize = 64;
/// Kept for so long. Servers close what idles too, and a request on a connection that is just being closed is lost.
const IDLE_FOR: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Pool<K> {
    idle: Arc<Idle<K>>,
}

#[derive(Debug)]
struct Idle<K>(Mutex<Vec<(K, Connection, Instant)>>);

#[derive(Debug)]
struct Connection {
    home: Id,
    sender: SendRequest<Whole>,
    driver: Driver,
}

/// What moves a connection's bytes. It is polled by whoever waits for them, and by nobody else: a task of its own would
/// cost a request two wake-ups between threads, and a line another. A connection that idles does not move.
struct Driver(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

/// An answer's body, and the connection it comes over.
#[derive(Debug)]
pub(crate) struct Answer<K> {
    body: Incoming,
    /// Gone once the body ended.
    home: Option<(K, Connection)>,
    idle: Arc<Idle<K>>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no connection within {0:?}")]
    Late(Duration),
    #[error("no connection")]
    Connect(#[source] io::Error),
    #[error("the connection broke before the answer began")]
    Broken(#[source] hyper::Error),
}

impl<K: Clone + PartialEq> Pool<K> {
    pub(crate) fn new() -> Self {
        Self { idle: Arc::new(Idle(Mutex::new(Vec::new()))) }
    }

    /// Over a kept connection where there is one, else over the one `dial` makes. May be dropped at any time; what was
    /// sent is then cancelled.
    pub(crate) async fn send<S: Io>(
        &self,
        key: K,
        request: Request<Whole>,
        connect_max: Duration,
        dial: impl Future<Output = io::Result<S>>,
    ) -> Result<Response<Answer<K>>, Error> {
        let mut request = request;
        let home = Handle::current().id();
        while let Some(mut kept) = self.idle.take(&key, home) {
            let Connection { sender, driver, .. } = &mut kept;
            // Nobody has seen yet what became of it while it idled.
            if driver.is_over().await || driver.drive(sender.ready()).await.is_err() {
                continue;
            }
            // One that was closed while it idled may say so only now, and gives back what it has not sent. What was sent
            // is not sent again here: that is a second try, and others count those.
            match driver.drive(sender.try_send_request(request)).await {
                Ok(response) => return Ok(self.answer(key, kept, response)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(Error::Broken(error.into_error())),
                },
            }
        }
        let stream = timeout(connect_max, dial).await.map_err(|_| Error::Late(connect_max))?.map_err(Error::Connect)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Error::Broken)?;
        let mut fresh = Connection { home, sender, driver: Driver::of(connection) };
        let response = fresh.driver.drive(fresh.sender.send_request(request)).await.map_err(Error::Broken)?;
        Ok(self.answer(key, fresh, response))
    }

    fn answer(&self, key: K, connection: Connection, response: Response<Incoming>) -> Response<Answer<K>> {
        let idle = self.idle.clone();
        response.map(|body| Answer { body, home: Some((key, connection)), idle })
    }
}

impl Driver {
    fn of<S: Io>(connection: http1::Connection<TokioIo<S>, Whole>) -> Self {
        Self(Some(Box::pin(async move { drop(connection.await) })))
    }

    /// Does the work, which waits for this connection. May be dropped at any time.
    async fn drive<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|cx| {
            // What it asks for is moved, and what was moved may be all it waits for.
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            self.poll(cx);
            work.as_mut().poll(cx)
        })
        .await
    }

    /// Whether the connection has ended, as far as its bytes tell by now.
    async fn is_over(&mut self) -> bool {
        poll_fn(|cx| {
            self.poll(cx);
            Poll::Ready(self.0.is_none())
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>) {
        if self.0.as_mut().is_some_and(|connection| connection.as_mut().poll(cx).is_ready()) {
            self.0 = None;
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Driver").field(&self.0.is_some()).finish()
    }
}

impl<K: PartialEq> Idle<K> {
    fn take(&self, key: &K, home: Id) -> Option<Connection> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(_, connection, since)| since.elapsed() < IDLE_FOR && !connection.sender.is_closed());
        // The one used last is the one least likely to be closed by the other side.
        let at = idle.iter().rposition(|(kept, connection, _)| kept == key && connection.home == home)?;
        Some(idle.remove(at).1)
    }

    fn keep(&self, key: K, connection: Connection) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && !connection.sender.is_closed() {
            idle.push((key, connection, Instant::now()));
        }
    }
}

impl<K: PartialEq> Answer<K> {
    /// The next bytes, never none; `None` at the end. May be dropped at any time, nothing is lost.
    pub(crate) async fn bytes(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            let frame = match &mut self.home {
                Some((_, connection)) => connection.driver.drive(self.body.frame()).await,
                None => self.body.frame().await,
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => return Some(Ok(bytes)),
                    Ok(_) | Err(_) => {}
                },
                Some(Err(error)) => {
                    self.home = None;
                    return Some(Err(error));
                }
                None => {
                    if let Some((key, connection)) = self.home.take() {
                        self.idle.keep(key, connection);
                    }
                    return None;
                }
            }
        }
    }
}

/// A request's body, sent with its length.
#[derive(Debug, Clone, Default)]
pub(crate) struct Whole(Bytes);

impl From<Bytes> for Whole {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let all = std::mem::take(&mut self.0);
        Poll::Ready((!all.is_empty()).then(|| Ok(Frame::data(all))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::task::JoinSet;

    use super::*;

    const MAX: Duration = Duration::from_secs(30);

    /// When a peer that has answered one request closes its connection.
    #[derive(Clone, Copy)]
    enum Closes {
        WhileItIdles,
        OverTheNext,
    }

    async fn peer(mut stream: DuplexStream, closes: Closes) {
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        if let Closes::OverTheNext = closes {
            assert!(stream.read(&mut request).await.unwrap() > 0);
        }
    }

    /// How often a connection was made for two requests one after the other, and what became of the second.
    async fn second(closes: Closes) -> (u32, Result<(), Error>) {
        let (pool, mut peers) = (Pool::new(), JoinSet::new());
        let mut dialled = 0;
        let mut last = Ok(());
        for _ in 0..2 {
            let dial = async {
                dialled += 1;
                let (near, far) = duplex(4096);
                peers.spawn(peer(far, closes));
                Ok(near)
            };
            last = match timeout(MAX, pool.send((), Request::new(Whole::default()), MAX, dial)).await.unwrap() {
                Ok(response) => {
                    assert!(response.into_body().bytes().await.is_none());
                    if let Closes::WhileItIdles = closes {
                        peers.join_next().await.unwrap().unwrap();
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            };
        }
        (dialled, last)
    }

    #[tokio::test]
    async fn a_kept_connection_that_was_closed_meanwhile_is_replaced() {
        let (dialled, last) = second(Closes::WhileItIdles).await;
        last.unwrap();
        assert_eq!(dialled, 2);
    }

    #[tokio::test]
    async fn one_that_breaks_over_the_request_is_not_asked_again() {
        let (dialled, last) = second(Closes::OverTheNext).await;
        assert!(matches!(last, Err(Error::Broken(_))), "{last:?}");
        assert_eq!(dialled, 1);
    }
}
