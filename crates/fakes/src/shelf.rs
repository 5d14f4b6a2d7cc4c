//! The models a fake holds, and the routes that list, show, copy and remove them.

use std::sync::{Mutex, MutexGuard};

use serde_json::{Map, Value, json};

use crate::body::Answer;
use crate::config::{Kind, Model};
use crate::json::{self, Fields};
use crate::name::Name;
use crate::refusal::Refusal;
use crate::runner::Runners;

#[derive(Debug)]
pub(crate) struct Shelf(Mutex<Vec<Stocked>>);

#[derive(Debug, Clone)]
pub(crate) struct Stocked {
    pub(crate) name: Name,
    pub(crate) model: Model,
    modified_at: String,
}

impl Shelf {
    /// Names that are none are left out, which `Ollama::start` has refused before.
    pub(crate) fn new(models: &[Model]) -> Self {
        let stock = |model: &Model| {
            let name = Name::parse(&model.name)?;
            Some(Stocked { name, model: model.clone(), modified_at: json::now() })
        };
        Self(Mutex::new(models.iter().filter_map(stock).collect()))
    }

    pub(crate) fn find(&self, name: &Name) -> Option<Stocked> {
        self.stock().iter().find(|stocked| stocked.name.is(name)).cloned()
    }

    /// Newest first.
    pub(crate) fn tags(&self) -> Answer {
        let mut stock = self.stock().clone();
        stock.sort_by(|a, b| b.modified_at.cmp(&a.modified_at));
        let models: Vec<Value> = stock
            .iter()
            .map(|Stocked { name, model, modified_at }| {
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
        let asked = name_or_model(&fields)?;
        if asked.is_empty() {
            return Err(Refusal::bad_request("model is required"));
        }
        let name = Name::parse(&asked).ok_or_else(Refusal::invalid_name)?;
        let stocked = self.find(&name);
        let Stocked { model, modified_at, .. } =
            stocked.ok_or_else(|| Refusal::not_found(format!("model '{}' not found", name.short())))?;
        let system = fields.text("system")?;
        let verbose = fields.flag("verbose")?.unwrap_or(false);
        let mut answer = Map::new();
        answer.insert("license".to_owned(), "Apache-2.0".into());
        answer.insert("modelfile".to_owned(), format!("# a fake\nFROM {}\n", name.short()).into());
        answer.insert("parameters".to_owned(), "stop                           \"<|end|>\"".into());
        answer.insert("template".to_owned(), "{{ .Prompt }}".into());
        if !system.is_empty() {
            answer.insert("system".to_owned(), system.into());
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
        let found = self.find(&from).ok_or_else(|| Refusal::not_found(format!("model \"{source}\" not found")))?;
        let mut stock = self.stock();
        stock.retain(|stocked| !stocked.name.is(&to));
        stock.push(Stocked { name: to, modified_at: json::now(), ..found });
        Ok(Answer::Empty)
    }

    pub(crate) fn delete(&self, body: &[u8], runners: &Runners) -> Result<Answer, Refusal> {
        let fields = Fields::read("DeleteRequest", body)?;
        let asked = name_or_model(&fields)?;
        let invalid = || Refusal::bad_request(format!("name \"{asked}\" is invalid"));
        let name = Name::parse(&asked).ok_or_else(invalid)?;
        let mut stock = self.stock();
        let at = stock.iter().position(|stocked| stocked.name.is(&name));
        let at = at.ok_or_else(|| Refusal::not_found(format!("model '{asked}' not found")))?;
        let Stocked { model, .. } = stock.remove(at);
        if !stock.iter().any(|stocked| stocked.model.content == model.content) {
            runners.unload(&model);
        }
        Ok(Answer::Empty)
    }

    fn stock(&self) -> MutexGuard<'_, Vec<Stocked>> {
        self.0.lock().expect("nothing panics while it holds the lock")
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

fn name_or_model(fields: &Fields) -> Result<String, Refusal> {
    let model = fields.text("model")?;
    if model.is_empty() { fields.text("name") } else { Ok(model) }
}

fn details(model: &Model, lengths: bool) -> Value {
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
