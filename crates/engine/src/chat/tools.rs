//! Finding calls of tools in what a model writes, as the text comes in.

use ollama::wire::ToolFunction;
use serde_json::{Map, Value};

use super::thinking::begun;

/// Text that begins like a call and is longer than this is no call.
const CALL_BYTES_MAX: usize = 1 << 20;

/// How a family of models marks its calls; known by the marks in the chat template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marks {
    /// Each call between a pair of marks: Hermes, Qwen and many more.
    Paired { open: &'static str, close: &'static str },
    /// All calls in one list behind a mark, to the end: Mistral.
    Behind { open: &'static str },
    /// Nothing but a call, from the beginning to the end: Llama 3.
    Bare,
}

const PAIRS: [Marks; 2] = [
    Marks::Paired { open: "<tool_call>", close: "</tool_call>" },
    Marks::Paired { open: "<function_call>", close: "</function_call>" },
];
const BEHIND: Marks = Marks::Behind { open: "[TOOL_CALLS]" };
/// May stand before a bare call.
const PYTHON_TAG: &str = "<|python_tag|>";

impl Marks {
    /// `None` where the template has no place for tools.
    pub(super) fn of(template: &str) -> Option<Self> {
        if !template.contains("tools") && !template.contains("tool_call") {
            return None;
        }
        let paired = PAIRS.into_iter().chain([BEHIND]).find(|marks| match marks {
            Self::Paired { open, .. } | Self::Behind { open } => template.contains(open),
            Self::Bare => false,
        });
        Some(paired.unwrap_or(Self::Bare))
    }
}

#[derive(Debug)]
pub(super) struct Finder {
    marks: Marks,
    /// Names of the tools there are: what has no mark is a call only when it calls one of these.
    names: Vec<String>,
    state: State,
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but blanks so far.
    Fresh,
    Text,
    /// Behind the opening mark, or in what may be a bare call.
    Call,
    /// Behind a call; blanks are swallowed.
    Called,
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    pub content: String,
    pub calls: Vec<ToolFunction>,
}

impl Finder {
    pub(super) fn new(marks: Marks, tools: &[Value]) -> Self {
        let name = |tool: &Value| tool.pointer("/function/name").and_then(Value::as_str).map(str::to_owned);
        Self { marks, names: tools.iter().filter_map(name).collect(), state: State::Fresh, held: String::new() }
    }

    pub(super) fn push(&mut self, text: &str) -> Found {
        self.held.push_str(text);
        let mut found = Found::default();
        while self.step(&mut found) {}
        found
    }

    /// What looked like a call and is none was text.
    pub(super) fn finish(mut self) -> Found {
        let held = std::mem::take(&mut self.held);
        if self.state != State::Call {
            let content = if self.state == State::Called { held.trim().to_owned() } else { held };
            return Found { content, calls: Vec::new() };
        }
        match self.calls(&held) {
            Some(calls) => Found { content: String::new(), calls },
            None => Found { content: format!("{}{held}", self.opened()), calls: Vec::new() },
        }
    }

    /// Takes what can be decided from what is held; `true` when there may be more to decide.
    fn step(&mut self, found: &mut Found) -> bool {
        match (self.state, self.marks) {
            (State::Fresh, Marks::Bare) => {
                let text = self.held.trim_start();
                if text.is_empty() || (text != PYTHON_TAG && PYTHON_TAG.starts_with(text)) {
                    return false;
                }
                let call = text.starts_with(['{', '[']) || text.starts_with(PYTHON_TAG);
                self.state = if call { State::Call } else { State::Text };
                true
            }
            (State::Fresh | State::Called, Marks::Paired { open, .. } | Marks::Behind { open }) => {
                let text = self.held.trim_start();
                if text.is_empty() || (text != open && open.starts_with(text)) {
                    return false;
                }
                if self.state == State::Called || text.starts_with(open) {
                    self.held = text.to_owned();
                }
                self.state = State::Text;
                true
            }
            (State::Text, Marks::Paired { open, .. } | Marks::Behind { open }) => {
                if let Some((before, after)) = self.held.split_once(open) {
                    found.content.push_str(before);
                    self.held = after.to_owned();
                    self.state = State::Call;
                    return true;
                }
                let decided = self.held.len() - begun(&self.held, open);
                found.content.extend(self.held.drain(..decided));
                false
            }
            (State::Text | State::Called, Marks::Bare) => {
                found.content.push_str(&std::mem::take(&mut self.held));
                false
            }
            (State::Call, _) if self.held.len() > CALL_BYTES_MAX => {
                found.content.push_str(self.opened());
                found.content.push_str(&std::mem::take(&mut self.held));
                self.state = State::Text;
                false
            }
            (State::Call, Marks::Paired { close, .. }) => {
                let Some((call, after)) = self.held.split_once(close) else { return false };
                match self.calls(call) {
                    Some(calls) => found.calls.extend(calls),
                    None => found.content.push_str(&format!("{}{call}{close}", self.opened())),
                }
                self.held = after.to_owned();
                self.state = State::Called;
                true
            }
            (State::Call, Marks::Behind { .. } | Marks::Bare) => false,
        }
    }

    /// The mark that was taken off what is held.
    fn opened(&self) -> &'static str {
        match self.marks {
            Marks::Paired { open, .. } | Marks::Behind { open } => open,
            Marks::Bare => "",
        }
    }

    fn calls(&self, text: &str) -> Option<Vec<ToolFunction>> {
        let text = text.trim();
        let text = text.strip_prefix(PYTHON_TAG).unwrap_or(text);
        if let Some((name, arguments)) = text.split_once("[ARGS]") {
            let call = ToolFunction {
                name: name.trim().to_owned(),
                arguments: object(serde_json::from_str(arguments).ok()?)?,
                index: 0,
            };
            return Some(vec![call]);
        }
        let values: Vec<Value> = match serde_json::from_str(text) {
            Ok(Value::Array(values)) => values,
            Ok(value) => vec![value],
            // Several bare calls are parted by semicolons.
            Err(_) if self.marks == Marks::Bare => {
                text.split("; ").map(|part| serde_json::from_str(part).ok()).collect::<Option<_>>()?
            }
            Err(_) => return None,
        };
        let known = |call: &ToolFunction| self.marks != Marks::Bare || self.names.contains(&call.name);
        let calls: Option<Vec<_>> = values.into_iter().map(|value| call(value).filter(known)).collect();
        calls.filter(|calls| !calls.is_empty())
    }
}

fn call(value: Value) -> Option<ToolFunction> {
    let Value::Object(mut fields) = value else { return None };
    if fields.get("function").is_some_and(Value::is_object) {
        return fields.remove("function").and_then(call);
    }
    let name = fields.get("name")?.as_str()?.to_owned();
    let arguments = fields.remove("arguments").or_else(|| fields.remove("parameters"));
    let arguments = arguments.map_or_else(|| Some(Map::new()), object)?;
    Some(ToolFunction { index: 0, name, arguments })
}

/// Some models write the object as text.
fn object(value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(fields) => Some(fields),
        Value::String(text) => serde_json::from_str(&text).ok(),
        Value::Null => Some(Map::new()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PAIRED: Marks = PAIRS[0];

    fn tools() -> Vec<Value> {
        vec![json!({ "type": "function", "function": { "name": "f" } })]
    }

    /// The same whatever the pieces it comes in.
    fn find(marks: Marks, text: &str) -> (String, Vec<(String, String)>) {
        let run = |pieces: &[&str]| {
            let mut finder = Finder::new(marks, &tools());
            let found: Vec<Found> = pieces.iter().map(|piece| finder.push(piece)).collect();
            let (mut content, mut calls) = (String::new(), Vec::new());
            for found in found.into_iter().chain([finder.finish()]) {
                content.push_str(&found.content);
                calls
                    .extend(found.calls.into_iter().map(|call| (call.name, Value::Object(call.arguments).to_string())));
            }
            (content, calls)
        };
        let whole = run(&[text]);
        for (cut, _) in text.char_indices() {
            assert_eq!(run(&[&text[..cut], &text[cut..]]), whole, "{text:?} cut at {cut}");
        }
        let characters: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(run(&characters.iter().map(String::as_str).collect::<Vec<_>>()), whole, "{text:?} by characters");
        whole
    }

    fn call(name: &str, arguments: &str) -> (String, String) {
        (name.to_owned(), arguments.to_owned())
    }

    #[test]
    fn marks_are_known_by_the_template() {
        assert_eq!(Marks::of("{{ messages }}"), None);
        assert_eq!(Marks::of("{% if tools %}<tool_call></tool_call>"), Some(PAIRED));
        assert_eq!(Marks::of("{{ tools }}[TOOL_CALLS]"), Some(BEHIND));
        assert_eq!(Marks::of("{{ tools }}"), Some(Marks::Bare));
    }

    #[test]
    fn paired_calls_are_found_wherever_the_text_is_cut() {
        let two = "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"z\": 1, \"a\": \"é\"}}\n</tool_call>\n\
                   <tool_call>{\"name\": \"g\", \"parameters\": \"{\\\"b\\\":2}\"}</tool_call>";
        let calls = vec![call("f", r#"{"z":1,"a":"é"}"#), call("g", r#"{"b":2}"#)];
        assert_eq!(find(PAIRED, two), ("Let me see.\n".to_owned(), calls));
        let unclosed = r#"<tool_call>{"name": "f"}"#;
        assert_eq!(find(PAIRED, unclosed), (String::new(), vec![call("f", "{}")]));
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for text in [
            "",
            "Yes. ",
            " a < b <tool",
            "<tool_call>not json</tool_call>",
            "<tool_call>{\"nome\": 1}</tool_call>",
            "<tool_call>{\"name\": \"f\", \"arguments\": 7}</tool_call>",
            "<tool_call>{\"name\"",
        ] {
            assert_eq!(find(PAIRED, text), (text.to_owned(), Vec::new()), "{text:?}");
        }
        for text in [
            "{\"name\": \"unknown\"}",
            "{\"a\": 1}",
            "[1, 2]",
            "{",
            "<|python_tag|>print(1)",
            "Yes {\"name\": \"f\"}",
            " Yes",
        ] {
            assert_eq!(find(Marks::Bare, text), (text.to_owned(), Vec::new()), "{text:?}");
        }
    }

    #[test]
    fn a_list_behind_a_mark_is_found() {
        let list = r#"[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]"#;
        assert_eq!(find(BEHIND, list), (String::new(), vec![call("f", r#"{"a":1}"#), call("g", "{}")]));
        assert_eq!(
            find(BEHIND, r#"Hm.[TOOL_CALLS]f[ARGS]{"a": 1}"#),
            ("Hm.".to_owned(), vec![call("f", r#"{"a":1}"#)])
        );
    }

    #[test]
    fn a_bare_call_is_found_when_it_calls_a_tool_there_is() {
        for text in [
            r#"{"name": "f", "parameters": {"a": 1}}"#,
            r#" <|python_tag|>{"name": "f", "parameters": {"a": 1}}"#,
            r#"[{"name": "f", "arguments": {"a": 1}}]"#,
            r#"{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}"#,
        ] {
            assert_eq!(find(Marks::Bare, text), (String::new(), vec![call("f", r#"{"a":1}"#)]), "{text}");
        }
        let two = r#"{"name": "f", "parameters": {}}; {"name": "f", "parameters": {"b": 2}}"#;
        assert_eq!(find(Marks::Bare, two).1, [call("f", "{}"), call("f", r#"{"b":2}"#)]);
    }

    #[test]
    fn a_call_without_end_becomes_text_at_the_limit() {
        let mut finder = Finder::new(PAIRED, &[]);
        assert_eq!(finder.push("<tool_call>"), Found::default());
        let found = finder.push(&"x".repeat(CALL_BYTES_MAX + 1));
        assert_eq!(found.content.len(), CALL_BYTES_MAX + 1 + "<tool_call>".len());
        assert_eq!(finder.push("more").content, "more");
    }
}
