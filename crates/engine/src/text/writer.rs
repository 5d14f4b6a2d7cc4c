//! From chosen tokens to what a client is told.

use crate::runner::{Ended, TokenLogprob};
use crate::text::{Screened, StopStrings, Utf8};

/// One answer in the making.
#[derive(Debug)]
pub struct Writer {
    utf8: Utf8,
    stops: StopStrings,
    /// Of tokens whose text waits with the rest.
    logprobs: Vec<TokenLogprob>,
    limit: u32,
    tokens: u32,
}

/// A chosen token, as the vocabulary tells it.
#[derive(Debug)]
pub struct Spelled<'a> {
    pub bytes: &'a [u8],
    /// It ends the answer, and is no part of it.
    pub ends: bool,
    pub logprob: Option<TokenLogprob>,
}

/// What a token led to.
#[derive(Debug, Default, PartialEq)]
pub struct Written {
    /// To be said now; empty where all of it waits.
    pub text: String,
    pub logprobs: Vec<TokenLogprob>,
    /// Nothing follows.
    pub ended: Option<Ended>,
}

impl Written {
    pub fn then(mut self, later: Self) -> Self {
        self.text.push_str(&later.text);
        self.logprobs.extend(later.logprobs);
        Self { ended: later.ended, ..self }
    }
}

impl Writer {
    pub fn new(stops: StopStrings, limit: u32) -> Self {
        Self { utf8: Utf8::default(), stops, logprobs: Vec::new(), limit, tokens: 0 }
    }

    /// Tokens chosen so far, the ending one included.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    pub fn is_full(&self) -> bool {
        self.tokens >= self.limit
    }

    pub fn push(&mut self, token: Spelled<'_>) -> Written {
        self.tokens = self.tokens.saturating_add(1);
        if token.ends {
            return self.end(Ended::Stop);
        }
        self.logprobs.extend(token.logprob);
        let text = self.utf8.push(token.bytes);
        match self.stops.push(&text) {
            // The tokens of a stop string were not said, so neither are their probabilities.
            Screened::Stop(text) => Written { text, logprobs: Vec::new(), ended: Some(Ended::Stop) },
            Screened::Pass(text) if self.is_full() => {
                Written { text, ..Written::default() }.then(self.end(Ended::Length))
            }
            Screened::Pass(text) if text.is_empty() => Written::default(),
            Screened::Pass(text) => Written { text, logprobs: std::mem::take(&mut self.logprobs), ended: None },
        }
    }

    /// The answer is over by `ended`: what waited for more is said now.
    pub fn end(&mut self, ended: Ended) -> Written {
        Written { text: self.stops.finish(), logprobs: std::mem::take(&mut self.logprobs), ended: Some(ended) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::Candidate;

    fn writer(stops: &[&str], limit: u32) -> Writer {
        Writer::new(StopStrings::new(stops.iter().map(|stop| (*stop).to_owned())), limit)
    }

    fn token(bytes: &str) -> Spelled<'_> {
        let chosen = Candidate { bytes: bytes.into(), logprob: -1.0 };
        Spelled { bytes: bytes.as_bytes(), ends: false, logprob: Some(TokenLogprob { chosen, top: Vec::new() }) }
    }

    const END: Spelled<'static> = Spelled { bytes: b"</s>", ends: true, logprob: None };

    fn said(written: &Written) -> (&str, usize, Option<Ended>) {
        (&written.text, written.logprobs.len(), written.ended)
    }

    #[test]
    fn the_ending_token_is_counted_and_not_said() {
        let mut writer = writer(&[], 10);
        assert_eq!(said(&writer.push(token("a"))), ("a", 1, None));
        assert_eq!(said(&writer.push(END)), ("", 0, Some(Ended::Stop)));
        assert_eq!(writer.tokens(), 2);
    }

    #[test]
    fn probabilities_come_with_their_text() {
        let mut writer = writer(&["xyz"], 10);
        assert_eq!(said(&writer.push(token("x"))), ("", 0, None));
        assert_eq!(said(&writer.push(token("y"))), ("", 0, None));
        assert_eq!(said(&writer.push(token("!"))), ("xy!", 3, None));
    }

    #[test]
    fn a_stop_string_takes_its_probabilities_along() {
        let mut writer = writer(&["xyz"], 10);
        assert_eq!(said(&writer.push(token("ax"))), ("a", 1, None));
        assert_eq!(said(&writer.push(token("yz and more"))), ("", 0, Some(Ended::Stop)));
    }

    #[test]
    fn the_limit_says_what_waited() {
        let mut writer = writer(&["xyz"], 2);
        assert_eq!(said(&writer.push(token("a"))), ("a", 1, None));
        assert_eq!(said(&writer.push(token("bxy"))), ("bxy", 1, Some(Ended::Length)));
    }

    #[test]
    fn an_end_at_the_limit_is_an_end() {
        let mut writer = writer(&[], 1);
        assert_eq!(said(&writer.push(END)), ("", 0, Some(Ended::Stop)));
    }

    #[test]
    fn half_a_character_at_the_end_is_not_said() {
        let mut writer = writer(&[], 2);
        assert_eq!(said(&writer.push(token("a"))), ("a", 1, None));
        let half = Spelled { bytes: &[0xf0, 0x9f], ends: false, logprob: None };
        assert_eq!(said(&writer.push(half)), ("", 0, Some(Ended::Length)));
    }
}
