//! A server on loopback, a model folder with one model, and a runner that says what it is told to.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use ollama::Folder;
use ollama::folder::Texts;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::library::{self, Library};
use crate::runner::{
    Answer, Done, EmbedJob, Embedded, Ended, Event, Facts, Job, Loader, Need, Prompt, Runner, Spec, Token,
};
use crate::serve::{Config, SECRET_HEADER, Secret, Server};

pub(super) type Said = Result<Event, Error>;

/// Long for a machine that does something else as well; nothing here waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(30);

/// Says one script per request, in order. One token is one character.
#[derive(Debug)]
pub(super) struct Script {
    facts: Facts,
    scripts: Mutex<VecDeque<Vec<Said>>>,
    jobs: Mutex<Vec<Job>>,
    embeds: Mutex<Vec<EmbedJob>>,
    specs: Mutex<Vec<Spec>>,
    /// Of answers whose script does not end: they go on for ever.
    open: Mutex<Vec<mpsc::Sender<Said>>>,
}

impl Script {
    fn new(context: u32) -> Self {
        let facts = Facts {
            size: 1000,
            size_gpu: 400,
            context,
            context_trained: 64,
            slots: 1,
            only_embeds: false,
            embedding_length: 4,
        };
        Self {
            facts,
            scripts: Mutex::default(),
            jobs: Mutex::default(),
            embeds: Mutex::default(),
            specs: Mutex::default(),
            open: Mutex::default(),
        }
    }

    pub(super) fn says(&self, script: impl IntoIterator<Item = Said>) {
        self.scripts.lock().unwrap().push_back(script.into_iter().collect());
    }

    pub(super) fn jobs(&self) -> Vec<Job> {
        self.jobs.lock().unwrap().clone()
    }

    pub(super) fn prompts(&self) -> Vec<String> {
        self.jobs().into_iter().map(|job| job.prompt.text).collect()
    }

    pub(super) fn embeds(&self) -> Vec<EmbedJob> {
        self.embeds.lock().unwrap().clone()
    }

    pub(super) fn specs(&self) -> Vec<Spec> {
        self.specs.lock().unwrap().clone()
    }

    /// The latest answer whose script did not end.
    pub(super) fn open(&self) -> mpsc::Sender<Said> {
        self.open.lock().unwrap().last().expect("a script without an end").clone()
    }
}

pub(super) fn text(text: &str) -> Said {
    Ok(Event::Text { text: text.to_owned(), logprobs: Vec::new() })
}

pub(super) fn done(ended: Ended) -> Said {
    Ok(Event::Done(Done {
        ended,
        prompt_tokens: 5,
        reused_tokens: 2,
        prompt_time: Duration::from_millis(3),
        output_tokens: 2,
        output_time: Duration::from_millis(4),
        context: vec![7, 8],
    }))
}

impl Runner for Script {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn is_alive(&self) -> bool {
        true
    }

    fn generate(&self, job: Job) -> BoxFuture<'_, Result<Answer, Error>> {
        self.jobs.lock().unwrap().push(job);
        let script = self.scripts.lock().unwrap().pop_front().expect("a script for every request");
        let (sender, answer) = Answer::channel(|| ());
        let ends = !matches!(script.last(), Some(Ok(Event::Text { .. })));
        for said in script {
            sender.try_send(said).expect("scripts fit into the channel");
        }
        if !ends {
            self.open.lock().unwrap().push(sender);
        }
        async { Ok(answer) }.boxed()
    }

    fn embed(&self, job: EmbedJob) -> BoxFuture<'_, Result<Embedded, Error>> {
        self.embeds.lock().unwrap().push(job.clone());
        let failed = job.inputs.iter().any(|input| input == "fail");
        let vectors = job.inputs.iter().map(|_| vec![0.5; 4]).collect();
        let tokens = job.inputs.iter().map(|input| input.len() as u32).sum();
        async move {
            if failed { Err(Error::InputTooLong { tokens: 9, context: 8 }) } else { Ok(Embedded { vectors, tokens }) }
        }
        .boxed()
    }

    fn tokenize(&self, prompt: Prompt) -> BoxFuture<'_, Result<Vec<Token>, Error>> {
        async move { Ok(prompt.text.chars().map(u32::from).collect()) }.boxed()
    }

    fn detokenize(&self, tokens: Vec<Token>) -> BoxFuture<'_, Result<String, Error>> {
        let text = tokens.into_iter().map(|token| char::from_u32(token).ok_or(Error::Token(token))).collect();
        async move { text }.boxed()
    }
}

#[derive(Debug)]
struct Scripts(Arc<Script>);

impl Loader for Scripts {
    /// A byte for each token.
    fn probe(&self, spec: &Spec) -> Result<Need, Error> {
        Ok(Need { weights: 600, context: spec.options.num_ctx.map_or(400, u64::from) })
    }

    fn load(&self, spec: &Spec) -> Result<Arc<dyn Runner>, Error> {
        self.0.specs.lock().unwrap().push(spec.clone());
        Ok(self.0.clone())
    }
}

/// For all models together.
pub(super) const MEMORY: u64 = 1 << 20;

pub(super) struct Rig {
    pub address: SocketAddr,
    pub script: Arc<Script>,
    pub shutdown: CancellationToken,
    pub tasks: JoinSet<()>,
    secret: Secret,
    scratch: TempDir,
}

pub(super) struct Told {
    pub status: u16,
    pub kind: String,
    pub text: String,
}

impl Told {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The lines of a stream, times and durations made the same for all runs.
    pub(super) fn lines(&self) -> Vec<String> {
        assert_eq!(self.kind, "application/x-ndjson");
        assert!(self.text.ends_with('\n'));
        self.text.lines().map(steady).collect()
    }
}

/// Keeps the order of fields, which is part of what is checked.
pub(super) fn steady(line: &str) -> String {
    let mut value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    if let Some(created) = value.get_mut("created_at") {
        let text = created.as_str().expect("a time is text");
        assert!(text.ends_with('Z') && text.len() > 20, "{text}");
        *created = "T".into();
    }
    for duration in ["total_duration", "load_duration"] {
        if let Some(duration) = value.get_mut(duration) {
            assert!(duration.as_u64().is_some_and(|nanoseconds| nanoseconds > 0));
            *duration = 1.into();
        }
    }
    value.to_string()
}

/// The template of most tests: short, and with all that templates are asked for.
pub(super) const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]";

impl Rig {
    pub(super) async fn new() -> Self {
        Self::with(TEMPLATE, &Texts::default(), 4096).await
    }

    /// A folder with the model `tiny`.
    pub(super) async fn with(template: &str, texts: &Texts, context: u32) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let folder = Folder::open(scratch.path()).unwrap();
        let file = gguf::build::File::tiny_llama().text("tokenizer.chat_template", template);
        folder.install(&"tiny".parse().unwrap(), &mut file.bytes().as_slice(), texts).unwrap();
        let embedder = file.u32("llama.pooling_type", 1).bytes();
        folder.install(&"vectors".parse().unwrap(), &mut embedder.as_slice(), &Texts::default()).unwrap();

        let script = Arc::new(Script::new(context));
        let mut tasks = JoinSet::new();
        let config = library::Config { memory: Some(MEMORY), ..library::Config::default() };
        let (library, task) = Library::new(config, Arc::new(Scripts(script.clone())));
        tasks.spawn(task.run(CancellationToken::new()));
        let secret = Secret::random();
        let config = Config { secret: secret.clone(), version: "0.0.1-test".to_owned() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        tasks.spawn(Server::new(config, folder, library).run(listener, shutdown.clone()));
        Self { address, script, shutdown, tasks, secret, scratch }
    }

    pub(super) fn folder(&self) -> Folder {
        Folder::open(self.scratch.path()).unwrap()
    }

    pub(super) async fn call(&self, method: &str, path: &str, body: &str) -> Told {
        self.call_with(self.secret.expose(), method, path, body).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Told {
        self.call("POST", path, &body.to_string()).await
    }

    pub(super) async fn call_with(&self, secret: &str, method: &str, path: &str, body: &str) -> Told {
        let (response, _connection) = self.open(secret, method, path, body).await;
        let status = response.status().as_u16();
        let kind = response.headers().get("content-type").map_or("", |kind| kind.to_str().unwrap()).to_owned();
        let bytes = within(response.into_body().collect()).await.unwrap().to_bytes();
        Told { status, kind, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    /// A response whose body is still to come. Dropping the connection's set hangs up.
    pub(super) async fn start(&self, path: &str, body: &Value) -> (hyper::Response<Incoming>, JoinSet<()>) {
        self.open(self.secret.expose(), "POST", path, &body.to_string()).await
    }

    async fn open(
        &self,
        secret: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> (hyper::Response<Incoming>, JoinSet<()>) {
        let request =
            Request::builder().method(method).uri(path).header("host", "engine").header(SECRET_HEADER, secret);
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        let (mut sender, connection) = self.connect().await;
        (within(sender.send_request(request)).await.unwrap(), connection)
    }

    pub(super) async fn connect(&self) -> (http1::SendRequest<Full<Bytes>>, JoinSet<()>) {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // A server that ends a connection early is seen in the response.
            let _ = connection.await;
        });
        (sender, driver)
    }

    pub(super) fn secret(&self) -> &str {
        self.secret.expose()
    }
}

pub(super) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it took too long")
}
