//! One route as one value: what it is called, who may use it, what it takes and gives. Server, access checks and
//! OpenAPI document are all made from these, so that none of them can say something else.

use std::fmt;
use std::future::{Future, ready};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Query, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use node::{Actor, Api, Consistency, Failover};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use types::Scope;

use crate::access::{Caller, Denied, Need, Peer};
use crate::face::Face;
use crate::failure::Failure;
use crate::quota::Quota;
use crate::wire;
use types::RequestId;

/// Settings and labels fit many times over.
const BODY_MAX: usize = 64 << 10;
/// A few pictures and a long conversation.
const OLLAMA_BODY_MAX: usize = 32 << 20;
/// A model that has to be loaded first, and an answer that is not streamed, take minutes.
pub(crate) const GENERATE_WITHIN: Duration = Duration::from_secs(3_600);
/// A fresh read looks for a leader for ten seconds.
const READ_WITHIN: Duration = Duration::from_secs(15);
/// A change finds its node, asks the leader and waits to see it done, each with that patience.
const CHANGE_WITHIN: Duration = Duration::from_secs(35);

pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) need: Need,
    pub(crate) about: &'static str,
    pub(crate) body_max: usize,
    /// To the beginning of the answer.
    pub(crate) deadline: Duration,
    pub(crate) query: Option<Shape>,
    pub(crate) body: Option<Shape>,
    pub(crate) answer: Answers,
    pub(crate) success: StatusCode,
    errors: Errors,
    /// Whatever was sent along makes no difference.
    passes_body_over: bool,
    run: Box<Run>,
}

/// A type, as its schema.
pub(crate) type Shape = fn(&mut SchemaGenerator) -> Schema;

#[derive(Clone, Copy)]
pub(crate) enum Answers {
    Json(Shape),
    /// Something else, of this media type.
    Other(&'static str),
}

type Run = dyn Fn(Asked) -> BoxFuture<'static, Result<Response, Failure>> + Send + Sync;

/// The route a response came from, for the metrics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matched(pub(crate) &'static str);

/// How a route says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errors {
    Ours,
    Ollamas,
    OpenAis,
}

impl Errors {
    /// Of whoever asks for this path, whether there is a route or not.
    pub(crate) fn at(path: &str) -> Self {
        match path {
            "/" => Self::Ollamas,
            _ if path.starts_with("/api/") => Self::Ollamas,
            _ if path.starts_with("/v1/") => Self::OpenAis,
            _ => Self::Ours,
        }
    }

    pub(crate) fn tell(self, failure: Failure) -> Response {
        match self {
            Self::Ours => failure.into_response(),
            Self::Ollamas => failure.into_ollamas(),
            Self::OpenAis => failure.into_openais(),
        }
    }
}

/// A request as it came, whole.
pub(crate) struct Raw {
    pub(crate) face: Arc<Face>,
    /// What it is called in traces and logs.
    pub(crate) id: RequestId,
    pub(crate) caller: Caller,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) body: Bytes,
    pub(crate) path: Vec<(String, String)>,
    pub(crate) failover: Failover,
}

/// What becomes of an answer whose node dies.
const FAILOVER: &str = "omx-failover";

fn failover(headers: &HeaderMap) -> Result<Failover, Failure> {
    match headers.get(FAILOVER).map(HeaderValue::as_bytes) {
        None => Ok(Failover::default()),
        Some(b"continue") => Ok(Failover::Continue),
        Some(b"restart") => Ok(Failover::Restart),
        Some(b"error") => Ok(Failover::Error),
        Some(_) => Err(Failure::bad_request("the header `omx-failover` is `continue`, `restart` or `error`")),
    }
}

/// A request whose sender may ask it.
struct Asked {
    face: Arc<Face>,
    id: RequestId,
    peer: Peer,
    need: Need,
    caller: Caller,
    path: Vec<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

/// The same for a route's function, with what was sent along understood.
pub(crate) struct Ask<I> {
    pub(crate) input: I,
    pub(crate) face: Arc<Face>,
    pub(crate) caller: Caller,
    pub(crate) headers: HeaderMap,
    peer: Peer,
    need: Need,
    path: Vec<(String, String)>,
}

impl<I> Ask<I> {
    pub(crate) fn api(&self) -> &Api {
        self.face.api()
    }

    pub(crate) fn actor(&self) -> Result<Actor, Failure> {
        let nobody = || Denied::NoKey(Need::Scope(Scope::Admin)).into();
        self.caller.actor(self.api()).ok_or_else(nobody)
    }

    /// Whether it would be let in now. What goes on for long asks again: a key may have been revoked meanwhile.
    pub(crate) fn may_still(&self) -> bool {
        let caller = self.face.caller(self.peer, &self.headers);
        caller.is_ok_and(|caller| caller.may(self.need).is_ok())
    }

    /// A part of the path, by its name in the route.
    pub(crate) fn part(&self, name: &str) -> &str {
        let found = self.path.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).expect("a route's function asks for parts of the route's path")
    }
}

impl Ask<wire::Freshness> {
    pub(crate) fn consistency(&self) -> Result<Consistency, Failure> {
        match (self.input.consistency, self.input.at_least) {
            (None | Some(wire::Consistency::Linearizable), None) => Ok(Consistency::Linearizable),
            (Some(wire::Consistency::Local), None) => Ok(Consistency::Local),
            (None, Some(index)) => Ok(Consistency::AtLeast(index)),
            (Some(_), Some(_)) => Err(Failure::bad_request("`consistency` and `at_least` exclude each other")),
        }
    }
}

impl Route {
    /// A question, with its parameters in the query.
    pub(crate) fn read<Q, A, F>(path: &'static str, need: Need, about: &'static str, run: fn(Ask<Q>) -> F) -> Self
    where
        Q: DeserializeOwned + JsonSchema + Send + 'static,
        A: Serialize + JsonSchema,
        F: Future<Output = Result<A, Failure>> + Send + 'static,
    {
        let run = move |asked: Asked| -> BoxFuture<'static, _> {
            Box::pin(async move { Ok(Json(run(asked.with_query()?).await?).into_response()) })
        };
        Self {
            method: Method::GET,
            path,
            need,
            about,
            body_max: 0,
            deadline: READ_WITHIN,
            query: Some(SchemaGenerator::subschema_for::<Q>),
            body: None,
            answer: Answers::Json(SchemaGenerator::subschema_for::<A>),
            success: StatusCode::OK,
            errors: Errors::Ours,
            passes_body_over: false,
            run: Box::new(run),
        }
    }

    /// A question whose answer is no JSON, or takes its time.
    pub(crate) fn other<F>(
        path: &'static str,
        need: Need,
        about: &'static str,
        answer: Answers,
        run: fn(Ask<wire::Nothing>) -> F,
    ) -> Self
    where
        F: Future<Output = Result<Response, Failure>> + Send + 'static,
    {
        let run =
            move |asked: Asked| -> BoxFuture<'static, _> { Box::pin(async move { run(asked.with_query()?).await }) };
        Self {
            method: Method::GET,
            path,
            need,
            about,
            body_max: 0,
            deadline: READ_WITHIN,
            query: Some(SchemaGenerator::subschema_for::<wire::Nothing>),
            body: None,
            answer,
            success: StatusCode::OK,
            errors: Errors::Ours,
            passes_body_over: false,
            run: Box::new(run),
        }
    }

    /// One of Ollama's, whose body is understood elsewhere.
    pub(crate) fn ollamas<F>(
        method: Method,
        path: &'static str,
        need: Need,
        about: &'static str,
        run: fn(Raw) -> F,
    ) -> Self
    where
        F: Future<Output = Result<Response, Failure>> + Send + 'static,
    {
        let of = method.clone();
        let run = move |asked: Asked| -> BoxFuture<'static, _> {
            let Asked { face, id, caller, uri, headers, body, path, .. } = asked;
            let failover = match failover(&headers) {
                Ok(failover) => failover,
                Err(failure) => return Box::pin(ready(Err(failure))),
            };
            Box::pin(run(Raw { face, id, caller, method: of.clone(), uri, body, path, failover }))
        };
        Self {
            body_max: if method == Method::GET { 0 } else { OLLAMA_BODY_MAX },
            method,
            path,
            need,
            about,
            deadline: GENERATE_WITHIN,
            query: None,
            body: None,
            answer: Answers::Other("application/x-ndjson"),
            success: StatusCode::OK,
            errors: Errors::Ollamas,
            passes_body_over: false,
            run: Box::new(run),
        }
    }

    /// One of OpenAI's, likewise.
    pub(crate) fn openais<F>(
        method: Method,
        path: &'static str,
        need: Need,
        about: &'static str,
        run: fn(Raw) -> F,
    ) -> Self
    where
        F: Future<Output = Result<Response, Failure>> + Send + 'static,
    {
        let route = Self::ollamas(method, path, need, about, run);
        Self { answer: Answers::Other("application/json"), errors: Errors::OpenAis, ..route }
    }

    /// A change, with what it takes in the body. No body is an empty one.
    pub(crate) fn change<B, A, F>(
        method: Method,
        path: &'static str,
        need: Need,
        about: &'static str,
        run: fn(Ask<B>) -> F,
    ) -> Self
    where
        B: DeserializeOwned + JsonSchema + Send + 'static,
        A: Serialize + JsonSchema,
        F: Future<Output = Result<A, Failure>> + Send + 'static,
    {
        let run = move |asked: Asked| -> BoxFuture<'static, _> {
            Box::pin(async move { Ok(Json(run(asked.with_body()?).await?).into_response()) })
        };
        Self {
            method,
            path,
            need,
            about,
            body_max: BODY_MAX,
            deadline: CHANGE_WITHIN,
            query: None,
            body: Some(SchemaGenerator::subschema_for::<B>),
            answer: Answers::Json(SchemaGenerator::subschema_for::<A>),
            success: StatusCode::OK,
            errors: Errors::Ours,
            passes_body_over: false,
            run: Box::new(run),
        }
    }

    /// The answer describes what did not exist before.
    /// A change that takes its time and tells of it line by line.
    pub(crate) fn work<B, F>(path: &'static str, need: Need, about: &'static str, run: fn(Ask<B>) -> F) -> Self
    where
        B: DeserializeOwned + JsonSchema + Send + 'static,
        F: Future<Output = Result<Response, Failure>> + Send + 'static,
    {
        let run =
            move |asked: Asked| -> BoxFuture<'static, _> { Box::pin(async move { run(asked.with_body()?).await }) };
        Self {
            method: Method::POST,
            path,
            need,
            about,
            body_max: BODY_MAX,
            deadline: CHANGE_WITHIN,
            query: None,
            body: Some(SchemaGenerator::subschema_for::<B>),
            answer: Answers::Other("application/x-ndjson"),
            success: StatusCode::OK,
            errors: Errors::Ours,
            passes_body_over: false,
            run: Box::new(run),
        }
    }

    pub(crate) fn creates(self) -> Self {
        Self { success: StatusCode::CREATED, ..self }
    }

    /// For a route that does nothing with what it is sent.
    pub(crate) fn passes_body_over(self) -> Self {
        Self { passes_body_over: true, ..self }
    }

    pub(crate) fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The names in braces.
    pub(crate) fn path_parts(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }

    pub(crate) async fn serve(&self, face: Arc<Face>, quota: &Quota, request: Request<Body>) -> Response {
        let mut response = match self.try_serve(face, quota, request).await {
            Ok(mut response) => {
                if response.status() == StatusCode::OK {
                    *response.status_mut() = self.success;
                }
                response
            }
            Err(failure) => self.errors.tell(failure),
        };
        response.extensions_mut().insert(Matched(self.path));
        response
    }

    async fn try_serve(&self, face: Arc<Face>, quota: &Quota, request: Request<Body>) -> Result<Response, Failure> {
        let peer = *request.extensions().get::<Peer>().ok_or_else(|| Failure::internal("a request from nowhere"))?;
        let id = request.extensions().get().copied().unwrap_or_else(RequestId::random);
        let caller = match face.caller(peer, request.headers()) {
            // A probe answers whoever asks, but with a wrong key it tells no more than without.
            Err(_) if self.need == Need::Nothing => Caller::Anonymous(types::Scopes::NONE),
            caller => caller?,
        };
        caller.may(self.need)?;
        let place = match &caller {
            Caller::Key(grant) if self.need == Need::Scope(Scope::Infer) => quota.admit(grant, Instant::now())?,
            _ => None,
        };
        let (mut parts, body) = request.into_parts();
        let body = match self.passes_body_over {
            true => Bytes::new(),
            false => self.receive(body, face.limits().body).await?,
        };
        let path = path_parts(&mut parts).await?;
        let (uri, headers) = (parts.uri, parts.headers);
        let asked = Asked { face, id, peer, need: self.need, caller, path, uri, headers, body };
        match tokio::time::timeout(self.deadline, (self.run)(asked)).await {
            Ok(answered) => answered.map(|answer| match place {
                Some(place) => place.hold(answer),
                None => answer,
            }),
            Err(_) if self.method == Method::GET || self.errors != Errors::Ours => Err(Failure::late(self.deadline)),
            Err(_) => Err(Failure::unknown(self.deadline)),
        }
    }

    async fn receive(&self, body: Body, within: Duration) -> Result<Bytes, Failure> {
        let whole = Limited::new(body, self.body_max).collect();
        match tokio::time::timeout(within, whole).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Failure::too_large(self.body_max)),
            Ok(Err(_)) => Err(Failure::broken_body()),
            Err(_) => Err(Failure::slow_body(within)),
        }
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

async fn path_parts(parts: &mut Parts) -> Result<Vec<(String, String)>, Failure> {
    let raw = RawPathParams::from_request_parts(parts, &()).await;
    let raw = raw.map_err(|_| Failure::bad_request("the path is not UTF-8"))?;
    Ok(raw.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

impl Asked {
    fn with_query<Q: DeserializeOwned>(self) -> Result<Ask<Q>, Failure> {
        let Query(input) = Query::try_from_uri(&self.uri).map_err(|error| Failure::bad_request(error.body_text()))?;
        Ok(self.with(input))
    }

    fn with_body<B: DeserializeOwned>(self) -> Result<Ask<B>, Failure> {
        let body: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        let wrong = |error| Failure::bad_request(format!("the body is not what this route takes: {error}"));
        let input = serde_json::from_slice(body).map_err(wrong)?;
        Ok(self.with(input))
    }

    fn with<I>(self, input: I) -> Ask<I> {
        let Self { face, peer, need, caller, path, headers, .. } = self;
        Ask { input, face, caller, headers, peer, need, path }
    }
}
