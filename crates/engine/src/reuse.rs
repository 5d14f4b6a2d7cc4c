//! Which slot takes a request, so that least of its prompt has to be read again.

use crate::runner::Token;

/// What a slot holds from earlier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held<'a> {
    /// The tokens whose state is in the model's memory.
    pub(crate) tokens: &'a [Token],
    pub(crate) busy: bool,
    /// Higher is later.
    pub(crate) last_used: u64,
}

/// What the model's memory can do with a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// One state per token: a sequence can be cut at any place, and its beginning lent to another slot.
    PerToken,
    /// A running state, as recurrent models have: it can be continued, and nothing else.
    Running,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) slot: usize,
    /// Tokens of the prompt that need not be read.
    pub(crate) reused: usize,
    /// The slot to take them from, when it is another.
    pub(crate) from: Option<usize>,
}

/// A slot gives up what it holds to a request that shares at least this part of it; else the one that waited longest
/// is taken and the shared beginning is lent to it.
const WORTH_TAKING: f64 = 0.5;

/// `None` when all slots are busy. At least the last token of the prompt is always read: the answer begins with what
/// the model makes of it.
pub(crate) fn choose(slots: &[Held<'_>], prompt: &[Token], memory: Memory) -> Option<Choice> {
    let readable = prompt.len().saturating_sub(1);
    let shared = |held: &Held<'_>| {
        let common = held.tokens.iter().zip(prompt).take_while(|(held, asked)| held == asked).count();
        match memory {
            Memory::PerToken => common.min(readable),
            Memory::Running if common == held.tokens.len() && common <= readable => common,
            Memory::Running => 0,
        }
    };
    let idle = || slots.iter().enumerate().filter(|(_, held)| !held.busy);
    let (oldest, _) = idle().min_by_key(|(_, held)| held.last_used)?;
    let by_shared = |(_, held): &(usize, &Held<'_>)| shared(held);
    let (own, holds) = idle().max_by_key(by_shared)?;
    let own_shared = shared(holds);
    let (other, lends) = slots.iter().enumerate().max_by_key(by_shared)?;
    let other_shared = shared(lends);

    if memory == Memory::Running {
        let slot = if own_shared > 0 { own } else { oldest };
        return Some(Choice { slot, reused: own_shared, from: None });
    }
    let keeps_most = own_shared > 0 && own_shared as f64 >= WORTH_TAKING * holds.tokens.len() as f64;
    let slot = if keeps_most { own } else { oldest };
    let lent = other != slot && other_shared > shared(&slots[slot]);
    Some(Choice { slot, reused: other_shared, from: lent.then_some(other) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(tokens: &[Token], last_used: u64) -> Held<'_> {
        Held { tokens, busy: false, last_used }
    }

    fn busy(tokens: &[Token]) -> Held<'_> {
        Held { tokens, busy: true, last_used: 9 }
    }

    fn chosen(slots: &[Held<'_>], prompt: &[Token]) -> Option<(usize, usize, Option<usize>)> {
        choose(slots, prompt, Memory::PerToken).map(|choice| (choice.slot, choice.reused, choice.from))
    }

    #[test]
    fn a_conversation_returns_to_its_slot() {
        let slots = [idle(&[], 0), idle(&[1, 2, 3, 4], 5), idle(&[1, 2, 9], 3)];
        assert_eq!(chosen(&slots, &[1, 2, 3, 4, 5, 6]), Some((1, 4, None)));
    }

    #[test]
    fn another_conversation_with_the_same_beginning_does_not_evict_it() {
        let slots = [idle(&[1, 2, 3, 4, 5, 6, 7], 5), idle(&[], 0)];
        assert_eq!(chosen(&slots, &[1, 2, 9, 9]), Some((1, 2, Some(0))));
    }

    #[test]
    fn a_busy_slot_lends_its_beginning() {
        let slots = [busy(&[1, 2, 3, 4]), idle(&[7, 8], 1)];
        assert_eq!(chosen(&slots, &[1, 2, 3, 9]), Some((1, 3, Some(0))));
    }

    #[test]
    fn a_slot_that_loses_nothing_takes_more_from_a_neighbour() {
        let slots = [busy(&[1, 2, 3, 4]), idle(&[1, 2], 5), idle(&[9], 1)];
        assert_eq!(chosen(&slots, &[1, 2, 3, 4, 5]), Some((1, 4, Some(0))));
    }

    #[test]
    fn without_anything_in_common_the_longest_unused_goes() {
        let slots = [idle(&[5], 4), idle(&[6], 2), idle(&[7], 3)];
        assert_eq!(chosen(&slots, &[1, 2]), Some((1, 0, None)));
    }

    #[test]
    fn the_last_token_is_read_again() {
        let slots = [idle(&[1, 2, 3], 1)];
        assert_eq!(chosen(&slots, &[1, 2, 3]), Some((0, 2, None)));
        assert_eq!(chosen(&slots, &[1]), Some((0, 0, None)));
    }

    #[test]
    fn the_oldest_slot_lends_nothing_to_itself() {
        let slots = [idle(&[1, 2, 3, 4, 5, 6, 7, 8], 1), idle(&[9], 2)];
        assert_eq!(chosen(&slots, &[1, 2, 0, 0]), Some((0, 2, None)));
    }

    #[test]
    fn all_busy_is_none() {
        assert_eq!(chosen(&[busy(&[1])], &[1, 2]), None);
        assert_eq!(chosen(&[], &[1, 2]), None);
    }

    #[test]
    fn a_running_state_is_continued_or_not_used_at_all() {
        let slots = [idle(&[1, 2, 3], 5), idle(&[8], 1)];
        let chosen = |prompt: &[Token]| choose(&slots, prompt, Memory::Running);
        assert_eq!(chosen(&[1, 2, 3, 4]), Some(Choice { slot: 0, reused: 3, from: None }));
        assert_eq!(chosen(&[1, 2, 3]), Some(Choice { slot: 1, reused: 0, from: None }));
        assert_eq!(chosen(&[1, 2, 4]), Some(Choice { slot: 1, reused: 0, from: None }));
    }
}
