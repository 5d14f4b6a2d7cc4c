//! The models a fake holds, and the routes that list, show, copy and remove them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use crate::body::Answer;
use crate::config::{Kind, Model, Written};
use crate::folder::{Folder, Kept};
use crate::json::{self, Fields};
use crate::name::Name;
use crate::refusal::Refusal;
use crate::runner::Runners;

#[derive(Debug)]
pub(crate) enum Shelf {
    /// Told at the start.
    Told(Mutex<Vec<Stocked>>),
    /// Whatever lies there, each as quick as `pace`.
    Folder { folder: Arc<Folder>, pace: Box<Model> },
}

#[derive(Debug, Clone)]
pub(crate) struct Stocked {
    pub(crate) name: Name,
    pub(crate) model: Model,
    modified_at: String,
    kept: Option<Box<OnDisk>>,
}

#[derive(Debug, Clone)]
struct OnDisk {
    kept: Kept,
    weights: Option<PathBuf>,
}

/// What `show` says of a model in words.
#[derive(Debug)]
struct Texts {
    license: Option<String>,
    parameters: Option<String>,
    template: Option<String>,
    system: Option<String>,
}

impl Stocked {
    /// Whether what it consists of is there.
    pub(crate) fn loadable(&self) -> Result<(), Refusal> {
        let path = self.kept.as_ref().and_then(|on_disk| on_disk.weights.as_ref());
        match path.filter(|path| !path.is_file()) {
            Some(path) => Err(Refusal::here(format!("unable to load model: {}", path.display()))),
            None => Ok(()),
        }
    }
}

impl Shelf {
    /// Names that are none are left out, which `Ollama::start` has refused before.
    pub(crate) fn told(models: &[Model]) -> Self {
        let stock = |model: &Model| {
            let name = Name::parse(&model.name)?;
            Some(Stocked { name, model: model.clone(), modified_at: json::now(), kept: None })
        };
        Self::Told(Mutex::new(models.iter().filter_map(stock).collect()))
    }

    pub(crate) fn find(&self, name: &Name) -> Option<Stocked> {
        match self {
            Self::Told(stock) => locked(stock).iter().find(|stocked| stocked.name.is(name)).cloned(),
            Self::Folder { folder, pace } => stocked(folder, pace, folder.find(name)?),
        }
    }

    /// Newest first.
    pub(crate) fn tags(&self) -> Answer {
        let mut stock = self.all();
        stock.sort_by(|a, b| b.modified_at.cmp(&a.modified_at));
        let models: Vec<Value> = stock
            .iter()
            .map(|Stocked { name, model, modified_at, .. }| {
                json!({
                    "name": name.short(),
                    "model": name.short(),
                    "modified_at": modified_at,
                    "size": model.size,
                    "digest": model.digest(),
                    "details": details(model, true),
                    "capabilities": model.capabilities(),
                })
            })
            .collect();
        Answer::json(json!({ "models": models }))
    }

    pub(crate) fn show(&self, body: &[u8]) -> Result<Answer, Refusal> {
        let fields = Fields::read("ShowRequest", body)?;
        let asked = fields.model()?;
        if asked.is_empty() {
            return Err(Refusal::bad_request("model is required"));
        }
        let name = Name::parse(&asked).ok_or_else(Refusal::invalid_name)?;
        let stocked = self.find(&name);
        let stocked = stocked.ok_or_else(|| Refusal::not_found(format!("model '{}' not found", name.short())))?;
        let texts = self.texts(&stocked);
        let Stocked { model, modified_at, .. } = stocked;
        let system = Some(fields.text("system")?).filter(|system| !system.is_empty()).or(texts.system);
        let verbose = fields.flag("verbose")?.unwrap_or(false);
        let mut answer = Map::new();
        let modelfile = Some(format!("# a fake\nFROM {}\n", name.short()));
        for (field, text) in [
            ("license", texts.license),
            ("modelfile", modelfile),
            ("parameters", texts.parameters),
            ("template", texts.template),
            ("system", system),
        ] {
            if let Some(text) = text {
                answer.insert(field.to_owned(), text.into());
            }
        }
        answer.insert("details".to_owned(), details(&model, false));
        answer.insert("model_info".to_owned(), info(&model, verbose));
        if verbose {
            let tensor = json!({ "name": "token_embd.weight", "type": "F32", "shape": [model.embedding_length, 299] });
            answer.insert("tensors".to_owned(), json!([tensor]));
        }
        answer.insert("capabilities".to_owned(), model.capabilities().into());
        answer.insert("modified_at".to_owned(), modified_at.into());
        Ok(Answer::json(answer.into()))
    }

    pub(crate) fn copy(&self, body: &[u8]) -> Result<Answer, Refusal> {
        let fields = Fields::read("CopyRequest", body)?;
        let (source, destination) = (fields.text("source")?, fields.text("destination")?);
        let invalid = |which: &str, name: &str| Refusal::bad_request(format!("{which} \"{name}\" is invalid"));
        let from = Name::parse(&source).ok_or_else(|| invalid("source", &source))?;
        let to = Name::parse(&destination).ok_or_else(|| invalid("destination", &destination))?;
        let missing = || Refusal::not_found(format!("model \"{source}\" not found"));
        let found = self.find(&from).ok_or_else(missing)?;
        match self {
            Self::Told(stock) => {
                let mut stock = locked(stock);
                stock.retain(|stocked| !stocked.name.is(&to));
                stock.push(Stocked { name: to, modified_at: json::now(), ..found });
            }
            Self::Folder { folder, .. } => {
                let bytes = folder.manifest_bytes(&found.name).ok_or_else(missing)?;
                let written = folder.write_manifest(&folder.spelling(&to), &bytes);
                written.map_err(|error| Refusal::here(error.to_string()))?;
            }
        }
        Ok(Answer::Empty(StatusCode::OK))
    }

    pub(crate) fn delete(&self, body: &[u8], runners: &Runners) -> Result<Answer, Refusal> {
        let fields = Fields::read("DeleteRequest", body)?;
        let asked = fields.model()?;
        let invalid = || Refusal::bad_request(format!("name \"{asked}\" is invalid"));
        let name = Name::parse(&asked).ok_or_else(invalid)?;
        let missing = || Refusal::not_found(format!("model '{asked}' not found"));
        let model = match self {
            Self::Told(stock) => {
                let mut stock = locked(stock);
                let at = stock.iter().position(|stocked| stocked.name.is(&name)).ok_or_else(missing)?;
                stock.remove(at).model
            }
            Self::Folder { folder, pace } => {
                let kept = folder.find(&name).ok_or_else(missing)?;
                folder.remove(&kept).map_err(|error| Refusal::here(error.to_string()))?;
                let Some(Stocked { model, .. }) = stocked(folder, pace, kept) else {
                    return Ok(Answer::Empty(StatusCode::OK));
                };
                model
            }
        };
        if !self.all().iter().any(|stocked| stocked.model.content == model.content) {
            runners.unload(&model);
        }
        Ok(Answer::Empty(StatusCode::OK))
    }

    fn all(&self) -> Vec<Stocked> {
        match self {
            Self::Told(stock) => locked(stock).clone(),
            Self::Folder { folder, pace } => {
                folder.list().into_iter().filter_map(|kept| stocked(folder, pace, kept)).collect()
            }
        }
    }

    fn texts(&self, stocked: &Stocked) -> Texts {
        let (Self::Folder { folder, .. }, Some(on_disk)) = (self, &stocked.kept) else {
            return Texts {
                license: Some("Apache-2.0".to_owned()),
                parameters: Some("stop                           \"<|end|>\"".to_owned()),
                template: Some("{{ .Prompt }}".to_owned()),
                system: None,
            };
        };
        let text = |kind| folder.text(&on_disk.kept.manifest, kind).filter(|text| !text.is_empty());
        Texts {
            license: text("license"),
            parameters: text("params").map(|params| parameters(&params)).filter(|lines| !lines.is_empty()),
            template: text("template"),
            system: text("system"),
        }
    }
}

pub(crate) fn ps(runners: &Runners) -> Answer {
    let models: Vec<Value> = runners
        .loaded()
        .into_iter()
        .map(|loaded| {
            json!({
                "name": loaded.name,
                "model": loaded.name,
                "size": loaded.model.size,
                "digest": loaded.model.digest(),
                "details": details(&loaded.model, false),
                "expires_at": json::in_the_future(loaded.left),
                "size_vram": loaded.model.size,
                "context_length": loaded.context,
            })
        })
        .collect();
    Answer::json(json!({ "models": models }))
}

fn locked(stock: &Mutex<Vec<Stocked>>) -> MutexGuard<'_, Vec<Stocked>> {
    stock.lock().expect("nothing panics while it holds the lock")
}

/// What its configuration says it is. `None` where that cannot be read: such a model is not listed.
fn stocked(folder: &Folder, pace: &Model, kept: Kept) -> Option<Stocked> {
    let config = folder.config(&kept.manifest)?;
    let text = |field: &str| config[field].as_str().unwrap_or_default().to_owned();
    let length = |field: &str| config[field].as_u64().and_then(|length| u32::try_from(length).ok());
    let list = |field: &str| -> Vec<String> {
        config[field].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let capabilities = list("capabilities");
    let can = |what: &str| capabilities.iter().any(|capability| capability == what);
    let weights = kept.manifest.weights().map(|layer| &layer.digest);
    let model = Model {
        name: kept.name.short(),
        kind: if can("embedding") { Kind::Embedding } else { Kind::Completion },
        thinking: can("thinking"),
        tools: can("tools"),
        content: weights.unwrap_or(&kept.digest).hex().to_owned(),
        size: kept.manifest.size(),
        context_length: length("context_length").unwrap_or(pace.context_length),
        written: Some(Written {
            digest: kept.digest.clone(),
            family: text("model_family"),
            families: list("model_families"),
            parameter_size: text("model_type"),
            quantization_level: text("file_type"),
            context_length: length("context_length"),
            embedding_length: length("embedding_length"),
        }),
        ..pace.clone()
    };
    let modified_at = json::moment(kept.modified);
    let weights = weights.map(|digest| folder.blob(digest));
    Some(Stocked { name: kept.name.clone(), model, modified_at, kept: Some(Box::new(OnDisk { kept, weights })) })
}

/// As `show` writes them: a name and a value to a line, one line to each of several values.
fn parameters(params: &str) -> String {
    let params: Map<String, Value> = serde_json::from_str(params).unwrap_or_default();
    let mut lines = Vec::new();
    for (name, value) in &params {
        let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        lines.extend(values.iter().map(|value| format!("{name:<30} {value}")));
    }
    lines.join("\n")
}

fn details(model: &Model, lengths: bool) -> Value {
    let Some(written) = &model.written else {
        let mut details = json!({
            "parent_model": "",
            "format": "gguf",
            "family": "llama",
            "families": ["llama"],
            "parameter_size": "1.0B",
            "quantization_level": "Q4_K_M",
        });
        if lengths {
            details["context_length"] = model.context_length.into();
            details["embedding_length"] = model.embedding_length.into();
        }
        return details;
    };
    let mut details = json!({
        "parent_model": "",
        "format": "gguf",
        "family": written.family,
        "families": written.families,
        "parameter_size": written.parameter_size,
        "quantization_level": written.quantization_level,
    });
    for (name, length) in [("context_length", written.context_length), ("embedding_length", written.embedding_length)] {
        if let Some(length) = length.filter(|length| lengths && *length > 0) {
            details[name] = length.into();
        }
    }
    details
}

/// Sorted, as Go writes maps. Long lists are empty unless all is wanted.
fn info(model: &Model, verbose: bool) -> Value {
    let mut info = Map::new();
    info.insert("general.architecture".to_owned(), "llama".into());
    info.insert("general.parameter_count".to_owned(), 1_000_000_000_u64.into());
    info.insert("llama.block_count".to_owned(), 1.into());
    info.insert("llama.context_length".to_owned(), model.context_length.into());
    info.insert("llama.embedding_length".to_owned(), model.embedding_length.into());
    if model.kind == Kind::Embedding {
        info.insert("llama.pooling_type".to_owned(), 1.into());
    }
    info.insert("tokenizer.ggml.model".to_owned(), "llama".into());
    info.insert("tokenizer.ggml.tokens".to_owned(), if verbose { json!(["t0", " t1"]) } else { Value::Null });
    info.into()
}
