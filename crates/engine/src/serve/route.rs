//! Which request goes where.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use ollama::wire::Version;

use super::body::{MANAGE_BYTES_MAX, TALK_BYTES_MAX};
use super::failure::Failure;
use super::reply::{self, Reply};
use super::{SECRET_HEADER, Server, body, embed, infer, manage};

/// Answers in any case: what fails is an answer too.
pub(super) async fn answer(server: Arc<Server>, request: Request<Incoming>) -> Reply {
    let given = request.headers().get(SECRET_HEADER).map_or(&[][..], |value| value.as_bytes());
    if !server.config.secret.is(given) {
        let message = "unauthorized".to_owned();
        return reply::failed(Failure { status: StatusCode::UNAUTHORIZED, message });
    }
    dispatch(server, request).await.unwrap_or_else(reply::failed)
}

async fn dispatch(server: Arc<Server>, request: Request<Incoming>) -> Result<Reply, Failure> {
    let (parts, incoming) = request.into_parts();
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    let posts = parts.method == Method::POST;
    // hyper leaves the body out where the method is HEAD.
    match parts.uri.path() {
        "/" if reads => Ok(reply::text("Ollama is running")),
        "/api/version" if reads => Ok(reply::json(&Version { version: server.config.version.clone() })),
        "/api/tags" if reads => manage::tags(server).await,
        "/api/ps" if parts.method == Method::GET => manage::ps(server).await,
        "/api/show" if posts => manage::show(server, body::read(incoming, MANAGE_BYTES_MAX).await?).await,
        "/api/copy" if posts => manage::copy(server, body::read(incoming, MANAGE_BYTES_MAX).await?).await,
        "/api/delete" if parts.method == Method::DELETE => {
            manage::delete(server, body::read(incoming, MANAGE_BYTES_MAX).await?).await
        }
        "/api/generate" if posts => infer::generate(server, body::read(incoming, TALK_BYTES_MAX).await?).await,
        "/api/chat" if posts => infer::chat(server, body::read(incoming, TALK_BYTES_MAX).await?).await,
        "/api/embed" if posts => embed::embed(server, body::read(incoming, TALK_BYTES_MAX).await?).await,
        "/api/embeddings" if posts => embed::embeddings(server, body::read(incoming, TALK_BYTES_MAX).await?).await,
        "/" | "/api/version" | "/api/tags" | "/api/ps" | "/api/show" | "/api/copy" | "/api/delete"
        | "/api/generate" | "/api/chat" | "/api/embed" | "/api/embeddings" => {
            Ok(reply::unrouted(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed"))
        }
        _ => Ok(reply::unrouted(StatusCode::NOT_FOUND, "404 page not found")),
    }
}
