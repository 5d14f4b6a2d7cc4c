//! A native stream of lines, retold as the events OpenAI's clients read: `data: {…}` and an empty line.
//!
//! `[DONE]` ends nothing but an answer that was told to its end. What fails on the way ends with an event that has an
//! `error`, which clients raise; Ollama's own translation loses it.

use std::borrow::Cow;
use std::mem;

use ollama::wire::encode;
use serde::Serialize;

use crate::native::Answer;
use crate::{Error, chat, completions};

/// In bytes; Ollama's own client reads no longer ones. What is longer ends the stream with an error.
pub const LINE_MAX: usize = 8 << 20;

#[derive(Debug)]
pub struct Stream {
    lines: Lines,
    retold: Retold,
    /// After its last event, be that `[DONE]` or an error, a stream says nothing more.
    over: bool,
}

#[derive(Debug)]
pub(crate) enum Retold {
    Chat(chat::Chunks),
    Completion(completions::Chunks),
}

impl Stream {
    pub(crate) fn new(retold: Retold) -> Self {
        Self { lines: Lines::default(), retold, over: false }
    }

    /// The next bytes of the native answer, cut anywhere; gives the events they complete, maybe none.
    pub fn feed(&mut self, mut native: &[u8]) -> Vec<u8> {
        let mut events = Vec::new();
        while !self.over {
            match self.lines.next(&mut native) {
                Some(Ok(line)) => self.line(&line, &mut events),
                Some(Err(error)) => self.fail(&error, &mut events),
                None => break,
            }
        }
        events
    }

    /// The native answer has ended; gives what is still to be said, which is an error where it was not complete.
    pub fn end(&mut self) -> Vec<u8> {
        let mut events = Vec::new();
        // What answers at once, such as a load, has no end of line.
        let rest = mem::take(&mut self.lines.begun);
        if !self.over {
            self.line(&rest, &mut events);
        }
        if !self.over {
            self.fail(&Error::Cut, &mut events);
        }
        events
    }

    fn line(&mut self, line: &[u8], events: &mut Vec<u8>) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let answer = match Answer::read(line) {
            Ok(answer) => answer,
            Err(error) => return self.fail(&error, events),
        };
        match &mut self.retold {
            Retold::Chat(chunks) => chunks.retell(&answer, events),
            Retold::Completion(chunks) => chunks.retell(&answer, events),
        }
        if answer.done {
            events.extend_from_slice(b"data: [DONE]\n\n");
            self.over = true;
        }
    }

    fn fail(&mut self, error: &Error, events: &mut Vec<u8>) {
        frame(&error.body(), events);
        self.over = true;
    }
}

pub(crate) fn event<T: Serialize>(data: &T, events: &mut Vec<u8>) {
    frame(&encode(data), events);
}

fn frame(data: &[u8], events: &mut Vec<u8>) {
    events.extend_from_slice(b"data: ");
    events.extend_from_slice(data);
    events.extend_from_slice(b"\n\n");
}

/// Puts lines together again.
#[derive(Debug, Default)]
struct Lines {
    /// Of a line whose end has not come; never more than [`LINE_MAX`].
    begun: Vec<u8>,
}

impl Lines {
    /// Takes one line from the front of `bytes`; `None` once its end is not among them, and all of them are taken.
    fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Result<Cow<'a, [u8]>, Error>> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        *bytes = if end.is_some() { &rest[1..] } else { rest };
        if self.begun.len() + part.len() > LINE_MAX {
            self.begun = Vec::new();
            return Some(Err(Error::LineTooLong));
        }
        if end.is_some() && self.begun.is_empty() {
            return Some(Ok(Cow::Borrowed(part)));
        }
        self.begun.extend_from_slice(part);
        end.map(|_| Ok(Cow::Owned(mem::take(&mut self.begun))))
    }
}
