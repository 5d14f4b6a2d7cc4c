//! Ollama's API over the whole mesh.
//!
//! A request is read as far as it takes to know which model is meant and how long it will take; then it goes, as it
//! came, to the node that answers it soonest, and the answer comes back as it grows.

pub(crate) mod infer;
pub(crate) mod lists;
pub(crate) mod manage;
mod work;

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use node::Unavailable;

use crate::face::Face;
use crate::failure::Failure;
use crate::route::Raw;

/// As Ollama writes it.
const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// As Ollama says who it is.
pub(crate) async fn root(_: Raw) -> Result<Response, Failure> {
    let mut response = Response::new(Body::from("Ollama is running"));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}

/// A route that Ollama has and a mesh does not have yet.
pub(crate) async fn not_yet(raw: Raw) -> Result<Response, Failure> {
    let message = format!("`{} {}` is not supported by this mesh", raw.method, raw.uri.path());
    Err(Failure::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", message))
}

/// Where the mesh knows of no model at all and this node's own backend is the reason, that is the better answer.
fn nothing_runs(face: &Face) -> Option<Failure> {
    if face.api().inference().knows_models() {
        return None;
    }
    let unavailable = face.api().backend().ways().err()?;
    let failure = Failure::new(StatusCode::SERVICE_UNAVAILABLE, "no_backend", unavailable.to_string());
    Some(match unavailable {
        Unavailable::Nothing(_) => failure.hint("`omx doctor` says what is missing"),
        Unavailable::Starting | Unavailable::Down(_) => failure.retry_after(Duration::from_secs(1)),
    })
}

fn json(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}
