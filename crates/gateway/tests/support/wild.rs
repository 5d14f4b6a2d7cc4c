//! Requests that are nearly right: made from what a route takes, and then spoilt in one way.

use serde_json::{Map, Value, json};

use crate::random::Random;
use crate::rig::{EMBEDDER, MODEL};

/// How deep a value made from a schema goes, where that leads to itself.
const DEPTH_MAX: usize = 6;

/// Stands for bytes that no JSON writer would write.
const RAW: &str = "@raw@";

/// What each route takes.
#[derive(Debug)]
pub(crate) struct Schemas {
    document: Value,
}

#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Nothing where the route takes no body.
    body: Option<Value>,
}

/// In which part of a request it is spoilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    Body,
    Method,
    Path,
    Head,
    /// Less comes than was announced, and the client is gone.
    BrokenOff,
}

#[derive(Debug)]
pub(crate) struct Wild {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) flaw: Flaw,
    headers: String,
    /// As it is announced.
    length: Option<String>,
    body: Vec<u8>,
}

impl Wild {
    pub(crate) fn bytes(&self, head: &str) -> Vec<u8> {
        let Self { method, path, headers, .. } = self;
        let length = self.length.as_ref().map_or_else(String::new, |length| format!("content-length: {length}\r\n"));
        let mut bytes = format!("{method} {path} HTTP/1.1\r\n{head}{headers}{length}\r\n").into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

impl Schemas {
    pub(crate) fn new(document: &Value) -> Self {
        Self { document: document.clone() }
    }

    /// Every route of the description.
    pub(crate) fn routes(&self) -> Vec<Route> {
        let paths = self.document["paths"].as_object().unwrap();
        let methods = paths.iter().flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap();
            methods.iter().map(move |(method, described)| {
                let ours = described.pointer("/requestBody/content/application~1json/schema").cloned();
                let body = ours.or_else(|| inference(path));
                Route { method: method.to_uppercase(), path: path.clone(), body }
            })
        });
        methods.collect()
    }

    /// One way to ask a route badly.
    pub(crate) fn wild(&self, route: &Route, random: &mut Random) -> Wild {
        let good = route.body.as_ref().map(|schema| self.value(schema, random, 0));
        let mut wild = Wild {
            method: route.method.clone(),
            path: path(&route.path, random),
            flaw: Flaw::Body,
            headers: "content-type: application/json\r\n".to_owned(),
            length: None,
            body: good.as_ref().map_or_else(Vec::new, |good| good.to_string().into_bytes()),
        };
        match random.below(10) {
            0 => other_method(&mut wild, random),
            1 => other_path(&mut wild, random),
            2 => other_head(&mut wild, random),
            3 => other_length(&mut wild, random),
            _ => wild.body = spoilt(good, random),
        }
        if wild.length.is_none() && !wild.headers.contains("transfer-encoding") && wild.flaw != Flaw::BrokenOff {
            wild.length = Some(wild.body.len().to_string());
        }
        wild
    }

    /// Something the schema allows.
    fn value(&self, schema: &Value, random: &mut Random, depth: usize) -> Value {
        if let Some(reference) = schema["$ref"].as_str() {
            let pointer = reference.strip_prefix('#').unwrap();
            return self.value(self.document.pointer(pointer).unwrap(), random, depth + 1);
        }
        if let Some(only) = schema.get("const") {
            return only.clone();
        }
        if let Some(choices) = schema["enum"].as_array() {
            return random.of(choices).clone();
        }
        if let Some(choices) = schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array()) {
            return self.value(random.of(choices), random, depth + 1);
        }
        let kind = match &schema["type"] {
            Value::String(kind) => kind.as_str(),
            Value::Array(kinds) => random.of(kinds).as_str().unwrap(),
            _ => *random.of(&["string", "integer", "object", "null"]),
        };
        match kind {
            "object" if depth < DEPTH_MAX => self.object(schema, random, depth),
            "array" if depth < DEPTH_MAX => {
                (0..random.below(4)).map(|_| self.value(&schema["items"], random, depth + 1)).collect()
            }
            "object" => json!({}),
            "array" => json!([]),
            "string" => json!(random.of(&["", "a", "solo", "3", "read", "omx", "ü\u{1F999}", "a b/c:d"])),
            "integer" => json!(random.of(&[0, 1, 2, 7, 600])),
            "number" => json!(random.of(&[0.0, 0.5, 1.0])),
            "boolean" => json!(random.one_in(2)),
            _ => Value::Null,
        }
    }

    fn object(&self, schema: &Value, random: &mut Random, depth: usize) -> Value {
        let required = schema["required"].as_array();
        let mut fields = Map::new();
        for (name, of) in schema["properties"].as_object().into_iter().flatten() {
            let must = required.is_some_and(|required| required.contains(&json!(name)));
            if must || random.one_in(2) {
                fields.insert(name.clone(), self.value(of, random, depth + 1));
            }
        }
        if let Some(of) = schema.get("additionalProperties").filter(|of| of.is_object()) {
            fields.insert("more".to_owned(), self.value(of, random, depth + 1));
        }
        Value::Object(fields)
    }
}

/// The path itself, with something in place of its names.
fn path(route: &str, random: &mut Random) -> String {
    const PARTS: [&str; 8] = ["solo", "absent", "voters.max", "tiny", "00000000", "mesh.name", "%20", "a%2Fb"];
    // A node that is drained has a reason not to answer, which would hide others.
    let parts = if route.ends_with("/drain") { &PARTS[1..] } else { &PARTS[..] };
    let filled = route.split('/').map(|part| if part.starts_with('{') { random.of(parts) } else { part });
    filled.collect::<Vec<_>>().join("/")
}

/// What Ollama's and OpenAI's routes take, which is written down nowhere in a form that programs read.
fn inference(path: &str) -> Option<Value> {
    let text = json!({ "type": "string" });
    let flag = json!({ "type": "boolean" });
    let whole = json!({ "type": "integer" });
    let number = json!({ "type": "number" });
    let texts = json!({ "type": "array", "items": text });
    let model = json!({ "enum": [MODEL, "tiny", EMBEDDER, "absent"] });
    let spare = json!({ "enum": ["spare", "absent:7b", "copy"] });
    let any = json!({});
    let keep = json!({ "enum": ["5m", "-1", 0, 300, "1h30m"] });
    let options = json!({ "type": "object", "properties": {
        "num_predict": whole, "temperature": number, "top_k": whole, "top_p": number, "seed": whole, "stop": texts,
        "num_ctx": { "enum": [512, 4096] }, "repeat_penalty": number,
    } });
    let call = json!({ "type": "object", "properties": { "function": { "type": "object", "properties": {
        "name": text, "arguments": any,
    } } } });
    let message = json!({ "type": "object", "required": ["role", "content"], "properties": {
        "role": { "enum": ["system", "user", "assistant", "tool"] }, "content": text, "thinking": text,
        "images": texts, "tool_calls": { "type": "array", "items": call }, "tool_name": text,
    } });
    let tool = json!({ "type": "object", "properties": { "type": { "const": "function" }, "function": {
        "type": "object", "properties": { "name": text, "description": text, "parameters": any },
    } } });
    let messages = json!({ "type": "array", "items": message });
    let tools = json!({ "type": "array", "items": tool });
    let part = json!({ "type": "object", "properties": {
        "type": { "enum": ["text", "image_url", "input_audio"] }, "text": text, "image_url": any,
    } });
    let told = json!({ "type": "object", "required": ["role", "content"], "properties": {
        "role": { "enum": ["system", "user", "assistant", "tool", "developer"] },
        "content": { "anyOf": [text, { "type": "array", "items": part }, { "type": "null" }] },
        "tool_calls": { "type": "array", "items": call }, "tool_call_id": text, "name": text,
    } });
    let think = json!({ "enum": [true, false, "high", null] });
    let format = json!({ "enum": ["json", "", { "type": "object" }] });
    let (required, properties) = match path {
        "/api/generate" => (
            json!(["model", "prompt"]),
            json!({
                "model": model, "prompt": text, "suffix": text, "system": text, "template": text, "stream": flag,
                "context": { "type": "array", "items": whole }, "raw": flag, "format": format, "images": texts,
                "keep_alive": keep, "options": options, "think": think, "logprobs": flag, "top_logprobs": whole,
            }),
        ),
        "/api/chat" => (
            json!(["model", "messages"]),
            json!({
                "model": model, "messages": messages, "stream": flag, "format": format, "tools": tools,
                "keep_alive": keep, "options": options, "think": think, "logprobs": flag, "top_logprobs": whole,
            }),
        ),
        "/api/embed" => (
            json!(["model", "input"]),
            json!({
                "model": model, "input": { "anyOf": [text, texts] }, "truncate": flag, "dimensions": whole,
                "keep_alive": keep, "options": options,
            }),
        ),
        "/api/embeddings" => (
            json!(["model", "prompt"]),
            json!({
                "model": model, "prompt": text, "keep_alive": keep, "options": options,
            }),
        ),
        "/api/show" => (json!(["model"]), json!({ "model": model, "verbose": flag, "system": text })),
        "/api/copy" => (json!(["source", "destination"]), json!({ "source": spare, "destination": spare })),
        "/api/delete" => (json!(["model"]), json!({ "model": spare })),
        "/api/pull" => (json!(["model"]), json!({ "model": spare, "stream": flag, "insecure": flag })),
        "/v1/chat/completions" => (
            json!(["model", "messages"]),
            json!({
                "model": model, "messages": { "type": "array", "items": told }, "stream": flag, "tools": tools,
                "stream_options": { "type": "object", "properties": { "include_usage": flag } },
                "max_tokens": whole, "seed": whole, "stop": { "anyOf": [text, texts] }, "temperature": number,
                "top_p": number, "frequency_penalty": number, "presence_penalty": number, "logprobs": flag,
                "response_format": { "type": "object", "properties": { "type": { "enum": ["json_object", "text"] } } },
                "reasoning_effort": { "enum": ["low", "high", "none"] }, "top_logprobs": whole,
            }),
        ),
        "/v1/completions" => (
            json!(["model", "prompt"]),
            json!({
                "model": model, "prompt": { "anyOf": [text, texts] }, "stream": flag, "max_tokens": whole, "seed": whole,
                "stop": { "anyOf": [text, texts] }, "temperature": number, "top_p": number, "suffix": text, "echo": flag,
            }),
        ),
        "/v1/embeddings" => (
            json!(["model", "input"]),
            json!({
                "model": model, "input": { "anyOf": [text, texts] }, "dimensions": whole,
                "encoding_format": { "enum": ["float", "base64"] },
            }),
        ),
        _ => return None,
    };
    Some(json!({ "type": "object", "required": required, "properties": properties }))
}

// ---- ways to spoil it

fn other_method(wild: &mut Wild, random: &mut Random) {
    const METHODS: [&str; 9] = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "HEAD", "BREW"];
    wild.flaw = Flaw::Method;
    wild.method = (*random.of(&METHODS)).to_owned();
}

fn other_path(wild: &mut Wild, random: &mut Random) {
    wild.flaw = Flaw::Path;
    wild.path = match random.below(9) {
        0 => format!("{}/", wild.path),
        1 => format!("{}/%ff", wild.path),
        2 => format!("{}?at_least=x&consistency=&%%%", wild.path),
        3 => format!("{}?at_least=99999999999999999999999", wild.path),
        4 => format!("{}?consistency=local&consistency=local", wild.path),
        5 => format!("/{}", wild.path),
        6 => format!("{}/../../api/tags", wild.path),
        7 => format!("{}{}", wild.path, "x".repeat(9_000)),
        _ => format!("{}\u{fc}", wild.path),
    };
}

fn other_head(wild: &mut Wild, random: &mut Random) {
    wild.flaw = Flaw::Head;
    wild.headers = match random.below(9) {
        0 => "content-type: text/\u{fc}\r\n".to_owned(),
        1 => "content-encoding: gzip\r\ncontent-type: application/json\r\n".to_owned(),
        2 => "last-event-id: never\r\n".to_owned(),
        3 => "origin: https://evil.example\r\n".to_owned(),
        4 => "sec-fetch-site: cross-site\r\n".to_owned(),
        5 => "host: evil.example\r\n".to_owned(),
        6 => "x: y\r\n".repeat(150),
        7 => format!("x: {}\r\n", "y".repeat(20_000)),
        _ => "expect: 200-ok\r\nupgrade: h2c\r\naccept: \u{1}\r\n".to_owned(),
    };
}

fn other_length(wild: &mut Wild, random: &mut Random) {
    let length = wild.body.len();
    match random.below(7) {
        // What is left over is nobody's request: the connection ends.
        0 => wild.length = Some((length / 2).to_string()),
        1 => wild.length = Some((length + 1 + random.below(100)).to_string()),
        2 => (wild.flaw, wild.length) = (Flaw::BrokenOff, Some((length + 1 + random.below(100)).to_string())),
        3 => {
            let length = random.of(&["-1", "+5", "0x5", "1e3", "", " ", "99999999999999999999999", "5, 6", "5;"]);
            (wild.flaw, wild.length) = (Flaw::Head, Some((*length).to_owned()));
        }
        4 => wild.length = Some((40 << 20).to_string()),
        5 => {
            wild.headers.push_str("transfer-encoding: chunked\r\n");
            let mut body = format!("{length:x}\r\n").into_bytes();
            body.append(&mut wild.body);
            body.extend_from_slice(b"\r\n0\r\n\r\n");
            wild.body = body;
        }
        _ => {
            wild.flaw = Flaw::BrokenOff;
            wild.headers.push_str("transfer-encoding: chunked\r\n");
            let broken =
                random.of(&["5\r\nab", "zz\r\n", "ffffffffffffffffff\r\nx", "5\r\nabcdefgh\r\n", "-1\r\n\r\n"]);
            wild.body = broken.as_bytes().to_vec();
        }
    }
}

/// A body that is not what the route takes.
fn spoilt(good: Option<Value>, random: &mut Random) -> Vec<u8> {
    let whole = |text: &str| text.as_bytes().to_vec();
    let Some(Value::Object(mut fields)) = good else {
        return random.of(&[whole("{}"), whole("[1,2"), vec![b' '; 70 << 10], vec![0xff; 9]]).clone();
    };
    let names: Vec<String> = fields.keys().cloned().collect();
    let name = if names.is_empty() { "model".to_owned() } else { random.of(&names).clone() };
    match random.below(13) {
        0 | 1 => {
            fields.insert(name, random.of(&odd()).clone());
            text(fields)
        }
        2 => {
            fields.shift_remove(&name);
            text(fields)
        }
        3 | 4 => {
            let long = "9".repeat(500);
            let numbers = ["-1", "18446744073709551616", "1e400", "-1e308", "0.1", "-0", "1e-400", &long];
            with_raw(fields, &name, random.of(&numbers).as_bytes())
        }
        5 => {
            let depth = *random.of(&[127, 129, 5_000, 30_000]);
            let (open, close) = *random.of(&[("[", "]"), ("{\"a\":", "}")]);
            let closed = if random.one_in(2) { close.repeat(depth) } else { String::new() };
            with_raw(fields, &name, format!("{}1{closed}", open.repeat(depth)).as_bytes())
        }
        6 => {
            let long = *random.of(&[70 << 10, 300 << 10, 1 << 20]);
            with_raw(fields, &name, format!("\"{}\"", "a".repeat(long)).as_bytes())
        }
        7 => {
            let wrong: [&[u8]; 5] =
                [b"\"\xff\xfe\"", b"\"\xc3\"", b"\"\xed\xa0\x80\"", b"\"\\ud800\"", b"\"\\u0000\\x\""];
            let wrong: &&[u8] = random.of(&wrong);
            with_raw(fields, &name, wrong)
        }
        8 => {
            let mut body = text(fields);
            body.truncate(random.below(body.len()));
            body
        }
        9 => {
            let twice = format!("{{\"{name}\":{},", random.of(&odd()));
            let rest = text(fields);
            [twice.as_bytes(), rest.get(1..).unwrap_or(b"}")].concat()
        }
        10 => {
            let pool =
                ["", " ", "null", "[]", "7", "\"x\"", "true", "NaN", "{", "\u{feff}{}", "a=b&c=d", "<x/>", "{}{}"];
            let other: &&str = random.of(&pool);
            whole(other)
        }
        11 => {
            fields.insert("surprise".to_owned(), random.of(&odd()).clone());
            text(fields)
        }
        _ => {
            let mut body = text(fields);
            body.extend_from_slice(random.of(&["}", "\0", " {\"again\":1}", "GET / HTTP/1.1\r\n\r\n"]).as_bytes());
            body
        }
    }
}

/// Right nowhere, or nearly.
fn odd() -> [Value; 11] {
    [
        json!(null),
        json!(true),
        json!(-1),
        json!(1e308),
        json!(u64::MAX),
        json!("x"),
        json!("\u{0}\u{202e}\r\n"),
        json!([]),
        json!({}),
        json!([[[{}]]]),
        json!([1, "a", null]),
    ]
}

fn text(fields: Map<String, Value>) -> Vec<u8> {
    Value::Object(fields).to_string().into_bytes()
}

fn with_raw(mut fields: Map<String, Value>, name: &str, raw: &[u8]) -> Vec<u8> {
    fields.insert(name.to_owned(), json!(RAW));
    let text = Value::Object(fields).to_string();
    let (before, after) = text.split_once(&format!("\"{RAW}\"")).unwrap();
    [before.as_bytes(), raw, after.as_bytes()].concat()
}
