//! What `/api/generate` and `/api/chat` have in common: whose model, which options, how long an answer.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::body::Answer;
use crate::config::{Kind, Model};
use crate::counts::Ledger;
use crate::fault::{Fault, Faults};
use crate::json::{self, Fields};
use crate::name::Name;
use crate::numbered::{Script, natural_length};
use crate::refusal::Refusal;
use crate::runner::{LoadOptions, Runners, Wanted};
use crate::shelf::{Shelf, Stocked};
use crate::stream::{Run, nanoseconds};
use crate::transfer::Depot;

/// What all routes use.
#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) version: String,
    pub(crate) keep_alive: Duration,
    pub(crate) shelf: Shelf,
    pub(crate) runners: Arc<Runners>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) faults: Faults,
    /// Where there is a folder.
    pub(crate) depot: Option<Arc<Depot>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Face {
    Generate { raw: bool },
    Chat,
}

#[derive(Debug, Clone)]
pub(crate) enum Part {
    Thought(String),
    Text(String),
}

/// A request that can be run.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) face: Face,
    /// The model as it was asked for, which the answer repeats.
    pub(crate) asked: String,
    pub(crate) model: Model,
    pub(crate) prompt: String,
    pub(crate) prompt_tokens: u32,
    pub(crate) parts: Vec<Part>,
    pub(crate) calls: Vec<Value>,
    pub(crate) reason: &'static str,
    pub(crate) top_logprobs: Option<usize>,
    pub(crate) slow: f64,
}

/// A request as both routes begin to read it.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) asked: String,
    pub(crate) stocked: Stocked,
    pub(crate) options: Options,
    pub(crate) think: bool,
    keep_alive: Option<Option<Duration>>,
    stream: bool,
    render_only: bool,
    truncate: bool,
    shift: Option<bool>,
    top_logprobs: Option<usize>,
    /// A format binds the answer to be JSON.
    bound: bool,
}

#[derive(Debug)]
pub(crate) struct Options {
    seed: i64,
    predict: i64,
    context: Option<u32>,
    stops: Vec<String>,
    others: Vec<(&'static str, Value)>,
}

/// What a route made of its own fields.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) face: Face,
    /// As the model gets it.
    pub(crate) prompt: String,
    /// How much of it, at its end, is the beginning of the answer, which the first chunk repeats.
    pub(crate) begun: String,
    pub(crate) calls: Vec<Value>,
}

/// `num_ctx` where neither request nor model says anything else.
const CONTEXT: u32 = 4096;
const LOAD_TIME: [&str; 6] = ["draft_num_predict", "main_gpu", "num_batch", "num_gpu", "num_thread", "use_mmap"];

impl Ask {
    /// `purpose` is what an embedding model is told it cannot do.
    pub(crate) fn read(fake: &Fake, fields: &Fields, purpose: &str) -> Result<Self, Refusal> {
        let asked = fields.text("model")?;
        let stream = fields.flag("stream")?.unwrap_or(true);
        let render_only = fields.flag("_debug_render_only")?.unwrap_or(false);
        let truncate = fields.flag("truncate")?.unwrap_or(true);
        let shift = fields.flag("shift")?;
        let keep_alive = fields.get("keep_alive").map(json::keep_alive).transpose()?;
        let top = fields.integer("top_logprobs")?;
        let top = usize::try_from(top).ok().filter(|top| *top <= 20);
        let top = top.ok_or_else(|| Refusal::bad_request("top_logprobs must be between 0 and 20"))?;
        let top_logprobs = fields.flag("logprobs")?.unwrap_or(false).then_some(top);
        let stocked = if asked.is_empty() {
            return Err(Refusal::not_found("model '' not found"));
        } else {
            let name = Name::parse(&asked).ok_or_else(Refusal::invalid_name)?;
            fake.shelf.find(&name).ok_or_else(|| Refusal::not_found(format!("model '{asked}' not found")))?
        };
        if stocked.model.kind == Kind::Embedding {
            return Err(Refusal::bad_request(format!("\"{asked}\" does not support {purpose}")));
        }
        stocked.loadable()?;
        let think = thinks(fields.get("think"), &asked, &stocked.model)?;
        let bound = match fields.get("format") {
            None => false,
            Some(Value::String(text)) if text.is_empty() => false,
            Some(Value::String(text)) if text == "json" => true,
            Some(Value::Object(_)) => true,
            Some(other) => {
                let words = format!("invalid format: {other}; expected \"json\" or a valid JSON Schema object");
                return Err(Refusal::here(words));
            }
        };
        let options = Options::read(&fields.object("options")?)?;
        Ok(Self {
            asked,
            stocked,
            options,
            think,
            keep_alive,
            stream,
            render_only,
            truncate,
            shift,
            top_logprobs,
            bound,
        })
    }

    /// Loads the model, or unloads it where it is to be kept no time.
    pub(crate) async fn load(self, fake: &Fake, face: Face, slow: f64) -> Result<Answer, Refusal> {
        let reason = if self.keep_alive == Some(Some(Duration::ZERO)) {
            fake.runners.unload(&self.stocked.model);
            "unload"
        } else {
            drop(fake.runners.load(&self.wanted(fake, slow)).await?);
            "load"
        };
        let mut answer = Map::new();
        answer.insert("model".to_owned(), self.asked.into());
        answer.insert("created_at".to_owned(), json::now().into());
        match face {
            Face::Generate { .. } => answer.insert("response".to_owned(), "".into()),
            Face::Chat => answer.insert("message".to_owned(), json!({ "role": "assistant", "content": "" })),
        };
        answer.insert("done".to_owned(), true.into());
        answer.insert("done_reason".to_owned(), reason.into());
        Ok(Answer::json(answer.into()))
    }

    pub(crate) async fn answer(
        self,
        fake: &Fake,
        turn: Turn,
        fault: Option<Fault>,
        arrived: Instant,
    ) -> Result<Answer, Refusal> {
        let slow = slowness(fault.as_ref());
        let wanted = self.wanted(fake, slow);
        let stay = fake.runners.load(&wanted).await?;
        if self.render_only {
            return Ok(Answer::json(self.rendered(&turn)));
        }
        let context = wanted.options.context;
        let prompt_tokens = tokens_in(turn.prompt.len()).max(1);
        if prompt_tokens > context && !self.truncate && self.shift == Some(false) {
            return Err(Refusal::bad_request(
                "the prompt is longer than the context length currently available to the model; use a shorter prompt",
            ));
        }
        let slot = stay.slot(&turn.prompt).await?;
        let load = arrived.elapsed();
        let stream = self.stream;
        let job = self.job(turn, prompt_tokens.min(context), context, slow, fault.as_ref());
        let shared = (fake.ledger.clone(), fake.faults.clone(), fault);
        let run = Run::begin(job, slot, shared, arrived, load).await;
        if stream { Ok(Answer::Lines(Box::new(run))) } else { run.whole().await.map(Answer::json) }
    }

    fn job(self, turn: Turn, prompt_tokens: u32, context: u32, slow: f64, fault: Option<&Fault>) -> Job {
        let Stocked { model, .. } = self.stocked;
        let total = model.answer_tokens.unwrap_or_else(|| natural_length(&model.digest(), self.options.seed));
        let most = context.saturating_mul(10);
        let limit = u32::try_from(self.options.predict).map_or(most, |limit| limit.min(most));
        let (parts, reason) = if turn.calls.is_empty() {
            let script = Script::new(&turn.prompt, total, limit, &self.options.stops);
            (said(script.pieces, &turn, self.think, self.bound && turn.begun.is_empty()), script.reason)
        } else {
            (Vec::new(), "stop")
        };
        let asked = if fault == Some(&Fault::WrongModel) { "another:latest".to_owned() } else { self.asked };
        Job {
            face: turn.face,
            asked,
            model,
            prompt: turn.prompt,
            prompt_tokens,
            parts,
            calls: turn.calls,
            reason,
            top_logprobs: self.top_logprobs,
            slow,
        }
    }

    fn rendered(&self, turn: &Turn) -> Value {
        let info = json!({ "rendered_template": turn.prompt });
        let (model, at) = (&self.asked, json::now());
        match turn.face {
            Face::Generate { .. } => {
                json!({ "model": model, "created_at": at, "response": "", "done": false, "_debug_info": info })
            }
            Face::Chat => {
                let message = json!({ "role": "", "content": "" });
                json!({ "model": model, "created_at": at, "message": message, "done": false, "_debug_info": info })
            }
        }
    }

    fn wanted(&self, fake: &Fake, slow: f64) -> Wanted {
        let mut options = self.options.load(&self.stocked.model);
        if let Some(shift) = self.shift.filter(|shift| !shift) {
            options.others.push(("shift", shift.into()));
        }
        Wanted {
            name: self.stocked.name.short(),
            model: self.stocked.model.clone(),
            options,
            keep_alive: self.keep_alive.unwrap_or(Some(fake.keep_alive)),
            slow,
        }
    }
}

impl Options {
    /// Of a wrong type is an error; unknown is nothing.
    pub(crate) fn read(options: &Map<String, Value>) -> Result<Self, Refusal> {
        let wrong = |name: &str, of: &str| Refusal::here(format!("option \"{name}\" must be of type {of}"));
        let integer = |name: &str| {
            let value = options.get(name).filter(|value| !value.is_null());
            value.map(|value| value.as_f64().ok_or_else(|| wrong(name, "integer"))).transpose()
        };
        let stops = match options.get("stop") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Some(_) => return Err(wrong("stop", "array")),
        };
        for name in ["top_k", "num_keep", "repeat_last_n", "num_batch", "num_gpu", "main_gpu", "num_thread"] {
            integer(name)?;
        }
        let others = LOAD_TIME
            .iter()
            .filter_map(|name| Some((*name, options.get(*name)?.clone())))
            // -1 matches anything.
            .filter(|(name, value)| *name != "num_gpu" || value.as_i64() != Some(-1))
            .collect();
        Ok(Self {
            seed: integer("seed")?.map_or(-1, |seed| seed as i64),
            predict: integer("num_predict")?.map_or(-1, |limit| limit as i64),
            context: integer("num_ctx")?.map(|context| context as u32).filter(|context| *context > 0),
            stops,
            others,
        })
    }

    pub(crate) fn load(&self, model: &Model) -> LoadOptions {
        let context = self.context.unwrap_or(CONTEXT).max(4).min(model.context_length);
        LoadOptions { context, others: self.others.clone() }
    }
}

pub(crate) fn slowness(fault: Option<&Fault>) -> f64 {
    match fault {
        Some(Fault::Slow { factor }) if factor.is_finite() => factor.max(0.0),
        _ => 1.0,
    }
}

/// Four bytes are a token here, whatever they are.
pub(crate) fn tokens_in(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(4)).unwrap_or(u32::MAX)
}

/// Their numbers, from which [`text_of`] finds the text again.
pub(crate) fn tokens_of(text: &str) -> Vec<u32> {
    let number = |group: &[u8]| group.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
    text.as_bytes().chunks(4).map(number).collect()
}

pub(crate) fn text_of(tokens: &[Value]) -> String {
    let numbers = tokens.iter().filter_map(Value::as_u64);
    let bytes: Vec<u8> =
        numbers.flat_map(|number| number.to_le_bytes().into_iter().take(4)).filter(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(crate) fn put_duration(answer: &mut Value, name: &str, length: Duration) {
    answer[name] = nanoseconds(length).into();
}

fn thinks(value: Option<&Value>, asked: &str, model: &Model) -> Result<bool, Refusal> {
    let wants = match value {
        None => return Ok(model.thinking),
        Some(Value::Bool(wants)) => *wants,
        Some(Value::String(level)) if ["low", "medium", "high", "max"].contains(&level.as_str()) => true,
        Some(other) => {
            let words = format!(
                "invalid think value: {other} (must be \"high\", \"medium\", \"low\", \"max\", true, or false)"
            );
            return Err(Refusal::bad_request(words));
        }
    };
    if wants && !model.thinking {
        return Err(Refusal::bad_request(format!("\"{asked}\" does not support thinking")));
    }
    Ok(wants)
}

fn said(pieces: Vec<String>, turn: &Turn, think: bool, bound: bool) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    // An answer that was begun has been thought about.
    if think && turn.begun.is_empty() {
        parts.extend(
            (0..4).map(|number| Part::Thought(if number == 0 { "h0".to_owned() } else { format!(" h{number}") })),
        );
    }
    let first = parts.len();
    parts.extend(pieces.into_iter().map(Part::Text));
    let repeated = if bound { "{\"tokens\":\"" } else { &turn.begun };
    match parts.get_mut(first) {
        Some(Part::Text(text)) => text.insert_str(0, repeated),
        _ if repeated.is_empty() => {}
        _ => parts.push(Part::Text(repeated.to_owned())),
    }
    if let Some(Part::Text(text)) = parts.last_mut().filter(|_| bound) {
        text.push_str("\"}");
    }
    parts
}
