//! `/api/generate` and `/api/chat`: from a request to a prompt, and from the model's text to an answer.

mod answering;
mod settings;
mod telling;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::stream;
use ollama::ModelName;
use ollama::folder::Installed;
use ollama::wire::{
    ChatRequest, Common, DebugInfo, GenerateRequest, InvalidOption, KeepAlive, Message, Options, Think, decode,
};
use serde_json::{Map, Value};

use self::answering::{Answering, Structured};
use self::telling::{Teller, Voice};
use super::Server;
use super::failure::Failure;
use super::known::{Asked, Known, is_missing};
use super::manage::no_cloud;
use super::reply::{self, Reply};
use crate::chat::{Dialogue, Ends, Reader, Rendered, Start, Talk};
use crate::library::{self, Lease};
use crate::runner::{Format, Job, Prompt, Spec, Token};

const TOP_LOGPROBS_MAX: i64 = 20;

/// What is said of a model that is not in the folder.
pub(super) struct NotThere(pub String);

/// A model in the folder.
pub(super) struct Found {
    pub installed: Installed,
    pub known: Arc<Known>,
}

/// A request whose model is loaded.
struct Ready {
    found: Found,
    options: Options,
    lease: Lease,
    think: Option<Think>,
    teller: Teller,
}

/// What to put to the model: chat messages in one of two dresses.
struct Question {
    messages: Vec<Message>,
    tools: Vec<Value>,
    /// What stands before the rendered prompt: an earlier conversation, in tokens.
    context: Option<Vec<Token>>,
}

pub(super) async fn generate(server: Arc<Server>, body: Bytes) -> Result<Reply, Failure> {
    let began = Instant::now();
    let GenerateRequest { common, prompt, suffix, system, template, context, raw, images } = decode(&body)?;
    let name = read_name(&common, Failure::not_found("model '' not found"))?;
    let found = find(&server, name, NotThere(format!("model '{}' not found", common.model))).await?;
    let teller = Teller::new(Voice::Generate { with_context: !raw }, &common.model, began);
    if prompt.is_empty() && asks_to_unload(&common) {
        server.library.unload(&found.known.weights).await;
        return Ok(reply::json(&teller.unloaded()));
    }
    if raw
        && (!template.is_empty() || !system.is_empty() || context.as_ref().is_some_and(|context| !context.is_empty()))
    {
        return Err(Failure::bad_request("raw mode does not support template, system, or context"));
    }
    if !template.is_empty() {
        return Err(crate::chat::Error::OnlyGoTemplate.into());
    }
    let lacks = [(!suffix.is_empty()).then_some("insert"), (!images.is_empty()).then_some("vision")];
    let ready = ready(&server, found, &common, "generate", lacks, teller).await?;
    if prompt.is_empty() {
        return Ok(reply::json(&ready.teller.loaded()));
    }
    if raw {
        // It may be an answer that broke off, in the dress of a prompt.
        let rendered = Rendered { prompt, begun: String::new(), start: Start::Fresh, ends: Ends::Anywhere };
        return answer(ready, &common, rendered, &[]).await;
    }
    let model = &ready.found.known.model;
    let system = if system.is_empty() { model.system.clone().unwrap_or_default() } else { system };
    let mut messages = Vec::new();
    if !system.is_empty() {
        messages.push(said("system", system));
    }
    if context.is_none() {
        messages.extend(model.messages.clone());
    }
    messages.push(said("user", prompt));
    let question = Question { messages, tools: Vec::new(), context };
    put(ready, &server, common, question).await
}

pub(super) async fn chat(server: Arc<Server>, body: Bytes) -> Result<Reply, Failure> {
    let began = Instant::now();
    let ChatRequest { common, messages, tools } = decode(&body)?;
    let name = read_name(&common, Failure::bad_request("model is required"))?;
    let found = find(&server, name, NotThere(format!("model '{}' not found", common.model))).await?;
    let teller = Teller::new(Voice::Chat, &common.model, began);
    if messages.is_empty() && asks_to_unload(&common) {
        server.library.unload(&found.known.weights).await;
        return Ok(reply::json(&teller.unloaded()));
    }
    let sees = messages.iter().any(|message| !message.images.is_empty());
    let calls = !tools.is_empty() && !found.known.dialogue.can_call_tools();
    let lacks = [calls.then_some("tools"), sees.then_some("vision")];
    let ready = ready(&server, found, &common, "chat", lacks, teller).await?;
    let Some(first) = messages.first() else {
        return Ok(reply::json(&ready.teller.loaded()));
    };
    let model = &ready.found.known.model;
    let system = model.system.clone().filter(|_| first.role != "system").map(|system| said("system", system));
    let messages = system.into_iter().chain(model.messages.clone()).chain(messages).collect();
    put(ready, &server, common, Question { messages, tools, context: None }).await
}

fn said(role: &str, content: String) -> Message {
    Message { role: role.to_owned(), content, ..Message::default() }
}

fn read_name(common: &Common, nothing: Failure) -> Result<ModelName, Failure> {
    if !(0..=TOP_LOGPROBS_MAX).contains(&common.top_logprobs) {
        return Err(Failure::bad_request("top_logprobs must be between 0 and 20"));
    }
    match Asked::read(&common.model) {
        Asked::Named(name) => Ok(name),
        Asked::Nothing => Err(nothing),
        Asked::Invalid => Err(Failure::bad_request("invalid model name")),
        Asked::Cloud => Err(no_cloud("remote model is unavailable")),
    }
}

fn asks_to_unload(common: &Common) -> bool {
    common.keep_alive == Some(KeepAlive::For(Duration::ZERO))
}

pub(super) async fn find(server: &Arc<Server>, name: ModelName, not_there: NotThere) -> Result<Found, Failure> {
    let found = server.beside(move |server| {
        let installed = server.folder.find(&name).map_err(|error| match is_missing(&error) {
            true => Failure::not_found(not_there.0),
            false => error.into(),
        })?;
        let known = server.known(&installed)?;
        Ok(Found { installed, known })
    });
    found.await
}

impl Found {
    /// The request's over the model's own.
    pub(super) fn options(&self, requested: &Map<String, Value>) -> Result<Options, InvalidOption> {
        Options::read([&self.known.model.params, requested])
    }
}

pub(super) async fn load(
    server: &Arc<Server>,
    found: &Found,
    options: &Options,
    keep_alive: Option<KeepAlive>,
) -> Result<Lease, Failure> {
    let spec = Spec { options: settings::of_load(options), ..Spec::new(&found.known.weights) };
    let keep_alive = keep_alive.map_or_else(library::KeepAlive::default, |keep_alive| match keep_alive {
        KeepAlive::For(time) => library::KeepAlive::For(time),
        KeepAlive::Forever => library::KeepAlive::Forever,
    });
    server.shelf.called(found.known.weights.clone(), found.installed.name.clone());
    Ok(server.library.acquire(spec, keep_alive).await?)
}

/// Checks what is asked against what the model can, then loads it.
async fn ready(
    server: &Arc<Server>,
    found: Found,
    common: &Common,
    verb: &str,
    lacks: [Option<&str>; 2],
    mut teller: Teller,
) -> Result<Ready, Failure> {
    let (model, dialogue) = (&common.model, &found.known.dialogue);
    if found.known.facts.embeds {
        return Err(Failure::bad_request(format!("{model:?} does not support {verb}")));
    }
    let think = match common.think {
        Some(think) if think.is_on() && !dialogue.can_think() => {
            return Err(Failure::bad_request(format!("{model:?} does not support thinking")));
        }
        None => dialogue.can_think().then_some(Think::On),
        think => think,
    };
    if let Some(ability) = lacks.into_iter().flatten().next() {
        return Err(Failure::bad_request(format!("{} does not support {ability}", found.installed.name.full())));
    }
    let options = found.options(&common.options)?;
    let lease = load(server, &found, &options, common.keep_alive).await?;
    teller.is_loaded();
    Ok(Ready { found, options, lease, think, teller })
}

/// Renders the messages, the oldest left out where all are too long, and answers.
async fn put(ready: Ready, server: &Arc<Server>, common: Common, question: Question) -> Result<Reply, Failure> {
    let Question { messages, tools, context } = question;
    let earlier = match context {
        Some(tokens) => ready.lease.detokenize(tokens).await?,
        None => String::new(),
    };
    let mut fitting = Fitting { server, ready: &ready, messages: Arc::new(messages), tools: Arc::new(tools), earlier };
    let rendered = match common.truncate.unwrap_or(true) {
        true => fitting.render_what_fits().await?,
        false => fitting.render_from(0).await?,
    };
    let tools = std::mem::take(&mut fitting.tools);
    answer(ready, &common, rendered, &tools).await
}

struct Fitting<'a> {
    server: &'a Arc<Server>,
    ready: &'a Ready,
    messages: Arc<Vec<Message>>,
    tools: Arc<Vec<Value>>,
    earlier: String,
}

impl Fitting<'_> {
    /// System messages stay, and the last one. Which others must go is found by halving: fewer messages never make a
    /// longer prompt, or not by much.
    async fn render_what_fits(&self) -> Result<Rendered, Failure> {
        let context = self.ready.lease.facts().context as usize;
        let (mut too_long, mut last) = (0, self.messages.len() - 1);
        let mut shortest = self.render_from(0).await?;
        if last == 0 || self.count(&shortest).await? <= context {
            return Ok(shortest);
        }
        shortest = self.render_from(last).await?;
        while last - too_long > 1 {
            let middle = too_long.midpoint(last);
            let rendered = self.render_from(middle).await?;
            if self.count(&rendered).await? <= context {
                (last, shortest) = (middle, rendered);
            } else {
                too_long = middle;
            }
        }
        Ok(shortest)
    }

    async fn count(&self, rendered: &Rendered) -> Result<usize, Failure> {
        Ok(self.ready.lease.tokenize(Prompt::rendered(format!("{}{}", rendered.prompt, rendered.begun))).await?.len())
    }

    /// With all messages from `first` on.
    async fn render_from(&self, first: usize) -> Result<Rendered, Failure> {
        let (known, messages, tools) = (self.ready.found.known.clone(), self.messages.clone(), self.tools.clone());
        let (think, earlier) = (self.ready.think, self.earlier.clone());
        // A hostile template may take seconds.
        let rendered = self.server.beside(move |_| {
            let kept = messages[..first].iter().filter(|message| message.role == "system");
            let messages: Vec<Message> = kept.chain(&messages[first..]).cloned().collect();
            let talk = Talk { messages: &messages, tools: &tools, think };
            let rendered = known.dialogue.render(talk, SystemTime::now())?;
            Ok(Rendered { prompt: earlier + &rendered.prompt, ..rendered })
        });
        rendered.await
    }
}

async fn answer(ready: Ready, common: &Common, rendered: Rendered, tools: &[Value]) -> Result<Reply, Failure> {
    let Ready { found, options, lease, think, teller } = ready;
    if common.debug_render_only {
        let rendered_template = rendered.prompt + &rendered.begun;
        return Ok(reply::json(&teller.rendered(DebugInfo { rendered_template, image_count: 0 })));
    }
    let format = settings::format(common.format.clone())?;
    let dialogue = &found.known.dialogue;
    let talk = Talk { messages: &[], tools, think };
    let mut job = settings::job(&rendered.prompt, &options, common);
    job.reopens_last_word = rendered.ends == Ends::Anywhere;
    // Marks of thoughts and calls are control tokens to some models.
    job.begun.clone_from(&rendered.begun);
    job.show_special = !tools.is_empty() || dialogue.can_think();
    let reader = dialogue.reader(talk, rendered.start);
    let answering = begin(lease, job, format, reader, dialogue, think, rendered).await?;
    tell(answering, teller, common.streams()).await
}

/// A format binds from the first token on, and so would forbid to think: who thinks does so before it binds.
async fn begin(
    lease: Lease,
    job: Job,
    format: Format,
    reader: Reader,
    dialogue: &Dialogue,
    think: Option<Think>,
    rendered: Rendered,
) -> Result<Answering, Failure> {
    let thinks_first = dialogue.can_think() && think.is_some_and(Think::is_on) && rendered.start != Start::Content;
    let started = match format {
        Format::Free => Answering::start(lease, job, reader).await,
        format if thinks_first => Answering::think_first(lease, Structured { job, format }, reader).await,
        format => Answering::start(lease, Job { format, ..job }, reader).await,
    };
    Ok(started?)
}

/// The first part decides the status; what fails later ends the stream with a line that says so.
async fn tell(mut answering: Answering, mut teller: Teller, streams: bool) -> Result<Reply, Failure> {
    if !streams {
        loop {
            match answering.next().await {
                Some(Ok(part)) => teller.keep(part),
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(reply::json(&teller.whole())),
            }
        }
    }
    let Some(first) = answering.next().await else { return Err(crate::Error::Stopped.into()) };
    let first = teller.line(first?);
    let rest = stream::unfold((answering, teller), |(mut answering, mut teller)| async move {
        let line = match answering.next().await? {
            Ok(part) => teller.line(part),
            Err(error) => Teller::broken(&error),
        };
        Some((line, (answering, teller)))
    });
    Ok(reply::lines(stream::StreamExt::chain(stream::iter([first]), rest)))
}
