//! Listing, showing, copying and deleting models.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use ollama::ModelName;
use ollama::folder::Installed;
use ollama::wire::{
    CopyRequest, DeleteRequest, Details, ListResponse, ListedModel, LoadedModel, PsResponse, ShowRequest, ShowResponse,
    TensorInfo, Time, decode,
};
use serde_json::{Map, Value};

use super::Server;
use super::failure::Failure;
use super::known::{Asked, Known, is_missing};
use super::reply::{self, Reply};

/// Arrays longer than this are shown to those only who ask for everything.
const SHOWN_ELEMENTS_MAX: u64 = 5;
/// What Ollama takes for ever: as many nanoseconds as fit into 63 bits.
const FOR_EVER: Duration = Duration::from_nanos(i64::MAX as u64);

pub(super) async fn tags(server: Arc<Server>) -> Result<Reply, Failure> {
    let models = server.beside(|server| {
        let installed = server.folder.list()?;
        Ok(installed.iter().map(|installed| listed(server, installed)).collect())
    });
    Ok(reply::json(&ListResponse { models: models.await? }))
}

/// A model whose files cannot be read is there all the same.
fn listed(server: &Server, installed: &Installed) -> ListedModel {
    let known = server.known(installed).ok();
    let details = known.as_deref().map_or_else(Details::default, |known| Details {
        context_length: known.facts.context_length,
        embedding_length: known.facts.embedding_length,
        ..known.details()
    });
    ListedModel {
        name: installed.name.to_string(),
        model: installed.name.to_string(),
        modified_at: Time::of(installed.modified),
        size: installed.manifest.size(),
        digest: installed.digest,
        details,
        capabilities: known.map_or_else(Vec::new, |known| known.capabilities()),
    }
}

pub(super) async fn ps(server: Arc<Server>) -> Result<Reply, Failure> {
    let loaded = server.library.loaded().await;
    let models = server.beside(move |server| {
        let installed = server.folder.list()?;
        let now = SystemTime::now();
        // A model that was deleted while it is loaded has no name any more.
        Ok(loaded
            .into_iter()
            .filter_map(|resident| {
                let is_it = |other: &&Installed| server.folder.weights(other).is_ok_and(|file| file == resident.file);
                let called = server.shelf.name_of(&resident.file);
                let candidates: Vec<&Installed> = installed.iter().filter(is_it).collect();
                let same = candidates.iter().find(|other| called.as_ref() == Some(&other.name));
                let installed = same.or(candidates.first())?;
                let lasts = resident.expires_in.unwrap_or(FOR_EVER).min(FOR_EVER);
                Some(LoadedModel {
                    name: installed.name.to_string(),
                    model: installed.name.to_string(),
                    size: resident.facts.size,
                    digest: installed.digest,
                    details: server.known(installed).map_or_else(|_| Details::default(), |known| known.details()),
                    expires_at: Time::of(now + lasts),
                    size_vram: resident.facts.size_gpu,
                    context_length: resident.facts.context,
                })
            })
            .collect())
    });
    Ok(reply::json(&PsResponse { models: models.await? }))
}

pub(super) async fn show(server: Arc<Server>, body: Bytes) -> Result<Reply, Failure> {
    let request: ShowRequest = decode(&body)?;
    let name = match Asked::read(request.model()) {
        Asked::Nothing => return Err(Failure::bad_request("model is required")),
        Asked::Invalid => return Err(Failure::bad_request("invalid model name")),
        Asked::Cloud => return Err(no_cloud("remote model details are unavailable")),
        Asked::Named(name) => name,
    };
    let shown = server.beside(move |server| {
        let installed = server.folder.find(&name).map_err(|error| match is_missing(&error) {
            true => Failure::not_found(format!("model '{name}' not found")),
            false => error.into(),
        })?;
        let known = server.known(&installed)?;
        let head = server.folder.head(&installed)?;
        let header = head.header().map_err(|error| Failure::here(error.to_string()))?;
        Ok(shown(&request, &installed, &known, &header))
    });
    Ok(reply::json(&shown.await?))
}

fn shown(request: &ShowRequest, installed: &Installed, known: &Known, header: &gguf::Header<'_>) -> ShowResponse {
    let model = &known.model;
    let system =
        if request.system.is_empty() { model.system.clone().unwrap_or_default() } else { request.system.clone() };
    let mut params = model.params.clone();
    let parameters = parameters(&params);
    params.extend(request.options.clone());
    let own = known.facts.chat_template.clone();
    let tensors = header.tensors().iter().map(|tensor| TensorInfo {
        name: tensor.name().to_owned(),
        kind: tensor.kind().name(),
        shape: tensor.shape().to_vec(),
    });
    ShowResponse {
        license: model.licenses.join("\n"),
        modelfile: modelfile(&installed.name, model.template.as_deref(), &system, &params),
        parameters,
        template: own.or_else(|| model.template.clone()).unwrap_or_default(),
        system,
        details: known.details(),
        messages: model.messages.clone(),
        model_info: model_info(known, header, request.verbose),
        tensors: tensors.collect(),
        capabilities: known.capabilities(),
        modified_at: Time::of(installed.modified),
        requires: model.config.requires.clone(),
    }
}

fn model_info(known: &Known, header: &gguf::Header<'_>, verbose: bool) -> BTreeMap<String, Value> {
    let shown_elsewhere = ["general.name", "tokenizer.chat_template"];
    let entries = header.metadata().iter().filter(|(key, _)| !shown_elsewhere.contains(*key));
    let entries = entries.map(|(key, value)| ((*key).to_owned(), json(value, verbose)));
    let count = ("general.parameter_count".to_owned(), Value::from(known.facts.parameters));
    entries.chain([count]).collect()
}

fn json(value: &gguf::Value<'_>, verbose: bool) -> Value {
    match value {
        gguf::Value::Unsigned(number) => Value::from(*number),
        gguf::Value::Signed(number) => Value::from(*number),
        gguf::Value::Float(number) => Value::from(*number),
        gguf::Value::Bool(truth) => Value::from(*truth),
        gguf::Value::String(bytes) => Value::from(String::from_utf8_lossy(bytes)),
        gguf::Value::Array(array) if !verbose && array.len() > SHOWN_ELEMENTS_MAX => Value::Array(Vec::new()),
        gguf::Value::Array(array) => array.iter().map(|element| json(&element, verbose)).collect(),
    }
}

/// One on each line, a list spread over several.
fn parameters(params: &Map<String, Value>) -> String {
    let lines = params.iter().flat_map(|(name, value)| {
        let values = value.as_array().map_or_else(|| vec![value], |values| values.iter().collect());
        values.into_iter().map(move |value| format!("{name:<30} {value}"))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Ollama writes the path of the weights behind `FROM`, which is nobody's business here: the name serves as well.
fn modelfile(name: &ModelName, template: Option<&str>, system: &str, params: &Map<String, Value>) -> String {
    let mut text = "# Modelfile generated by \"ollama show\"\n".to_owned();
    let _ = writeln!(text, "FROM {name}");
    if let Some(template) = template {
        let _ = writeln!(text, "TEMPLATE \"\"\"{template}\"\"\"");
    }
    if !system.is_empty() {
        let _ = writeln!(text, "SYSTEM \"\"\"{system}\"\"\"");
    }
    for (name, value) in params {
        for value in value.as_array().map_or_else(|| vec![value], |values| values.iter().collect()) {
            let _ = writeln!(text, "PARAMETER {name} {value}");
        }
    }
    text
}

pub(super) async fn copy(server: Arc<Server>, body: Bytes) -> Result<Reply, Failure> {
    let CopyRequest { source, destination } = decode(&body)?;
    let invalid = |what: &str, text: &str| Failure::bad_request(format!("{what} {text:?} is invalid"));
    let from: ModelName = source.parse().map_err(|_| invalid("source", &source))?;
    let to: ModelName = destination.parse().map_err(|_| invalid("destination", &destination))?;
    let copied = server.beside(move |server| {
        server.folder.copy(&from, &to).map_err(|error| match is_missing(&error) {
            true => Failure::not_found(format!("model {source:?} not found")),
            false => error.into(),
        })
    });
    copied.await?;
    Ok(reply::empty())
}

pub(super) async fn delete(server: Arc<Server>, body: Bytes) -> Result<Reply, Failure> {
    let request: DeleteRequest = decode(&body)?;
    let asked = request.model().to_owned();
    let name = match Asked::read(&asked) {
        Asked::Nothing => return Err(Failure::bad_request("model is required")),
        Asked::Named(name) => name,
        Asked::Invalid | Asked::Cloud => return Err(Failure::bad_request(format!("name {asked:?} is invalid"))),
    };
    let orphan = server.beside(move |server| {
        let missing = || Failure::not_found(format!("model '{asked}' not found"));
        let gone = |error| if is_missing(&error) { missing() } else { error.into() };
        let weights = server.folder.find(&name).and_then(|installed| server.folder.weights(&installed)).ok();
        server.folder.delete(&name).map_err(gone)?;
        Ok(weights.filter(|weights| !weights.exists()))
    });
    if let Some(weights) = orphan.await? {
        server.library.unload(&weights).await;
    }
    Ok(reply::empty())
}

pub(super) fn no_cloud(what: &str) -> Failure {
    let message = format!("ollama cloud is disabled: {what}");
    Failure { status: hyper::StatusCode::FORBIDDEN, message }
}
