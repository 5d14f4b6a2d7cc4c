//! From Ollama's options to what the runner takes.

use ollama::wire::{self, Common, InvalidFormat, Options};
use serde_json::Value;

use crate::runner::{Format, Job, LoadOptions, Overlong, Prompt, Sampling, WhenFull};

/// The least context Ollama loads a model with.
const CONTEXT_MIN: u32 = 4;

pub(super) fn of_load(options: &Options) -> LoadOptions {
    let positive = |number: Option<i64>| number.filter(|number| *number > 0).map(saturated);
    LoadOptions {
        num_ctx: positive(options.num_ctx).map(|context| context.max(CONTEXT_MIN)),
        num_batch: positive(options.num_batch),
        // No layer at all is a choice here; a negative number leaves it open.
        num_gpu: options.num_gpu.and_then(not_negative),
        main_gpu: options.main_gpu.and_then(not_negative),
        use_mmap: options.use_mmap,
        num_thread: positive(options.num_thread),
    }
}

pub(super) fn job(prompt: &str, options: &Options, common: &Common) -> Job {
    let top = u8::try_from(common.top_logprobs).unwrap_or(0);
    Job {
        sampling: sampling(options),
        stop: options.stop.clone().unwrap_or_default(),
        limit: options.num_predict.and_then(not_negative),
        logprobs: common.logprobs.then_some(top),
        overlong: if common.truncate.unwrap_or(true) { Overlong::Cut } else { Overlong::Refuse },
        when_full: if common.shift.unwrap_or(true) { WhenFull::Shift } else { WhenFull::End },
        // Negative is the whole prompt.
        keep: options.num_keep.map_or(Some(4), not_negative),
        ..Job::new(Prompt::rendered(prompt))
    }
}

pub(super) fn format(asked: Option<Value>) -> Result<Format, InvalidFormat> {
    Ok(match wire::Format::read(asked)? {
        wire::Format::Free => Format::Free,
        wire::Format::Json => Format::Json,
        wire::Format::Schema(schema) => Format::Schema(schema),
    })
}

fn sampling(options: &Options) -> Sampling {
    let usual = Sampling::default();
    Sampling {
        temperature: options.temperature.unwrap_or(usual.temperature),
        top_k: options.top_k.map_or(usual.top_k, |number| not_negative(number).unwrap_or(0)),
        top_p: options.top_p.unwrap_or(usual.top_p),
        min_p: options.min_p.unwrap_or(usual.min_p),
        typical_p: options.typical_p.unwrap_or(usual.typical_p),
        repeat_last_n: options.repeat_last_n.map_or(usual.repeat_last_n, not_negative),
        repeat_penalty: options.repeat_penalty.unwrap_or(usual.repeat_penalty),
        presence_penalty: options.presence_penalty.unwrap_or(usual.presence_penalty),
        frequency_penalty: options.frequency_penalty.unwrap_or(usual.frequency_penalty),
        // Of other seeds the lower 32 bits count, as in llama.cpp, to which all of them are -1.
        seed: options.seed.map(|seed| seed as u32).filter(|seed| *seed != u32::MAX),
    }
}

fn not_negative(number: i64) -> Option<u32> {
    (number >= 0).then(|| saturated(number))
}

fn saturated(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(json: Value) -> Options {
        Options::read([json.as_object().unwrap()]).unwrap()
    }

    #[test]
    fn nothing_said_is_ollama_s_default() {
        let job = job("p", &Options::default(), &Common::default());
        assert_eq!(job, Job::new(Prompt::rendered("p")));
        assert_eq!(of_load(&Options::default()), LoadOptions::default());
    }

    #[test]
    fn numbers_below_zero_mean_what_they_mean_to_ollama() {
        let below = json!({
            "num_predict": -1, "seed": -1, "top_k": -5, "repeat_last_n": -1, "num_keep": -1, "num_ctx": -1, "num_gpu": -1,
        });
        let job = job("p", &options(below.clone()), &Common::default());
        assert_eq!((job.limit, job.keep, job.sampling.seed), (None, None, None));
        assert_eq!((job.sampling.top_k, job.sampling.repeat_last_n), (0, None));
        assert_eq!(of_load(&options(below)), LoadOptions::default());
    }

    #[test]
    fn what_is_said_is_taken() {
        let said = options(json!({
            "num_predict": 7, "seed": 0, "temperature": 0, "stop": ["x"], "num_ctx": 1, "num_gpu": 0, "num_thread": 0,
        }));
        let common =
            Common { logprobs: true, top_logprobs: 3, truncate: Some(false), shift: Some(false), ..Common::default() };
        let job = job("p", &said, &common);
        assert_eq!((job.limit, job.sampling.seed, job.sampling.temperature), (Some(7), Some(0), 0.0));
        assert_eq!((job.logprobs, job.overlong, job.when_full), (Some(3), Overlong::Refuse, WhenFull::End));
        let load = of_load(&said);
        assert_eq!((load.num_ctx, load.num_gpu, load.num_thread), (Some(4), Some(0), None));
    }
}
