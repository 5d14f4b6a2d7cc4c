//! An answer on its way: the model's events, read into thoughts, words and calls.

use std::collections::VecDeque;

use crate::Error;
use crate::chat::{Piece, Reader};
use crate::library::Lease;
use crate::runner::{Answer, Done, Ended, Event, Format, Job, Prompt, TokenLogprob};

#[derive(Debug)]
pub(super) enum Part {
    Piece {
        piece: Piece,
        logprobs: Vec<TokenLogprob>,
    },
    /// The last part.
    Done(Done),
}

/// What the model writes once it has thought: as `job`, but in a format.
#[derive(Debug)]
pub(super) struct Structured {
    pub job: Job,
    pub format: Format,
}

/// Dropping it cancels the request in the runner, and gives the model back.
#[derive(Debug)]
pub(super) struct Answering {
    // Before the lease: a request ends before its model may go.
    answer: Answer,
    /// `None` once it is read to the end.
    reader: Option<Reader>,
    /// What came of one event and was not yet taken.
    ready: VecDeque<Part>,
    thinking: Option<Thinking>,
    /// How the first of two jobs ended.
    thought: Option<Done>,
    lease: Lease,
}

/// While the model thinks, free of the format that comes after.
#[derive(Debug)]
struct Thinking {
    then: Structured,
    /// What it wrote, marks and all.
    thoughts: String,
}

/// Ends the thoughts, as a stop string; the job that follows finds it in its prompt.
const CLOSE: &str = "</think>";

impl Answering {
    pub(super) async fn start(lease: Lease, job: Job, reader: Reader) -> Result<Self, Error> {
        let answer = lease.generate(job).await?;
        Ok(Self { answer, reader: Some(reader), ready: VecDeque::new(), thinking: None, thought: None, lease })
    }

    /// Two jobs in a row: one free, to the end of the thoughts, and one that has them in its prompt and is bound.
    pub(super) async fn think_first(lease: Lease, then: Structured, reader: Reader) -> Result<Self, Error> {
        let job = Job { stop: vec![CLOSE.to_owned()], ..then.job.clone() };
        let begun = Self::start(lease, job, reader).await?;
        Ok(Self { thinking: Some(Thinking { then, thoughts: String::new() }), ..begun })
    }

    /// `None` after [`Part::Done`] or an error.
    pub(super) async fn next(&mut self) -> Option<Result<Part, Error>> {
        loop {
            if let Some(part) = self.ready.pop_front() {
                return Some(Ok(part));
            }
            let event = match self.answer.next().await? {
                Ok(event) => event,
                Err(error) => return Some(Err(error)),
            };
            let taken = match event {
                Event::Text { text, logprobs } => self.text(&text, logprobs).await,
                Event::Done(done) => self.done(done).await,
            };
            if let Err(error) = taken {
                return Some(Err(error));
            }
        }
    }

    async fn text(&mut self, text: &str, logprobs: Vec<TokenLogprob>) -> Result<(), Error> {
        let Some(reader) = &mut self.reader else { return Ok(()) };
        let piece = reader.push(text);
        match &mut self.thinking {
            // It answers without having thought: not in this form.
            Some(_) if !piece.content.is_empty() || !piece.calls.is_empty() => return self.bind(None).await,
            Some(thinking) => thinking.thoughts.push_str(text),
            None => {}
        }
        if !piece.is_empty() || !logprobs.is_empty() {
            self.ready.push_back(Part::Piece { piece, logprobs });
        }
        Ok(())
    }

    async fn done(&mut self, done: Done) -> Result<(), Error> {
        if self.thinking.is_some() && done.ended == Ended::Stop {
            return self.bind(Some(done)).await;
        }
        let piece = self.reader.take().map(Reader::finish).unwrap_or_default();
        if !piece.is_empty() {
            self.ready.push_back(Part::Piece { piece, logprobs: Vec::new() });
        }
        let whole = match self.thought.take() {
            Some(thought) => sum(thought, done),
            None => done,
        };
        self.ready.push_back(Part::Done(whole));
        Ok(())
    }

    /// From thinking to answering. The first job's tokens are found again in the second's prompt, and reused there.
    async fn bind(&mut self, thought: Option<Done>) -> Result<(), Error> {
        let Some(Thinking { then, thoughts }) = self.thinking.take() else { return Ok(()) };
        let Structured { mut job, format } = then;
        if thought.is_some() && !thoughts.trim().is_empty() {
            job.prompt =
                Prompt::rendered(format!("{}{}{}\n{CLOSE}\n\n", job.prompt.text, job.begun, thoughts.trim_end()));
        }
        if thought.is_some() {
            // It stands in the prompt now.
            job.begun.clear();
        }
        job.format = format;
        let used = thought.as_ref().map_or(0, |thought| thought.output_tokens);
        job.limit = job.limit.map(|limit| limit.saturating_sub(used));
        let rest = self.reader.replace(Reader::plain()).map(Reader::finish).unwrap_or_default();
        if thought.is_some() && !rest.thinking.is_empty() {
            let piece = Piece { thinking: rest.thinking, ..Piece::default() };
            self.ready.push_back(Part::Piece { piece, logprobs: Vec::new() });
        }
        self.thought = thought;
        // The old answer goes, and with it its request.
        self.answer = self.lease.generate(job).await?;
        Ok(())
    }
}

/// Of two jobs in a row, as one: the second's prompt is the first's and what came of it.
fn sum(first: Done, second: Done) -> Done {
    Done {
        prompt_tokens: first.prompt_tokens,
        reused_tokens: first.reused_tokens,
        prompt_time: first.prompt_time + second.prompt_time,
        output_tokens: first.output_tokens.saturating_add(second.output_tokens),
        output_time: first.output_time + second.output_time,
        ..second
    }
}
