//! Ollama's verbs for models, on the mesh: what is pulled is there for all, what is deleted is gone for all.

use std::sync::Arc;

use ::ollama::client::Progress;
use ::ollama::wire::{CopyRequest, DeleteRequest, PullRequest};
use ::ollama::{ModelName, wire};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use node::{Actor, ModelError, ModelsError, UpstreamError, Verb, chain};
use serde_json::{Value, json as value};

use super::json;
use crate::admin::models::LINES;
use crate::failure::Failure;
use crate::route::Raw;
use crate::work::{self, News};

/// A last line that is none of these tells what went wrong.
const SUCCESS: &str = "success";

pub(crate) async fn pull(raw: Raw) -> Result<Response, Failure> {
    let asked: PullRequest = read(&raw)?;
    let name: ModelName = asked.model().parse().map_err(|_| Failure::bad_request("invalid model name"))?;
    let (api, by) = (raw.face.api().clone(), raw.actor());
    let news = Arc::new(News::default());
    let telling = news.clone();
    let doing = async move {
        let tell = |progress: Progress| telling.tell(&progress.status.clone(), line(&progress));
        let pulled = api.models().pull(by, &name, &api.registries(), &tell).await;
        pulled.map(drop).inspect_err(|error| tracing::info!(%name, error = %chain(error), "a pull failed"))
    };
    let last = |pulled: &Result<(), ModelError>| match pulled {
        Ok(()) => value!({ "status": SUCCESS }),
        Err(error) => value!({ "error": said(error) }),
    };
    if asked.stream() {
        let doing = async move { last(&doing.await) };
        let mut response = Response::new(work::body(news, Box::pin(doing), |line: &Value| wire::encode(line)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(LINES));
        return Ok(response);
    }
    let pulled = doing.await;
    let status = pulled.as_ref().err().map_or(StatusCode::OK, status);
    Ok(json(status, wire::encode(&last(&pulled))))
}

/// Where Ollama has no word of its own for what went wrong, it says 500.
fn status(error: &ModelError) -> StatusCode {
    match error {
        ModelError::Pinned(_) => StatusCode::CONFLICT,
        ModelError::Worker => StatusCode::FORBIDDEN,
        ModelError::Upstream { source, .. } if matches!(**source, UpstreamError::NotAllowed(_)) => {
            StatusCode::FORBIDDEN
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

pub(crate) async fn delete(raw: Raw) -> Result<Response, Failure> {
    let asked: DeleteRequest = read(&raw)?;
    let text = asked.model();
    let name: ModelName = text.parse().map_err(|_| Failure::bad_request(format!("name \"{text}\" is invalid")))?;
    let not_found = || Failure::new(StatusCode::NOT_FOUND, "no_model", format!("model '{text}' not found"));
    let api = raw.face.api();
    match api.model_info(&name) {
        Some(known) => drop(api.change_models(raw.actor(), Verb::DeleteTag { name: known.name }).await?),
        None if api.models().delete_here(&name).await.map_err(ModelsError::from)? => {}
        None => return Err(not_found()),
    }
    Ok(empty())
}

pub(crate) async fn copy(raw: Raw) -> Result<Response, Failure> {
    let CopyRequest { source, destination } = read(&raw)?;
    let parse = |what: &str, text: &str| {
        text.parse::<ModelName>().map_err(|_| Failure::bad_request(format!("{what} \"{text}\" is invalid")))
    };
    let (from, to) = (parse("source", &source)?, parse("destination", &destination)?);
    let not_found = || Failure::new(StatusCode::NOT_FOUND, "no_model", format!("model \"{source}\" not found"));
    let api = raw.face.api();
    match api.model_info(&from) {
        Some(known) => drop(api.copy_model(raw.actor(), known.digest, to).await?),
        None if api.models().copy_here(&from, &to).await.map_err(ModelsError::from)? => {}
        None => return Err(not_found()),
    }
    Ok(empty())
}

impl Raw {
    /// On whose account the mesh is changed. Whoever gets this far without a key may.
    fn actor(&self) -> Actor {
        let api = self.face.api();
        self.caller.actor(api).unwrap_or_else(|| api.anonymous_actor())
    }
}

fn read<T: serde::de::DeserializeOwned>(raw: &Raw) -> Result<T, Failure> {
    if raw.body.trim_ascii().is_empty() {
        return Err(Failure::bad_request("missing request body"));
    }
    wire::decode(&raw.body).map_err(|error| Failure::bad_request(error.to_string()))
}

/// As Ollama writes it: what is zero is left out.
fn line(progress: &Progress) -> Value {
    let mut line = value!({ "status": progress.status });
    if !progress.digest.is_empty() {
        line["digest"] = progress.digest.clone().into();
        line["total"] = progress.total.into();
    }
    if progress.completed > 0 {
        line["completed"] = progress.completed.into();
    }
    line
}

/// In Ollama's words where it has some.
fn said(error: &ModelError) -> String {
    match error {
        ModelError::Upstream { source, .. } if matches!(**source, UpstreamError::NotFound) => {
            "pull model manifest: file does not exist".to_owned()
        }
        error => chain(error),
    }
}

fn empty() -> Response {
    Response::new(axum::body::Body::empty())
}
