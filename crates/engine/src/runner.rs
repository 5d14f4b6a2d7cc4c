//! What is asked of a loaded model, and what it answers: plain types, and the traits that whatever runs models has.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::mpsc;

use crate::error::Error;

/// A token's number in its model's vocabulary.
pub type Token = u32;

/// Events that may wait for a slow reader. When they do, that request's slot pauses; the others go on.
pub const EVENTS_MAX: usize = 64;

/// What one step may say of one request: a text and the end. With less room in its channel a request pauses.
pub const EVENTS_PER_STEP: usize = 2;

/// One model, loaded. Dropping the last handle frees it.
pub trait Runner: fmt::Debug + Send + Sync {
    fn facts(&self) -> &Facts;

    /// Whether it still can answer anyone.
    fn is_alive(&self) -> bool;

    /// Waits for nothing but the prompt's tokens; the answer follows as events, once a slot is free.
    fn generate(&self, job: Job) -> BoxFuture<'_, Result<Answer, Error>>;

    /// One vector per input, in order, of length one.
    fn embed(&self, job: EmbedJob) -> BoxFuture<'_, Result<Embedded, Error>>;

    /// As the model would read this text in a prompt.
    fn tokenize(&self, prompt: Prompt) -> BoxFuture<'_, Result<Vec<Token>, Error>>;

    /// The text of these tokens, control tokens included: tokenizing it with `parse_special` gives them back.
    fn detokenize(&self, tokens: Vec<Token>) -> BoxFuture<'_, Result<String, Error>>;
}

/// Turns model files into runners. Its methods block; the library calls them on a thread of their own.
pub trait Loader: fmt::Debug + Send + Sync {
    /// Judged by the header alone: what a load would take, or why it cannot be.
    fn probe(&self, spec: &Spec) -> Result<Need, Error>;

    fn load(&self, spec: &Spec) -> Result<Arc<dyn Runner>, Error>;
}

/// What to load, and how. Two specs that differ in their options cannot share a loaded model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub file: PathBuf,
    pub options: LoadOptions,
}

impl Spec {
    pub fn new(file: impl AsRef<Path>) -> Self {
        Self { file: file.as_ref().to_owned(), options: LoadOptions::default() }
    }
}

/// Those of Ollama's options that take a reload to change. `None` leaves the choice to the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Tokens of one request's context, capped at what the model was trained for.
    pub num_ctx: Option<u32>,
    pub num_batch: Option<u32>,
    /// Layers on the GPU.
    pub num_gpu: Option<u32>,
    pub main_gpu: Option<u32>,
    pub use_mmap: Option<bool>,
    pub num_thread: Option<u32>,
}

/// Memory a load takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    pub weights: u64,
    /// For the contexts of all slots together.
    pub context: u64,
}

impl Need {
    pub fn total(self) -> u64 {
        self.weights.saturating_add(self.context)
    }
}

/// What is known of a model once it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Bytes in all, and the part of them on a GPU.
    pub size: u64,
    pub size_gpu: u64,
    /// Tokens of one request's context.
    pub context: u32,
    pub context_trained: u32,
    /// Requests that run at the same time.
    pub slots: u32,
    /// An embedding model: it does not generate.
    pub only_embeds: bool,
    pub embedding_length: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub text: String,
    /// Begin with the model's own first token, where its tokenizer says so. A text that begins with it already does
    /// not get a second one.
    pub add_bos: bool,
    /// Read the text of control tokens as these tokens, as a rendered chat template needs it.
    pub parse_special: bool,
}

impl Prompt {
    /// As Ollama reads prompts, rendered or raw.
    pub fn rendered(text: impl Into<String>) -> Self {
        Self { text: text.into(), add_bos: true, parse_special: true }
    }
}

/// A request for text.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub prompt: Prompt,
    /// How the answer begins, which is not said again: the model is made to write it, in tokens of its own choice.
    pub begun: String,
    /// The prompt may end within a word, or where another token would end: its last word is taken for `begun`, where
    /// that can be. Not where probabilities or a format are asked for: these begin behind the prompt as it is.
    pub reopens_last_word: bool,
    pub sampling: Sampling,
    /// The answer ends before the first of these to appear; empty ones are ignored.
    pub stop: Vec<String>,
    /// Ollama's `num_predict`. `None` is without limit, which ends at ten contexts all the same.
    pub limit: Option<u32>,
    pub format: Format,
    /// Probabilities of each token, and of this many that might have stood there instead.
    pub logprobs: Option<u8>,
    /// Write control tokens as text, for parsers that look for them.
    pub show_special: bool,
    /// Ollama's `truncate`: what becomes of a prompt that does not fit.
    pub overlong: Overlong,
    /// Ollama's `shift`: what becomes of an answer that does not fit.
    pub when_full: WhenFull,
    /// Tokens at the start of the prompt that survive cutting and shifting; `None` is the whole prompt.
    pub keep: Option<u32>,
}

impl Job {
    /// With Ollama's defaults.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            begun: String::new(),
            reopens_last_word: false,
            sampling: Sampling::default(),
            stop: Vec::new(),
            limit: None,
            format: Format::Free,
            logprobs: None,
            show_special: false,
            overlong: Overlong::Cut,
            when_full: WhenFull::Shift,
            keep: Some(4),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlong {
    /// Drop from the middle, when the answer may shift as well; else refuse.
    Cut,
    Refuse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Forget the older half and go on.
    Shift,
    /// End with [`Ended::Length`].
    End,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    Free,
    /// Any JSON object.
    Json,
    Schema(serde_json::Value),
}

/// How the next token is chosen. Mirostat and its like are no more: Ollama ignores them too.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Zero and below take the likeliest token, always.
    pub temperature: f32,
    /// Zero is without limit.
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub typical_p: f32,
    /// Tokens the penalties look back; `None` is the whole context.
    pub repeat_last_n: Option<u32>,
    pub repeat_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    /// `None` takes a random one.
    pub seed: Option<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.0,
            typical_p: 1.0,
            repeat_last_n: Some(64),
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Valid UTF-8, with nothing in it that could still become a stop string. Empty only where logprobs were asked for.
    Text { text: String, logprobs: Vec<TokenLogprob> },
    /// The last event.
    Done(Done),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    pub ended: Ended,
    /// All of the prompt as it was used, reused tokens included.
    pub prompt_tokens: u32,
    /// Those the slot still held from an earlier request.
    pub reused_tokens: u32,
    pub prompt_time: Duration,
    pub output_tokens: u32,
    pub output_time: Duration,
    /// Prompt and answer, for Ollama's `context`.
    pub context: Vec<Token>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By the model, or by a stop string.
    Stop,
    /// By `limit`, or a full context that may not shift.
    Length,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    pub chosen: Candidate,
    /// Likeliest first; before temperature and the other options.
    pub top: Vec<Candidate>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The token's own bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
    pub logprob: f32,
}

/// An answer as it comes. Dropping it cancels the request at the next step.
#[derive(Debug)]
pub struct Answer {
    events: mpsc::Receiver<Result<Event, Error>>,
    /// Called when a paused request can go on, and when nobody listens any more.
    nudge: Nudge,
    ended: bool,
}

impl Answer {
    /// Both ends of an answer. `nudge` is called whenever the reader makes room for a paused request, and at its end.
    pub fn channel(nudge: impl Fn() + Send + Sync + 'static) -> (mpsc::Sender<Result<Event, Error>>, Self) {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        (sender, Self { events, nudge: Nudge(Box::new(nudge)), ended: false })
    }

    /// The next event; `None` after [`Event::Done`] or an error. May be cancelled: nothing is lost.
    pub async fn next(&mut self) -> Option<Result<Event, Error>> {
        if self.ended {
            return None;
        }
        // A sender that is gone without a last word died with its thread.
        let event = self.events.recv().await.unwrap_or(Err(Error::Stopped));
        // Looked at afterwards: once the request has paused, exactly one reader's step takes the room from too little to
        // just enough, and it is seen here since nothing is added meanwhile.
        if self.events.capacity() <= EVENTS_PER_STEP {
            (self.nudge.0)();
        }
        self.ended = !matches!(event, Ok(Event::Text { .. }));
        Some(event)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.events.close();
        (self.nudge.0)();
    }
}

struct Nudge(Box<dyn Fn() + Send + Sync>);

impl fmt::Debug for Nudge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nudge")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedJob {
    pub inputs: Vec<String>,
    pub overlong: Overlong,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    pub vectors: Vec<Vec<f32>>,
    /// Of all inputs together, as they were used.
    pub tokens: u32,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn text(text: &str) -> Result<Event, Error> {
        Ok(Event::Text { text: text.to_owned(), logprobs: Vec::new() })
    }

    fn answer() -> (mpsc::Sender<Result<Event, Error>>, Answer, Arc<AtomicUsize>) {
        let nudges = Arc::new(AtomicUsize::new(0));
        let counted = nudges.clone();
        let (sender, answer) = Answer::channel(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        (sender, answer, nudges)
    }

    #[tokio::test]
    async fn a_runner_that_dies_ends_its_answers_with_an_error() {
        let (sender, mut answer, _) = answer();
        sender.try_send(text("a")).unwrap();
        drop(sender);
        assert_eq!(answer.next().await.unwrap().unwrap(), text("a").unwrap());
        assert!(matches!(answer.next().await, Some(Err(Error::Stopped))));
        assert!(answer.next().await.is_none());
    }

    #[tokio::test]
    async fn a_reader_nudges_when_it_makes_room_and_when_it_leaves() {
        let (sender, mut answer, nudges) = answer();
        sender.try_send(text("a")).unwrap();
        answer.next().await.unwrap().unwrap();
        assert_eq!(nudges.load(Ordering::SeqCst), 0);
        while sender.capacity() > 0 {
            sender.try_send(text("b")).unwrap();
        }
        answer.next().await.unwrap().unwrap();
        assert_eq!(nudges.load(Ordering::SeqCst), 1);
        drop(answer);
        assert_eq!(nudges.load(Ordering::SeqCst), 2);
        assert!(sender.is_closed());
    }
}
