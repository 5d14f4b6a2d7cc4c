//! One model's way to talk: its template, and what follows from it.

use std::time::SystemTime;

use gguf::Facts;
use ollama::wire::{Message, Think};
use serde_json::{Map, Value, json};

use super::template::Context;
use super::thinking::{CLOSE, OPEN};
use super::{Error, Marks, Reader, Template};
use crate::text::split_tail;

/// What llama.cpp falls back to as well, for files that bring no template.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
                      {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Made once for a model file, used for every request.
#[derive(Debug)]
pub struct Dialogue {
    template: Result<Template, Error>,
    bos: String,
    eos: String,
    /// The runner will put it there by itself.
    adds_bos: bool,
    thinks: bool,
    calls: Option<Marks>,
}

/// What is put to a model.
#[derive(Debug, Clone, Copy)]
pub struct Talk<'a> {
    pub messages: &'a [Message],
    pub tools: &'a [Value],
    pub think: Option<Think>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub prompt: String,
    /// The end of what is gone on with, which belongs behind the prompt: see [`split_tail`].
    pub begun: String,
    pub start: Start,
    pub ends: Ends,
}

/// Where the prompt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// Where the model's own text, or `begun`, begins.
    BeforeTheAnswer,
    /// Perhaps within a word of the model's.
    Anywhere,
}

/// Where the model's text begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It may think first, and would mark it.
    Fresh,
    /// Inside its thoughts: the template, or the message that is continued, has opened them.
    Thinking,
    /// Behind them.
    Content,
}

impl Dialogue {
    /// `go_template` is what Ollama's manifest brings. This engine does not read that language: without a Jinja
    /// template in the file it only knows one family by its marks.
    pub fn new(facts: &Facts, go_template: Option<&str>) -> Self {
        let own = facts.chat_template.as_deref();
        let is_chatml = go_template.is_none_or(|template| template.contains("<|im_start|>"));
        let source = own.unwrap_or(CHATML);
        let template = if own.is_none() && !is_chatml { Err(Error::OnlyGoTemplate) } else { Template::new(source) };
        Self {
            template,
            bos: facts.bos.clone().unwrap_or_default(),
            eos: facts.eos.clone().unwrap_or_default(),
            adds_bos: facts.adds_bos.unwrap_or(facts.tokenizer.as_deref() == Some("llama")),
            thinks: source.contains(OPEN) && source.contains(CLOSE),
            calls: Marks::of(source),
        }
    }

    pub fn can_think(&self) -> bool {
        self.thinks
    }

    pub fn can_call_tools(&self) -> bool {
        self.calls.is_some()
    }

    /// The prompt after which the model answers. When the last message is the assistant's, the model goes on with it.
    pub fn render(&self, talk: Talk<'_>, now: SystemTime) -> Result<Rendered, Error> {
        let template = self.template.as_ref().map_err(Clone::clone)?;
        let (messages, begun) = split_begun(talk.messages)?;
        let with = |arguments: Arguments| {
            let messages: Vec<Value> = messages.iter().map(|message| for_template(message, arguments)).collect();
            let context = Context {
                messages: &messages,
                tools: (!talk.tools.is_empty()).then_some(talk.tools),
                add_generation_prompt: true,
                bos_token: &self.bos,
                eos_token: &self.eos,
                enable_thinking: talk.think.map(Think::is_on),
                reasoning_effort: talk.think.and_then(|think| match think {
                    Think::At(level) => Some(level.as_str()),
                    Think::On | Think::Off => None,
                }),
            };
            template.render(&context, now)
        };
        let has_calls = messages.iter().any(|message| !message.tool_calls.is_empty());
        let prompt = match with(Arguments::Object) {
            // Some templates put arguments into text as they are.
            Err(Error::Template(_)) if has_calls => with(Arguments::Text)?,
            rendered => rendered?,
        };
        let doubled = self.adds_bos && !self.bos.is_empty() && prompt.starts_with(&self.bos);
        let prompt = if doubled { prompt[self.bos.len()..].to_owned() } else { prompt };
        Ok(self.go_on(prompt, begun))
    }

    /// Reads the answer to a rendered prompt.
    pub fn reader(&self, talk: Talk<'_>, start: Start) -> Reader {
        let thinks = self.thinks && talk.think.is_some_and(Think::is_on);
        let tools = self.calls.filter(|_| !talk.tools.is_empty()).map(|marks| (marks, talk.tools));
        Reader::new(thinks.then_some(start), tools)
    }

    fn go_on(&self, mut prompt: String, begun: Option<&Message>) -> Rendered {
        let opened = self.thinks && prompt.trim_end().ends_with(OPEN);
        let (thinking, content) = begun.map_or(("", ""), |message| (&message.thinking, &message.content));
        if self.thinks && !thinking.is_empty() {
            if !opened {
                prompt.push_str(OPEN);
                prompt.push('\n');
            }
            if content.is_empty() {
                return cut(prompt, thinking, Start::Thinking);
            }
            prompt.push_str(thinking);
        }
        if content.is_empty() {
            let start = if opened { Start::Thinking } else { Start::Fresh };
            return Rendered { prompt, begun: String::new(), start, ends: Ends::BeforeTheAnswer };
        }
        if opened || (self.thinks && !thinking.is_empty()) {
            prompt.push('\n');
            prompt.push_str(CLOSE);
            prompt.push_str("\n\n");
        }
        cut(prompt, content, Start::Content)
    }
}

fn cut(mut prompt: String, text: &str, start: Start) -> Rendered {
    let (head, tail) = split_tail(text);
    prompt.push_str(head);
    Rendered { prompt, begun: tail.to_owned(), start, ends: Ends::BeforeTheAnswer }
}

/// The messages to render, and the one to go on with. One without a word in it is nothing to go on with.
fn split_begun(messages: &[Message]) -> Result<(&[Message], Option<&Message>), Error> {
    let is_assistant = |message: &Message| message.role == "assistant";
    let Some((last, before)) = messages.split_last().filter(|(last, _)| is_assistant(last)) else {
        return Ok((messages, None));
    };
    if before.last().is_some_and(is_assistant) {
        return Err(Error::TwoAtTheEnd);
    }
    if !last.tool_calls.is_empty() {
        return Err(Error::ContinuedCall);
    }
    Ok((before, Some(last)))
}

#[derive(Clone, Copy)]
enum Arguments {
    Object,
    Text,
}

/// A message as templates know it, which is as OpenAI's API has it.
fn for_template(message: &Message, arguments: Arguments) -> Value {
    let mut fields = Map::new();
    fields.insert("role".to_owned(), json!(message.role));
    fields.insert("content".to_owned(), json!(message.content));
    if !message.thinking.is_empty() {
        fields.insert("reasoning_content".to_owned(), json!(message.thinking));
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            let given = Value::Object(call.function.arguments.clone());
            let given = match arguments {
                Arguments::Object => given,
                Arguments::Text => Value::String(given.to_string()),
            };
            json!({ "id": call.id, "type": "function", "function": { "name": call.function.name, "arguments": given } })
        });
        fields.insert("tool_calls".to_owned(), calls.collect());
    }
    if !message.tool_name.is_empty() {
        fields.insert("name".to_owned(), json!(message.tool_name));
    }
    if !message.tool_call_id.is_empty() {
        fields.insert("tool_call_id".to_owned(), json!(message.tool_call_id));
    }
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use ollama::wire::{Level, ToolCall, ToolFunction};

    use super::*;

    fn dialogue(template: Option<&str>, go_template: Option<&str>) -> Dialogue {
        let mut file = gguf::build::File::tiny_llama().bool("tokenizer.ggml.add_bos_token", true);
        if let Some(template) = template {
            file = file.text("tokenizer.chat_template", template);
        }
        let bytes = file.bytes();
        let header = gguf::Header::parse(&bytes, bytes.len() as u64).unwrap();
        Dialogue::new(&Facts::of(&header).unwrap(), go_template)
    }

    fn said(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned(), ..Message::default() }
    }

    fn render(dialogue: &Dialogue, messages: &[Message], think: Option<Think>) -> Result<(String, Start), Error> {
        let talk = Talk { messages, tools: &[], think };
        dialogue
            .render(talk, SystemTime::UNIX_EPOCH)
            .map(|rendered| (rendered.prompt + &rendered.begun, rendered.start))
    }

    /// Opens the thoughts itself unless told not to, as many do.
    const THINKER: &str = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]\
                           {% if enable_thinking is defined and enable_thinking is false %}<think></think>\
                           {% else %}<think>\n{% endif %}";

    #[test]
    fn without_a_template_it_is_chatml() {
        let expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        for go_template in [None, Some("{{ .Prompt }}<|im_start|>")] {
            let plain = dialogue(None, go_template);
            assert_eq!(render(&plain, &[said("user", "Hi")], None), Ok((expected.to_owned(), Start::Fresh)));
            assert!(!plain.can_think() && !plain.can_call_tools());
        }
    }

    #[test]
    fn a_go_template_alone_is_refused_unless_its_family_is_known() {
        assert_eq!(render(&dialogue(None, Some("{{ .Prompt }}")), &[], None), Err(Error::OnlyGoTemplate));
        assert!(render(&dialogue(Some("x"), Some("{{ .Prompt }}")), &[], None).is_ok());
    }

    #[test]
    fn the_beginning_that_the_runner_adds_is_left_to_it() {
        let (prompt, _) = render(&dialogue(Some("{{ bos_token }}a{{ bos_token }}"), None), &[], None).unwrap();
        assert_eq!(prompt, "a<s>");
    }

    #[test]
    fn an_answer_that_was_begun_is_gone_on_with() {
        let plain =
            dialogue(Some("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant] "), None);
        let begun = [said("user", "Hi"), said("assistant", "Yes, ")];
        assert_eq!(render(&plain, &begun, None).unwrap(), ("[user]Hi[assistant] Yes, ".to_owned(), Start::Content));
        let talk = Talk { messages: &begun, tools: &[], think: None };
        let rendered = plain.render(talk, SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!((rendered.prompt.as_str(), rendered.begun.as_str()), ("[user]Hi[assistant] ", "Yes, "));
        let empty = [said("user", "Hi"), said("assistant", "")];
        assert_eq!(render(&plain, &empty, None).unwrap(), ("[user]Hi[assistant] ".to_owned(), Start::Fresh));

        let two = [said("assistant", "a"), said("assistant", "b")];
        assert_eq!(render(&plain, &two, None), Err(Error::TwoAtTheEnd));
        let call = Message { tool_calls: vec![ToolCall::default()], ..said("assistant", "") };
        assert_eq!(render(&plain, &[call], None), Err(Error::ContinuedCall));
    }

    #[test]
    fn thoughts_are_opened_and_closed_as_they_have_to_be() {
        let thinker = dialogue(Some(THINKER), None);
        assert!(thinker.can_think());
        let of = |last: Message, think| render(&thinker, &[said("user", "Hi"), last], Some(think)).unwrap();
        let asked = render(&thinker, &[said("user", "Hi")], Some(Think::On)).unwrap();
        assert_eq!(asked, ("[user]Hi[assistant]<think>\n".to_owned(), Start::Thinking));
        let off = render(&thinker, &[said("user", "Hi")], Some(Think::Off)).unwrap();
        assert_eq!(off, ("[user]Hi[assistant]<think></think>".to_owned(), Start::Fresh));

        let words = of(said("assistant", "Yes"), Think::On);
        assert_eq!(words, ("[user]Hi[assistant]<think>\n\n</think>\n\nYes".to_owned(), Start::Content));
        let thoughts = Message { thinking: "hm".to_owned(), ..said("assistant", "") };
        assert_eq!(of(thoughts, Think::On), ("[user]Hi[assistant]<think>\nhm".to_owned(), Start::Thinking));
        let both = Message { thinking: "hm".to_owned(), ..said("assistant", "Yes") };
        assert_eq!(of(both, Think::On), ("[user]Hi[assistant]<think>\nhm\n</think>\n\nYes".to_owned(), Start::Content));
    }

    #[test]
    fn templates_see_how_hard_to_think() {
        let effort = dialogue(Some("{{ reasoning_effort }}|{{ enable_thinking }}"), None);
        assert_eq!(render(&effort, &[], Some(Think::At(Level::High))).unwrap().0.to_lowercase(), "high|true");
        assert_eq!(render(&effort, &[], None).unwrap().0, "|");
    }

    #[test]
    fn calls_are_shown_as_objects_or_as_text() {
        let arguments = json!({ "z": 1, "a": 2 });
        let function =
            ToolFunction { name: "f".to_owned(), arguments: arguments.as_object().unwrap().clone(), index: 0 };
        let call = ToolCall { id: "c".to_owned(), function };
        let messages = [
            Message { tool_calls: vec![call], ..said("assistant", "") },
            Message { tool_name: "f".to_owned(), tool_call_id: "c".to_owned(), ..said("tool", "3") },
        ];
        let json = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function|tojson }}{% endfor %}{{ m.name }}{% endfor %}";
        let (prompt, _) = render(&dialogue(Some(json), None), &messages, None).unwrap();
        assert_eq!(prompt, r#"{"name": "f", "arguments": {"z": 1, "a": 2}}f"#);
        let text = "{% for m in messages %}{% for c in m.tool_calls %}{{ '(' + c.function.arguments + ')' }}{% endfor %}{% endfor %}";
        let (prompt, _) = render(&dialogue(Some(text), None), &messages, None).unwrap();
        assert_eq!(prompt, r#"({"z":1,"a":2})"#);
    }

    #[test]
    fn a_reader_looks_for_what_the_request_asks_for() {
        let template = format!("{THINKER}{{{{ tools }}}}<tool_call>");
        let dialogue = dialogue(Some(&template), None);
        let tools = [json!({ "function": { "name": "f" } })];
        let read = |tools: &[Value], think| {
            let talk = Talk { messages: &[], tools, think };
            let piece =
                dialogue.reader(talk, Start::Fresh).push("<think>a</think><tool_call>{\"name\":\"f\"}</tool_call>");
            (piece.thinking, piece.content.is_empty(), piece.calls.len())
        };
        assert_eq!(read(&tools, Some(Think::On)), ("a".to_owned(), true, 1));
        assert_eq!(read(&[], Some(Think::On)), ("a".to_owned(), false, 0));
        assert_eq!(read(&tools, None), (String::new(), false, 1));
        assert_eq!(read(&[], Some(Think::Off)), (String::new(), false, 0));
    }
}
