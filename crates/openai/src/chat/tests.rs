use serde_json::{Value, json};

use super::*;

fn request(body: &Value) -> Request {
    Request::read(body.to_string().as_bytes()).unwrap()
}

/// What `fields` beside a model and a message become.
fn native(fields: Value) -> Value {
    let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_slice(&request(&body).native()).unwrap()
}

fn messages(messages: Value) -> Value {
    native(json!({ "messages": messages }))["messages"].take()
}

/// Status and words.
fn refused(body: &str) -> (u16, String) {
    let error = Request::read(body.as_bytes()).unwrap_err();
    (error.status(), error.to_string())
}

fn refused_messages(messages: Value) -> String {
    refused(&json!({ "messages": messages }).to_string()).1
}

fn ids() -> Ids {
    Ids { id: "7".to_owned(), created: 1_700_000_000 }
}

fn whole(answer: &str) -> String {
    let request = request(&json!({ "messages": [{ "role": "user", "content": "hi" }] }));
    String::from_utf8(request.whole(answer.as_bytes(), &ids()).unwrap()).unwrap()
}

/// What a stream of these lines is told as, up to where they end.
fn streamed(include_usage: bool, lines: &[Value]) -> String {
    let body = json!({ "messages": [{ "role": "user", "content": "hi" }], "stream": true,
        "stream_options": { "include_usage": include_usage } });
    let mut stream = request(&body).stream(&ids());
    let native: String = lines.iter().map(|line| format!("{line}\n")).collect();
    String::from_utf8(stream.feed(native.as_bytes())).unwrap()
}

/// The event of a chunk with these choices, and what follows them.
fn event(choices: &str) -> String {
    let start = r#"data: {"id":"chatcmpl-7","object":"chat.completion.chunk","created":1700000000,"model":"m","#;
    format!("{start}\"system_fingerprint\":\"fp_ollama\",\"choices\":{choices}}}\n\n")
}

fn delta(delta: &str) -> String {
    event(&format!(r#"[{{"index":0,"delta":{delta},"finish_reason":null}}]"#))
}

fn finish(reason: &str) -> String {
    event(&format!(r#"[{{"index":0,"delta":{{}},"finish_reason":"{reason}"}}]"#))
}

const DONE: &str = "data: [DONE]\n\n";

// ---- requests

#[test]
fn a_message_alone_gets_openai_s_defaults() {
    let expected = json!({
        "model": "m", "messages": [{ "role": "user", "content": "hi" }], "stream": false,
        "options": { "temperature": 1.0, "top_p": 1.0 },
    });
    assert_eq!(native(json!({})), expected);
    let passed_over = json!({ "tool_choice": "auto", "n": 2, "logit_bias": {}, "user": "u", "keep_alive": 1,
        "max_completion_tokens": 3, "store": true, "think": "high", "options": { "seed": 1 } });
    assert_eq!(native(passed_over), expected);
    let nulls = json!({ "stream": null, "stream_options": null, "max_tokens": null, "seed": null, "stop": null,
        "temperature": null, "top_p": null, "frequency_penalty": null, "presence_penalty": null,
        "response_format": null, "tools": null, "reasoning": null, "reasoning_effort": null, "logprobs": null,
        "top_logprobs": null, "_debug_render_only": null });
    assert_eq!(native(nulls), expected);
}

#[test]
fn what_is_asked_for_reaches_the_native_request() {
    let tools = json!([{ "type": "function", "function": { "name": "f", "strict": true,
        "parameters": { "type": "object", "properties": { "z": {}, "a": {} } } } }]);
    let fields = json!({ "stream": true, "max_tokens": 5, "seed": 42, "stop": ["a", "b"], "temperature": 0,
        "top_p": 0.5, "frequency_penalty": 0.1, "presence_penalty": 0.2, "tools": tools, "logprobs": true,
        "top_logprobs": 3 });
    let expected = json!({
        "model": "m", "messages": [{ "role": "user", "content": "hi" }], "stream": true, "tools": tools,
        "options": { "frequency_penalty": 0.1, "num_predict": 5, "presence_penalty": 0.2, "seed": 42,
            "stop": ["a", "b"], "temperature": 0.0, "top_p": 0.5 },
        "logprobs": true, "top_logprobs": 3,
    });
    assert_eq!(native(fields), expected);
}

#[test]
fn a_stop_is_one_text_or_several() {
    let stop = |stop: Value| native(json!({ "stop": stop }))["options"]["stop"].take();
    assert_eq!(stop(json!("a")), json!(["a"]));
    assert_eq!(stop(json!(["a", 7, null, "b"])), json!(["a", "b"]));
    for nothing in [json!([]), json!([7]), json!(7), json!({})] {
        assert_eq!(stop(nothing), Value::Null);
    }
}

#[test]
fn a_format_is_json_or_a_schema() {
    let format = |response_format: Value| native(json!({ "response_format": response_format }))["format"].take();
    assert_eq!(format(json!({ "type": "json_object" })), json!("json"));
    assert_eq!(format(json!({ "type": " JSON_Object " })), json!("json"));
    let schema = json!({ "type": "object", "properties": { "z": {}, "a": {} } });
    let asked = json!({ "type": "json_schema", "json_schema": { "name": "n", "strict": true, "schema": schema } });
    assert_eq!(format(asked).to_string(), schema.to_string());
    for free in [
        json!({ "type": "text" }),
        json!({ "type": "json_schema" }),
        json!({}),
        json!({ "type": "json_schema",
        "json_schema": { "name": "n" } }),
    ] {
        assert_eq!(format(free), Value::Null);
    }
}

#[test]
fn effort_becomes_thinking() {
    for (effort, think) in [
        ("", Value::Null),
        ("none", json!(false)),
        ("minimal", json!("low")),
        ("low", json!("low")),
        ("medium", json!("medium")),
        ("high", json!("high")),
        ("max", json!("max")),
        ("xhigh", json!("max")),
        ("ultra", json!("max")),
    ] {
        assert_eq!(native(json!({ "reasoning_effort": effort }))["think"], think, "{effort}");
        assert_eq!(native(json!({ "reasoning": { "effort": effort } }))["think"], think, "{effort}");
    }
    assert_eq!(native(json!({ "reasoning": {}, "reasoning_effort": "low" }))["think"], Value::Null);
    let body = json!({ "messages": [{ "content": "hi" }], "reasoning_effort": "hard" });
    let words = r#"invalid reasoning value: "hard" (must be "minimal", "low", "medium", "high", "xhigh", "ultra", "max", or "none")"#;
    assert_eq!(refused(&body.to_string()), (400, words.to_owned()));
}

#[test]
fn parts_become_messages_and_images_their_base64() {
    let given = json!([{ "role": "USER", "name": "Ann", "reasoning": "hm", "content": [
        { "type": "text", "text": "what is this?" },
        { "type": "image_url", "image_url": { "url": "data:image/png;base64,Zm9v", "detail": "low" } },
        { "type": "image_url", "image_url": "data:;base64,Zm8=" },
        { "type": "input_audio", "input_audio": { "data": "Zg==", "format": "wav" } },
    ] }]);
    let expected = json!([
        { "role": "user", "content": "what is this?" },
        { "role": "user", "content": "", "images": ["Zm9v"] },
        { "role": "user", "content": "", "images": ["Zm8="] },
        { "role": "user", "content": "", "thinking": "hm", "images": ["Zg=="] },
    ]);
    assert_eq!(messages(given), expected);
}

#[test]
fn calls_and_their_results_find_each_other() {
    let call = |id: &str, name: &str| {
        json!({ "id": id, "type": "function",
        "function": { "name": name, "arguments": r#"{"z":1,"a":"<"}"# } })
    };
    let native_call = |id: &str, name: &str| {
        json!({ "id": id,
        "function": { "index": 0, "name": name, "arguments": { "z": 1, "a": "<" } } })
    };
    let given = json!([
        { "role": "assistant", "content": null, "reasoning": "hm", "tool_calls": [call("1", "f"), call("2", "g")] },
        { "role": "tool", "tool_call_id": "2", "content": "three" },
        { "role": "tool", "tool_call_id": "1", "content": [{ "type": "text", "text": "four" }] },
        { "role": "tool", "tool_call_id": "1", "name": "h", "content": "five" },
        { "role": "tool", "tool_call_id": "9", "content": "six" },
        { "role": "assistant", "tool_calls": [] },
        { "role": "assistant", "content": [{ "type": "text", "text": "so" }], "tool_calls": [call("3", "f")] },
        { "role": "assistant", "content": [], "tool_calls": [call("4", "f")] },
    ]);
    let expected = json!([
        { "role": "assistant", "content": "", "thinking": "hm", "tool_calls": [native_call("1", "f"), native_call("2", "g")] },
        { "role": "tool", "content": "three", "tool_name": "g", "tool_call_id": "2" },
        { "role": "tool", "content": "four", "tool_name": "f", "tool_call_id": "1" },
        { "role": "tool", "content": "five", "tool_name": "h", "tool_call_id": "1" },
        { "role": "tool", "content": "six", "tool_call_id": "9" },
        { "role": "assistant", "content": "" },
        { "role": "assistant", "content": "so", "tool_calls": [native_call("3", "f")] },
        { "role": "assistant", "content": "", "tool_calls": [native_call("4", "f")] },
    ]);
    assert_eq!(messages(given), expected);
}

#[test]
fn bodies_that_are_none_are_refused() {
    for (body, words) in [
        ("", "EOF"),
        ("{", "unexpected EOF"),
        ("x", "invalid character 'x' looking for beginning of value"),
        (r#"{"model":"m"}"#, "[] is too short - 'messages'"),
        (r#"{"model":"m","messages":[]}"#, "[] is too short - 'messages'"),
        (r#"{"model":"m","messages":null}"#, "[] is too short - 'messages'"),
    ] {
        assert_eq!(refused(body), (400, words.to_owned()), "{body}");
    }
    for body in ["[]", r#"{"messages":"hi"}"#, r#"{"messages":[{"content":"hi"}],"stream":"yes"}"#] {
        assert_eq!(refused(body).0, 400, "{body}");
    }
}

#[test]
fn messages_that_are_none_are_refused() {
    let part = |part: Value| refused_messages(json!([{ "role": "user", "content": [part] }]));
    for (content, words) in [
        (json!(null), "invalid message content type: <nil>"),
        (json!(7), "invalid message content type: float64"),
        (json!(true), "invalid message content type: bool"),
        (json!({}), "invalid message content type: map[string]interface {}"),
    ] {
        assert_eq!(refused_messages(json!([{ "role": "user", "content": content }])), words);
    }
    for odd in [
        json!("text"),
        json!({}),
        json!({ "type": "text" }),
        json!({ "type": "text", "text": 7 }),
        json!({ "type": "refusal" }),
        json!({ "type": "image_url" }),
        json!({ "type": "image_url", "image_url": {} }),
    ] {
        assert_eq!(part(odd), "invalid message format");
    }
    let image = |url: &str| part(json!({ "type": "image_url", "image_url": { "url": url } }));
    for url in
        ["", "data:image/gif;base64,Zm9v", "data:image/png,Zm9v", "data:image/png;base64,?", "file:///etc/passwd"]
    {
        assert_eq!(image(url), "invalid image input", "{url}");
    }
    let words = "image URLs are not currently supported, please use base64 encoded data instead";
    assert_eq!((image("http://x/a.png"), image("https://x/a.png")), (words.to_owned(), words.to_owned()));
    for (audio, words) in [
        (json!("Zg=="), "invalid input_audio format"),
        (json!({}), "invalid input_audio format: missing data"),
        (json!({ "data": "Zg?=" }), "invalid input_audio base64 data: illegal base64 data at input byte 2"),
    ] {
        assert_eq!(part(json!({ "type": "input_audio", "input_audio": audio })), words);
    }
    for arguments in [json!(""), json!("{"), json!("[]"), json!("7"), json!(null)] {
        let call = json!({ "id": "1", "function": { "name": "f", "arguments": arguments } });
        assert_eq!(
            refused_messages(json!([{ "role": "assistant", "tool_calls": [call] }])),
            "invalid tool call arguments"
        );
    }
}

#[test]
fn a_small_request_does_not_become_a_huge_one() {
    let parts = vec![json!({ "type": "text", "text": "" }); 1000];
    let long_role = "r".repeat(10_000);
    assert_eq!(refused_messages(json!([{ "role": long_role, "content": parts }])), "too many messages");
    assert_eq!(messages(json!([{ "role": "user", "content": parts }])).as_array().unwrap().len(), 1000);

    // What came with the request may be as long as it likes.
    let answers: Vec<_> =
        (0..1000).map(|id| json!({ "role": "tool", "tool_call_id": format!("{id:010000}"), "content": "" })).collect();
    assert_eq!(messages(json!(answers)).as_array().unwrap().len(), 1000);

    let call = json!({ "id": "1", "function": { "name": "f".repeat(10_000), "arguments": "{}" } });
    let mut conversation = vec![json!({ "role": "assistant", "tool_calls": [call] })];
    conversation.resize(1001, json!({ "role": "tool", "tool_call_id": "1", "content": "" }));
    assert_eq!(refused_messages(json!(conversation)), "too many messages");
}

// ---- whole answers

#[test]
fn a_whole_answer_is_a_chat_completion() {
    let answer = r#"{"model":"m","created_at":"2024-01-01T00:00:00Z","message":{"role":"assistant","content":"<b>"},
        "done":true,"done_reason":"stop","total_duration":9,"prompt_eval_count":4,"eval_count":3}"#;
    let expected = concat!(
        r#"{"id":"chatcmpl-7","object":"chat.completion","created":1700000000,"model":"m","system_fingerprint":"fp_ollama","#,
        r#""choices":[{"index":0,"message":{"role":"assistant","content":"\u003cb\u003e"},"finish_reason":"stop"}],"#,
        r#""usage":{"prompt_tokens":4,"completion_tokens":3,"total_tokens":7}}"#,
        "\n",
    );
    assert_eq!(whole(answer), expected);
}

#[test]
fn a_whole_answer_has_thoughts_calls_and_logprobs() {
    let answer = json!({ "model": "m", "message": { "role": "assistant", "content": "", "thinking": "hm", "tool_calls": [
            { "id": "call_a", "function": { "index": 0, "name": "f", "arguments": { "z": 1, "a": "<" } } },
            { "function": { "name": "g", "arguments": {} } },
        ] }, "done": true, "done_reason": "stop",
        "logprobs": [{ "token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{ "token": "b", "logprob": -1.0 }] }] });
    let expected = concat!(
        r#""choices":[{"index":0,"message":{"role":"assistant","content":"","reasoning":"hm","tool_calls":["#,
        r#"{"id":"call_a","index":0,"type":"function","function":{"name":"f","arguments":"{\"z\":1,\"a\":\"\\u003c\"}"}},"#,
        r#"{"id":"call_chatcmpl-7_1","index":1,"type":"function","function":{"name":"g","arguments":"{}"}}]},"#,
        r#""finish_reason":"tool_calls","logprobs":{"content":[{"token":"a","logprob":-0.5,"bytes":[97],"#,
        r#""top_logprobs":[{"token":"b","logprob":-1.0}]}]}}],"#,
        r#""usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}"#,
        "\n",
    );
    let told = whole(&answer.to_string());
    assert!(told.ends_with(expected), "{told}");
}

#[test]
fn a_whole_answer_has_its_own_reason_or_none() {
    let reason = |fields: &str| {
        let told = whole(&format!(r#"{{"message":{{"role":"assistant","content":"a"{fields}}}"#));
        serde_json::from_str::<Value>(&told).unwrap()["choices"][0]["finish_reason"].take()
    };
    assert_eq!(reason(r#"},"done":true,"done_reason":"length""#), json!("length"));
    assert_eq!(
        reason(r#","tool_calls":[{"function":{"name":"f"}}]},"done":true,"done_reason":"length""#),
        json!("length")
    );
    assert_eq!(reason(r#"},"done":false"#), Value::Null);
    let rendered = whole(r#"{"model":"m","_debug_info":{"rendered_template":"hi"}}"#);
    assert!(rendered.ends_with("\"_debug_info\":{\"rendered_template\":\"hi\"}}\n"), "{rendered}");
}

#[test]
fn an_error_in_place_of_a_whole_answer_is_one() {
    let request = request(&json!({ "messages": [{ "content": "hi" }] }));
    let error = request.whole(br#"{"error":"out of memory"}"#, &ids()).unwrap_err();
    assert_eq!((error.status(), error.to_string().as_str()), (500, "out of memory"));
    assert_eq!(request.whole(b"<html>", &ids()).unwrap_err().status(), 502);
}

// ---- streams

fn said(content: &str) -> Value {
    json!({ "model": "m", "message": { "role": "assistant", "content": content }, "done": false })
}

fn last(reason: &str) -> Value {
    json!({ "model": "m", "message": { "role": "assistant", "content": "" }, "done": true, "done_reason": reason,
        "prompt_eval_count": 4, "eval_count": 3 })
}

#[test]
fn the_first_chunk_says_who_speaks_and_the_last_why_it_ends() {
    let told = streamed(false, &[said("a<"), said("b"), last("length")]);
    let first = delta(r#"{"role":"assistant","content":"a\u003c"}"#);
    assert_eq!(told, first + &delta(r#"{"content":"b"}"#) + &finish("length") + DONE);
}

#[test]
fn usage_comes_before_the_end_where_it_is_asked_for() {
    let usage = event(r#"[],"usage":{"prompt_tokens":4,"completion_tokens":3,"total_tokens":7}"#);
    let first = delta(r#"{"role":"assistant","content":"a"}"#);
    assert_eq!(streamed(true, &[said("a"), last("stop")]), first + &finish("stop") + &usage + DONE);
}

#[test]
fn thoughts_and_what_is_said_in_one_line_come_apart() {
    let mixed = json!({ "model": "m", "message": { "role": "assistant", "content": "a", "thinking": "so" },
        "logprobs": [{ "token": "a" }], "done": false });
    let thinking =
        json!({ "model": "m", "message": { "role": "assistant", "content": "", "thinking": "hm" }, "done": false });
    let told = streamed(false, &[thinking, mixed, last("stop")]);
    let first = delta(r#"{"role":"assistant","content":"","reasoning":"hm"}"#);
    let apart =
        r#"[{"index":0,"delta":{"reasoning":"so"},"finish_reason":null,"logprobs":{"content":[{"token":"a"}]}}]"#;
    assert_eq!(told, first + &event(apart) + &delta(r#"{"content":"a"}"#) + &finish("stop") + DONE);
}

#[test]
fn calls_are_counted_through_all_chunks() {
    let call = |id: &str| {
        json!({ "model": "m", "message": { "role": "assistant", "content": "", "tool_calls": [
        { "id": id, "function": { "index": 0, "name": "f", "arguments": { "a": 1 } } }] }, "done": false })
    };
    let mut end = call("y");
    end.as_object_mut().unwrap().extend(json!({ "done": true, "done_reason": "stop" }).as_object().unwrap().clone());
    let told_call = |role: &str, id: &str, index: usize| {
        let function = r#""function":{"name":"f","arguments":"{\"a\":1}"}"#;
        let call = format!(r#"{{"id":"{id}","index":{index},"type":"function",{function}}}"#);
        delta(&format!(r#"{{{role}"content":"","tool_calls":[{call}]}}"#))
    };
    let first = told_call(r#""role":"assistant","#, "x", 0);
    assert_eq!(streamed(false, &[call("x"), end]), first + &told_call("", "y", 1) + &finish("tool_calls") + DONE);
    let cut_short = streamed(false, &[call("x"), last("length")]);
    assert!(cut_short.ends_with(&(finish("length") + DONE)), "{cut_short}");
}

#[test]
fn an_empty_answer_still_says_who_speaks() {
    let mut unnamed = last("stop");
    unnamed.as_object_mut().unwrap().remove("done_reason");
    let first = delta(r#"{"role":"assistant","content":""}"#);
    assert_eq!(streamed(false, &[unnamed]), first + &finish("stop") + DONE);
}
