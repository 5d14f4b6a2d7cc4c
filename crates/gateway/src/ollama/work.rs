//! What a request means for whoever has to choose a node: how long it is, what it has in common with earlier ones.

use ::ollama::Asked;
use node::{Route, Tenant};
use scheduler::{Chain, ChainKey, ChainWriter, Class, ModelKey, Work};
use serde_json::Value;

use crate::route::GENERATE_WITHIN;

/// Of texts in most languages.
const BYTES_PER_TOKEN: u64 = 4;
/// What models make of one.
const IMAGE_TOKENS: u32 = 600;
/// Where the client sets no limit. One figure for all does as well as a guess for each (docs/design/dispatch.md).
const ANSWER_TOKENS: u32 = 256;
/// Between two parts of a prompt, so that a border cannot be moved.
const END: &[u8] = b"\0";

pub(super) fn of(asked: &Asked, route: Route, model: ModelKey, key: &ChainKey, tenant: Tenant) -> Work {
    let mut prompt = Prompt(ChainWriter::new(key, model));
    let mut images = asked.images;
    match route {
        Route::Generate => {
            prompt.parts([&asked.system, &asked.template]);
            prompt.0.end_head();
            prompt.parts([&asked.prompt, &asked.suffix]);
        }
        Route::Chat => {
            let role = |message: &Value| message["role"].as_str().unwrap_or_default().to_lowercase();
            let head = asked.messages.iter().take_while(|message| role(message) == "system").count();
            asked.messages[..head].iter().for_each(|message| prompt.value(message));
            asked.tools.iter().for_each(|tool| prompt.value(tool));
            prompt.0.end_head();
            let mut is_open = true;
            for message in &asked.messages[head..] {
                prompt.value(message);
                images += message["images"].as_array().map_or(0, Vec::len);
                if is_open && role(message) == "user" {
                    prompt.0.end_opening();
                    is_open = false;
                }
            }
        }
        Route::Embed => prompt.value(&asked.input),
        Route::Embeddings => prompt.parts([&asked.prompt]),
    }
    // No cache keeps what was embedded, and nothing follows it.
    let is_kept = matches!(route, Route::Generate | Route::Chat);
    let is_answered = matches!(route, Route::Generate | Route::Chat) && !asked.is_empty();
    let limit = asked.option("num_predict").and_then(|limit| u32::try_from(limit).ok());
    let tokens = u32::try_from(prompt.0.bytes() / BYTES_PER_TOKEN).unwrap_or(u32::MAX);
    let image_tokens = u32::try_from(images).unwrap_or(u32::MAX).saturating_mul(IMAGE_TOKENS);
    Work {
        model,
        prompt: tokens.saturating_add(image_tokens),
        output: if is_answered { limit.unwrap_or(ANSWER_TOKENS) } else { 0 },
        context: asked.option("num_ctx").and_then(|tokens| u32::try_from(tokens).ok()).filter(|tokens| *tokens > 0),
        class: if is_answered { Class::Interactive } else { Class::Batch },
        tenant,
        deadline: Some(GENERATE_WITHIN),
        chain: if is_kept { prompt.0.finish(None) } else { Chain::default() },
    }
}

struct Prompt(ChainWriter);

impl Prompt {
    fn parts<'a>(&mut self, parts: impl IntoIterator<Item = &'a String>) {
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            self.0.push(part.as_bytes());
            self.0.push(END);
        }
    }

    /// The texts in it, in their order. Pictures are as long as they are, but no model reads their bytes.
    fn value(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.parts([text]),
            Value::Array(items) => items.iter().for_each(|item| self.value(item)),
            Value::Object(fields) => {
                for (name, value) in fields.iter().filter(|(name, _)| *name != "images") {
                    if value.is_string() && matches!(name.as_str(), "role" | "content") {
                        self.value(value);
                    } else {
                        self.parts([name]);
                        self.value(value);
                    }
                }
            }
            Value::Null => {}
            Value::Bool(_) | Value::Number(_) => self.parts([&value.to_string()]),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn work(route: Route, body: Value) -> Work {
        let asked = Asked::read(body.to_string().as_bytes()).unwrap();
        of(&asked, route, ModelKey::from_bytes([1; 16]), &ChainKey::derive(b"mesh"), Tenant::ANONYMOUS)
    }

    fn chat(messages: Value) -> Work {
        work(Route::Chat, json!({ "model": "m", "messages": messages }))
    }

    #[test]
    fn the_next_turn_of_a_conversation_is_known_as_one() {
        let system = json!({ "role": "system", "content": "be brief ".repeat(300) });
        let (hi, hello) =
            (json!({ "role": "user", "content": "hi" }), json!({ "role": "assistant", "content": "hello" }));
        let first = chat(json!([system, hi]));
        let second = chat(json!([system, hi, hello, { "role": "user", "content": "and now?" }]));
        let other = chat(json!([system, { "role": "user", "content": "bye" }]));
        assert_eq!(first.chain.conversation(), second.chain.conversation());
        assert_eq!(first.chain.head(), other.chain.head());
        assert_ne!(first.chain.conversation(), other.chain.conversation());
        assert_eq!(first.chain.shared_blocks(&second.chain), 2);
        assert!(second.prompt > first.prompt);
        let with_tools =
            work(Route::Chat, json!({ "messages": [system, hi], "tools": [{ "function": { "name": "f" } }] }));
        assert_ne!(with_tools.chain.head(), first.chain.head(), "tools belong to the head");
    }

    #[test]
    fn what_is_asked_for_decides_how_long_it_takes() {
        let body = json!({ "prompt": "x".repeat(4_000), "options": { "num_predict": 7, "num_ctx": 8192 } });
        let generate = work(Route::Generate, body);
        assert_eq!((generate.prompt, generate.output, generate.context), (1_000, 7, Some(8192)));
        let unlimited = work(Route::Generate, json!({ "prompt": "x", "options": { "num_predict": -1, "num_ctx": 0 } }));
        assert_eq!((unlimited.output, unlimited.context), (ANSWER_TOKENS, None));
        let load = work(Route::Generate, json!({ "model": "m" }));
        assert_eq!((load.prompt, load.output), (0, 0));
        let embed = work(Route::Embed, json!({ "input": ["abcd".repeat(10), "abcd"] }));
        assert_eq!((embed.prompt, embed.output, embed.class), (11, 0, Class::Batch));
        assert_eq!(embed.chain, Chain::default());
    }

    #[test]
    fn a_picture_costs_what_models_make_of_it_and_not_its_bytes() {
        let picture = "A".repeat(1 << 20);
        let work = chat(json!([{ "role": "user", "content": "what?", "images": [picture] }]));
        assert_eq!(work.prompt, IMAGE_TOKENS + 2);
    }
}
