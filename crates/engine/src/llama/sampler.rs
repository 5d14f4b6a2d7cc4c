//! Choosing the next token: llama.cpp's samplers in llama-server's order, a grammar beside them.

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::json_schema_to_grammar;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;
use llama_cpp_2::vocab::LlamaVocab;

use crate::error::Error;
use crate::logits;
use crate::runner::{Format, Job, Sampling};
use crate::text::Begun;

/// Ollama's `json` is an object, not just any value.
const ANY_OBJECT: &str = r#"{"type":"object"}"#;

/// What llama.cpp takes for "draw a seed".
const RANDOM_SEED: u32 = u32::MAX;

/// One request's way of choosing.
#[derive(Debug)]
pub(super) struct Chooser {
    /// `None` takes the likeliest token of the logits as they are.
    chain: Option<LlamaSampler>,
    grammar: Option<LlamaSampler>,
    pub(super) begun: Begun,
}

impl Chooser {
    /// May take long for a large schema. `prompt` is what the penalties see of it.
    pub(super) fn new(model: &LlamaModel, job: &Job, prompt: &[LlamaToken]) -> Result<Self, Error> {
        let grammar = match &job.format {
            Format::Free => None,
            Format::Json => Some(grammar(model, ANY_OBJECT)?),
            Format::Schema(schema) => Some(grammar(model, &schema.to_string())?),
        };
        Ok(Self { chain: chain(model, &job.sampling, prompt), grammar, begun: Begun::new(&job.begun) })
    }

    /// Chooses from row `row` of the last decoded batch.
    pub(super) fn choose(
        &mut self,
        context: &LlamaContext<'_>,
        vocab: &LlamaVocab<'_>,
        row: i32,
    ) -> Result<LlamaToken, Error> {
        let logits = context.get_logits_ith(row);
        // A file with broken weights makes these; llama.cpp's samplers stop the process at them.
        if !logits::usable(logits) {
            return Err(Error::Step { reason: "the model computes no usable probabilities".to_owned() });
        }
        if !self.begun.is_over() {
            return self.choose_again(context, vocab, row);
        }
        let Some(grammar) = &mut self.grammar else {
            return Ok(match &mut self.chain {
                Some(chain) => chain.sample(context, row),
                None => LlamaToken(logits::likeliest(logits) as i32),
            });
        };
        // Asking the grammar about one token is cheap, about all of them it is not; and mostly the first choice fits.
        let free = pick(&mut self.chain, context.token_data_array_ith(row));
        let token = match free {
            Some(token) if allows(grammar, token) => token,
            _ => {
                let mut candidates = context.token_data_array_ith(row);
                candidates.apply_sampler(grammar);
                candidates.data.retain(|candidate| candidate.logit() > f32::NEG_INFINITY);
                pick(&mut self.chain, candidates).ok_or_else(no_token)?
            }
        };
        grammar.try_accept(token).map_err(|_| no_token())?;
        if let Some(chain) = &mut self.chain {
            chain.accept(token);
        }
        Ok(token)
    }
}

impl Chooser {
    /// A token of what was begun. A grammar is for what comes behind it, and has to see all of that: there, no token may
    /// go further.
    fn choose_again(
        &mut self,
        context: &LlamaContext<'_>,
        vocab: &LlamaVocab<'_>,
        row: i32,
    ) -> Result<LlamaToken, Error> {
        let (begun, chain, may_go_further) = (&self.begun, &mut self.chain, self.grammar.is_none());
        let admits = |token: LlamaToken| {
            let piece = vocab.token_to_piece(token, false, None);
            !vocab.is_eog(token) && begun.admits(&piece) && (may_go_further || begun.covers(&piece))
        };
        let token = match pick(chain, context.token_data_array_ith(row)) {
            Some(token) if admits(token) => token,
            // All of the vocabulary is spelt for this, once or a few times in a request.
            _ => {
                let mut candidates = context.token_data_array_ith(row);
                candidates.data.retain(|candidate| admits(candidate.id()));
                pick(chain, candidates).ok_or_else(no_token)?
            }
        };
        if let Some(chain) = chain {
            chain.accept(token);
        }
        Ok(token)
    }
}

fn no_token() -> Error {
    Error::Step { reason: "no token of the model fits the format".to_owned() }
}

fn grammar(model: &LlamaModel, schema: &str) -> Result<LlamaSampler, Error> {
    let refused = |_| Error::Format { reason: "the schema's grammar is not accepted".to_owned() };
    LlamaSampler::grammar(model, &rules(schema)?, "root").map_err(refused)
}

/// llama.cpp's rules for JSON let two things pass that parsers refuse: numbers beyond all numbers, and halves of
/// characters.
pub(super) fn rules(schema: &str) -> Result<String, Error> {
    let unusable = |_| Error::Format { reason: "the schema cannot be made into a grammar".to_owned() };
    let rules = json_schema_to_grammar(schema).map_err(unusable)?;
    let rules = rules.replace(ANY_ESCAPE, WHOLE_ESCAPE);
    Ok(rules.replace(ANY_EXPONENT, SMALL_EXPONENT))
}

pub(super) const ANY_ESCAPE: &str = r#""u" [0-9a-fA-F]{4}"#;
const WHOLE_ESCAPE: &str = r#""u" ([0-9a-cA-CefEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2})"#;
pub(super) const ANY_EXPONENT: &str = "[eE] [-+]? integral-part";
const SMALL_EXPONENT: &str = "[eE] [-+]? [0-9]{1,2}";

fn allows(grammar: &mut LlamaSampler, token: LlamaToken) -> bool {
    let mut one = LlamaTokenDataArray::new(vec![LlamaTokenData::new(token, 1.0, 0.0)], false);
    one.apply_sampler(grammar);
    one.data.first().is_some_and(|candidate| candidate.logit() > f32::NEG_INFINITY)
}

fn pick(chain: &mut Option<LlamaSampler>, mut candidates: LlamaTokenDataArray) -> Option<LlamaToken> {
    if candidates.data.is_empty() {
        return None;
    }
    match chain {
        Some(chain) => candidates.apply_sampler(chain),
        None => candidates.apply_sampler(&mut LlamaSampler::greedy()),
    }
    candidates.selected_token()
}

/// `None` where nothing but the likeliest token is asked for.
fn chain(model: &LlamaModel, sampling: &Sampling, prompt: &[LlamaToken]) -> Option<LlamaSampler> {
    let penalties = penalties(model, sampling, prompt);
    let greedy = sampling.temperature <= 0.0;
    if greedy && penalties.is_none() {
        return None;
    }
    let mut samplers: Vec<LlamaSampler> = penalties.into_iter().collect();
    if greedy {
        samplers.push(LlamaSampler::greedy());
    } else {
        // Each keeps at least one token.
        let top_k = i32::try_from(sampling.top_k).unwrap_or(0);
        samplers.extend([
            LlamaSampler::top_k(top_k),
            LlamaSampler::typical(sampling.typical_p, 1),
            LlamaSampler::top_p(sampling.top_p, 1),
            LlamaSampler::min_p(sampling.min_p, 1),
            LlamaSampler::temp(sampling.temperature),
            LlamaSampler::dist(sampling.seed.unwrap_or(RANDOM_SEED)),
        ]);
    }
    Some(LlamaSampler::chain(samplers, true))
}

fn penalties(model: &LlamaModel, sampling: &Sampling, prompt: &[LlamaToken]) -> Option<LlamaSampler> {
    // llama.cpp refuses the others; a penalty of one, or of zero, is none.
    let or = |value: f32, none: f32, good: bool| if value.is_finite() && good { value } else { none };
    let repeat = or(sampling.repeat_penalty, 1.0, sampling.repeat_penalty > 0.0);
    let frequency = or(sampling.frequency_penalty, 0.0, true);
    let presence = or(sampling.presence_penalty, 0.0, true);
    if repeat == 1.0 && frequency == 0.0 && presence == 0.0 {
        return None;
    }
    let last = sampling.repeat_last_n.unwrap_or(model.n_ctx_train());
    let last = usize::try_from(last).unwrap_or(usize::MAX).min(i32::MAX as usize);
    if last == 0 {
        return None;
    }
    let sampler = LlamaSampler::penalties(model.n_vocab(), last as i32, repeat, frequency, presence);
    Some(sampler.with_tokens(&prompt[prompt.len().saturating_sub(last)..]))
}
