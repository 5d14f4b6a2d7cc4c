//! What fits into a context, and what is forgotten when it does not: Ollama's rules, as numbers of tokens.

use std::ops::Range;

use crate::runner::{Overlong, WhenFull};

/// Ollama ends an answer without a limit of its own after this many contexts.
const CONTEXTS_MAX: u32 = 10;

/// Tokens that stay free below the top when everything is to be kept, so that a shift always forgets some.
const NEVER_KEPT: u32 = 4;

/// One request's room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Tokens, at least [`Window::SMALLEST`].
    pub(crate) context: u32,
    /// Tokens at the start that are never forgotten; `None` is the whole prompt.
    pub(crate) keep: Option<u32>,
    pub(crate) overlong: Overlong,
    pub(crate) when_full: WhenFull,
}

/// The prompt fits in no way that was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

impl Window {
    /// Below this nothing can be kept, forgotten and said.
    pub(crate) const SMALLEST: u32 = 8;

    /// The tokens of a prompt that have to go; an empty range when it fits as it is. One place is left for the answer.
    pub(crate) fn cut(&self, prompt: u32) -> Result<Range<u32>, TooLong> {
        let most = self.context - 1;
        if prompt <= most {
            return Ok(0..0);
        }
        if self.overlong == Overlong::Refuse || self.when_full == WhenFull::End {
            return Err(TooLong);
        }
        let keep = self.keep.unwrap_or(prompt).min(most);
        // As much as a shift would leave, so that the answer does not begin with one.
        let stays = self.context - ((self.context - keep) / 2).max(1);
        Ok(keep..keep + (prompt - stays))
    }

    /// The tokens to forget once prompt and answer together have come to fill the context; `None` ends the answer.
    /// `prompt` is its length after cutting.
    pub(crate) fn shift(&self, prompt: u32) -> Option<Range<u32>> {
        if self.when_full == WhenFull::End {
            return None;
        }
        let keep = self.keep.unwrap_or(prompt).min(self.context - NEVER_KEPT);
        let forgotten = (self.context - 1 - keep) / 2;
        Some(keep..keep + forgotten)
    }

    /// How many tokens an answer may have.
    pub(crate) fn limit(&self, asked: Option<u32>) -> u32 {
        let most = self.context.saturating_mul(CONTEXTS_MAX);
        asked.map_or(most, |asked| asked.min(most))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Window = Window { context: 512, keep: Some(4), overlong: Overlong::Cut, when_full: WhenFull::Shift };

    #[test]
    fn a_prompt_that_leaves_one_place_is_not_touched() {
        assert_eq!(WINDOW.cut(511), Ok(0..0));
        assert_eq!(WINDOW.cut(0), Ok(0..0));
    }

    /// Figures seen in Ollama's log: `limit=258 prompt=4289 keep=4`, and `limit=511 keep=511` for a whole prompt.
    #[test]
    fn an_overlong_prompt_is_cut_where_ollama_cuts_it() {
        assert_eq!(WINDOW.cut(4289), Ok(4..4 + 4289 - 258));
        let all = Window { keep: None, ..WINDOW };
        assert_eq!(all.cut(4289), Ok(511..511 + 4289 - 511));
    }

    #[test]
    fn a_prompt_that_may_not_be_cut_is_refused() {
        assert_eq!(Window { overlong: Overlong::Refuse, ..WINDOW }.cut(512), Err(TooLong));
        assert_eq!(Window { when_full: WhenFull::End, ..WINDOW }.cut(512), Err(TooLong));
    }

    /// Seen in llama-server's log: `n_keep = 4, n_left = 507, n_discard = 253`.
    #[test]
    fn a_full_context_forgets_what_llama_server_forgets() {
        assert_eq!(WINDOW.shift(100), Some(4..257));
        assert_eq!(Window { when_full: WhenFull::End, ..WINDOW }.shift(100), None);
    }

    #[test]
    fn an_answer_without_a_limit_has_one() {
        assert_eq!(WINDOW.limit(None), 5120);
        assert_eq!(WINDOW.limit(Some(9999)), 5120);
        assert_eq!(WINDOW.limit(Some(0)), 0);
    }

    proptest! {
        #[test]
        fn what_stays_fits_and_a_shift_always_makes_room(
            context in Window::SMALLEST..5000u32,
            keep in proptest::option::of(0..6000u32),
            prompt in 1..20_000u32,
        ) {
            let window = Window { context, keep, ..WINDOW };
            let cut = window.cut(prompt).unwrap();
            prop_assert!(cut.end <= prompt);
            let stays = prompt - cut.len() as u32;
            prop_assert!(0 < stays && stays < context);
            let shift = window.shift(stays).unwrap();
            prop_assert!(!shift.is_empty() && shift.end < context);
        }
    }
}
