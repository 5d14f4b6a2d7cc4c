//! `/api/generate`.

use serde_json::Value;
use tokio::time::Instant;

use crate::body::Answer;
use crate::fault::Fault;
use crate::infer::{Ask, Face, Fake, Turn, slowness, text_of};
use crate::json::Fields;
use crate::refusal::Refusal;

pub(crate) async fn generate(fake: &Fake, body: &[u8], fault: Option<Fault>) -> Result<Answer, Refusal> {
    let arrived = Instant::now();
    let fields = Fields::read("GenerateRequest", body)?;
    let (prompt, system, template) = (fields.text("prompt")?, fields.text("system")?, fields.text("template")?);
    let suffix = fields.text("suffix")?;
    let raw = fields.flag("raw")?.unwrap_or(false);
    let context = fields.list("context", "[]int")?;
    let ask = Ask::read(fake, &fields, "generate")?;
    if prompt.is_empty() {
        return ask.load(fake, Face::Generate { raw }, slowness(fault.as_ref())).await;
    }
    if raw && !(template.is_empty() && system.is_empty() && context.is_empty()) {
        return Err(Refusal::bad_request("raw mode does not support template, system, or context"));
    }
    if !suffix.is_empty() {
        return Err(Refusal::incapable(&ask.stocked.name, "insert"));
    }
    let prompt = if raw { prompt } else { rendered(&prompt, &system, &context) };
    let turn = Turn { face: Face::Generate { raw }, prompt, begun: String::new(), calls: Vec::new() };
    ask.answer(fake, turn, fault, arrived).await
}

fn rendered(prompt: &str, system: &str, context: &[Value]) -> String {
    let system = if system.is_empty() { String::new() } else { format!("<|system|>{system}<|end|>") };
    format!("{}{system}<|user|>{prompt}<|end|><|assistant|>", text_of(context))
}
