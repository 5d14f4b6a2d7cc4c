//! What stands behind every proxy: a process of its own that answers as Ollama, as an OpenAI server and as far as
//! sglang-router asks its workers. What it says is in the question, so that all proxies carry the same.
//!
//! `fakes::Ollama` is not used: its pace has a grain of a millisecond, in which what a proxy adds would vanish.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::child::send;
use crate::message::{self, Framing};

/// The one model it has.
pub(crate) const MODEL: &str = "bench:1b";

/// A running one, which ends with this value.
#[derive(Debug)]
pub(crate) struct Backend {
    child: Child,
    at: SocketAddr,
    /// It ends when this is closed, even where nobody is left to end it.
    _lifeline: Option<ChildStdin>,
}

impl Backend {
    pub(crate) fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("role=backend")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start a backend")?;
        let lifeline = child.stdin.take();
        let mut line = String::new();
        let stdout = child.stdout.take().context("stdout is a pipe")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let at = line.trim().parse().with_context(|| format!("a backend said `{line}`"))?;
        Ok(Self { child, at, _lifeline: lifeline })
    }

    pub(crate) fn at(&self) -> SocketAddr {
        self.at
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.at)
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("failed to kill a backend")
    }

    pub(crate) fn freeze(&self) -> Result<()> {
        send(self.child.id(), "STOP")
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // It may have ended by itself, and there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child's side: says where it listens and serves until its stdin ends.
pub(crate) fn serve() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                // How a connection ended is for the proxy to judge.
                let _ = converse(stream);
            });
        }
    });
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn converse(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let Some(head) = message::read_head(&mut reader)? else { return Ok(()) };
        let arrived = Instant::now();
        let mut body = Vec::new();
        if head.framing != Framing::None {
            message::read_body(&mut reader, head.framing, |piece| body.extend_from_slice(piece))?;
        }
        let path = head.first.split(' ').nth(1).unwrap_or_default();
        match path.split('?').next().unwrap_or_default() {
            "/api/chat" => answer(&mut writer, &Face::Ollama, &body, arrived)?,
            "/v1/chat/completions" => answer(&mut writer, &Face::OpenAi, &body, arrived)?,
            path => match about(path) {
                Some(value) => whole(&mut writer, 200, &value.to_string())?,
                None => whole(&mut writer, 404, "{}")?,
            },
        }
        if head.closes {
            return Ok(());
        }
    }
}

/// What proxies look at to know what stands behind them.
fn about(path: &str) -> Option<Value> {
    let details =
        json!({ "format": "gguf", "family": "llama", "parameter_size": "1B", "quantization_level": "Q4_K_M" });
    let digest = "b".repeat(64);
    Some(match path {
        "/" | "/health" | "/health_generate" | "/liveness" | "/readiness" => json!({ "status": "ok" }),
        "/api/version" => json!({ "version": "0.33.0" }),
        "/api/tags" => json!({ "models": [{
            "name": MODEL, "model": MODEL, "modified_at": AT, "size": 1_u32 << 30, "digest": digest, "details": details,
        }] }),
        "/api/ps" => json!({ "models": [{
            "name": MODEL, "model": MODEL, "size": 1_u32 << 30, "digest": digest, "details": details,
            "expires_at": "2099-01-01T00:00:00Z", "size_vram": 1_u32 << 30, "context_length": 8192,
        }] }),
        "/api/show" => json!({ "details": details, "model_info": {}, "capabilities": ["completion"] }),
        "/v1/models" => json!({ "object": "list", "data": [{ "id": MODEL, "object": "model", "owned_by": "bench" }] }),
        "/get_model_info" | "/model_info" => {
            json!({ "model_path": "/bench", "tokenizer_path": "/bench", "is_generation": true })
        }
        "/get_server_info" | "/server_info" => {
            json!({ "model_path": "/bench", "served_model_name": MODEL, "tp_size": 1 })
        }
        "/get_load" => json!([{ "num_reqs": 0, "num_tokens": 0 }]),
        _ => return None,
    })
}

enum Face {
    Ollama,
    OpenAi,
}

/// What a question asks for, in words that every proxy passes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Script {
    pub(crate) streams: bool,
    pub(crate) tokens: u32,
    /// Before the first.
    pub(crate) reading: Duration,
    /// Between two; nothing is not waited for at all.
    pub(crate) pace: Duration,
}

impl Script {
    pub(crate) fn words(&self) -> String {
        format!("say={} read={} pace={} ", self.tokens, self.reading.as_micros(), self.pace.as_micros())
    }

    fn read(body: &[u8]) -> Result<Self> {
        let body: Value = serde_json::from_slice(body)?;
        let words = body["messages"].as_array().and_then(|all| all.last()).context("no messages")?;
        let words = words["content"].as_str().context("no words")?;
        let number = |name: &str| -> Result<u64> {
            let found = words.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            found.and_then(|number| number.parse().ok()).with_context(|| format!("no `{name}`"))
        };
        Ok(Self {
            streams: body["stream"].as_bool().unwrap_or(true),
            tokens: u32::try_from(number("say")?)?,
            reading: Duration::from_micros(number("read")?),
            pace: Duration::from_micros(number("pace")?),
        })
    }
}

/// Token `number` of any answer.
pub(crate) fn token(number: u32) -> String {
    format!(" t{number}")
}

const AT: &str = "2026-01-01T00:00:00Z";

fn answer(to: &mut impl Write, face: &Face, body: &[u8], arrived: Instant) -> Result<()> {
    let Ok(script) = Script::read(body) else { return whole(to, 400, r#"{"error":"no script"}"#) };
    pause(script.reading);
    let begun = Instant::now();
    let Script { streams, tokens, pace, .. } = script;
    let figures = |tokens: u32| {
        json!({
            "done_reason": "stop",
            "total_duration": nanoseconds(arrived), "load_duration": 1000, "prompt_eval_count": 250,
            "prompt_eval_duration": u64::try_from((begun - arrived).as_nanos()).unwrap_or_default().max(1),
            "eval_count": tokens, "eval_duration": nanoseconds(begun),
        })
    };
    if !streams {
        let mut text = String::new();
        for number in 0..tokens {
            pause(pace);
            text += &token(number);
        }
        return whole(to, 200, &match face {
            Face::Ollama => ollama(&text, Some(figures(tokens))).to_string(),
            Face::OpenAi => json!({
                "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL,
                "choices": [{ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" }],
                "usage": { "prompt_tokens": 250, "completion_tokens": tokens, "total_tokens": 250 + tokens },
            })
            .to_string(),
        });
    }
    let kind = match face {
        Face::Ollama => "application/x-ndjson",
        Face::OpenAi => "text/event-stream",
    };
    write!(to, "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n")?;
    for number in 0..tokens {
        pause(pace);
        let text = token(number);
        chunk(
            to,
            &match face {
                Face::Ollama => format!("{}\n", ollama(&text, None)),
                Face::OpenAi => event(&json!({ "content": text }), None),
            },
        )?;
    }
    match face {
        Face::Ollama => chunk(to, &format!("{}\n", ollama("", Some(figures(tokens)))))?,
        Face::OpenAi => {
            chunk(to, &event(&json!({}), Some("stop")))?;
            chunk(to, "data: [DONE]\n\n")?;
        }
    }
    Ok(to.write_all(b"0\r\n\r\n")?)
}

fn ollama(text: &str, figures: Option<Value>) -> Value {
    let mut line = json!({
        "model": MODEL, "created_at": AT, "message": { "role": "assistant", "content": text }, "done": figures.is_some(),
    });
    if let (Some(line), Some(Value::Object(figures))) = (line.as_object_mut(), figures) {
        line.extend(figures);
    }
    line
}

fn event(delta: &Value, finish: Option<&str>) -> String {
    let data = json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
        "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }],
    });
    format!("data: {data}\n\n")
}

fn whole(to: &mut impl Write, status: u16, body: &str) -> Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    Ok(to.write_all((head + body).as_bytes())?)
}

/// Each leaves at once, as from a model.
fn chunk(to: &mut impl Write, text: &str) -> Result<()> {
    Ok(to.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())?)
}

fn pause(length: Duration) {
    if !length.is_zero() {
        thread::sleep(length);
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or_default().max(1)
}
