//! A listener and the connections it took, which end with it.

use std::convert::Infallible;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::body::Body;

/// Beyond them, new ones wait in the system's queue.
const CONNECTIONS_MAX: usize = 16_384;

/// `taken` says what becomes of a connection, if anything.
pub(crate) async fn accept<C>(listener: TcpListener, mut taken: impl FnMut(TcpStream) -> Option<C>)
where
    C: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                if let Some(conversation) = taken(stream) {
                    connections.spawn(conversation);
                }
            }
            // Out of descriptors: one may come free when another task has had its turn.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// One request after the other, until its client goes.
pub(crate) async fn converse<A>(stream: TcpStream, answer: impl Fn(Request<Incoming>) -> A)
where
    A: Future<Output = Response<Body>>,
{
    // Tokens are small, and each should leave at once; where that cannot be had, they come later.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let answered = answer(request);
        async { Ok::<_, Infallible>(answered.await) }
    });
    // How a connection ended is for the client to judge.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}
