//! Vectors for texts.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ollama::wire::{EmbedRequest, EmbedResponse, EmbeddingsRequest, EmbeddingsResponse, KeepAlive, decode};
use serde_json::{Map, Value};

use super::Server;
use super::failure::Failure;
use super::infer::{self, NotThere};
use super::known::Asked;
use super::manage::no_cloud;
use super::reply::{self, Reply};
use crate::library::Lease;
use crate::runner::{EmbedJob, Overlong};

pub(super) async fn embed(server: Arc<Server>, body: Bytes) -> Result<Reply, Failure> {
    let began = Instant::now();
    let request: EmbedRequest = decode(&body)?;
    let nothing = Failure::not_found("model '' not found");
    let inputs = || request.inputs().map_err(|error| Failure::bad_request(error.to_string()));
    // The name is looked at first, the model only after the input: so Ollama does.
    let name = read_name(&request.model, nothing)?;
    let inputs = inputs()?;
    let lease = acquire(&server, name, &request.model, &request.options, request.keep_alive).await?;
    let load_duration = began.elapsed();
    if inputs.is_empty() {
        return Ok(reply::json(&EmbedResponse {
            model: request.model,
            embeddings: Vec::new(),
            total_duration: std::time::Duration::ZERO,
            load_duration: std::time::Duration::ZERO,
            prompt_eval_count: None,
        }));
    }
    let overlong = if request.truncate.unwrap_or(true) { Overlong::Cut } else { Overlong::Refuse };
    // Whatever fails here Ollama takes for the request's fault.
    let failed = |error: crate::Error| Failure::bad_request(error.to_string());
    let embedded = lease.embed(EmbedJob { inputs, overlong }).await.map_err(failed)?;
    let mut embeddings = embedded.vectors;
    if embeddings.iter().flatten().any(|number| !number.is_finite()) {
        return Err(Failure::bad_request("embedding contains NaN or Inf values"));
    }
    if let Ok(dimensions @ 1..) = usize::try_from(request.dimensions) {
        embeddings.iter_mut().for_each(|vector| shorten(vector, dimensions));
    }
    Ok(reply::json(&EmbedResponse {
        model: request.model,
        embeddings,
        total_duration: began.elapsed(),
        load_duration,
        prompt_eval_count: Some(embedded.tokens),
    }))
}

pub(super) async fn embeddings(server: Arc<Server>, body: Bytes) -> Result<Reply, Failure> {
    let request: EmbeddingsRequest = decode(&body)?;
    let name = read_name(&request.model, Failure::bad_request("model is required"))?;
    let lease = acquire(&server, name, &request.model, &request.options, request.keep_alive).await?;
    let mut embedding = Vec::new();
    if !request.prompt.is_empty() {
        let job = EmbedJob { inputs: vec![request.prompt], overlong: Overlong::Cut };
        let embedded = lease.embed(job).await.map_err(|error| Failure::here(error.to_string()))?;
        embedding = embedded.vectors.into_iter().next().unwrap_or_default();
    }
    Ok(reply::json(&EmbeddingsResponse { embedding }))
}

fn read_name(text: &str, nothing: Failure) -> Result<ollama::ModelName, Failure> {
    match Asked::read(text) {
        Asked::Named(name) => Ok(name),
        Asked::Nothing => Err(nothing),
        Asked::Invalid => Err(Failure::bad_request("invalid model name")),
        Asked::Cloud => Err(no_cloud("remote model is unavailable")),
    }
}

async fn acquire(
    server: &Arc<Server>,
    name: ollama::ModelName,
    asked: &str,
    options: &Map<String, Value>,
    keep_alive: Option<KeepAlive>,
) -> Result<Lease, Failure> {
    let not_there = NotThere(format!("model {asked:?} not found, try pulling it first"));
    let found = infer::find(server, name, not_there).await?;
    let options = found.options(options)?;
    infer::load(server, &found, &options, keep_alive).await
}

/// Cuts a vector and makes it as long as one again.
fn shorten(vector: &mut Vec<f32>, dimensions: usize) {
    if dimensions >= vector.len() {
        return;
    }
    vector.truncate(dimensions);
    let length = vector.iter().map(|number| number * number).sum::<f32>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|number| *number /= length);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortened_vector_has_length_one_again() {
        let mut vector = vec![0.6, 0.0, 0.8];
        shorten(&mut vector, 3);
        assert_eq!(vector, [0.6, 0.0, 0.8]);
        shorten(&mut vector, 2);
        assert_eq!(vector, [1.0, 0.0]);
        let mut zero = vec![0.0, 1.0];
        shorten(&mut zero, 1);
        assert_eq!(zero, [0.0]);
    }
}
