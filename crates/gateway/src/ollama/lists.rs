//! What the mesh has: the lists of all nodes as one, and what one node shows of a model.

use std::collections::HashSet;

use ::ollama::{Asked, ModelName, wire};
use axum::http::StatusCode;
use axum::response::Response;
use node::{List, NotShown};
use serde_json::{Map, Value};

use super::json;
use crate::failure::Failure;
use crate::route::Raw;

/// Of a plain build, where no backend has said one.
const NO_VERSION: &str = "0.0.0";

pub(crate) async fn version(raw: Raw) -> Result<Response, Failure> {
    let version = raw.face.api().inference().version().unwrap_or_else(|| NO_VERSION.to_owned());
    Ok(json(StatusCode::OK, wire::encode(&wire::Version { version })))
}

pub(crate) async fn tags(raw: Raw) -> Result<Response, Failure> {
    Ok(json(StatusCode::OK, raw.tags().await))
}

pub(crate) async fn loaded(raw: Raw) -> Result<Response, Failure> {
    Ok(json(StatusCode::OK, raw.list(List::Loaded, "expires_at").await))
}

pub(crate) async fn show(raw: Raw) -> Result<Response, Failure> {
    let body = raw.body.clone();
    let (status, body) = raw.shown(body).await?;
    Ok(json(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY), body))
}

impl Raw {
    pub(crate) async fn tags(&self) -> Vec<u8> {
        self.list(List::Tags, "modified_at").await
    }

    /// Status and body of what a node says of the model the body names.
    pub(crate) async fn shown(&self, body: axum::body::Bytes) -> Result<(u16, axum::body::Bytes), Failure> {
        let asked = Asked::read(&body).map_err(|error| Failure::bad_request(error.to_string()))?;
        let name = asked.model.as_str().unwrap_or_default();
        if name.is_empty() {
            return Err(Failure::bad_request("model is required"));
        }
        let parsed: ModelName = name.parse().map_err(|_| Failure::bad_request("invalid model name"))?;
        let not_there = || {
            let not_found = || Failure::new(StatusCode::NOT_FOUND, "no_model", format!("model '{name}' not found"));
            super::nothing_runs(&self.face).unwrap_or_else(not_found)
        };
        let inference = self.face.api().inference();
        let model = inference.resolve(&parsed).await.ok_or_else(not_there)?;
        inference.show(model, body).await.map_err(|error| {
            let (status, message) = match &error {
                NotShown::Nobody => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
                NotShown::TooLong(_) => (StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
                NotShown::Failed(why) => {
                    tracing::warn!(why, "no node could show a model");
                    (StatusCode::BAD_GATEWAY, "the nodes that have the model did not answer".to_owned())
                }
            };
            Failure::new(status, "backend", message)
        })
    }

    /// The same model on several nodes is one; one name for two models stands there twice, with its digests. What `time`
    /// puts last comes first, as in Ollama.
    async fn list(&self, list: List, time: &str) -> Vec<u8> {
        let lists = self.face.api().inference().lists(list).await;
        let of_one = |body: &[u8]| match serde_json::from_slice::<Map<String, Value>>(body).ok()?.remove("models")? {
            Value::Array(models) => Some(models),
            _ => None,
        };
        let mut seen = HashSet::new();
        let mut models: Vec<Value> = lists.iter().filter_map(|(_, body)| of_one(body)).flatten().collect();
        models.sort_by_cached_key(|model| {
            let text = model[time].as_str().unwrap_or_default();
            std::cmp::Reverse(text.parse::<jiff::Timestamp>().unwrap_or(jiff::Timestamp::MIN))
        });
        models.retain(|model| {
            let text = |field: &str| model[field].as_str().unwrap_or_default().to_lowercase();
            seen.insert((text("name"), text("digest")))
        });
        wire::encode(&serde_json::json!({ "models": models }))
    }
}
