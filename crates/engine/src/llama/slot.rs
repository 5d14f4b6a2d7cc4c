//! A place where one request runs at a time, and what it remembers for the next.

use std::time::Instant;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::vocab::LlamaVocab;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::sampler::Chooser;
use crate::error::Error;
use crate::logits;
use crate::plan::Turn;
use crate::reuse::Held;
use crate::runner::{Candidate, Done, EVENTS_PER_STEP, Ended, Event, Token, TokenLogprob};
use crate::text::{Spelled, Writer, Written};
use crate::window::Window;

/// A request, ready to run: what could fail before has not.
#[derive(Debug)]
pub(super) struct Request {
    /// At least one, and they fit the window.
    pub(super) prompt: Vec<Token>,
    pub(super) window: Window,
    pub(super) chooser: Chooser,
    pub(super) writer: Writer,
    /// How many candidates to tell of each token.
    pub(super) logprobs: Option<usize>,
    pub(super) show_special: bool,
    pub(super) events: mpsc::Sender<Result<Event, Error>>,
    /// Its place among those that may wait or run.
    pub(super) _place: OwnedSemaphorePermit,
}

impl Request {
    pub(super) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    pub(super) fn fail(self, error: Error) {
        // Nobody listening is as good as told. There is room: a step is only taken where there is.
        let _ = self.events.try_send(Err(error));
    }
}

/// `tokens[..in_memory]` are what the model's memory holds under this slot's number, always.
#[derive(Debug, Default)]
pub(super) struct Slot {
    tokens: Vec<Token>,
    in_memory: usize,
    last_used: u64,
    work: Option<Work>,
}

#[derive(Debug)]
struct Work {
    request: Request,
    prompt_tokens: u32,
    reused: u32,
    began: Instant,
    /// When the prompt was read.
    read: Option<Instant>,
}

/// What remains to be done with the model's memory after a token was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    /// The state of all tokens from this place on is out of date.
    ForgetFrom(usize),
}

impl Slot {
    pub(super) fn held(&self) -> Held<'_> {
        Held { tokens: &self.tokens[..self.in_memory], busy: self.work.is_some(), last_used: self.last_used }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.work.is_some()
    }

    /// The request of a reader that is slower than the model waits for it.
    fn is_paused(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.request.events.capacity() < EVENTS_PER_STEP)
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.request.is_cancelled())
    }

    pub(super) fn is_answering(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.read.is_some())
    }

    /// Its part in the next step.
    pub(super) fn turn(&self, slot: usize) -> Option<Turn> {
        (self.is_busy() && !self.is_paused()).then(|| Turn { slot, left: self.tokens.len() - self.in_memory })
    }

    /// The tokens of a step, with their places, and whether the last of them asks for the next one.
    pub(super) fn part(&self, count: usize) -> (usize, &[Token], bool) {
        let end = self.in_memory + count;
        (self.in_memory, &self.tokens[self.in_memory..end], end == self.tokens.len())
    }

    /// Takes a request; its first `reused` tokens are in the model's memory under this slot's number.
    pub(super) fn begin(&mut self, mut request: Request, reused: usize, now: u64) {
        debug_assert!(self.work.is_none(), "an idle slot was chosen");
        self.tokens = std::mem::take(&mut request.prompt);
        self.in_memory = reused;
        self.last_used = now;
        let prompt_tokens = self.tokens.len() as u32;
        let work = Work { request, prompt_tokens, reused: reused as u32, began: Instant::now(), read: None };
        self.work = Some(work);
    }

    /// Ends what runs here, if anything does, and returns its request. What the memory holds stays for others.
    pub(super) fn release(&mut self) -> Option<Request> {
        self.tokens.truncate(self.in_memory);
        self.work.take().map(|work| work.request)
    }

    /// Nothing of it is in the model's memory any more.
    pub(super) fn forget(&mut self) {
        self.in_memory = 0;
        if !self.is_busy() {
            self.tokens.clear();
        }
    }

    /// A step with `count` of its tokens was made.
    pub(super) fn advance(&mut self, count: usize) {
        self.in_memory += count;
    }

    /// The prompt is read: takes in the token that follows. `row` is where the step left its numbers.
    pub(super) fn take_in(&mut self, context: &LlamaContext<'_>, vocab: &LlamaVocab<'_>, row: i32) -> Next {
        let Some(work) = &mut self.work else { return Next::Nothing };
        work.read.get_or_insert_with(Instant::now);
        if work.request.writer.is_full() {
            // No token was asked for at all.
            let written = work.request.writer.end(Ended::Length);
            return self.say(written);
        }
        let token = match work.request.chooser.choose(context, vocab, row) {
            Ok(token) => token,
            Err(error) => {
                if let Some(request) = self.release() {
                    request.fail(error);
                }
                return Next::Nothing;
            }
        };
        let show = work.request.show_special;
        let bytes = vocab.token_to_piece(token, show, None);
        let again = !work.request.chooser.begun.is_over();
        let bytes = work.request.chooser.begun.take(&bytes);
        if again && bytes.is_empty() {
            // Said already, and no part of what was asked for.
            self.tokens.push(token.0 as Token);
            return self.say(Written::default());
        }
        let logprob =
            work.request.logprobs.filter(|_| !again).map(|top| logprob(context.get_logits_ith(row), vocab, token, top));
        let written = work.request.writer.push(Spelled { bytes, ends: vocab.is_eog(token), logprob });
        self.tokens.push(token.0 as Token);
        self.say(written)
    }

    fn say(&mut self, mut written: Written) -> Next {
        let Some(work) = &mut self.work else { return Next::Nothing };
        let mut next = Next::Nothing;
        if written.ended.is_none() && self.tokens.len() >= work.request.window.context as usize {
            match work.request.window.shift(work.prompt_tokens) {
                Some(forgotten) => {
                    next = Next::ForgetFrom(forgotten.start as usize);
                    self.tokens.drain(forgotten.start as usize..forgotten.end as usize);
                }
                None => written = written.then(work.request.writer.end(Ended::Length)),
            }
        }
        let Written { text, logprobs, ended } = written;
        // A reader that is gone is seen before the next step, and there is room for both events.
        if !text.is_empty() || !logprobs.is_empty() {
            let _ = work.request.events.try_send(Ok(Event::Text { text, logprobs }));
        }
        if let Some(ended) = ended {
            let _ = work.request.events.try_send(Ok(Event::Done(work.done(ended, &self.tokens))));
            self.release();
        }
        next
    }

    /// The model's memory was cut at `place`.
    pub(super) fn cut(&mut self, place: usize) {
        self.in_memory = self.in_memory.min(place);
    }
}

impl Work {
    fn done(&self, ended: Ended, tokens: &[Token]) -> Done {
        let read = self.read.unwrap_or(self.began);
        Done {
            ended,
            prompt_tokens: self.prompt_tokens,
            reused_tokens: self.reused,
            prompt_time: read - self.began,
            output_tokens: self.request.writer.tokens(),
            output_time: read.elapsed(),
            context: tokens.to_vec(),
        }
    }
}

fn logprob(logits: &[f32], vocab: &LlamaVocab<'_>, chosen: LlamaToken, top: usize) -> TokenLogprob {
    let (logprob, top) = logits::logprobs(logits, chosen.0 as usize, top);
    let candidate = |token: LlamaToken, logprob| Candidate { bytes: vocab.token_to_piece(token, true, None), logprob };
    let top = top.into_iter().map(|(token, logprob)| candidate(LlamaToken(token as i32), logprob)).collect();
    TokenLogprob { chosen: candidate(chosen, logprob), top }
}
