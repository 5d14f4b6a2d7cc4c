//! Requests to run a model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::ollama::{Asked, ModelName, seen};
use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use node::{Infer, Inferred, Route, Tenant};

use super::work;
use crate::access::Caller;
use crate::face::Face;
use crate::failure::Failure;
use crate::route::Raw;

/// The name of the node whose answer it is.
const NODE: HeaderName = HeaderName::from_static("omx-node");
/// How many nodes the request was sent to, this one included.
const ATTEMPTS: HeaderName = HeaderName::from_static("omx-attempts");
/// Which of the request's options were changed, and to what.
const OPTIONS: HeaderName = HeaderName::from_static("omx-options");

pub(crate) async fn generate(raw: Raw) -> Result<Response, Failure> {
    raw.infer(Route::Generate).await
}

pub(crate) async fn chat(raw: Raw) -> Result<Response, Failure> {
    raw.infer(Route::Chat).await
}

pub(crate) async fn embed(raw: Raw) -> Result<Response, Failure> {
    raw.infer(Route::Embed).await
}

pub(crate) async fn embeddings(raw: Raw) -> Result<Response, Failure> {
    raw.infer(Route::Embeddings).await
}

impl Raw {
    async fn infer(self, route: Route) -> Result<Response, Failure> {
        let body = self.body.clone();
        self.infer_native(route, body).await
    }

    /// The mesh's answer to a request in Ollama's terms.
    pub(crate) async fn infer_native(&self, route: Route, body: Bytes) -> Result<Response, Failure> {
        let asked = Asked::read(&body).map_err(|error| Failure::bad_request(error.to_string()))?;
        let name = name(&asked, route)?;
        let inference = self.face.api().inference();
        let model = inference.resolve(&name).await.ok_or_else(|| unknown(&self.face, &asked, route))?;
        let tenant = match &self.caller {
            Caller::Key(grant) => Tenant::of_key(grant.key.to_string().as_bytes()),
            Caller::Anonymous(_) | Caller::Owner { .. } => Tenant::ANONYMOUS,
        };
        let work = work::of(&asked, route, model, inference.chain_key(), tenant);
        let streams = asked.streams.unwrap_or(true) && matches!(route, Route::Generate | Route::Chat);
        drop(asked);
        let asked_at = Instant::now();
        let answer = inference.run(Infer { id: self.id, route, work, streams, body }).await?;
        self.face.metrics().began(route, asked_at.elapsed());
        Ok(told(&self.face, answer))
    }
}

/// The model's name, or what Ollama says where there is none.
fn name(asked: &Asked, route: Route) -> Result<ModelName, Failure> {
    let Some(text) = asked.model.as_str() else {
        return Err(match (&asked.model, route) {
            (serde_json::Value::Null, _) => no_name(route),
            (value, _) => Failure::bad_request(format!(
                "json: cannot unmarshal {} into Go struct field {}.model of type string",
                kind(value),
                request(route)
            )),
        });
    };
    if text.is_empty() {
        return Err(no_name(route));
    }
    text.parse().map_err(|_| Failure::bad_request("invalid model name"))
}

fn no_name(route: Route) -> Failure {
    match route {
        Route::Generate | Route::Embed => Failure::new(StatusCode::NOT_FOUND, "no_model", "model '' not found"),
        Route::Chat | Route::Embeddings => Failure::bad_request("model is required"),
    }
}

fn unknown(face: &Face, asked: &Asked, route: Route) -> Failure {
    if let Some(failure) = super::nothing_runs(face) {
        return failure;
    }
    let name = asked.model.as_str().unwrap_or_default();
    let message = match route {
        Route::Generate | Route::Chat => format!("model '{name}' not found"),
        Route::Embed | Route::Embeddings => format!("model {name:?} not found, try pulling it first"),
    };
    Failure::new(StatusCode::NOT_FOUND, "no_model", message)
}

/// As Go calls it.
fn kind(value: &serde_json::Value) -> &'static str {
    match value {
        serde_json::Value::Null => "null",
        serde_json::Value::Bool(_) => "bool",
        serde_json::Value::Number(_) => "number",
        serde_json::Value::String(_) => "string",
        serde_json::Value::Array(_) => "array",
        serde_json::Value::Object(_) => "object",
    }
}

fn request(route: Route) -> &'static str {
    match route {
        Route::Generate => "GenerateRequest",
        Route::Chat => "ChatRequest",
        Route::Embed => "EmbedRequest",
        Route::Embeddings => "EmbeddingRequest",
    }
}

/// The answer with its head, piece by piece.
fn told(face: &Arc<Face>, answer: Inferred) -> Response {
    let status = StatusCode::from_u16(answer.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let kind = answer.content_type().cloned().unwrap_or(super::JSON);
    let node = face.api().name_of(answer.node());
    let (attempts, raised) = (answer.sends(), answer.raised_context());
    let is_lines = kind.as_bytes().starts_with(b"application/x-ndjson");
    let mut response = Response::new(pieces(face.clone(), answer, node.clone(), is_lines));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(NODE, HeaderValue::try_from(node).expect("the name of a node stands in a header"));
    headers.insert(ATTEMPTS, HeaderValue::from(attempts));
    if let Some(context) = raised {
        headers.insert(OPTIONS, HeaderValue::try_from(format!("num_ctx={context}")).expect("it is a number"));
    }
    response
}

/// Where the answer breaks off, a stream of lines says so in its last; anything else breaks off in plain sight, by a
/// connection that ends before its body does.
fn pieces(face: Arc<Face>, answer: Inferred, node: String, is_lines: bool) -> Body {
    let begun = Some((face, answer, node, Bytes::new()));
    let pieces = futures::stream::unfold(begun, move |state| async move {
        let (face, mut answer, node, last) = state?;
        match answer.next().await {
            Some(Ok(piece)) => Some((Ok(piece.clone()), Some((face, answer, node, piece)))),
            None => {
                // An answer in many pieces that are no lines tells nobody what it cost; those are vectors.
                if let Ok(last) = serde_json::from_slice::<seen::Last>(&last) {
                    face.metrics().ended(last.prompt_eval_count, last.eval_count);
                }
                None
            }
            Some(Err(cut)) => {
                tracing::warn!(node, why = %cut.why, "an answer broke off");
                if !is_lines {
                    return Some((Err(cut), None));
                }
                let error = format!("the answer broke off: node `{node}` failed: {}", cut.why);
                let mut line = ::ollama::wire::encode(&::ollama::wire::ErrorBody { error });
                line.push(b'\n');
                Some((Ok(Bytes::from(line)), None))
            }
        }
    });
    Body::from_stream(pieces)
}

impl From<node::InferError> for Failure {
    fn from(error: node::InferError) -> Self {
        use node::InferError as Error;
        let new = |status, code, message: String| Self::new(status, code, message);
        let soon = Duration::from_secs(2);
        match error {
            // It was there when the name was looked up: its nodes are down or draining.
            Error::NoModel(_) | Error::NobodyUp => new(
                StatusCode::SERVICE_UNAVAILABLE,
                "nobody_up",
                "no node that has the model can be asked now".to_owned(),
            )
            .hint("`omx nodes ls` shows which are up")
            .retry_after(soon),
            Error::Busy { retry_after } => {
                let message = "server busy, please try again: all nodes with the model have full queues".to_owned();
                new(StatusCode::SERVICE_UNAVAILABLE, "busy", message).retry_after(retry_after.into())
            }
            Error::Served { status, body, .. } => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
                Self::of_backend(status, &body)
            }
            Error::Deadline => new(StatusCode::GATEWAY_TIMEOUT, "deadline", "the request's time is up".to_owned()),
            Error::Failed { sent, last } => {
                let why = crate::failure::chain(&last);
                let message =
                    format!("the model's nodes did not answer; the request was sent `{sent}` times, at last: {why}");
                new(StatusCode::BAD_GATEWAY, "backend", message)
                    .hint("`omx doctor` looks what is wrong")
                    .retry_after(soon)
            }
        }
    }
}
