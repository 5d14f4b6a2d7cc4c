//! Somebody who asks one question after the other on a connection that is kept, and looks closely at how it ends.

use std::io::{BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use crate::backend::{self, MODEL, Script};
use crate::message::{self, Head};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    /// `/api/chat`
    Ollama,
    /// `/v1/chat/completions`
    OpenAi,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) at: SocketAddr,
    pub(crate) api: Api,
}

#[derive(Debug)]
pub(crate) struct Client {
    target: Target,
    /// So long silence, and the answer is given up.
    patience: Duration,
    connection: Option<BufReader<TcpStream>>,
    body: Vec<u8>,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Whole,
    /// By a status that is no success, and its text.
    Refused(String),
    /// The connection went before the answer had begun.
    Unanswered,
    Hung,
    /// The connection went in the middle, as a client can tell.
    Broken,
    /// An error stands where the rest should be.
    Told,
    /// All looks well, and something is missing or wrong.
    Feigned,
}

#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    pub(crate) end: End,
    /// The longest time without a byte, and when it was over.
    pub(crate) silence: (Duration, Instant),
}

/// What comes before every question: with it a request has the size of a short conversation.
const SYSTEM: &str = "You answer questions about machines in a house: which of them are on, what they run, how warm they \
    are, who uses them and when they were last looked after. You keep to what you were told, say so where you do not know, \
    and never guess a number. You answer in one sentence where one will do. Where somebody asks you to change something, \
    you say what you would change and what it would cost, and wait for a yes. Where two people want different things, you \
    name both and decide nothing. You do not tell one person what another has asked. You write plain words without \
    headings, lists or emphasis, in the language of the question, and give times as hours and minutes, temperatures in \
    degrees Celsius, sizes in gigabytes and powers in watts. You never repeat the question, and never say who made you.";

impl Client {
    pub(crate) fn new(target: Target, patience: Duration) -> Self {
        Self { target, patience, connection: None, body: Vec::new() }
    }

    /// `who` and `number` make the question unlike any other.
    pub(crate) fn ask(&mut self, script: Script, who: usize, number: u64) -> Asked {
        let body = format!(
            r#"{{"model":"{MODEL}","stream":{},"messages":[{{"role":"system","content":"{SYSTEM}"}},{{"role":"user","content":"{}and tell {who} of {number:08}"}}]}}"#,
            script.streams,
            script.words(),
        );
        let path = match self.target.api {
            Api::Ollama => "/api/chat",
            Api::OpenAi => "/v1/chat/completions",
        };
        let (at, length) = (self.target.at, body.len());
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {at}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let began = Instant::now();
        let mut heard = Heard { last: began, silence: (Duration::ZERO, began) };
        let end = match self.exchange(&request, &mut heard) {
            Ok(head) => {
                if head.closes {
                    self.connection = None;
                }
                self.judge(&head, script)
            }
            Err(error) => {
                self.connection = None;
                match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => End::Hung,
                    _ if self.body.is_empty() => End::Unanswered,
                    _ => End::Broken,
                }
            }
        };
        heard.now();
        Asked { began, ended: Instant::now(), end, silence: heard.silence }
    }

    fn exchange(&mut self, request: &str, heard: &mut Heard) -> std::io::Result<Head> {
        self.body.clear();
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let stream = TcpStream::connect_timeout(&self.target.at, self.patience)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(self.patience))?;
                stream.set_write_timeout(Some(self.patience))?;
                none.insert(BufReader::new(stream))
            }
        };
        connection.get_mut().write_all(request.as_bytes())?;
        let head = message::read_head(connection)?.ok_or(ErrorKind::UnexpectedEof)?;
        let body = &mut self.body;
        message::read_body(connection, head.framing, |piece| {
            heard.now();
            body.extend_from_slice(piece);
        })?;
        Ok(head)
    }

    /// What is to be thought of an answer whose HTTP is in order.
    fn judge(&self, head: &Head, script: Script) -> End {
        let status = head.first.split(' ').nth(1).unwrap_or_default();
        if status != "200" {
            let text: String = String::from_utf8_lossy(&self.body).chars().take(200).collect();
            return End::Refused(format!("{status} {text}"));
        }
        match said(&self.body, script.streams) {
            Ok((text, true)) if text == (0..script.tokens).map(backend::token).collect::<String>() => End::Whole,
            Ok(_) => End::Feigned,
            Err(Wrong::Told) => End::Told,
            Err(Wrong::Unreadable) => End::Feigned,
        }
    }
}

/// When bytes came.
struct Heard {
    last: Instant,
    silence: (Duration, Instant),
}

impl Heard {
    fn now(&mut self) {
        let now = Instant::now();
        let silence = now - self.last;
        if silence > self.silence.0 {
            self.silence = (silence, now);
        }
        self.last = now;
    }
}

enum Wrong {
    Told,
    Unreadable,
}

/// The text of an answer in either API, and whether it says that this is all.
fn said(body: &[u8], streams: bool) -> Result<(String, bool), Wrong> {
    let body = std::str::from_utf8(body).map_err(|_| Wrong::Unreadable)?;
    let (mut text, mut is_done) = (String::new(), false);
    let lines: Vec<&str> = if streams { body.lines().filter(|line| !line.is_empty()).collect() } else { vec![body] };
    for line in lines {
        if line.starts_with("event:") || line.starts_with(':') {
            continue;
        }
        let line = line.strip_prefix("data:").unwrap_or(line).trim();
        if line == "[DONE]" {
            is_done = true;
            continue;
        }
        let value: Value = serde_json::from_str(line).map_err(|_| Wrong::Unreadable)?;
        if value.get("error").is_some() {
            return Err(Wrong::Told);
        }
        let choice = &value["choices"][0];
        for piece in [&value["message"]["content"], &choice["delta"]["content"], &choice["message"]["content"]] {
            text += piece.as_str().unwrap_or_default();
        }
        is_done |= value["done"] == true || (!streams && choice["finish_reason"] == "stop");
    }
    Ok((text, is_done))
}
