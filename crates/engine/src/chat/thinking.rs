//! Telling what a model thinks from what it says, as the text comes in.

use super::dialogue::Start;

pub(super) const OPEN: &str = "<think>";
pub(super) const CLOSE: &str = "</think>";

#[derive(Debug)]
pub(super) struct Splitter {
    state: State,
    /// What may be part of a mark, or blanks that a mark would swallow.
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but blanks so far.
    Fresh,
    /// Behind the opening mark; blanks are swallowed.
    Opened,
    Inside,
    /// Behind the closing mark; blanks are swallowed.
    Closed,
    Outside,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Split {
    pub thinking: String,
    pub content: String,
}

impl Splitter {
    pub(super) fn new(start: Start) -> Self {
        let state = match start {
            Start::Fresh => State::Fresh,
            Start::Thinking => State::Opened,
            Start::Content => State::Outside,
        };
        Self { state, held: String::new() }
    }

    pub(super) fn push(&mut self, text: &str) -> Split {
        self.held.push_str(text);
        let mut split = Split::default();
        while self.step(&mut split) {}
        split
    }

    /// What is still held turns out to be no mark.
    pub(super) fn finish(self) -> Split {
        match self.state {
            State::Opened | State::Closed => Split::default(),
            State::Inside => Split { thinking: self.held.trim_end().to_owned(), content: String::new() },
            State::Fresh | State::Outside => Split { thinking: String::new(), content: self.held },
        }
    }

    /// Takes what can be decided from what is held; `true` when there may be more to decide.
    fn step(&mut self, split: &mut Split) -> bool {
        match self.state {
            State::Fresh => {
                let text = self.held.trim_start();
                if let Some(after) = text.strip_prefix(OPEN) {
                    self.held = after.to_owned();
                    self.state = State::Opened;
                } else if OPEN.starts_with(text) {
                    return false;
                } else {
                    self.state = State::Outside;
                }
                true
            }
            State::Opened | State::Closed => {
                self.held = self.held.trim_start().to_owned();
                if self.held.is_empty() {
                    return false;
                }
                self.state = if self.state == State::Opened { State::Inside } else { State::Outside };
                true
            }
            State::Inside => match self.held.split_once(CLOSE) {
                Some((thought, after)) => {
                    split.thinking.push_str(thought.trim_end());
                    self.held = after.to_owned();
                    self.state = State::Closed;
                    true
                }
                None => {
                    let whole = self.held.len() - begun(&self.held, CLOSE);
                    // Blanks before a mark belong to the mark.
                    let decided = self.held[..whole].trim_end().len();
                    split.thinking.extend(self.held.drain(..decided));
                    false
                }
            },
            State::Outside => {
                split.content.push_str(&std::mem::take(&mut self.held));
                false
            }
        }
    }
}

/// How many bytes at the end of `text` may be the beginning of `mark`.
pub(super) fn begun(text: &str, mark: &str) -> usize {
    let longest = text.len().min(mark.len() - 1);
    (1..=longest).rev().find(|&length| text.as_bytes().ends_with(&mark.as_bytes()[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same whatever the pieces it comes in: whole, by two pieces cut anywhere, and character by character.
    fn split(start: Start, text: &str) -> (String, String) {
        let run = |pieces: &[&str]| {
            let mut splitter = Splitter::new(start);
            let mut all = Split::default();
            let splits: Vec<Split> = pieces.iter().map(|piece| splitter.push(piece)).collect();
            for Split { thinking, content } in splits.into_iter().chain([splitter.finish()]) {
                all.thinking.push_str(&thinking);
                all.content.push_str(&content);
            }
            (all.thinking, all.content)
        };
        let whole = run(&[text]);
        for (cut, _) in text.char_indices() {
            assert_eq!(run(&[&text[..cut], &text[cut..]]), whole, "{text:?} cut at {cut}");
        }
        let characters: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(run(&characters.iter().map(String::as_str).collect::<Vec<_>>()), whole, "{text:?} by characters");
        whole
    }

    fn pair(thinking: &str, content: &str) -> (String, String) {
        (thinking.to_owned(), content.to_owned())
    }

    #[test]
    fn thoughts_are_told_from_words_wherever_the_text_is_cut() {
        assert_eq!(split(Start::Fresh, "<think>\nhm, é\n\n</think>\n\nYes. "), pair("hm, é", "Yes. "));
        assert_eq!(split(Start::Fresh, " \n<think>a</think>b"), pair("a", "b"));
        assert_eq!(split(Start::Fresh, "Yes <think>no</think>"), pair("", "Yes <think>no</think>"));
        assert_eq!(split(Start::Fresh, "<thinker>"), pair("", "<thinker>"));
        assert_eq!(split(Start::Fresh, " <"), pair("", " <"));
        assert_eq!(split(Start::Fresh, "<think>a < b </ c</think>d"), pair("a < b </ c", "d"));
        assert_eq!(split(Start::Fresh, "<think></think>"), pair("", ""));
        assert_eq!(split(Start::Fresh, ""), pair("", ""));
    }

    #[test]
    fn an_answer_may_begin_inside_or_behind_its_thoughts() {
        assert_eq!(split(Start::Thinking, "\nhm</think>Yes"), pair("hm", "Yes"));
        assert_eq!(split(Start::Content, "<think>Yes"), pair("", "<think>Yes"));
    }

    #[test]
    fn thoughts_that_were_cut_off_are_still_thoughts() {
        assert_eq!(split(Start::Fresh, "<think>hm </thi"), pair("hm </thi", ""));
        assert_eq!(split(Start::Fresh, "<think>hm \n"), pair("hm", ""));
    }

    #[test]
    fn what_can_be_told_is_told_at_once() {
        let mut splitter = Splitter::new(Start::Thinking);
        assert_eq!(splitter.push("one two ").thinking, "one two");
        assert_eq!(splitter.push("three</th").thinking, " three");
        assert_eq!(splitter.push("ink>yes "), Split { thinking: String::new(), content: "yes ".to_owned() });
    }
}
