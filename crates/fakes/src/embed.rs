//! `/api/embed`, and `/api/embeddings` for those who still use it. Equal texts have equal vectors, others do not.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::body::Answer;
use crate::config::{Model, mix};
use crate::counts::End;
use crate::fault::Fault;
use crate::infer::{Fake, Options, put_duration, slowness, tokens_in};
use crate::json::{self, Fields};
use crate::name::Name;
use crate::refusal::Refusal;
use crate::runner::{LoadOptions, Wanted};
use crate::shelf::Stocked;

pub(crate) async fn embed(fake: &Fake, body: &[u8], fault: Option<&Fault>) -> Result<Answer, Refusal> {
    let arrived = Instant::now();
    let fields = Fields::read("EmbedRequest", body)?;
    let asked = fields.text("model")?;
    let truncate = fields.flag("truncate")?.unwrap_or(true);
    let dimensions = fields.integer("dimensions")?;
    let texts = inputs(fields.get("input"))?;
    if asked.is_empty() {
        return Err(Refusal::not_found("model '' not found"));
    }
    let (stocked, wanted) = find(fake, &fields, &asked, fault)?;
    let LoadOptions { context, .. } = wanted.options;
    let counts: Vec<u32> = texts.iter().map(|text| tokens_in(text.len()).max(1)).collect();
    if !truncate && counts.iter().any(|count| *count > context) {
        return Err(Refusal::bad_request("the input length exceeds the context length"));
    }
    let count = counts.iter().map(|count| (*count).min(context)).sum();
    let load = read_all(fake, &wanted, &texts.concat(), count, arrived).await?;
    let size = usize::try_from(dimensions).ok().filter(|size| *size > 0).unwrap_or(usize::MAX);
    let vectors: Vec<_> = texts.iter().map(|text| unit(vector(&stocked.model, text), size)).collect();
    let mut answer = json!({ "model": said(&asked, fault), "embeddings": vectors });
    put_duration(&mut answer, "total_duration", arrived.elapsed());
    put_duration(&mut answer, "load_duration", load);
    if count > 0 {
        answer["prompt_eval_count"] = count.into();
    }
    Ok(Answer::json(answer))
}

pub(crate) async fn embeddings(fake: &Fake, body: &[u8], fault: Option<&Fault>) -> Result<Answer, Refusal> {
    let arrived = Instant::now();
    let fields = Fields::read("EmbeddingRequest", body)?;
    let (asked, prompt) = (fields.text("model")?, fields.text("prompt")?);
    if asked.is_empty() {
        return Err(Refusal::bad_request("model is required"));
    }
    let (stocked, wanted) = find(fake, &fields, &asked, fault)?;
    if prompt.is_empty() {
        drop(fake.runners.load(&wanted).await?);
        return Ok(Answer::json(json!({ "embedding": [] })));
    }
    read_all(fake, &wanted, &prompt, tokens_in(prompt.len()).min(wanted.options.context), arrived).await?;
    Ok(Answer::json(json!({ "embedding": vector(&stocked.model, &prompt) })))
}

fn find(fake: &Fake, fields: &Fields, asked: &str, fault: Option<&Fault>) -> Result<(Stocked, Wanted), Refusal> {
    let name = Name::parse(asked).ok_or_else(Refusal::invalid_name)?;
    let missing = || Refusal::not_found(format!("model \"{asked}\" not found, try pulling it first"));
    let stocked = fake.shelf.find(&name).ok_or_else(missing)?;
    stocked.loadable()?;
    let keep_alive = fields.get("keep_alive").map(json::keep_alive).transpose()?.unwrap_or(Some(fake.keep_alive));
    let options = Options::read(&fields.object("options")?)?.load(&stocked.model);
    let (model, name) = (stocked.model.clone(), stocked.name.short());
    Ok((stocked, Wanted { model, name, options, keep_alive, slow: slowness(fault) }))
}

/// Takes the time the texts need, in a slot. Nothing of them is remembered: there is no answer that could follow.
async fn read_all(fake: &Fake, wanted: &Wanted, text: &str, count: u32, arrived: Instant) -> Result<Duration, Refusal> {
    let mut slot = fake.runners.load(wanted).await?.slot("").await?;
    let load = arrived.elapsed();
    let mut noted = Noted { fake, model: &wanted.model, text, tokens: 0, end: End::Cancelled };
    let takes = Duration::from_secs_f64(f64::from(count) / wanted.model.prefill).mul_f64(wanted.slow);
    tokio::time::sleep(takes).await;
    slot.text.clear();
    (noted.end, noted.tokens) = (End::Finished, count);
    Ok(load)
}

/// Tells the ledger how it ended, whatever way that is.
struct Noted<'a> {
    fake: &'a Fake,
    model: &'a Model,
    text: &'a str,
    tokens: u32,
    end: End,
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        self.fake.ledger.note(self.model, self.text, self.tokens, self.end);
    }
}

fn inputs(value: Option<&Value>) -> Result<Vec<String>, Refusal> {
    let invalid = || Refusal::bad_request("invalid input type");
    match value {
        None => Ok(Vec::new()),
        Some(Value::String(text)) if text.is_empty() => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![text.clone()]),
        Some(Value::Array(items)) => {
            items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(invalid)).collect()
        }
        Some(_) => Err(invalid()),
    }
}

fn said(asked: &str, fault: Option<&Fault>) -> String {
    if fault == Some(&Fault::WrongModel) { "another:latest".to_owned() } else { asked.to_owned() }
}

/// Not of length one: that is `embed`'s business.
fn vector(model: &Model, text: &str) -> Vec<f32> {
    let seed = text.bytes().fold(1, |hash, byte| mix(hash ^ u64::from(byte)));
    (0..model.embedding_length as u64).map(|at| f32::from((mix(seed ^ at) >> 48) as u16) / 65_536.0 - 0.5).collect()
}

fn unit(mut vector: Vec<f32>, size: usize) -> Vec<f32> {
    vector.truncate(size);
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.iter().map(|value| value / length.max(f32::MIN_POSITIVE)).collect()
}
