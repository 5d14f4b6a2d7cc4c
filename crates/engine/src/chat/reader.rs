//! From what a model writes to what a client reads: thoughts, words, calls.

use ollama::wire::ToolFunction;
use serde_json::Value;

use super::dialogue::Start;
use super::thinking::Splitter;
use super::tools::{Finder, Marks};

/// What a piece of text turned out to hold. Nothing at all, while it cannot be told.
#[derive(Debug, Default, PartialEq)]
pub struct Piece {
    pub thinking: String,
    pub content: String,
    pub calls: Vec<ToolFunction>,
}

/// Reads one answer, piece by piece, however it is cut.
#[derive(Debug)]
pub struct Reader {
    thoughts: Option<Splitter>,
    calls: Option<Finder>,
}

impl Reader {
    /// Hands everything on as it comes.
    pub fn plain() -> Self {
        Self { thoughts: None, calls: None }
    }

    pub(super) fn new(thinks_from: Option<Start>, tools: Option<(Marks, &[Value])>) -> Self {
        let calls = tools.map(|(marks, tools)| Finder::new(marks, tools));
        Self { thoughts: thinks_from.map(Splitter::new), calls }
    }

    pub fn push(&mut self, text: &str) -> Piece {
        let mut piece = Piece { content: text.to_owned(), ..Piece::default() };
        if let Some(thoughts) = &mut self.thoughts {
            let split = thoughts.push(text);
            (piece.thinking, piece.content) = (split.thinking, split.content);
        }
        if let Some(calls) = &mut self.calls {
            let found = calls.push(&piece.content);
            (piece.content, piece.calls) = (found.content, found.calls);
        }
        piece
    }

    /// What was held back until the end.
    pub fn finish(self) -> Piece {
        let mut piece = Piece::default();
        if let Some(thoughts) = self.thoughts {
            let split = thoughts.finish();
            (piece.thinking, piece.content) = (split.thinking, split.content);
        }
        if let Some(mut calls) = self.calls {
            let found = calls.push(&piece.content);
            let last = calls.finish();
            piece.content = found.content + &last.content;
            piece.calls = found.calls.into_iter().chain(last.calls).collect();
        }
        piece
    }
}

impl Piece {
    pub fn is_empty(&self) -> bool {
        self.thinking.is_empty() && self.content.is_empty() && self.calls.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &str =
        "<think>\nI call f.\n</think>\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";

    fn reader() -> Reader {
        let marks = Marks::of("tools <tool_call>").unwrap();
        Reader::new(Some(Start::Fresh), Some((marks, &[])))
    }

    #[test]
    fn thoughts_and_calls_of_one_answer_are_told_apart() {
        let mut reader = reader();
        let mut pieces: Vec<Piece> = TEXT.chars().map(|character| reader.push(&character.to_string())).collect();
        pieces.push(reader.finish());
        let thinking: String = pieces.iter().map(|piece| piece.thinking.as_str()).collect();
        assert_eq!(thinking, "I call f.");
        assert!(pieces.iter().all(|piece| piece.content.is_empty()));
        let calls: Vec<_> = pieces.iter().flat_map(|piece| &piece.calls).collect();
        assert_eq!(calls.len(), 1);
        assert_eq!(json!(calls[0]), json!({ "index": 0, "name": "f", "arguments": {} }));
    }

    #[test]
    fn a_plain_reader_hands_everything_on() {
        let mut plain = Reader::plain();
        assert_eq!(plain.push(TEXT).content, TEXT);
        assert!(plain.finish().is_empty());
    }

    #[test]
    fn a_mark_begun_at_the_very_end_is_text() {
        let mut reader = reader();
        assert_eq!(reader.push("Yes <tool_c").content, "Yes ");
        assert_eq!(reader.finish().content, "<tool_c");
    }
}
