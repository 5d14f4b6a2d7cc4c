//! The thread of one loaded model: it alone touches the model's memory, one step after another.
//!
//! A step carries the next token of every request that is being answered and parts of the prompts that are being read,
//! all in one batch. Between two steps it hears what is new: requests, readers that left, the end.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::vocab::LlamaVocab;

use super::embed::{EmbedRequest, Embedder};
use super::slot::{Next, Request, Slot};
use crate::error::Error;
use crate::plan::{Pace, Turn, share};
use crate::reuse::{Held, Memory, choose};

/// Bounded by the places that requests hold; a nudge follows at most once on each of their events.
#[derive(Debug)]
pub(super) enum Command {
    Generate(Box<Request>),
    Embed(EmbedRequest),
    /// A reader made room, or left.
    Nudge,
    Stop,
}

pub(super) struct Worker<'m> {
    pub(super) vocab: LlamaVocab<'m>,
    /// `None` for a model that only embeds.
    pub(super) generating: Option<Generating<'m>>,
    pub(super) embedder: Embedder<'m>,
    pub(super) inbox: Receiver<Command>,
}

pub(super) struct Generating<'m> {
    context: LlamaContext<'m>,
    batch: LlamaBatch<'static>,
    slots: Vec<Slot>,
    memory: Memory,
    pace: Pace,
    /// In the order they came.
    waiting: VecDeque<Request>,
    /// Counts the requests begun.
    begun: u64,
}

impl Worker<'_> {
    /// Until it is told to stop, or everyone who could ask is gone. Answers that are under way then end with an error.
    pub(super) fn run(mut self) {
        while self.listen() {
            if let Some(generating) = &mut self.generating {
                generating.step(&self.vocab);
            }
            self.embedder.step();
        }
    }

    /// Takes in what came; waits where there is nothing to do.
    fn listen(&mut self) -> bool {
        let busy = self.embedder.has_work() || self.generating.as_mut().is_some_and(Generating::has_work);
        if !busy {
            let Ok(command) = self.inbox.recv() else { return false };
            if !self.take(command) {
                return false;
            }
        }
        loop {
            let goes_on = match self.inbox.try_recv() {
                Ok(command) => self.take(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => false,
            };
            if !goes_on {
                return false;
            }
        }
    }

    fn take(&mut self, command: Command) -> bool {
        match (command, &mut self.generating) {
            (Command::Generate(request), Some(generating)) => generating.waiting.push_back(*request),
            (Command::Generate(request), None) => request.fail(Error::OnlyEmbeds),
            (Command::Embed(request), _) => self.embedder.push(request),
            (Command::Nudge, _) => {}
            (Command::Stop, _) => return false,
        }
        true
    }
}

impl<'m> Generating<'m> {
    pub(super) fn new(context: LlamaContext<'m>, slots: usize, memory: Memory) -> Self {
        let most = context.n_batch() as usize;
        Self {
            batch: LlamaBatch::new(most, 1),
            slots: (0..slots).map(|_| Slot::default()).collect(),
            memory,
            pace: Pace::new(most, slots),
            waiting: VecDeque::new(),
            begun: 0,
            context,
        }
    }

    /// Also drops what nobody waits for any more.
    fn has_work(&mut self) -> bool {
        self.waiting.retain(|request| !request.is_cancelled());
        for slot in self.slots.iter_mut().filter(|slot| slot.is_cancelled()) {
            slot.release();
        }
        let can_begin = !self.waiting.is_empty() && self.slots.iter().any(|slot| !slot.is_busy());
        can_begin || !self.turns().is_empty()
    }

    fn turns(&self) -> Vec<Turn> {
        self.slots.iter().enumerate().filter_map(|(number, slot)| slot.turn(number)).collect()
    }

    fn step(&mut self, vocab: &LlamaVocab<'_>) {
        self.begin_waiting();
        let turns = self.turns();
        if turns.is_empty() {
            return;
        }
        let budget = self.pace.budget(self.slots.iter().any(Slot::is_answering));
        let shares = share(&turns, budget);
        self.batch.clear();
        let mut asking = Vec::new();
        for (number, count) in &shares {
            let (from, tokens, asks) = self.slots[*number].part(*count);
            for (index, token) in tokens.iter().enumerate() {
                let is_last = asks && index + 1 == tokens.len();
                let added =
                    self.batch.add(LlamaToken(*token as i32), (from + index) as i32, &[*number as i32], is_last);
                added.expect("a share of the batch's own size");
            }
            if asks {
                asking.push((*number, self.batch.n_tokens() - 1));
            }
        }
        let began = Instant::now();
        if let Err(error) = self.context.decode(&mut self.batch) {
            self.fail_all(&error.to_string());
            return;
        }
        self.context.synchronize();
        self.pace.took(shares.iter().map(|(_, count)| count).sum(), began.elapsed());
        for (number, count) in shares {
            self.slots[number].advance(count);
        }
        for (number, row) in asking {
            let next = self.slots[number].take_in(&self.context, vocab, row);
            if let Next::ForgetFrom(place) = next {
                self.cut(number, place);
            }
        }
    }

    fn begin_waiting(&mut self) {
        while let Some(request) = self.waiting.front() {
            let held: Vec<Held<'_>> = self.slots.iter().map(Slot::held).collect();
            let Some(choice) = choose(&held, &request.prompt, self.memory) else { return };
            let request = self.waiting.pop_front().expect("it is the front one");
            let mut reused = choice.reused;
            if let Some(from) = choice.from {
                self.cut(choice.slot, 0);
                // Whole states are shared, nothing is computed or moved.
                let lent =
                    self.context.copy_kv_cache_seq(from as i32, choice.slot as i32, Some(0), Some(reused as u32));
                if lent.is_err() {
                    reused = 0;
                }
            } else if !self.cut(choice.slot, reused) {
                reused = 0;
            }
            self.begun += 1;
            self.slots[choice.slot].begin(request, reused, self.begun);
        }
    }

    /// Forgets a slot's tokens from this place on, or all of them where the model's memory cannot be cut there.
    fn cut(&mut self, number: usize, place: usize) -> bool {
        let cut = self.context.clear_kv_cache_seq(Some(number as u32), Some(place as u32), None);
        let cut = cut.is_ok_and(|cut| cut);
        if cut {
            self.slots[number].cut(place);
        } else {
            // The whole of a sequence can always go.
            let _ = self.context.clear_kv_cache_seq(Some(number as u32), None, None);
            self.slots[number].forget();
        }
        cut
    }

    /// A failed step leaves the model's memory in a state nobody knows.
    fn fail_all(&mut self, reason: &str) {
        tracing::warn!(reason, "a step of the model failed");
        self.context.clear_kv_cache();
        for slot in &mut self.slots {
            if let Some(request) = slot.release() {
                request.fail(Error::Step { reason: reason.to_owned() });
            }
            slot.forget();
        }
    }
}
