//! How the rest of an answer is asked for.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::line::{End, News};
use super::seam::{Again, Seam, Spent, Stops, Thinking};
use super::{Stage, Transcript, Unfit, Voice};
use crate::seen::is_cloud;
use crate::wire;

/// A request to be sent elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub voice: Voice,
    pub body: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rest {
    /// The client knows nothing yet: the request is sent as it came.
    Same,
    /// This is asked in place of it.
    Ask(Question),
    /// The answer to this goes to [`Transcript::rendered`], which says what to ask then.
    Render(Question),
    /// There was nothing to come but this line.
    Over(Bytes),
}

/// Of a word that is left to the model to say again.
const TAIL_MAX: usize = 48;
/// How a prompt ends in which a thought is open.
const THOUGHT_BEGIN: &str = "<think>";
/// What backends put before a raw prompt themselves.
const BEGINNINGS: [&str; 5] = ["<|begin_of_text|>", "<s>", "<bos>", "<｜begin▁of▁sentence｜>", "<|startoftext|>"];

/// How a prompt ends whose model says in which channel it speaks: its text alone does not tell that.
const HARMONY: &str = "<|start|>assistant";
/// Of text that some backends repeat and others do not: less of it might be said twice by chance.
const REPEATED_MIN: usize = 16;

type Fields = Map<String, Value>;

/// What `<think>` at the end of a prompt means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// A thought is open, and the backend has told it as one.
    Thought,
    /// It is text as any other.
    AsItIs,
}

/// All that is read of an answer which may be as long as a conversation.
#[derive(Deserialize)]
struct Rendered {
    #[serde(rename = "_debug_info")]
    debug_info: Option<DebugInfo>,
}

#[derive(Deserialize)]
struct DebugInfo {
    rendered_template: String,
}

impl Transcript {
    /// `body` is the client's request, `spent` the time until now.
    pub fn rest(&mut self, body: &[u8], spent: Spent) -> Result<Rest, Unfit> {
        if let Some(unfit) = self.unfit {
            return Err(unfit);
        }
        if self.said.is_nothing() {
            self.stage = Stage::First;
            return Ok(Rest::Same);
        }
        let mut fields = wire::fields(body).map_err(|_| Unfit::Request)?;
        if fields.get("format").is_some_and(|format| !format.is_null() && *format != "") {
            return Err(Unfit::Format);
        }
        if left(&fields).is_some_and(|left| left <= self.said.tokens) {
            self.stage = Stage::Over;
            return Ok(Rest::Over(self.full(spent)));
        }
        if is_cloud(&self.said.model) {
            return Err(Unfit::Cloud);
        }
        if self.voice == Voice::Generate && is_some(&fields, "images") {
            return Err(Unfit::Pictures);
        }
        if self.voice == Voice::Generate && is_some(&fields, "suffix") {
            return Err(Unfit::Gap);
        }
        if is_true(&fields, "raw") {
            let prompt = fields.get("prompt").and_then(Value::as_str).unwrap_or_default().to_owned();
            return self.ask_raw(fields, prompt, Opening::AsItIs, spent).map(Rest::Ask);
        }
        match self.voice {
            Voice::Chat if needs_template(&fields) => self.put_trailing(&mut fields)?,
            Voice::Generate | Voice::Chat => {
                // What was thought is over: the model goes on with what it says.
                if !self.said.text.is_empty() && !self.said.thought.is_empty() {
                    fields.insert("think".to_owned(), false.into());
                }
            }
        }
        fields.insert("_debug_render_only".to_owned(), true.into());
        fields.insert("stream".to_owned(), false.into());
        // Nothing of it is to be generated, and the model stays as long as the rest of the answer says.
        for name in ["logprobs", "top_logprobs", "keep_alive"] {
            fields.shift_remove(name);
        }
        // An Ollama that does not know what it is asked would answer at length.
        if let Some(options) = fields.entry("options").or_insert_with(|| Fields::new().into()).as_object_mut() {
            options.insert("num_predict".to_owned(), 1.into());
        }
        Ok(Rest::Render(Question { voice: self.voice, body: wire::encode(&fields) }))
    }

    /// What to ask after [`Rest::Render`] was answered with this.
    pub fn rendered(&mut self, body: &[u8], answer: &[u8], spent: Spent) -> Result<Question, Unfit> {
        let rendered = serde_json::from_slice::<Rendered>(answer).map_err(|_| Unfit::NotRendered)?;
        let rendered = rendered.debug_info.ok_or(Unfit::NotRendered)?.rendered_template;
        let mut fields = wire::fields(body).map_err(|_| Unfit::Request)?;
        if self.voice == Voice::Chat && needs_template(&fields) {
            if !rendered.ends_with(self.said.text.as_str()) {
                return Err(Unfit::Template);
            }
            self.put_trailing(&mut fields)?;
            self.limit(&mut fields, self.said.tokens);
            fields.insert("stream".to_owned(), true.into());
            let again = Again::Whole { expected: self.said.text.clone(), come: String::new() };
            self.begin(&fields, again, Thinking::Over, self.said.tokens, spent);
            return Ok(Question { voice: Voice::Chat, body: wire::encode(&fields) });
        }
        let beginning = BEGINNINGS.iter().find_map(|beginning| rendered.strip_prefix(beginning));
        let mut prompt = beginning.unwrap_or(&rendered).to_owned();
        if prompt.trim_end().ends_with(HARMONY) {
            return Err(Unfit::Template);
        }
        // What the client had begun itself stands at the render's end, and some backends tell it once more.
        if let Some(begun) = begun_by_client(&fields).filter(|begun| self.said.text.starts_with(begun))
            && prompt.ends_with(begun)
        {
            prompt.truncate(prompt.len() - begun.len());
        }
        let thinks = fields.get("think").and_then(Value::as_bool) != Some(false);
        let opening = if thinks { Opening::Thought } else { Opening::AsItIs };
        self.ask_raw(fields, prompt, opening, spent)
    }

    /// `prompt` is all that stands before the answer.
    fn ask_raw(
        &mut self,
        mut fields: Fields,
        mut prompt: String,
        opening: Opening,
        spent: Spent,
    ) -> Result<Question, Unfit> {
        let is_open = opening == Opening::Thought && prompt.trim_end().ends_with(THOUGHT_BEGIN);
        let said = &self.said;
        let mut again = Again::Nothing;
        let mut put = said.tokens;
        let thinking = match said.text.is_empty() {
            true if !is_open => return Err(Unfit::Thinking),
            true => {
                prompt.push_str(&said.thought);
                Thinking::UnderWay { held: String::new() }
            }
            false => {
                if is_open {
                    prompt.push_str(&said.thought);
                    prompt.push_str("\n</think>\n\n");
                }
                let whole =
                    if self.is_exact || !is_greedy(&fields) { said.text.len() } else { before_tail(&said.text) };
                let (head, tail) = said.text.split_at(whole);
                prompt.push_str(head);
                if !tail.is_empty() {
                    again = Again::Tail { expected: tail.to_owned(), come: String::new() };
                    put = put.saturating_sub(said.lines_behind(whole));
                }
                Thinking::Over
            }
        };
        self.limit(&mut fields, put);
        self.begin(&fields, again, thinking, put, spent);
        let mut raw = Fields::new();
        for name in ["model", "options", "keep_alive", "shift", "logprobs", "top_logprobs"] {
            if let Some(value) = fields.shift_remove(name) {
                raw.insert(name.to_owned(), value);
            }
        }
        raw.extend([("prompt".to_owned(), Value::from(prompt)), ("raw".to_owned(), true.into())]);
        raw.extend([("stream".to_owned(), true.into()), ("think".to_owned(), false.into())]);
        // A prompt that was cut would be another one.
        raw.insert("truncate".to_owned(), false.into());
        Ok(Question { voice: Voice::Generate, body: wire::encode(&raw) })
    }

    fn begin(&mut self, fields: &Fields, again: Again, thinking: Thinking, put: u64, spent: Spent) {
        let stops = Stops::new(stops(fields), &self.said.text);
        self.stage = Stage::Going(Box::new(Seam { again, thinking, stops, put, spent }));
    }

    fn put_trailing(&self, fields: &mut Fields) -> Result<(), Unfit> {
        if self.said.text.is_empty() {
            return Err(Unfit::Thinking);
        }
        if begun_by_client(fields).is_some() {
            return Err(Unfit::Prefilled);
        }
        if self.said.text.len() < REPEATED_MIN {
            return Err(Unfit::Short);
        }
        let messages = fields.get_mut("messages").and_then(Value::as_array_mut).ok_or(Unfit::Request)?;
        let mut message = json!({ "role": "assistant", "content": self.said.text });
        if !self.said.thought.is_empty() {
            message["thinking"] = self.said.thought.clone().into();
        }
        messages.push(message);
        Ok(())
    }

    /// As many tokens as are left of those that were asked for.
    fn limit(&self, fields: &mut Fields, put: u64) {
        if let Some(limit) = left(fields)
            && let Some(options) = fields.get_mut("options").and_then(Value::as_object_mut)
        {
            options.insert("num_predict".to_owned(), limit.saturating_sub(put).max(1).into());
        }
    }

    /// The last line of an answer that is as long as it may be.
    fn full(&self, spent: Spent) -> Bytes {
        let end = End {
            done_reason: Some("length".to_owned()),
            total_duration: i64::try_from(spent.in_all.as_nanos()).ok(),
            eval_duration: i64::try_from(spent.telling.as_nanos()).ok(),
            eval_count: Some(self.said.tokens),
            ..End::default()
        };
        News { end: Some(end), ..News::default() }.line(self.voice, &self.said)
    }
}

fn is_true(fields: &Fields, name: &str) -> bool {
    fields.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn is_some(fields: &Fields, name: &str) -> bool {
    match fields.get(name) {
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::String(text)) => !text.is_empty(),
        _ => false,
    }
}

/// Raw text would show calls of tools as the model writes them, and pictures have their place in the template.
fn needs_template(fields: &Fields) -> bool {
    let messages = fields.get("messages").and_then(Value::as_array);
    let shows = |message: &Value| message["images"].as_array().is_some_and(|images| !images.is_empty());
    is_some(fields, "tools") || messages.is_some_and(|messages| messages.iter().any(shows))
}

/// The beginning of the answer that the client's last message is.
fn begun_by_client(fields: &Fields) -> Option<&str> {
    let last = fields.get("messages")?.as_array()?.last()?;
    let is_assistants = last["role"].as_str().is_some_and(|role| role.eq_ignore_ascii_case("assistant"));
    last["content"].as_str().filter(|content| is_assistants && !content.is_empty())
}

/// The number of tokens asked for, where there is one.
fn left(fields: &Fields) -> Option<u64> {
    let limit = fields.get("options")?.get("num_predict")?;
    limit
        .as_u64()
        .or_else(|| limit.as_f64().filter(|limit| *limit >= 1.0).map(|limit| limit as u64))
        .filter(|limit| *limit > 0)
}

/// The model says the same again for sure, as far as anything is.
fn is_greedy(fields: &Fields) -> bool {
    fields.get("options").and_then(|options| options.get("temperature")).and_then(Value::as_f64) == Some(0.0)
}

fn stops(fields: &Fields) -> Vec<String> {
    let stops = fields.get("options").and_then(|options| options.get("stop")).and_then(Value::as_array);
    let texts = stops.into_iter().flatten().filter_map(Value::as_str);
    texts.filter(|stop| !stop.is_empty()).map(str::to_owned).collect()
}

/// Where the last word begins, with the space before it. Half a word may be other tokens than the model made of it.
fn before_tail(text: &str) -> usize {
    let is_word = |character: char| character.is_alphanumeric();
    if !text.ends_with(is_word) {
        return text.len();
    }
    let word = text.rfind(|character| !is_word(character)).map_or(0, |at| text.ceil_char_boundary(at + 1));
    let before = text[..word].trim_end().len();
    if text.len() - before <= TAIL_MAX { before } else { text.len() }
}
