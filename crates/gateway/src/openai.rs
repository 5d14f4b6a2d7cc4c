//! `/v1/*`: OpenAI's API, asked of the mesh in Ollama's terms and told in OpenAI's.

use std::convert::Infallible;
use std::time::{SystemTime, UNIX_EPOCH};

use ::openai::{Error, Ids, Stream, chat, completions, embeddings, models};
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use node::Route;

use crate::failure::Failure;
use crate::lanes::beside;
use crate::route::Raw;

/// An answer in one piece: some thousand vectors of some thousand numbers.
const ANSWER_MAX: usize = 256 << 20;

pub(crate) async fn chat(raw: Raw) -> Result<Response, Failure> {
    told(async {
        let (request, native) = read(&raw, chat::Request::read, chat::Request::native).await?;
        let (about, answer) = ask(&raw, Route::Chat, native).await?;
        match request.streams() {
            true => Ok(about.on(streamed(answer, request.stream(&ids())))),
            false => about.retold(collected(answer).await, |native| request.whole(native, &ids())),
        }
    })
    .await
}

pub(crate) async fn completions(raw: Raw) -> Result<Response, Failure> {
    told(async {
        let (request, native) = read(&raw, completions::Request::read, completions::Request::native).await?;
        let (about, answer) = ask(&raw, Route::Generate, native).await?;
        match request.streams() {
            true => Ok(about.on(streamed(answer, request.stream(&ids())))),
            false => about.retold(collected(answer).await, |native| request.whole(native, &ids())),
        }
    })
    .await
}

pub(crate) async fn embeddings(raw: Raw) -> Result<Response, Failure> {
    told(async {
        let (request, native) = read(&raw, embeddings::Request::read, embeddings::Request::native).await?;
        let (about, answer) = ask(&raw, Route::Embed, native).await?;
        about.retold(collected(answer).await, |native| request.whole(native))
    })
    .await
}

pub(crate) async fn models(raw: Raw) -> Result<Response, Failure> {
    told(async { Ok(whole(models::list(&raw.tags().await)?)) }).await
}

pub(crate) async fn model(raw: Raw) -> Result<Response, Failure> {
    let model = raw.path.first().map_or("", |(_, model)| model.as_str());
    told(async {
        let (status, body) = raw.shown(models::show(model).into()).await?;
        match status {
            200..300 => Ok(whole(models::one(&body, model)?)),
            _ => Err(Error::of_native(status, &body).into()),
        }
    })
    .await
}

/// Why there is no answer: this node's reasons, or those of whom it asked.
enum Not {
    Ours(Failure),
    /// With what the head of their answer said, where it had one.
    Theirs(Error, About),
}

impl From<Failure> for Not {
    fn from(failure: Failure) -> Self {
        Self::Ours(failure)
    }
}

impl From<Error> for Not {
    fn from(error: Error) -> Self {
        Self::Theirs(error, About::default())
    }
}

async fn told(answer: impl Future<Output = Result<Response, Not>>) -> Result<Response, Failure> {
    match answer.await {
        Ok(answer) => Ok(answer),
        Err(Not::Ours(failure)) => Err(failure),
        Err(Not::Theirs(error, about)) => {
            let mut response = match error {
                Error::Request(_) => refusal(error.body()),
                _ => whole(error.line()),
            };
            *response.status_mut() = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_GATEWAY);
            Ok(about.on(response))
        }
    }
}

/// What an answer's head says of its way here.
#[derive(Default)]
struct About(Box<HeaderMap>);

impl About {
    fn on(self, mut response: Response) -> Response {
        response.headers_mut().extend(*self.0);
        response
    }

    /// The whole answer in OpenAI's terms; one that broke off came its way, too.
    fn retold(
        self,
        native: Result<Bytes, Not>,
        retell: impl FnOnce(&[u8]) -> Result<Vec<u8>, Error>,
    ) -> Result<Response, Not> {
        match native.and_then(|native| Ok(retell(&native)?)) {
            Ok(body) => Ok(self.on(whole(body))),
            Err(Not::Theirs(error, _)) => Err(Not::Theirs(error, self)),
            Err(Not::Ours(failure)) => Err(Not::Ours(failure)),
        }
    }
}

/// The request, and what to ask the mesh for it.
async fn read<R: Send + 'static>(
    raw: &Raw,
    read: fn(&[u8]) -> Result<R, Error>,
    native: fn(&R) -> Vec<u8>,
) -> Result<(R, Vec<u8>), Not> {
    let body = raw.body.clone();
    let read = move || {
        let request = read(&body)?;
        let native = native(&request);
        Ok((request, native))
    };
    beside(raw.body.len(), read).await?
}

/// A native answer that has begun well.
async fn ask(raw: &Raw, route: Route, body: Vec<u8>) -> Result<(About, Body), Not> {
    let (mut head, body) = raw.infer_native(route, body.into()).await?.into_parts();
    // The type and length of the native body are not those of its translation, which has no trailer.
    head.headers.remove(header::CONTENT_TYPE);
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.remove(header::TRAILER);
    let about = About(Box::new(head.headers));
    match head.status.is_success() {
        true => Ok((about, body)),
        false => Err(Not::Theirs(Error::of_native(head.status.as_u16(), &collected(body).await?), about)),
    }
}

async fn collected(body: Body) -> Result<Bytes, Not> {
    match Limited::new(body, ANSWER_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("the answer is larger than {ANSWER_MAX} bytes");
            Err(Failure::new(StatusCode::BAD_GATEWAY, "backend", message).into())
        }
        Err(_) => Err(Error::Cut.into()),
    }
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Of a request that is not asked of anyone; Ollama tells it otherwise than what it has asked itself.
fn refusal(body: Vec<u8>) -> Response {
    let mut response = whole(body);
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn whole(body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// Tells a native stream as it comes. Where that breaks off, the client is told so.
fn streamed(native: Body, stream: Stream) -> Response {
    let events = futures::stream::unfold(Some((native, stream)), |state| async {
        let (mut native, mut stream) = state?;
        loop {
            let data = match native.frame().await {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(_)) | None => {
                    let last = stream.end();
                    return (!last.is_empty()).then(|| (Ok::<_, Infallible>(last), None));
                }
            };
            let events = stream.feed(&data);
            if !events.is_empty() {
                return Some((Ok(events), Some((native, stream))));
            }
        }
    });
    let mut response = Response::new(Body::from_stream(events));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

fn ids() -> Ids {
    let mut random = [0; 2];
    getrandom::fill(&mut random).expect("the operating system has a random source");
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // As Ollama numbers them.
    let id = (u16::from_ne_bytes(random) % 999).to_string();
    Ids { id, created: i64::try_from(created).unwrap_or_default() }
}
