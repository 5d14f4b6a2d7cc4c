//! Requests to run a model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::ollama::{Asked, ModelName, seen};
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use http_body_util::StreamBody;
use hyper::body::Frame;
use node::{Infer, Inferred, Route, Tenant, Unanswered, Waited};
use scheduler::Seconds;

use super::work;
use crate::access::Caller;
use crate::face::Face;
use crate::failure::Failure;
use crate::lanes::beside;
use crate::route::Raw;

/// The name of the node whose answer it is.
const NODE: HeaderName = HeaderName::from_static("omx-node");
/// How many nodes the request was sent to, this one included.
const ATTEMPTS: HeaderName = HeaderName::from_static("omx-attempts");
/// How many times its rest was asked of another node. Known at its end only, and so in its trailer.
const CONTINUED: HeaderName = HeaderName::from_static("omx-continued");
/// Where it waited when it came, 1 being next.
const QUEUE_PLACE: HeaderName = HeaderName::from_static("omx-queue-place");
/// And how long that would take, or where it was refused, would have: in seconds.
const EXPECTED_WAIT: HeaderName = HeaderName::from_static("omx-expected-wait");
/// Which of the request's options were changed, and to what.
const OPTIONS: HeaderName = HeaderName::from_static("omx-options");

/// Whatever a node promises: a client that is told to come back tomorrow does not.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

const KINDS: [&str; 2] = ["application/json", "application/x-ndjson"];

/// What is longer, as many vectors are, is told as it comes.
const PIECE_BYTES_MAX: usize = 1 << 20;

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
        let asked = read(body.clone()).await?;
        let name = name(&asked, route)?;
        let inference = self.face.api().inference();
        let model = inference.resolve(&name).await.ok_or_else(|| unknown(&self.face, &asked, route))?;
        let key = match &self.caller {
            Caller::Key(grant) => Some(grant.key.to_string()),
            Caller::Anonymous(_) | Caller::Owner { .. } => None,
        };
        let tenant = key.as_ref().map_or(Tenant::ANONYMOUS, |id| Tenant::of_key(id.as_bytes()));
        let streams = asked.streams.unwrap_or(true) && matches!(route, Route::Generate | Route::Chat);
        let unloads = asked.unloads();
        let chain_key = inference.chain_key().clone();
        let work = beside(body.len(), move || work::of(&asked, route, model, &chain_key, tenant)).await?;
        let asked_at = Instant::now();
        let request = Infer { id: self.id, route, work, streams, body, key, failover: self.failover };
        let answer = match unloads {
            true => inference.unload(request).await,
            false => inference.run(request).await,
        };
        let answer = answer.map_err(|unanswered| told_not(&self.face, unanswered))?;
        // What comes in one piece has no first byte of its own, and a refusal no model's.
        if streams && answer.status() == 200 {
            self.face.metrics().began(route, asked_at.elapsed());
        }
        told(&self.face, answer).await
    }
}

async fn read(body: Bytes) -> Result<Asked, Failure> {
    let read = beside(body.len(), move || Asked::read(&body)).await?;
    read.map_err(|error| Failure::bad_request(error.to_string()))
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

/// The answer with its head: lines as they come, what comes in one piece in one piece.
async fn told(face: &Arc<Face>, mut answer: Inferred) -> Result<Response, Failure> {
    let status = StatusCode::from_u16(answer.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    // A page is none of a model's answers, whoever says so.
    let is_known = |kind: &&HeaderValue| KINDS.iter().any(|known| kind.as_bytes().starts_with(known.as_bytes()));
    let kind = answer.content_type().filter(is_known).cloned().unwrap_or(super::JSON);
    let node = face.api().name_of(answer.node());
    let (attempts, raised, waited) = (answer.sends(), answer.raised_context(), answer.waited());
    let is_lines = kind.as_bytes().starts_with(b"application/x-ndjson");
    let begun = match is_lines {
        true => Vec::new(),
        false => {
            let failed = |failure: Failure| failure.about(NODE, name_of(&node)).about(ATTEMPTS, attempts);
            begun(&mut answer, &node).await.map_err(failed)?
        }
    };
    let mut response = Response::new(match is_lines || begun.len() > PIECE_BYTES_MAX {
        true => pieces(face.clone(), answer, node.clone(), begun, is_lines),
        false => {
            counted(face, &begun);
            Body::from(begun)
        }
    });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(NODE, name_of(&node));
    headers.insert(ATTEMPTS, HeaderValue::from(attempts));
    if is_lines {
        headers.insert(header::TRAILER, HeaderValue::from_name(CONTINUED));
    }
    if let Some(context) = raised {
        headers.insert(OPTIONS, HeaderValue::try_from(format!("num_ctx={context}")).expect("it is a number"));
    }
    if let Some(Waited { place, expected }) = waited {
        headers.insert(QUEUE_PLACE, HeaderValue::from(place));
        headers.insert(EXPECTED_WAIT, seconds(expected));
    }
    Ok(response)
}

/// A failure with the way the request went, as an answer has it.
fn told_not(face: &Face, unanswered: Unanswered) -> Failure {
    let Unanswered { error, node, sends } = unanswered;
    let failure = Failure::from(error).about(ATTEMPTS, sends);
    match node {
        Some(node) => failure.about(NODE, name_of(&face.api().name_of(node))),
        None => failure,
    }
}

fn name_of(node: &str) -> HeaderValue {
    HeaderValue::try_from(node).expect("the name of a node stands in a header")
}

fn seconds(span: Seconds) -> HeaderValue {
    HeaderValue::try_from(format!("{:.3}", span.get())).expect("it is a number")
}

/// An answer in one piece, or what has come of it when it is longer than that.
async fn begun(answer: &mut Inferred, node: &str) -> Result<Vec<u8>, Failure> {
    let mut begun = Vec::new();
    while begun.len() <= PIECE_BYTES_MAX {
        match answer.next().await {
            Some(Ok(piece)) => begun.extend_from_slice(&piece),
            Some(Err(cut)) => {
                tracing::warn!(node, why = %cut.why, "an answer broke off");
                return Err(Failure::new(
                    StatusCode::BAD_GATEWAY,
                    "backend",
                    format!("the answer of node `{node}` broke off"),
                ));
            }
            None => break,
        }
    }
    Ok(begun)
}

/// An answer is whole: what it cost stands at its end.
fn counted(face: &Face, last: &[u8]) {
    if let Ok(last) = serde_json::from_slice::<seen::Last>(last) {
        face.metrics().ended(last.prompt_eval_count, last.eval_count);
    }
}

/// Where the answer breaks off, a stream of lines says so in its last; anything else breaks off in plain sight, by a
/// connection that ends before its body does.
fn pieces(face: Arc<Face>, answer: Inferred, node: String, begun: Vec<u8>, is_lines: bool) -> Body {
    let begun = Some((face, answer, node, Bytes::from(begun), Bytes::new()));
    let pieces = futures::stream::unfold(begun, move |state| async move {
        let (face, mut answer, node, begun, last) = state?;
        if !begun.is_empty() {
            return Some((Ok(Frame::data(begun)), Some((face, answer, node, Bytes::new(), last))));
        }
        match answer.next().await {
            Some(Ok(piece)) => Some((Ok(Frame::data(piece.clone())), Some((face, answer, node, begun, piece)))),
            None => {
                counted(&face, &last);
                is_lines.then(|| (Ok(Frame::trailers(continued(&answer))), None))
            }
            Some(Err(cut)) => {
                let node = face.api().name_of(cut.node);
                let bound = cut.bound.as_ref().map(|bound| format!(", and nobody else goes on with it: {bound}"));
                tracing::warn!(%node, why = crate::failure::chain(&cut), "an answer broke off");
                if !is_lines {
                    return Some((Err(cut), None));
                }
                let error =
                    format!("the answer broke off: node `{node}` failed: {}{}", cut.why, bound.unwrap_or_default());
                let mut line = ::ollama::wire::encode(&::ollama::wire::ErrorBody { error });
                line.push(b'\n');
                Some((Ok(Frame::data(Bytes::from(line))), None))
            }
        }
    });
    Body::new(StreamBody::new(pieces))
}

fn continued(answer: &Inferred) -> HeaderMap {
    HeaderMap::from_iter([(CONTINUED, HeaderValue::from(answer.seams()))])
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
                new(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
                    .about(EXPECTED_WAIT, seconds(retry_after))
                    .retry_after(Duration::from(retry_after).clamp(Duration::from_secs(1), RETRY_AFTER_MAX))
            }
            Error::Served { status, body, .. } => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
                Self::of_backend(status, &body)
            }
            Error::Deadline => new(StatusCode::GATEWAY_TIMEOUT, "deadline", "the request's time is up".to_owned()),
            Error::Failed { sent, last } => {
                tracing::warn!(sent, why = crate::failure::chain(&last), "a request came to nothing");
                let message = "the model's nodes did not answer".to_owned();
                new(StatusCode::BAD_GATEWAY, "backend", message)
                    .hint("`omx trace` with the request's id tells why")
                    .retry_after(soon)
            }
        }
    }
}
