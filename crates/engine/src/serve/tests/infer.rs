//! What is asked of the model, and how its answer is told.

use ollama::folder::Texts;
use serde_json::{Value, json};

use super::rig::{Rig, TEMPLATE, done, steady, text};
use crate::runner::{Candidate, Ended, Event, Format, TokenLogprob};

fn user(content: &str) -> Value {
    json!({ "role": "user", "content": content })
}

#[tokio::test]
async fn generate_streams_a_line_for_each_piece() {
    let rig = Rig::new().await;
    rig.script.says([text("Hel"), text("lo <"), done(Ended::Stop)]);
    let told = rig.post("/api/generate", &json!({ "model": "tiny", "prompt": "Hi" })).await;
    let expected = [
        r#"{"model":"tiny","created_at":"T","response":"Hel","done":false}"#,
        r#"{"model":"tiny","created_at":"T","response":"lo <","done":false}"#,
        r#"{"model":"tiny","created_at":"T","response":"","done":true,"done_reason":"stop","context":[7,8],"total_duration":1,"load_duration":1,"prompt_eval_count":5,"prompt_eval_duration":3000000,"eval_count":2,"eval_duration":4000000}"#,
    ];
    assert_eq!((told.status, told.lines()), (200, expected.map(str::to_owned).to_vec()));
    assert!(told.text.contains(r"lo \u003c"), "{}", told.text);
    assert_eq!(rig.script.prompts(), ["[user]Hi[assistant]"]);
}

#[tokio::test]
async fn chat_streams_a_line_for_each_piece() {
    let rig = Rig::new().await;
    rig.script.says([text("Hello"), done(Ended::Length)]);
    let told = rig.post("/api/chat", &json!({ "model": "tiny:latest", "messages": [user("Hi")] })).await;
    let expected = [
        r#"{"model":"tiny:latest","created_at":"T","message":{"role":"assistant","content":"Hello"},"done":false}"#,
        r#"{"model":"tiny:latest","created_at":"T","message":{"role":"assistant","content":""},"done":true,"done_reason":"length","total_duration":1,"load_duration":1,"prompt_eval_count":5,"prompt_eval_duration":3000000,"eval_count":2,"eval_duration":4000000}"#,
    ];
    assert_eq!(told.lines(), expected);
}

#[tokio::test]
async fn without_a_stream_the_answer_comes_at_once() {
    let rig = Rig::new().await;
    for path in ["/api/generate", "/api/chat"] {
        rig.script.says([text("Hel"), text("lo"), done(Ended::Stop)]);
        let request = json!({ "model": "tiny", "prompt": "Hi", "messages": [user("Hi")], "stream": false });
        let told = rig.post(path, &request).await;
        assert_eq!((told.status, told.kind.as_str()), (200, "application/json; charset=utf-8"));
        let json = told.json();
        assert_eq!(
            (&json["done"], &json["done_reason"], &json["eval_count"]),
            (&json!(true), &json!("stop"), &json!(2))
        );
        let said = if path == "/api/chat" { &json["message"]["content"] } else { &json["response"] };
        assert_eq!(said, "Hello");
    }
}

#[tokio::test]
async fn nothing_to_say_loads_and_unloads() {
    let rig = Rig::new().await;
    let generate = r#"{"model":"tiny","created_at":"T","response":"","done":true,"done_reason":"load"}"#;
    let told = rig.post("/api/generate", &json!({ "model": "tiny" })).await;
    assert_eq!((told.kind.as_str(), steady(&told.text)), ("application/json; charset=utf-8", generate.to_owned()));
    assert_eq!(rig.call("GET", "/api/ps", "").await.json()["models"][0]["name"], "tiny:latest");

    let chat = r#"{"model":"tiny","created_at":"T","message":{"role":"assistant","content":""},"done":true,"done_reason":"load"}"#;
    let told = rig.post("/api/chat", &json!({ "model": "tiny", "messages": [] })).await;
    assert_eq!(steady(&told.text), chat);
    assert_eq!(rig.script.specs().len(), 1, "it was loaded already");

    let told = rig.post("/api/chat", &json!({ "model": "tiny", "keep_alive": 0 })).await;
    assert_eq!(steady(&told.text), chat.replace("load", "unload"));
    let told = rig.post("/api/generate", &json!({ "model": "tiny", "keep_alive": "0s" })).await;
    assert_eq!(steady(&told.text), generate.replace("load", "unload"));
    assert_eq!(rig.script.jobs(), []);
}

#[tokio::test]
async fn system_and_parameters_of_the_model_hold_unless_the_request_says_otherwise() {
    let params = json!({ "temperature": 0.25, "stop": ["END"], "num_ctx": 32 });
    let texts =
        Texts { system: Some("be brief".to_owned()), params: params.as_object().unwrap().clone(), ..Texts::default() };
    let rig = Rig::with(TEMPLATE, &texts, 4096).await;
    let ask = async |path: &str, request: Value| {
        rig.script.says([done(Ended::Stop)]);
        assert_eq!(rig.post(path, &request).await.status, 200);
        rig.script.jobs().pop().unwrap()
    };
    let job = ask("/api/generate", json!({ "model": "tiny", "prompt": "Hi" })).await;
    assert_eq!((job.prompt.text.as_str(), job.sampling.temperature), ("[system]be brief[user]Hi[assistant]", 0.25));
    assert_eq!((job.stop, rig.script.specs()[0].options.num_ctx), (vec!["END".to_owned()], Some(32)));

    let request =
        json!({ "model": "tiny", "prompt": "Hi", "system": "be long", "options": { "temperature": 0, "seed": 3 } });
    let job = ask("/api/generate", request).await;
    assert_eq!(job.prompt.text, "[system]be long[user]Hi[assistant]");
    assert_eq!((job.sampling.temperature, job.sampling.seed), (0.0, Some(3)));

    let job = ask("/api/chat", json!({ "model": "tiny", "messages": [user("Hi")] })).await;
    assert_eq!(job.prompt.text, "[system]be brief[user]Hi[assistant]");
    let messages = json!([{ "role": "system", "content": "" }, user("Hi")]);
    let job = ask("/api/chat", json!({ "model": "tiny", "messages": messages })).await;
    assert_eq!(job.prompt.text, "[system][user]Hi[assistant]");
}

#[tokio::test]
async fn a_raw_prompt_goes_as_it_is_and_gives_no_context() {
    let rig = Rig::new().await;
    rig.script.says([text("b"), done(Ended::Stop)]);
    let told = rig.post("/api/generate", &json!({ "model": "tiny", "prompt": "[user]a", "raw": true })).await;
    assert_eq!(rig.script.prompts(), ["[user]a"]);
    assert!(rig.script.jobs().iter().all(|job| job.reopens_last_word), "it may have been cut anywhere");
    assert!(!told.text.contains("context"), "{}", told.text);
    let told = rig.post("/api/generate", &json!({ "model": "tiny", "prompt": "a", "raw": true, "system": "x" })).await;
    assert_eq!(
        (told.status, told.text.as_str()),
        (400, r#"{"error":"raw mode does not support template, system, or context"}"#)
    );
}

#[tokio::test]
async fn a_prompt_can_be_looked_at_instead_of_answered() {
    let rig = Rig::new().await;
    let chat = json!({ "model": "tiny", "messages": [user("<Hi>")], "_debug_render_only": true });
    let told = rig.post("/api/chat", &chat).await;
    assert_eq!(told.json()["_debug_info"], json!({ "rendered_template": "[user]<Hi>[assistant]" }));
    let generate = json!({ "model": "tiny", "prompt": "Hi", "_debug_render_only": true });
    let told = rig.post("/api/generate", &generate).await;
    let expected = r#"{"model":"tiny","created_at":"T","response":"","done":false,"_debug_info":{"rendered_template":"[user]Hi[assistant]"}}"#;
    assert_eq!(steady(&told.text), expected);
    assert_eq!(rig.script.jobs(), []);
}

#[tokio::test]
async fn an_earlier_conversation_stands_before_the_prompt() {
    let rig = Rig::new().await;
    rig.script.says([done(Ended::Stop)]);
    rig.post("/api/generate", &json!({ "model": "tiny", "prompt": "Hi", "context": [97, 98] })).await;
    assert_eq!(rig.script.prompts(), ["ab[user]Hi[assistant]"]);
    let told = rig.post("/api/generate", &json!({ "model": "tiny", "prompt": "Hi", "context": [0xd800] })).await;
    assert_eq!(told.status, 400, "{}", told.text);
}

#[tokio::test]
async fn an_answer_that_was_begun_is_gone_on_with_and_not_repeated() {
    let rig = Rig::new().await;
    rig.script.says([text(" world"), done(Ended::Stop)]);
    let messages = json!([user("Hi"), { "role": "assistant", "content": "Hello" }]);
    let told = rig.post("/api/chat", &json!({ "model": "tiny", "messages": messages, "stream": false })).await;
    let job = rig.script.jobs().remove(0);
    assert_eq!((job.prompt.text.as_str(), job.begun.as_str()), ("[user]Hi[assistant]", "Hello"));
    assert_eq!(told.json()["message"]["content"], " world");
}

#[tokio::test]
async fn the_oldest_messages_give_way_but_not_the_system_s() {
    let rig = Rig::with(TEMPLATE, &Texts::default(), 60).await;
    let messages = json!([
        { "role": "system", "content": "S" },
        user("first, and long: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
        { "role": "assistant", "content": "second" },
        user("third"),
    ]);
    rig.script.says([done(Ended::Stop)]);
    rig.post("/api/chat", &json!({ "model": "tiny", "messages": messages })).await;
    rig.script.says([done(Ended::Stop)]);
    rig.post("/api/chat", &json!({ "model": "tiny", "messages": messages, "truncate": false })).await;
    let prompts = rig.script.prompts();
    assert_eq!(prompts[0], "[system]S[assistant]second[user]third[assistant]");
    assert!(prompts[1].contains("xxx"));
    rig.script.says([done(Ended::Stop)]);
    let long = "x".repeat(100);
    rig.post("/api/chat", &json!({ "model": "tiny", "messages": [user("a"), user(&long)] })).await;
    assert_eq!(rig.script.prompts()[2], format!("[user]{long}[assistant]"), "the last stays, whatever its length");
}

#[tokio::test]
async fn probabilities_are_told_with_their_tokens() {
    let rig = Rig::new().await;
    let candidate = |text: &str, logprob| Candidate { bytes: text.as_bytes().to_vec(), logprob };
    let logprobs =
        vec![TokenLogprob { chosen: candidate("a", -0.5), top: vec![candidate("a", -0.5), candidate("b", -1.0)] }];
    rig.script.says([Ok(Event::Text { text: "a".to_owned(), logprobs }), done(Ended::Stop)]);
    let request = json!({ "model": "tiny", "prompt": "Hi", "logprobs": true, "top_logprobs": 2, "stream": false });
    let told = rig.post("/api/generate", &request).await;
    let top =
        json!([{ "token": "a", "logprob": -0.5, "bytes": [97] }, { "token": "b", "logprob": -1.0, "bytes": [98] }]);
    assert_eq!(told.json()["logprobs"], json!([{ "token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": top }]));
    assert_eq!(rig.script.jobs()[0].logprobs, Some(2));
}

const THINKER: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ tools|length if tools }}[assistant]\
                       {% if enable_thinking %}<think>{% else %}<think></think>{% endif %}{# <tool_call> #}";

#[tokio::test]
async fn thoughts_are_told_apart_unless_nobody_wants_them() {
    let rig = Rig::with(THINKER, &Texts::default(), 4096).await;
    let ask = async |path: &str, think: Value, said: &str| {
        rig.script.says([text(said), done(Ended::Stop)]);
        let request =
            json!({ "model": "tiny", "prompt": "Hi", "messages": [user("Hi")], "think": think, "stream": false });
        let json = rig.post(path, &request).await.json();
        let message = if path == "/api/chat" { json["message"].clone() } else { json };
        (message["thinking"].clone(), message["content"].as_str().or(message["response"].as_str()).unwrap().to_owned())
    };
    for path in ["/api/chat", "/api/generate"] {
        let thought = (json!("hm"), "Yes".to_owned());
        assert_eq!(ask(path, Value::Null, "\nhm</think>\nYes").await, thought);
        assert_eq!(ask(path, json!("high"), "hm</think>Yes").await, thought);
        assert_eq!(ask(path, json!(false), "Yes").await, (Value::Null, "Yes".to_owned()));
    }
    let prompts = rig.script.prompts();
    assert!(prompts[0].ends_with("<think>") && prompts[2].ends_with("<think></think>"), "{prompts:?}");
}

#[tokio::test]
async fn calls_of_tools_are_told_as_calls() {
    let rig = Rig::with(THINKER, &Texts::default(), 4096).await;
    rig.script.says([
        text("hm</think><tool_call>{\"name\":\"f\","),
        text("\"arguments\":{\"z\":1,\"a\":2}}</tool_call>"),
        done(Ended::Stop),
    ]);
    let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": {} } }]);
    let told = rig.post("/api/chat", &json!({ "model": "tiny", "messages": [user("Hi")], "tools": tools })).await;
    let lines: Vec<Value> = told.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[0]["message"]["thinking"]), (3, &json!("hm")));
    let call = &lines[1]["message"]["tool_calls"][0];
    assert_eq!(call["function"].to_string(), r#"{"index":0,"name":"f","arguments":{"z":1,"a":2}}"#);
    let id = call["id"].as_str().unwrap();
    assert!(id.starts_with("call_") && id.len() == 13, "{id}");
    assert!(rig.script.jobs()[0].show_special && rig.script.prompts()[0].contains("1[assistant]"));
}

#[tokio::test]
async fn a_format_binds_behind_the_thoughts() {
    let rig = Rig::with(THINKER, &Texts::default(), 4096).await;
    let schema = json!({ "type": "object", "properties": { "z": {}, "a": {} } });
    let options = json!({ "num_predict": 10 });
    let request =
        json!({ "model": "tiny", "messages": [user("Hi")], "format": schema, "stream": false, "options": options });
    rig.script.says([text("hm "), text("so"), done(Ended::Stop)]);
    rig.script.says([text("{}"), done(Ended::Stop)]);
    let told = rig.post("/api/chat", &request).await;
    assert_eq!(
        (&told.json()["message"]["thinking"], &told.json()["message"]["content"]),
        (&json!("hm so"), &json!("{}"))
    );
    assert_eq!((&told.json()["prompt_eval_count"], &told.json()["eval_count"]), (&json!(5), &json!(4)));
    let jobs = rig.script.jobs();
    assert_eq!((jobs[0].limit, jobs[1].limit), (Some(10), Some(8)));
    assert_eq!((&jobs[0].format, &jobs[0].stop), (&Format::Free, &vec!["</think>".to_owned()]));
    assert_eq!(jobs[1].prompt.text, "[user]Hi[assistant]<think>hm so\n</think>\n\n");
    let Format::Schema(bound) = &jobs[1].format else { panic!("{:?}", jobs[1].format) };
    assert_eq!(bound.to_string(), schema.to_string(), "in the order the client gave");

    rig.script.says([text("{}"), done(Ended::Stop)]);
    rig.post("/api/chat", &json!({ "model": "tiny", "messages": [user("Hi")], "format": "json", "think": false }))
        .await;
    assert_eq!((rig.script.jobs().len(), &rig.script.jobs()[2].format), (3, &Format::Json));
}

#[tokio::test]
async fn who_answers_without_thinking_is_bound_from_the_start() {
    let fresh = THINKER.replace("{% if enable_thinking %}<think>", "{% if enable_thinking %}");
    let rig = Rig::with(&fresh, &Texts::default(), 4096).await;
    rig.script.says([text("No format"), text(" at all"), done(Ended::Stop)]);
    rig.script.says([text("{}"), done(Ended::Stop)]);
    let told =
        rig.post("/api/generate", &json!({ "model": "tiny", "prompt": "Hi", "format": "json", "stream": false })).await;
    assert_eq!((&told.json()["response"], rig.script.prompts()[1].as_str()), (&json!("{}"), "[user]Hi[assistant]"));
}
