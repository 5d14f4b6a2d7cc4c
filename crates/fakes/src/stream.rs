//! An answer on its way: one chunk after the other, at the model's pace, and spoilt where a fault says so.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::body::{Broken, Lines, flushed_and_broken};
use crate::counts::{End, Ledger};
use crate::fault::{Fault, Faults};
use crate::infer::{Face, Job, Part, tokens_in};
use crate::json::now;
use crate::refusal::Refusal;
use crate::runner::Slot;
use crate::spoil::{Next, Spoiler};

/// It holds its slot until it is dropped; dropped early, it was cancelled.
#[derive(Debug)]
pub(crate) struct Run {
    job: Job,
    slot: Slot,
    ledger: Arc<Ledger>,
    spoiler: Spoiler,
    arrived: Instant,
    load: Duration,
    prefill: Duration,
    decoding_since: Instant,
    /// Parts that were said.
    said: usize,
    tokens: u32,
    end: Option<End>,
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
            spoiler: Spoiler::new(faults, fault),
            arrived,
            load,
            prefill: Duration::ZERO,
            decoding_since: begun,
            said: 0,
            tokens: 0,
            end: None,
        };
        // The last token is always read anew: what follows it has to be computed.
        let unread = run.job.prompt_tokens.saturating_sub(tokens_in(run.slot.remembered)).max(1);
        let takes = Duration::from_secs_f64(f64::from(unread) / run.job.model.prefill).mul_f64(run.job.slow);
        tokio::time::sleep(takes).await;
        run.decoding_since = Instant::now();
        run.prefill = run.decoding_since - begun;
        run
    }

    /// All in one piece.
    pub(crate) async fn whole(mut self) -> Result<Value, Refusal> {
        match self.spoiler.fault() {
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
        self.spoiler.thawed().await;
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

impl Lines for Run {
    async fn frame(&mut self) -> Option<Result<Bytes, Broken>> {
        match self.spoiler.next().await {
            Next::Break => return Some(Err(flushed_and_broken().await)),
            Next::End => {
                self.end = Some(End::Finished);
                return None;
            }
            Next::Error if self.end.is_none() => {
                self.end = Some(End::Finished);
                return Some(Ok(self.spoiler.line(&json!({ "error": CRASHED })).await));
            }
            Next::Error | Next::Line => {}
        }
        let chunk = self.chunk().await?;
        Some(Ok(self.spoiler.line(&chunk).await))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let end = self.end.unwrap_or(End::Cancelled);
        self.ledger.note(&self.job.model, &self.job.prompt, self.tokens, end);
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
