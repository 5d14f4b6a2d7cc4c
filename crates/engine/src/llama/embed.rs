//! Texts to vectors, in a context of its own beside the one that answers.

use std::collections::VecDeque;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::error::Error;
use crate::logits;
use crate::runner::{Embedded, Token};

/// Texts in one step.
pub(super) const TEXTS_MAX: usize = 16;

/// Tokens in one step, and so of one text: it has to be seen whole.
pub(super) const TOKENS_MAX: u32 = 2048;

#[derive(Debug)]
pub(super) struct EmbedRequest {
    /// None is empty or longer than the embedder's limit.
    pub(super) inputs: Vec<Vec<Token>>,
    pub(super) answer: oneshot::Sender<Result<Embedded, Error>>,
    pub(super) place: OwnedSemaphorePermit,
}

type Open<'m> = Box<dyn Fn() -> Result<LlamaContext<'m>, Error> + 'm>;

pub(super) struct Embedder<'m> {
    /// Made when first asked for: most models that answer are never asked for vectors.
    open: Open<'m>,
    context: Option<(LlamaContext<'m>, LlamaBatch<'static>)>,
    queue: VecDeque<Job>,
}

struct Job {
    request: EmbedRequest,
    vectors: Vec<Vec<f32>>,
}

impl<'m> Embedder<'m> {
    pub(super) fn new(open: impl Fn() -> Result<LlamaContext<'m>, Error> + 'm) -> Self {
        Self { open: Box::new(open), context: None, queue: VecDeque::new() }
    }

    pub(super) fn push(&mut self, request: EmbedRequest) {
        self.queue.push_back(Job { request, vectors: Vec::new() });
    }

    pub(super) fn has_work(&mut self) -> bool {
        self.queue.retain(|job| !job.request.answer.is_closed());
        !self.queue.is_empty()
    }

    /// Works on the oldest request, one batch of it.
    pub(super) fn step(&mut self) {
        let Some(mut job) = self.queue.pop_front() else { return };
        match self.embed_some(&mut job) {
            Err(error) => {
                let _ = job.request.answer.send(Err(error));
            }
            Ok(()) if job.vectors.len() < job.request.inputs.len() => self.queue.push_front(job),
            Ok(()) => {
                let tokens = job.request.inputs.iter().map(|input| input.len() as u32).sum();
                let _ = job.request.answer.send(Ok(Embedded { vectors: job.vectors, tokens }));
                drop(job.request.place);
            }
        }
    }

    fn embed_some(&mut self, job: &mut Job) -> Result<(), Error> {
        if self.context.is_none() {
            let context = (self.open)()?;
            let batch = LlamaBatch::new(context.n_batch() as usize, 1);
            self.context = Some((context, batch));
        }
        let (context, batch) = self.context.as_mut().expect("made above");
        let room = context.n_batch() as usize;
        batch.clear();
        let mut texts = 0;
        for input in job.request.inputs[job.vectors.len()..].iter().take(TEXTS_MAX) {
            if batch.n_tokens() as usize + input.len() > room {
                break;
            }
            for (place, token) in input.iter().enumerate() {
                let added = batch.add(LlamaToken(*token as i32), place as i32, &[texts], true);
                added.expect("there is room, as was just seen");
            }
            texts += 1;
        }
        context.clear_kv_cache();
        let failed = |reason: String| Error::Step { reason };
        context.decode(batch).map_err(|error| failed(error.to_string()))?;
        for text in 0..texts {
            let vector = context.embeddings_seq_ith(text).map_err(|error| failed(error.to_string()))?;
            if vector.iter().any(|number| !number.is_finite()) {
                return Err(failed("the model computes no usable vector".to_owned()));
            }
            let mut vector = vector.to_vec();
            logits::normalise(&mut vector);
            job.vectors.push(vector);
        }
        Ok(())
    }
}
