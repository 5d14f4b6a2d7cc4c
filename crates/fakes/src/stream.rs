//! An answer on its way: one chunk after the other, at the model's pace, and spoilt where a fault says so.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::body::{Broken, GARBAGE, flushed_and_broken};
use crate::counts::{End, Ledger};
use crate::fault::{Fault, Faults};
use crate::infer::{Face, Job, Part, tokens_in};
use crate::json::{encode, now};
use crate::refusal::Refusal;
use crate::runner::Slot;

/// It holds its slot until it is dropped; dropped early, it was cancelled.
#[derive(Debug)]
pub(crate) struct Run {
    job: Job,
    slot: Slot,
    ledger: Arc<Ledger>,
    faults: Faults,
    fault: Option<Fault>,
    arrived: Instant,
    load: Duration,
    prefill: Duration,
    decoding_since: Instant,
    /// Parts that were said.
    said: usize,
    tokens: u32,
    lines: u32,
    bytes: u64,
    end: Option<End>,
    cut: bool,
}

/// What a whole run came to.
#[derive(Debug, Default)]
struct Gathered {
    text: String,
    thinking: String,
    calls: Vec<Value>,
    logprobs: Vec<Value>,
}

impl Run {
    /// Reads the prompt, as fast as the model reads what its slot does not remember.
    pub(crate) async fn begin(
        job: Job,
        slot: Slot,
        (ledger, faults, fault): (Arc<Ledger>, Faults, Option<Fault>),
        arrived: Instant,
        load: Duration,
    ) -> Self {
        let begun = Instant::now();
        let mut run = Self {
            job,
            slot,
            ledger,
            faults,
            fault,
            arrived,
            load,
            prefill: Duration::ZERO,
            decoding_since: begun,
            said: 0,
            tokens: 0,
            lines: 0,
            bytes: 0,
            end: None,
            cut: false,
        };
        // The last token is always read anew: what follows it has to be computed.
        let unread = run.job.prompt_tokens.saturating_sub(tokens_in(run.slot.remembered)).max(1);
        let takes = Duration::from_secs_f64(f64::from(unread) / run.job.model.prefill).mul_f64(run.job.slow);
        tokio::time::sleep(takes).await;
        run.decoding_since = Instant::now();
        run.prefill = run.decoding_since - begun;
        run
    }

    /// The next piece of the body. `None` is its clean end.
    pub(crate) async fn frame(&mut self) -> Option<Result<Bytes, Broken>> {
        self.faults.thawed().await;
        if self.cut {
            return Some(Err(flushed_and_broken().await));
        }
        match self.fault {
            Some(Fault::HangInside { after }) if self.lines >= after => std::future::pending().await,
            Some(Fault::EndEarly { after }) if self.lines >= after => {
                self.end = Some(End::Finished);
                return None;
            }
            Some(Fault::ErrorInside { after }) if self.lines >= after && self.end.is_none() => {
                self.end = Some(End::Finished);
                return Some(Ok(format!("{}\n", encode(&json!({ "error": CRASHED }))).into()));
            }
            _ => {}
        }
        let chunk = self.chunk().await?;
        self.faults.thawed().await;
        self.lines += 1;
        let mut line = match self.fault {
            Some(Fault::Garbage) => Bytes::from_static(GARBAGE.as_bytes()),
            _ => format!("{}\n", encode(&chunk)).into(),
        };
        if let Some(Fault::Cut { at }) = self.fault {
            let left = usize::try_from(at - self.bytes).unwrap_or(usize::MAX);
            self.cut = line.len() >= left;
            line.truncate(left);
        }
        self.bytes += line.len() as u64;
        Some(Ok(line))
    }

    /// All in one piece.
    pub(crate) async fn whole(mut self) -> Result<Value, Refusal> {
        match self.fault {
            Some(Fault::HangInside { .. }) => std::future::pending().await,
            Some(Fault::ErrorInside { .. }) => {
                self.end = Some(End::Finished);
                return Err(Refusal::here(CRASHED));
            }
            _ => {}
        }
        let mut gathered = Gathered::default();
        while let Some((part, logprobs)) = self.part().await {
            match part {
                Part::Thought(text) => gathered.thinking += &text,
                Part::Text(text) => gathered.text += &text,
            }
            gathered.logprobs.extend(logprobs);
        }
        gathered.calls.clone_from(&self.job.calls);
        self.faults.thawed().await;
        Ok(self.finish(gathered))
    }

    async fn chunk(&mut self) -> Option<Value> {
        if self.end.is_some() {
            return None;
        }
        let Some((part, logprobs)) = self.part().await else {
            // Calls come with the end, as on Ollama's newer path.
            let calls = self.job.calls.clone();
            return Some(self.finish(Gathered { calls, ..Gathered::default() }));
        };
        let mut gathered = Gathered { logprobs, ..Gathered::default() };
        match part {
            Part::Thought(text) => gathered.thinking = text,
            Part::Text(text) => gathered.text = text,
        }
        Some(self.written(gathered, None))
    }

    /// The next part, when its time has come. Time is counted from the first, so that rounding does not add up.
    async fn part(&mut self) -> Option<(Part, Vec<Value>)> {
        let part = self.job.parts.get(self.said)?.clone();
        self.said += 1;
        let due = Duration::from_secs_f64(f64::from(self.tokens + 1) / self.job.model.decode).mul_f64(self.job.slow);
        tokio::time::sleep_until(self.decoding_since + due).await;
        self.tokens += 1;
        let (Part::Thought(text) | Part::Text(text)) = &part;
        self.slot.text += text;
        let logprobs = self.job.top_logprobs.map(|top| vec![logprob(text, top)]).unwrap_or_default();
        Some((part, logprobs))
    }

    fn finish(&mut self, gathered: Gathered) -> Value {
        self.end = Some(End::Finished);
        let mut metrics = Map::new();
        let decoding = if self.tokens == 0 { Duration::ZERO } else { self.decoding_since.elapsed() };
        for (name, value) in [
            ("total_duration", nanoseconds(self.arrived.elapsed())),
            ("load_duration", nanoseconds(self.load)),
            ("prompt_eval_count", u64::from(self.job.prompt_tokens)),
            ("prompt_eval_duration", nanoseconds(self.prefill)),
            ("eval_count", u64::from(self.tokens)),
            ("eval_duration", nanoseconds(decoding)),
        ] {
            if value > 0 {
                metrics.insert(name.to_owned(), value.into());
            }
        }
        self.written(gathered, Some(metrics))
    }

    /// The fields in Ollama's order, without those that are empty.
    fn written(&self, gathered: Gathered, metrics: Option<Map<String, Value>>) -> Value {
        let mut chunk = Map::new();
        let mut put = |name: &str, value: Value| chunk.insert(name.to_owned(), value);
        let Gathered { text, thinking, calls, logprobs } = gathered;
        put("model", self.job.asked.clone().into());
        put("created_at", now().into());
        match self.job.face {
            Face::Generate { .. } => {
                put("response", text.into());
                if !thinking.is_empty() {
                    put("thinking", thinking.into());
                }
            }
            Face::Chat => {
                let mut message = json!({ "role": "assistant", "content": text });
                if !thinking.is_empty() {
                    message["thinking"] = thinking.into();
                }
                if !calls.is_empty() {
                    message["tool_calls"] = calls.into();
                }
                put("message", message);
            }
        }
        put("done", metrics.is_some().into());
        if metrics.is_some() {
            put("done_reason", self.job.reason.into());
            if self.job.face == (Face::Generate { raw: false }) {
                put("context", crate::infer::tokens_of(&self.slot.text).into());
            }
        }
        if self.job.face == Face::Chat && !logprobs.is_empty() {
            put("logprobs", logprobs.clone().into());
        }
        for (name, value) in metrics.into_iter().flatten() {
            put(&name, value);
        }
        if self.job.face != Face::Chat && !logprobs.is_empty() {
            put("logprobs", logprobs.into());
        }
        chunk.into()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let end = self.end.unwrap_or(End::Cancelled);
        self.ledger.note(&self.job.model.name, &self.job.prompt, self.tokens, end);
    }
}

const CRASHED: &str = "an error was encountered while running the model: the fake was told to fail";

fn logprob(text: &str, top: usize) -> Value {
    let mut entry = json!({ "token": text, "logprob": -0.5, "bytes": text.as_bytes() });
    if top > 0 {
        let others: Vec<Value> = (0..top)
            .map(|rank| {
                let token = if rank == 0 { text.to_owned() } else { format!("{text}~{rank}") };
                json!({ "token": token, "logprob": -0.5 - rank as f64, "bytes": token.as_bytes() })
            })
            .collect();
        entry["top_logprobs"] = others.into();
    }
    entry
}

pub(crate) fn nanoseconds(length: Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}
