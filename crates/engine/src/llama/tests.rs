mod tiny;

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::runner::{Done, EVENTS_MAX, Ended, Event, Format, LoadOptions, Sampling, TokenLogprob, WhenFull};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Loaded {
    runner: Arc<dyn Runner>,
    _folder: TempDir,
}

impl std::ops::Deref for Loaded {
    type Target = dyn Runner;

    fn deref(&self) -> &Self::Target {
        &*self.runner
    }
}

fn load(slots: u32) -> Loaded {
    load_with(Config { slots: Some(slots), ..Config::default() }, LoadOptions::default())
}

fn load_with(config: Config, options: LoadOptions) -> Loaded {
    let folder = tempfile::tempdir().unwrap();
    let spec = Spec { file: tiny::write(folder.path()), options };
    Loaded { runner: Llama::new(config).load(&spec).unwrap(), _folder: folder }
}

/// The likeliest tokens after this text, and the runners-up.
fn greedy(text: &str, limit: u32) -> Job {
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    Job { sampling, limit: Some(limit), logprobs: Some(2), ..Job::new(Prompt::rendered(text)) }
}

#[derive(Debug)]
struct Read {
    text: String,
    logprobs: Vec<TokenLogprob>,
    done: Done,
}

async fn read(mut answer: Answer) -> Result<Read, Error> {
    let (mut text, mut logprobs) = (String::new(), Vec::new());
    loop {
        match timeout(PATIENCE, answer.next()).await.unwrap().unwrap()? {
            Event::Text { text: more, logprobs: its } => {
                text.push_str(&more);
                logprobs.extend(its);
            }
            Event::Done(done) => return Ok(Read { text, logprobs, done }),
        }
    }
}

async fn run(model: &Loaded, job: Job) -> Read {
    read(model.generate(job).await.unwrap()).await.unwrap()
}

/// Whether two answers are the same up to a place where the model itself could hardly decide. Who else is in a step, and
/// where a prompt was cut into parts, changes the order of sums, and with random weights some choices hang on that.
fn assert_same(one: &Read, other: &Read) {
    let pairs = one.logprobs.iter().zip(&other.logprobs);
    let Some((a, b)) = pairs.into_iter().find(|(a, b)| a.chosen.bytes != b.chosen.bytes) else {
        assert_eq!((&one.text, one.logprobs.len()), (&other.text, other.logprobs.len()));
        return;
    };
    assert_eq!(a.top[1].bytes, b.chosen.bytes, "{:?} {:?}", one.text, other.text);
    let margin = a.top[0].logprob - a.top[1].logprob;
    assert!(margin < 0.02, "{margin} {:?} {:?}", one.text, other.text);
}

const PROMPTS: [&str; 6] = [
    "What is a mesh?",
    "What is a node?",
    "tell me about naïve 中文 text",
    "0123456789",
    "{\"key\": [1, 2, 3]}",
    "What is a mesh? It is",
];

#[tokio::test]
async fn the_likeliest_answer_is_the_same_alone_and_beside_others_in_every_slot() {
    let alone = load(1);
    let mut expected = Vec::new();
    for prompt in PROMPTS {
        let read = run(&alone, greedy(prompt, 40)).await;
        assert_eq!((read.done.ended, read.done.output_tokens), (Ended::Length, 40));
        assert_eq!(read.text.chars().count(), 40);
        expected.push(read);
    }
    let texts: BTreeSet<_> = expected.iter().map(|read| &read.text).collect();
    assert_eq!(texts.len(), PROMPTS.len(), "{texts:?}");
    let busy = load(4);
    for round in 0..3 {
        let jobs = (0..PROMPTS.len()).map(|index| (index + round) % PROMPTS.len());
        let reads = join_all(jobs.map(|index| {
            let answer = busy.generate(greedy(PROMPTS[index], 40));
            async move { (index, read(answer.await.unwrap()).await.unwrap()) }
        }));
        for (index, read) in reads.await {
            assert_same(&expected[index], &read);
        }
    }
}

#[tokio::test]
async fn a_conversation_reads_only_what_is_new() {
    let model = load(2);
    let first = run(&model, greedy("Tell me all about it.", 10)).await;
    assert_eq!((first.done.reused_tokens, first.done.prompt_tokens), (0, 22));
    assert_eq!(first.done.context.len(), 32);
    let longer = format!("Tell me all about it.{} And then?", first.text);
    let second = run(&model, greedy(&longer, 10)).await;
    // The last token of an answer is said and never read.
    assert_eq!(second.done.reused_tokens, 31);
    assert_same(&second, &run(&load(1), greedy(&longer, 10)).await);
    let again = run(&model, greedy(&longer, 10)).await;
    assert_eq!(again.done.reused_tokens, again.done.prompt_tokens - 1);
    assert_same(&again, &second);
}

#[tokio::test]
async fn what_was_begun_is_written_again_and_not_said() {
    let model = load(1);
    let whole = run(&model, greedy("Tell me.", 30)).await.text;
    for cut in [1, 2, 9, 29] {
        let job = Job { begun: whole[..cut].to_owned(), ..greedy("Tell me.", 30 - cut as u32) };
        let rest = run(&model, job).await;
        assert_eq!((rest.text.as_str(), rest.logprobs.len()), (&whole[cut..], 30 - cut), "cut at {cut}");
    }
    // Of what the model would not say by itself all is written too.
    let sampling = Sampling { temperature: 1.0, seed: Some(7), ..Sampling::default() };
    let job = Job { begun: " xyzzy, naïve".to_owned(), sampling, ..greedy("Tell me.", 5) };
    let unlikely = run(&model, job).await;
    let all = model.detokenize(unlikely.done.context).await.unwrap();
    assert_eq!(all, format!("<s>Tell me. xyzzy, naïve{}", unlikely.text));
}

#[tokio::test]
async fn a_request_that_runs_lends_its_beginning() {
    let model = load(2);
    let beginning = "You answer questions, shortly and kindly. ";
    let mut first = model.generate(greedy(&format!("{beginning}Who?"), 400)).await.unwrap();
    // Its prompt is read once it speaks.
    assert!(matches!(first.next().await, Some(Ok(Event::Text { .. }))));
    let second = run(&model, greedy(&format!("{beginning}When?"), 20)).await;
    assert_eq!(second.done.reused_tokens as usize, beginning.len() + 3, "the `Wh` and the first token, too");
    assert_same(&second, &run(&load(1), greedy(&format!("{beginning}When?"), 20)).await);
    assert_eq!(read(first).await.unwrap().done.output_tokens, 400);
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_wherever_tokens_end() {
    let model = load(4);
    let text = run(&model, greedy("stop", 30)).await.text;
    for length in [1, 2, 5] {
        for at in 0..text.len() - length {
            let stop = text[at..at + length].to_owned();
            let expected = &text[..text.find(&stop).unwrap()];
            let read = run(&model, Job { stop: vec![stop.clone()], ..greedy("stop", 30) }).await;
            assert_eq!((read.text.as_str(), read.done.ended), (expected, Ended::Stop), "{stop:?}");
        }
    }
}

#[tokio::test]
async fn bytes_become_whole_characters() {
    let model = load(1);
    let schema = Format::Schema(json!({"type": "string", "enum": ["中文 naïve 😀"]}));
    let mut answer = model.generate(Job { format: schema, ..greedy("x", 60) }).await.unwrap();
    let mut pieces = Vec::new();
    while let Some(event) = answer.next().await {
        if let Event::Text { text, .. } = event.unwrap() {
            pieces.push(text);
        }
    }
    assert_eq!(pieces.concat(), "\"中文 naïve 😀\"");
    assert!(pieces.contains(&"😀".to_owned()), "{pieces:?}");
}

#[tokio::test]
async fn a_full_context_ends_the_answer_or_forgets_its_older_half() {
    let options = LoadOptions { num_ctx: Some(64), ..LoadOptions::default() };
    let model = load_with(Config { slots: Some(2), ..Config::default() }, options);
    assert_eq!(model.facts().context, 64);
    let ends = run(&model, Job { when_full: WhenFull::End, limit: None, ..greedy("0123456789", 0) }).await;
    assert_eq!((ends.done.ended, ends.done.output_tokens), (Ended::Length, 64 - 11));
    let shifts = run(&model, Job { limit: None, ..greedy("0123456789", 0) }).await;
    assert_eq!((shifts.done.ended, shifts.done.output_tokens), (Ended::Length, 640));
    assert_eq!(shifts.text[..ends.text.len()], ends.text);
    assert!(shifts.done.context.len() <= 64);
    assert!(shifts.done.context.starts_with(&ends.done.context[..5]), "the start is kept");
}

#[tokio::test]
async fn after_a_shift_it_goes_on_as_if_the_rest_had_been_the_prompt() {
    let options = LoadOptions { num_ctx: Some(64), ..LoadOptions::default() };
    let model = load_with(Config { slots: Some(1), ..Config::default() }, options);
    // The context is full with its 53rd token; the next comes from what a shift left.
    let prompt = "0123456789";
    let full = run(&model, greedy(prompt, 53)).await;
    let text = format!("{prompt}{}", full.text);
    let left = format!("{}{}", &text[..4], &text[4 + (64 - 1 - 5) / 2..]);
    let beyond = run(&load(1), greedy(&left, 20)).await;
    let mut on = run(&model, greedy(prompt, 73)).await;
    on.text.drain(..53);
    on.logprobs.drain(..53);
    assert_same(&on, &beyond);
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_is_cut_or_refused() {
    let options = LoadOptions { num_ctx: Some(32), ..LoadOptions::default() };
    let model = load_with(Config { slots: Some(1), ..Config::default() }, options);
    let long = "a".repeat(100);
    for job in
        [Job { overlong: Overlong::Refuse, ..greedy(&long, 5) }, Job { when_full: WhenFull::End, ..greedy(&long, 5) }]
    {
        let refused = model.generate(job).await.unwrap_err();
        assert!(matches!(refused, Error::PromptTooLong { tokens: 101, context: 32 }), "{refused:?}");
    }
    let cut = run(&model, greedy(&long, 5)).await;
    assert_eq!((cut.done.prompt_tokens, cut.done.output_tokens), (32 - 27 / 2, 5));
}

#[tokio::test]
async fn a_prompt_read_in_small_parts_says_the_same_and_stops_nobody() {
    let long: String = ('a'..='z').cycle().take(300).collect();
    let expected = run(&load(1), greedy(&long, 20)).await;
    let options = LoadOptions { num_batch: Some(16), ..LoadOptions::default() };
    let model = load_with(Config { slots: Some(2), ..Config::default() }, options);
    let mut other = model.generate(greedy("other", 400)).await.unwrap();
    assert!(matches!(other.next().await, Some(Ok(Event::Text { .. }))));
    let (parts, other) = tokio::join!(run(&model, greedy(&long, 20)), read(other));
    assert_same(&parts, &expected);
    assert_eq!(other.unwrap().done.output_tokens, 400);
}

#[tokio::test]
async fn a_limit_of_nothing_says_nothing() {
    let read = run(&load(1), greedy("x", 0)).await;
    assert_eq!((read.text.as_str(), read.done.ended, read.done.output_tokens), ("", Ended::Length, 0));
}

#[tokio::test]
async fn the_same_seed_draws_the_same() {
    let drawn = async |seed| {
        let sampling = Sampling { seed: Some(seed), temperature: 1.5, ..Sampling::default() };
        // Alone, since a draw that falls between two tokens is decided by the last digit.
        run(&load(1), Job { sampling, ..greedy("draw", 30) }).await.text
    };
    assert_eq!(drawn(7).await, drawn(7).await);
    assert_ne!(drawn(7).await, drawn(8).await);
}

#[tokio::test]
async fn penalties_and_other_options_take_effect() {
    let model = load(1);
    let plain = run(&model, greedy("aaaa", 60)).await.text;
    let distinct = |text: &str| text.chars().collect::<BTreeSet<_>>().len();
    let penalised = |sampling| run(&model, Job { sampling, ..greedy("aaaa", 60) });
    let greedy_with = Sampling { temperature: 0.0, repeat_last_n: None, ..Sampling::default() };
    let strict = penalised(Sampling { repeat_penalty: 1e6, ..greedy_with.clone() }).await.text;
    assert!(distinct(&strict) > distinct(&plain), "{plain:?} {strict:?}");
    assert_eq!(distinct(&strict), 60, "{strict:?}");
    let none = penalised(Sampling { repeat_penalty: -1.0, presence_penalty: f32::NAN, ..greedy_with }).await.text;
    assert_eq!(none, plain, "what makes no sense is no penalty");
    let first = Sampling { top_k: 1, temperature: 2.0, ..Sampling::default() };
    assert_eq!(penalised(first).await.text, plain, "of one candidate the likeliest is drawn");
}

#[tokio::test]
async fn probabilities_are_told_of_every_token() {
    let model = load(1);
    let read = run(&model, Job { logprobs: Some(5), ..greedy("x", 12) }).await;
    assert_eq!(read.logprobs.len(), 12);
    let said: Vec<u8> = read.logprobs.iter().flat_map(|token| token.chosen.bytes.clone()).collect();
    assert_eq!(said, read.text.as_bytes());
    for token in &read.logprobs {
        assert_eq!(token.top.len(), 5);
        assert_eq!(token.top[0], token.chosen, "the likeliest was taken");
        assert!(token.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
        assert!(token.top.iter().map(|candidate| candidate.logprob.exp()).sum::<f32>() <= 1.0 + 1e-5);
    }
}

#[tokio::test]
async fn what_a_schema_asks_for_always_parses() {
    let model = load(4);
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer"},
            "kind": {"enum": ["cat", "dog", null]},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        },
        "required": ["name", "age", "kind", "tags"],
        "additionalProperties": false,
    });
    let reads = join_all((0..24).map(|seed| {
        let sampling = Sampling { seed: Some(seed), temperature: 1.5, ..Sampling::default() };
        run(&model, Job { sampling, format: Format::Schema(schema.clone()), ..greedy("a form: ", 400) })
    }));
    for read in reads.await {
        assert_eq!(read.done.ended, Ended::Stop, "{}", read.text);
        let value: Value = serde_json::from_str(&read.text).unwrap();
        assert!(value["name"].is_string() && value["age"].is_i64() && value["tags"].is_array(), "{value}");
        assert_eq!(value.as_object().unwrap().len(), 4);
    }
}

#[test]
fn no_rule_leads_to_json_that_parsers_refuse() {
    let rules = sampler::rules(r#"{"type":"object"}"#).unwrap();
    assert!(rules.contains("[eE]") && rules.contains("\"u\""), "{rules}");
    assert!(!rules.contains(sampler::ANY_EXPONENT) && !rules.contains(sampler::ANY_ESCAPE), "{rules}");
}

#[tokio::test]
async fn json_mode_says_an_object_as_far_as_it_gets() {
    let model = load(4);
    let reads = join_all((0..12).map(|seed| {
        let sampling = Sampling { seed: Some(seed), temperature: 1.0, ..Sampling::default() };
        run(&model, Job { sampling, format: Format::Json, ..greedy("json: ", 200) })
    }));
    for read in reads.await {
        match serde_json::from_str::<Value>(&read.text) {
            Ok(value) => assert!(value.is_object()),
            // Cut by the limit: a beginning of JSON, and nothing else.
            Err(error) => assert!(error.is_eof() && read.done.ended == Ended::Length, "{error}: {}", read.text),
        }
    }
}

#[tokio::test]
async fn a_schema_that_makes_no_sense_is_the_clients_fault() {
    let model = load(1);
    for schema in [json!({"type": "nonsense"}), json!({"$ref": "#/nowhere"})] {
        let refused = model.generate(Job { format: Format::Schema(schema), ..greedy("x", 5) }).await.unwrap_err();
        assert_eq!(refused.fault(), crate::error::Fault::Client, "{refused}");
    }
    assert_eq!(run(&model, greedy("x", 5)).await.done.output_tokens, 5);
}

#[tokio::test]
async fn who_leaves_makes_room_at_once() {
    let config = Config { slots: Some(1), queue_max: 0 };
    let model = load_with(config, LoadOptions::default());
    let endless = || Job { limit: None, ..greedy("on and on", 0) };
    for _ in 0..50 {
        let begun = async {
            loop {
                match model.generate(endless()).await {
                    Ok(answer) => return answer,
                    Err(error) => assert!(matches!(error, Error::Busy), "{error}"),
                }
                tokio::task::yield_now().await;
            }
        };
        let mut answer = timeout(PATIENCE, begun).await.unwrap();
        assert!(matches!(answer.next().await, Some(Ok(Event::Text { .. }))));
        assert!(matches!(model.generate(endless()).await, Err(Error::Busy)));
    }
}

#[tokio::test]
async fn a_slow_reader_waits_alone_and_loses_nothing() {
    let model = load(2);
    let expected = run(&model, greedy("slow", 300)).await;
    let slow = model.generate(greedy("slow", 300)).await.unwrap();
    // The other one finishes while nobody reads the first, whose channel holds less than its answer.
    const { assert!(EVENTS_MAX < 300) };
    assert_eq!(run(&model, greedy("quick", 300)).await.done.output_tokens, 300);
    assert_same(&read(slow).await.unwrap(), &expected);
}

#[tokio::test]
async fn vectors_have_length_one_and_do_not_depend_on_their_neighbours() {
    let model = load(1);
    let embed = |inputs: &[&str]| {
        let inputs = inputs.iter().map(|text| (*text).to_owned()).collect();
        model.embed(EmbedJob { inputs, overlong: Overlong::Cut })
    };
    let texts: Vec<String> = (0..40).map(|number| format!("text number {number}, {}", "x".repeat(number))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let together = embed(&texts).await.unwrap();
    assert_eq!(together.vectors.len(), 40);
    assert_eq!(together.tokens as usize, texts.iter().map(|text| text.len() + 1).sum::<usize>());
    for (text, vector) in texts.iter().zip(&together.vectors) {
        assert_eq!(vector.len() as u32, model.facts().embedding_length);
        let alone = embed(&[text]).await.unwrap().vectors.remove(0);
        let cosine: f32 = alone.iter().zip(vector).map(|(a, b)| a * b).sum();
        assert!((cosine - 1.0).abs() < 1e-4, "{cosine}");
    }
    assert!(embed(&[]).await.unwrap().vectors.is_empty());
    let long = "y".repeat(3000);
    assert_eq!(embed(&[&long]).await.unwrap().tokens, tiny::CONTEXT);
    let refused = model.embed(EmbedJob { inputs: vec![long], overlong: Overlong::Refuse }).await.unwrap_err();
    assert_eq!(refused.to_string(), "the input length exceeds the context length");
}

#[tokio::test]
async fn text_and_tokens_turn_into_each_other() {
    let model = load(1);
    let text = "What? naïve 中文 😀\n<s>";
    let literal = Prompt { text: text.to_owned(), add_bos: false, parse_special: false };
    let tokens = model.tokenize(literal).await.unwrap();
    assert_eq!(model.detokenize(tokens).await.unwrap(), text);
    let parsed = model.tokenize(Prompt::rendered("<s>ab</s>")).await.unwrap();
    assert_eq!((parsed.len(), parsed[0], parsed[3]), (4, 1, 2), "one beginning, not two");
    assert_eq!(model.detokenize(parsed).await.unwrap(), "<s>ab</s>");
    assert!(matches!(model.detokenize(vec![1, 99_999]).await, Err(Error::Token(99_999))));
}

#[tokio::test]
async fn an_empty_prompt_is_refused_where_nothing_begins_it() {
    let model = load(1);
    let empty = Prompt { text: String::new(), add_bos: false, parse_special: true };
    assert!(matches!(model.generate(Job::new(empty)).await, Err(Error::PromptEmpty)));
    assert_eq!(run(&model, greedy("", 3)).await.done.prompt_tokens, 1);
}

#[tokio::test]
async fn the_end_of_a_model_ends_its_answers() {
    let model = load(1);
    let mut running = model.generate(Job { limit: None, ..greedy("on", 0) }).await.unwrap();
    let waiting = model.generate(greedy("next", 5)).await.unwrap();
    assert!(matches!(running.next().await, Some(Ok(Event::Text { .. }))));
    drop(model);
    assert!(matches!(read(running).await, Err(Error::Stopped)));
    assert!(matches!(read(waiting).await, Err(Error::Stopped)));
}

#[test]
fn a_probe_measures_and_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let file = tiny::write(folder.path());
    let llama = Llama::new(Config { slots: Some(2), ..Config::default() });
    let size = fs::metadata(&file).unwrap().len();
    let need = |context| {
        let options = LoadOptions { num_ctx: Some(context), ..LoadOptions::default() };
        llama.probe(&Spec { file: file.clone(), options }).unwrap()
    };
    assert!(need(64).weights <= size && need(64).weights > size / 2);
    // Two layers, two heads of 16 numbers, keys and values, two bytes each, two slots.
    assert_eq!(need(128).context - need(64).context, 2 * 2 * 16 * 2 * 2 * 2 * 64);
    assert_eq!(need(100_000), need(tiny::CONTEXT), "no more than it was trained for");

    let bytes = tiny::bytes();
    let refused = |bytes: &[u8]| {
        let file = folder.path().join("bad.gguf");
        fs::write(&file, bytes).unwrap();
        llama.load(&Spec::new(file)).unwrap_err()
    };
    for broken in [&b""[..], b"GGUF", b"<html>", &bytes[..1000], &bytes[..bytes.len() - 1]] {
        assert!(matches!(refused(broken), Error::CannotRun { .. }), "{:?}", refused(broken));
    }
    let missing = llama.load(&Spec::new(folder.path().join("none"))).unwrap_err();
    assert!(matches!(missing, Error::File { .. }), "{missing:?}");
}

#[test]
fn slots_leave_half_of_the_memory_to_others() {
    let bytes_for = |slots: u32| 100 + 50 * u64::from(slots);
    assert_eq!(roomy(u64::MAX, bytes_for), SLOTS_DEFAULT);
    assert_eq!(roomy(520, bytes_for), 3);
    assert_eq!(roomy(10, bytes_for), 1);
}
