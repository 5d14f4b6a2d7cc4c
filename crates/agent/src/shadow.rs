//! What the backend's prompt cache probably holds: nobody can look into it, but every prompt went past here.
//!
//! The backend keeps the last prompt of each slot, and newer ones park what they evict in memory. So the shadow is a
//! list of beginnings of prompts, the last used first, cut off where the backend's memory ends. Hashes cover all that
//! lies before them, so the longest match is the last of a chain's links that is known.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::{Link, Moment};

/// Prompts kept per model; older ones are forgotten.
const PROMPTS_MAX: usize = 256;
/// Four of five reuses come within ten minutes; what is older was probably evicted by what we do not see.
const KEEP: Duration = Duration::from_secs(30 * 60);

#[derive(Debug)]
pub struct Shadow {
    tokens_max: u32,
    /// The newest last.
    prompts: VecDeque<Prompt>,
    /// How many prompts have a link, and the tokens up to it.
    links: HashMap<u64, (u32, u32)>,
    tokens: u64,
}

#[derive(Debug)]
struct Prompt {
    links: Vec<Link>,
    used: Moment,
}

impl Prompt {
    fn tokens(&self) -> u32 {
        self.links.last().map_or(0, |link| link.tokens)
    }
}

impl Shadow {
    /// `tokens_max` is what slots and parked prompts hold together; the last prompt is kept however long it is.
    pub fn new(tokens_max: u32) -> Self {
        Self { tokens_max, prompts: VecDeque::new(), links: HashMap::new(), tokens: 0 }
    }

    /// Tokens of this prompt that need not be read.
    pub fn cached(&self, prompt: &[Link]) -> u32 {
        prompt.iter().rev().find_map(|link| self.links.get(&link.hash)).map_or(0, |(_, tokens)| *tokens)
    }

    /// The backend has read this prompt. A shorter beginning of it lives on in it and takes no room of its own.
    pub fn remember(&mut self, now: Moment, prompt: &[Link]) {
        let Some(last) = prompt.last() else { return };
        let begins = |known: &Prompt| {
            known.links.last().is_some_and(|end| end.tokens <= last.tokens && prompt.iter().any(|link| link == end))
        };
        while let Some(at) = self.prompts.iter().position(begins) {
            self.forget_at(at);
        }
        for link in prompt {
            self.links.entry(link.hash).or_insert((0, link.tokens)).0 += 1;
        }
        self.tokens += u64::from(last.tokens);
        self.prompts.push_back(Prompt { links: prompt.to_vec(), used: now });
        self.age(now);
    }

    /// What was said to be cached was read anew: the backend dropped it.
    pub fn missed(&mut self, prompt: &[Link]) {
        let Some(known) = prompt.iter().rev().find(|link| self.links.contains_key(&link.hash)) else { return };
        while let Some(at) = self.prompts.iter().position(|prompt| prompt.links.contains(known)) {
            self.forget_at(at);
        }
    }

    /// Forgets what is too old or no longer fits.
    pub fn age(&mut self, now: Moment) {
        while let Some(oldest) = self.prompts.front() {
            let is_old = now.saturating_sub(oldest.used) > KEEP;
            let is_too_much = self.prompts.len() > PROMPTS_MAX || self.tokens > u64::from(self.tokens_max);
            if !(is_old || is_too_much && self.prompts.len() > 1) {
                break;
            }
            self.forget_at(0);
        }
    }

    /// The model was unloaded, its cache is gone.
    pub fn clear(&mut self) {
        *self = Self::new(self.tokens_max);
    }

    fn forget_at(&mut self, at: usize) {
        let Some(prompt) = self.prompts.remove(at) else { return };
        self.tokens -= u64::from(prompt.tokens());
        for link in &prompt.links {
            if let Some((count, _)) = self.links.get_mut(&link.hash) {
                *count -= 1;
                if *count == 0 {
                    self.links.remove(&link.hash);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each letter is a block of 256 tokens.
    fn chain(text: &str) -> Vec<Link> {
        let mut hash = 7_u64;
        let link = |(at, byte): (usize, u8)| {
            hash = hash.wrapping_mul(1_000_003).wrapping_add(u64::from(byte));
            Link { hash, tokens: (at as u32 + 1) * 256 }
        };
        text.bytes().enumerate().map(link).collect()
    }

    const fn at(seconds: u64) -> Moment {
        Moment::from_secs(seconds)
    }

    #[test]
    fn the_longest_beginning_is_found() {
        let mut shadow = Shadow::new(100_000);
        assert_eq!(shadow.cached(&chain("abc")), 0);
        shadow.remember(at(0), &chain("abcd"));
        shadow.remember(at(1), &chain("abxy"));
        for (prompt, cached) in [("abcde", 4), ("abx", 3), ("ab", 2), ("abz", 2), ("b", 0), ("", 0)] {
            assert_eq!(shadow.cached(&chain(prompt)), cached * 256, "{prompt}");
        }
    }

    #[test]
    fn a_conversation_that_grows_takes_room_once() {
        let mut shadow = Shadow::new(100_000);
        for end in 1..=10 {
            shadow.remember(at(end), &chain(&"conversation"[..end as usize]));
        }
        assert_eq!((shadow.prompts.len(), shadow.tokens), (1, 2560));
    }

    #[test]
    fn memory_has_an_end_and_so_has_time() {
        let mut shadow = Shadow::new(1024);
        shadow.remember(at(0), &chain("abc"));
        shadow.remember(at(1), &chain("xyz"));
        assert_eq!((shadow.cached(&chain("abc")), shadow.cached(&chain("xyz"))), (0, 768));
        shadow.remember(at(2), &chain("much-too-long"));
        assert_eq!(shadow.cached(&chain("much")), 1024);
        shadow.age(at(3600));
        assert_eq!(shadow.cached(&chain("much")), 0);
        assert!(shadow.links.is_empty() && shadow.tokens == 0);
        for prompt in 0..1000_u32 {
            shadow.remember(at(4000), &[Link { hash: u64::from(prompt), tokens: 0 }]);
        }
        assert_eq!(shadow.links.len(), PROMPTS_MAX);
    }

    #[test]
    fn a_miss_and_an_unloading_are_believed() {
        let mut shadow = Shadow::new(100_000);
        shadow.remember(at(0), &chain("abcd"));
        shadow.remember(at(0), &chain("abxy"));
        shadow.missed(&chain("abcdef"));
        assert_eq!(shadow.cached(&chain("abcd")), 512, "what another one holds stays");
        shadow.clear();
        assert_eq!(shadow.cached(&chain("abxy")), 0);
    }
}
