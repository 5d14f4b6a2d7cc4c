use std::slice::from_ref;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;

const TEXT: &str = "The mesh goes on, even where a node dies. <b>5 < 7</b> & \u{e9}\u{1f600} end";

/// A backend that says one thing, word by word or in odd pieces, and goes on where a raw prompt ends.
struct Model {
    pieces: Vec<&'static str>,
}

fn pieces(text: &'static str, length: usize) -> Vec<&'static str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.ceil_char_boundary(length.min(rest.len())));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

fn line(value: &Value) -> Bytes {
    let mut line = wire_line(value);
    line.push(b'\n');
    line.into()
}

fn wire_line(value: &Value) -> Vec<u8> {
    crate::wire::encode(value)
}

fn chat(content: &str, thinking: &str) -> Bytes {
    let mut message = json!({ "role": "assistant", "content": content });
    if !thinking.is_empty() {
        message["thinking"] = thinking.into();
    }
    line(&json!({ "model": "m", "created_at": "2026-01-01T00:00:00Z", "message": message, "done": false }))
}

fn said(response: &str) -> Bytes {
    line(&json!({ "model": "other", "created_at": "2026-01-01T00:00:01Z", "response": response, "done": false }))
}

fn last(counts: u64) -> Bytes {
    line(&json!({ "model": "other", "created_at": "2026-01-01T00:00:02Z", "response": "", "done": true,
        "done_reason": "stop", "total_duration": 1000, "prompt_eval_count": 10 + counts, "eval_count": 5,
        "eval_duration": 500 }))
}

fn rendered(text: &str) -> Vec<u8> {
    json!({ "model": "m", "message": { "role": "", "content": "" }, "done": false,
        "_debug_info": { "rendered_template": text } })
    .to_string()
    .into_bytes()
}

fn value(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(bytes)))
}

fn body(more: Value) -> Vec<u8> {
    let mut body = json!({ "Model": "m", "messages": [{ "role": "user", "content": "?" }] });
    for (name, field) in more.as_object().unwrap() {
        body[name.as_str()] = field.clone();
    }
    body.to_string().into_bytes()
}

fn told(told: &[Bytes]) -> (String, String) {
    let (mut text, mut thought) = (String::new(), String::new());
    for line in told.iter().filter(|line| !line.is_empty()) {
        let line = value(line);
        text.push_str(line["message"]["content"].as_str().unwrap_or_default());
        thought.push_str(line["message"]["thinking"].as_str().unwrap_or_default());
    }
    (text, thought)
}

const SPENT: Spent = Spent { in_all: Duration::from_secs(2), telling: Duration::from_secs(1) };

/// What has to be sent after this much was told, by way of a rendered prompt.
fn asked(transcript: &mut Transcript, body: &[u8], prompt: &str) -> Value {
    let Rest::Render(question) = transcript.rest(body, SPENT).unwrap() else { panic!("it is rendered first") };
    let asked = value(&question.body);
    assert_eq!(
        (question.voice, &asked["_debug_render_only"], &asked["stream"]),
        (Voice::Chat, &true.into(), &false.into())
    );
    let question = transcript.rendered(body, &rendered(prompt), SPENT).unwrap();
    assert_eq!(question.voice, Voice::Generate);
    value(&question.body)
}

impl Model {
    /// The text after all that a prompt has of it.
    fn after(prompt: &str) -> &'static str {
        let begun = prompt.strip_prefix("<user>?<assistant>").unwrap();
        TEXT.strip_prefix(begun).unwrap_or_else(|| panic!("{begun:?} is no beginning"))
    }
}

#[test]
fn an_answer_cut_after_any_piece_goes_on_without_a_byte_doubled_or_missing() {
    for length in 1..8 {
        for temperature in [0.0, 0.8] {
            let model = Model { pieces: pieces(TEXT, length) };
            for cut in 1..model.pieces.len() {
                let body = body(json!({ "options": { "temperature": temperature } }));
                let mut transcript = Transcript::new(Voice::Chat);
                let mut all: Vec<Bytes> = Vec::new();
                for piece in &model.pieces[..cut] {
                    all.push(transcript.tell(chat(piece, "")).unwrap());
                }
                let asked = asked(&mut transcript, &body, "<user>?<assistant>");
                assert_eq!(
                    (&asked["raw"], &asked["truncate"], &asked["model"]),
                    (&true.into(), &false.into(), &"m".into())
                );
                let prompt = asked["prompt"].as_str().unwrap();
                // Another backend has other pieces.
                for piece in pieces(Model::after(prompt), 3) {
                    all.push(transcript.tell(said(piece)).unwrap());
                }
                all.push(transcript.tell(last(0)).unwrap());
                assert!(transcript.is_over());
                assert_eq!(told(&all).0, TEXT, "cut after {cut} of {length}");
                let ends = all.iter().filter(|line| !line.is_empty() && value(line)["done"] == true).count();
                assert_eq!((ends, all.last().map(|line| value(line)["model"].clone())), (1, Some("m".into())));
            }
        }
    }
}

#[test]
fn half_a_word_is_left_to_a_model_that_says_the_same_again_and_to_no_other() {
    for (temperature, prompt) in [
        (json!(0), "<user>?<assistant>The me"),
        (json!(0.0), "<user>?<assistant>The me"),
        (json!(0.7), "<user>?<assistant>The me"),
    ] {
        let mut transcript = Transcript::new(Voice::Chat);
        transcript.tell(chat("The me", "")).unwrap();
        let body = body(json!({ "options": { "temperature": temperature } }));
        let expected = if temperature == 0.7 { prompt } else { "<user>?<assistant>The" };
        assert_eq!(asked(&mut transcript, &body, "<user>?<assistant>")["prompt"], expected);
    }
}

#[test]
fn who_contradicts_what_was_told_is_asked_for_exactly_the_rest() {
    let body = body(json!({ "options": { "temperature": 0 } }));
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("The me", "")).unwrap();
    asked(&mut transcript, &body, "");
    assert!(transcript.tell(said(" ")).unwrap().is_empty(), "it may still be the same");
    assert_eq!(transcript.tell(said("mill")), Err(Untold::Contradiction));
    assert_eq!(asked(&mut transcript, &body, "<s>")["prompt"], "The me");
    assert_eq!(told(&[transcript.tell(said("sh")).unwrap()]).0, "sh");
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("The me", "")).unwrap();
    asked(&mut transcript, &body, "");
    assert_eq!(transcript.tell(last(0)), Err(Untold::Contradiction), "it ends before it comes to where we were");
}

#[test]
fn figures_are_those_of_the_whole_answer() {
    let body = body(json!({ "options": { "num_predict": 20 } }));
    let mut transcript = Transcript::new(Voice::Chat);
    for piece in ["a ", "b ", "c "] {
        transcript.tell(chat(piece, "")).unwrap();
    }
    assert_eq!(asked(&mut transcript, &body, "")["options"]["num_predict"], 17);
    transcript.tell(said("d ")).unwrap();
    let end = value(&transcript.tell(last(3)).unwrap());
    assert_eq!((&end["eval_count"], &end["prompt_eval_count"]), (&json!(8), &json!(10)));
    assert_eq!((&end["total_duration"], &end["eval_duration"]), (&json!(2_000_001_000), &json!(1_000_000_500)));
    assert_eq!((&end["done_reason"], &end["message"]["role"]), (&json!("stop"), &json!("assistant")));
}

#[test]
fn an_answer_that_was_as_long_as_it_may_be_is_ended_here() {
    let body = body(json!({ "options": { "num_predict": 2 } }));
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("a", "")).unwrap();
    transcript.tell(chat("b", "")).unwrap();
    let Rest::Over(end) = transcript.rest(&body, SPENT).unwrap() else { panic!("nothing is left to ask") };
    let end = value(&end);
    assert_eq!((&end["done"], &end["done_reason"], &end["eval_count"]), (&json!(true), &json!("length"), &json!(2)));
    assert!(transcript.is_over());
}

#[test]
fn what_nobody_has_seen_the_beginning_of_is_asked_again_as_it_was() {
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("", "")).unwrap();
    for more in [json!({}), json!({ "format": "json", "tools": [{}] })] {
        assert_eq!(transcript.rest(&body(more), SPENT), Ok(Rest::Same));
    }
    let mut transcript = Transcript::new(Voice::Generate);
    assert_eq!(transcript.rest(b"{}", SPENT), Ok(Rest::Same));
}

#[test]
fn what_cannot_be_gone_on_with_honestly_says_why() {
    let after = |lines: &[Bytes], more: Value| {
        let mut transcript = Transcript::new(Voice::Chat);
        lines.iter().for_each(|line| _ = transcript.tell(line.clone()).unwrap());
        transcript.rest(&body(more), SPENT)
    };
    let begun = chat("{\"a\":", "");
    assert_eq!(after(from_ref(&begun), json!({ "format": "json" })), Err(Unfit::Format));
    assert_eq!(after(from_ref(&begun), json!({ "format": { "type": "object" } })), Err(Unfit::Format));
    assert!(after(from_ref(&begun), json!({ "format": "" })).is_ok());
    let call = json!({ "function": { "name": "f", "arguments": {} } });
    let call = line(&json!({ "message": { "role": "assistant", "content": "", "tool_calls": [call] }, "done": false }));
    assert_eq!(after(&[begun.clone(), call], json!({})), Err(Unfit::Called));
    assert_eq!(after(&[begun.clone(), Bytes::from_static(b"?\n")], json!({})), Err(Unfit::Garbage));
    let long = chat(&"x".repeat(KEPT_BYTES_MAX + 1), "");
    assert_eq!(after(&[long, begun], json!({})), Err(Unfit::Long));
}

#[test]
fn calls_of_tools_and_pictures_are_left_to_a_template_that_stays_open() {
    for more in [
        json!({ "tools": [{ "type": "function" }] }),
        json!({ "messages": [{ "role": "user", "content": "?", "images": ["aGk="] }] }),
    ] {
        let body = body(more);
        let mut transcript = Transcript::new(Voice::Chat);
        transcript.tell(chat("So far, and no end", "hm")).unwrap();
        let Rest::Render(question) = transcript.rest(&body, SPENT).unwrap() else { panic!() };
        let partial = json!({ "role": "assistant", "content": "So far, and no end", "thinking": "hm" });
        assert_eq!(value(&question.body)["messages"][1], partial);
        let closed = transcript.rendered(&body, &rendered("?<a>So far, and no end<end>"), SPENT);
        assert_eq!(closed, Err(Unfit::Template));
        let told_so_far = "So far, and no end";
        for pieces in [
            &["So far, and no end so good"][..],
            &["So far, and", " no end", " so good"],
            &[" so good"],
            &["So", " good"],
        ] {
            let question = transcript.rendered(&body, &rendered("?<a>So far, and no end"), SPENT).unwrap();
            assert_eq!((question.voice, &value(&question.body)["messages"][1]), (Voice::Chat, &partial));
            let lines: Vec<Bytes> = pieces.iter().map(|piece| transcript.tell(chat(piece, "")).unwrap()).collect();
            let expected = if pieces[0] == "So" { "So good" } else { " so good" };
            assert_eq!(told(&lines).0, expected, "whether it is repeated or not: {pieces:?}");
            transcript.said.text.truncate(told_so_far.len());
        }
    }
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("-", "")).unwrap();
    assert_eq!(transcript.rest(&body(json!({ "tools": [{}] })), SPENT), Err(Unfit::Short), "it may just say it twice");
}

#[test]
fn what_the_client_had_begun_itself_stands_in_the_prompt_once() {
    let messages = json!([{ "role": "user", "content": "?" }, { "role": "assistant", "content": "PART" }]);
    let begun = body(json!({ "messages": messages }));
    for (told, expected) in [("PART and", "<user>?<assistant>PART and"), (" and", "<user>?<assistant>PART and")] {
        let mut transcript = Transcript::new(Voice::Chat);
        transcript.tell(chat(told, "")).unwrap();
        assert_eq!(asked(&mut transcript, &begun, "<user>?<assistant>PART")["prompt"], expected);
    }
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("something long enough", "")).unwrap();
    let with_tools = body(json!({ "messages": messages, "tools": [{}] }));
    assert_eq!(transcript.rest(&with_tools, SPENT), Err(Unfit::Prefilled));
}

#[test]
fn a_word_of_several_tokens_is_not_counted_twice() {
    let mut transcript = Transcript::new(Voice::Chat);
    for piece in ["It", " is", " un", "believ", "able"] {
        transcript.tell(chat(piece, "")).unwrap();
    }
    let body = body(json!({ "options": { "temperature": 0, "num_predict": 10 } }));
    let asked = asked(&mut transcript, &body, "");
    assert_eq!((&asked["prompt"], &asked["options"]["num_predict"]), (&json!("It is"), &json!(8)));
}

#[test]
fn a_process_that_died_is_replaced_twice_and_then_it_is_the_request_s_fault() {
    let crash = line(&json!({ "error": "an error was encountered while running the model: CUDA error" }));
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("So", "")).unwrap();
    for time in 1..=3 {
        assert!(matches!(transcript.tell(crash.clone()), Err(Untold::Crashed(why)) if why.contains("CUDA")));
        assert_eq!(transcript.rest(&body(json!({})), SPENT).is_ok(), time < 3, "{time}");
    }
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("So", "")).unwrap();
    let other = line(&json!({ "error": "context is full" }));
    assert_eq!(transcript.tell(other.clone()), Ok(other));
    assert!(transcript.is_over(), "another node would say the same");
    let long = line(&json!({ "error": format!("has terminated {}", "x".repeat(9999)) }));
    let mut transcript = Transcript::new(Voice::Chat);
    assert!(matches!(transcript.tell(long), Err(Untold::Crashed(why)) if why.len() == REPORT_CHARS_MAX));
}

#[test]
fn what_is_rendered_is_neither_generated_nor_kept_longer_than_asked() {
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("So", "")).unwrap();
    let body = body(json!({ "keep_alive": 0, "logprobs": true, "options": { "num_ctx": 512, "num_predict": 90 } }));
    let Rest::Render(question) = transcript.rest(&body, SPENT).unwrap() else { panic!() };
    let render = value(&question.body);
    assert_eq!(render["options"], json!({ "num_ctx": 512, "num_predict": 1 }));
    assert!(render.get("keep_alive").is_none() && render.get("logprobs").is_none());
    let asked = value(&transcript.rendered(&body, &rendered(""), SPENT).unwrap().body);
    assert_eq!(
        (&asked["keep_alive"], &asked["logprobs"], &asked["options"]["num_predict"]),
        (&json!(0), &json!(true), &json!(89))
    );
}

#[test]
fn a_line_that_cannot_be_read_is_told_only_where_it_is_ollama_s_own() {
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("So far", "")).unwrap();
    let body = body(json!({}));
    asked(&mut transcript, &body, "");
    assert_eq!(transcript.tell(Bytes::from_static(b"{]\n")), Err(Untold::Unfit(Unfit::Garbage)));
    assert_eq!(transcript.rest(&body, SPENT), Err(Unfit::Garbage));
}

#[test]
fn thoughts_go_on_where_the_prompt_says_how_they_begin() {
    let (thought, text) = ("first this, then that", "It is that.");
    let raw = format!("{thought}\n</think>\n\n{text}");
    for cut in 1..thought.len() {
        for length in 1..9 {
            let mut transcript = Transcript::new(Voice::Chat);
            let mut all = vec![transcript.tell(chat("", &thought[..cut])).unwrap()];
            let asked = asked(&mut transcript, &body(json!({})), "<user>?<assistant><think>\n");
            assert_eq!(asked["prompt"], format!("<user>?<assistant><think>\n{}", &thought[..cut]));
            for at in (cut..raw.len()).step_by(length) {
                all.push(transcript.tell(said(&raw[at..raw.len().min(at + length)])).unwrap());
            }
            all.push(transcript.tell(last(0)).unwrap());
            assert_eq!(told(&all), (text.to_owned(), thought.to_owned()), "cut at {cut}, pieces of {length}");
        }
    }
    // One whose thought's end is a token that raw text does not show would tell its answer as a thought.
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("", "hm")).unwrap();
    asked(&mut transcript, &body(json!({})), "<user>?<assistant><think>\n");
    transcript.tell(said("and so it is")).unwrap();
    assert_eq!(transcript.tell(last(1)), Err(Untold::Unfit(Unfit::Thinking)));

    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("", "hm")).unwrap();
    transcript.rest(&body(json!({})), SPENT).unwrap();
    assert_eq!(transcript.rendered(&body(json!({})), &rendered("<user>?"), SPENT), Err(Unfit::Thinking));
}

#[test]
fn a_text_that_was_thought_about_goes_on_without_thinking_again() {
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("", "hm")).unwrap();
    transcript.tell(chat("It is.", "")).unwrap();
    let Rest::Render(question) = transcript.rest(&body(json!({ "think": true })), SPENT).unwrap() else { panic!() };
    assert_eq!(value(&question.body)["think"], false);
    let question = transcript.rendered(&body(json!({})), &rendered("?<think>\n"), SPENT).unwrap();
    assert_eq!(value(&question.body)["prompt"], "?<think>\nhm\n</think>\n\nIt is.", "one that always thinks");
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("I should", "")).unwrap();
    let unthought = body(json!({ "think": false }));
    assert_eq!(
        asked(&mut transcript, &unthought, "?<think>\n")["prompt"],
        "?<think>\nI should",
        "nobody reads it as one"
    );
    let rendered = rendered("?<|start|>assistant");
    assert_eq!(transcript.rendered(&body(json!({})), &rendered, SPENT), Err(Unfit::Template), "in which channel?");
}

#[test]
fn a_stop_string_across_the_seam_ends_the_answer() {
    let body = body(json!({ "options": { "stop": ["STOP", "\n\n"] } }));
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("go ST", "")).unwrap();
    asked(&mut transcript, &body, "");
    let end = value(&transcript.tell(said("OP and on")).unwrap());
    assert_eq!(
        (&end["done"], &end["done_reason"], &end["message"]["content"]),
        (&json!(true), &json!("stop"), &json!(""))
    );
    assert!(transcript.is_over());
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("go ST", "")).unwrap();
    asked(&mut transcript, &body, "");
    assert_eq!(told(&[transcript.tell(said("ART")).unwrap()]).0, "ART");
}

#[test]
fn a_raw_prompt_is_gone_on_with_as_it_is_and_its_answer_stays_what_generate_says() {
    let body = br#"{"model":"m","prompt":"Once","raw":true,"options":{"seed":1}}"#;
    let mut transcript = Transcript::new(Voice::Generate);
    transcript.tell(said(" upon ")).unwrap();
    let Rest::Ask(question) = transcript.rest(body, SPENT).unwrap() else { panic!("there is nothing to render") };
    let asked = value(&question.body);
    assert_eq!((&asked["prompt"], &asked["options"]["seed"]), (&json!("Once upon "), &json!(1)));
    for (more, unfit) in [(r#","images":["aGk="]"#, Unfit::Pictures), (r#","suffix":"end""#, Unfit::Gap)] {
        let body = format!(r#"{{"model":"m","prompt":"Once <think>","raw":true{more}}}"#);
        let mut transcript = Transcript::new(Voice::Generate);
        transcript.tell(said(" upon ")).unwrap();
        assert_eq!(transcript.rest(body.as_bytes(), SPENT), Err(unfit));
    }
    let line = value(&transcript.tell(said("a time")).unwrap());
    assert_eq!((&line["response"], &line["model"], &line["done"]), (&json!("a time"), &json!("other"), &json!(false)));
    assert!(line.get("message").is_none());
}

#[test]
fn a_backend_that_does_not_render_is_found_out() {
    let mut transcript = Transcript::new(Voice::Chat);
    transcript.tell(chat("So", "")).unwrap();
    for answer in [&b"{}"[..], b"", b"{\"message\":{\"content\":\"I answer\"}}", b"[1]"] {
        assert_eq!(transcript.rendered(&body(json!({})), answer, SPENT), Err(Unfit::NotRendered));
    }
}
