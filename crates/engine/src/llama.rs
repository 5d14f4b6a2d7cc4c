//! Models run by llama.cpp, each on a thread of its own, in this process. A file that brings llama.cpp down brings the
//! process down: it is a child of the node for that reason.

mod embed;
mod load;
mod sampler;
mod slot;
mod worker;

use std::fmt;
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use futures::FutureExt;
use futures::future::BoxFuture;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use ollama::Head;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use self::embed::EmbedRequest;
use self::load::{Plan, Ready};
use self::sampler::Chooser;
use self::slot::Request;
use self::worker::Command;
use crate::error::Error;
use crate::machine;
use crate::runner::{
    Answer, EmbedJob, Embedded, Facts, Format, Job, Loader, Need, Overlong, Prompt, Runner, Spec, Token,
};
use crate::text::{StopStrings, Writer, cuts};
use crate::window::Window;

/// How many models' requests are run and kept waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Requests of one model that run at once. `None` is as many as memory has room for, at most four.
    pub slots: Option<u32>,
    /// Requests of one model that wait beyond those that run; more are refused. Default 512.
    pub queue_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { slots: None, queue_max: 512 }
    }
}

/// Tokens of a request's context where neither the spec nor the file says.
const CONTEXT_DEFAULT: u32 = 4096;
/// Slots a model gets at most when nobody says how many.
const SLOTS_DEFAULT: u32 = 4;
/// llama.cpp's own limit.
const SLOTS_MAX: u32 = 256;

/// Loads models with llama.cpp.
#[derive(Clone, Debug)]
pub struct Llama {
    config: Config,
}

impl Llama {
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    fn plan(&self, spec: &Spec) -> Result<Plan, Error> {
        let facts = judged(&spec.file)?;
        let trained = facts.context_length.and_then(|length| u32::try_from(length).ok()).unwrap_or(CONTEXT_DEFAULT);
        let asked = spec.options.num_ctx.filter(|context| *context > 0).unwrap_or(CONTEXT_DEFAULT);
        let context = asked.min(trained).max(Window::SMALLEST);
        let bytes_for = |slots: u32| facts.memory_bytes(u64::from(context) * u64::from(slots));
        let slots = match self.config.slots {
            Some(slots) => slots.clamp(1, SLOTS_MAX),
            None => roomy(machine::memory_available().unwrap_or(u64::MAX), bytes_for),
        };
        Ok(Plan {
            spec: spec.clone(),
            context,
            context_trained: trained,
            slots,
            only_embeds: facts.embeds,
            layers: facts.block_count.unwrap_or(0).saturating_add(1),
            weight_bytes: facts.weight_bytes,
            context_bytes: bytes_for(slots).saturating_sub(facts.weight_bytes),
        })
    }
}

/// As many slots as leave half of the memory to others, at least one.
fn roomy(available: u64, bytes_for: impl Fn(u32) -> u64) -> u32 {
    (2..=SLOTS_DEFAULT).rev().find(|slots| bytes_for(*slots) <= available / 2).unwrap_or(1)
}

/// What the file's header says of it, where this engine can run it.
fn judged(path: &Path) -> Result<gguf::Facts, Error> {
    let unreadable = |source| Error::File { path: path.to_owned(), source: Arc::new(source) };
    let head = Head::read(path).map_err(unreadable)?;
    let cannot = |reason: &dyn fmt::Display| Error::CannotRun { reason: reason.to_string() };
    let header = head.header().map_err(|reason| cannot(&reason))?;
    // Whether there is room is asked elsewhere: it depends on what else is loaded.
    let host = gguf::Host { memory_bytes: u64::MAX, cpu_lacks: machine::cpu_lacks() };
    gguf::probe(&header, gguf::Needs { cached_tokens: 0 }, host).map_err(|reason| cannot(&reason))
}

impl Loader for Llama {
    fn probe(&self, spec: &Spec) -> Result<Need, Error> {
        let plan = self.plan(spec)?;
        Ok(Need { weights: plan.weight_bytes, context: plan.context_bytes })
    }

    fn load(&self, spec: &Spec) -> Result<Arc<dyn Runner>, Error> {
        let plan = self.plan(spec)?;
        let places = Arc::new(Semaphore::new(plan.slots as usize + self.config.queue_max));
        let (inbox, commands) = mpsc::channel();
        let (ready, told) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name("model".to_owned()).spawn(move || load::run(plan, commands, ready));
        let thread = thread.map_err(|error| Error::CannotRun { reason: error.to_string() })?;
        // Without a word the thread died while it loaded.
        let Ready { model, facts, embed_tokens } = told.recv().unwrap_or(Err(Error::Stopped))?;
        Ok(Arc::new(Model { facts, embed_tokens, model, places, inbox, thread: Mutex::new(Some(thread)) }))
    }
}

/// The handle of a loaded model. Its end stops the thread and waits for it, which takes as long as one step: afterwards
/// the memory is free.
struct Model {
    facts: Facts,
    embed_tokens: u32,
    model: Arc<LlamaModel>,
    /// One for each request that may run or wait.
    places: Arc<Semaphore>,
    inbox: Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        let _ = self.inbox.send(Command::Stop);
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of a model panicked");
        }
    }
}

impl Model {
    fn place(&self) -> Result<OwnedSemaphorePermit, Error> {
        self.places.clone().try_acquire_owned().map_err(|_| Error::Busy)
    }

    fn send(&self, command: Command) -> Result<(), Error> {
        self.inbox.send(command).map_err(|_| Error::Stopped)
    }
}

/// Work on the vocabulary is done beside the model's thread, so that a long prompt delays nobody's answer.
async fn beside<T: Send + 'static>(
    model: &Arc<LlamaModel>,
    work: impl FnOnce(&LlamaModel) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let model = model.clone();
    tokio::task::spawn_blocking(move || work(&model)).await.unwrap_or(Err(Error::Stopped))
}

impl Runner for Model {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn is_alive(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn generate(&self, job: Job) -> BoxFuture<'_, Result<Answer, Error>> {
        async move {
            if self.facts.only_embeds {
                return Err(Error::OnlyEmbeds);
            }
            let place = self.place()?;
            let inbox = self.inbox.clone();
            let (events, answer) = Answer::channel(move || {
                let _ = inbox.send(Command::Nudge);
            });
            let context = self.facts.context;
            let request = beside(&self.model, move |model| {
                let (prompt, job) = opened(model, job);
                let (prompt, window) = fit(prompt, model, &job, context)?;
                let seen: Vec<_> = prompt.iter().map(|token| LlamaToken(*token as i32)).collect();
                Ok(Request {
                    chooser: Chooser::new(model, &job, &seen)?,
                    writer: Writer::new(StopStrings::new(job.stop), window.limit(job.limit)),
                    prompt,
                    window,
                    logprobs: job.logprobs.map(usize::from),
                    show_special: job.show_special,
                    events,
                    _place: place,
                })
            });
            self.send(Command::Generate(Box::new(request.await?)))?;
            Ok(answer)
        }
        .boxed()
    }

    fn embed(&self, job: EmbedJob) -> BoxFuture<'_, Result<Embedded, Error>> {
        async move {
            if job.inputs.is_empty() {
                return Ok(Embedded { vectors: Vec::new(), tokens: 0 });
            }
            let place = self.place()?;
            let most = self.embed_tokens;
            let inputs = beside(&self.model, move |model| {
                job.inputs.into_iter().map(|text| fit_input(model, text, most, job.overlong)).collect()
            });
            let (answer, answered) = oneshot::channel();
            self.send(Command::Embed(EmbedRequest { inputs: inputs.await?, answer, place }))?;
            answered.await.unwrap_or(Err(Error::Stopped))
        }
        .boxed()
    }

    fn tokenize(&self, prompt: Prompt) -> BoxFuture<'_, Result<Vec<Token>, Error>> {
        beside(&self.model, move |model| Ok(tokenize(model, &prompt))).boxed()
    }

    fn detokenize(&self, tokens: Vec<Token>) -> BoxFuture<'_, Result<String, Error>> {
        beside(&self.model, move |model| {
            let vocab = model.vocab();
            let size = vocab.n_tokens() as u32;
            if let Some(unknown) = tokens.iter().find(|token| **token >= size) {
                return Err(Error::Token(*unknown));
            }
            let pieces = tokens.iter().map(|token| vocab.token_to_piece(LlamaToken(*token as i32), true, None));
            let bytes: Vec<u8> = pieces.flatten().collect();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        })
        .boxed()
    }
}

fn tokenize(model: &LlamaModel, prompt: &Prompt) -> Vec<Token> {
    let vocab = model.vocab();
    let mut tokens = vocab.tokenize(prompt.text.as_bytes(), prompt.add_bos, prompt.parse_special);
    // A template that writes it, and a tokenizer that adds it.
    if prompt.add_bos && vocab.should_add_bos() && tokens.len() > 1 && tokens[..2] == [vocab.bos(); 2] {
        tokens.remove(0);
    }
    tokens.into_iter().map(|token| token.0 as Token).collect()
}

/// The tokens of the prompt, and what of it the model is to write again.
fn opened(model: &LlamaModel, mut job: Job) -> (Vec<Token>, Job) {
    let whole = tokenize(model, &job.prompt);
    if !job.reopens_last_word || job.logprobs.is_some() || job.format != Format::Free {
        return (whole, job);
    }
    let vocab = model.vocab();
    let is_control = |token: &Token| vocab.token_to_piece(LlamaToken(*token as i32), false, None).is_empty();
    let controls = |tokens: &[Token]| tokens.iter().filter(|token| is_control(token)).count();
    for cut in cuts(&job.prompt.text).into_iter().rev() {
        let (head, tail) = job.prompt.text.split_at(cut);
        let kept = tokenize(model, &Prompt { text: head.to_owned(), ..job.prompt });
        // A control token is written by nobody, so none may be in what is left out.
        if !kept.is_empty() && controls(&kept) == controls(&whole) {
            job.begun = tail.to_owned();
            return (kept, job);
        }
    }
    (whole, job)
}

fn fit(mut prompt: Vec<Token>, model: &LlamaModel, job: &Job, context: u32) -> Result<(Vec<Token>, Window), Error> {
    if prompt.is_empty() {
        return Err(Error::PromptEmpty);
    }
    let bos = u32::from(job.prompt.add_bos && model.vocab().should_add_bos());
    let window = Window {
        context,
        keep: job.keep.map(|keep| keep.saturating_add(bos)),
        overlong: job.overlong,
        when_full: job.when_full,
    };
    let tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
    let cut = window.cut(tokens).map_err(|_| Error::PromptTooLong { tokens, context })?;
    prompt.drain(cut.start as usize..cut.end as usize);
    Ok((prompt, window))
}

fn fit_input(model: &LlamaModel, text: String, most: u32, overlong: Overlong) -> Result<Vec<Token>, Error> {
    let prompt = Prompt { text, add_bos: true, parse_special: false };
    let mut tokens = tokenize(model, &prompt);
    let length = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
    if length > most {
        if overlong == Overlong::Refuse {
            return Err(Error::InputTooLong { tokens: length, context: most });
        }
        // The closing token is part of what such models are trained on.
        let vocab = model.vocab();
        let closing = tokens.last().copied().filter(|_| vocab.should_add_eos() || vocab.should_add_sep());
        tokens.truncate(most as usize);
        if let (Some(last), Some(closing)) = (tokens.last_mut(), closing) {
            *last = closing;
        }
    }
    if tokens.is_empty() { Err(Error::PromptEmpty) } else { Ok(tokens) }
}

#[cfg(test)]
mod tests;
